"""Makes the pictures of Degu Drop in doc/images, each state in light and in dark.

    python doc/make-screenshots.py [FOLDER]

Two real devices on this machine pair, share and move files; only the addresses that
are shown are those of the documentation (RFC 5737), and time is not waited for.
"""

from __future__ import annotations

import os
import socket
import ssl
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
os.environ.setdefault("QT_SCALE_FACTOR", "1.5")
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from PySide6.QtCore import QEventLoop, QLocale, QSettings  # noqa: E402
from PySide6.QtGui import QFont, QFontDatabase  # noqa: E402
from PySide6.QtWidgets import QApplication, QWidget  # noqa: E402

from degu.address import Address  # noqa: E402
from demo_app.application import Application  # noqa: E402
from demo_app.transfers import State  # noqa: E402
from demo_app.windows.theme import Scheme  # noqa: E402
from demo_app.workers import trust  # noqa: E402
from demo_app.workers.share import Share  # noqa: E402

HOSTS = {"Anna's laptop": "192.0.2.24", "Ben's desktop": "192.0.2.31"}

SAMPLES = {
    "Photos/2026-08 Lofoten/IMG_0412.jpg": 4_812_000,
    "Photos/2026-08 Lofoten/IMG_0413.jpg": 5_107_000,
    "Photos/2026-10 Garden/IMG_0611.jpg": 3_950_000,
    "Talks/embedding-http.pdf": 2_204_000,
    "Talks/notes.md": 8_211,
    "Videos/harbour.mp4": 192_000_000,
    "budget 2027.ods": 58_330,
    "README.txt": 412,
    "recipes.epub": 1_420_000,
}


class Stage:
    """Two devices, and what is done with them."""

    def __init__(self, folder: Path, target: Path) -> None:
        self.target = target
        self.anna = self._build(folder / "anna", "Anna's laptop")
        self.ben = self._build(folder / "ben", "Ben's desktop")
        self.scheme = Scheme.LIGHT

    def _build(self, folder: Path, name: str) -> Application:
        shared = folder / "Shared"
        for path, size in SAMPLES.items():
            file = shared / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(os.urandom(min(size, 1 << 16)) * (size // (1 << 16) + 1))
            os.truncate(file, size)
        settings = QSettings(str(folder / "settings.ini"), QSettings.Format.IniFormat)
        settings.setValue("name", name)
        settings.setValue("downloads", str(folder / "Downloads"))
        settings.sync()
        return Application(folder, shared, local=True)

    def until(self, condition: Callable[[], object], seconds: float = 20.0) -> None:
        """Let things happen until `condition` is true."""
        end = time.monotonic() + seconds
        while not condition():
            QApplication.processEvents(QEventLoop.ProcessEventsFlag.AllEvents, 20)
            time.sleep(0.002)
            if time.monotonic() > end:
                raise TimeoutError(condition)

    def wait(self, seconds: float) -> None:
        """Let things happen for a while."""
        end = time.monotonic() + seconds
        self.until(lambda: time.monotonic() > end, seconds + 5)

    def take(self, name: str, widget: QWidget) -> None:
        """Take a picture."""
        self.wait(0.1)
        path = self.target / f"demo-{name}-{self.scheme}.png"
        widget.grab().save(str(path))
        print(path)

    def dress(self, scheme: Scheme) -> None:
        """Light or dark."""
        self.scheme = scheme
        self.anna.settings.scheme = scheme
        self.anna.window.refresh_theme()

    def both(self, name: str, widget: QWidget) -> None:
        """Take a picture in light and in dark."""
        for scheme in (Scheme.LIGHT, Scheme.DARK):
            self.dress(scheme)
            self.take(name, widget)
        self.dress(Scheme.LIGHT)


def pair(stage: Stage) -> None:
    """Show the dialog on the way to trust."""
    anna, ben = stage.anna, stage.ben
    window = anna.window
    window.add_device()
    dialog = window.dialog
    assert dialog is not None
    stage.until(lambda: dialog.invite.text.toPlainText())
    stage.both("invite", dialog)
    port = dialog.invite.addresses.text().rpartition(":")[2]
    ben.window.joiner.join(f"[::1]:{port}")
    stage.until(lambda: dialog.invite.question.isVisible())
    stage.wait(0.2)
    stage.both("compare", dialog)
    dialog.invite.question.yes.click()
    ben.window.joiner.answer(True)
    stage.until(lambda: anna.share.device.others and ben.share.device.others)
    stage.wait(0.2)
    stage.both("trusted", dialog)
    dialog.close()
    stage.until(lambda: window.dialog is None)


def browse(stage: Stage) -> None:
    """Show the other device's folder, and transfers."""
    window = stage.anna.window
    peer = stage.anna.share.device.others[0]
    window.sidebar.select(peer.fingerprint)
    page = window.pages[peer.fingerprint]
    stage.until(lambda: page.model.rows)
    page.table.selectRow(2)
    queue, remote = stage.anna.queue, page.browser.remote
    entries = page.model.rows
    done = queue.upload(remote, [stage.anna.share.folder / "Talks"], "/files/")
    stage.until(lambda: done.state is State.DONE)
    queue.download(remote, [e for e in entries if e.name == "Photos"], downloads(stage))
    held = queue.download(remote, entries[-1:], downloads(stage))
    queue.pause(held)
    stage.until(lambda: queue.is_idle)
    held.done, held.total, held.state = 600_000, 1_420_000, State.PAUSED
    window.transfers.rows[held].show_all()
    running = queue.download(
        remote, [e for e in entries if e.name == "Videos"], downloads(stage)
    )
    stage.until(lambda: running.done > 90_000_000)
    stage.dress(Scheme.LIGHT)
    stage.take("peer", window)
    stage.dress(Scheme.DARK)
    stage.take("peer", window)
    stage.until(lambda: queue.is_idle)


def downloads(stage: Stage) -> Path:
    """Where Anna's downloads go."""
    return stage.anna.settings.downloads


def serve(stage: Stage) -> None:
    """Show this computer at work, crashed and stopped."""
    anna, ben = stage.anna, stage.ben
    window = anna.window
    window.show_share()
    ben.window.sidebar.select(ben.share.device.others[0].fingerprint)
    page = next(iter(ben.window.pages.values()))
    stage.until(lambda: page.model.rows)
    for _ in range(3):
        ben.queue.download(page.browser.remote, page.model.rows, ben.settings.downloads)
        stage.until(lambda: ben.queue.is_idle)
        stage.wait(1.2)
    ben.queue.upload(page.browser.remote, [ben.share.folder / "Videos"], "/files/")
    stage.until(lambda: ben.queue.is_idle)
    stage.wait(1.0)
    ben.queue.download(page.browser.remote, page.model.rows[:3], ben.settings.downloads)
    knock(anna.share.server.address[1])
    stage.wait(0.8)
    stage.both("share", window)
    stage.until(lambda: ben.queue.is_idle)
    anna.share.server.kill()
    stage.until(lambda: anna.share.server.state == "crashed")
    QApplication.processEvents()
    window.grab().save(str(stage.target / "demo-crashed-light.png"))
    stage.until(lambda: anna.share.server.state == "serving")
    stage.both("healed", window)
    anna.share.stop()
    stage.until(lambda: anna.share.is_off)
    stage.both("stopped", window)


def disguise() -> None:
    """Show the addresses of the documentation, whatever is bound."""

    def list_urls(share: Share) -> list[str]:
        if share.server.address is None or share.server.is_off:
            return []
        return [f"https://{HOSTS[share.device.name]}:{share.server.address[1]}/"]

    def list_some(port: int, local: bool) -> list[Address]:
        return [(HOSTS["Anna's laptop"], port)]

    setattr(Share, "urls", property(list_urls))  # noqa: B010
    setattr(trust, "list_addresses", list_some)  # noqa: B010


def knock(port: int) -> None:
    """Come without a certificate, as a stranger does."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        suppress(OSError),
        socket.create_connection(("::1", port), 5) as sock,
        context.wrap_socket(sock) as tls,
    ):
        tls.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
        tls.recv(1)


def main() -> None:
    """Make all pictures."""
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "doc" / "images"
    target.mkdir(parents=True, exist_ok=True)
    app = QApplication([])
    QLocale.setDefault(QLocale("en_GB"))
    if "Noto Sans" in QFontDatabase.families():
        app.setFont(QFont("Noto Sans", 10))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HOME"] = f"{folder}/anna"
        disguise()
        stage = Stage(Path(folder), target)
        for application in (stage.anna, stage.ben):
            application.start()
        stage.until(lambda: stage.anna.share.browser.state == "serving")
        stage.until(lambda: stage.ben.share.browser.state == "serving")
        stage.dress(Scheme.LIGHT)
        stage.both("fresh", stage.anna.window)
        pair(stage)
        browse(stage)
        serve(stage)
        for application in (stage.anna, stage.ben):
            application.window.close()
        stage.until(lambda: stage.anna.is_over and stage.ben.is_over)


if __name__ == "__main__":
    main()

"""Runs Degu Drop with a real window, and does what comes as JSON on standard input.

    python tests/demo_app/driver.py DATA FOLDER

One line in, one line out. It stands for the user of one of two devices, and looks how
late the timer of a window comes that is to be drawn 60 times a second.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

from PySide6.QtCore import QObject, Qt, QTimer, Signal
from PySide6.QtWidgets import QApplication

from demo_app.application import Application, spare_collections

FRAME_MS = 16
"""A frame at 60 Hz, in whole milliseconds."""


class Lateness(QObject):
    """By how much the event loop is late for each frame, in milliseconds.

    Where the system says it (Linux), the time is taken off that the thread was ready
    but other processes had the processor: it is not this program that blocks there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.late: list[float] = []
        self.own: list[float] = []
        self.schedule = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat")
        self.timer = QTimer(self)
        self.timer.setTimerType(Qt.TimerType.PreciseTimer)
        self.timer.setInterval(FRAME_MS)
        self.timer.timeout.connect(self._tick)
        self.timer.start()
        self.last, self.waited = time.perf_counter(), self._wait()

    def _wait(self) -> float:
        """Milliseconds that this thread waited for a processor so far."""
        try:
            return int(self.schedule.read_text().split()[1]) / 1e6
        except OSError:
            return 0.0

    def _tick(self) -> None:
        now, waited = time.perf_counter(), self._wait()
        late = (now - self.last) * 1000 - FRAME_MS
        self.late.append(max(0.0, late))
        self.own.append(max(0.0, late - (waited - self.waited)))
        self.last, self.waited = now, waited

    def take(self) -> dict[str, Any]:
        """The figures since the last call."""
        late, own = sorted(self.late), sorted(self.own)
        self.late, self.own = [], []
        self.last, self.waited = time.perf_counter(), self._wait()
        return {"frames": len(late), "late": find_shares(late), "own": find_shares(own)}


def find_shares(values: list[float]) -> dict[str, float]:
    """What share of the values is not above which."""

    def at(share: float) -> float:
        return round(values[min(len(values) - 1, int(share * len(values)))], 2)

    if not values:
        return {}
    return {"p50": at(0.5), "p99": at(0.99), "p999": at(0.999), "max": at(1.0)}


class Driver(QObject):
    """Does one command after another, in the thread of the window."""

    came = Signal(object)

    def __init__(self, application: Application) -> None:
        super().__init__()
        self.app = application
        self.window = application.window
        self.lateness = Lateness()
        self.came.connect(self._do, Qt.ConnectionType.QueuedConnection)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in sys.stdin:
            self.came.emit(json.loads(line))
        self.came.emit({"do": "quit"})

    def _do(self, command: dict[str, Any]) -> None:
        try:
            answer = getattr(self, "do_" + command.pop("do"))(**command)
        except Exception as error:
            answer = {"failed": repr(error)}
        print(json.dumps(answer), flush=True)

    @property
    def page(self) -> Any:
        """The page of the first peer."""
        peer = self.app.share.device.others[0]
        self.window.sidebar.select(peer.fingerprint)
        return self.window.pages[peer.fingerprint]

    def do_state(self) -> dict[str, Any]:
        """All that a test may want to know."""
        server = self.app.share.server
        items = self.window.sidebar.list
        return {
            "server": str(server.state),
            "pid": server.pid,
            "restarts": server.restarts,
            "address": server.address,
            "browser": str(self.app.share.browser.state),
            "peers": [items.item(n).text() for n in range(1, items.count())],
            "transfers": [
                [str(one.state), one.done, one.total, one.error]
                for one in self.app.queue.transfers
            ],
        }

    def do_invite(self) -> None:
        """Open the dialog."""
        self.window.add_device()

    def do_invitation(self) -> str:
        """What the dialog shows; empty as long as it shows nothing."""
        dialog = self.window.dialog
        return "" if dialog is None else dialog.invite.text.toPlainText()

    def do_join(self, text: str) -> None:
        """Paste an invitation."""
        self.window.add_device()
        dialog = self.window.dialog
        assert dialog is not None
        dialog.tabs.setCurrentIndex(1)
        dialog.join.edit.setText(text)
        dialog.join.go.click()

    def do_close_dialog(self) -> None:
        """Close the dialog."""
        assert self.window.dialog is not None
        self.window.dialog.close()

    def do_names(self) -> list[str]:
        """What the page of the first peer shows."""
        return [entry.name for entry in self.page.model.rows]

    def do_notice(self) -> str:
        """What the page of the first peer says instead."""
        return f"{self.page.notice.title.text()} {self.page.notice.reason.text()}"

    def do_download(self, row: int = 0) -> None:
        """Select a row, and press the button."""
        self.page.table.selectRow(row)
        self.page.download.click()

    def do_upload(self, path: str) -> None:
        """Drop a file on the page."""
        self.page.put([Path(path)])

    def do_kill_server(self) -> None:
        """Press the button."""
        self.window.bar.kill_server.click()

    def do_switch(self) -> None:
        """Stop sharing, or begin again."""
        self.window.share_page.switch.click()

    def do_lateness(self) -> dict[str, Any]:
        """How late the frames were since the last time."""
        return self.lateness.take()

    def do_quit(self) -> None:
        """Close the window."""
        self.window.close()


def main() -> None:
    """Run it."""
    QApplication.setQuitOnLastWindowClosed(False)
    app = QApplication([])
    data, folder = map(Path, sys.argv[1:])
    application = Application(data, folder, local=True)
    driver = Driver(application)
    spare_collections()
    application.start()
    print(json.dumps("shown"), flush=True)
    app.exec()
    del driver


if __name__ == "__main__":
    main()

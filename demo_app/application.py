"""How it all fits together, and in which order it ends.

The window closes -> transfers end -> servers stop -> the process ends. Should the
process end in any other way, the servers notice that by themselves.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from pathlib import Path
from time import monotonic

from PySide6.QtCore import QObject, QTimer
from PySide6.QtWidgets import QApplication

from demo_app.device import open_device
from demo_app.windows.main_window import MainWindow
from demo_app.windows.settings import Settings, find_data_folder
from demo_app.windows.theme import apply_theme
from demo_app.workers.queue import TransferQueue
from demo_app.workers.share import Share

SWITCH_SECONDS = 0.0005
"""How long another thread of Python may hold up the window's; 5 ms by default."""

END_SECONDS = 5.0
"""After this a thread that is stuck is not waited for."""


class Application(QObject):
    """The one owner of everything."""

    def __init__(
        self, data: Path | None, folder: Path | None, *, local: bool = False
    ) -> None:
        super().__init__()
        sys.setswitchinterval(SWITCH_SECONDS)
        self.settings = Settings(data or find_data_folder())
        if folder is not None:
            self.settings.shared = folder.resolve()
        apply_theme(self.settings.scheme)
        device = open_device(self.settings.folder, self.settings.name)
        self.share = Share(
            device, self.settings.shared, self.settings.port, local=local
        )
        self.share.writable = self.settings.writable
        self.queue = TransferQueue(device)
        self.window = MainWindow(self.settings, self.share, self.queue)
        self.window.closing.connect(self.end)
        self._deadline: float | None = None
        self._timer = QTimer(self)
        self._timer.setInterval(20)
        self._timer.timeout.connect(self._look)

    def start(self) -> None:
        """Show the window, and share."""
        self.window.show()
        self.share.server.start()

    def end(self) -> None:
        """Stop everything, then leave the event loop."""
        if self._deadline is None:
            self._deadline = monotonic() + END_SECONDS
            if self.share.port:
                self.settings.port = self.share.port
            self.queue.stop()
            self.window.inviter.close()
            self.window.joiner.close()
            self.share.stop()
            self._timer.start()

    @property
    def is_over(self) -> bool:
        """Whether nothing is left running."""
        return self.share.is_off and self.share.pool.is_idle and self.queue.is_idle

    def _look(self) -> None:
        late = self._deadline is not None and monotonic() > self._deadline
        if self.is_over or late:
            self._timer.stop()
            self.share.bridge.close()
            QApplication.quit()


def spare_collections() -> None:
    """Have the garbage collector leave alone what is there for good.

    Looking through all of it holds up the window by two frames now and then.
    """
    gc.collect()
    gc.freeze()


def run(data: Path | None, folder: Path | None, *, local: bool = False) -> int:
    """Run the application; returns the exit status."""
    QApplication.setApplicationName("Degu Drop")
    QApplication.setOrganizationName("Degu")
    QApplication.setDesktopFileName("degu-drop")
    QApplication.setQuitOnLastWindowClosed(False)
    app = QApplication(sys.argv[:1])
    application = Application(data, folder, local=local)
    # Python gets to it when Qt next calls something of ours, which a timer sees to.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: application.end())
    spare_collections()
    application.start()
    status = app.exec()
    application.settings.store.sync()
    if not application.is_over:
        # A thread waits for a device that does not answer; the servers are gone.
        os._exit(status)
    return status

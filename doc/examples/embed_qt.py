"""A Degu server in a Qt program, whose window never waits for it."""

import sys
import threading

import embed_app
from PySide6.QtCore import QObject, QSocketNotifier, Signal

import degu


class ServerRunner(QObject):
    """Starts, watches and stops a server; signals arrive in the thread of this object.

    Starting and stopping take milliseconds to seconds, so threads do it. A signal
    takes the result back to the thread of the window.
    """

    started = Signal(str)
    failed = Signal(str)
    ended = Signal(int)
    _ready = Signal(object)

    def __init__(self, parent=None):
        super().__init__(parent)
        self.server = None
        self._notifier = None
        self._ready.connect(self._watch)

    def start(self, address=degu.IPv6_LOOPBACK):
        """Return at once; `started` or `failed` follows."""
        threading.Thread(target=self._start, args=(address,)).start()

    def stop(self):
        """Return at once; `ended` follows."""
        if self.server is not None:
            threading.Thread(target=self.server.stop).start()

    def _start(self, address):
        try:
            server = degu.EmbeddedServer(address, None, embed_app.app)
        except Exception as exc:
            self.failed.emit(str(exc))
        else:
            self._ready.emit(server)

    def _watch(self, server):
        self.server = server
        self._notifier = QSocketNotifier(server.sentinel, QSocketNotifier.Type.Read)
        self._notifier.activated.connect(self._on_end)
        self.started.emit(server.url)

    def _on_end(self):
        # The descriptor stays readable: without this the signal would come for ever.
        self._notifier.setEnabled(False)
        self.ended.emit(self.server.wait())


def main():
    """A button starts and stops the server, a label says how it is."""
    from PySide6.QtWidgets import QApplication, QPushButton

    qt = QApplication(sys.argv)
    runner = ServerRunner()
    button = QPushButton("Starting …")
    runner.started.connect(lambda url: button.setText(f"{url}\n(click to stop)"))
    runner.failed.connect(lambda why: button.setText(f"No server: {why}"))
    runner.ended.connect(lambda code: button.setText(f"Ended with exit code {code}"))
    button.clicked.connect(runner.stop)
    button.show()
    runner.start()
    sys.exit(qt.exec())


if __name__ == "__main__":
    main()

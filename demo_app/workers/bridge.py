"""From the thread in which the servers are heard to the one of the window."""

from __future__ import annotations

import logging

from PySide6.QtCore import QObject, Signal

from demo_app.events import Event, EventHandler, listen_for_events


class Bridge(QObject):
    """Turns what embedded servers report into signals."""

    told = Signal(object)
    """An `Event` of an app in a server's process."""
    warned = Signal(str)
    """A line of `degu.embed`, which watches over the processes."""

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._events = EventHandler(self._tell)
        self._warnings = _WarningHandler(self)
        listen_for_events(self._events)
        logging.getLogger("degu.embed").addHandler(self._warnings)

    def close(self) -> None:
        """Hear no more."""
        logging.getLogger("demo_app.events").removeHandler(self._events)
        logging.getLogger("degu.embed").removeHandler(self._warnings)

    def _tell(self, event: Event) -> None:
        self.told.emit(event)


class _WarningHandler(logging.Handler):
    def __init__(self, bridge: Bridge) -> None:
        super().__init__(logging.WARNING)
        self.bridge = bridge

    def emit(self, record: logging.LogRecord) -> None:
        self.bridge.warned.emit(record.getMessage())

"""Functions that may take their time, called in other threads."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from PySide6.QtCore import QObject, QRunnable, Qt, QThreadPool, Signal, Slot

log = logging.getLogger(__name__)

Done = Callable[[Any], object]
Failed = Callable[[Exception], object]


class _Task(QRunnable):
    """One call, and what to do with its outcome."""

    def __init__(
        self,
        pool: Pool,
        function: Callable[[], Any],
        done: Done | None,
        failed: Failed | None,
    ) -> None:
        super().__init__()
        self.setAutoDelete(False)  # Python owns it
        self.pool = pool
        self.function = function
        self.done = done
        self.failed = failed
        self.result: Any = None
        self.error: Exception | None = None

    def run(self) -> None:
        """Call the function; in another thread."""
        try:
            self.result = self.function()
        except Exception as error:
            self.error = error
        with suppress(RuntimeError):  # nobody is there any more
            self.pool.ended.emit(self)


class Pool(QObject):
    """Calls functions in threads, and their sequels in the thread of the window."""

    ended = Signal(object)

    def __init__(self, threads: int, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._pool = QThreadPool(self)
        self._pool.setMaxThreadCount(threads)
        self._tasks: set[_Task] = set()
        # Queued: the slot runs in the thread that this object lives in.
        self.ended.connect(self._finish, Qt.ConnectionType.QueuedConnection)

    def run(
        self,
        function: Callable[[], Any],
        done: Done | None = None,
        failed: Failed | None = None,
    ) -> None:
        """Call `function`; then ``done(result)`` or ``failed(error)``, back here."""
        task = _Task(self, function, done, failed)
        self._tasks.add(task)
        self._pool.start(task)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is running, and no sequel is due."""
        return not self._tasks

    def wait(self, seconds: float) -> bool:
        """Wait for all that was begun; False if it takes longer."""
        self._pool.clear()
        return self._pool.waitForDone(int(seconds * 1000))

    @Slot(object)
    def _finish(self, task: _Task) -> None:
        self._tasks.discard(task)
        if task.error is None:
            if task.done is not None:
                task.done(task.result)
        elif task.failed is not None:
            task.failed(task.error)
        else:
            log.error("a task failed", exc_info=task.error)

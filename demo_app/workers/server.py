"""One embedded server, as the window sees it: its state, its address, its process."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from typing import Any

from PySide6.QtCore import QObject, Signal, Slot

from degu.embed import EmbeddedServer
from demo_app.events import Event
from demo_app.workers.bridge import Bridge
from demo_app.workers.pool import Pool

Start = Callable[[Any], EmbeddedServer]
"""Start the server at an address, or at one of its own choice for None; blocks."""

STOP_GRACE = 1.0
"""Seconds that requests in flight have when the server is stopped."""


class ServerState(StrEnum):
    """What to show."""

    STOPPED = "stopped"
    STARTING = "starting"
    SERVING = "serving"
    CRASHED = "crashed"
    """It died, and is about to be there again."""
    STOPPING = "stopping"
    FAILED = "failed"
    """It could not be started."""


class ServerControl(QObject):
    """Starts and stops one server, in threads, and follows what becomes of it.

    Degu restarts a server that crashes (``restart='on-failure'``), on the socket it
    had. Where even the process that does so is gone, it is started again from here.
    """

    changed = Signal()
    _ended = Signal(object)

    def __init__(self, name: str, start: Start, pool: Pool, bridge: Bridge) -> None:
        super().__init__(pool)
        self.name = name
        self.state = ServerState.STOPPED
        self.address: Any = None
        self.url = ""
        self.pid: int | None = None
        """The process that serves; another one after each crash."""
        self.restarts = 0
        self.error = ""
        self._start = start
        self._pool = pool
        self._server: EmbeddedServer | None = None
        self._wanted = False
        bridge.told.connect(self._hear)
        bridge.warned.connect(self._warn)
        self._ended.connect(self._notice_end)

    def start(self) -> None:
        """Start it, unless it runs."""
        self._wanted = True
        if self.state in (ServerState.STOPPED, ServerState.FAILED):
            self._begin()

    def stop(self) -> None:
        """Stop it, if it runs."""
        self._wanted = False
        if self.state in (ServerState.SERVING, ServerState.CRASHED):
            self._change(ServerState.STOPPING)
            server, self._server = self._server, None
            if server is not None:
                self._pool.run(lambda: server.stop(STOP_GRACE), self._stopped)

    def restart(self) -> None:
        """Stop it and start it again: what it serves is another thing now."""
        if self.state in (ServerState.STOPPED, ServerState.FAILED):
            self.start()
        else:
            self.stop()
            self._wanted = True

    def kill(self) -> None:
        """Kill the process that serves, to show what happens then."""
        if self.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    @property
    def is_off(self) -> bool:
        """Whether there is no process."""
        return self.state in (ServerState.STOPPED, ServerState.FAILED)

    def _begin(self) -> None:
        self.error = ""
        self._change(ServerState.STARTING)
        address = self.address
        self._pool.run(lambda: self._start(address), self._started, self._failed)

    def _started(self, server: EmbeddedServer) -> None:
        self._server = server
        self.address = server.address
        self.url = server.url
        server.on_exit(lambda code: self._ended.emit((server, code)))
        self._change(ServerState.SERVING)
        if not self._wanted:
            self.stop()

    def _failed(self, error: Exception) -> None:
        self.error = str(error)
        self._change(ServerState.FAILED)

    def _stopped(self, _ending: object) -> None:
        self.pid = None
        self._change(ServerState.STOPPED)
        if self._wanted:
            self._begin()

    @Slot(object)
    def _notice_end(self, end: tuple[EmbeddedServer, int | None]) -> None:
        server, code = end
        if server is self._server:
            self._server = self.pid = None
            self.restarts += 1
            self.error = f"ended with {code}"
            self._change(ServerState.CRASHED)
            self._begin()

    @Slot(object)
    def _hear(self, event: Event) -> None:
        if event["kind"] == "up" and event["server"] == self.name:
            self.pid = event["pid"]
            if self.state is ServerState.CRASHED:
                self._change(ServerState.SERVING)
            else:
                self.changed.emit()

    @Slot(str)
    def _warn(self, line: str) -> None:
        if self.state is ServerState.SERVING and repr(self.address) in line:
            self.restarts += 1
            self.error = line
            self.pid = None
            self._change(ServerState.CRASHED)

    def _change(self, state: ServerState) -> None:
        self.state = state
        self.changed.emit()

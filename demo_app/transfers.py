"""Transfers: what is to be moved, how far it is, and what the user wants. No Qt.

A `Transfer` is shared by the thread that moves the bytes, which writes the numbers,
and the window, which reads them and sets `wish`.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from time import monotonic

from demo_app.meter import Meter


class State(StrEnum):
    """Where a transfer stands."""

    WAITING = "waiting"
    RUNNING = "running"
    PAUSED = "paused"
    RETRYING = "retrying"
    """The connection broke; it is tried again by itself."""
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINAL = frozenset({State.DONE, State.CANCELLED})
BUSY = frozenset({State.WAITING, State.RUNNING, State.RETRYING})


class Interrupted(Exception):
    """The user wants it to pause, or to end."""


_numbers = itertools.count(1)


@dataclass(eq=False)
class Transfer:
    """One file or folder on its way."""

    kind: str
    """``download`` or ``upload``."""
    title: str
    peer: str
    fingerprint: bytes
    state: State = State.WAITING
    done: int = 0
    """Bytes that have arrived."""
    total: int | None = None
    """Bytes in all; None as long as nobody has counted."""
    files: int = 0
    files_done: int = 0
    error: str = ""
    attempts: int = 0
    """Breaks since it last came further than ever."""
    best: int = 0
    """How far it ever came."""
    number: int = field(default_factory=lambda: next(_numbers))
    meter: Meter = field(default_factory=Meter)
    wish: State | None = None
    """PAUSED or CANCELLED, once the user asked for it."""
    close: Callable[[], object] | None = None
    """Breaks off what the thread waits for."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def check(self) -> None:
        """Raise `Interrupted` if the user wants that; in the thread, now and then."""
        if self.wish is not None:
            raise Interrupted(self.wish)

    def move(self, count: int) -> None:
        """So many more bytes came through."""
        self.done += count
        self.check()

    def interrupt(self, wish: State) -> None:
        """Ask the thread to pause or to end, and wake it if it waits."""
        with self.lock:
            self.wish = wish
            close = self.close
        if close is not None:
            close()

    def hold(self, close: Callable[[], object] | None) -> None:
        """In the thread: what `interrupt` calls to break off."""
        with self.lock:
            self.close = close
        self.check()

    def measure(self) -> None:
        """Note how far it is; called by the window at even steps."""
        self.meter.note(monotonic(), self.done)

    @property
    def fraction(self) -> float | None:
        """From 0 to 1; None where the total is not known."""
        if self.state is State.DONE:
            return 1.0
        if not self.total:
            return None
        return min(1.0, self.done / self.total)

    @property
    def seconds_left(self) -> float | None:
        """At the speed of the last seconds; None where nothing can be said."""
        speed = self.meter.speed
        if self.total is None or speed <= 0:
            return None
        return (self.total - self.done) / speed

"""A tape: what one process writes down, and another reads as soon as it is there.

    tape = Tape()
    ...                         # the tape travels to a child process
    tape.append("began", 1)     # there
    tape.read()                 # here: [("began", 1)]

It is a file without a name (Linux; elsewhere it has one until it is closed), and needs
neither a thread nor a connection: nobody waits for anybody, what a killed process
wrote stays readable, and the last one to let go of the file takes it away. A server
that can't write to it (a full disk, no memory) goes on, as it does without its log.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import pickle
import struct
import sys
import tempfile
import threading
import traceback
import weakref
from typing import Any

__all__ = ["Tape"]

_LENGTH = struct.Struct("!I")
_NO_INHERIT = getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
_FLAGS = os.O_RDWR | os.O_APPEND | _NO_INHERIT


class Tape:
    """A tape that was begun here, or (with its `name`) in another process.

    Under fork the object itself goes along, otherwise it is pickled. Any number of
    processes and threads may append; each reader has a place of its own. Raises
    `OSError` where the other process is gone.
    """

    def __init__(self, name: str = "") -> None:
        self._lock = threading.Lock()
        self._place = 0
        self._path = ""
        self._owner = os.getpid()
        if name:
            self._number = os.open(name, _FLAGS)
        elif sys.platform == "linux":
            self._number = os.memfd_create("degu-tape")
            _append_always(self._number)
        else:
            number, self._path = tempfile.mkstemp(prefix="degu-tape.")
            os.close(number)
            self._number = os.open(self._path, _FLAGS)
        self.name = name or self._path or f"/proc/{self._owner}/fd/{self._number}"
        """What another process of this user opens it by."""
        self._finalizer = weakref.finalize(
            self, _let_go, self._number, self._path, self._owner
        )
        _tapes.add(self)

    def __reduce__(self) -> tuple[type[Tape], tuple[str]]:
        return type(self), (self.name,)

    def __repr__(self) -> str:
        return f"<Tape {self.name!r}>"

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return not self._finalizer.alive

    def append(self, *event: Any) -> None:
        """Write one event, of values that pickle takes; nothing once it is closed.

        Raises `OSError` where it can't be written, and then leaves no part of it.
        """
        data = pickle.dumps(event)
        data = _LENGTH.pack(len(data)) + data
        if self.closed:
            return
        # In one piece, which is what keeps two writers apart.
        written = os.write(self._number, data)
        if written < len(data):
            # Readers would wait at half an event, and never see those that follow.
            os.ftruncate(self._number, os.fstat(self._number).st_size - written)
            raise OSError(
                errno.ENOSPC, f"expected room for {len(data)} bytes, got {written}"
            )

    def note(self, *event: Any) -> None:
        """Write one event if possible; what can't be written is told and forgotten.

        As a `logging.Handler` does: on standard error, as long as
        `logging.raiseExceptions` is set. For servers, which have better to do.
        """
        try:
            self.append(*event)
        except Exception:
            if logging.raiseExceptions and sys.stderr is not None:
                with contextlib.suppress(OSError):
                    sys.stderr.write(f"--- Tape error ---\n{traceback.format_exc()}")
                    sys.stderr.write(f"Lost event: {event[0]}\n")

    def has_more(self) -> bool:
        """Whether `read` would find something (one system call)."""
        return not self.closed and os.fstat(self._number).st_size > self._place

    def read(self) -> list[tuple[Any, ...]]:
        """The events since the last call; [] once it is closed."""
        events = []
        with self._lock:
            data = self._take() if self.has_more() else b""
            start = 0
            while len(data) >= start + _LENGTH.size:
                (length,) = _LENGTH.unpack_from(data, start)
                end = start + _LENGTH.size + length
                if end > len(data):
                    break  # it is being written
                events.append(pickle.loads(data[start + _LENGTH.size : end]))
                start = end
            self._place += start
        return events

    def _take(self) -> bytes:
        size = os.fstat(self._number).st_size - self._place
        if hasattr(os, "pread"):
            return os.pread(self._number, size, self._place)
        os.lseek(self._number, self._place, os.SEEK_SET)
        return os.read(self._number, size)

    def close(self) -> None:
        """Let go of it; what was not read is gone."""
        self._finalizer()


_tapes: weakref.WeakSet[Tape] = weakref.WeakSet()


def close_others(*keep: Tape) -> None:
    """In a forked child: let go of the tapes of the parent's other children."""
    for tape in list(_tapes):
        if tape not in keep:
            tape.close()


def _append_always(number: int) -> None:
    import fcntl

    flags = fcntl.fcntl(number, fcntl.F_GETFL)
    fcntl.fcntl(number, fcntl.F_SETFL, flags | os.O_APPEND)


def _let_go(number: int, path: str, owner: int) -> None:
    with contextlib.suppress(OSError):
        os.close(number)
    if path and owner == os.getpid():
        with contextlib.suppress(OSError):
            os.unlink(path)

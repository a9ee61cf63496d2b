"""Who created what: an audit hook sees it here, forked children write it down."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from degu.testing.leaks.journals import Journal
from degu.testing.leaks.origins import Place, find_place
from degu.testing.leaks.probe import MARK, find_start, import_psutil


class Tracker:
    """What the audit hook saw: in memory here, in the journal from children."""

    def __init__(self) -> None:
        self.pid = 0
        self.depth = 0
        self.is_child = False
        self.mark = ""
        self.roots: tuple[str, ...] = ()
        self.journal = Journal()
        self.forget()

    def forget(self) -> None:
        """Drop what is remembered; the start of an outermost check."""
        self.sockets: weakref.WeakKeyDictionary[Any, Place] = (
            weakref.WeakKeyDictionary()
        )
        self.threads: weakref.WeakKeyDictionary[Any, Place] = (
            weakref.WeakKeyDictionary()
        )
        self.opened: dict[str, Place] = {}
        self.commands: dict[tuple[str, ...], Place] = {}
        self.temporaries: dict[str, Place] = {}
        self.socket_files: dict[str, Place] = {}

    def start(self) -> None:
        """Begin, once per process (a forked child begins anew)."""
        root = tempfile.gettempdir()
        self.roots = tuple({root, os.path.realpath(root)})
        if self.pid == os.getpid():
            return
        if self.pid == 0:
            sys.addaudithook(_hear)
            if hasattr(os, "register_at_fork"):
                os.register_at_fork(after_in_child=self.begin_child)
        self.pid = os.getpid()
        self.depth = 0
        self.is_child = False
        self.mark = f"{self.pid}-{time.time_ns():x}"
        chain = os.environ.get(MARK)
        os.environ[MARK] = f"{chain}:{self.mark}" if chain else self.mark
        with tempfile.TemporaryFile(buffering=0) as fp:
            self.journal.open(os.dup(fp.fileno()))

    def begin_child(self) -> None:
        """In a child just after the fork: report to the parent from now on."""
        self.is_child = True
        self.forget()
        self.journal.write({"fork": os.getpid(), "started": find_start(os.getpid())})

    def claim_temporary(self, path: object) -> None:
        """Note the entry of the temporary directory that `path` is about to create."""
        if not isinstance(path, str | bytes | os.PathLike):
            return
        text = os.path.abspath(os.fsdecode(path))
        for root in self.roots:
            if text.startswith(root + os.sep):
                entry = os.path.join(root, text[len(root) + 1 :].split(os.sep)[0])
                if not os.path.lexists(entry) and not _is_tool_entry(entry):
                    self.claim("temporaries", entry)
                return

    def claim(self, table: str, path: str) -> None:
        """Note that `path` is about to be created, unless by the test runner."""
        place = find_place()
        if place.by_tool:
            return
        if self.is_child:
            record = {"table": table, "path": path, "where": str(place)}
            self.journal.write({"pid": os.getpid(), **record})
        else:
            getattr(self, table)[path] = place


tracker = Tracker()


def _is_tool_entry(path: str) -> bool:
    """Whether pytest's or multiprocessing's own directory: both tidy up at exit."""
    return os.path.basename(path).startswith(("pytest-of-", "pymp-"))


def _hear_open(args: tuple[Any, ...]) -> None:
    path, _, flags = args
    if isinstance(flags, int) and flags & os.O_CREAT:
        tracker.claim_temporary(path)
    if not tracker.is_child and isinstance(path, str | bytes):
        tracker.opened[os.path.abspath(os.fsdecode(path))] = find_place()


def _hear_path(args: tuple[Any, ...]) -> None:
    tracker.claim_temporary(args[0])


def _hear_new_name(args: tuple[Any, ...]) -> None:
    tracker.claim_temporary(args[1])


def _hear_socket(args: tuple[Any, ...]) -> None:
    if not tracker.is_child:
        tracker.sockets[args[0]] = find_place()


def _hear_bind(args: tuple[Any, ...]) -> None:
    path = args[1]
    if isinstance(path, str | bytes) and path and os.fsencode(path)[0]:
        tracker.claim("socket_files", os.path.abspath(os.fsdecode(path)))


def _hear_thread(args: tuple[Any, ...]) -> None:
    thread = getattr(args[0], "__self__", None)
    if isinstance(thread, threading.Thread) and not tracker.is_child:
        tracker.threads[thread] = find_place()


def _hear_command(args: tuple[Any, ...]) -> None:
    command = args[1]
    if not tracker.is_child and isinstance(command, list | tuple):
        words = tuple(os.fsdecode(word) for word in command)
        tracker.commands[words] = find_place()


_EARS: Mapping[str, Callable[[tuple[Any, ...]], None]] = {
    "open": _hear_open,
    "os.mkdir": _hear_path,
    "tempfile.mkdtemp": _hear_path,
    "tempfile.mkstemp": _hear_path,
    "sqlite3.connect": _hear_path,
    "os.rename": _hear_new_name,
    "os.link": _hear_new_name,
    "os.symlink": _hear_new_name,
    "socket.__new__": _hear_socket,
    "socket.bind": _hear_bind,
    "_thread.start_new_thread": _hear_thread,
    "_thread.start_joinable_thread": _hear_thread,
    "subprocess.Popen": _hear_command,
}
"""Audit event to what notes it (the events' arguments are in Python's audit table)."""


def _hear(event: str, args: tuple[Any, ...]) -> None:
    ear = _EARS.get(event)
    if ear is not None and (tracker.depth or tracker.is_child):
        # An audit hook that raises would break the very thing that it watches.
        with contextlib.suppress(Exception):
            ear(args)


setattr(_hear, "__cantrace__", True)  # noqa: B010 - a debugger or coverage may look


def start_tracking() -> None:
    """Begin to mark child processes, so that `assert_no_orphans` knows them.

    The first `check_leaks` does it as well. Raises ImportError without psutil.
    """
    import_psutil()
    tracker.start()


def journal() -> str:
    """What `follow` needs in a server process that is not a fork of this one.

    It names an unnamed file by this process's entry in /proc; where there is no
    /proc it is "", and `follow` then does nothing. Raises ImportError without
    psutil.
    """
    start_tracking()
    if sys.platform != "linux":
        return ""
    return f"{tracker.mark}:/proc/{tracker.pid}/fd/{tracker.journal.descriptor}"


def follow(text: str) -> None:
    """In a server process: report temporary and socket files to the test process.

    `text` is what `journal()` gave there. Without it, what a process that was not
    forked leaves in the temporary directory cannot be told from a stranger's. In
    a forked child, and in the test process itself, it does nothing.
    """
    mark, _, path = text.partition(":")
    if not path or tracker.is_child or mark == tracker.mark:
        return
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    except OSError:
        return
    if mark not in os.environ.get(MARK, ""):
        os.environ[MARK] = mark
    tracker.start()
    tracker.journal.close()
    tracker.journal.open(descriptor)
    tracker.begin_child()

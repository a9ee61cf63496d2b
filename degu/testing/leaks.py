"""What a piece of code left behind: processes, files, sockets, threads, memory.

    with check_leaks():
        run_the_test()

measures before, runs, waits up to `grace` seconds until everything new is gone,
and otherwise raises one `LeakError` whose message lists every culprit:

    LeakError(AssertionError)
    ├── UnreapedProcessError     a child or grandchild that still exists
    ├── UnclosedFileError        a file, pipe or other descriptor that is no socket
    ├── UnclosedSocketError      a socket, with its state and its peer
    ├── UnjoinedThreadError      a thread, with its name and its stack
    ├── LeftSocketFileError      the file of a Unix socket
    ├── LeftTemporaryError       a file or directory in the temporary directory
    ├── OrphanError              a process whose parent ended before it
    └── GrowingMemoryError       memory that grows with every call

How it knows. Descriptors and threads are counted in this process and in the
`processes` it is told of. A process that appeared meanwhile is ours when its
line of parents leads here, when it carries our mark in its environment (which
outlives its parents), or when it was forked by one of ours. Files in the shared
temporary directory are ours when an audit hook saw this process, or a forked
child, create them; a server process that was not forked joins with
`follow(journal())`. The same hook remembers where things were created.

What it leaves: the audit hook (Python has no way to remove one; without a check
running it costs a dictionary lookup per event), the mark in the environment, and
one descriptor.

This is the only module of Degu that uses psutil.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import gc
import importlib
import json
import os
import socket
import stat
import sys
import sysconfig
import tempfile
import threading
import time
import traceback
import tracemalloc
import types
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol, get_args

__all__ = [
    "GRACE_SECONDS",
    "KINDS",
    "GrowingMemoryError",
    "Leak",
    "LeakError",
    "LeftSocketFileError",
    "LeftTemporaryError",
    "Memory",
    "NotTerminatedError",
    "OpenSocket",
    "OrphanError",
    "Snapshot",
    "UnclosedFileError",
    "UnclosedSocketError",
    "UnjoinedThreadError",
    "UnreapedProcessError",
    "assert_no_orphans",
    "assert_terminates",
    "check_leaks",
    "check_memory",
    "follow",
    "journal",
    "list_sockets",
    "start_tracking",
]

Kind = Literal[
    "processes", "files", "sockets", "threads", "socket_files", "temporary_files"
]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""What `check_leaks` looks at; the values that its `only` and `exclude` take."""

GRACE_SECONDS = 2.0
"""How long what is new may take to go away by itself."""

COLLECT_AFTER_SECONDS = 0.1
"""When waiting starts to include a garbage collection, which costs tens of ms."""

MARK = "DEGU_LEAKS"
"""The environment variable by which a process is known after its parents ended."""


def _import_psutil() -> Any:
    try:
        return importlib.import_module("psutil")
    except ImportError as error:
        raise ImportError(
            "leak checks need psutil: install it with `pip install degu[testing]`"
        ) from error


# --- Errors -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Leak:
    """One thing left behind.

    `kind` is one of `KINDS`, "orphans" or "memory"; `pid` is the process that has
    it (or that it is); `what` names it; `where` is the place that created it, or
    None; `stack` is a thread's present stack, or "".
    """

    kind: str
    pid: int
    what: str
    where: str | None = None
    stack: str = ""

    def __str__(self) -> str:
        known = self.pid in (0, os.getpid()) or self.what.startswith("process ")
        owner = "" if known else f" [process {self.pid}]"
        lines = [f"  {self.what}{owner}"]
        if self.where:
            lines.append(f"      created at {self.where}")
        lines += ["      " + line for line in self.stack.splitlines()]
        return "\n".join(lines)


class LeakError(AssertionError):
    """Something was left behind; raised itself where there are several kinds.

    `leaks` lists the culprits; `errors` holds one error of a subclass per kind.
    """

    nouns: ClassVar[tuple[str, str]] = ("thing", "things")
    state: ClassVar[str] = "left behind"

    def __init__(self, leaks: Sequence[Leak], errors: Sequence[LeakError] = ()) -> None:
        self.leaks = tuple(leaks)
        self._parts = tuple(errors)
        super().__init__("\n".join(map(str, errors)) if errors else self._message())

    @property
    def errors(self) -> tuple[LeakError, ...]:
        """One error of a subclass per kind: this one, if it is of one kind."""
        return self._parts or (self,)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.leaks, self._parts)

    def _message(self) -> str:
        count = len(self.leaks)
        headline = f"{count} {self.nouns[count != 1]} {self.state}:"
        return "\n".join([headline, *map(str, self.leaks)])


class UnreapedProcessError(LeakError):
    """A child process, or one of its children, still exists."""

    nouns = ("process", "processes")
    state = "left running"


class UnclosedFileError(LeakError):
    """A file, or a descriptor of something that is no socket, is still open."""

    nouns = ("file", "files")
    state = "left open"


class UnclosedSocketError(LeakError):
    """A socket is still open."""

    nouns = ("socket", "sockets")
    state = "left open"


class UnjoinedThreadError(LeakError):
    """A thread still runs."""

    nouns = ("thread", "threads")
    state = "left running"


class LeftSocketFileError(LeakError):
    """The file of a Unix socket still exists."""

    nouns = ("Unix socket file", "Unix socket files")


class LeftTemporaryError(LeakError):
    """A file or directory in the temporary directory still exists."""

    nouns = ("temporary file or directory", "temporary files or directories")


class OrphanError(LeakError):
    """A process that this one's tree started runs on without its parent."""

    nouns = ("orphaned process", "orphaned processes")
    state = "left running"


class GrowingMemoryError(LeakError):
    """Memory grew in every round of calls."""

    nouns = ("function", "functions")
    state = "that never stopped growing"


class NotTerminatedError(AssertionError):
    """A process did not end in time; `pid` still runs."""

    def __init__(self, message: str, pid: int) -> None:
        super().__init__(message)
        self.pid = pid


_ERRORS: Mapping[str, type[LeakError]] = {
    "processes": UnreapedProcessError,
    "files": UnclosedFileError,
    "sockets": UnclosedSocketError,
    "threads": UnjoinedThreadError,
    "socket_files": LeftSocketFileError,
    "temporary_files": LeftTemporaryError,
}


def _build_error(leaks: Sequence[Leak]) -> LeakError:
    errors = []
    for kind in KINDS:
        mine = [leak for leak in leaks if leak.kind == kind]
        if mine:
            errors.append(_ERRORS[kind](mine))
    return errors[0] if len(errors) == 1 else LeakError(leaks, errors)


# --- Looking at a process -----------------------------------------------------------


class Probe(Protocol):
    """The few questions that a snapshot asks the operating system."""

    def list_pids(self) -> frozenset[int]: ...
    def list_descriptors(self, pid: int) -> dict[int, str]: ...
    def list_threads(self, pid: int) -> frozenset[int]: ...
    def find_parent(self, pid: int) -> tuple[int, bool] | None: ...
    def has_mark(self, pid: int, mark: str) -> bool: ...


class ProcProbe:
    """Linux: straight from /proc, because a check surrounds every test."""

    def list_pids(self) -> frozenset[int]:
        """Every process of this machine."""
        return frozenset(int(name) for name in os.listdir("/proc") if name.isdigit())

    def list_descriptors(self, pid: int) -> dict[int, str]:
        """Descriptor to what it is open on: a path, ``socket:[inode]``, ..."""
        folder = f"/proc/{pid}/fd"
        targets = {}
        for name in _list_folder(folder):
            with contextlib.suppress(OSError):
                targets[int(name)] = os.readlink(f"{folder}/{name}")
        return targets

    def list_threads(self, pid: int) -> frozenset[int]:
        """The native thread ids."""
        return frozenset(map(int, _list_folder(f"/proc/{pid}/task")))

    def find_parent(self, pid: int) -> tuple[int, bool] | None:
        """(parent, whether `pid` is a zombie), or None where there is no `pid`."""
        fields = _read_stat(pid)
        return (int(fields[1]), fields[0] in ("Z", "X")) if fields else None

    def has_mark(self, pid: int, mark: str) -> bool:
        """Whether the environment that `pid` was started with carries `mark`."""
        try:
            with open(f"/proc/{pid}/environ", "rb") as fp:
                return mark.encode() in fp.read()
        except OSError:
            return False


class PsutilProbe:
    """Elsewhere: through psutil, which knows every system."""

    def list_pids(self) -> frozenset[int]:
        return frozenset(_import_psutil().pids())

    def list_descriptors(self, pid: int) -> dict[int, str]:
        psutil = _import_psutil()
        targets = {}
        with contextlib.suppress(psutil.Error, OSError):
            process = psutil.Process(pid)
            # Windows has no descriptor numbers: psutil gives -1 for each.
            for index, file in enumerate(process.open_files()):
                targets[file.fd if file.fd >= 0 else -2 - index] = file.path
            for index, found in enumerate(process.net_connections(kind="all")):
                number = found.fd if found.fd >= 0 else -100_000 - index
                ends = f"{found.family}/{found.type}/{found.laddr}/{found.raddr}"
                targets[number] = f"socket:[{ends}]"
        return targets

    def list_threads(self, pid: int) -> frozenset[int]:
        psutil = _import_psutil()
        with contextlib.suppress(psutil.Error, OSError):
            return frozenset(thread.id for thread in psutil.Process(pid).threads())
        return frozenset()

    def find_parent(self, pid: int) -> tuple[int, bool] | None:
        psutil = _import_psutil()
        try:
            process = psutil.Process(pid)
            return process.ppid(), process.status() == psutil.STATUS_ZOMBIE
        except psutil.Error:
            return None

    def has_mark(self, pid: int, mark: str) -> bool:
        psutil = _import_psutil()
        try:
            return mark in psutil.Process(pid).environ().get(MARK, "")
        except (psutil.Error, OSError):
            return False


_probe: Probe = ProcProbe() if sys.platform == "linux" else PsutilProbe()


def _list_folder(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _read_stat(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat after the name, or [] without that process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as fp:
            text = fp.read().decode("ascii", "replace")
    except OSError:
        return []
    # The name stands in parentheses and may itself contain spaces and parentheses.
    return text[text.rindex(")") + 2 :].split()


def _find_start(pid: int) -> str | None:
    """A text that differs between two processes that had the same pid, or None."""
    if sys.platform == "linux":
        fields = _read_stat(pid)
        return fields[19] if fields else None
    return None


# --- Remembering who created what ---------------------------------------------------

_STDLIB = sysconfig.get_path("stdlib")
_TOOLS = ("_pytest", "pluggy", "xdist", "execnet", "coverage", "pytest_cov")
_TOOL_FILES = ("pytest_timeout.py",)


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where something was created; `by_tool`: by the test runner itself."""

    frames: tuple[tuple[str, int, str], ...]
    by_tool: bool

    def __str__(self) -> str:
        shown = [f"{file}:{line} in {name}" for file, line, name in self.frames]
        return ", called from ".join(shown)


_origins: dict[str, Literal["library", "tool", "user"]] = {}


def _find_origin(filename: str) -> Literal["library", "tool", "user"]:
    origin = _origins.get(filename)
    if origin is None:
        parts = filename.replace("\\", "/").split("/")
        if filename.startswith("<") or filename == __file__:
            origin = "library"
        elif any(tool in parts for tool in _TOOLS) or parts[-1] in _TOOL_FILES:
            origin = "tool"
        elif filename.startswith(_STDLIB) and "site-packages" not in parts:
            origin = "library"
        else:
            origin = "user"
        _origins[filename] = origin
    return origin


def _find_place() -> _Place:
    """The innermost three frames of the caller that are neither library nor tool."""
    frame: types.FrameType | None = sys._getframe(1)
    frames: list[tuple[str, int, str]] = []
    by_tool: bool | None = None
    while frame is not None and len(frames) < 3:
        code = frame.f_code
        origin = _find_origin(code.co_filename)
        if origin != "library" and by_tool is None:
            by_tool = origin == "tool"
        if origin == "user":
            frames.append((code.co_filename, frame.f_lineno, code.co_name))
        frame = frame.f_back
    return _Place(tuple(frames), bool(by_tool))


class _Tracker:
    """What the audit hook saw: in memory here, in the journal from children."""

    def __init__(self) -> None:
        self.pid = 0
        self.depth = 0
        self.is_child = False
        self.mark = ""
        self.roots: tuple[str, ...] = ()
        self.journal: int | None = None
        self.journal_key: tuple[int, int] | None = None
        self.forget()

    def forget(self) -> None:
        """Drop what is remembered; the start of an outermost check."""
        self.sockets: weakref.WeakKeyDictionary[Any, _Place] = (
            weakref.WeakKeyDictionary()
        )
        self.threads: weakref.WeakKeyDictionary[Any, _Place] = (
            weakref.WeakKeyDictionary()
        )
        self.opened: dict[str, _Place] = {}
        self.commands: dict[tuple[str, ...], _Place] = {}
        self.temporaries: dict[str, _Place] = {}
        self.socket_files: dict[str, _Place] = {}

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
            self.open_journal(os.dup(fp.fileno()))

    def open_journal(self, descriptor: int) -> None:
        if fcntl := _import_fcntl():
            flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
            fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_APPEND)
        self.journal = descriptor
        self.journal_key = _find_file_key(descriptor)

    def begin_child(self) -> None:
        """In a child just after the fork: report to the parent from now on."""
        self.is_child = True
        self.forget()
        self.write({"fork": os.getpid(), "started": _find_start(os.getpid())})

    def write(self, record: Mapping[str, object]) -> None:
        # A daemon closes every descriptor, and the number may be another file now.
        if self.journal is not None and self.journal_key == _find_file_key(
            self.journal
        ):
            with contextlib.suppress(OSError):
                os.write(self.journal, json.dumps(record).encode() + b"\n")

    def read(self, offset: int = 0) -> list[dict[str, Any]]:
        """The children's records since `offset`."""
        if self.journal is None or not hasattr(os, "pread"):
            return []
        size = os.fstat(self.journal).st_size - offset
        # A record that is still being written has no line end yet.
        lines = os.pread(self.journal, size, offset).split(b"\n")[:-1]
        return [json.loads(line) for line in lines]

    def size(self) -> int:
        return 0 if self.journal is None else os.fstat(self.journal).st_size

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
        place = _find_place()
        if place.by_tool:
            return
        if self.is_child:
            record = {"table": table, "path": path, "where": str(place)}
            self.write({"pid": os.getpid(), **record})
        else:
            getattr(self, table)[path] = place


_tracker = _Tracker()


def _import_fcntl() -> Any:
    try:
        return importlib.import_module("fcntl")
    except ImportError:
        return None


def _find_file_key(descriptor: int) -> tuple[int, int] | None:
    try:
        info = os.fstat(descriptor)
    except OSError:
        return None
    return info.st_dev, info.st_ino


def _is_tool_entry(path: str) -> bool:
    """Whether pytest's or multiprocessing's own directory: both tidy up at exit."""
    return os.path.basename(path).startswith(("pytest-of-", "pymp-"))


def _hear_open(args: tuple[Any, ...]) -> None:
    path, _, flags = args
    if isinstance(flags, int) and flags & os.O_CREAT:
        _tracker.claim_temporary(path)
    if not _tracker.is_child and isinstance(path, str | bytes):
        _tracker.opened[os.path.abspath(os.fsdecode(path))] = _find_place()


def _hear_path(args: tuple[Any, ...]) -> None:
    _tracker.claim_temporary(args[0])


def _hear_new_name(args: tuple[Any, ...]) -> None:
    _tracker.claim_temporary(args[1])


def _hear_socket(args: tuple[Any, ...]) -> None:
    if not _tracker.is_child:
        _tracker.sockets[args[0]] = _find_place()


def _hear_bind(args: tuple[Any, ...]) -> None:
    path = args[1]
    if isinstance(path, str | bytes) and path and os.fsencode(path)[0]:
        _tracker.claim("socket_files", os.path.abspath(os.fsdecode(path)))


def _hear_thread(args: tuple[Any, ...]) -> None:
    thread = getattr(args[0], "__self__", None)
    if isinstance(thread, threading.Thread) and not _tracker.is_child:
        _tracker.threads[thread] = _find_place()


def _hear_command(args: tuple[Any, ...]) -> None:
    command = args[1]
    if not _tracker.is_child and isinstance(command, list | tuple):
        words = tuple(os.fsdecode(word) for word in command)
        _tracker.commands[words] = _find_place()


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
    if ear is not None and (_tracker.depth or _tracker.is_child):
        # An audit hook that raises would break the very thing that it watches.
        with contextlib.suppress(Exception):
            ear(args)


def start_tracking() -> None:
    """Begin to mark child processes, so that `assert_no_orphans` knows them.

    The first `check_leaks` does it as well. Raises ImportError without psutil.
    """
    _import_psutil()
    _tracker.start()


def journal() -> str:
    """What `follow` needs in a server process that is not a fork of this one.

    It names an unnamed file by this process's entry in /proc; where there is no
    /proc it is "", and `follow` then does nothing. Raises ImportError without
    psutil.
    """
    start_tracking()
    if sys.platform != "linux":
        return ""
    return f"{_tracker.mark}:/proc/{_tracker.pid}/fd/{_tracker.journal}"


def follow(text: str) -> None:
    """In a server process: report temporary and socket files to the test process.

    `text` is what `journal()` gave there. Without it, what a process that was not
    forked leaves in the temporary directory cannot be told from a stranger's. In
    a forked child, and in the test process itself, it does nothing.
    """
    mark, _, path = text.partition(":")
    if not path or _tracker.is_child or mark == _tracker.mark:
        return
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    except OSError:
        return
    if mark not in os.environ.get(MARK, ""):
        os.environ[MARK] = mark
    _tracker.start()
    if _tracker.journal is not None:
        os.close(_tracker.journal)
    _tracker.open_journal(descriptor)
    _tracker.begin_child()


# --- Snapshots ----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """What exists at one moment.

    `processes`: the pids of the whole machine (what is new gets attributed later);
    `descriptors`: per measured process, descriptor to what it is open on;
    `threads`: per measured process, native thread ids; `socket_files` and
    `temporary_files`: the paths that the tracked processes created and that exist.
    """

    processes: frozenset[int] = frozenset()
    descriptors: Mapping[int, Mapping[int, str]] = dataclasses.field(
        default_factory=dict
    )
    threads: Mapping[int, frozenset[int]] = dataclasses.field(default_factory=dict)
    socket_files: frozenset[str] = frozenset()
    temporary_files: frozenset[str] = frozenset()

    @classmethod
    def take(cls, processes: Iterable[int] = (), journal_offset: int = 0) -> Snapshot:
        """Measure this process and `processes` (pids); about half a millisecond."""
        pids = {os.getpid(), *processes}
        claimed = _tracker.read(journal_offset)
        temporaries = {*_tracker.temporaries, *_pick(claimed, "temporaries")}
        bound = {*_tracker.socket_files, *_pick(claimed, "socket_files")}
        return cls(
            processes=_probe.list_pids(),
            descriptors={pid: _probe.list_descriptors(pid) for pid in pids},
            threads={pid: _probe.list_threads(pid) for pid in pids},
            socket_files=frozenset(filter(_is_socket_file, bound)),
            temporary_files=frozenset(filter(os.path.lexists, temporaries)),
        )


def _pick(records: Iterable[Mapping[str, Any]], table: str) -> dict[str, str]:
    return {r["path"]: r["where"] for r in records if r.get("table") == table}


def _is_socket_file(path: str) -> bool:
    try:
        # The fork server listens in a folder that goes when this process ends.
        return stat.S_ISSOCK(os.lstat(path).st_mode) and f"{os.sep}pymp-" not in path
    except OSError:
        return False


@dataclasses.dataclass(frozen=True)
class Found:
    """Something new between two snapshots, before anybody asked whose it is."""

    kind: Kind
    pid: int
    number: int = 0
    target: str = ""


def find_new(before: Snapshot, after: Snapshot) -> list[Found]:
    """Everything in `after` that `before` does not account for.

    Descriptors are counted by what they are open on, so that a log file that was
    closed and opened again is not new, and a second one on the same socket is.
    """
    found = [
        Found("processes", pid) for pid in sorted(after.processes - before.processes)
    ]
    for pid, now in after.descriptors.items():
        if pid in before.descriptors:
            found += _find_new_descriptors(pid, before.descriptors[pid], now)
    for pid, threads in after.threads.items():
        new = sorted(threads - before.threads.get(pid, threads))
        found += [Found("threads", pid, number) for number in new]
    for path in sorted(after.socket_files - before.socket_files):
        found.append(Found("socket_files", 0, target=path))
    for path in sorted(after.temporary_files - before.temporary_files):
        found.append(Found("temporary_files", 0, target=path))
    return found


def _find_new_descriptors(
    pid: int, before: Mapping[int, str], after: Mapping[int, str]
) -> Iterator[Found]:
    spare = Counter(before.values())
    spare.subtract(after.values())
    for number in sorted(after):
        target = after[number]
        earlier = before.get(number)
        if spare[target] >= 0 or earlier == target or _was_renamed(earlier, target):
            continue
        spare[target] += 1
        is_socket = target.startswith("socket:")
        yield Found("sockets" if is_socket else "files", pid, number, target)


def _was_renamed(earlier: str | None, target: str) -> bool:
    """Whether a descriptor's file got another name, or none, while it was open."""
    if earlier is None or earlier[:1] != "/" or target[:1] != "/":
        return False
    return target == f"{earlier} (deleted)" or not os.path.lexists(earlier)


# --- Whose it is, and what may stay -------------------------------------------------

_HELPERS = (
    "from multiprocessing.forkserver import main",
    "from multiprocessing.resource_tracker import main",
    "import sys;exec(eval(sys.stdin.readline()))",  # execnet's way to start a worker
)


def _read_command(pid: int) -> list[str]:
    psutil = _import_psutil()
    try:
        command: list[str] = psutil.Process(pid).cmdline()
    except (psutil.Error, OSError):
        return []
    return command


def _is_helper(pid: int) -> bool:
    """Whether `pid` serves multiprocessing or xdist, and ends with its parent.

    The fork server's children have its command line too, so what counts is that
    the parent's is another.
    """
    command = " ".join(_read_command(pid))
    helper = next((text for text in _HELPERS if text in command), None)
    if helper is None:
        return False
    parent = _probe.find_parent(pid)
    return parent is None or helper not in " ".join(_read_command(parent[0]))


def _descends(pid: int, roots: Iterable[int]) -> bool:
    """Whether the line of parents of `pid` leads to one of `roots`."""
    wanted = set(roots)
    seen = {pid}
    while (parent := _probe.find_parent(pid)) is not None:
        pid = parent[0]
        if pid in wanted:
            return True
        if pid in seen or pid <= 1:
            return False
        seen.add(pid)
    return False


def _list_forked(offset: int = 0) -> dict[int, str | None]:
    """The pids that forked children reported, with what tells a reused pid apart."""
    return {r["fork"]: r["started"] for r in _tracker.read(offset) if "fork" in r}


def _is_forked(pid: int, forked: Mapping[int, str | None]) -> bool:
    return pid in forked and _find_start(pid) == forked[pid]


def _is_ours(
    pid: int, processes: Iterable[int], forked: Mapping[int, str | None]
) -> bool:
    roots = [os.getpid(), *processes]
    parent = _probe.find_parent(pid)
    if parent is None or pid in roots:
        return False
    # A zombie of somebody else is gone; ours is what nobody waited for.
    if parent[1]:
        return parent[0] == os.getpid()
    # A fork of an xdist worker has that worker's command line: no helper is a fork.
    if _is_forked(pid, forked):
        return True
    ours = _descends(pid, roots) or _probe.has_mark(pid, _tracker.mark)
    return ours and not _is_helper(pid)


def _is_harmless_file(found: Found) -> bool:
    path = found.target
    if path == "anon_inode:[pidfd]" and _is_pidfd_of_ended(found):
        return True
    if path.startswith("pipe:"):
        own = found.pid == os.getpid()
        ended = own and found.number in _list_process_pipes()
        listens = own and path in _list_listener_pipes()
        return ended or listens or path in _list_helper_pipes()
    if path.startswith("/dev/") and not path.startswith("/dev/shm/"):
        return True
    if "__pycache__" in path or os.path.basename(path).startswith(".coverage"):
        return True
    if found.pid != os.getpid():
        return False
    place = _tracker.opened.get(path)
    if place is not None and place.by_tool:
        return True
    return path in _list_log_files() or found.number in _list_capture_descriptors()


def _is_pidfd_of_ended(found: Found) -> bool:
    """Whether a descriptor watches a process that has ended, as a stopped server's.

    It is there until the server's object is collected.
    """
    try:
        with open(f"/proc/{found.pid}/fdinfo/{found.number}") as fp:
            return any(line.split() == ["Pid:", "-1"] for line in fp)
    except OSError:
        return False


def _list_helper_pipes() -> set[str]:
    """The pipes by which multiprocessing's helpers notice that we are gone."""
    ours = [pid for pid in _probe.list_pids() if _descends(pid, [os.getpid()])]
    tables = [_probe.list_descriptors(pid) for pid in ours if _is_helper(pid)]
    return {target for table in tables for target in table.values()}


def _list_listener_pipes() -> set[str]:
    """The pipe that wakes the thread which hears degu's servers.

    Both are made anew whenever a server is started, also for the sake of one that
    was there before.
    """
    reader = getattr(sys.modules.get("degu.parent"), "reader", None)
    wake = getattr(reader, "wake", None)
    if wake is None:
        return set()
    return {_probe.list_descriptors(os.getpid()).get(wake.fileno(), "")}


def _list_process_pipes() -> set[int]:
    """The pipe ends that a multiprocessing.Process keeps until it is collected.

    A joined process that still has a name would else be a leak. One that runs is
    reported as a process.
    """
    util = sys.modules.get("multiprocessing.util")
    close_fds = getattr(util, "close_fds", None)
    descriptors: set[int] = set()
    for finalizer in list(getattr(util, "_finalizer_registry", {}).values()):
        if close_fds and getattr(finalizer, "_callback", None) is close_fds:
            descriptors.update(finalizer._args)
    return descriptors


def _list_log_files() -> set[str]:
    """The files of living logging handlers, which stay open by design."""
    logging = sys.modules.get("logging")
    handlers = [ref() for ref in getattr(logging, "_handlerList", ())]
    return {getattr(handler, "baseFilename", "") for handler in handlers}


def _list_capture_descriptors() -> set[int]:
    """The descriptors of pytest's capturing, which outlives a fixture's teardown."""
    descriptors: set[int] = set()
    if "_pytest.capture" not in sys.modules:
        return descriptors
    for value in gc.get_objects():
        kind = type(value)
        if kind.__module__ == "_pytest.capture" and hasattr(value, "targetfd_save"):
            descriptors |= {value.targetfd, value.targetfd_save}
            with contextlib.suppress(ValueError, OSError):
                descriptors.add(value.tmpfile.fileno())
    return descriptors


def _find_thread(number: int) -> threading.Thread | None:
    for thread in threading.enumerate():
        if thread.native_id == number:
            return thread
    return None


def _is_harmless_thread(found: Found) -> bool:
    if found.pid != os.getpid():
        return False
    thread = _find_thread(found.number)
    if thread is None:
        return False
    reader = getattr(sys.modules.get("degu.parent"), "reader", None)
    if thread is getattr(reader, "thread", None):
        return True
    # A debugger's threads come when it attaches, and say so.
    return _is_tool_thread(thread) or hasattr(thread, "pydev_do_not_trace")


def _is_tool_thread(thread: threading.Thread) -> bool:
    """Whether execnet's, pytest-timeout's or the like."""
    place = _tracker.threads.get(thread)
    if place is not None:
        return place.by_tool
    module = getattr(getattr(thread, "function", None), "__module__", "")
    if module.split(".")[0] in (*_TOOLS, "pytest_timeout"):
        return True
    # Python 3.11 does not audit the start of a thread; what it runs tells as well.
    frame = sys._current_frames().get(thread.ident or 0)
    files = [summary.filename for summary in traceback.extract_stack(frame)]
    origins = {_find_origin(file) for file in files} if frame else set()
    return "tool" in origins and "user" not in origins


# --- Naming the culprits ------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class OpenSocket:
    """A socket of a process.

    `descriptor`: its number; `family`: "ipv4", "ipv6" or "unix"; `type`: "tcp",
    "udp", "stream" or "datagram"; `address` and `peer`: texts, "" where there is
    none; `state`: "listen", "established", "close_wait", ..., or "" without one.
    """

    descriptor: int
    family: str
    type: str
    address: str
    peer: str
    state: str

    def __str__(self) -> str:
        words = [f"{self.family} {self.type} socket"]
        words += [self.address] if self.address else []
        words += [f"to {self.peer}"] if self.peer else []
        words += [f"({self.state})"] if self.state else []
        return " ".join(words)


def _format_address(address: Any) -> str:
    if not address:
        return ""
    if isinstance(address, str):
        return address
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _name_socket(family: int, kind: int) -> tuple[str, str]:
    families = {socket.AF_INET: "ipv4", socket.AF_INET6: "ipv6"}
    stream = kind == socket.SOCK_STREAM
    if family in families:
        return families[socket.AddressFamily(family)], "tcp" if stream else "udp"
    return "unix", "stream" if stream else "datagram"


def list_sockets(pid: int | None = None) -> list[OpenSocket]:
    """The sockets of a process (default: this one), by state and address.

    Those that are neither bound nor connected are not in the system's tables and
    so not in the list. A process that is gone has none. Raises ImportError
    without psutil.
    """
    psutil = _import_psutil()
    sockets = []
    with contextlib.suppress(psutil.Error, OSError):
        for found in psutil.Process(pid).net_connections(kind="all"):
            state = "" if found.status == psutil.CONN_NONE else found.status.lower()
            address, peer = map(_format_address, (found.laddr, found.raddr))
            names = _name_socket(found.family, found.type)
            sockets.append(OpenSocket(found.fd, *names, address, peer, state))
    return sorted(sockets, key=lambda s: (s.state, s.address, s.descriptor))


def _name_own_socket(number: int) -> str:
    """What a socket of this process is where the system's tables do not list it."""
    try:
        with socket.socket(fileno=os.dup(number)) as sock:
            return f"{' '.join(_name_socket(sock.family, sock.type))} socket"
    except OSError:
        return "socket"


def _describe_socket(found: Found) -> Leak:
    name, place = "socket", None
    for known in list_sockets(found.pid):
        if known.descriptor == found.number:
            name = str(known)
    if found.pid == os.getpid():
        if name == "socket":
            name = _name_own_socket(found.number)
        for sock, noted in list(_tracker.sockets.items()):
            if sock.fileno() == found.number:
                place = noted
    return _build_leak(found, f"{name}, descriptor {found.number}", place)


def _build_leak(
    found: Found, what: str, place: _Place | str | None = None, stack: str = ""
) -> Leak:
    where = str(place) if place else None
    return Leak(found.kind, found.pid, what, where or None, stack)


def _describe_file(found: Found) -> Leak:
    place = None
    if found.pid == os.getpid():
        # An unnamed temporary file is opened by the name of its directory.
        folder = os.path.dirname(found.target)
        unnamed = os.path.basename(found.target).startswith("#")
        place = _find_opened(folder if unnamed else found.target)
    return _build_leak(found, f"{found.target}, descriptor {found.number}", place)


def _find_opened(target: str) -> _Place | None:
    """Where a file was opened, also by a name that leads over symbolic links."""
    place = _tracker.opened.get(target)
    if place is not None:
        return place
    name = os.path.basename(target)
    for path, noted in reversed(list(_tracker.opened.items())):
        if os.path.basename(path) == name and os.path.realpath(path) == target:
            return noted
    return None


def _describe_thread(found: Found) -> Leak:
    thread = _find_thread(found.number) if found.pid == os.getpid() else None
    if thread is None:
        name = _read_thread_name(found.pid, found.number)
        return _build_leak(found, f"native thread {found.number}{name}")
    stack = _format_stack(sys._current_frames().get(thread.ident or 0))
    daemon = " (daemon)" if thread.daemon else ""
    place = _tracker.threads.get(thread)
    return _build_leak(found, f"{thread.name!r}{daemon}", place, stack)


def _format_stack(frame: types.FrameType | None) -> str:
    """The innermost six frames, without the ones by which every thread begins."""
    if frame is None:
        return ""
    stack = traceback.extract_stack(frame)
    inner = [one for one in stack if one.filename != threading.__file__] or stack
    return "".join(traceback.format_list(inner[-6:]))


def _read_thread_name(pid: int, number: int) -> str:
    try:
        with open(f"/proc/{pid}/task/{number}/comm") as fp:
            return f" {fp.read().strip()!r}"
    except OSError:
        return ""


def _describe_process(found: Found) -> Leak:
    command = _read_command(found.pid)
    parent = _probe.find_parent(found.pid)
    words = [f"process {found.pid}"]
    if sys.modules.get("multiprocessing"):
        children = sys.modules["multiprocessing"].active_children()
        words += [repr(child.name) for child in children if child.pid == found.pid]
    if parent is not None and parent[1]:
        words.append("(zombie: it ended, but nobody waited for it)")
    elif parent is not None and parent[0] != os.getpid():
        words.append(f"(child of {parent[0]})")
    words.append(" ".join(command))
    place = _tracker.commands.get(tuple(command))
    leak = _build_leak(found, " ".join(filter(None, words)), place)
    return dataclasses.replace(leak, pid=found.pid)


def _describe_path(found: Found) -> Leak:
    table = "socket_files" if found.kind == "socket_files" else "temporaries"
    place: _Place | None = getattr(_tracker, table).get(found.target)
    if place is not None:
        found = dataclasses.replace(found, pid=os.getpid())
        return _build_leak(found, found.target, place)
    for record in _tracker.read():
        if record.get("table") == table and record["path"] == found.target:
            found = dataclasses.replace(found, pid=record["pid"])
            return _build_leak(found, found.target, record["where"])
    return _build_leak(found, found.target)


_DESCRIBE: Mapping[Kind, Callable[[Found], Leak]] = {
    "processes": _describe_process,
    "files": _describe_file,
    "sockets": _describe_socket,
    "threads": _describe_thread,
    "socket_files": _describe_path,
    "temporary_files": _describe_path,
}


# --- Checking -----------------------------------------------------------------------


def _choose_kinds(
    only: Iterable[Kind] | None, exclude: Iterable[Kind]
) -> frozenset[Kind]:
    chosen = frozenset(KINDS if only is None else only)
    excluded = frozenset(exclude)
    unknown = sorted((chosen | excluded) - set(KINDS))
    if unknown:
        raise ValueError(f"no kind of leak {unknown[0]!r}; known: {', '.join(KINDS)}")
    return chosen - excluded


def _find_pid(process: Any) -> int:
    pid = process if isinstance(process, int) else getattr(process, "pid", None)
    if isinstance(pid, bool) or not isinstance(pid, int) or pid <= 0:
        raise TypeError(f"expected a pid or an object with one, got {process!r}")
    return pid


def _pauses() -> Iterator[float]:
    """The seconds between two looks: short at first, for what is nearly done."""
    pause = 0.0005
    while True:
        yield pause
        pause = min(pause * 1.5, 0.05)


@dataclasses.dataclass(frozen=True)
class _Check:
    """One run of `check_leaks`."""

    kinds: frozenset[Kind]
    processes: tuple[int, ...]
    allow: tuple[str, ...]
    journal_offset: int
    before: Snapshot

    def find(self) -> list[Found]:
        """What is new, ours, and not allowed."""
        after = Snapshot.take(self.processes, self.journal_offset)
        new = [one for one in find_new(self.before, after) if one.kind in self.kinds]
        return [one for one in new if self.is_leak(one) and not self.is_allowed(one)]

    def is_leak(self, found: Found) -> bool:
        if found.kind == "processes":
            forked = _list_forked(self.journal_offset)
            return _is_ours(found.pid, self.processes, forked)
        if found.kind == "files":
            return not _is_harmless_file(found)
        if found.kind == "threads":
            return not _is_harmless_thread(found)
        return True

    def is_allowed(self, found: Found) -> bool:
        if not self.allow:
            return False
        what = _DESCRIBE[found.kind](found).what
        return any(fnmatch.fnmatch(what, pattern) for pattern in self.allow)

    def wait(self, grace: float) -> list[Leak]:
        """What is still there when `grace` seconds are over."""
        begin = time.monotonic()
        collected = False
        for pause in _pauses():
            found = self.find()
            elapsed = time.monotonic() - begin
            if not found or (collected and elapsed >= grace):
                break
            if elapsed >= min(COLLECT_AFTER_SECONDS, grace) and not collected:
                gc.collect()
                collected = True
            _reap()
            time.sleep(pause)
        return [_DESCRIBE[one.kind](one) for one in found]


def _reap() -> None:
    """Wait for ended children, as multiprocessing does whenever it is next used."""
    multiprocessing = sys.modules.get("multiprocessing")
    if multiprocessing is not None:
        multiprocessing.active_children()


@contextlib.contextmanager
def check_leaks(
    *,
    only: Iterable[Kind] | None = None,
    exclude: Iterable[Kind] = (),
    grace: float = GRACE_SECONDS,
    processes: Iterable[Any] = (),
    allow: Iterable[str] = (),
) -> Iterator[None]:
    """Fail when the body leaves something behind in this process or in `processes`.

    `only` and `exclude` choose among `KINDS`; `grace` is in seconds; `processes`
    are pids, or objects with a `pid`, of server processes that run before and
    after; `allow` are patterns (`*` and `?`) of what may stay, matched against
    the text of a leak as the message shows it.

    Raises a `LeakError`: of the subclass for the kind, or itself where several
    kinds were found. An exception of the body goes on its way, unchecked. Raises
    ValueError for an unknown kind, ImportError without psutil.
    """
    kinds = _choose_kinds(only, exclude)
    pids = tuple(map(_find_pid, processes))
    start_tracking()
    if _tracker.depth == 0:
        _tracker.forget()
    _tracker.depth += 1
    try:
        offset = _tracker.size()
        before = Snapshot.take(pids, offset)
        check = _Check(kinds, pids, tuple(allow), offset, before)
        yield
        leaks = check.wait(grace)
    finally:
        _tracker.depth -= 1
    if leaks:
        raise _build_error(leaks)


# --- The end of processes -----------------------------------------------------------


def _find_exit(process: Any) -> tuple[bool, int | None]:
    """(whether it ended, its exit status where that is known)."""
    if hasattr(process, "poll"):
        status: int | None = process.poll()
        return status is not None, status
    if hasattr(process, "exitcode"):
        exitcode: int | None = process.exitcode
        return exitcode is not None, exitcode
    psutil = _import_psutil()
    try:
        # Not psutil's wait(): with a pidfd it fails on a process that just ended.
        running = process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, OSError):
        running = False
    return not running, None


def assert_terminates(process: Any, within: float = 10.0) -> int | None:
    """Wait until `process` has ended, at most `within` seconds.

    `process` is a pid, a psutil.Process, a multiprocessing.Process or a
    subprocess.Popen. A zombie has ended. Gives the exit status where the object
    knows one. Raises `NotTerminatedError` with what the process is doing, and
    ImportError without psutil.
    """
    psutil = _import_psutil()
    pid = _find_pid(process)
    if isinstance(process, int):
        try:
            process = psutil.Process(pid)
        except psutil.NoSuchProcess:
            return None
    begin = time.monotonic()
    for pause in _pauses():
        ended, status = _find_exit(process)
        if ended:
            return status
        if time.monotonic() - begin >= within:
            break
        time.sleep(pause)
    raise NotTerminatedError(_describe_running(pid, within), pid)


def _describe_running(pid: int, within: float) -> str:
    lines = [f"process {pid} did not end within {within:g} s: "]
    lines[0] += " ".join(_read_command(pid))
    lines += [f"  {found}" for found in list_sockets(pid)]
    psutil = _import_psutil()
    with contextlib.suppress(psutil.Error, OSError):
        process = psutil.Process(pid)
        lines.append(f"  {process.status()}, {process.num_threads()} threads")
        for child in process.children(recursive=True):
            lines.append(f"  child process {child.pid}: {' '.join(child.cmdline())}")
    return "\n".join(lines)


def _find_orphans() -> list[int]:
    forked = _list_forked()
    orphans = []
    for pid in sorted(_probe.list_pids() - {os.getpid()}):
        marked = _probe.has_mark(pid, _tracker.mark)
        if not _is_forked(pid, forked) and (not marked or _is_helper(pid)):
            continue
        parent = _probe.find_parent(pid)
        if parent and not parent[1] and not _descends(pid, [os.getpid()]):
            orphans.append(pid)
    return orphans


def assert_no_orphans(grace: float = GRACE_SECONDS) -> None:
    """Fail when a process of this tree runs on after its parent ended.

    It knows the processes started since `start_tracking`, or since the first
    `check_leaks`. Raises `OrphanError`, and ImportError without psutil.
    """
    start_tracking()
    begin = time.monotonic()
    for pause in _pauses():
        orphans = _find_orphans()
        if not orphans:
            return
        if time.monotonic() - begin >= grace:
            break
        time.sleep(pause)
    leaks = [_describe_process(Found("processes", pid)) for pid in orphans]
    raise OrphanError([dataclasses.replace(leak, kind="orphans") for leak in leaks])


# --- Memory -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Memory:
    """One measurement: Python's allocated `blocks`, and `size` in bytes.

    `size` is the memory that would be free if this process ended (USS); of another
    process, all that is resident (RSS).
    """

    blocks: int
    size: int


def is_growth(
    before: Memory, after: Memory, repetitions: int, tolerance: float
) -> bool:
    """Whether `repetitions` calls between the two look like a leak.

    Either half a block a call (a leaked object is at least one; caches that are
    still filling take fewer), or more than `tolerance` bytes a call, over at least
    four pages, since that is how the system counts.
    """
    blocks = after.blocks - before.blocks
    size = after.size - before.size
    return blocks * 2 >= repetitions or size >= max(tolerance * repetitions, 16384)


def _measure_memory(pid: int) -> Memory:
    psutil = _import_psutil()
    if pid == os.getpid():
        gc.collect()
        uss = psutil.Process(pid).memory_full_info().uss
        return Memory(sys.getallocatedblocks(), uss)
    # A forked server's USS grows with every page that it stops to share with us.
    return Memory(0, _read_resident(pid))


def _read_resident(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/smaps_rollup") as fp:
            # The quick counters that psutil reads lag behind by up to megabytes.
            return next(
                int(line.split()[1]) * 1024 for line in fp if line[:4] == "Rss:"
            )
    except (OSError, StopIteration):
        resident: int = _import_psutil().Process(pid).memory_info().rss
        return resident


def check_memory(
    func: Callable[[], object],
    repetitions: int = 200,
    *,
    rounds: int = 5,
    tolerance: float = 128.0,
    process: Any = None,
) -> None:
    """Fail when memory grows in each of `rounds` rounds of `repetitions` calls.

    One round more goes first and is not measured, for what is built only once.
    The first round without growth ends the check, so clean code needs two. A
    process uses up the memory that it has already before it grows: a small leak
    needs many repetitions to show.
    `tolerance` is in bytes a call; `process` (a pid or an object with one) is a
    server to measure in place of this process. Raises `GrowingMemoryError`, with
    the lines that allocated most, and ImportError without psutil.
    """
    if repetitions < 1 or rounds < 1:
        raise ValueError(f"need at least 1, got {repetitions=} and {rounds=}")
    pid = os.getpid() if process is None else _find_pid(process)
    _import_psutil()
    _repeat(func, repetitions)
    first = before = _measure_memory(pid)
    for _ in range(rounds):
        _repeat(func, repetitions)
        after = _measure_memory(pid)
        if not is_growth(before, after, repetitions, tolerance):
            return
        before = after
    calls = rounds * repetitions
    name = getattr(func, "__qualname__", repr(func))
    blocks = (after.blocks - first.blocks) / calls
    size = (after.size - first.size) / calls
    what = f"{name}: {size:.0f} bytes and {blocks:.1f} objects more with each call"
    places = _find_allocations(func, repetitions) if pid == os.getpid() else None
    raise GrowingMemoryError([Leak("memory", pid, what, places)])


def _repeat(func: Callable[[], object], times: int) -> None:
    for _ in range(times):
        func()


def _find_allocations(func: Callable[[], object], repetitions: int) -> str | None:
    """The three lines whose memory grew most during another round."""
    was_tracing = tracemalloc.is_tracing()
    if not was_tracing:
        tracemalloc.start()
    try:
        before = tracemalloc.take_snapshot()
        _repeat(func, repetitions)
        gc.collect()
        found = tracemalloc.take_snapshot().compare_to(before, "lineno")
    finally:
        if not was_tracing:
            tracemalloc.stop()
    mine = [one for one in found if one.traceback[0].filename != tracemalloc.__file__]
    grown = [one for one in mine if one.size_diff > 0][:3]
    lines = [f"{one.traceback[0]} ({one.size_diff} bytes)" for one in grown]
    return "; ".join(lines) or None

"""The check around a piece of code: two snapshots, and what is ours between them."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import gc
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from degu.testing.leaks.errors import KINDS, Kind, Leak, build_error
from degu.testing.leaks.files import describe_file, is_harmless_file
from degu.testing.leaks.paths import describe_path
from degu.testing.leaks.processes import (
    describe_process,
    find_pid,
    is_ours,
    list_forked,
)
from degu.testing.leaks.snapshot import Found, Snapshot, find_new
from degu.testing.leaks.sockets import describe_socket
from degu.testing.leaks.threads import describe_thread, is_harmless_thread
from degu.testing.leaks.tracker import start_tracking, tracker
from degu.testing.leaks.waiting import looks

GRACE_SECONDS = 2.0
"""How long what is new may take to go away by itself."""

COLLECT_AFTER_SECONDS = 0.1
"""When waiting starts to include a garbage collection, which costs tens of ms."""

_DESCRIBE: Mapping[Kind, Callable[[Found], Leak]] = {
    "processes": describe_process,
    "files": describe_file,
    "sockets": describe_socket,
    "threads": describe_thread,
    "socket_files": describe_path,
    "temporary_files": describe_path,
}


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
    pids = tuple(map(find_pid, processes))
    start_tracking()
    if tracker.depth == 0:
        tracker.forget()
    tracker.depth += 1
    try:
        offset = tracker.journal.size()
        before = Snapshot.take(pids, offset)
        check = _Check(kinds, pids, tuple(allow), offset, before)
        yield
        leaks = check.wait(grace)
    finally:
        tracker.depth -= 1
    if leaks:
        raise build_error(leaks)


def _choose_kinds(
    only: Iterable[Kind] | None, exclude: Iterable[Kind]
) -> frozenset[Kind]:
    chosen = frozenset(KINDS if only is None else only)
    excluded = frozenset(exclude)
    unknown = sorted((chosen | excluded) - set(KINDS))
    if unknown:
        raise ValueError(f"no kind of leak {unknown[0]!r}; known: {', '.join(KINDS)}")
    return chosen - excluded


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
            forked = list_forked(self.journal_offset)
            return is_ours(found.pid, self.processes, forked)
        if found.kind == "files":
            return not is_harmless_file(found)
        if found.kind == "threads":
            return not is_harmless_thread(found)
        return True

    def is_allowed(self, found: Found) -> bool:
        if not self.allow:
            return False
        what = _DESCRIBE[found.kind](found).what
        return any(fnmatch.fnmatch(what, pattern) for pattern in self.allow)

    def find_lasting(self, seconds: float) -> list[Found]:
        """What is still there when `seconds` are over."""
        found: list[Found] = []
        for _ in looks(seconds):
            found = self.find()
            if not found:
                break
            _reap()
        return found

    def wait(self, grace: float) -> list[Leak]:
        """What is still there when `grace` seconds are over, and nothing is garbage."""
        early = min(COLLECT_AFTER_SECONDS, grace)
        found = self.find_lasting(early)
        if found:
            gc.collect()
            found = self.find_lasting(grace - early)
        return [_DESCRIBE[one.kind](one) for one in found]


def _reap() -> None:
    """Wait for ended children, as multiprocessing does whenever it is next used."""
    multiprocessing = sys.modules.get("multiprocessing")
    if multiprocessing is not None:
        multiprocessing.active_children()

"""What exists at one moment, and what is new since another."""

from __future__ import annotations

import dataclasses
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from degu.testing.leaks import probe
from degu.testing.leaks.errors import Kind, Leak
from degu.testing.leaks.origins import Place
from degu.testing.leaks.tracker import tracker


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
        claimed = tracker.journal.read(journal_offset)
        temporaries = {*tracker.temporaries, *_pick(claimed, "temporaries")}
        bound = {*tracker.socket_files, *_pick(claimed, "socket_files")}
        return cls(
            processes=probe.system.list_pids(),
            descriptors={pid: probe.system.list_descriptors(pid) for pid in pids},
            threads={pid: probe.system.list_threads(pid) for pid in pids},
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

    def build_leak(
        self, what: str, place: Place | str | None = None, stack: str = ""
    ) -> Leak:
        """What to say of it, once it is known what it is and where it comes from."""
        where = str(place) if place else None
        return Leak(self.kind, self.pid, what, where or None, stack)


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

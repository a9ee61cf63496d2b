"""Processes: whose they are, and what to say of those that were left running."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from degu.testing.leaks import probe
from degu.testing.leaks.errors import Leak
from degu.testing.leaks.probe import find_start, read_command
from degu.testing.leaks.snapshot import Found
from degu.testing.leaks.tracker import tracker

_HELPERS = (
    "from multiprocessing.forkserver import main",
    "from multiprocessing.resource_tracker import main",
    "import sys;exec(eval(sys.stdin.readline()))",  # execnet's way to start a worker
)


def find_pid(process: Any) -> int:
    """The pid of whatever has one; TypeError for what does not."""
    pid = process if isinstance(process, int) else getattr(process, "pid", None)
    if isinstance(pid, bool) or not isinstance(pid, int) or pid <= 0:
        raise TypeError(f"expected a pid or an object with one, got {process!r}")
    return pid


def is_ours(
    pid: int, processes: Iterable[int], forked: Mapping[int, str | None]
) -> bool:
    """Whether a new process was started by this one or one of `processes`."""
    roots = [os.getpid(), *processes]
    parent = probe.system.find_parent(pid)
    if parent is None or pid in roots:
        return False
    # A zombie of somebody else is gone; ours is what nobody waited for.
    if parent[1]:
        return parent[0] == os.getpid()
    # A fork of an xdist worker has that worker's command line: no helper is a fork.
    if is_forked(pid, forked):
        return True
    ours = descends(pid, roots) or probe.system.has_mark(pid, tracker.mark)
    return ours and not is_helper(pid)


def is_helper(pid: int) -> bool:
    """Whether `pid` serves multiprocessing or xdist, and ends with its parent.

    The fork server's children have its command line too, so what counts is that
    the parent's is another.
    """
    command = " ".join(read_command(pid))
    helper = next((text for text in _HELPERS if text in command), None)
    if helper is None:
        return False
    parent = probe.system.find_parent(pid)
    return parent is None or helper not in " ".join(read_command(parent[0]))


def descends(pid: int, roots: Iterable[int]) -> bool:
    """Whether the line of parents of `pid` leads to one of `roots`."""
    wanted = set(roots)
    seen = {pid}
    while (parent := probe.system.find_parent(pid)) is not None:
        pid = parent[0]
        if pid in wanted:
            return True
        if pid in seen or pid <= 1:
            return False
        seen.add(pid)
    return False


def list_forked(offset: int = 0) -> dict[int, str | None]:
    """The pids that forked children reported, with what tells a reused pid apart."""
    return {
        r["fork"]: r["started"] for r in tracker.journal.read(offset) if "fork" in r
    }


def is_forked(pid: int, forked: Mapping[int, str | None]) -> bool:
    """Whether it is one of `list_forked`, and no later one with its number."""
    return pid in forked and find_start(pid) == forked[pid]


def describe_process(found: Found) -> Leak:
    """Name the process, its state, and where it was started."""
    command = read_command(found.pid)
    parent = probe.system.find_parent(found.pid)
    words = [f"process {found.pid}"]
    if sys.modules.get("multiprocessing"):
        children = sys.modules["multiprocessing"].active_children()
        words += [repr(child.name) for child in children if child.pid == found.pid]
    if parent is not None and parent[1]:
        words.append("(zombie: it ended, but nobody waited for it)")
    elif parent is not None and parent[0] != os.getpid():
        words.append(f"(child of {parent[0]})")
    words.append(" ".join(command))
    place = tracker.commands.get(tuple(command))
    leak = found.build_leak(" ".join(filter(None, words)), place)
    return dataclasses.replace(leak, pid=found.pid)

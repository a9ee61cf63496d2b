"""The end of processes: waited for, and of all that were started."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from typing import Any

from degu.testing.leaks import probe
from degu.testing.leaks.check import GRACE_SECONDS
from degu.testing.leaks.errors import NotTerminatedError, OrphanError
from degu.testing.leaks.probe import import_psutil, read_command
from degu.testing.leaks.processes import (
    descends,
    describe_process,
    find_pid,
    is_forked,
    is_helper,
    list_forked,
)
from degu.testing.leaks.snapshot import Found
from degu.testing.leaks.sockets import list_sockets
from degu.testing.leaks.tracker import start_tracking, tracker
from degu.testing.leaks.waiting import looks


def assert_terminates(process: Any, within: float = 10.0) -> int | None:
    """Wait until `process` has ended, at most `within` seconds.

    `process` is a pid, a psutil.Process, a multiprocessing.Process or a
    subprocess.Popen. A zombie has ended. Gives the exit status where the object
    knows one. Raises `NotTerminatedError` with what the process is doing, and
    ImportError without psutil.
    """
    psutil = import_psutil()
    pid = find_pid(process)
    if isinstance(process, int):
        try:
            process = psutil.Process(pid)
        except psutil.NoSuchProcess:
            return None
    for _ in looks(within):
        ended, status = _find_exit(process)
        if ended:
            return status
    raise NotTerminatedError(_describe_running(pid, within), pid)


def _find_exit(process: Any) -> tuple[bool, int | None]:
    """(whether it ended, its exit status where that is known)."""
    if hasattr(process, "poll"):
        status: int | None = process.poll()
        return status is not None, status
    if hasattr(process, "exitcode"):
        exitcode: int | None = process.exitcode
        return exitcode is not None, exitcode
    psutil = import_psutil()
    try:
        # Not psutil's wait(): with a pidfd it fails on a process that just ended.
        running = process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, OSError):
        running = False
    return not running, None


def _describe_running(pid: int, within: float) -> str:
    lines = [f"process {pid} did not end within {within:g} s: "]
    lines[0] += " ".join(read_command(pid))
    lines += [f"  {found}" for found in list_sockets(pid)]
    psutil = import_psutil()
    with contextlib.suppress(psutil.Error, OSError):
        process = psutil.Process(pid)
        lines.append(f"  {process.status()}, {process.num_threads()} threads")
        for child in process.children(recursive=True):
            lines.append(f"  child process {child.pid}: {' '.join(child.cmdline())}")
    return "\n".join(lines)


def assert_no_orphans(grace: float = GRACE_SECONDS) -> None:
    """Fail when a process of this tree runs on after its parent ended.

    It knows the processes started since `start_tracking`, or since the first
    `check_leaks`. Raises `OrphanError`, and ImportError without psutil.
    """
    start_tracking()
    for _ in looks(grace):
        orphans = _find_orphans()
        if not orphans:
            return
    leaks = [describe_process(Found("processes", pid)) for pid in orphans]
    raise OrphanError([dataclasses.replace(leak, kind="orphans") for leak in leaks])


def _find_orphans() -> list[int]:
    forked = list_forked()
    orphans = []
    for pid in sorted(probe.system.list_pids() - {os.getpid()}):
        marked = probe.system.has_mark(pid, tracker.mark)
        if not is_forked(pid, forked) and (not marked or is_helper(pid)):
            continue
        parent = probe.system.find_parent(pid)
        if parent and not parent[1] and not descends(pid, [os.getpid()]):
            orphans.append(pid)
    return orphans

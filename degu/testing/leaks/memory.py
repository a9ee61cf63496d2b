"""Memory that grows with every call."""

from __future__ import annotations

import dataclasses
import gc
import os
import sys
import tracemalloc
from collections.abc import Callable
from typing import Any

from degu.testing.leaks.errors import GrowingMemoryError, Leak
from degu.testing.leaks.probe import import_psutil
from degu.testing.leaks.processes import find_pid


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
    psutil = import_psutil()
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
        resident: int = import_psutil().Process(pid).memory_info().rss
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
    pid = os.getpid() if process is None else find_pid(process)
    import_psutil()
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

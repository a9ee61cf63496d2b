"""Open files and other descriptors: which may stay, and what to say of the rest."""

from __future__ import annotations

import contextlib
import gc
import os
import sys

from degu.testing.leaks import probe
from degu.testing.leaks.errors import Leak
from degu.testing.leaks.origins import Place
from degu.testing.leaks.processes import descends, is_helper
from degu.testing.leaks.snapshot import Found
from degu.testing.leaks.tracker import tracker


def is_harmless_file(found: Found) -> bool:
    """Whether it may stay: it serves the test runner, or goes by itself."""
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
    place = tracker.opened.get(path)
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
    ours = [pid for pid in probe.system.list_pids() if descends(pid, [os.getpid()])]
    tables = [probe.system.list_descriptors(pid) for pid in ours if is_helper(pid)]
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
    return {probe.system.list_descriptors(os.getpid()).get(wake.fileno(), "")}


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


def describe_file(found: Found) -> Leak:
    """Name the file, and where it was opened."""
    place = None
    if found.pid == os.getpid():
        # An unnamed temporary file is opened by the name of its directory.
        folder = os.path.dirname(found.target)
        unnamed = os.path.basename(found.target).startswith("#")
        place = _find_opened(folder if unnamed else found.target)
    return found.build_leak(f"{found.target}, descriptor {found.number}", place)


def _find_opened(target: str) -> Place | None:
    """Where a file was opened, also by a name that leads over symbolic links."""
    place = tracker.opened.get(target)
    if place is not None:
        return place
    name = os.path.basename(target)
    for path, noted in reversed(list(tracker.opened.items())):
        if os.path.basename(path) == name and os.path.realpath(path) == target:
            return noted
    return None

"""Threads: which may stay, and what to say of the rest."""

from __future__ import annotations

import os
import sys
import threading
import traceback
import types

from degu.testing.leaks.errors import Leak
from degu.testing.leaks.origins import TOOLS, find_origin
from degu.testing.leaks.snapshot import Found
from degu.testing.leaks.tracker import tracker


def _find_thread(number: int) -> threading.Thread | None:
    for thread in threading.enumerate():
        if thread.native_id == number:
            return thread
    return None


def is_harmless_thread(found: Found) -> bool:
    """Whether it may stay: it serves the test runner, a debugger or degu."""
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
    place = tracker.threads.get(thread)
    if place is not None:
        return place.by_tool
    module = getattr(getattr(thread, "function", None), "__module__", "")
    if module.split(".")[0] in (*TOOLS, "pytest_timeout"):
        return True
    # Python 3.11 does not audit the start of a thread; what it runs tells as well.
    frame = sys._current_frames().get(thread.ident or 0)
    files = [summary.filename for summary in traceback.extract_stack(frame)]
    origins = {find_origin(file) for file in files} if frame else set()
    return "tool" in origins and "user" not in origins


def describe_thread(found: Found) -> Leak:
    """Name the thread, what it does, and where it was started."""
    thread = _find_thread(found.number) if found.pid == os.getpid() else None
    if thread is None:
        name = _read_thread_name(found.pid, found.number)
        return found.build_leak(f"native thread {found.number}{name}")
    stack = _format_stack(sys._current_frames().get(thread.ident or 0))
    daemon = " (daemon)" if thread.daemon else ""
    place = tracker.threads.get(thread)
    return found.build_leak(f"{thread.name!r}{daemon}", place, stack)


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

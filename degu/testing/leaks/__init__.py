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

Below, one noun each: `probe` asks the operating system (the only module of Degu that
uses psutil), `tracker` hears who creates what, a `snapshot` is what there is, and
`processes`, `files`, `sockets`, `threads` and `paths` know what is ours, what may stay
and how to name it. `check`, `ending` and `memory` are what users call.
"""

# ruff: noqa: F401 - what the modules below are made of can be had from here, too
from __future__ import annotations

from degu.testing.leaks.check import COLLECT_AFTER_SECONDS, GRACE_SECONDS, check_leaks
from degu.testing.leaks.ending import assert_no_orphans, assert_terminates
from degu.testing.leaks.errors import (
    KINDS,
    GrowingMemoryError,
    Kind,
    Leak,
    LeakError,
    LeftSocketFileError,
    LeftTemporaryError,
    NotTerminatedError,
    OrphanError,
    UnclosedFileError,
    UnclosedSocketError,
    UnjoinedThreadError,
    UnreapedProcessError,
)
from degu.testing.leaks.memory import Memory, check_memory, is_growth
from degu.testing.leaks.probe import MARK, Probe, ProcProbe, PsutilProbe
from degu.testing.leaks.snapshot import Found, Snapshot, find_new
from degu.testing.leaks.sockets import OpenSocket, list_sockets
from degu.testing.leaks.tracker import follow, journal, start_tracking

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

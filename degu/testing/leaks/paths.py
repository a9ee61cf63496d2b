"""Files and directories that were left behind: what to say of them."""

from __future__ import annotations

import dataclasses
import os

from degu.testing.leaks.errors import Leak
from degu.testing.leaks.origins import Place
from degu.testing.leaks.snapshot import Found
from degu.testing.leaks.tracker import tracker


def describe_path(found: Found) -> Leak:
    """Name the path, and who created it where."""
    table = "socket_files" if found.kind == "socket_files" else "temporaries"
    place: Place | None = getattr(tracker, table).get(found.target)
    if place is not None:
        found = dataclasses.replace(found, pid=os.getpid())
        return found.build_leak(found.target, place)
    for record in tracker.journal.read():
        if record.get("table") == table and record["path"] == found.target:
            found = dataclasses.replace(found, pid=record["pid"])
            return found.build_leak(found.target, record["where"])
    return found.build_leak(found.target)

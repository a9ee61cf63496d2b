"""What the servers of a test had to do with it: the text for a failed test's report.

    marks = take_marks()
    ...                      # the test
    for title, text in build_sections(marks): ...

Every server of `degu.testing` enters itself here; none is kept alive by it.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Mapping
from typing import Any, Protocol

__all__ = [
    "build_sections",
    "describe_sockets",
    "enter",
    "list_processes",
    "take_marks",
]


class Reporter(Protocol):
    """A server that can say what happened to it."""

    def take_mark(self) -> Any:
        """A value that is another one once something happened."""

    def describe(self, mark: Any) -> str:
        """What happened since that mark; None is the beginning."""


_known: weakref.WeakSet[Any] = weakref.WeakSet()


def enter(server: Any) -> None:
    """Have a server in the reports from now on."""
    _known.add(server)


def take_marks() -> Mapping[Any, Any]:
    """Where each of the servers is now."""
    return weakref.WeakKeyDictionary({one: one.take_mark() for one in _list_known()})


def build_sections(marks: Mapping[Any, Any]) -> list[tuple[str, str]]:
    """(title, text) of each server that began, did something or ended since then."""
    sections = []
    for server in _list_known():
        mark = marks.get(server)
        if mark is None or server.take_mark() != mark:
            sections.append((f"degu: {server!r}", server.describe(mark)))
    return sorted(sections)


def _list_known() -> list[Any]:
    return list(_known)


def list_processes() -> list[Any]:
    """The servers that have a process of this one's, and run."""
    servers = [one for one in _list_known() if hasattr(one, "is_alive")]
    return [one for one in servers if one.is_own() and one.is_alive()]


def describe_sockets(pid: int) -> list[str]:
    """The open connections of a process, where psutil is there to find them."""
    try:
        from degu.testing.leaks import list_sockets

        sockets = list_sockets(pid)
    except ImportError:
        return []
    return [str(one) for one in sockets if one.peer or one.state == "listen"]


def indent(title: str, lines: list[str]) -> list[str]:
    """A title and lines below it, or nothing."""
    return [title, *(f"  {line}" for line in lines)] if lines else []


def is_loaded(module: str) -> bool:
    """Whether somebody imported a module already."""
    return module in sys.modules

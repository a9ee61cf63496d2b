"""What is said about leaks: one culprit each, one error per kind, in one tree."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, get_args

Kind = Literal[
    "processes", "files", "sockets", "threads", "socket_files", "temporary_files"
]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""What `check_leaks` looks at; the values that its `only` and `exclude` take."""


@dataclasses.dataclass(frozen=True)
class Leak:
    """One thing left behind.

    `kind` is one of `KINDS`, "orphans" or "memory"; `pid` is the process that has
    it (or that it is); `what` names it; `where` is the place that created it, or
    None; `stack` is a thread's present stack, or "".
    """

    kind: str
    pid: int
    what: str
    where: str | None = None
    stack: str = ""

    def __str__(self) -> str:
        known = self.pid in (0, os.getpid()) or self.what.startswith("process ")
        owner = "" if known else f" [process {self.pid}]"
        lines = [f"  {self.what}{owner}"]
        if self.where:
            lines.append(f"      created at {self.where}")
        lines += ["      " + line for line in self.stack.splitlines()]
        return "\n".join(lines)


class LeakError(AssertionError):
    """Something was left behind; raised itself where there are several kinds.

    `leaks` lists the culprits; `errors` holds one error of a subclass per kind.
    """

    kind: ClassVar[str] = ""
    nouns: ClassVar[tuple[str, str]] = ("thing", "things")
    state: ClassVar[str] = "left behind"

    def __init__(self, leaks: Sequence[Leak], errors: Sequence[LeakError] = ()) -> None:
        self.leaks = tuple(leaks)
        self._parts = tuple(errors)
        super().__init__("\n".join(map(str, errors)) if errors else self._message())

    @property
    def errors(self) -> tuple[LeakError, ...]:
        """One error of a subclass per kind: this one, if it is of one kind."""
        return self._parts or (self,)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.leaks, self._parts)

    def _message(self) -> str:
        count = len(self.leaks)
        headline = f"{count} {self.nouns[count != 1]} {self.state}:"
        return "\n".join([headline, *map(str, self.leaks)])


class UnreapedProcessError(LeakError):
    """A child process, or one of its children, still exists."""

    kind = "processes"
    nouns = ("process", "processes")
    state = "left running"


class UnclosedFileError(LeakError):
    """A file, or a descriptor of something that is no socket, is still open."""

    kind = "files"
    nouns = ("file", "files")
    state = "left open"


class UnclosedSocketError(LeakError):
    """A socket is still open."""

    kind = "sockets"
    nouns = ("socket", "sockets")
    state = "left open"


class UnjoinedThreadError(LeakError):
    """A thread still runs."""

    kind = "threads"
    nouns = ("thread", "threads")
    state = "left running"


class LeftSocketFileError(LeakError):
    """The file of a Unix socket still exists."""

    kind = "socket_files"
    nouns = ("Unix socket file", "Unix socket files")


class LeftTemporaryError(LeakError):
    """A file or directory in the temporary directory still exists."""

    kind = "temporary_files"
    nouns = ("temporary file or directory", "temporary files or directories")


class OrphanError(LeakError):
    """A process that this one's tree started runs on without its parent."""

    kind = "orphans"
    nouns = ("orphaned process", "orphaned processes")
    state = "left running"


class GrowingMemoryError(LeakError):
    """Memory grew in every round of calls."""

    kind = "memory"
    nouns = ("function", "functions")
    state = "that never stopped growing"


class NotTerminatedError(AssertionError):
    """A process did not end in time; `pid` still runs."""

    def __init__(self, message: str, pid: int) -> None:
        super().__init__(message)
        self.pid = pid


def build_error(leaks: Sequence[Leak]) -> LeakError:
    """The error for these leaks: of their kind, or one that holds one of each."""
    errors = []
    for error in LeakError.__subclasses__():
        mine = [leak for leak in leaks if leak.kind == error.kind]
        if mine:
            errors.append(error(mine))
    return errors[0] if len(errors) == 1 else LeakError(leaks, errors)

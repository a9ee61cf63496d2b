"""A kind of fault, and the two tables of them."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from degu.errors import shown


@dataclasses.dataclass(frozen=True)
class Fault:
    """A row of the tables.

    `kind`: its name; `summary`: what it does; `options`: name to default value,
    whose type is the option's; `choices`: the values of those that are names.
    The rest tells the machinery: `times` is how often it happens before all is
    well (0: always), `at_connect` says that it happens before any request,
    `reads_body` that the request's body is read first.
    """

    kind: str
    summary: str
    play: Callable[..., object]
    options: Mapping[str, Any]
    choices: Mapping[str, tuple[str, ...]]
    times: int = 0
    at_connect: bool = False
    reads_body: bool = True
    tiny_buffer: bool = False

    def check_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options with their defaults; raises TypeError or ValueError."""
        for name, value in options.items():
            self._check_option(name, value)
        return {**self.options, **options}

    def _check_option(self, name: str, value: Any) -> None:
        if name not in self.options:
            known = ", ".join(self.options) or "none"
            raise TypeError(f"{self.kind!r} has no option {name!r}; it has: {known}")
        wanted = type(self.options[name])
        given = float if wanted is float and type(value) is int else type(value)
        if given is not wanted:
            raise TypeError(
                f"option {name!r} of {self.kind!r}: expected {wanted.__name__}, "
                f"got {shown(value)}"
            )
        if wanted in (int, float) and value < 0 and name not in _SIGNED:
            raise ValueError(
                f"option {name!r} of {self.kind!r}: expected 0 or more, got {value!r}"
            )
        if name in _POSITIVE and value == 0:
            raise ValueError(f"option {name!r} of {self.kind!r}: expected more than 0")
        if name in self.choices and value not in self.choices[name]:
            raise ValueError(
                f"option {name!r} of {self.kind!r}: expected one of "
                f"{', '.join(self.choices[name])}, got {shown(value)}"
            )


_SIGNED = ("difference",)
_POSITIVE = ("size",)

server_faults: dict[str, Fault] = {}
client_faults: dict[str, Fault] = {}

SERVER_FAULTS: Mapping[str, Fault] = types.MappingProxyType(server_faults)
"""The kinds of `FaultyServer`, by name."""

CLIENT_FAULTS: Mapping[str, Fault] = types.MappingProxyType(client_faults)
"""The kinds of `FaultyClient`, by name."""

_Play = TypeVar("_Play", bound=Callable[..., object])


def enter_in(table: dict[str, Fault], **facts: Any) -> Callable[[_Play], _Play]:
    """Enter the decorated function in `table`; its keywords are the options."""

    def enter(play: _Play) -> _Play:
        kind = play.__name__.removeprefix("_serve_").removeprefix("_send_")
        summary = " ".join((play.__doc__ or "").split())
        options = dict(getattr(play, "__kwdefaults__", None) or {})
        choices = facts.pop("choices", {})
        table[kind] = Fault(kind, summary, play, options, choices, **facts)
        return play

    return enter


def find_fault(table: Mapping[str, Fault], kind: str) -> Fault:
    """The row of `kind`; raises ValueError where there is none."""
    if kind not in table:
        known = ", ".join(table)
        raise ValueError(f"no kind of fault {shown(kind)}; known: {known}")
    return table[kind]

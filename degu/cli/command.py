"""What every command of `degu` is: words, options, and a function that returns a code.

A module of this package has one command (`serve`, `files`, `get`, ...) and calls it
``COMMAND``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

DONE, FAILED, WRONG_USAGE, OTHER_STATUS, INTERRUPTED = 0, 1, 2, 3, 130

EXIT_CODES = """exit codes:
  0    done; of a server: it was told to stop (Ctrl-C or SIGTERM)
  1    it could not be done: a file, the network, TLS, an address in use
  2    the command line is wrong
  3    the server answered with another status than 2xx
  130  interrupted by Ctrl-C
"""


T = TypeVar("T")


class CommandError(Exception):
    """What could not be done, in words for the user."""


def expect_open(stream: T | None, name: str) -> T:
    """The stream that is called ``standard`` `name`; `CommandError` without one."""
    if stream is None:
        raise CommandError(f"standard {name} is closed")
    return stream


class Command(NamedTuple):
    """One command; the first line of its `text` stands in the list of them all."""

    name: str
    text: str
    examples: str
    add_options: Callable[[Any], None]
    """Gets the `argparse.ArgumentParser` of this command."""
    run: Callable[[argparse.Namespace], int]
    """Returns the exit code, or raises."""

    def add_to(self, commands: Any) -> None:
        """Enter it among the `commands` of a parser."""
        first = self.text.partition("\n")[0]
        parser = make_parser(
            commands.add_parser,
            self.name,
            help=first[0].lower() + first[1:].rstrip("."),
            description=self.text,
            epilog=f"examples:\n{self.examples}\n\n{EXIT_CODES}",
        )
        parser.set_defaults(run=self.run)
        parser.add_argument(
            "--debug", action="store_true", help="show the traceback of an error"
        )
        self.add_options(parser)


def make_parser(make: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """A parser that keeps the lines of its texts, and takes no shortened options."""
    return make(
        *args,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        **options,
    )

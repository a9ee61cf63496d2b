"""The `degu` command: servers to try things with, downloads and uploads, a small PKI.

Exit codes: 0 it was done (a server: it was told to stop); 1 it could not be done (a
file, the network, TLS, an address in use); 2 the command line is wrong; 3 the server
answered with another status than 2xx; 130 interrupted by Ctrl-C.

What a program would want to read goes to standard output, everything else to standard
error. `main` returns the exit code and raises nothing.
"""

# ruff: noqa: F401 - what the modules below are made of can be had from here, too
from __future__ import annotations

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Sequence

from degu import __version__
from degu.cli import files, get, inspect, pki, proxy, put, serve
from degu.cli.addresses import Target, parse_bind, parse_url
from degu.cli.app import load_app
from degu.cli.client import FILE_HELP
from degu.cli.command import (
    DONE,
    EXIT_CODES,
    FAILED,
    INTERRUPTED,
    OTHER_STATUS,
    WRONG_USAGE,
    CommandError,
    make_parser,
)
from degu.cli.console import Progress, say
from degu.cli.files import run_files
from degu.cli.get import PART_SUFFIX, run_get
from degu.cli.inspect import run_inspect
from degu.cli.pki import run_pki
from degu.cli.proxy import run_proxy
from degu.cli.put import COPY_SIZE, run_put
from degu.cli.serve import run_serve
from degu.cli.server import DEFAULT_PORT, GRACE
from degu.cli.workers import build_worker
from degu.errors import DeguError

__all__ = ["main"]

COMMANDS = tuple(
    module.COMMAND for module in (serve, files, proxy, inspect, get, put, pki)
)

_EXPECTED = (CommandError, DeguError, OSError, ValueError, TypeError, ImportError)
"""What a command raises that could not do its work; anything else is our mistake."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; `argv` is what follows ``degu``. Returns the exit code."""
    if sys.stderr is not None:
        return _run(argv)
    # It is closed; print() and argparse would take None for standard output.
    with (
        open(os.devnull, "w", errors="replace") as nobody,
        contextlib.redirect_stderr(nobody),
    ):
        return _run(argv)


def _run(argv: Sequence[str] | None) -> int:
    try:
        args = build_parser().parse_args(argv)
    except SystemExit as error:  # argparse has said why
        return int(error.code or 0)
    try:
        return int(args.run(args))
    except KeyboardInterrupt:
        say("")
        return INTERRUPTED
    except BrokenPipeError as error:
        if isinstance(error, DeguError):
            return _fail(args, error)
        # Whoever read our output has seen enough; Python would complain at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return FAILED
    except _EXPECTED as error:
        return _fail(args, error)


def _fail(args: argparse.Namespace, error: BaseException) -> int:
    if args.debug:
        traceback.print_exception(error)
    say(f"degu: {explain(error)}")
    return FAILED


def explain(error: BaseException) -> str:
    """One line about an error, for somebody who did not write the program."""
    if isinstance(error, OSError) and not isinstance(error, DeguError):
        reason = error.strerror or str(error) or type(error).__name__
        return f"{error.filename}: {reason}" if error.filename else reason
    return str(error) or type(error).__name__


def build_parser() -> argparse.ArgumentParser:
    """Everything that can be said on the command line, with its help."""
    parser: argparse.ArgumentParser = make_parser(
        argparse.ArgumentParser,
        prog="degu",
        description="An HTTP server and client for applications that embed them.\n"
        "'degu COMMAND --help' explains a command, with examples.",
        epilog=EXIT_CODES,
    )
    parser.add_argument("--version", action="version", version=f"degu {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_to(commands)
    return parser

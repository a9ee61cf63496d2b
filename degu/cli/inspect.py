"""``degu inspect``: what clients send."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

from degu.cli.command import Command
from degu.cli.server import add_server_options, serve

if TYPE_CHECKING:
    import argparse


def add_options(parser: Any) -> None:
    """Add what ``degu inspect`` takes."""
    add_server_options(parser)


def run_inspect(args: argparse.Namespace) -> int:
    """``degu inspect``."""
    from degu.apps import InspectApp

    log = logging.getLogger("degu.inspect")
    handler = logging.StreamHandler(sys.stdout)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        args.quiet = not args.verbose
        return serve(args, InspectApp(log))
    finally:
        log.removeHandler(handler)


COMMAND = Command(
    "inspect",
    "Show what clients send.\n\n"
    "Each request is printed, and answered by the same text (or HTML, or JSON).\n"
    "Open it in a browser to send it a form or a file.",
    "  degu inspect\n  curl -d 'pets=dog&pets=cat' 'http://[::1]:8000/foo'",
    add_options,
    run_inspect,
)

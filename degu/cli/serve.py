"""``degu serve``: an app of the user's."""

from __future__ import annotations

import argparse
from typing import Any

from degu.cli.app import load_app, parse_app_name
from degu.cli.command import Command
from degu.cli.server import add_server_options, serve
from degu.cli.workers import serve_workers


def add_options(parser: Any) -> None:
    """Add what ``degu serve`` takes."""
    parser.add_argument("app", metavar="MODULE:APP", type=parse_app_name)
    parser.add_argument(
        "--factory", action="store_true", help="APP is a function that builds the app"
    )
    parser.add_argument(
        "--wsgi", action="store_true", help="APP is a WSGI app (Flask, Django, ...)"
    )
    parser.add_argument(
        "--workers",
        type=_parse_workers,
        default=0,
        metavar="N",
        help="serve from N processes that share the address, each started again when "
        "it dies (default: from this process)",
    )
    add_server_options(parser)


def _parse_workers(text: str) -> int:
    if not (text.isdecimal() and text.isascii() and 0 < int(text) <= 64):
        raise argparse.ArgumentTypeError(f"expected a number from 1 to 64, got {text}")
    return int(text)


def run_serve(args: argparse.Namespace) -> int:
    """``degu serve``."""
    app = load_app(args.app, args.factory, args.wsgi)
    if args.workers:
        return serve_workers(args)
    return serve(args, app)


COMMAND = Command(
    "serve",
    "Serve an app of your own.\n\n"
    "APP is an attribute of MODULE: a callable app(request) that returns\n"
    "(status, reason, headers, body). The current folder is searched first.",
    "  degu serve hello:app\n"
    "  degu serve hello:build_app --factory --bind 127.0.0.1:0\n"
    "  degu serve flask_hello:app --wsgi\n"
    "  degu serve hello:app --cert me.pem --key me-key.pem --ca ca.pem",
    add_options,
    run_serve,
)

"""``degu files``: a folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from degu.cli.command import Command
from degu.cli.server import add_server_options, serve

if TYPE_CHECKING:
    import argparse


def add_options(parser: Any) -> None:
    """Add what ``degu files`` takes."""
    parser.add_argument("folder", metavar="FOLDER", nargs="?", default=".")
    parser.add_argument(
        "--writable", action="store_true", help="let files be uploaded by PUT"
    )
    parser.add_argument(
        "--hidden", action="store_true", help="show names that begin with a dot"
    )
    parser.add_argument(
        "--no-listing", action="store_true", help="do not list what is in a folder"
    )
    add_server_options(parser)


def run_files(args: argparse.Namespace) -> int:
    """``degu files``."""
    from degu.files import FilesApp

    app = FilesApp(
        args.folder,
        listing=not args.no_listing,
        hidden=args.hidden,
        writable=args.writable,
    )
    return serve(args, app)


COMMAND = Command(
    "files",
    "Serve a folder.\n\n"
    "With listings, ranges and resumable downloads. Links are not followed and\n"
    "hidden files are not shown.",
    "  degu files\n"
    "  degu files ~/Music --bind '*:8000'\n"
    "  degu files inbox --writable --bind 127.0.0.1:8000\n"
    "  curl -T photo.jpg http://127.0.0.1:8000/photo.jpg",
    add_options,
    run_files,
)

"""``degu put``: an upload."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import quote

from degu.cli.client import add_transfer, connect, tell_status
from degu.cli.command import DONE, Command, CommandError, expect_open
from degu.cli.console import Progress, say
from degu.errors import PeerError

if TYPE_CHECKING:
    import argparse

COPY_SIZE = 256 * 1024


def add_options(parser: Any) -> None:
    """Add what ``degu put`` takes."""
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on where an upload of the same file broke off (the server has to be "
        "'degu files --writable', or to do as it does)",
    )
    add_transfer(parser)


def run_put(args: argparse.Namespace) -> int:
    """``degu put``."""
    uri = args.url.uri
    if uri.endswith("/"):
        if args.file == "-":
            raise CommandError(
                "expected a URL with a name, to upload standard input to"
            )
        uri += quote(os.fsencode(os.path.basename(args.file)), safe="")
    with connect(args) as ask:
        if args.file == "-":
            if args.resume:
                raise CommandError("standard input can't be resumed, a FILE can")
            stream = expect_open(sys.stdin, "input").buffer
            response = _put_stream(ask, uri, stream, args)
        else:
            with open(args.file, "rb") as file:
                response = _put_file(ask, uri, file, args)
        if 200 <= response.status < 300:
            say(f"degu: {response.status} {response.reason}")
            return DONE
        return tell_status(response)


def _put_stream(ask: Any, uri: str, file: BinaryIO, args: argparse.Namespace) -> Any:
    from degu.base import ChunkedOutput

    with Progress(None, quiet=args.quiet) as progress:
        body = ChunkedOutput(_read_pieces(file, progress, None))
        return ask("PUT", uri, {}, body)


def _put_file(ask: Any, uri: str, file: BinaryIO, args: argparse.Namespace) -> Any:
    from degu.base import Output

    size, offset = os.fstat(file.fileno()).st_size, 0
    headers: dict[str, str] = {}
    if args.resume and size:
        headers["repr-digest"] = format_digest(file)
        offset = _ask_offset(ask, uri, headers, size)
        headers["content-range"] = f"bytes {offset}-{size - 1}/{size}"
    file.seek(offset)
    with Progress(size, offset, quiet=args.quiet) as progress:
        pieces = _read_pieces(file, progress, size - offset)
        try:
            return ask("PUT", uri, headers, Output(pieces, size - offset))
        except PeerError:
            if args.resume:
                say("degu: the same command goes on where it broke off")
            raise


def _ask_offset(ask: Any, uri: str, headers: dict[str, str], size: int) -> int:
    offset = ask("HEAD", uri, headers).headers.get("upload-offset", "0")
    known = re.fullmatch(r"[0-9]{1,16}", offset)
    # All of it: the answer was lost, so the end is sent again from the start.
    return int(offset) if known and int(offset) < size else 0


def format_digest(file: BinaryIO) -> str:
    """A file's SHA-256 as the field Repr-Digest has it (RFC 9530 §3)."""
    import base64

    digest = hashlib.file_digest(file, "sha256").digest()  # type: ignore[arg-type]
    return f"sha-256=:{base64.b64encode(digest).decode()}:"


def _read_pieces(
    file: BinaryIO, progress: Progress, size: int | None
) -> Iterator[bytes]:
    left = sys.maxsize if size is None else size
    while left and (piece := file.read(min(COPY_SIZE, left))):
        yield piece
        left -= len(piece)
        progress.add(len(piece))


COMMAND = Command(
    "put",
    "Upload to a URL.\n\n"
    "From FILE, or from standard input. To a URL that ends with a slash the name\n"
    "of the file is added.",
    "  degu put http://localhost:8000/inbox/ photo.jpg\n"
    "  degu put http://localhost:8000/inbox/ big.iso --resume\n"
    "  tar c . | degu put http://localhost:8000/backup.tar",
    add_options,
    run_put,
)

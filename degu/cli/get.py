"""``degu get``: a download."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

from degu.cli.client import add_transfer, connect, tell_status
from degu.cli.command import DONE, Command, CommandError, expect_open
from degu.cli.console import Progress, say

if TYPE_CHECKING:
    import argparse

PART_SUFFIX = ".degu-part"


def run_get(args: argparse.Namespace) -> int:
    """``degu get``."""
    with connect(args) as ask:
        if args.file == "-":
            file = expect_open(sys.stdout, "output").buffer
            return _get_to(ask("GET", args.url.uri, {}), file, args)
        return _Download(ask, args).run()


def _get_to(response: Any, file: BinaryIO, args: argparse.Namespace) -> int:
    if response.status != 200:
        return tell_status(response)
    total = None if response.body is None else response.body.content_length
    quiet = args.quiet or file.isatty()
    with Progress(total, quiet=quiet) as progress:
        _copy(response, file, progress)
    file.flush()
    return DONE


def _copy(response: Any, file: BinaryIO, progress: Progress) -> None:
    for piece in response.body or ():
        file.write(piece)
        progress.add(len(piece))


def _open_own(path: str, flags: int) -> int:
    """Open a part that is our own: others may foresee its name in a shared folder."""
    fd = os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)
    state = os.fstat(fd)
    user = os.getuid() if hasattr(os, "getuid") else state.st_uid
    if not stat.S_ISREG(state.st_mode) or state.st_uid != user or state.st_nlink > 1:
        os.close(fd)
        raise CommandError(f"{path}: expected a file of one's own, move it away")
    return fd


class _Download:
    """One download to a file, which goes on with what an earlier one left behind.

    The part is called by what the server says of the file's state, so that parts of
    different states are never mixed; without such a word nothing is kept.
    """

    def __init__(self, ask: Any, args: argparse.Namespace) -> None:
        self.ask = ask
        self.args = args
        path = os.path.abspath(args.file)
        if os.path.isdir(path):
            raise CommandError(f"{args.file}: expected a file, that is a folder")
        self.path = path
        self.folder, name = os.path.split(path)
        self.stem = os.fsdecode(os.fsencode(name)[:80])

    def run(self) -> int:
        response = self.ask("GET", self.args.url.uri, {})
        if response.status != 200:
            return tell_status(response)
        validator = self._find_validator(response.headers)
        part = self._name_part(validator)
        with open(part, "ab", opener=_open_own) as file:
            _lock(file, self.args.file)
            offset = file.tell()
            if offset and validator is not None:
                response, offset = self._go_on(response, validator, offset)
            file.truncate(offset)
            try:
                self._receive(response, file, offset)
            except BaseException:
                self._keep(part, validator)
                raise
        os.replace(part, self.path)
        for other in self._find_parts():
            os.unlink(other)
        return DONE

    def _go_on(self, response: Any, validator: str, offset: int) -> tuple[Any, int]:
        """Ask for the rest; all over again where the server does not give it."""
        headers = {"range": f"bytes={offset}-", "if-range": validator}
        rest = self.ask("GET", self.args.url.uri, headers)
        span = rest.headers.get("content-range", "")
        if rest.status == 206 and span.startswith(f"bytes {offset}-"):
            return rest, offset
        if rest.status == 416 and span == f"bytes */{offset}":
            return rest._replace(body=None), offset  # it was whole already
        return response, 0

    def _receive(self, response: Any, file: BinaryIO, offset: int) -> None:
        size = None
        if response.body is None:
            size = offset
        elif response.body.content_length is not None:
            size = offset + response.body.content_length
        with Progress(size, offset, quiet=self.args.quiet) as progress:
            _copy(response, file, progress)

    def _keep(self, part: str, validator: str | None) -> None:
        if validator is None or os.path.getsize(part) == 0:
            os.unlink(part)
        else:
            say("degu: what came is kept, the same command goes on with it")

    def _find_validator(self, headers: dict[str, Any]) -> str | None:
        etag = headers.get("etag", "")
        if etag.startswith('"'):
            return str(etag)
        return headers.get("last-modified") if not etag else None

    def _name_part(self, validator: str | None) -> str:
        state = validator or os.urandom(8).hex()
        mark = hashlib.sha256(f"{self.args.url}\0{state}".encode()).hexdigest()[:16]
        return os.path.join(self.folder, f".{self.stem}.{mark}{PART_SUFFIX}")

    def _find_parts(self) -> Iterator[str]:
        pattern = re.compile(
            rf"\.{re.escape(self.stem)}\.[0-9a-f]{{16}}{re.escape(PART_SUFFIX)}"
        )
        for name in os.listdir(self.folder):
            if pattern.fullmatch(name):
                yield os.path.join(self.folder, name)


def _lock(file: BinaryIO, name: str) -> None:
    try:
        import fcntl
    except ImportError:  # pragma: no cover - not on this system
        return
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise CommandError(f"{name} is being downloaded by another degu") from None


COMMAND = Command(
    "get",
    "Download from a URL.\n\n"
    "To standard output, or to FILE: then what a broken download left behind is\n"
    "used (if the server's file is still the same), and FILE appears when whole.",
    "  degu get http://localhost:8000/ | less\n"
    "  degu get http://localhost:8000/big.iso big.iso\n"
    "  degu get https://device.example/ --ca ca.pem --cert me.pem --key me-key.pem",
    add_transfer,
    run_get,
)

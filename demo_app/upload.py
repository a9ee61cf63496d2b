"""Files and folders that are sent. No Qt.

The other device keeps what came of a file, and says how much that is; so this side
has to remember nothing to go on after a break.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from degu.base import Output
from degu.client import Connection, Response
from demo_app.remote import Line, Remote, build_remote_error, build_uri
from demo_app.transfers import Transfer

PIECE_SIZE = 256 * 1024
TAKEN = 412
"""The status where a file of that name is there."""
MOST_NAMES = 100
"""How many names are tried for one file."""


class Upload:
    """Sends `paths` to the folder at `uri`; `run` goes on where it was left."""

    def __init__(
        self, transfer: Transfer, remote: Remote, paths: list[Path], uri: str
    ) -> None:
        self.transfer = transfer
        self.remote = remote
        self.paths = paths
        self.uri = uri
        self.files: deque[tuple[Path, list[str]]] | None = None
        self.before = 0  # bytes of the files that are through

    def run(self) -> None:
        """Send all; raises `Interrupted`, and whatever went wrong."""
        if self.files is None:
            self.files = self._plan()
        with Line(self.remote, self.transfer) as connection:
            while self.files:
                self._send(connection, *self.files[0])
                self.files.popleft()
                self.transfer.files_done += 1
                self.before = self.transfer.done

    def close(self) -> None:
        """Give up; what the other device has is swept there after a day."""

    def _plan(self) -> deque[tuple[Path, list[str]]]:
        found: deque[tuple[Path, list[str]]] = deque()
        for path in self.paths:
            inner = sorted(path.rglob("*")) if path.is_dir() else [path]
            for one in inner:
                self.transfer.check()
                if one.is_file() and not one.is_symlink():
                    names = one.relative_to(path.parent).parts
                    found.append((one, list(names)))
        self.transfer.total = sum(path.stat().st_size for path, _ in found)
        self.transfer.files = len(found)
        return found

    def _send(self, connection: Connection, path: Path, names: list[str]) -> None:
        with path.open("rb", buffering=0) as file:
            digest = self._digest(file)
            size = file.tell()
            for name in _other_names(names[-1]):
                uri = build_uri(self.uri, [*names[:-1], name])
                status = self._put(connection, uri, file, size, digest)
                if status in (201, 204):
                    return
                if status != TAKEN:
                    break
        raise build_remote_error(status)

    def _put(
        self, connection: Connection, uri: str, file: BinaryIO, size: int, digest: str
    ) -> int:
        headers: dict[str, Any] = {"repr-digest": digest}
        if size == 0:
            return _finish(connection.put(uri, headers, b""))
        offset = _ask_offset(connection, uri, headers)
        if offset is None:
            return TAKEN
        if offset >= size:
            offset = 0
        self.transfer.done = self.before + offset
        headers["content-range"] = f"bytes {offset}-{size - 1}/{size}"
        file.seek(offset)
        body = Output(self._pieces(file), size - offset)
        return _finish(connection.put(uri, headers, body))

    def _pieces(self, file: BinaryIO) -> Iterator[bytes]:
        while piece := file.read(PIECE_SIZE):
            yield piece
            self.transfer.move(len(piece))

    def _digest(self, file: BinaryIO) -> str:
        digest = hashlib.sha256()
        while piece := file.read(4 * PIECE_SIZE):
            digest.update(piece)
            self.transfer.check()
        return f"sha-256=:{b64encode(digest.digest()).decode()}:"


def _ask_offset(
    connection: Connection, uri: str, headers: dict[str, Any]
) -> int | None:
    """How much of this very content the other device has; None if the name is taken."""
    response = connection.head(uri, headers)
    if response.status == 200:
        return None
    return int(response.headers.get("upload-offset", 0))


def _finish(response: Response) -> int:
    if response.body is not None:
        response.body.read()
    return response.status


def _other_names(name: str) -> Iterator[str]:
    """`name`, then the same with numbers."""
    path = Path(name)
    yield name
    for number in range(2, MOST_NAMES):
        yield f"{path.stem} ({number}){path.suffix}"

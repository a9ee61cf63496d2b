"""A file or folder that is fetched. No Qt.

What is there already is kept in memory and in a nameless file, so that it can go on
after a pause or a break.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

from degu.client import Connection
from demo_app.entry import Entry
from demo_app.partfile import PartFile
from demo_app.remote import Line, Remote, build_remote_error, list_folder
from demo_app.transfers import Transfer

BUFFER_SIZE = 256 * 1024


class Download:
    """Fetches `entries` into `folder`; `run` goes on where it was left."""

    def __init__(
        self, transfer: Transfer, remote: Remote, entries: list[Entry], folder: Path
    ) -> None:
        self.transfer = transfer
        self.remote = remote
        self.entries = entries
        self.folder = folder
        self.files: deque[tuple[Entry, Path]] | None = None
        self.part: PartFile | None = None
        self.etag = ""
        self.buffer = memoryview(bytearray(BUFFER_SIZE))

    def run(self) -> None:
        """Fetch all; raises `Interrupted`, and whatever went wrong."""
        with Line(self.remote, self.transfer) as connection:
            if self.files is None:
                self.files = self._plan(connection)
            while self.files:
                self._fetch(connection, *self.files[0])
                self.files.popleft()
                self.transfer.files_done += 1

    def close(self) -> None:
        """Give up: nothing is left of what is not complete."""
        if self.part is not None:
            self.part.close()
            self.part = None

    def _plan(self, connection: Connection) -> deque[tuple[Entry, Path]]:
        """All files, where they go, and how much that is."""
        found: deque[tuple[Entry, Path]] = deque()
        left = [(entry, self.folder) for entry in reversed(self.entries)]
        while left:
            self.transfer.check()
            entry, folder = left.pop()
            path = folder / entry.name
            if not entry.is_folder:
                found.append((entry, path))
                continue
            path.mkdir(parents=True, exist_ok=True)
            inner = list_folder(connection, entry.uri)
            left.extend((one, path) for one in reversed(inner))
        self.transfer.total = sum(entry.size or 0 for entry, _ in found)
        self.transfer.files = len(found)
        return found

    def _fetch(self, connection: Connection, entry: Entry, path: Path) -> None:
        if self.part is None:
            self.part, self.etag = PartFile(path), ""
        part = self.part
        offset = part.file.seek(0, 2)
        headers = {}
        if offset and self.etag:
            headers = {"range": f"bytes={offset}-", "if-range": self.etag}
        response = connection.get(entry.uri, headers)
        if response.status == 200:
            # From the beginning: it is new, or another one by now.
            self.transfer.done -= offset
            part.restart()
        elif response.status != 206:
            raise build_remote_error(response.status)
        self.etag = response.headers.get("etag", "")
        self._copy(response.body, part)
        part.publish()
        self.part = None

    def _copy(self, body: Any, part: PartFile) -> None:
        while body is not None and not body.closed:
            piece = self.buffer[: body.readinto(self.buffer)]
            while piece:
                written = part.file.write(piece)
                self.transfer.move(written)
                piece = piece[written:]

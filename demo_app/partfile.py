"""A file that is not there before it is whole. No HTTP, no Qt.

On Linux it has no name until then, so that nothing is left of it whatever becomes of
this process. Elsewhere it is a hidden file, removed by `close`.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

SUFFIX = ".degu-part"


class PartFile:
    """The beginning of the file that will be at `path`, or beside it.

    A file that has the name by then is not replaced: a number is added to ours.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.named: Path | None = None
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = self._open()

    def __enter__(self) -> PartFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _open(self) -> BinaryIO:
        if hasattr(os, "O_TMPFILE"):
            with suppress(OSError):  # not every file system can do it
                flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
                return open(os.open(self.path.parent, flags, 0o666), "r+b", buffering=0)
        number, name = tempfile.mkstemp(SUFFIX, ".", self.path.parent)
        self.named = Path(name)
        return open(number, "r+b", buffering=0)

    @property
    def size(self) -> int:
        """Bytes that are there so far."""
        return os.fstat(self.file.fileno()).st_size

    def restart(self) -> None:
        """Begin anew."""
        self.file.seek(0)
        self.file.truncate()

    def publish(self) -> Path:
        """Give the whole file its name; returns where it is. Closes it."""
        os.fsync(self.file.fileno())
        for path in self._names():
            with suppress(FileExistsError):
                self._link(path)
                self.close()
                return path
        raise AssertionError("unreachable")

    def _names(self) -> itertools.chain[Path]:
        stem, suffix = self.path.stem, self.path.suffix
        others = (
            self.path.with_name(f"{stem} ({number}){suffix}")
            for number in itertools.count(2)
        )
        return itertools.chain([self.path], others)

    def _link(self, path: Path) -> None:
        if self.named is not None:
            os.link(self.named, path)
            return
        source = f"/proc/self/fd/{self.file.fileno()}"
        folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            # With a descriptor of the folder it is linkat(), which follows the link.
            os.link(source, path.name, dst_dir_fd=folder, follow_symlinks=True)
        finally:
            os.close(folder)

    def close(self) -> None:
        """Let go of the file; without `publish` nothing is left of it."""
        self.file.close()
        if self.named is not None:
            self.named.unlink(missing_ok=True)

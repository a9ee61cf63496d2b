"""A file into which the processes of one check write what they created."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
from collections.abc import Mapping
from typing import Any


class Journal:
    """One record a line; the processes share the open file, which has no name."""

    def __init__(self) -> None:
        self.descriptor: int | None = None
        self._key: tuple[int, int] | None = None

    def open(self, descriptor: int) -> None:
        """Go on in the file that `descriptor` is open on."""
        if fcntl := _import_fcntl():
            flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
            fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_APPEND)
        self.descriptor = descriptor
        self._key = _find_key(descriptor)

    def close(self) -> None:
        """Let go of the file."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

    def write(self, record: Mapping[str, object]) -> None:
        """Write one record, if the file is still there."""
        # A daemon closes every descriptor, and the number may be another file now.
        if self.descriptor is not None and self._key == _find_key(self.descriptor):
            with contextlib.suppress(OSError):
                os.write(self.descriptor, json.dumps(record).encode() + b"\n")

    def read(self, offset: int = 0) -> list[dict[str, Any]]:
        """The records since `offset`."""
        if self.descriptor is None or not hasattr(os, "pread"):
            return []
        size = self.size() - offset
        # A record that is still being written has no line end yet.
        lines = os.pread(self.descriptor, size, offset).split(b"\n")[:-1]
        return [json.loads(line) for line in lines]

    def size(self) -> int:
        """Where the next record will begin."""
        return 0 if self.descriptor is None else os.fstat(self.descriptor).st_size


def _import_fcntl() -> Any:
    try:
        return importlib.import_module("fcntl")
    except ImportError:
        return None


def _find_key(descriptor: int) -> tuple[int, int] | None:
    try:
        info = os.fstat(descriptor)
    except OSError:
        return None
    return info.st_dev, info.st_ino

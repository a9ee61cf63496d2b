"""Paths as people see them and drag them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from PySide6.QtGui import QDropEvent


def shorten(path: Path) -> str:
    """A path as people know it: ``~`` is their home."""
    with suppress(ValueError, RuntimeError):
        return f"~/{path.relative_to(Path.home())}"
    return str(path)


def find_folder(event: QDropEvent) -> Path | None:
    """The folder that is being dragged, if it is one."""
    for url in event.mimeData().urls():
        path = Path(url.toLocalFile())
        if url.isLocalFile() and path.is_dir():
            return path
    return None

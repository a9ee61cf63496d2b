"""A file or folder of another device. No HTTP, no Qt."""

from __future__ import annotations

from dataclasses import dataclass

ROOT = "/files/"
"""Where the shared folder begins."""


@dataclass(frozen=True)
class Entry:
    """What a listing says of it."""

    name: str
    uri: str
    is_folder: bool
    size: int | None
    modified: int
    """Seconds since 1970, UTC."""

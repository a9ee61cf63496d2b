"""Where something was created: by the user's code, a library or the test runner."""

from __future__ import annotations

import dataclasses
import os
import sys
import sysconfig
import types
from typing import Literal

_STDLIB = sysconfig.get_path("stdlib")
_HERE = os.path.dirname(__file__) + os.sep
TOOLS = ("_pytest", "pluggy", "xdist", "execnet", "coverage", "pytest_cov")
_TOOL_FILES = ("pytest_timeout.py",)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where something was created; `by_tool`: by the test runner itself."""

    frames: tuple[tuple[str, int, str], ...]
    by_tool: bool

    def __str__(self) -> str:
        shown = [f"{file}:{line} in {name}" for file, line, name in self.frames]
        return ", called from ".join(shown)


_origins: dict[str, Literal["library", "tool", "user"]] = {}


def find_origin(filename: str) -> Literal["library", "tool", "user"]:
    """Whose code is in that file."""
    origin = _origins.get(filename)
    if origin is None:
        parts = filename.replace("\\", "/").split("/")
        if filename.startswith("<") or filename.startswith(_HERE):
            origin = "library"
        elif any(tool in parts for tool in TOOLS) or parts[-1] in _TOOL_FILES:
            origin = "tool"
        elif filename.startswith(_STDLIB) and "site-packages" not in parts:
            origin = "library"
        else:
            origin = "user"
        _origins[filename] = origin
    return origin


def find_place() -> Place:
    """The innermost three frames of the caller that are neither library nor tool."""
    frame: types.FrameType | None = sys._getframe(1)
    frames: list[tuple[str, int, str]] = []
    by_tool: bool | None = None
    while frame is not None and len(frames) < 3:
        code = frame.f_code
        origin = find_origin(code.co_filename)
        if origin != "library" and by_tool is None:
            by_tool = origin == "tool"
        if origin == "user":
            frames.append((code.co_filename, frame.f_lineno, code.co_name))
        frame = frame.f_back
    return Place(tuple(frames), bool(by_tool))

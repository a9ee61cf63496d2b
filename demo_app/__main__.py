"""``python -m demo_app``: the window, or with ``--headless`` the main job alone."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from demo_app import headless


def main(argv: list[str] | None = None) -> int:
    """Run the demo; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m demo_app", description=__doc__)
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        help="the folder to share (default: Python's own library)",
    )
    parser.add_argument(
        "--headless",
        action="store_true",
        help="no window: move every file through both servers, and check it",
    )
    arguments = parser.parse_args(argv)
    return headless.main(arguments.folder)


if __name__ == "__main__":
    sys.exit(main())

"""``python -m demo_app``: the window, or with ``--headless`` the main job alone."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from pathlib import Path


def build_parser() -> argparse.ArgumentParser:
    """What can be said on the command line."""
    parser = argparse.ArgumentParser(prog="python -m demo_app", description=__doc__)
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        help="the folder to share (default: the one of the last time; with "
        "--headless: Python's own library)",
    )
    parser.add_argument(
        "--headless",
        action="store_true",
        help="no window: move every file through both servers, and check it",
    )
    parser.add_argument(
        "--data",
        type=Path,
        help="where identity, peers and settings are kept, for a second device on "
        "one computer",
    )
    parser.add_argument(
        "--local",
        action="store_true",
        help="be there for this computer alone, not for the network",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the demo; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    folder: Path | None = arguments.folder
    if folder is not None:
        folder = folder.expanduser()  # a shell leaves FOLDER=~/Pictures as it is
    if arguments.headless:
        from demo_app import headless

        return headless.main(folder)
    try:
        from demo_app import application
    except ImportError as error:
        print(
            f"The window needs Qt, which is missing here ({error}):\n"
            "    pip install '.[demo]'\n"
            "Or do without: python -m demo_app --headless",
            file=sys.stderr,
        )
        return 1
    if folder is not None and not folder.is_dir():
        print(f"expected a folder, got {str(folder)!r}", file=sys.stderr)
        return 2
    return application.run(arguments.data, folder, local=arguments.local)


if __name__ == "__main__":
    # In a frozen program the servers' processes begin here, too.
    multiprocessing.freeze_support()
    sys.exit(main())

"""Tries a packaged Degu Drop: it serves, and killed it leaves nothing behind.

python packaging/check_app.py dist/app/degu-drop/degu-drop
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

START_SECONDS = 30.0
END_SECONDS = 5.0
PROCESSES = 5
"""The program and its two servers, each with the process that watches over it."""


def find_processes(marker: str) -> list[int]:
    """The processes with `marker` in their environment (Linux)."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                alive = "State:\tZ" not in (entry / "status").read_text()
                if alive and marker.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
    return found


def wait(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait for something, or end this program with an error."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"FAILED: {what}: not within {seconds} seconds")
        time.sleep(0.05)


def main(program: str) -> None:
    """Try it."""
    done = subprocess.run([program, "--headless", str(Path(__file__).parent)])
    if done.returncode:
        sys.exit("FAILED: the main job")
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder, "tmp")
        temporary.mkdir()
        environment = {
            **os.environ,
            "TMPDIR": str(temporary),
            "DEGU_DROP_TRIED": folder,
        }
        if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            environment["QT_QPA_PLATFORM"] = "offscreen"
        command = [program, "--local", "--data", f"{folder}/data", folder]
        process = subprocess.Popen(command, env=environment)
        wait(
            lambda: len(find_processes(folder)) >= PROCESSES,
            START_SECONDS,
            "the servers' processes",
        )
        time.sleep(1)
        process.send_signal(signal.SIGKILL)
        process.wait()
        wait(
            lambda: not find_processes(folder), END_SECONDS, "the end of all processes"
        )
        if any(temporary.iterdir()):
            sys.exit(f"FAILED: left behind: {list(temporary.iterdir())}")
    print("ok: it serves, and killed it leaves no process and no file")


if __name__ == "__main__":
    main(sys.argv[1])

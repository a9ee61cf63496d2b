"""A screen that nobody looks at, and windows on it that a test talks to."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from degu.peers import make_identity
from demo_app.windows.settings import Settings
from tests.conftest import TIMEOUT_FACTOR, poll

ROOT = Path(__file__).parents[2]
DRIVER = Path(__file__).with_name("driver.py")


class Screen:
    """An X server of its own, on a display that it chooses itself."""

    def __init__(self) -> None:
        reader, writer = os.pipe()
        self.process = subprocess.Popen(
            [
                *("Xvfb", "-displayfd", str(writer), "-nolisten", "tcp"),
                *("-screen", "0", "1400x1000x24"),
            ],
            pass_fds=[writer],
            stderr=subprocess.DEVNULL,
        )
        os.close(writer)
        with open(reader) as file:
            self.display = f":{file.readline().strip()}"

    def close(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait()


class Window:
    """A device with a window, in a process of its own."""

    def __init__(self, screen: Screen | None, base: Path, name: str) -> None:
        self.name = name
        self.data = base / f"data of {name}"
        self.folder = base / f"folder of {name}"
        self.downloads = base / f"downloads of {name}"
        self.temporary = base / f"temporary files of {name}"
        self.folder.mkdir(exist_ok=True)
        self.temporary.mkdir(exist_ok=True)
        make_identity(self.data / "identity")
        settings = Settings(self.data)
        settings.name = name
        settings.downloads = self.downloads
        settings.store.sync()
        self.process: subprocess.Popen[str] = subprocess.Popen(
            [sys.executable, str(DRIVER), str(self.data), str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=build_environment(screen) | {"TMPDIR": str(self.temporary)},
        )

    def wait_shown(self) -> None:
        """Wait for the window."""
        assert self.process.stdout is not None
        assert json.loads(self.process.stdout.readline()) == "shown"

    def do(self, what: str, **arguments: Any) -> Any:
        """Have the user do something."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(
            json.dumps({"do": what, **arguments}), file=self.process.stdin, flush=True
        )
        answer = json.loads(self.process.stdout.readline())
        assert not (isinstance(answer, dict) and "failed" in answer), answer
        return answer

    def state(self) -> dict[str, Any]:
        """What is shown."""
        state: dict[str, Any] = self.do("state")
        return state

    def until(self, condition: Any, seconds: float = 30, what: str = "") -> Any:
        """Wait until the state is as wanted."""
        return poll(lambda: condition(self.state()), seconds, what or self.name)

    def end(self) -> int:
        """Close the window, and wait for the end of the process."""
        if self.process.poll() is None:
            with contextlib.suppress(OSError, ValueError):
                self.do("quit")
        return self.close()

    def close(self) -> int:
        """Wait for the end of the process; kill it if that does not come."""
        try:
            code = self.process.wait(15 * TIMEOUT_FACTOR)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        finally:
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
        return code

    def kill(self) -> None:
        """Kill it, without a word."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def build_environment(screen: Screen | None) -> dict[str, str]:
    """What a window finds around it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("WAYLAND_DISPLAY", None)
    if screen is None:
        environment["QT_QPA_PLATFORM"] = "offscreen"
    else:
        environment["QT_QPA_PLATFORM"] = "xcb"
        environment["DISPLAY"] = screen.display
    return environment


def introduce(one: Window, other: Window) -> None:
    """Have two users trust each other's device, through the dialogs."""
    one.do("invite")
    invitation = poll(lambda: one.do("invitation"), 20, "the invitation")
    other.do("join", text=invitation)
    for window, name in ((one, other.name), (other, one.name)):
        window.until(lambda state, name=name: state["peers"] == [name])
        window.do("close_dialog")


def find_processes(marker: str) -> list[int]:
    """The processes that have `marker` in their command line or environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                texts = [(entry / name).read_bytes() for name in ("cmdline", "environ")]
                alive = b"State:\tZ" not in (entry / "status").read_bytes()
                if alive and any(marker.encode() in text for text in texts):
                    found.append(int(entry.name))
    return found


def wait_gone(marker: str, seconds: float = 5.0) -> float:
    """Wait until no such process is left; how long that took."""
    started = time.monotonic()
    poll(lambda: not find_processes(marker), seconds, f"the end of {marker}")
    return time.monotonic() - started

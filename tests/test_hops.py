"""How short the way of a request is: Python calls, files, frames and system calls.

A layer more has to pay for itself; here it is counted. `make test-pure` counts the way
of the pure twin; with the compiled one there is hardly any Python left to count.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import degu
from degu import base
from degu.client import Client, Connection
from degu.server import Server

PACKAGE = str(Path(degu.__file__).parent)
MOST_CALLS = 25
MOST_FRAMES = 5
"""Above an app: the thread's own, `run`, `attend` and `resume`, `handle`."""

HEADERS = {"accept": "text/plain", "user-agent": "test", "x-one": "1", "x-two": "2"}


class Counted:
    """A profiler that counts the calls into degu, and remembers the app's frames."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.files: set[str] = set()
        self.frames: list[str] = []

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE):
            self.files.add(Path(code.co_filename).name)
            self.calls[f"{Path(code.co_filename).name}:{code.co_name}"] += 1

    def app(self, request: dict[str, Any]) -> Any:
        """Answer, and note who called."""
        self.frames.clear()
        frame = sys._getframe().f_back
        while frame is not None:
            self.frames.append(frame.f_code.co_name)
            frame = frame.f_back
        return 200, "OK", {"content-type": "text/plain"}, b"hello"


def ask(connection: Connection) -> None:
    """One exchange, body and all."""
    body = connection.get("/a/b", HEADERS).body
    assert body is not None
    assert body.read() == b"hello"


@pytest.fixture
def served() -> Iterator[tuple[Any, Counted]]:
    """A connection whose server's side is counted, after some requests."""
    counted = Counted()
    server = Server(("::1", 0, 0, 0), counted.app)
    with server.running():
        threading.setprofile(counted)  # of the threads that begin from now on
        try:
            with Client(server.address).connect() as connection:
                for _ in range(3):
                    ask(connection)
                yield connection, counted
        finally:
            threading.setprofile(None)


def test_server_takes_few_calls_over_three_files(served):
    """One more request on a kept connection, from its head to the next one's."""
    connection, counted = served
    before = counted.calls.copy()
    for _ in range(10):
        ask(connection)
    calls = counted.calls - before
    assert sum(calls.values()) <= 10 * MOST_CALLS, calls
    assert counted.files <= {"server.py", "base.py", "wire.py"} | BEGINNING


BEGINNING = {"address.py", "door.py"}
"""Files that only a connection's first request is looked at by."""


def test_kept_connection_needs_no_other_file(served):
    """What opens a connection, and checks a new host, is not asked again."""
    connection, counted = served
    counted.files.clear()
    ask(connection)
    ask(connection)
    assert counted.files <= {"server.py", "base.py", "wire.py"}
    assert counted.files or base.wire.__name__ == "degu._wire", "nothing was counted"


def test_few_frames_lie_above_the_app(served):
    """A traceback of an app begins close to the app."""
    _, counted = served
    ours = [name for name in counted.frames if not name.startswith(("_boot", "app"))]
    assert len(ours) <= MOST_FRAMES, counted.frames


def test_client_takes_few_calls(served):
    """The same from the other side."""
    connection, _ = served
    counted = Counted()
    before = sys.getprofile()
    sys.setprofile(counted)
    try:
        ask(connection)
    finally:
        sys.setprofile(before)
    assert 0 < sum(counted.calls.values()) <= MOST_CALLS, counted.calls
    assert counted.files <= {"client.py", "base.py", "wire.py"}


# --- system calls -----------------------------------------------------------------

SCRIPT = """
import sys
from degu.client import Client
from degu.server import Server
def app(request):
    return 200, "OK", {"content-type": "text/plain"}, b"hello"
server = Server(("::1", 0, 0, 0), app)
with server.running():
    with Client(server.address).connect() as connection:
        for _ in range(100):
            assert connection.get("/a/b").body.read() == b"hello"
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("twin", ["py", "c"])
def test_one_call_receives_and_one_sends(twin: str, tmp_path: Path):
    """A hundred requests: so many system calls of both sides together, and no more."""
    counts = count_system_calls(SCRIPT, twin, tmp_path)
    if not counts:
        pytest.skip("tracing is not permitted")
    assert 200 <= counts["sendto"] <= 204
    # Each side receives once; the client also looks whether its connection is alive,
    # by a poll in pure Python.
    looks = counts["recvfrom"] + counts["poll"] - 200
    assert 95 <= looks <= 130, counts
    assert counts["ppoll"] + counts["select"] + counts["epoll_wait"] <= 4
    assert counts["setsockopt"] <= 24


def count_system_calls(script: str, twin: str, folder: Path) -> Counter[str]:
    report = folder / "calls"
    environ = {**os.environ, "DEGU_PURE_PYTHON": "1" if twin == "py" else ""}
    if twin == "c" and base.wire.__name__ != "degu._wire":
        pytest.skip("this run is without the compiled twin")
    command = ["strace", "-f", "-c", "-o", str(report), sys.executable, "-c", script]
    root = str(Path(PACKAGE).parent)
    done = subprocess.run(command, env={**environ, "PYTHONPATH": root}, check=False)
    counts: Counter[str] = Counter()
    if done.returncode:
        return counts
    for line in report.read_text().splitlines():
        words = line.split()
        if len(words) >= 5 and words[3].isdecimal():
            counts[words[-1]] = int(words[3])
    return counts

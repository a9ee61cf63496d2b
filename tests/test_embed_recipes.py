"""The recipes of doc/examples/embed_*.py run, and block no event loop."""

from __future__ import annotations

import asyncio
import importlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TIMEOUT_FACTOR, poll
from tests.embed_apps import request

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "doc" / "examples"

FRAME_SECONDS = 0.016
"""A window that does not react for longer misses a picture."""

BLOCKED_SECONDS = 0.1
"""More than a busy machine holds up a timer, less than the first start of a server."""


@pytest.fixture
def load(monkeypatch):
    """Import an example by its name."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module


def ask(url, path="/"):
    """GET a path of the server at `url`."""
    port = int(url.rpartition(":")[2].rstrip("/"))
    return request(("::1", port, 0, 0), path)


def run_qt(code):
    """Run a program with the Qt recipe, without a screen."""
    pytest.importorskip("PySide6.QtCore", exc_type=ImportError)
    path = os.pathsep.join([str(ROOT), str(EXAMPLES)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path, "QT_QPA_PLATFORM": "offscreen"},
        capture_output=True,
        text=True,
        timeout=50 * TIMEOUT_FACTOR,
        check=False,
    )
    assert (done.stderr, done.returncode) == ("", 0)
    return done.stdout


QT = """
import os, signal, sys, time, degu
from PySide6.QtCore import QCoreApplication, Qt, QTimer
from embed_qt import ServerRunner

qt = QCoreApplication([])
runner = ServerRunner()
timer = QTimer()
timer.setTimerType(Qt.TimerType.PreciseTimer)
ticks = []
timer.timeout.connect(lambda: ticks.append(time.monotonic()))
timer.start(16)
events = []

def on_started(url):
    events.append('started')
    act = {act}
    QTimer.singleShot(200, act)

def on_ended(code):
    events.append(code)
    QTimer.singleShot(200, qt.quit)

runner.started.connect(on_started)
runner.ended.connect(on_ended)
runner.failed.connect(lambda why: (events.append(why), qt.quit()))
begun = []
QTimer.singleShot(500, lambda: (begun.append(len(ticks)), runner.start({address})))
qt.exec()
gaps = [b - a for a, b in zip(ticks, ticks[1:])]
print(*events, max(gaps[:begun[0] - 1]), max(gaps[begun[0] - 1:]), sep='|')
"""

KILL = "lambda: os.kill(runner.server.pid, signal.SIGKILL)"
SLEEP = "lambda: (time.sleep(0.1), runner.stop())"


@pytest.mark.parametrize(
    ("act", "events"), [("runner.stop", "started|0"), (KILL, "started|-9")]
)
def test_a_qt_window_is_never_blocked(act, events):
    """Neither by starting a server nor by stopping or losing it."""
    gaps = []
    # A busy machine delays a timer now and then, a call that blocks does so always.
    for _ in range(8):
        told, idle, gap = run_qt(QT.format(act=act, address="")).rsplit("|", 2)
        assert told == events
        gaps.append((float(idle), float(gap)))
        if float(gap) < BLOCKED_SECONDS or float(gap) <= 1.5 * float(idle):
            return
    pytest.fail(f"longest gaps between ticks of 16 ms, idle and in action: {gaps}")


def test_a_qt_window_that_is_blocked_is_noticed():
    """The control: what blocks for 100 ms shows."""
    _, _, gap = run_qt(QT.format(act=SLEEP, address="")).rpartition("|")
    assert float(gap) >= BLOCKED_SECONDS


def test_a_qt_window_is_told_why_there_is_no_server():
    """The exception of the constructor becomes a signal."""
    out = run_qt(QT.format(act="None", address="('::1', 0)"))
    assert out.startswith("address: a 2-tuple is never IPv6")


def test_an_asyncio_loop_is_never_blocked(load):
    """It serves, it ends, it is told when the server dies."""
    recipe: Any = load("embed_asyncio")

    async def longest_gap(until):
        longest, last = 0.0, time.monotonic()
        while not until.is_set():
            await asyncio.sleep(0.005)
            now = time.monotonic()
            longest, last = max(longest, now - last), now
        return longest

    async def run():
        rest, over = asyncio.Event(), asyncio.Event()
        asyncio.get_running_loop().call_later(0.3, rest.set)
        idle = await longest_gap(rest)
        watch = asyncio.create_task(longest_gap(over))
        async with recipe.AsyncServer() as first:
            answer = await asyncio.to_thread(ask, first.server.url)
            assert answer.endswith(str(first.server.pid).encode())
        assert await first.ended == 0
        async with recipe.AsyncServer() as second:
            await asyncio.to_thread(ask, second.server.url, "/crash")
            assert await second.ended == 3
        over.set()
        return idle, await watch

    gaps = []
    # A busy machine delays a loop now and then, a call that blocks does so always.
    for _ in range(8):
        idle, gap = asyncio.run(run())
        gaps.append((idle, gap))
        if gap < 2 * FRAME_SECONDS or gap <= 1.5 * idle:
            return
    pytest.fail(f"longest pauses of the loop, idle and in action: {gaps}")


def test_a_tkinter_window_is_told_everything(load):
    """Through nothing but its after() method."""
    recipe: Any = load("embed_tkinter")
    events, due = [], []
    runner = recipe.ServerRunner(
        lambda _ms, function: due.append(function), lambda *event: events.append(event)
    )

    def told(count):
        due.pop()()
        return len(events) == count

    runner.start()
    poll(lambda: told(1), 20)
    assert events[0][0] == "started"
    assert ask(events[0][1]).endswith(str(runner.server.pid).encode())
    runner.stop()
    poll(lambda: told(2), 20)
    assert events[1] == ("ended", 0)
    runner.start(("::1", 0))
    poll(lambda: told(3), 20)
    assert events[2][0] == "failed"


def test_plain_threads_look_after_a_server():
    """It comes back after a crash, and ends with its program."""
    popen: Any = subprocess.Popen(
        [sys.executable, str(EXAMPLES / "embed_threads.py")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with popen:
        url = popen.stdout.readline().split()[-1]
        first = ask(url).rpartition(b"\n")[2]
        assert ask(url, "/crash") == b""
        assert ask(url).rpartition(b"\n")[2] != first
        popen.kill()

    def gone():
        try:
            return not ask(url)
        except OSError:
            return True

    poll(gone, 5)


@pytest.mark.skipif(
    "DEGU_TEST_FREEZE" not in os.environ, reason="set DEGU_TEST_FREEZE=1; takes minutes"
)
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["--onedir", "--onefile"])
def test_a_frozen_program_works(kind, tmp_path):
    """Under every start method, with its app in its main module."""
    pytest.importorskip("PyInstaller")
    folders = {"dist": "dist", "work": "work", "spec": "."}
    where = [f"--{name}path={tmp_path / path}" for name, path in folders.items()]
    options = [kind, "--noconfirm", "--log-level=ERROR", f"--paths={ROOT}", *where]
    script = str(EXAMPLES / "embed_frozen.py")
    command = [sys.executable, "-m", "PyInstaller", *options, script]
    subprocess.run(command, check=True)
    program = tmp_path / "dist" / "embed_frozen"
    program = program / "embed_frozen" if program.is_dir() else program
    for method in ([], ["fork"], ["forkserver"], ["spawn"]):
        done = subprocess.run(
            [program, *method], capture_output=True, text=True, check=False, timeout=60
        )
        assert (done.stdout, done.stderr) == ("Hello from GET\n", ""), method

"""What every test may use: waiting for a condition, and how long things may take.

Nobody sleeps for a guessed time here; a test polls for what it expects and fails
at a deadline. `DEGU_TEST_TIMEOUT_FACTOR` stretches every deadline on a slow machine.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import hypothesis
import psutil
import pytest

ROOT = Path(__file__).parents[1]

TIMEOUT_FACTOR = float(os.environ.get("DEGU_TEST_TIMEOUT_FACTOR", "1"))
"""How much slower than the authors' this machine may be."""

POLL_SECONDS = 0.005

T = TypeVar("T")

# A shared machine stalls now and then, which says nothing about the code.
hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.register_profile(
    "ci", deadline=None, derandomize=True, print_blob=True
)
hypothesis.settings.register_profile("fuzz", deadline=None, max_examples=20_000)
# The same few examples each time; whatever fails need not be made small.
hypothesis.settings.register_profile(
    "mutants",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=30,
    suppress_health_check=list(hypothesis.HealthCheck),
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_configure(config: pytest.Config) -> None:
    """Let one run of the suite use another default start method of processes."""
    # A shell lets what it starts in the background ignore it, and so would every
    # process that a test starts and interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    start_method = os.environ.get("DEGU_TEST_START_METHOD")
    if start_method:
        multiprocessing.set_start_method(start_method, force=True)


class Deadline:
    """A moment `seconds` (scaled) from now."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds * TIMEOUT_FACTOR
        self._end = time.monotonic() + self.seconds

    @property
    def left(self) -> float:
        """Seconds until then, never below 0."""
        return max(0.0, self._end - time.monotonic())

    @property
    def passed(self) -> bool:
        """Whether that moment is over."""
        return self.left == 0.0


def poll(condition: Callable[[], T], seconds: float = 5.0, what: str = "") -> T:
    """Call `condition` until it returns something true, and return that.

    After `seconds` (scaled) without, the test fails and says `what` did not happen.
    """
    deadline = Deadline(seconds)
    while True:
        value = condition()
        if value:
            return value
        if deadline.passed:
            pytest.fail(
                f"{what or repr(condition)}: not within {deadline.seconds:g} seconds, "
                f"the last value was {value!r}"
            )
        time.sleep(POLL_SECONDS)


def run_program(*command: str, **options: Any) -> str:
    """What a program prints; it has to end well, and to complain of nothing."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=50 * TIMEOUT_FACTOR,
        check=False,
        **options,
    )
    assert (done.stderr, done.returncode) == ("", 0)
    return done.stdout


def wait_asleep(pid: int) -> None:
    """Wait until the main thread of a process waits for something itself.

    A signal that comes just before its system call would not end that.
    """
    process = psutil.Process(pid)
    poll(lambda: process.status() == psutil.STATUS_SLEEPING, 20, f"{pid} asleep")


@pytest.fixture
def deadline() -> type[Deadline]:
    """Make a `Deadline`: ``deadline(5).left`` is a time-out in scaled seconds."""
    return Deadline


@pytest.fixture
def wait_until() -> Callable[..., object]:
    """Poll for a condition: ``wait_until(lambda: server.closed, what="closing")``."""
    return poll

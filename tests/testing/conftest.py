"""What the tests of `degu.testing` share: pytest in pytest, seen from outside."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import psutil
import pytest
import trustme  # noqa: F401

# A run inside of this process forgets what it imported, and some modules can't be
# imported twice.

ROOT = Path(__file__).parents[2]
FACTOR = float(os.environ.get("DEGU_TEST_TIMEOUT_FACTOR", "1"))


class Inner:
    """A run of pytest, in a directory and with a temporary directory of its own."""

    def __init__(self, pytester, monkeypatch) -> None:
        self.pytester = pytester
        self.path = pytester.path
        self.mark = uuid.uuid4().hex
        # Short enough for the names of Unix sockets.
        self.temp = Path(tempfile.mkdtemp(prefix="degu-inner-"))
        # Only the plugins it needs, as each of the others takes its time to start.
        monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        self.args = ["-p", "degu.testing.plugin", "-p", "no:cacheprovider"]
        monkeypatch.setenv("TMPDIR", str(self.temp))
        monkeypatch.setenv("DEGU_TEST_INNER_RUN", self.mark)
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
        monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
        monkeypatch.delenv("PYTEST_XDIST_WORKER_COUNT", raising=False)
        monkeypatch.delenv("COVERAGE_PROCESS_START", raising=False)

    def write(self, source, **files):
        """Write the test module, and other modules."""
        self.pytester.makepyfile(test_it=source, **files)

    def run(self, *args):
        """Run it in this process, which is quick."""
        return self.pytester.runpytest_inprocess(*self.args, *args)

    def spawn(self, *args, python=("-m", "pytest")):
        """Start it in a process of its own."""
        plugins = ["-p", "xdist.plugin"] if "-n" in args else []
        command = [sys.executable, *python, *self.args, *plugins, *args]
        with (self.path / "output").open("wb") as output:
            return subprocess.Popen(
                command, cwd=self.path, stdout=output, stderr=subprocess.STDOUT
            )

    def read_output(self):
        """What a spawned run has printed."""
        return (self.path / "output").read_text(errors="replace")

    def list_processes(self):
        """Every process that descends from a spawned run, wherever it went."""
        found = []
        for process in psutil.process_iter():
            try:
                mark = process.environ().get("DEGU_TEST_INNER_RUN")
                if mark == self.mark and process.pid != os.getpid():
                    found.append(f"{process.pid} {process.cmdline()}")
            except psutil.Error:
                continue
        return found

    def list_files(self):
        """What is left in the temporary directory, but for pytest's own."""
        return [one.name for one in self.temp.iterdir() if "pytest-of" not in one.name]

    def wait_until_clean(self, seconds=10.0):
        """Wait until nothing is left; fail at a deadline, and say what it is."""
        deadline = time.monotonic() + seconds * FACTOR
        while left := [*self.list_processes(), *self.list_files()]:
            if time.monotonic() > deadline:
                pytest.fail(f"left behind: {left}\n{self.read_output()}")
            time.sleep(0.01)


@pytest.fixture
def inner(pytester, monkeypatch):
    """An `Inner` run; what it may have left is ended at last."""
    inner = Inner(pytester, monkeypatch)
    yield inner
    shutil.rmtree(inner.temp, ignore_errors=True)
    for process in psutil.process_iter():
        try:
            mark = process.environ().get("DEGU_TEST_INNER_RUN")
            if mark == inner.mark and process.pid != os.getpid():
                process.kill()
        except psutil.Error:
            continue

"""`degu.guard`, piece by piece in this process; as a whole: test_embed_lifecycle.py."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing import Pipe
from pathlib import Path

import pytest

from degu import guard
from degu.address import identify_socket
from degu.guard import Guard, await_guard, descendants, kill, start_guard
from tests.conftest import poll
from tests.embed_apps import is_running

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs pidfds")

SLEEP = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
TREE = """
import subprocess, sys, time
child = subprocess.Popen(sys.argv[1:], start_new_session=True)
print(child.pid, flush=True)
time.sleep(600)
"""


class Rig:
    """A guard that is a part of us, and what it guards."""

    def __init__(self, command: list[str], path: str | None = None) -> None:
        self.server = subprocess.Popen(command, stdout=-1, start_new_session=True)
        self.parent = subprocess.Popen(SLEEP)
        self.conn, self.home = Pipe()
        self.descriptors = [
            os.pidfd_open(self.server.pid),
            os.pidfd_open(self.parent.pid),
            *os.pipe(),
        ]
        server, parent, news, self.write = self.descriptors
        self.guard = Guard(
            self.server.pid, path, server, news, self.conn.fileno(), parent
        )

    def tell(self, path: str) -> None:
        """Have the server say where its socket file is."""
        os.write(self.write, pickle.dumps((path, identify_socket(path))))

    def hang_up(self) -> None:
        """Close the pipe that carries the news, as a server does that ends."""
        self.descriptors.remove(self.write)
        os.close(self.write)

    def close(self) -> None:
        for process in (self.server, self.parent):
            process.kill()
            process.communicate()
        for number in self.descriptors:
            os.close(number)
        self.conn.close()
        self.home.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig(SLEEP)
    yield rig
    rig.close()


@contextlib.contextmanager
def watching(rig: Rig) -> Iterator[list[bool]]:
    """Let the guard watch meanwhile; then it has seen an end."""
    seen: list[bool] = []
    thread = threading.Thread(target=lambda: seen.append(rig.guard.watch()))
    thread.start()
    yield seen
    thread.join(30)
    assert len(seen) == 1


def test_the_end_of_the_server_is_seen(rig: Rig):
    """There is nobody left to be killed."""
    with watching(rig) as seen:
        rig.server.kill()
    assert seen == [False]


def test_the_end_of_the_parent_is_seen(rig: Rig):
    """Also once nothing more can be told of the socket file."""
    with watching(rig) as seen:
        rig.hang_up()
        rig.parent.kill()
    assert seen == [True]


def test_a_parent_that_became_another_program_is_gone(rig: Rig):
    """Its end of the pipe is closed, although the process is there."""
    with watching(rig) as seen:
        rig.home.close()
    assert seen == [True]
    assert rig.parent.poll() is None


def test_what_the_server_tells_is_kept(rig: Rig, tmp_path: Path):
    """Told while it is watched: where the socket file is, and which one."""
    path = str(tmp_path / "sock")
    with socket.socket(socket.AF_UNIX) as sock, watching(rig):
        sock.bind(path)
        rig.tell(path)
        poll(lambda: rig.guard.path == path, what="the news")
        rig.server.kill()
    assert rig.guard.identity == identify_socket(path)


def test_all_that_the_server_started_is_killed():
    """A child in a session of its own as well; the guard itself stays."""
    rig = Rig([sys.executable, "-S", "-c", TREE, *SLEEP])
    try:
        assert rig.server.stdout is not None
        child = int(rig.server.stdout.readline())
        assert descendants(rig.server.pid) == [child]
        rig.guard.kill_all()
        assert rig.server.wait(30) == -9
        poll(lambda: not is_running(child), what="the end of the child")
    finally:
        rig.close()
    assert descendants(rig.server.pid) == []
    kill(rig.server.pid)  # which is no error


@pytest.mark.parametrize("when", ["known", "in the pipe", "before it was bound"])
def test_the_socket_file_of_a_killed_server_is_removed(
    rig: Rig, tmp_path: Path, when: str
):
    """However much the guard had heard of it."""
    path = str(tmp_path / "sock")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
    if when == "known":
        rig.guard.path, rig.guard.identity = path, identify_socket(path)
    elif when == "in the pipe":
        rig.tell(path)
    else:
        rig.guard.path = path
    rig.guard.clear_up()
    assert not os.path.exists(path)


@pytest.mark.parametrize("known", [True, False])
def test_the_socket_file_of_another_server_stays(rig: Rig, tmp_path: Path, known: bool):
    """One that came after it, or that somebody listens on."""
    path = str(tmp_path / "sock")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        sock.listen()
        rig.guard.path = path
        rig.guard.identity = (0, 0) if known else None
        rig.guard.clear_up()
        assert os.path.exists(path)


def test_a_server_waits_for_its_guard_but_not_for_long(monkeypatch):
    """Where nobody reads the news any more, not at all."""
    reader, writer = os.pipe()
    try:
        monkeypatch.setattr(guard, "GUARD_SECONDS", 0.2)
        began = time.monotonic()
        await_guard(writer)
        assert time.monotonic() - began >= 0.2
        monkeypatch.setattr(guard, "GUARD_SECONDS", 60)
        threading.Timer(0.05, os.close, (reader,)).start()
        await_guard(writer)
        assert time.monotonic() - began < 30
    finally:
        os.close(writer)


def test_without_a_parent_to_watch_there_is_no_guard():
    """As for a child of a fork server."""
    with contextlib.ExitStack() as stack:
        ours, theirs = map(stack.enter_context, Pipe())
        assert start_guard(None, ours, None) is None
        assert not theirs.poll()


def test_a_machine_that_is_full_has_no_guard(monkeypatch):
    """The server goes on with its own watching, and nothing stays open."""

    def refuse() -> int:
        raise OSError(errno.EAGAIN, "no more processes")

    monkeypatch.setattr(os, "fork", refuse)
    before = len(os.listdir("/proc/self/fd"))
    with contextlib.ExitStack() as stack:
        ours, theirs = map(stack.enter_context, Pipe())
        assert start_guard(None, ours, theirs) is None
    assert len(os.listdir("/proc/self/fd")) == before

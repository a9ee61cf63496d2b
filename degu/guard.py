"""The guard: a second, tiny process that outlasts a server whose threads are stuck.

A server whose threads all wait for one that does not let go of the interpreter could
not notice its parent's end in time. The guard has nothing else to do. It also removes
what a killed server leaves: its socket file and its own children. Linux only, where
pidfds tell it about both.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import select
import signal
from multiprocessing.connection import Connection

from degu.address import Identity, unlink_socket, unlink_stale

GUARD_SECONDS = 1.0
"""How long the guard waits for a killed server to be gone, and a server for it."""


def start_guard(
    path: str | None, conn: Connection, parent: Connection | None
) -> int | None:
    """Fork the guard of this process; return a pipe to tell it of a socket file.

    `path` is where that will be, if it is known before.
    """
    if parent is None:
        return None
    opened: list[int] = []
    try:
        opened.append(os.pidfd_open(os.getpid()))
        opened += os.pipe()
        pid = os.fork()
    except OSError:
        # Out of descriptors or processes: our own watching has to do.
        for number in opened:
            os.close(number)
        return None
    server, news, write = opened
    if pid == 0:
        try:
            given = [server, news, conn.fileno(), parent.fileno()]
            keep = [above_standard(number) for number in given]
            close_others(keep)
            Guard(os.getppid(), path, *keep).run()
        finally:
            os._exit(0)
    os.close(server)
    os.close(news)
    return write


def await_guard(news: int) -> None:
    """Wait to be ended by the guard that reads `news`; returns where that is gone.

    Two that kill the same processes could kill each other first, and leave the rest.
    """
    poll = select.poll()
    poll.register(news, 0)  # an error is what a pipe without a reader has
    poll.poll(GUARD_SECONDS * 1000)


def above_standard(number: int) -> int:
    """A descriptor for the same that is no standard one, which a parent may lack."""
    while number < 3:
        number = os.dup(number)
    return number


def close_others(keep: list[int]) -> None:
    """Let go of everything that would outlive the server with us."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    low = 3
    for number in sorted(keep):
        os.closerange(low, number)
        low = number + 1
    os.closerange(low, os.sysconf("SC_OPEN_MAX"))


class Guard:
    """A process that ends the server with its parent, and clears up after it."""

    def __init__(
        self, pid: int, path: str | None, server: int, news: int, conn: int, parent: int
    ) -> None:
        self.pid = pid
        self.path = path
        self.identity: Identity | None = None
        self.server = server
        self.news = news
        self.conn = conn
        self.parent = parent

    def run(self) -> None:
        """Wait for the end of either, then clear up; the last act ends us too."""
        gc.disable()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with contextlib.suppress(OSError), open("/proc/self/comm", "w") as file:
            file.write("degu-guard")
        if self.watch():
            self.kill_all()
        self.clear_up()

    def watch(self) -> bool:
        """Whether the parent ended, and not the server."""
        poll = select.poll()
        poll.register(self.server, select.POLLIN)
        poll.register(self.parent, select.POLLIN)
        poll.register(self.news, select.POLLIN)
        poll.register(self.conn, 0)
        while True:
            events = dict(poll.poll())
            if self.news in events and not self.read_news():
                poll.unregister(self.news)
            if self.server in events:
                return False
            if self.parent in events or self.conn in events:
                return True

    def read_news(self) -> bool:
        """Take note of the socket file; False when nothing more can come."""
        data = os.read(self.news, 4096)
        if data:
            self.path, self.identity = pickle.loads(data)
        return bool(data)

    def kill_all(self) -> None:
        """Kill the server and all that it started, also what left its session."""
        others = [pid for pid in descendants(self.pid) if pid != os.getpid()]
        kill(self.pid)
        for pid in others:
            kill(pid)
        poll = select.poll()
        poll.register(self.server, select.POLLIN)
        poll.poll(GUARD_SECONDS * 1000)

    def clear_up(self) -> None:
        """Remove the socket file and end the server's process group."""
        if select.select([self.news], [], [], 0)[0]:
            self.read_news()
        if self.path is not None:
            if self.identity is None:
                unlink_stale(self.path)
            else:
                unlink_socket(self.path, self.identity)
        if os.getpgrp() == self.pid:
            os.killpg(self.pid, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    """Every process that descends from `pid`, as far as the system shows (Linux)."""
    try:
        threads = {int(name) for name in os.listdir(f"/proc/{pid}/task")}
    except OSError:
        return []
    found: list[int] = []
    # The children of a thread that ends meanwhile become those of the main thread.
    for thread in [*(threads - {pid}), pid]:
        for each in _children(pid, thread):
            if each not in found:
                found += [each, *descendants(each)]
    return found


def _children(pid: int, thread: int) -> list[int]:
    try:
        with open(f"/proc/{pid}/task/{thread}/children") as file:
            return [int(word) for word in file.read().split()]
    except OSError:
        return []


def kill(pid: int) -> None:
    """Kill a process that may be gone already."""
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGKILL)

"""Ctrl-C comes through, wherever the main thread is; other signals change nothing."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from degu.base import Output
from tests.conftest import poll
from tests.transports import HEAD, OK, READ, ScriptedServer

fcntl = pytest.importorskip("fcntl")  # has the kernel send signals

PATIENCE = 5.0
"""Seconds that the server leaves the client in which to notice."""


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
def is_tls(request: pytest.FixtureRequest) -> Any:
    """Without TLS and with it."""
    return request.param


@pytest.fixture
def handle() -> Iterator[Callable[[Any], None]]:
    """Set the handler of SIGIO, until the test ends."""
    before = signal.getsignal(signal.SIGIO)
    yield lambda handler: (signal.signal(signal.SIGIO, handler), None)[1]
    signal.signal(signal.SIGIO, before)


def raise_once(number: int, frame: Any) -> None:
    """As Python's own handler of SIGINT, which nobody types twice."""
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


class Watcher:
    """A part of the script: sees whether the client gave up by itself."""

    def __init__(self, *, types: bool) -> None:
        self.types = types
        self.connection: Any = None
        self.saw_the_end = False

    def __call__(self) -> None:
        poll(self.look, PATIENCE, "the end of the connection")
        self.saw_the_end = True

    def look(self) -> bool:
        """Type Ctrl-C once more: between two steps of C, one can be lost."""
        if self.types:
            interrupt()
        return bool(self.connection.closed)


def interrupt() -> None:
    """A signal from outside, to the main thread."""
    os.kill(os.getpid(), signal.SIGIO)


def interrupt_at_arrival(server: ScriptedServer) -> None:
    """Have the kernel send the signal with the first bytes that reach the server.

    So it comes while the client sends, just before it waits.
    """
    number = server.socks[0].fileno()
    fcntl.fcntl(number, fcntl.F_SETOWN, os.getpid())
    flags = fcntl.fcntl(number, fcntl.F_GETFL)
    fcntl.fcntl(number, fcntl.F_SETFL, flags | os.O_ASYNC)


@pytest.mark.parametrize("moment", ["just before", "while"])
def test_ctrl_c_while_waiting_is_noticed(is_tls, handle, moment):
    """The answer never comes, and the request would hang."""
    watch = Watcher(types=moment == "while")
    with ScriptedServer([READ, OK, READ, watch], is_tls=is_tls) as server:
        watch.connection = connection = server.make_client().connect()
        connection.get("/")
        handle(raise_once)
        if moment == "just before":
            interrupt_at_arrival(server)
        with pytest.raises(KeyboardInterrupt):
            connection.get("/")
    assert watch.saw_the_end


def test_ctrl_c_while_sending_is_noticed(is_tls, handle):
    """The server takes no more of the body."""
    watch = Watcher(types=True)
    fill = partial(time.sleep, 0.2)  # until no buffer has room; too early does no harm
    with ScriptedServer([HEAD, fill, watch], is_tls=is_tls) as server:
        watch.connection = connection = server.make_client().connect()
        handle(raise_once)
        size = 64 * 1024 * 1024
        with pytest.raises(KeyboardInterrupt):
            connection.put("/", None, Output(iter([bytes(size)]), size))
    assert watch.saw_the_end


def test_a_signal_that_raises_nothing_changes_nothing(is_tls, handle):
    """The control: at the same moments, and the answers come."""
    numbers: list[int] = []
    script = [READ, OK, READ, interrupt, OK, READ, OK]
    with ScriptedServer(script, is_tls=is_tls) as server:
        with server.make_client().connect() as connection:
            connection.get("/")
            handle(lambda number, frame: numbers.append(number))
            interrupt_at_arrival(server)
            for _ in range(2):
                assert connection.get("/").status == 200
        assert len(numbers) >= 2

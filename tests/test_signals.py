"""Ctrl-C comes through, wherever the main thread is; other signals change nothing."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

import pytest

from degu.base import Output
from degu.client import Client
from degu.server import Server
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


# --- a server in the main thread


def signal_elsewhere() -> None:
    """A signal that no system call of the main thread sees: another thread takes it."""
    signal.pthread_kill(threading.get_ident(), signal.SIGIO)


def serve_while(server: Server, work: Callable[[], object], serve: Any) -> Any:
    """Serve in this thread while `work` runs in another; what that returned."""

    def run() -> object:
        try:
            return work()
        finally:
            server.shutdown(0)

    with ThreadPoolExecutor(1) as threads:
        future = threads.submit(run)
        serve()
        return future.result()


@pytest.mark.parametrize("method", ["serve_forever", "handle_request"])
def test_ctrl_c_ends_the_waiting_for_connections(handle, method):
    """Although poll() is not interrupted."""
    server = Server(("127.0.0.1", 0), lambda request: (200, "OK", {}, None))
    begun, raised = threading.Event(), threading.Event()

    def press() -> bool:
        begun.wait()
        time.sleep(0.05)  # until it waits; too early does no harm
        signal_elsewhere()
        return raised.wait(PATIENCE)

    def interrupted(number: int, frame: Any) -> None:
        raised.set()
        raise_once(number, frame)

    def serve() -> None:
        with suppress(KeyboardInterrupt):
            begun.set()
            getattr(server, method)()

    handle(interrupted)
    assert serve_while(server, press, serve)
    server.close()
    assert signal.set_wakeup_fd(-1) == -1


def test_a_server_serves_on_after_other_signals(handle):
    """The control; and it does not go round and round, either."""
    server = Server(("127.0.0.1", 0), lambda request: (200, "OK", {}, None))
    numbers: list[int] = []

    def ask() -> None:
        client = Client(server.address)
        for count in (1, 2, 3):
            signal_elsewhere()
            poll(partial(is_long, count), PATIENCE, "the handler")
            assert client.get("/").status == 200
        client.close()
        poll(lambda: not select.select([woken], [], [], 0)[0], PATIENCE, "the rest")

    def is_long(count: int) -> bool:
        return len(numbers) >= count

    woken = server._wake_reader
    handle(lambda number, frame: numbers.append(number))
    serve_while(server, ask, server.serve_forever)
    server.close()


def test_an_event_loop_goes_on_hearing_of_signals(handle):
    """What another had set is left alone."""
    server = Server(("127.0.0.1", 0), lambda request: (200, "OK", {}, None))
    reader, writer = socket.socketpair()
    with reader, writer:
        writer.setblocking(False)
        reader.settimeout(PATIENCE)
        handle(lambda number, frame: None)
        signal.set_wakeup_fd(writer.fileno())
        try:

            def hear() -> bytes:
                signal_elsewhere()
                return reader.recv(10)

            assert (
                serve_while(server, hear, server.serve_forever) == b"%c" % signal.SIGIO
            )
        finally:
            assert signal.set_wakeup_fd(-1) == writer.fileno()
    server.close()


@pytest.mark.parametrize("is_there", [True, False])
def test_an_event_loop_that_calls_is_not_disturbed(monkeypatch, is_there):
    """Where a connection is there, nothing waits; the control is one that is late."""
    server = Server(("127.0.0.1", 0), lambda request: (200, "OK", {}, None))
    calls: list[int] = []
    real = signal.set_wakeup_fd

    def set_wakeup_fd(number: int, **options: Any) -> int:
        if not calls:
            ask()
        calls.append(number)
        return real(number, **options)

    def ask() -> None:
        sock.connect(server.address)
        sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")

    monkeypatch.setattr(signal, "set_wakeup_fd", set_wakeup_fd)
    with socket.socket() as sock:
        if is_there:
            ask()
        server.handle_request()
        assert sock.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")
    assert len(calls) == (0 if is_there else 2)
    server.close()

"""Many kept connections: whichever thread serves them, each gets its own answers.

The tests hold for both twins; what they look for can only go wrong in the compiled one,
where a few threads take turns at all the connections.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from degu.client import Client, Connection
from degu.errors import DeguError
from degu.server import Server
from tests.conftest import poll
from tests.transports import TIMEOUT, Transport

Request = dict[str, Any]
Answer = tuple[int, str, dict[str, Any], Any]


def echo(request: Request) -> Answer:
    """Answer what was asked for, and on whose behalf."""
    body = request["body"]
    data = request["uri"].encode() + (b"" if body is None else body.read())
    return 200, "OK", {"x-client": str(request["client"][1])}, data


@contextlib.contextmanager
def serving(app: Callable[[Request], Any], **options: Any) -> Iterator[Server]:
    """A server in this process, none of whose threads outlives the test."""
    server = Server(("127.0.0.1", 0), app, **options)
    with server.running(grace=TIMEOUT):
        yield server
    poll(lambda: not server._handlers, what="the end of all connections")
    poll(
        lambda: not [one for one in threading.enumerate() if one.name[:6] == "degu ("],
        what="the end of all threads",
    )


@contextlib.contextmanager
def connections(server: Server, number: int) -> Iterator[list[Connection]]:
    """Kept connections, each of them used once and then once more."""
    client = Client(server.address, timeout=TIMEOUT)
    with contextlib.ExitStack() as stack:
        every = [stack.enter_context(client.connect()) for _ in range(number)]
        for _ in range(2):
            for one in every:
                assert get(one, "/warm").startswith(b"/warm")
        yield every


def address_of(server: Server) -> tuple[str, int]:
    """Where a socket connects to."""
    assert isinstance(server.address, tuple)
    return server.address[:2]


def get(connection: Connection, uri: str) -> bytes:
    """The body of the answer, which may be none."""
    response = connection.request("GET", uri, {})
    assert response.status == 200, response
    return b"" if response.body is None else response.body.read()


def ask_often(connection: Connection, seed: int, count: int) -> None:
    """All kinds of requests, each of which must have an answer of its own."""
    chance = random.Random(seed)
    own = str(connection.sock.getsockname()[1])
    for number in range(count):
        uri = f"/{seed}/{number}"
        size = chance.choice((0, 0, 0, 0, 3, 70_000))
        data = bytes([number % 256]) * size
        method = "POST" if size else "GET"
        response = connection.request(method, uri, {}, data or None)
        assert response.headers["x-client"] == own
        assert response.body is not None
        assert response.body.read() == uri.encode() + data


@pytest.mark.parametrize("number", [2, 3, 24])
def test_every_connection_gets_its_own_answers(number: int):
    """Plain requests, and those that take the long way, from many threads at once."""
    with (
        serving(echo) as server,
        connections(server, number) as every,
        ThreadPoolExecutor(number) as threads,
    ):
        jobs = [
            threads.submit(ask_often, one, seed, 40) for seed, one in enumerate(every)
        ]
        for job in jobs:
            job.result(TIMEOUT)


class Gate:
    """An app in which the requests for /wait stay until they are let go."""

    def __init__(self) -> None:
        self.inside = threading.Semaphore(0)
        self.open = threading.Event()

    def __call__(self, request: Request) -> Answer:
        if request["uri"] == "/wait":
            self.inside.release()
            assert self.open.wait(TIMEOUT)
        return 200, "OK", {}, request["uri"].encode()


def test_others_go_on_while_an_app_waits():
    """The thread that serves all is replaced when its app keeps it."""
    gate = Gate()
    with (
        serving(gate) as server,
        connections(server, 5) as every,
        ThreadPoolExecutor(5) as threads,
    ):
        waiting = []
        for number in range(4):
            waiting.append(threads.submit(get, every[number], "/wait"))
            assert gate.inside.acquire(timeout=TIMEOUT)
            for one in every[number + 1 :]:
                assert get(one, "/quick") == b"/quick"
        assert not any(job.done() for job in waiting)
        gate.open.set()
        assert [job.result(TIMEOUT) for job in waiting] == [b"/wait"] * 4


def test_as_many_requests_at_once_as_connections():
    """All apps are inside at the same time, and that again and again."""
    number = 8
    barrier = threading.Barrier(number)

    def meet(request: Request) -> Answer:
        if request["uri"] == "/meet":
            barrier.wait(TIMEOUT)
        return 200, "OK", {}, request["uri"].encode()

    with (
        serving(meet) as server,
        connections(server, number) as every,
        ThreadPoolExecutor(number) as threads,
    ):
        for _ in range(20):
            jobs = [threads.submit(get, one, "/meet") for one in every]
            assert [job.result(TIMEOUT) for job in jobs] == [b"/meet"] * number
            # The app is quick again, and so is the way in which it is called.
            for one in every:
                assert get(one, "/quick") == b"/quick"


def test_an_idle_connection_ends_in_time_beside_a_busy_one():
    """The deadline of a waiting connection is kept by whoever serves the others."""
    with serving(echo, timeout=0.5) as server, connections(server, 3) as every:
        begun = time.monotonic()

        def is_closed() -> bool:
            assert get(every[0], "/busy") == b"/busy"
            return every[1].closed and every[2].closed

        poll(is_closed, what="the end of the idle connections")
        assert time.monotonic() - begun >= 0.3
        assert get(every[0], "/busy") == b"/busy"


def test_all_idle_connections_end_in_time():
    """Also where nobody asks for anything any more."""
    with serving(echo, timeout=0.3) as server, connections(server, 6):
        poll(lambda: not server._handlers, what="the end of the idle connections")


def test_waiting_connections_end_with_the_server():
    """They do not hold up a shutdown."""
    with serving(echo) as server, connections(server, 12):
        begun = time.monotonic()
        assert server.shutdown(TIMEOUT)
        assert time.monotonic() - begun < TIMEOUT / 2


def test_a_request_in_flight_is_answered_beside_waiting_connections():
    """A shutdown waits for the app, and for nobody else."""
    gate = Gate()
    with (
        serving(gate) as server,
        connections(server, 4) as every,
        ThreadPoolExecutor(2) as threads,
    ):
        answer = threads.submit(get, every[0], "/wait")
        assert gate.inside.acquire(timeout=TIMEOUT)
        stopped = threads.submit(server.shutdown, TIMEOUT)
        poll(lambda: len(server._handlers) == 1, what="the end of the waiting ones")
        gate.open.set()
        assert answer.result(TIMEOUT) == b"/wait"
        assert stopped.result(TIMEOUT) is True


def test_an_app_may_shut_its_own_server_down():
    """Whichever thread happens to serve the connection."""
    servers: list[Server] = []

    def app(request: Request) -> Answer:
        if request["uri"] == "/stop":
            assert servers[0].shutdown(TIMEOUT)
        return 200, "OK", {}, request["uri"].encode()

    with serving(app) as server, connections(server, 4) as every:
        servers.append(server)
        assert get(every[2], "/stop") == b"/stop"
        # The same thread has served the others, which must end all the same.
        poll(lambda: all(one.closed for one in every), 2, "the end of the others")


def test_a_session_keeps_its_thread():
    """What an app puts there may belong to the thread that made it (sqlite3)."""

    def app(request: Request) -> Answer:
        here = threading.get_ident()
        kept = request["session"].setdefault("thread", here)
        return 200, "OK", {}, b"same" if here == kept else b"another"

    with serving(app) as server, contextlib.ExitStack() as stack:
        client = Client(server.address, timeout=TIMEOUT)
        every = [stack.enter_context(client.connect()) for _ in range(6)]
        for _ in range(50):
            for one in random.sample(every, 6):
                assert get(one, "/") == b"same"


@pytest.mark.parametrize("error", [SystemExit, ValueError])
def test_an_app_that_raises_ends_its_own_connection_only(error: type[BaseException]):
    """The others are served on, one after the other until none is left."""

    def app(request: Request) -> Answer:
        if request["uri"] == "/raise":
            raise error("on purpose")
        return echo(request)

    with serving(app) as server, connections(server, 5) as every:
        for number, one in enumerate(every):
            assert one.request("GET", "/raise", {}).status == 500
            for other in every[number + 1 :]:
                assert get(other, "/on") == b"/on"


class Odd(str):
    """A key that cannot be compared, in a dict where that has to be done."""

    __slots__ = ()

    def __hash__(self) -> int:
        return hash("connection")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("not comparable")


def test_a_response_that_breaks_the_server_ends_its_own_connection_only():
    """Whichever thread it was that built it."""

    def app(request: Request) -> Answer:
        if request["path"] == ["odd"]:
            return 200, "OK", {Odd("x"): "y"}, b""
        return echo(request)

    with serving(app) as server, connections(server, 6) as every:
        for one in every[:3]:
            assert one.get("/odd").status == 500
            assert one.closed
        for one in every[3:]:
            assert get(one, "/on") == b"/on"
        poll(lambda: len(server._handlers) == 3, what="no more than three are open")


def test_connections_come_and_go_at_any_point():
    """Broken off between and within requests, pipelined, or followed by rubbish."""
    whole = b"GET /%d HTTP/1.1\r\nhost: localhost\r\n\r\n"

    def misbehave(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(15):
            with socket.create_connection(address, TIMEOUT) as sock:
                for _ in range(chance.randrange(4)):
                    sock.sendall(whole % seed)
                    assert sock.recv(65536).startswith(b"HTTP/1.1 200 OK")
                kind = chance.randrange(4)
                if kind == 1:
                    sock.sendall((whole % seed)[: chance.randrange(1, 30)])
                elif kind == 2:
                    sock.sendall(whole % seed * 3)
                    sock.recv(10)
                elif kind == 3:
                    sock.sendall(b"rubbish\r\n\r\n")
                    while sock.recv(65536):
                        pass

    with (
        serving(echo, head_timeout=1) as server,
        connections(server, 4) as every,
        ThreadPoolExecutor(12) as threads,
    ):
        address = address_of(server)
        jobs = [threads.submit(misbehave, seed) for seed in range(8)]
        jobs += [
            threads.submit(ask_often, one, seed, 60) for seed, one in enumerate(every)
        ]
        for job in jobs:
            job.result(TIMEOUT)


def test_a_socket_closed_by_the_app_is_nobody_elses():
    """Its descriptor comes again with the next connection; the old one must not."""
    socks: list[socket.socket] = []

    class App:
        def on_connect(self, session: dict[str, Any], sock: socket.socket) -> bool:
            socks.append(sock)
            return True

        def __call__(self, request: Request) -> Answer:
            return echo(request)

    with serving(App(), timeout=3) as server:
        with connections(server, 4) as every:
            ports = {one.sock.getsockname()[1] for one in every[1:3]}
            for sock in socks:
                if sock.getpeername()[1] in ports:
                    sock.close()
            for seed in range(3):
                with connections(server, 2) as new:
                    for one in (*new, every[0], every[3]):
                        ask_often(one, seed, 5)
        poll(lambda: not server._handlers, what="the end of all connections")


WHOLE = b"GET /whole HTTP/1.1\r\nhost: localhost\r\n\r\n"
LARGE = WHOLE[:-2] + b"x: %b\r\n\r\n"


@pytest.mark.parametrize(
    ("before", "answers"),
    [
        pytest.param(b"", 1, id="alone"),
        pytest.param(
            b"POST /a HTTP/1.1\r\nhost: localhost\r\ncontent-length: 30000\r\n\r\n"
            + bytes(30_000),
            2,
            id="behind-a-body",
        ),
        pytest.param(
            LARGE % (b"y" * (8192 - len(LARGE) + 2)), 2, id="behind-a-whole-buffer"
        ),
    ],
)
def test_nothing_that_came_is_overlooked(before: bytes, answers: int):
    """Neither a request that came together with another, nor the end of the peer."""
    with (
        serving(echo, timeout=TIMEOUT) as server,
        connections(server, 3) as every,
        socket.create_connection(address_of(server), TIMEOUT) as sock,
    ):
        for one in every:  # so that there are others, busy ones
            assert get(one, "/busy") == b"/busy"
        sock.sendall(WHOLE)
        assert sock.recv(65536).endswith(b"/whole")
        sock.sendall(before + WHOLE)
        sock.shutdown(socket.SHUT_WR)
        begun = time.monotonic()
        data = b"".join(iter(lambda: sock.recv(65536), b""))
        assert data.count(b"HTTP/1.1 200 OK") == answers
        assert time.monotonic() - begun < TIMEOUT / 2


@pytest.mark.parametrize("is_tls", [False, True])
def test_a_peer_that_the_app_throws_out_gives_its_place_back(is_tls: bool):
    """By its socket, which the app has from on_connect, between two requests."""

    class App:
        def on_connect(self, session: dict[str, Any], sock: socket.socket) -> bool:
            self.sock = sock
            return True

        def __call__(self, request: Request) -> Answer:
            # The answer finds the socket shut or closed, and so does the next read.
            if is_tls:
                self.sock.shutdown(socket.SHUT_RDWR)
            else:
                self.sock.close()
            return 200, "OK", {}, None

    transport = Transport("ipv4+tls" if is_tls else "ipv4", Path())
    with transport.serve(App(), max_connections=2) as server:
        for _ in range(5):
            with transport.make_client(server).connect() as connection:
                with contextlib.suppress(DeguError, OSError):
                    connection.get("/")
                poll(lambda: not server._handlers, what="the place to be free")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_fork_takes_nothing_away():
    """A child that an app forked has the descriptors too, and leaves."""

    def app(request: Request) -> Answer:
        if request["uri"] == "/fork":
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            assert os.waitpid(pid, 0) == (pid, 0)
        return echo(request)

    with serving(app) as server, connections(server, 4) as every:
        for seed, one in enumerate(every):
            assert get(one, "/fork") == b"/fork"
            for other in every:
                ask_often(other, seed, 3)


def test_no_request_waits_for_a_busy_peer():
    """A connection that always has the next request ready leaves room for others."""
    stop = threading.Event()

    def hurry(connection: Connection) -> int:
        count = 0
        while not stop.is_set():
            assert get(connection, "/hurry") == b"/hurry"
            count += 1
        return count

    with (
        serving(echo) as server,
        connections(server, 4) as every,
        ThreadPoolExecutor(3) as threads,
    ):
        jobs = [threads.submit(hurry, one) for one in every[:3]]
        for _ in range(100):
            assert get(every[3], "/calm") == b"/calm"
        stop.set()
        assert min(job.result(TIMEOUT) for job in jobs) > 0


def test_descriptors_stay_where_they_were():
    """What the threads share is closed with the last connection."""
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("counted through /proc")
    with serving(echo) as server:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            with connections(server, 5) as every:
                ask_often(every[0], 0, 5)
            poll(lambda: not server._handlers, what="the end of all connections")
        assert len(os.listdir("/proc/self/fd")) == before

"""Faults of the network, of files and of neighbours, at every point of an exchange.

Each case ends with a plain GET on a new connection, which has to be answered at once,
and with a look whether the threads and descriptors of the case are gone. How long the
slowest GET took is printed at the end (``-s`` shows it).
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import pytest

from degu.base import ChunkedOutput, FileOutput, Output
from degu.client import Client, SSLClient
from degu.errors import (
    ClosedConnectionError,
    DeguError,
    EmptyHeadError,
    PeerError,
    TLSError,
    UnderFlowError,
)
from degu.server import Server, SSLServer
from tests import soak
from tests.conftest import TIMEOUT_FACTOR, poll
from tests.soak import drain, reset
from tests.transports import shared_pki

HOST = "127.0.0.1"
TIMEOUT = 5.0
AT_ONCE = 0.1  # seconds for a plain GET
OK = b"HTTP/1.1 200 OK\r\n"
on_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="needs /proc or /dev/full"
)


class Site:
    """The app of this suite, and what became of its requests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: list[str] = []
        self.bodies: list[bytes] = []
        self.errors: list[BaseException] = []

    def __call__(self, request: dict[str, Any]) -> tuple[int, str, dict[str, Any], Any]:
        self.seen.append(request["uri"])
        page = getattr(self, "page_" + "_".join(request["path"]), self.page_)
        try:
            body = page(request["body"])
        except (DeguError, OSError) as error:
            self.errors.append(error)
            raise
        return 200, "OK", {}, body

    def page_(self, body: Any) -> Any:
        return b"hello"

    def page_read(self, body: Any) -> Any:
        self.bodies.append(b"".join(body) if body is not None else b"")
        return b"read"

    def page_full(self, body: Any) -> Any:
        with open("/dev/full", "wb", buffering=0) as file:
            body.write_to(file)

    def page_late(self, body: Any) -> Any:
        time.sleep(0.1)  # an app that works: the answer comes when it is done
        return b"late"

    def page_large(self, body: Any) -> Any:
        return Output((b"x" * 65536 for _ in range(2000)), 65536 * 2000)

    def page_truncated(self, body: Any) -> Any:
        path = self.folder / "truncated"
        path.write_bytes(b"x" * 3_000_000)
        file = path.open("rb")
        output = FileOutput(file)
        os.truncate(path, 1_000_000)
        return output

    def page_shrinking(self, body: Any) -> Any:
        path = self.folder / "shrinking"
        path.write_bytes(b"x" * 100_000)

        def chunks() -> Iterator[bytes]:
            with path.open("rb", buffering=0) as file:
                yield file.read(50_000)
                os.truncate(path, 0)
                if not (more := file.read(50_000)):
                    raise OSError(errno.EIO, "the file went away")
                yield more

        return ChunkedOutput(chunks())


class Stand:
    """A server with its app, and raw connections to it."""

    def __init__(self, server: Server, site: Site) -> None:
        self.server = server
        self.site = site
        self.slowest = 0.0

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, TIMEOUT * TIMEOUT_FACTOR)

    @property
    def address(self) -> Any:
        return self.server.address

    def exchange(self, data: bytes) -> bytes:
        """Send `data`, say that this was all, and read to the end."""
        with self.connect() as sock:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            return drain(sock)

    def check_alive(self) -> None:
        """A plain GET on a new connection is answered at once (best of three)."""
        seconds = min(self.time_get() for _ in range(3))
        self.slowest = max(self.slowest, seconds)
        assert seconds < AT_ONCE * TIMEOUT_FACTOR

    def time_get(self) -> float:
        begin = time.monotonic()
        with self.connect() as sock:
            sock.sendall(soak.GET)
            assert sock.recv(65536).startswith(OK)
        return time.monotonic() - begin

    def check_empty(self) -> None:
        """All that served connections is gone."""
        poll(lambda: not self.server._handlers, 5, "the end of all connections")


@pytest.fixture(scope="module")
def module_stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    site = Site(tmp_path_factory.mktemp("faults"))
    server = Server((HOST, 0), site, timeout=TIMEOUT, max_connections=1000)
    with server.running(grace=0.5):
        stand = Stand(server, site)
        yield stand
        print(f"\nslowest plain GET after a fault: {stand.slowest * 1000:.2f} ms")


@pytest.fixture
def stand(module_stand: Stand, caplog: pytest.LogCaptureFixture) -> Iterator[Stand]:
    """A server for the module; each test begins and ends with none of its traces."""
    site = module_stand.site
    site.seen, site.bodies, site.errors = [], [], []
    threads, files = threading.active_count(), count_files()
    yield module_stand
    module_stand.check_alive()
    module_stand.check_empty()
    poll(lambda: threading.active_count() <= threads, 5, "the end of the threads")
    poll(lambda: count_files() <= files, 5, "the end of the descriptors")


def count_files() -> int:
    return len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0


# --- a client that goes away --------------------------------------------------

REQUESTS = {"get": soak.GET, "length": soak.POST, "chunked": soak.CHUNKED}


def close_write(sock: socket.socket) -> bytes:
    """FIN, with an ear for the answer."""
    sock.shutdown(socket.SHUT_WR)
    return drain(sock)


def close_both(sock: socket.socket) -> None:
    """FIN, and RST to whoever answers."""
    sock.close()


@pytest.mark.parametrize("leave", [close_write, close_both, reset])
@pytest.mark.parametrize("name", REQUESTS)
def test_client_leaves_at_each_byte_of_a_request(
    stand: Stand, name: str, leave: Callable[[socket.socket], bytes | None]
):
    """No half request is ever taken for a whole one, and no answer goes to it."""
    data = REQUESTS[name]
    for size in range(len(data) + 1):
        with stand.connect() as sock:
            sock.sendall(data[:size])
            answer = leave(sock)
        if answer is not None:
            assert answer.startswith(OK) if size == len(data) else not answer
        if size % 10 == 0:
            stand.check_alive()
    stand.check_empty()
    assert len(stand.site.bodies) <= 1
    assert set(stand.site.bodies) <= {b"twenty bytes of body", b"hello"}
    assert all(isinstance(error, UnderFlowError) for error in stand.site.errors)
    if name != "get" and leave is close_write:
        assert len(stand.site.bodies) == 1  # the control: the whole one was taken
        assert stand.site.errors


@pytest.mark.parametrize(
    ("data", "answers"),
    [
        (soak.GET, 1),
        (soak.POST, 1),
        (soak.CHUNKED, 1),
        (soak.GET.replace(b" / ", b" /late "), 1),
        (soak.GET + soak.POST + soak.GET, 3),
    ],
)
def test_half_closed_client_gets_its_answers(stand: Stand, data: bytes, answers: int):
    """A client that shuts its sending side after the requests still hears it all."""
    assert stand.exchange(data).count(OK) == answers


@pytest.mark.parametrize("leave", [close_both, reset])
@pytest.mark.parametrize("after", [0, 1, 1000, 100_000])
def test_client_leaves_in_the_middle_of_an_answer(
    stand: Stand, leave: Callable[[socket.socket], None], after: int
):
    """What is being sent ends at once, and not when a deadline does."""
    sock = stand.connect()
    sock.sendall(soak.LARGE)
    while after > 0:
        after -= len(sock.recv(after))
    leave(sock)
    begin = time.monotonic()
    stand.check_empty()
    assert time.monotonic() - begin < TIMEOUT / 2


@pytest.mark.parametrize("garbage", soak.FOREIGN)
@pytest.mark.parametrize("before", [0, 1, 3])
def test_garbage_around_pipelined_requests(stand: Stand, garbage: bytes, before: int):
    """What came before it is answered, it is refused, what comes after is not seen."""
    hidden = soak.GET.replace(b" / ", b" /hidden ")
    answer = stand.exchange(soak.GET * before + garbage + hidden)
    assert answer.count(OK) == before
    assert answer.count(b"HTTP/1.1 ") == before + 1
    refusal = answer[answer.rindex(b"HTTP/1.1 ") :]
    assert refusal[9:12] in (b"400", b"505")
    assert refusal.endswith(b"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
    assert "/hidden" not in stand.site.seen


# --- files and disks ----------------------------------------------------------


@on_linux
def test_full_disk_on_the_server_is_a_500(
    stand: Stand, caplog: pytest.LogCaptureFixture
):
    """The client hears of it, the log says why, and the next client is served."""
    with Client(stand.address).connect() as connection:
        response = connection.put("/full", {}, b"x" * 3_000_000)
        assert (response.status, response.body) == (500, None)
        assert connection.closed
    assert [one.errno for one in stand.site.errors if isinstance(one, OSError)] == [
        errno.ENOSPC
    ]
    assert "No space left on device" in caplog.text


@on_linux
def test_full_disk_on_the_client_is_its_own_error(stand: Stand):
    """The error of the file gets out; the rest of the body is never the next answer."""
    with Client(stand.address).connect() as connection:
        response = connection.get("/large")
        with open("/dev/full", "wb", buffering=0) as file:
            assert response.body is not None
            with pytest.raises(OSError, match="No space left"):
                response.body.write_to(file)
        with pytest.raises(ValueError, match="expected the body of the last response"):
            connection.get("/")
    with Client(stand.address).connect() as connection:
        assert connection.get("/").status == 200


@pytest.mark.parametrize("uri", ["/truncated", "/shrinking"])
def test_file_that_shrinks_while_it_is_served(stand: Stand, uri: str, caplog: Any):
    """The answer breaks off, which a client notices; nothing is made up or appended."""
    with Client(stand.address).connect() as connection:
        response = connection.get(uri)
        assert response.body is not None
        with pytest.raises(UnderFlowError):
            response.body.read()
        assert connection.closed
    poll(lambda: "a response broke off" in caplog.text, 5, "the log")


def test_file_that_shrinks_while_it_is_uploaded(stand: Stand, tmp_path: Path):
    """The client raises, and the server's app knows that the body is not whole."""
    path = tmp_path / "upload"
    path.write_bytes(b"x" * 3_000_000)
    output = FileOutput(path.open("rb"))
    os.truncate(path, 1_000_000)
    with Client(stand.address).connect() as connection:
        with pytest.raises(UnderFlowError, match="1000000 of 3000000"):
            connection.put("/read", {}, output)
        assert connection.closed
        with pytest.raises(ClosedConnectionError):
            connection.get("/")
    poll(lambda: stand.site.errors, 5, "the app's error")
    assert isinstance(stand.site.errors[0], UnderFlowError)
    assert not stand.site.bodies


# --- a server that goes away --------------------------------------------------

HELLO = b"hello world"
ANSWERS = {
    "length": OK + b"content-length: 11\r\n\r\n" + HELLO,
    "chunked": OK
    + b"transfer-encoding: chunked\r\n\r\n6\r\nhello \r\n5;a=b\r\nworld\r\n0\r\n"
    + b"x-sum: 7\r\n\r\n",
    "interim": b"HTTP/1.1 100 Continue\r\n\r\n"
    + OK
    + b"content-length: 11\r\n\r\n"
    + HELLO,
}


class Ending:
    """A server that sends the first `size` bytes of an answer, and goes away."""

    def __init__(self, data: bytes, leave: Callable[[socket.socket], Any]) -> None:
        self.data = data
        self.size = 0
        self.leave = leave
        self.listener = socket.create_server((HOST, 0))
        self.address = self.listener.getsockname()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            with sock, suppress(OSError):
                head = b""
                while not head.endswith(b"\r\n\r\n"):
                    head += sock.recv(65536)
                sock.sendall(self.data[: self.size])
                self.leave(sock)

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(TIMEOUT)


@pytest.mark.parametrize("leave", [close_both, reset])
@pytest.mark.parametrize("name", ANSWERS)
def test_server_leaves_at_each_byte_of_an_answer(
    name: str, leave: Callable[[socket.socket], None]
):
    """Half an answer is always an error of the one tree, and the connection is dead."""
    with closing(Ending(ANSWERS[name], leave)) as server:
        client = Client(server.address, timeout=TIMEOUT)
        for size in range(len(ANSWERS[name])):
            server.size = size
            connection = client.connect()
            with pytest.raises(PeerError) as caught:
                read_all(connection.get("/").body)
            assert connection.closed
            if size == 0 and leave is close_both:
                assert type(caught.value) is EmptyHeadError
        if leave is close_both:  # the control; a RST may take what came before it
            server.size += 1
            with client.connect() as connection:
                assert read_all(connection.get("/").body) == HELLO


def read_all(body: Any) -> bytes:
    assert body is not None
    data: bytes = body.read()
    return data


def test_server_that_resets_an_unlimited_body_is_not_its_end():
    """Where a body ends with the connection, only FIN ends it, and RST breaks it."""
    for leave in (close_both, reset):
        with closing(Ending(OK + b"\r\n" + HELLO, leave)) as server:
            server.size = 1000
            with Client(server.address, timeout=TIMEOUT).connect() as connection:
                if leave is reset:
                    with pytest.raises(PeerError):
                        read_all(connection.get("/").body)
                else:
                    assert read_all(connection.get("/").body) == HELLO
                assert connection.closed


# --- many at once -------------------------------------------------------------


def drip(stand: Stand, begin: bytes, stop: threading.Event) -> None:
    """Hold a place by a byte at a time, and take a new one whenever it is lost."""
    while not stop.is_set():
        with suppress(OSError), stand.connect() as sock:
            sock.sendall(begin)
            while not stop.wait(0.05):
                sock.sendall(b"x")


@pytest.mark.parametrize(
    "begin",
    [
        pytest.param(b"", id="silent"),
        pytest.param(b"GET /", id="head"),
        pytest.param(soak.POST[: soak.POST.index(b"twenty")] + b"t", id="body"),
    ],
)
@pytest.mark.parametrize("attackers", [8, 24])
def test_slow_drip_on_all_places_does_not_starve_a_client(
    tmp_path: Path, begin: bytes, attackers: int
):
    """An honest client gets a place long before the deadline of a head.

    Eight attackers hold each place there is; 24 also fight for it all the time.
    """
    head_timeout = 10.0
    server = Server(
        (HOST, 0), Site(tmp_path), max_connections=8, head_timeout=head_timeout
    )
    stop = threading.Event()
    with server.running(grace=0.1):
        stand = Stand(server, Site(tmp_path))
        threads = [
            threading.Thread(target=drip, args=(stand, begin, stop))
            for _ in range(attackers)
        ]
        for thread in threads:
            thread.start()
        try:
            poll(lambda: len(server._handlers) == 8, 5, "all places to be taken")
            seconds = soak.ask(stand.address[1], head_timeout)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    print(f"\n{attackers} attackers on 8 places: served in {seconds:.2f} seconds")
    assert seconds < head_timeout / 2


def test_tls_client_leaves_at_each_point_of_a_handshake(tmp_path: Path):
    """Whatever part of a handshake came, the thread ends and the next one is served."""
    pki = shared_pki()
    hello = read_hello()
    server = SSLServer(pki.server_sslconfig, (HOST, 0), Site(tmp_path))
    with server.running(grace=0.5):
        client = SSLClient(pki.client_sslconfig, server.address, timeout=TIMEOUT)
        for size in range(0, len(hello) + 1, 16):
            for leave in (close_both, reset):
                sock = socket.create_connection((HOST, server.address[1]), TIMEOUT)
                sock.sendall(hello[:size])
                leave(sock)
        poll(lambda: not server._handlers, 5, "the end of all connections")
        with client.connect() as connection:
            assert connection.get("/").status == 200


def read_hello() -> bytes:
    """What a TLS client says first."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="a").do_handshake()
    return outgoing.read()


def test_tls_client_is_not_starved_by_handshakes_that_never_end(tmp_path: Path):
    """A place is taken from a peer that does not get on with its handshake."""
    pki = shared_pki()
    server = SSLServer(
        pki.server_sslconfig, (HOST, 0), Site(tmp_path), max_connections=8
    )
    with server.running(grace=0.1), ExitStack() as stack:
        for _ in range(8):
            port = server.sock.getsockname()[1]
            stack.enter_context(socket.create_connection((HOST, port), TIMEOUT))
        poll(lambda: len(server._handlers) == 8, 5, "all places to be taken")
        client = SSLClient(pki.client_sslconfig, server.address, timeout=TIMEOUT)

        def ask() -> bool:
            with suppress(PeerError, TLSError), client.connect() as connection:
                return connection.get("/").status == 200
            return False

        poll(ask, 5, "an answer to the honest client")


class Counting(Site):
    """An app that counts the connections it is asked about."""

    connects = 0

    def on_connect(self, session: Any, sock: Any) -> bool:
        self.connects += 1
        return True


@on_linux
@pytest.mark.parametrize("leave", [close_both, reset])
def test_connection_that_left_before_it_was_served_costs_no_thread(
    tmp_path: Path, leave: Callable[[socket.socket], None]
):
    """In a flood of those who only connect, nobody waits behind them for long."""
    site = Counting(tmp_path)
    server = Server((HOST, 0), site)
    stand = Stand(server, site)
    for _ in range(50):
        leave(stand.connect())
    with server.running():
        stand.check_alive()
    assert site.connects == 3


@on_linux
def test_server_without_descriptors_recovers():
    """EMFILE in accept is survived: once descriptors come back, it serves again."""
    with soak.started("--files", "40") as (pid, port):
        assert soak.ask(port) < TIMEOUT
        waiting = [socket.create_connection((HOST, port), TIMEOUT) for _ in range(60)]
        poll(lambda: soak.Usage.measure(pid).files >= 39, 5, "the last descriptor")
        for sock in waiting:
            sock.close()
        soak.ask(port)
        assert min(soak.ask(port) for _ in range(3)) < AT_ONCE * TIMEOUT_FACTOR


COUNT = int(os.environ.get("DEGU_TEST_SOAK", "3000"))
DROPPED = int(os.environ.get("DEGU_TEST_SOAK", "10000"))


@on_linux
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("count", "actions"), [(DROPPED, soak.DROPS), (COUNT, soak.ACTIONS)]
)
def test_hostile_connections_leave_nothing_behind(count: int, actions: Any):
    """Thousands, opened and dropped or worse: descriptors, threads, memory are flat."""
    # As many before as after: the memory of the busiest moment stays with the process.
    for _ in range(3):
        report = soak.run(count, warm_up=count, actions=actions)
        print(f"\n{report}")
        # A moment that was busier still takes some more, once; a leak does each time.
        if report.after.memory - report.before.memory < 8192:
            break
    assert report.after.files == report.before.files
    assert report.after.threads == report.before.threads
    # A leak of a connection each would be a kilobyte at least.
    assert report.after.memory - report.before.memory < 8192
    assert report.last < AT_ONCE * TIMEOUT_FACTOR
    if actions is soak.ACTIONS:
        # Who only connects and leaves fills the kernel's queue; there all wait in line.
        assert report.waits[len(report.waits) // 2] < AT_ONCE * TIMEOUT_FACTOR

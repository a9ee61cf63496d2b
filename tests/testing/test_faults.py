"""`degu.testing.faults`: each kind fails as it says, for a client that is not ours."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import ssl
import sys
import threading
import time
import urllib.error
import urllib.request
from typing import Any

import pytest
import trustme

from degu.testing.faults import (
    ANSWER,
    CLIENT_FAULTS,
    SERVER_FAULTS,
    FaultyClient,
    FaultyServer,
    player,
)
from degu.testing.faults.messages import CHUNK_FLAWS
from degu.testing.leaks import check_leaks

BODY = b"0123456789" * 100
posix = pytest.mark.skipif(os.name != "posix", reason="needs Unix sockets")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="as Linux queues")


@pytest.fixture(autouse=True)
def clean():
    """Whatever a test does here, nothing is left."""
    with check_leaks():
        yield


@contextlib.contextmanager
def asking(server, method="GET", body=None, timeout=5.0):
    """One request by http.client: its answer, with the connection still open."""
    host, port = server.address[:2]
    conn = http.client.HTTPConnection(host, port, timeout=timeout)
    with contextlib.closing(conn):
        conn.request(method, "/", body)
        with conn.getresponse() as response:
            yield response


def ask(server, method="GET", body=None, timeout=5.0):
    with asking(server, method, body, timeout) as response:
        return response.status, response.read()


def read_all(sock):
    data = b""
    with contextlib.suppress(ConnectionError):
        while more := sock.recv(65536):
            data += more
    return data


def ask_raw(server, request=b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"):
    """Send raw bytes and the end of the stream; read until the server is done."""
    with socket.create_connection(server.address, timeout=5) as sock:
        sock.sendall(request)
        # A reset may be quicker.
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
        return read_all(sock)


# --- The table of kinds -------------------------------------------------------------


@pytest.mark.parametrize("table", [SERVER_FAULTS, CLIENT_FAULTS])
def test_every_kind_is_described_for_the_docs(table):
    """A name, a sentence and typed options, enough to print the table."""
    for kind, fault in table.items():
        assert fault.kind == kind
        assert fault.summary.endswith((".", ")"))
        kinds = {type(value) for value in fault.options.values()}
        assert kinds <= {int, float, str, bytes}
        assert set(fault.choices) <= set(fault.options)


@pytest.mark.parametrize("make", [FaultyServer, lambda k: FaultyClient(k, ("", 1))])
def test_an_unknown_kind_names_the_known_ones(make):
    """A slip of the pen is told with the choices."""
    with pytest.raises(ValueError, match=r"fault 'rest'; known: .*reset"):
        make("rest")


@pytest.mark.parametrize(
    ("kind", "options", "error", "message"),
    [
        ("reset", {"afer": 1}, TypeError, "no option 'afer'; it has: after"),
        ("silent", {"after": 1}, TypeError, "no option 'after'; it has: none"),
        ("reset", {"after": "1"}, TypeError, "expected int, got '1'"),
        ("reset", {"after": True}, TypeError, "expected int, got True"),
        ("reset", {"after": -1}, ValueError, "expected 0 or more, got -1"),
        ("reset", {"after": 10**6}, ValueError, "the answer has only"),
        ("drip", {"interval": "1"}, TypeError, "expected float, got '1'"),
        ("drip", {"interval": -0.1}, ValueError, "expected 0 or more"),
        ("drip", {"size": 0}, ValueError, "expected more than 0"),
        ("garbage", {"data": "x"}, TypeError, "expected bytes, got 'x'"),
        ("bad_chunk", {"flaw": "x"}, ValueError, "expected one of size, "),
        ("refuse", {"times": 1}, ValueError, "always: got times=1"),
    ],
)
def test_options_are_checked(kind, options, error, message):
    """Unknown names, other types and values out of range are refused at once."""
    with pytest.raises(error, match=message):
        FaultyServer(kind, **options)


def test_a_whole_number_is_a_number_of_seconds():
    """The control: int where float is wanted, and a difference below 0."""
    assert FaultyServer("drip", interval=1).options["interval"] == 1
    assert FaultyServer("wrong_length", difference=-1).options == {"difference": -1}


# --- Servers ------------------------------------------------------------------------

READ_ERRORS: dict[str, tuple[dict[str, Any], type[Exception]]] = {
    "close": ({"after": 0}, http.client.RemoteDisconnected),
    "reset": ({"after": 0}, ConnectionResetError),
    "half_close": ({"after": 0}, http.client.RemoteDisconnected),
    "silent": ({}, TimeoutError),
    "late": ({"delay": 60.0}, TimeoutError),
    "drip": ({"interval": 60.0}, TimeoutError),
    "wrong_length": ({"difference": 1}, http.client.IncompleteRead),
    "bad_chunk": ({"flaw": "size"}, http.client.IncompleteRead),
    "bad_status": ({}, http.client.BadStatusLine),
    "garbage": ({}, http.client.BadStatusLine),
    "head_bomb": ({"fields": 200}, http.client.HTTPException),
}


@pytest.mark.parametrize("kind", READ_ERRORS)
def test_a_client_sees_the_failure(kind):
    """Python's own client raises just the error that the kind is made for."""
    options, error = READ_ERRORS[kind]
    with FaultyServer(kind, **options) as server, pytest.raises(error):
        ask(server, timeout=0.3)
    (connection,) = server.connections
    assert connection.requests == 1
    assert connection.received.startswith(b"GET / HTTP/1.1\r\n")
    assert connection.ended_by in ("us", "peer")


@pytest.mark.parametrize("kind", READ_ERRORS)
def test_with_times_all_is_well_afterwards(kind):
    """The control: the same server answers rightly when the fault is used up."""
    options, error = READ_ERRORS[kind]
    with FaultyServer(kind, times=1, **options) as server:
        with pytest.raises(error):
            ask(server, timeout=0.3)
        assert ask(server) == (200, BODY)
        assert ask(server, "POST", b"x" * 100_000) == (200, BODY)


@pytest.mark.parametrize("kind", ["close", "reset", "half_close"])
@pytest.mark.parametrize("after", [1, 100, len(ANSWER)])
def test_the_fault_comes_at_the_chosen_byte(kind, after):
    """Exactly `after` bytes arrive."""
    with FaultyServer(kind, after=after) as server:
        assert ask_raw(server) == ANSWER[:after]


def test_a_reset_is_no_close():
    """After a close the stream ends; after a reset reading fails."""
    for kind, ends in [("close", True), ("reset", False)]:
        with (
            FaultyServer(kind, after=10) as server,
            socket.create_connection(server.address, timeout=5) as sock,
        ):
            sock.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            ended = contextlib.nullcontext()
            with ended if ends else pytest.raises(ConnectionResetError):
                while sock.recv(100):
                    pass


def test_a_refusing_server_refuses():
    """The connection is refused, again and again, on a port of its own."""
    with FaultyServer("refuse") as server:
        for _ in range(3):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(server.address, timeout=5)
        assert server.connections == []


@on_linux
def test_connecting_to_a_full_server_hangs():
    """The connection is neither accepted nor refused."""
    with FaultyServer("full") as server, pytest.raises(TimeoutError):
        socket.create_connection(server.address, timeout=0.3)


def test_a_deaf_server_takes_nothing():
    """A large request can't be sent."""
    with FaultyServer("deaf") as server, pytest.raises(TimeoutError):
        ask(server, "POST", b"x" * 20_000_000, timeout=0.3)


def test_a_slow_reader_takes_a_little():
    """The request is taken at the chosen pace."""
    with (
        FaultyServer("slow_reader", interval=0.01, size=10) as server,
        pytest.raises(TimeoutError),
    ):
        ask(server, "POST", b"x" * 20_000_000, timeout=0.3)
    assert 0 < server.connections[0].received_size < 1_000_000


def test_a_late_answer_is_late_and_right():
    """It takes as long as it says, on a connection that persists."""
    with FaultyServer("late", delay=0.2) as server:
        begin = time.monotonic()
        assert ask(server) == (200, BODY)
        assert time.monotonic() - begin >= 0.2


def test_a_dripping_answer_is_complete():
    """All bytes arrive, the first ones at once."""
    with FaultyServer("drip", interval=0.001, size=5, after=900) as server:
        begin = time.monotonic()
        assert ask(server) == (200, BODY)
        assert time.monotonic() - begin >= (len(ANSWER) - 900) / 5 * 0.001


@pytest.mark.parametrize(("difference", "length"), [(5, 1005), (-5, 995)])
def test_a_wrong_length_is_off_by_the_difference(difference, length):
    """The announced length is not that of the body."""
    with FaultyServer("wrong_length", difference=difference) as server:
        head, _, body = ask_raw(server).partition(b"\r\n\r\n")
    assert b"content-length: %d" % length in head
    assert body == BODY


@pytest.mark.parametrize("flaw", SERVER_FAULTS["bad_chunk"].choices["flaw"])
def test_every_flaw_of_a_chunk_is_sent(flaw):
    """What arrives is chunked and has the flaw."""
    with FaultyServer("bad_chunk", flaw=flaw) as server:
        head, _, body = ask_raw(server).partition(b"\r\n\r\n")
    assert b"transfer-encoding: chunked" in head
    assert body == CHUNK_FLAWS[flaw]


RAW: dict[str, tuple[dict[str, Any], bytes]] = {
    "bad_length": ({"value": b"-1"}, b"\r\ncontent-length: -1\r\n"),
    "both_lengths": ({}, b"content-length: 3\r\ntransfer-encoding: chunked\r\n"),
    "bad_status": ({"line": b"HTTP/3 200 OK"}, b"HTTP/3 200 OK\r\ncontent-length"),
    "extra": ({}, ANSWER + ANSWER),
    "bad_gzip": ({}, b"content-encoding: gzip\r\n\r\nthis is not gzip"),
    "garbage": ({"data": b"\x00\xff"}, b"\x00\xff"),
    "interim_flood": ({"count": 3, "status": 102}, b"HTTP/1.1 102 Wait\r\n\r\n" * 3),
    "head_bomb": ({"fields": 7, "size": 5}, b"x-bomb: xxxxx\r\n" * 7),
    "redirect_loop": ({"location": b"/x"}, b"302 Found\r\ncontent-length: 0\r\nloc"),
}


@pytest.mark.parametrize("kind", RAW)
def test_the_bytes_are_those_of_the_kind(kind):
    """What comes over the wire has the fault; a right server's answer has not."""
    options, expected = RAW[kind]
    with FaultyServer(kind, **options) as server:
        assert expected in ask_raw(server)
    with FaultyServer("late", delay=0.0) as server:
        assert ask_raw(server) == ANSWER


@pytest.mark.parametrize(
    ("kind", "options"), [("interim_flood", {}), ("endless_body", {"size": 1000})]
)
def test_a_flood_goes_on_until_somebody_ends_it(kind, options):
    """Ten megabytes come, and stopping stops it."""
    with (
        FaultyServer(kind, **options) as server,
        socket.create_connection(server.address, timeout=5) as sock,
    ):
        sock.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        received = 0
        while received < 10_000_000:
            received += len(sock.recv(1_000_000))
        begin = time.monotonic()
        server.stop()
        assert time.monotonic() - begin < 2


def test_a_busy_server_is_busy_as_often_as_it_says():
    """503 three times by default, over several connections, then 200."""
    with FaultyServer("busy", retry_after=7) as server:
        with asking(server) as response:
            assert response.status == 503
            assert response.headers["retry-after"] == "7"
        assert [ask(server)[0] for _ in range(3)] == [503, 503, 200]
    with FaultyServer("busy", times=1) as server:
        assert [ask(server)[0] for _ in range(2)] == [503, 200]
    with FaultyServer("busy", times=0) as server:
        assert [ask(server)[0] for _ in range(5)] == [503] * 5


def test_a_redirect_loop_is_noticed_by_a_client_that_counts():
    """The client of the standard library gives up."""
    with FaultyServer("redirect_loop") as server:
        error = pytest.raises(urllib.error.HTTPError, match="infinite loop")
        with error as caught:
            urllib.request.urlopen(server.url, timeout=5)
        caught.value.close()


def test_a_stale_connection_fails_at_the_second_request():
    """The first answer promises a connection that does not persist."""
    with FaultyServer("stale") as server:
        conn = http.client.HTTPConnection("127.0.0.1", server.address[1], timeout=5)
        with contextlib.closing(conn):
            conn.request("GET", "/")
            assert conn.getresponse().read() == BODY
            # The end of the stream is there, or comes after another request.
            with contextlib.suppress(ConnectionError):
                conn.request("GET", "/")
                assert conn.sock.recv(1) == b""


def test_an_early_answer_comes_before_the_body():
    """413 and the end, with a large body unread."""
    with FaultyServer("early_answer") as server:
        head = b"POST / HTTP/1.1\r\ncontent-length: 1000000\r\n\r\n"
        assert ask_raw(server, head).startswith(b"HTTP/1.1 413 ")
        assert server.connections[0].received_size == len(head)


def test_a_tls_alert_fails_the_handshake():
    """The client names the alert."""
    context = ssl.create_default_context()
    with (
        FaultyServer("tls_alert", code=49) as server,
        socket.create_connection(server.address, timeout=5) as sock,
        pytest.raises(ssl.SSLError, match="ACCESS_DENIED"),
    ):
        context.wrap_socket(sock, server_hostname="x")
    assert server.url.startswith("https:")


def test_every_kind_of_server_is_tested_here():
    """No kind is in the table without a test above."""
    others = {"refuse", "full", "deaf", "slow_reader", "busy", "stale", "tls_alert"}
    tested = {*READ_ERRORS, *RAW, *others, "endless_body", "early_answer"}
    assert tested == set(SERVER_FAULTS)


@pytest.mark.parametrize("kind", SERVER_FAULTS)
def test_every_kind_of_server_stops_in_time(kind):
    """With a client that waits, one that is connected, and twice."""
    server = FaultyServer(kind).start()
    with contextlib.ExitStack() as stack:
        if kind not in ("refuse", "full"):
            for data in (b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", b"GET"):
                sock = socket.create_connection(server.address, timeout=5)
                stack.enter_context(sock).sendall(data)
            wait_until(lambda: len(server.connections) == 2)
        begin = time.monotonic()
        server.stop()
        server.stop()
        assert time.monotonic() - begin < 2
    assert all(connection.ended_by for connection in server.connections)


def test_a_server_may_be_used_once():
    """Starting again is an error; stopping without a start is none."""
    with FaultyServer("silent") as server, pytest.raises(RuntimeError, match="before"):
        server.start()
    FaultyServer("silent").stop()


def test_the_url_is_that_of_the_address():
    """IPv4 and IPv6; the port is the real one."""
    with FaultyServer("late", delay=0.0) as server:
        assert server.url == f"http://127.0.0.1:{server.address[1]}/"
        with urllib.request.urlopen(server.url, timeout=5) as response:
            assert response.read() == BODY
    with FaultyServer("close", address=("::1", 0)) as server:
        assert server.url == f"http://[::1]:{server.address[1]}/"


@posix
def test_a_unix_socket_is_removed(tmp_path):
    """It serves, and its file goes with it; its URL has the quoted path."""
    path = str(tmp_path / "s")
    with FaultyServer("close", address=path, after=9) as server:
        assert server.url == "http+unix://" + path.replace("/", "%2F") + "/"
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)
            sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert read_all(sock) == ANSWER[:9]
    assert not os.path.exists(path)


def test_an_address_that_is_taken_leaves_nothing():
    """The error of the bind comes through."""
    with FaultyServer("silent") as server, pytest.raises(OSError, match="in use"):
        FaultyServer("silent", address=server.address).start()


@pytest.fixture(scope="module")
def sslctxs():
    """(server's, client's)."""
    ca = trustme.CA(key_type=trustme.KeyType.ECDSA)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("localhost", key_type=trustme.KeyType.ECDSA).configure_cert(server)
    client = ssl.create_default_context()
    ca.configure_trust(client)
    return server, client


@pytest.mark.parametrize("kind", ["reset", "close", "half_close"])
def test_faults_happen_inside_of_tls(kind, sslctxs):
    """The handshake succeeds, the chosen bytes come, then the fault."""
    with FaultyServer(kind, sslctx=sslctxs[0], after=50) as server:
        raw = socket.create_connection(server.address, timeout=5)
        sock = sslctxs[1].wrap_socket(raw, server_hostname="localhost")
        with sock:
            sock.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            assert read_all(sock) == ANSWER[:50]


def test_a_handshake_that_never_comes_does_not_delay_the_end(sslctxs):
    """Stopping wakes a thread that waits for a client's hello."""
    with (
        FaultyServer("close", sslctx=sslctxs[0]) as server,
        socket.create_connection(server.address, timeout=5),
    ):
        wait_until(lambda: server.connections)
        begin = time.monotonic()
        server.stop()
        assert time.monotonic() - begin < 2


# --- Clients ------------------------------------------------------------------------


def wait_until(condition, within=10.0):
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.002)


class Listener:
    """A server that accepts, keeps what it receives, and answers when told to."""

    def __init__(self, family=socket.AF_INET, address=("127.0.0.1", 0)):
        self.sock = socket.socket(family)
        self.sock.bind(address)
        self.sock.listen(200)
        self.address = self.sock.getsockname()
        self.received = b""
        self.accepted = []
        self.errors = []
        self.thread = threading.Thread(target=self.run)

    def run(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.sock.accept()
                connection.settimeout(0.05)
                self.accepted.append(connection)

    def read(self, size=1_000_000):
        """What came on the first connection until it pauses, ends or breaks."""
        wait_until(lambda: self.accepted)
        with contextlib.suppress(TimeoutError):
            while len(self.received) < size:
                try:
                    data = self.accepted[0].recv(65536)
                except ConnectionResetError as error:
                    self.errors.append(error)
                    break
                if not data:
                    self.errors.append(EOFError())
                    break
                self.received += data
        return self.received

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *args):
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.thread.join()
        self.sock.close()
        for connection in self.accepted:
            connection.close()


HEAD = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nhost: localhost\r\n"
UPLOAD = POST + b"content-length: 1000\r\n\r\n"

SENDS: dict[str, tuple[dict[str, Any], bytes]] = {
    "half_head": ({}, HEAD[: len(HEAD) // 2]),
    "silent": ({}, b""),
    "drip_head": ({"interval": 0.001, "size": 5}, HEAD),
    "drip_body": ({"interval": 0.001, "size": 50}, UPLOAD + b"x" * 1000),
    "half_body": ({}, UPLOAD + b"x" * 500),
    "slow_reader": ({}, HEAD),
    "half_close": ({}, UPLOAD + b"x" * 1000),
    "garbage": ({"data": b"\x00"}, b"\x00"),
    "head_bomb": ({"fields": 2, "size": 1}, HEAD[:-2] + b"x-bomb: x\r\n" * 2 + b"\r\n"),
    "long_target": ({"size": 3}, HEAD.replace(b"/ ", b"/xxx ", 1)),
    "bad_length": ({"value": b"+5"}, POST + b"content-length: +5\r\n\r\nhello"),
    "both_lengths": (
        {},
        b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n"
        b"5\r\nhello\r\n0\r\n\r\n",
    ),
    "expect_never": ({}, b"content-length: 1000\r\nexpect: 100-continue\r\n\r\n"),
    "pipeline": ({"count": 5}, HEAD * 5),
    "close": ({}, UPLOAD + b"x" * 500),
    "reset": ({}, UPLOAD + b"x" * 500),
    "bad_chunk": ({}, b"transfer-encoding: chunked\r\n\r\nxyz\r\nhello\r\n0\r\n\r\n"),
}


@pytest.mark.parametrize("kind", SENDS)
def test_a_server_receives_the_bytes_of_the_kind(kind):
    """What arrives is what the kind says, and no more."""
    options, expected = SENDS[kind]
    with Listener() as server, FaultyClient(kind, server.address, **options) as client:
        wait_until(lambda: expected in server.read())
        assert server.received.endswith(expected)
        (connection,) = client.connections
        assert connection.sent_size == len(server.received)
        assert client.error == ""


@pytest.mark.parametrize(
    ("kind", "ends"),
    [
        ("close", EOFError),
        ("half_close", EOFError),
        ("reset", ConnectionResetError),
        ("half_body", None),
    ],
)
def test_a_client_ends_its_side_in_the_way_of_the_kind(kind, ends):
    """End of stream, reset, or neither."""
    with Listener() as server, FaultyClient(kind, server.address) as client:
        wait_until(lambda: len(server.read()) >= 500 and (server.errors or not ends))
        assert [type(error) for error in server.errors] == ([ends] if ends else [])
        assert client.wait(5 if kind in ("close", "reset") else 0.05) is (
            kind in ("close", "reset")
        )


def test_waiting_tells_whether_the_server_hung_up():
    """False while the server bears with it, True when it closed, with its answer."""
    with Listener() as server, FaultyClient("half_head", server.address) as client:
        server.read(1)
        assert client.wait(0.05) is False
        server.accepted[0].sendall(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
        server.accepted[0].close()
        assert client.wait(5) is True
    (connection,) = client.connections
    assert connection.received == b"HTTP/1.1 408 Request Timeout\r\n\r\n"
    assert connection.ended_by == "peer"
    assert connection.seconds >= 0.05


def test_a_deaf_client_fills_the_buffers():
    """It goes on to send, and the answers have no place to go."""
    with Listener() as server, FaultyClient("deaf", server.address):
        server.read(10_000)
        assert server.received.startswith(HEAD * 2)
        server.accepted[0].settimeout(0.2)
        with pytest.raises(TimeoutError):
            server.accepted[0].sendall(b"x" * 20_000_000)


def test_a_slow_client_takes_a_little():
    """The answer is taken at the chosen pace."""
    options: dict[str, Any] = {"interval": 0.01, "size": 10}
    with (
        Listener() as server,
        FaultyClient("slow_reader", server.address, **options) as client,
    ):
        server.read(len(HEAD))
        server.accepted[0].settimeout(0.3)
        with pytest.raises(TimeoutError):
            server.accepted[0].sendall(b"x" * 20_000_000)
        assert 0 < client.connections[0].received_size < 10_000


def test_many_connections_are_open_at_once():
    """All of them, silent; the client is done when the server closed them all."""
    with Listener() as server, FaultyClient("many", server.address, count=50) as client:
        wait_until(lambda: len(server.accepted) == 50)
        assert client.wait(0.02) is False
        for connection in server.accepted:
            connection.close()
        assert client.wait(5)
        assert len(client.connections) == 50


def test_churning_connects_and_closes():
    """Each connection ends before the next."""
    with (
        Listener() as server,
        FaultyClient("churn", server.address, count=30) as client,
    ):
        assert client.wait(5)
        wait_until(lambda: len(server.accepted) == 30)
        assert {connection.ended_by for connection in client.connections} == {"us"}


def test_every_kind_of_client_is_tested_here():
    """No kind is in the table without a test above."""
    assert {*SENDS, "deaf", "many", "churn"} == set(CLIENT_FAULTS)


@pytest.mark.parametrize("kind", CLIENT_FAULTS)
def test_every_kind_of_client_stops_in_time(kind):
    """While the server says nothing at all, and twice."""
    with Listener() as server:
        client = FaultyClient(kind, server.address).start()
        wait_until(lambda: server.accepted)
        begin = time.monotonic()
        client.stop()
        client.stop()
        assert time.monotonic() - begin < 2
        with pytest.raises(RuntimeError, match="before"):
            client.start()


def test_a_refused_client_says_so():
    """The error is in the record; stopping is as usual."""
    with (
        FaultyServer("refuse") as server,
        FaultyClient("garbage", server.address) as client,
    ):
        assert client.wait(5)
        assert "ConnectionRefusedError" in client.error
        assert client.connections[0].error == client.error


@posix
def test_a_client_reaches_a_unix_socket(tmp_path):
    """Its address is a path."""
    path = str(tmp_path / "s")
    with (
        Listener(socket.AF_UNIX, path) as server,
        FaultyClient("pipeline", path, count=2, uri="/x", host="h"),
    ):
        expected = b"GET /x HTTP/1.1\r\nhost: h\r\n\r\n" * 2
        wait_until(lambda: server.read() == expected)
    os.unlink(path)


def test_a_client_misbehaves_inside_of_tls(sslctxs):
    """A faulty client and a faulty server meet, over TLS."""
    with (
        FaultyServer("close", sslctx=sslctxs[0], after=20) as server,
        FaultyClient("pipeline", server.address, sslctx=sslctxs[1]) as client,
    ):
        assert client.wait(5)
        assert client.connections[0].received == ANSWER[:20]
        assert server.connections[0].received.startswith(HEAD)


def test_a_fault_that_can_not_be_stopped_is_told(monkeypatch):
    """A thread that does not end within the bound makes `stop` an error."""
    monkeypatch.setattr(player, "STOP_SECONDS", 0.1)
    event = threading.Event()
    client = FaultyClient("silent", ("127.0.0.1", 1))

    def block():
        event.wait()

    client._start_thread(block)
    with pytest.raises(RuntimeError, match="did not stop"):
        client.stop()
    event.set()
    client.stop()

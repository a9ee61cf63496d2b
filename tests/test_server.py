"""degu.server: one suite over every transport, and what happens where it goes wrong."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import resource
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from degu import base, limits
from degu.base import ChunkedOutput, FileOutput, Input, Output, make_output_from_input
from degu.errors import DeguError, PeerError, TLSError
from degu.rgi import Validator
from degu.server import Server, SSLServer
from tests.conftest import poll
from tests.transports import (
    NAMES,
    TIMEOUT,
    Transport,
    ask,
    connect,
    exchange,
    read_all,
    read_response,
    reset,
    shared_pki,
)

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
OK: Any = (200, "OK", {}, None)

ROOT = Path(__file__).parents[1]


@pytest.fixture(params=NAMES)
def transport(request: pytest.FixtureRequest, tmp_path: Path) -> Transport:
    """Each kind of address in turn, plain and over TLS."""
    return Transport(request.param, tmp_path)


@pytest.fixture(params=["ipv4", "ipv4+tls"])
def plain_and_tls(request: pytest.FixtureRequest, tmp_path: Path) -> Transport:
    """One address, plain and over TLS, where the address makes no difference."""
    return Transport(request.param, tmp_path)


def hello(request: Any) -> Any:
    """The simplest app."""
    return 200, "OK", {"hello": "world"}, None


def echo(request: Any) -> Any:
    """Give back what came, as it came."""
    body = request["body"]
    fields = ("content-type", "x-test")
    headers = {k: v for k, v in request["headers"].items() if k in fields}
    return 200, "OK", headers, make_output_from_input(body)


def swallow(request: Any) -> Any:
    """Read the body and say how much it was."""
    body = request["body"]
    size = 0 if body is None else sum(map(len, body))
    return 200, "OK", {}, b"%d" % size


@contextlib.contextmanager
def serve(app: Any, **options: Any) -> Iterator[Server]:
    """A server on IPv4, where the transport makes no difference."""
    with Server(("127.0.0.1", 0), app, **options).running() as server:
        yield server


def get_is_answered(server: Server) -> bool:
    return exchange(server, GET).startswith(b"HTTP/1.1 ")


# --- behaviours over all transports ----------------------------------------------


def test_what_an_app_returns_is_what_a_client_gets(transport: Transport):
    """D2: status, reason, headers and a None body arrive as they were returned."""
    with transport.serve(hello) as server, closing(transport.make_client(server)) as c:
        for _ in range(3):
            assert c.get("/") == (200, "OK", {"hello": "world"}, None)


@contextlib.contextmanager
def closing(client: Any) -> Iterator[Any]:
    try:
        yield client
    finally:
        client.close()


def test_a_request_is_a_dict_of_the_documented_keys(transport: Transport):
    """Every key, with its type and what it says about this transport."""
    seen: list[Any] = []

    def app(request: Any) -> Any:
        seen.append({**request})
        return OK

    with (
        transport.serve(Validator(app)) as server,
        closing(transport.make_client(server)) as client,
    ):
        client.get("/a/b%20c/?k=v&w", {"x-test": "yes"})
        (request,) = seen
        assert set(request) == {
            *("method", "uri", "script", "path", "query", "headers", "body"),
            *("client", "server", "scheme", "session", "credentials"),
            *("ssl_cipher", "ssl_peercert"),
        }
        assert request["method"] == "GET"
        assert request["uri"] == "/a/b%20c/?k=v&w"
        assert (request["script"], request["path"]) == ([], ["a", "b%20c", ""])
        assert request["query"] == "k=v&w"
        assert request["headers"] == {"host": client.host, "x-test": "yes"}
        assert request["body"] is None
        assert request["server"] == server.address
        assert request["scheme"] == transport.scheme
        assert request["session"] == {}
        check_identity(transport, request)


def check_identity(transport: Transport, request: Any) -> None:
    """Who the client is: an address, a process, a certificate."""
    if transport.is_unix:
        assert request["credentials"] == (os.getpid(), os.getuid(), os.getgid())
    else:
        assert request["credentials"] is None
        assert len(request["client"]) == len(transport.address)
    if transport.is_tls:
        name, protocol, bits = request["ssl_cipher"]
        assert protocol == "TLSv1.3"
        assert bits >= 128
        assert name.startswith("TLS_")
        assert "client.test" in str(request["ssl_peercert"])
    else:
        assert request["ssl_cipher"] is None
        assert request["ssl_peercert"] is None


@pytest.mark.parametrize("kind", ["bytes", "sized", "chunked", "file"])
def test_bodies_go_both_ways(transport: Transport, kind: str, tmp_path: Path):
    """Sized, chunked (with extensions and trailers) and files, echoed as they came."""
    data = bytes(range(256)) * 300
    path = tmp_path / "file"
    path.write_bytes(data)
    chunks = [("k=v", data[:70_000]), (None, data[70_000:])]
    with (
        transport.serve(echo) as server,
        closing(transport.make_client(server)) as client,
    ):
        for _ in range(2):
            body: Any = {
                "bytes": lambda: data,
                "sized": lambda: Output([data[:7], data[7:]], len(data)),
                "chunked": lambda: ChunkedOutput(iter(chunks), {"x-sum": "7"}),
                "file": lambda: FileOutput(path.open("rb")),
            }[kind]()
            response = client.put("/", {"x-test": "1"}, body)
            assert response.headers["x-test"] == "1"
            if kind == "chunked":
                assert list(response.body.chunks()) == [*chunks, (None, b"")]
                assert response.body.trailers == {"x-sum": "7"}
            else:
                assert response.body.content_length == len(data)
                assert response.body.read() == data


def test_every_kind_of_response_body_arrives(transport: Transport, tmp_path: Path):
    """Bytes-like, sized, chunked and files; a small one and one of many packets."""
    data = os.urandom(300_000)
    path = tmp_path / "file"
    path.write_bytes(data)

    def app(request: Any) -> Any:
        kind, size = request["path"][0], int(request["path"][1])
        part = data[:size]
        body: Any = {
            "bytes": lambda: part,
            "bytearray": lambda: bytearray(part),
            "memoryview": lambda: memoryview(part),
            "output": lambda: Output(iter([part[:1], part[1:]]), size),
            "chunked": lambda: ChunkedOutput(iter([part])),
            "file": lambda: FileOutput(path.open("rb"), size),
            "input": lambda: Input(io.BytesIO(part), size),
        }[kind]()
        return 200, "OK", {}, body

    with (
        transport.serve(app) as server,
        closing(transport.make_client(server)) as client,
    ):
        for kind in (
            *("bytes", "bytearray", "memoryview", "output"),
            *("chunked", "file", "input"),
        ):
            for size in (1, len(data)):
                assert client.get(f"/{kind}/{size}").body.read() == data[:size], kind
        assert client.get("/bytes/0").body is None


def test_one_connection_serves_many_requests_with_one_session(transport: Transport):
    """Keep-alive: the session is the connection's, and another one's is another."""

    def app(request: Any) -> Any:
        session = request["session"]
        session["count"] = session.get("count", 0) + 1
        return 200, "OK", {"count": str(session["count"])}, None

    with transport.serve(app) as server:
        client = transport.make_client(server)
        with client.connect() as one, client.connect() as two:
            assert [one.get("/").headers["count"] for _ in range(3)] == ["1", "2", "3"]
            assert two.get("/").headers["count"] == "1"


def test_pipelined_requests_are_answered_in_order(transport: Transport):
    """Two requests and a body in one packet: nothing of one is read as another."""

    def app(request: Any) -> Any:
        body = request["body"]
        said = body.read() if body else b""
        return 200, "OK", {"x-uri": request["uri"]}, said

    with transport.serve(app) as server, transport.connect(server) as sock:
        sock.sendall(
            b"POST /1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello"
            b"POST /2 HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"3\r\nabc\r\n0\r\n\r\n"
            b"GET /3 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )
        with sock.makefile("rb") as file:
            for uri, said in ((b"/1", b"hello"), (b"/2", b"abc"), (b"/3", b"")):
                head, body = read_response(file)
                assert b"x-uri: " + uri in head
                assert body == said
            assert file.read() == b""


def test_connection_close_is_obeyed_and_said(transport: Transport):
    """D11: the response says so as well, and the connection is at its end."""
    with transport.serve(hello) as server, transport.connect(server) as sock:
        sock.sendall(GET)
        file = sock.makefile("rb")
        assert b"connection" not in read_response(file)[0]
        sock.sendall(GET[:-2] + b"Connection: Keep-Alive, CLOSE\r\n\r\n")
        assert b"\r\nconnection: close" in read_response(file)[0]
        assert file.read() == b""
        file.close()


def test_a_broken_rule_is_answered_by_a_bare_status(transport: Transport):
    """D5: status line, no detail, an end; and the server goes on for others."""
    with transport.serve(hello) as server:
        with transport.connect(server) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n" + GET)
            assert read_all(sock) == (
                b"HTTP/1.1 400 Bad Request\r\n"
                b"content-length: 0\r\nconnection: close\r\n\r\n"
            )
        with closing(transport.make_client(server)) as client:
            assert client.get("/").status == 200


def test_an_app_that_raises_is_a_bare_500(transport: Transport, caplog):
    """The traceback is in the log alone; the next connection is served."""

    def app(request: Any) -> Any:
        if request["path"] == ["bad"]:
            raise KeyError("secret")
        return OK

    with transport.serve(app) as server:
        with transport.connect(server) as sock:
            sock.sendall(GET.replace(b"/ ", b"/bad ") + GET)
            answer = read_all(sock)
        assert answer.startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
        assert b"secret" not in answer
        assert answer.count(b"HTTP/1.1") == 1
        with closing(transport.make_client(server)) as client:
            assert client.get("/").status == 200
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.exc_info
    assert "KeyError: 'secret'" in caplog.text


def test_an_idle_connection_ends_after_the_timeout(transport: Transport):
    """Without an answer, as nothing was asked."""
    with (
        transport.serve(hello, timeout=0.1) as server,
        transport.connect(server) as sock,
    ):
        sock.sendall(GET)
        with sock.makefile("rb") as file:
            assert read_response(file)[0].startswith(b"HTTP/1.1 200")
            started = time.monotonic()
            with contextlib.suppress(OSError):  # TLS without a last word
                assert file.read() == b""
            assert time.monotonic() - started < 3.0


def test_a_head_that_drips_is_told_so(transport: Transport):
    """D6: 408 after `head_timeout` in total, however many bytes came meanwhile."""
    with (
        transport.serve(hello, head_timeout=0.2) as server,
        transport.connect(server) as sock,
    ):
        started = time.monotonic()
        sock.sendall(b"GET / HTTP/1.1\r\n")
        with contextlib.suppress(OSError):
            while time.monotonic() - started < 2.0:
                sock.sendall(b"x")
                if select.select([sock], [], [], 0.02)[0]:
                    break
        assert read_all(sock).startswith(b"HTTP/1.1 408 Request Timeout\r\n")
        assert time.monotonic() - started < 2.0


def test_a_client_that_goes_away_is_no_error(transport: Transport, caplog):
    """S18: an RST in the middle of a body leaves one quiet line and the server up."""

    def app(request: Any) -> Any:
        return 200, "OK", {}, request["body"].read()

    with transport.serve(app) as server:
        sock = transport.connect(server)
        sock.sendall(
            b"PUT / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nhel"
        )
        reset(sock)
        with closing(transport.make_client(server)) as client:
            assert client.put("/", None, b"x").body.read() == b"x"
    assert [r for r in caplog.records if r.levelno > logging.INFO] == []


def test_a_response_that_breaks_off_is_noticed(transport, caplog, wait_until):
    """A source with too few or too many bytes ends in an error at the client."""

    def app(request: Any) -> Any:
        pieces = [b"abc"] * int(request["path"][0])
        return 200, "OK", {}, Output(iter(pieces), 6)

    with transport.serve(app) as server:
        client = transport.make_client(server)
        with client.connect() as connection:
            assert connection.get("/2").body.read() == b"abcabc"
        for count, read in ((1, 3), (3, 6)):
            connection = client.connect()
            body = connection.get(f"/{count}").body
            if count == 1:
                with pytest.raises(DeguError, match=f"after {read} of 6 bytes"):
                    body.read()
            else:
                assert body.read() == b"abcabc"
            wait_until(lambda c=connection: c.closed)
    assert caplog.text.count("a response broke off") == 2
    assert "UnderFlowError" in caplog.text
    assert "OverFlowError" in caplog.text


def test_shutdown_lets_a_request_in_flight_finish(transport, wait_until):
    """D9: idle connections close at once, one that is being answered is answered."""
    begun, go_on = threading.Event(), threading.Event()

    def app(request: Any) -> Any:
        if request["path"] == ["slow"]:
            begun.set()
            assert go_on.wait(TIMEOUT)
        return OK

    server = transport.make_server(app)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    client = transport.make_client(server)
    idle = client.connect()
    idle.get("/")
    answers: list[Any] = []
    slow = client.connect()
    asking = threading.Thread(target=lambda: answers.append(slow.get("/slow")))
    asking.start()
    assert begun.wait(TIMEOUT)
    results: list[bool] = []
    stopping = threading.Thread(target=lambda: results.append(server.shutdown(TIMEOUT)))
    stopping.start()
    wait_until(lambda: idle.closed)
    assert stopping.is_alive()
    with pytest.raises(OSError, match=r"refused|No such file"):
        transport.connect(server).close()
    go_on.set()
    for thread in (asking, stopping, serving):
        thread.join(TIMEOUT)
    assert answers[0][:2] == (200, "OK")
    assert answers[0].headers == {"connection": "close"}
    assert results == [True]
    assert slow.closed


def test_on_connect_decides_who_may_speak(transport: Transport):
    """Anything but True closes the connection, an error too; the session is kept."""

    class App:
        word: Any = True

        def on_connect(self, session: Any, sock: Any) -> Any:
            session["peer"] = sock.getsockname()
            if self.word == "raise":
                raise KeyError("mine")
            return self.word

        def __call__(self, request: Any) -> Any:
            assert request["session"]["peer"] == request["server"]
            return OK

    app = App()
    with transport.serve(app) as server:
        for word in (True, False, None, 1, "yes", "raise"):
            app.word = word
            client = transport.make_client(server)
            if word is True:
                assert client.get("/").status == 200
            else:
                with pytest.raises(PeerError):
                    client.get("/")
            client.close()


# --- addresses -------------------------------------------------------------------


def test_a_socket_file_is_private_and_goes_with_its_server(tmp_path: Path):
    """D10, D22: mode 0600 whatever the umask is, another by option; unlinked."""
    path = str(tmp_path / "x.sock")
    before = os.umask(0)
    try:
        with Server(path, hello).running() as server:
            assert server.address == path
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        assert not os.path.exists(path)
        os.umask(0o077)
        with Server(path, hello, socket_mode=0o666).running():
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o666
    finally:
        os.umask(before)
    assert not os.path.exists(path)


def test_a_port_can_be_bound_again_at_once():
    """D10: connections in TIME_WAIT do not keep a server from coming back."""
    with serve(hello) as server:
        assert ask(server, GET[:-2] + b"Connection: close\r\n\r\n")
        address = server.address
    with Server(address, hello).running() as server:
        assert get_is_answered(server)


def test_a_listening_socket_is_taken_over(tmp_path: Path):
    """What socket activation hands over is served, and closed afterwards."""
    listener = socket.create_server(("127.0.0.1", 0))
    with Server(listener, hello).running() as server:
        assert server.sock is listener
        assert server.address == listener.getsockname()
        assert get_is_answered(server)
    assert listener.fileno() == -1


def test_a_socket_that_does_not_listen_is_refused():
    """The error names the argument and shows the socket."""
    with (
        socket.socket() as sock,
        pytest.raises(ValueError, match="address: expected a listening socket"),
    ):
        Server(sock, hello)
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
        pytest.raises((ValueError, OSError)),
    ):
        Server(sock, hello)


def test_an_address_in_use_is_an_os_error_that_shows_it():
    """S28: nothing is published before it listens; who comes second hears why."""
    server = Server(("127.0.0.1", 0), hello)
    with connect(server):  # accepted by the kernel from the constructor on
        pass
    with pytest.raises(OSError, match=f"{server.address[1]}"):
        Server(server.address, hello)
    server.close()


@pytest.mark.parametrize(
    "address",
    [None, 5, 8080, ("127.0.0.1",), ("127.0.0.1", "80"), ["127.0.0.1", 80], "x.sock"],
)
def test_a_bad_address_is_refused(address: Any):
    """The error names the argument."""
    with pytest.raises((TypeError, ValueError), match="address"):
        Server(address, hello)


@pytest.mark.parametrize("app", [None, 5, "app", OK])
def test_an_app_that_cannot_be_called_is_refused(app: Any):
    """The error names the argument and shows what came."""
    with pytest.raises(TypeError, match="app: expected a callable, got"):
        Server(("127.0.0.1", 0), app)


@pytest.mark.parametrize("name", ["on_connect", "on_refused"])
def test_a_hook_that_cannot_be_called_is_refused(name: str):
    """It is looked at when the server is made, not when somebody connects."""

    def app(request: Any) -> Any:
        return OK

    setattr(app, name, "yes")
    with pytest.raises(TypeError, match=rf"app\.{name}: expected a callable"):
        Server(("127.0.0.1", 0), app)


# --- one exchange ----------------------------------------------------------------


def test_a_none_body_is_answered_without_waiting():
    """D2: content-length 0 is said, so that nobody waits for the end."""
    with serve(hello) as server, connect(server) as sock:
        sock.sendall(GET)
        with sock.makefile("rb") as file:
            head, _ = read_response(file)
    assert head == b"HTTP/1.1 200 OK\r\nhello: world\r\ncontent-length: 0"


@pytest.mark.parametrize(
    ("status", "reason"), [(204, "No Content"), (304, "Not Modified")]
)
def test_a_status_without_content_has_no_length(status: int, reason: str):
    """D11: 204 and 304 end with their head, and the connection goes on."""
    with serve(lambda request: (status, reason, {}, None)) as server:
        head = b"HTTP/1.1 %d %b\r\n\r\n" % (status, reason.encode())
        assert exchange(server, GET * 2) == head * 2


def test_head_is_answered_without_a_body():
    """The length that a GET would have may be said; the connection goes on."""

    def app(request: Any) -> Any:
        assert request["method"] == "HEAD"
        return 200, "OK", {"content-length": 5}, None

    with serve(app) as server:
        head = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"
        assert exchange(server, GET.replace(b"GET", b"HEAD") * 2) == head * 2


def test_a_length_of_zero_is_no_body_for_the_app():
    """D16: the header is dropped; nothing has to be read; the connection goes on."""

    def app(request: Any) -> Any:
        assert request["body"] is None
        assert "content-length" not in request["headers"]
        return OK

    with serve(app) as server:
        data = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
        assert exchange(server, data * 2).count(b"HTTP/1.1 200 OK") == 2
        data = data.replace(b"POST", b"GET")
        assert exchange(server, data * 2).count(b"HTTP/1.1 200 OK") == 2


def test_an_app_that_reads_exactly_the_length_keeps_the_connection():
    """D16: sized reads up to the end consume a body."""

    def app(request: Any) -> Any:
        assert request["body"].read(2) == b"he"
        assert request["body"].read(3) == b"llo"
        return OK

    with serve(app) as server:
        data = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello"
        assert exchange(server, data * 3).count(b"HTTP/1.1 200 OK") == 3


@pytest.mark.parametrize("read", [0, 2])
@pytest.mark.parametrize("framing", ["sized", "chunked"])
def test_a_body_that_was_not_read_is_never_the_next_request(framing: str, read: int):
    """D5: the answer arrives, then the connection ends; nothing hides in a body."""
    hidden = b"GET /hidden HTTP/1.1\r\nHost: localhost\r\n\r\n"
    seen = []

    def app(request: Any) -> Any:
        seen.append(request["uri"])
        request["body"].read(read)
        return OK

    with serve(app) as server:
        if framing == "sized":
            framed = b"Content-Length: %d\r\n\r\n%b" % (len(hidden), hidden)
        else:
            framed = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (
                len(hidden),
                hidden,
            )
        data = b"POST /x HTTP/1.1\r\nHost: localhost\r\n" + framed
        answer = ask(server, data + GET)
    assert answer.count(b"HTTP/1.1") == 1
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nconnection: close\r\n" in answer
    assert seen == ["/x"]


def test_a_large_body_that_was_not_read_does_not_eat_the_answer():
    """The last answer is not lost to a reset while the client still sends."""

    def app(request: Any) -> Any:
        return 413, "Content Too Large", {}, b"too much"

    size = 3_000_000
    with serve(app) as server, connect(server) as sock:
        sock.sendall(
            b"PUT / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % size
        )
        sock.sendall(bytes(size))
        answer = read_all(sock)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert answer.endswith(b"too much")


class TestExpect:
    """Expect: 100-continue (RFC 9110 §10.1.1)."""

    HEAD = (
        b"PUT / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n"
        b"Expect: 100-Continue\r\n\r\n"
    )
    CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

    def test_it_is_sent_when_the_app_reads(self):
        """D11: the client waits for it, then sends, and is answered."""
        with serve(swallow) as server, connect(server) as sock:
            for _ in range(2):
                sock.sendall(self.HEAD)
                assert sock.recv(4096) == self.CONTINUE
                sock.sendall(b"hello")
                assert sock.recv(4096).endswith(b"\r\n\r\n5")

    @pytest.mark.parametrize("kind", ["none", "bytes", "file"])
    def test_it_is_not_sent_when_the_app_answers_without_reading(self, kind, tmp_path):
        """D11: the refusal is the only answer, and the connection ends."""
        path = tmp_path / "file"
        path.write_bytes(b"no")

        def app(request: Any) -> Any:
            body: Any = {
                "none": lambda: None,
                "bytes": lambda: bytearray(b"no"),
                "file": lambda: FileOutput(path.open("rb")),
            }[kind]()
            return 403, "Forbidden", {}, body

        with serve(app) as server:
            answer = exchange(server, self.HEAD)
        assert answer.startswith(b"HTTP/1.1 403 Forbidden\r\n")
        assert b"\r\nconnection: close\r\n" in answer
        assert b"100" not in answer

    def test_it_is_sent_once_and_before_a_response_that_needs_the_body(self):
        """An echo reads while it writes; a 100 in the middle would be a riddle."""
        with serve(echo) as server, connect(server) as sock:
            sock.sendall(self.HEAD)
            answer = sock.recv(4096)
            assert answer.startswith(self.CONTINUE)
            sock.sendall(b"hello")
            sock.shutdown(socket.SHUT_WR)
            answer += read_all(sock)
        assert answer.count(self.CONTINUE) == 1
        assert answer.endswith(b"\r\n\r\nhello")

    def test_it_is_not_sent_where_the_body_is_already_there(self):
        """RFC 9110 §10.1.1 lets it be left out then."""
        with serve(swallow) as server:
            answer = exchange(server, self.HEAD + b"hello")
        assert answer.startswith(b"HTTP/1.1 200 OK")

    def test_a_body_over_the_cap_is_refused_before_it_is_sent(self):
        """413 instead of 100."""
        with serve(swallow, max_body_size=4) as server:
            answer = exchange(server, self.HEAD)
        assert answer.startswith(b"HTTP/1.1 413 Content Too Large\r\n")

    def test_another_expectation_is_refused(self):
        """417 (RFC 9110 §15.5.18)."""
        with serve(swallow) as server:
            answer = exchange(server, self.HEAD.replace(b"100-Continue", b"200-ok"))
        assert answer.startswith(b"HTTP/1.1 417 Expectation Failed\r\n")


def request_with(line: bytes = b"GET / HTTP/1.1", *fields: bytes) -> bytes:
    return b"\r\n".join([line, b"Host: localhost", *fields, b"", b""])


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (request_with(b"GET / HTTP/1.0"), 505),
        (request_with(b"PRI * HTTP/2.0"), 505),
        (b"GET /\r\n\r\n", 400),
        (request_with(b"GET  / HTTP/1.1"), 400),
        (request_with(b"get / HTTP/1.1"), 501),
        (request_with(b"TRACE / HTTP/1.1"), 501),
        (request_with(b"G\xc3\x89T / HTTP/1.1"), 400),
        (request_with(b"GET /../x HTTP/1.1"), 400),
        (request_with(b"GET /%2e%2e/x HTTP/1.1"), 400),
        (request_with(b"GET /" + b"x" * 9000 + b" HTTP/1.1"), 414),
        (request_with(b"GET * HTTP/1.1"), 400),
        (request_with(b"GET http://evil.example/ HTTP/1.1"), 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (request_with(b"GET / HTTP/1.1", b"Host: localhost"), 400),
        (request_with(b"GET / HTTP/1.1", b"a : b"), 400),
        (request_with(b"GET / HTTP/1.1", b" folded"), 400),
        (request_with(b"GET / HTTP/1.1", b"a: \x00"), 400),
        (request_with(b"GET / HTTP/1.1", b"a: \xe9"), 400),
        (request_with(b"GET / HTTP/1.1", b"a: b\rc"), 400),
        (request_with(b"GET / HTTP/1.1", *[b"a%d: b" % i for i in range(100)]), 431),
        (request_with(b"GET / HTTP/1.1", b"a: " + b"x" * 33_000), 431),
        (request_with(b"GET / HTTP/1.1", b"Content-Length: 5") + b"hello", 400),
        (request_with(b"DELETE / HTTP/1.1", b"Transfer-Encoding: chunked"), 400),
        (request_with(b"POST / HTTP/1.1", b"Content-Length: +5") + b"hello", 400),
        (request_with(b"POST / HTTP/1.1", b"Content-Length: 05") + b"hello", 400),
        (request_with(b"POST / HTTP/1.1", b"Content-Length: 0_5") + b"hello", 400),
        (request_with(b"POST / HTTP/1.1", b"Content-Length: 5, 5") + b"hello", 400),
        (request_with(b"POST / HTTP/1.1", b"Content-Length: " + b"9" * 17), 400),
        (
            request_with(
                b"POST / HTTP/1.1", b"Content-Length: 5", b"Content-Length: 5"
            ),
            400,
        ),
        (
            request_with(
                b"POST / HTTP/1.1", b"Content-Length: 5", b"Transfer-Encoding: chunked"
            ),
            400,
        ),
        (request_with(b"POST / HTTP/1.1", b"Transfer-Encoding: gzip, chunked"), 501),
        (request_with(b"POST / HTTP/1.1", b"Transfer-Encoding: chunked, gzip"), 400),
        (request_with(b"POST / HTTP/1.1", b"Transfer-Encoding: xchunked"), 400),
        (GET.replace(b"\r\n", b"\n"), 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"\r\n\r\n" + GET, 400),
    ],
)
def test_a_bad_head_is_answered_at_once(data: bytes, status: int):
    """S4, S11, S12, S19, S23: by a bare status, once, and without the app."""
    reached = []

    def app(request: Any) -> Any:
        reached.append(request)
        return OK

    with serve(app) as server:
        answer = ask(server, data)  # the connection stays open: no waiting for EOF
        assert answer.startswith(b"HTTP/1.1 %d " % status), answer
        assert answer.endswith(b"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        assert answer.count(b"HTTP/1.1") == 1
        assert reached == []
        assert get_is_answered(server)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"5\r\nhello\r\n0\r\n\r\n", 200),
        (b"+5\r\nhello\r\n0\r\n\r\n", 400),
        (b"5 \r\nhello\r\n0\r\n\r\n", 400),
        (b"5\nhello\r\n0\r\n\r\n", 400),
        (b"5\r\nhelloXX0\r\n\r\n", 400),
        (b"1000001\r\n", 413),
        (b"5\r\nhello\r\n6\r\nworld!\r\n0\r\n\r\n", 413),
        (b"0\r\nContent-Length: 5\r\n\r\n", 400),
    ],
)
def test_a_bad_chunk_is_answered_by_its_status(data: bytes, status: int, caplog):
    """The error passes through an app that does not catch it, without a traceback."""
    with serve(swallow, max_body_size=10) as server:
        answer = ask(
            server,
            request_with(
                b"POST / HTTP/1.1", b"Transfer-Encoding: chunked", b"Connection: close"
            )
            + data,
        )
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert answer.count(b"HTTP/1.1") == 1
    assert [r for r in caplog.records if r.levelno > logging.INFO] == []


def test_read_without_a_size_of_a_large_body_is_a_413():
    """S8: the app need not know of the cap."""

    def app(request: Any) -> Any:
        return 200, "OK", {}, request["body"].read()

    size = limits.MAX_READ_SIZE + 1
    with serve(app) as server:
        field = b"Content-Length: %d" % size
        answer = ask(server, request_with(b"POST / HTTP/1.1", field))
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_methods_can_be_chosen():
    """Others are not implemented; what is named is, also an unusual one."""
    with serve(hello, methods=["GET", "REPORT"]) as server:
        for method, status in ((b"GET", 200), (b"REPORT", 200), (b"POST", 501)):
            answer = exchange(server, request_with(method + b" / HTTP/1.1"))
            assert answer.startswith(b"HTTP/1.1 %d " % status)


def test_options_may_ask_for_the_whole_server():
    """Asterisk-form has an empty path, and only OPTIONS may use it."""

    def app(request: Any) -> Any:
        assert (request["uri"], request["path"], request["query"]) == ("*", [], None)
        return 204, "No Content", {"allow": "GET"}, None

    with serve(Validator(app)) as server:
        answer = exchange(server, request_with(b"OPTIONS * HTTP/1.1"))
    assert answer == b"HTTP/1.1 204 No Content\r\nallow: GET\r\n\r\n"


# --- apps that go wrong ----------------------------------------------------------


def raise_system_exit(request: Any) -> Any:
    sys.exit("no")


class Strange:
    """Something that is no value of a response, and can't even be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


FAULTS: list[Any] = [
    None,
    [],
    "OK",
    200,
    (200, "OK", {}),
    (200, "OK", {}, None, None),
    [200, "OK", {}, None],
    (True, "OK", {}, None),
    ("200", "OK", {}, None),
    (200.0, "OK", {}, None),
    (99, "OK", {}, None),
    (600, "OK", {}, None),
    (-200, "OK", {}, None),
    (200, None, {}, None),
    (200, b"OK", {}, None),
    (200, " OK", {}, None),
    (200, "OK\r\nx: y", {}, None),
    (200, "OK\r\n\r\nHTTP/1.1 200 OK", {}, None),
    (200, "O\x00K", {}, None),
    (200, "\u00d6K", {}, None),
    (200, "OK", None, None),
    (200, "OK", [("a", "b")], None),
    (200, "OK", {"A": "b"}, None),
    (200, "OK", {"a b": "c"}, None),
    (200, "OK", {"": "c"}, None),
    (200, "OK", {"a:": "c"}, None),
    (200, "OK", {b"a": "c"}, None),
    (200, "OK", {5: "c"}, None),
    (200, "OK", {"a": b"b"}, None),
    (200, "OK", {"a": 5}, None),
    (200, "OK", {"a": None}, None),
    (200, "OK", {"a": ["b"]}, None),
    (200, "OK", {"connection": 5}, None),
    (200, "OK", {"a": "b\r\nc: d"}, None),
    (200, "OK", {"a": "b\nc: d"}, None),
    (200, "OK", {"a": "b\r"}, None),
    (200, "OK", {"a": "\x00"}, None),
    (200, "OK", {"a": "\x7f"}, None),
    (200, "OK", {"a": "\u00e9"}, None),
    (200, "OK", {"a": "\u2028"}, None),
    (200, "OK", {"a": " b"}, None),
    (200, "OK", {"a": "b\t"}, None),
    (200, "OK", {"a\r\nb": "c"}, None),
    (200, "OK", {"set-cookie": ["a=b", "c\r\nd: e"]}, None),
    (200, "OK", {"content-length": 5}, None),
    (200, "OK", {"content-length": -1}, None),
    (200, "OK", {"content-length": True}, b"h"),
    (200, "OK", {"content-length": "5"}, b"hello"),
    (200, "OK", {"content-length": 9}, b"hello"),
    (200, "OK", {"content-length": 1}, b"hello"),
    (200, "OK", {"transfer-encoding": "chunked"}, b"hello"),
    (200, "OK", {"transfer-encoding": "chunked"}, None),
    (200, "OK", {"transfer-encoding": "gzip"}, None),
    (200, "OK", {f"a{i}": "b" for i in range(101)}, None),
    (200, "OK", {}, "text"),
    (200, "OK", {}, ["list"]),
    (200, "OK", {}, {"a": "b"}),
    (200, "OK", {}, 5),
    (200, "OK", {}, io.BytesIO(b"hello")),
    (200, "OK", {}, iter([b"hello"])),
    (200, "OK", {}, Strange()),
    (204, "No Content", {}, b"hello"),
    (304, "Not Modified", {}, b"hello"),
]


@pytest.mark.parametrize("number", range(len(FAULTS)))
def test_a_bad_response_is_a_bare_500(number: int, caplog):
    """D1, D3, D4: nothing of it reaches the wire; the log has the traceback."""
    with serve(lambda request: FAULTS[number]) as server:
        answer = ask(server, GET)
        assert answer == (
            b"HTTP/1.1 500 Internal Server Error\r\n"
            b"content-length: 0\r\nconnection: close\r\n\r\n"
        )
        assert get_is_answered(server)
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 2
    assert all(record.exc_info for record in errors)


@pytest.mark.parametrize(
    "body", [b"hello", ChunkedOutput([b"hello"]), Output([b"hello"], 5)]
)
def test_a_body_for_head_is_the_apps_mistake(body: Any):
    """What must not be sent is refused, not dropped in silence."""
    with serve(lambda request: (200, "OK", {}, body)) as server:
        answer = exchange(server, GET.replace(b"GET", b"HEAD"))
    assert answer.startswith(b"HTTP/1.1 500 ")


@pytest.mark.parametrize(
    "response",
    [
        (200, "OK", {"a": "b"}, None),
        (200, "OK", {"a": "\tb c\t".strip()}, None),
        (299, "Odd One", {"link": "</a>; rel=next", "a": '{x}@y!#$%&"'}, None),
        (200, "OK", {"set-cookie": ["a=b", "c=d"]}, None),
        (200, "OK", {"content-length": 5}, b"hello"),
        (200, "OK", {"empty": ""}, None),
        (200, "", {}, None),
    ],
)
def test_a_good_response_is_no_fault(response: Any, caplog):
    """D12, S16: the control of the faults above."""
    with serve(lambda request: response) as server:
        assert exchange(server, GET).startswith(b"HTTP/1.1 2")
    assert [r for r in caplog.records if r.levelno > logging.INFO] == []


def test_an_app_that_exits_is_a_500_too(caplog):
    """SystemExit, and what else is no `Exception`, ends no more than a connection."""
    with serve(raise_system_exit) as server:
        for _ in range(2):
            assert ask(server, GET).startswith(b"HTTP/1.1 500 ")
    assert caplog.text.count("SystemExit: no") == 2


def test_a_used_body_is_a_500(caplog):
    """An output body that serves every request is a mistake that is said in time."""
    body = Output([b"hello"], 5)
    with serve(lambda request: (200, "OK", {}, body)) as server:
        assert exchange(server, GET).endswith(b"hello")
        assert ask(server, GET).startswith(b"HTTP/1.1 500 ")
    assert "BodyClosedError" in caplog.text


def test_the_headers_of_an_app_are_not_changed():
    """D17: one dict can serve every response."""
    headers = {"a": "b"}
    with serve(lambda request: (200, "OK", headers, b"hello")) as server:
        exchange(server, GET * 2)
        exchange(server, GET[:-2] + b"Connection: close\r\n\r\n")
    assert headers == {"a": "b"}


def test_every_request_has_a_dict_of_its_own():
    """What an app writes into one request is not in the next."""

    def app(request: Any) -> Any:
        assert "mine" not in request
        assert "mine" not in request["headers"]
        request["mine"] = request["headers"]["mine"] = "x"
        request["path"].append("x")
        request["script"].append("x")
        return 200, "OK", {"n": str(len(request["path"]))}, None

    with serve(app) as server:
        assert exchange(server, GET * 3).count(b"n: 1") == 3


def test_a_source_that_raises_breaks_the_response_off(caplog):
    """The client can't take the part for the whole; the log says why."""

    def pieces() -> Iterator[bytes]:
        yield b"hello"
        raise KeyError("mine")

    with serve(lambda request: (200, "OK", {}, ChunkedOutput(pieces()))) as server:
        answer = exchange(server, GET)
        assert answer.endswith(b"\r\n\r\n5\r\nhello\r\n")
        assert get_is_answered(server)
    assert "KeyError: 'mine'" in caplog.text


def test_the_file_of_a_response_that_cannot_be_sent_is_closed(tmp_path: Path):
    """Whether the head is refused or the file is too short."""
    path = tmp_path / "file"
    path.write_bytes(b"hello")
    files: list[Any] = []

    def app(request: Any) -> Any:
        files.append(open(path, "rb"))  # noqa: SIM115
        headers = {"Bad": "name"} if request["path"] else {}
        return 200, "OK", headers, FileOutput(files[-1], 9)

    with serve(app) as server:
        assert exchange(server, GET).endswith(b"hello")
        assert ask(server, GET.replace(b"/ ", b"/x ")).startswith(b"HTTP/1.1 500")
    assert [file.closed for file in files] == [True, True]


# --- room ------------------------------------------------------------------------


class Slow:
    """An app whose requests wait until they are let go."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.go_on = threading.Event()

    def __call__(self, request: Any) -> Any:
        if request["path"] == ["slow"]:
            self.begun.release()
            assert self.go_on.wait(TIMEOUT)
        return OK


SLOW = GET.replace(b"/ ", b"/slow ")
FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\n"
    b"content-length: 0\r\nconnection: close\r\n\r\n"
)


def test_a_full_server_refuses_at_once_and_serves_whom_it_has(plain_and_tls, caplog):
    """S5: connection N+1 gets 503, is accepted after one closes; no one is lost."""
    app = Slow()
    with (
        plain_and_tls.serve(app, max_connections=2) as server,
        contextlib.ExitStack() as stack,
    ):
        busy = [stack.enter_context(plain_and_tls.connect(server)) for _ in range(2)]
        for sock in busy:
            sock.sendall(SLOW)
            assert app.begun.acquire(timeout=TIMEOUT)
        for _ in range(3):
            started = time.monotonic()
            with plain_and_tls.connect(server) as sock:
                assert read_all(sock) == FULL
            assert time.monotonic() - started < TIMEOUT / 2
        app.go_on.set()
        for sock in busy:
            assert sock.recv(4096).startswith(b"HTTP/1.1 200")
            sock.sendall(GET)
            assert sock.recv(4096).startswith(b"HTTP/1.1 200")
        busy[0].close()
        deadline = time.monotonic() + TIMEOUT
        while True:
            with plain_and_tls.connect(server) as sock:
                sock.sendall(GET)
                with contextlib.suppress(OSError):
                    if sock.recv(4096).startswith(b"HTTP/1.1 200"):
                        break
            assert time.monotonic() < deadline
    assert "the server is full" in caplog.text


def test_a_flood_at_the_limit_costs_no_threads():
    """S10: most of it is turned away at once, and the honest one is served on."""
    app = Slow()
    with (
        serve(app, max_connections=1) as server,
        connect(server) as busy,
        contextlib.ExitStack() as stack,
    ):
        busy.sendall(SLOW)
        assert app.begun.acquire(timeout=TIMEOUT)
        before = threading.active_count()
        crowd = [stack.enter_context(connect(server)) for _ in range(100)]
        assert threading.active_count() <= before + limits.MAX_REFUSALS
        assert [sock.recv(4096) for sock in crowd] == [FULL] * 100
        app.go_on.set()
        assert busy.recv(4096).startswith(b"HTTP/1.1 200")


def test_threads_of_others_take_no_room():
    """S9: what else runs in the process does not count as connections."""
    stop = threading.Event()
    others = [threading.Thread(target=stop.wait) for _ in range(20)]
    for thread in others:
        thread.start()
    with serve(hello, max_connections=2) as server, connect(server), connect(server):
        pass
    with serve(hello, max_connections=1) as server:
        assert get_is_answered(server)
    stop.set()
    for thread in others:
        thread.join()


def test_slow_beginners_make_room_for_an_honest_client(plain_and_tls: Transport):
    """D6: who never completed a head goes first; who did keeps his place."""
    with (
        plain_and_tls.serve(hello, max_connections=4) as server,
        contextlib.ExitStack() as stack,
    ):
        honest = stack.enter_context(plain_and_tls.connect(server))
        honest.sendall(GET)
        assert honest.recv(4096).startswith(b"HTTP/1.1 200")
        slow = [stack.enter_context(connect(server)) for _ in range(3)]
        for sock in slow:
            sock.sendall(b"G")
        time.sleep(limits.EVICTION_AGE * 1.5)  # the age is what is tested
        for _ in range(3):
            with plain_and_tls.connect(server) as sock:
                sock.sendall(GET)
                assert sock.recv(4096).startswith(b"HTTP/1.1 200")
        honest.sendall(GET)
        assert honest.recv(4096).startswith(b"HTTP/1.1 200")
        assert slow[0].recv(10) == b""  # the oldest had to go


@pytest.mark.parametrize("burst", ["body", "response"])
def test_a_burst_before_the_silence_keeps_no_place(
    plain_and_tls: Transport, burst: str
):
    """D6: neither of what was sent, nor of an answer that the kernel took."""

    def app(request: dict[str, Any]) -> Any:
        if request["body"] is not None:
            request["body"].read()
        return 200, "OK", {}, bytes(8_000_000 if request["path"] == ["big"] else 1)

    post = b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99999\r\n\r\n"
    big = b"GET /big HTTP/1.1\r\nhost: localhost\r\n\r\n"
    data = post + bytes(40_000) if burst == "body" else big
    with (
        plain_and_tls.serve(app, max_connections=2) as server,
        contextlib.ExitStack() as stack,
    ):
        started = time.monotonic()
        for _ in range(2):
            stack.enter_context(plain_and_tls.connect(server)).sendall(data)
        while True:
            with contextlib.suppress(OSError), plain_and_tls.connect(server) as sock:
                sock.sendall(GET)
                if sock.recv(4096).startswith(b"HTTP/1.1 200"):
                    break
            assert time.monotonic() - started < TIMEOUT / 2
            time.sleep(0.05)
        assert time.monotonic() - started >= limits.EVICTION_SILENCE / 2


def test_connections_of_one_address_have_a_limit_of_their_own():
    """The next one from there gets 503, another address does not."""
    app = Slow()
    with (
        serve(app, max_connections_per_address=1) as server,
        connect(server) as busy,
    ):
        busy.sendall(SLOW)
        assert app.begun.acquire(timeout=TIMEOUT)
        with connect(server) as sock:
            assert read_all(sock) == FULL
        with socket.socket() as sock:
            sock.bind(("127.0.0.2", 0))
            sock.settimeout(TIMEOUT)
            sock.connect(server.address)
            sock.sendall(GET)
            assert sock.recv(4096).startswith(b"HTTP/1.1 200")
        app.go_on.set()


def test_a_connection_ends_after_max_requests():
    """S6: the last response says so."""
    with serve(hello, max_requests=3) as server:
        answer = ask(server, GET * 5)
    assert answer.count(b"HTTP/1.1 200") == 3
    assert answer.count(b"connection: close") == 1
    assert answer.endswith(b"connection: close\r\n\r\n")


# --- time ------------------------------------------------------------------------


def test_a_connection_that_says_nothing_ends(plain_and_tls: Transport):
    """Its first byte has `head_timeout`, the handshake `handshake_timeout`."""
    options = {"head_timeout": 0.1, "handshake_timeout": 0.1}
    with plain_and_tls.serve(hello, **options) as server, connect(server) as sock:
        started = time.monotonic()
        assert sock.recv(10) == b""
        assert time.monotonic() - started < 2.0


def test_a_handshake_that_drips_ends(tmp_path: Path):
    """`handshake_timeout` is for the whole of it."""
    transport = Transport("ipv4+tls", tmp_path)
    with (
        transport.serve(hello, handshake_timeout=0.2) as server,
        connect(server) as sock,
    ):
        started = time.monotonic()
        hello_record = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100)
        with contextlib.suppress(OSError):
            for byte in hello_record:
                sock.send(bytes([byte]))
                if select.select([sock], [], [], 0.02)[0]:
                    break
        assert time.monotonic() - started < 2.0
        with contextlib.suppress(OSError):
            assert sock.recv(100) == b""


def test_a_body_that_stops_coming_ends_the_connection(plain_and_tls, caplog):
    """After `timeout`, quietly: it is the peer's doing, not the app's."""
    with (
        plain_and_tls.serve(swallow, timeout=0.1) as server,
        plain_and_tls.connect(server) as sock,
    ):
        started = time.monotonic()
        sock.sendall(request_with(b"PUT / HTTP/1.1", b"Content-Length: 5") + b"he")
        with contextlib.suppress(OSError):
            read_all(sock)
        assert time.monotonic() - started < 2.0
    assert [r for r in caplog.records if r.levelno > logging.INFO] == []


def test_a_body_that_drips_ends_the_connection(plain_and_tls: Transport):
    """D6: `min_rate` bounds it, however regularly the bytes come."""
    with (
        plain_and_tls.serve(swallow, timeout=0.2, min_rate=10_000) as server,
        plain_and_tls.connect(server) as sock,
    ):
        started = time.monotonic()
        sock.sendall(request_with(b"PUT / HTTP/1.1", b"Content-Length: 9999"))
        with contextlib.suppress(OSError):
            while not select.select([sock], [], [], 0.02)[0]:
                sock.sendall(b"x")
        assert time.monotonic() - started < 2.0


def test_a_peer_that_does_not_read_ends_the_connection(plain_and_tls, caplog):
    """What can't be sent within `timeout` is given up, and the source with it."""
    ended = threading.Event()

    def pieces() -> Iterator[bytes]:
        try:
            while True:
                yield bytes(100_000)
        finally:
            ended.set()

    def app(request: Any) -> Any:
        return 200, "OK", {}, ChunkedOutput(pieces())

    with (
        plain_and_tls.serve(app, timeout=0.2) as server,
        plain_and_tls.connect(server) as sock,
    ):
        sock.sendall(GET)
        assert ended.wait(TIMEOUT)
    assert [r for r in caplog.records if r.levelno > logging.INFO] == []


def test_the_time_an_app_takes_is_its_own():
    """No timeout of a peer runs while the app thinks."""

    def app(request: Any) -> Any:
        time.sleep(0.3)
        return 200, "OK", {}, request["body"].read()

    with serve(app, timeout=0.1, head_timeout=0.1) as server:
        data = request_with(b"PUT / HTTP/1.1", b"Content-Length: 5") + b"hello"
        assert exchange(server, data).endswith(b"hello")


def test_a_slow_head_leaves_its_response_the_whole_timeout(tmp_path: Path):
    """Over TLS reading and writing share one timeout, which is set anew."""
    transport = Transport("ipv4+tls", tmp_path)
    size = 3_000_000

    def app(request: Any) -> Any:
        return 200, "OK", {}, bytes(size)

    options = {"head_timeout": 0.4, "timeout": TIMEOUT}
    with transport.serve(app, **options) as server, transport.connect(server) as sock:
        sock.sendall(GET[:10])
        time.sleep(0.3)
        sock.sendall(GET[10:])
        time.sleep(0.5)
        total = 0
        while total < size:
            piece = sock.recv(1_000_000)
            assert piece
            total += len(piece)


# --- the accept loop -------------------------------------------------------------

SURVIVES = """
import logging, os, resource, socket, sys, threading
sys.path.insert(0, {root!r})
from degu.server import Server
logging.basicConfig(stream=sys.stderr, level=logging.ERROR)
def app(request):
    return 200, "OK", {{}}, b"served"
def get(address):
    with socket.create_connection(address, 10) as sock:
        sock.sendall(b"GET / HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n")
        sock.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := sock.recv(4096):
            answer += piece
    return answer
with Server(("127.0.0.1", 0), app).running() as server:
    assert get(server.address).endswith(b"served")
    {fault}
    assert get(server.address).endswith(b"served")
print("survived")
"""

EMFILE = """
    waiting = socket.socket()
    waiting.settimeout(10)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    taken = []
    try:
        while True:
            taken.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        pass
    waiting.connect(server.address)
    waiting.sendall(b"GET / HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n")
    import time
    cpu, wall = time.process_time(), time.monotonic()
    time.sleep(0.5)
    assert time.process_time() - cpu < 0.3, "burns the processor"
    for fd in taken:
        os.close(fd)
    assert waiting.recv(4096).startswith(b"HTTP/1.1 200"), "was forgotten"
    waiting.close()
"""

NO_THREAD = """
    start, failed = threading.Thread.start, []
    def fail(self):
        if not self.name.startswith("degu ") or len(failed) == 3:
            return start(self)
        failed.append(self)
        raise RuntimeError("can't start new thread")
    threading.Thread.start = fail
    for _ in range(3):
        try:
            assert get(server.address) == b""
        except OSError:
            pass
    assert len(failed) == 3
    assert not server._handlers
"""


def run_script(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-X", "dev", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("fault", "said"), [(EMFILE, "accept failed"), (NO_THREAD, "no thread")]
)
def test_the_accept_loop_survives(fault: str, said: str):
    """D7: logged, rested, recovered; who waited meanwhile is served."""
    done = run_script(SURVIVES.format(root=str(ROOT), fault=fault))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "survived\n"
    assert said in done.stderr
    assert "ResourceWarning" not in done.stderr


def test_no_descriptor_is_left_by_many_connections(wait_until):
    """S17, S14: also by those that were reset, refused or said nothing."""
    with serve(hello, max_connections=50) as server:
        get_is_answered(server)
        before = count_descriptors()
        for number in range(300):
            sock = connect(server)
            if number % 3 == 0:
                sock.sendall(GET)
            if number % 3 == 1:
                reset(sock)
            sock.close()
        wait_until(lambda: count_descriptors() <= before, TIMEOUT)
        assert get_is_answered(server)


def count_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# --- the log ---------------------------------------------------------------------


def test_a_connection_is_one_line_at_info(plain_and_tls, caplog, capfd):
    """Nothing on stdout or stderr; the line names the peer and counts requests."""
    caplog.set_level(logging.DEBUG, "degu")
    with plain_and_tls.serve(hello) as server:
        client = plain_and_tls.make_client(server)
        with client.connect() as connection:
            peer = connection.sock.getsockname()
            for _ in range(3):
                connection.get("/")
        with client.connect() as connection:
            connection.get("/")
    lines = [r.getMessage() for r in caplog.records if r.levelno == logging.INFO]
    assert len(lines) == 2
    words = f"{peer}: closed, answered requests: 3: "
    assert [line.startswith(words) for line in lines].count(True) == 1
    assert all(record.name == "degu.server" for record in caplog.records)
    assert [r for r in caplog.records if r.levelno > logging.INFO] == []
    assert capfd.readouterr() == ("", "")


def test_a_traceback_is_logged_at_error_and_nowhere_else(caplog, capfd):
    """The app's own error with its traceback, then the line of the connection."""

    def app(request: Any) -> Any:
        raise KeyError("mine")

    caplog.set_level(logging.DEBUG, "degu")
    with serve(app) as server:
        exchange(server, GET)
    levels = [record.levelname for record in caplog.records]
    assert levels == ["ERROR", "INFO"]
    assert caplog.records[0].exc_info
    assert not caplog.records[1].exc_info
    assert capfd.readouterr() == ("", "")


# --- life ------------------------------------------------------------------------


def test_running_serves_in_the_background_and_stops_at_the_end():
    """D9: the seeds' start and stop; threads and sockets are gone afterwards."""
    before = set(threading.enumerate())
    server = Server(("127.0.0.1", 0), hello)
    with server.running() as same:
        assert same is server
        assert get_is_answered(server)
    assert server.fileno() == -1
    assert set(threading.enumerate()) == before
    with pytest.raises(ConnectionRefusedError):
        connect(server)


def test_a_server_stops_where_its_with_is_left_by_an_error():
    """The error passes; nothing goes on serving."""
    server = Server(("127.0.0.1", 0), hello)
    with pytest.raises(KeyError), server.running():
        raise KeyError("mine")
    assert server.fileno() == -1


def test_running_may_end_before_it_began():
    """However short the ``with`` is."""
    for _ in range(20):
        with serve(hello):
            pass


def test_shutdown_before_serving_means_not_serving():
    """`serve_forever` then returns at once, whoever was first."""
    for _ in range(20):
        server = Server(("127.0.0.1", 0), hello)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        assert server.shutdown() is True
        thread.join(TIMEOUT)
        assert not thread.is_alive()
        assert server.fileno() == -1
        server.close()
    server = Server(("127.0.0.1", 0), hello)
    server.shutdown()
    server.serve_forever()
    server.close()


def test_shutdown_may_be_called_again():
    """From any thread, and when it is over."""
    with serve(hello) as server:
        assert server.shutdown() is True
        assert server.shutdown(0) is True
        assert server.shutdown(float("inf")) is True


@pytest.mark.parametrize("uri", [b"/", b"/fail", b"//\\0"])
def test_shutdown_waits_for_no_peer_that_was_answered(uri, monkeypatch):
    """Nor for one that keeps its end open after an error; it still gets the answer."""
    monkeypatch.setattr(base, "LINGER_TIMEOUT", 10 * TIMEOUT)

    def app(request: dict[str, Any]) -> Any:
        assert request["uri"] == "/"
        return hello(request)

    with serve(app) as server, connect(server) as sock:
        sock.sendall(GET.replace(b"/", uri, 1))
        assert sock.recv(9) == b"HTTP/1.1 "
        assert server.shutdown(TIMEOUT) is True


def test_shutdown_cuts_off_what_outlasts_its_grace():
    """False then, and the connection is closed."""
    app = Slow()
    with serve(app) as server, connect(server) as sock:
        sock.sendall(SLOW)
        assert app.begun.acquire(timeout=TIMEOUT)
        started = time.monotonic()
        assert server.shutdown(0.1) is False
        assert time.monotonic() - started < 2.0
        assert sock.recv(10) == b""
        app.go_on.set()


def test_shutdown_may_be_called_by_an_app():
    """A page that stops its server is answered, and waits for nobody but others."""

    def app(request: Any) -> Any:
        assert server.shutdown(TIMEOUT) is True
        return 200, "OK", {}, b"stopped"

    with Server(("127.0.0.1", 0), app).running() as server:
        started = time.monotonic()
        answer = exchange(server, GET)
        assert time.monotonic() - started < 2.0
    assert answer.endswith(b"connection: close\r\n\r\nstopped")


@pytest.mark.parametrize(
    ("grace", "error"),
    [
        (-1, ValueError),
        (float("nan"), ValueError),
        ("5", TypeError),
        (None, TypeError),
        (True, TypeError),
    ],
)
def test_shutdown_refuses_a_bad_grace(grace: Any, error: type[Exception]):
    """The error names the argument; the server serves on."""
    with serve(hello) as server:
        with pytest.raises(error, match="grace: expected "):
            server.shutdown(grace)
        assert get_is_answered(server)


def test_a_request_just_sent_is_answered_by_a_server_that_stops(wait_until):
    """What was accepted is served, though shutdown came before its first byte."""
    for _ in range(10):
        with serve(hello) as server, connect(server) as sock:
            sock.sendall(GET)
            wait_until(lambda s=server: s._handlers)
            server.shutdown()
            assert read_all(sock).startswith(b"HTTP/1.1 200")


def test_handle_request_serves_one_request_inline(transport: Transport):
    """For an event loop that waits for `fileno()`: one connection, one request."""
    seen = []

    def app(request: Any) -> Any:
        seen.append(threading.get_ident())
        return OK

    server = transport.make_server(app)
    poll = select.poll()
    poll.register(server.fileno(), select.POLLIN)
    assert poll.poll(0) == []
    answers: list[Any] = []

    def ask_twice() -> None:
        with closing(transport.make_client(server)) as client:
            answers.extend(client.get("/") for _ in range(2))

    thread = threading.Thread(target=ask_twice)
    thread.start()
    for _ in range(2):
        assert poll.poll(TIMEOUT * 1000)
        server.handle_request()
    thread.join(TIMEOUT)
    assert [answer.headers for answer in answers] == [{"connection": "close"}] * 2
    assert seen == [threading.get_ident()] * 2
    server.shutdown()
    server.close()


def test_handle_request_survives_what_serve_forever_survives(caplog):
    """A broken request and an app that raises leave the event loop going."""

    def app(request: Any) -> Any:
        raise KeyError("mine")

    server = Server(("127.0.0.1", 0), app, head_timeout=0.1)
    for data, status in ((b"nonsense\r\n\r\n", b"400"), (GET, b"500"), (b"", b"")):
        with connect(server) as sock:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            server.handle_request()
            assert read_all(sock)[9:12] == status
    server.shutdown()
    server.handle_request()  # returns at once
    server.close()


CTRL_C = """
import sys, threading
sys.path.insert(0, {root!r})
from degu.server import Server
server = Server({path!r}, lambda request: (200, "OK", {{}}, None))
print("ready", flush=True)
server.serve_forever()
print("over", flush=True)
"""


@pytest.mark.parametrize("kind", ["idle", "connected"])
def test_ctrl_c_ends_serve_forever_cleanly(tmp_path: Path, kind: str):
    """No traceback, exit status 0, and the socket file is gone."""
    path = str(tmp_path / "x.sock")
    script = CTRL_C.format(root=str(ROOT), path=path)
    process = subprocess.Popen(
        [sys.executable, "-X", "dev", "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process, socket.socket(socket.AF_UNIX) as sock:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        sock.settimeout(TIMEOUT)
        sock.connect(path)
        sock.sendall(GET)
        assert sock.recv(4096).startswith(b"HTTP/1.1 200")
        if kind == "idle":
            sock.close()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "over\n", "")
    assert not os.path.exists(path)


def test_a_server_that_is_never_used_leaves_nothing():
    """Made and dropped: no warning, no descriptor, no socket file."""
    before = count_descriptors()
    for _ in range(5):
        server = Server(("127.0.0.1", 0), hello)
        del server
    assert count_descriptors() == before


def test_a_server_shows_itself():
    """`repr` says where it listens and what it serves."""
    server = Server(("127.0.0.1", 0), hello)
    assert repr(server) == f"Server({server.address!r}, {hello!r})"
    assert server.options["max_connections"] == limits.MAX_CONNECTIONS
    assert server.app is hello
    server.close()


# --- TLS -------------------------------------------------------------------------


def test_plain_http_to_a_tls_port_is_told_so():
    """A readable 400, and the server serves on."""
    config = shared_pki().server_sslconfig
    with SSLServer(config, ("127.0.0.1", 0), hello).running() as server:
        for _ in range(5):
            assert ask(server, GET).startswith(b"HTTP/1.1 400 ")
        large = GET[:-2] + b"a: " + b"x" * 20_000 + b"\r\n\r\n"
        assert ask(server, large).startswith(b"HTTP/1.1 400 ")
        with connect(server, is_tls=True) as sock:
            sock.sendall(GET)
            assert sock.recv(4096).startswith(b"HTTP/1.1 200")


def test_tls_to_a_plain_port_is_refused_at_once():
    """A client gets its error without waiting for a timeout; the server serves on."""
    from degu.client import SSLClient

    with serve(hello) as server:
        client = SSLClient(shared_pki().client_sslconfig, server.address)
        started = time.monotonic()
        with pytest.raises(TLSError, match="not TLS"):
            client.get("/")
        assert time.monotonic() - started < 2.0
        assert get_is_answered(server)


@pytest.mark.parametrize("case", ["no_certificate", "wrong_ca", "expired"])
def test_a_client_without_a_good_certificate_is_refused(case: str, caplog):
    """The client hears why, the app nothing; the server serves on."""
    from degu.client import SSLClient

    reached = []

    def app(request: Any) -> Any:
        reached.append(request)
        return OK

    pki = shared_pki()
    with SSLServer(pki.server_sslconfig, ("127.0.0.1", 0), app).running() as server:
        bad = SSLClient(pki.client_sslconfig_for(case), server.address)
        with pytest.raises(TLSError, match="the peer refused the connection"):
            bad.get("/")
        assert reached == []
        with closing(SSLClient(pki.client_sslconfig, server.address)) as good:
            assert good.get("/").status == 200
    assert [r for r in caplog.records if r.levelno > logging.INFO] == []


class Watcher:
    """An app that hears of refused peers; what its hook does depends on the test."""

    def __init__(self) -> None:
        self.refused: list[tuple[Any, Exception]] = []
        self.hook: Any = int

    def __call__(self, request: Any) -> Any:
        return OK

    def on_refused(self, address: Any, error: Exception) -> None:
        self.refused.append((address, error))
        self.hook()


def test_an_app_hears_of_peers_that_the_handshake_refused():
    """Address and reason of a wrong certificate or none; nothing of a good one."""
    from degu.client import SSLClient

    pki, app = shared_pki(), Watcher()
    with SSLServer(pki.server_sslconfig, ("127.0.0.1", 0), app).running() as server:
        for case, why in (("wrong_ca", "verify failed"), ("no_certificate", "none")):
            with SSLClient(
                pki.client_sslconfig_for(case), server.address
            ).connect() as connection:
                source = connection.sock.getsockname()
                with pytest.raises(TLSError):
                    connection.get("/")
            poll(lambda: app.refused)
            ((address, error),) = app.refused
            assert address == source
            assert isinstance(error, TLSError)
            assert why in str(error)
            app.refused.clear()
        with closing(SSLClient(pki.client_sslconfig, server.address)) as good:
            assert good.get("/").status == 200
    assert app.refused == []


@pytest.mark.parametrize(
    ("data", "why"), [(GET, "plain HTTP"), (b"", "expected the TLS handshake to end")]
)
def test_an_app_hears_of_peers_that_speak_no_tls(data: bytes, why: str):
    """Also of one that says nothing, once its time is over."""
    config, app = shared_pki().server_sslconfig, Watcher()
    server = SSLServer(config, ("127.0.0.1", 0), app, handshake_timeout=0.1)
    with server.running(), connect(server) as sock:
        source = sock.getsockname()
        sock.sendall(data)
        poll(lambda: app.refused)
    ((address, error),) = app.refused
    assert address == source
    assert why in str(error)


def test_an_on_refused_that_fails_or_blocks_is_its_own_problem(caplog):
    """What it raises is logged; as long as it takes, others are served."""
    pki, app, done = shared_pki(), Watcher(), threading.Event()
    with SSLServer(pki.server_sslconfig, ("127.0.0.1", 0), app).running() as server:
        for hook in (lambda: 1 / 0, lambda: done.wait(30)):
            app.hook = hook
            app.refused.clear()
            # The peer itself need not wait for the app either.
            assert ask(server, GET).startswith(b"HTTP/1.1 400 ")
            poll(lambda: app.refused)
            with connect(server, is_tls=True) as sock:
                sock.sendall(GET)
                assert sock.recv(4096).startswith(b"HTTP/1.1 200")
        assert not done.is_set()
        done.set()
    assert caplog.text.count("on_refused failed") == 1
    assert "ZeroDivisionError" in caplog.text


def test_an_sslconfig_is_checked_before_the_address_is_taken():
    """S1: without a CA and without the flag nothing listens."""
    config = shared_pki().server_sslconfig
    del config["ca_file"]
    with pytest.raises(ValueError, match="ca_file"):
        SSLServer(config, ("127.0.0.1", 0), hello)
    with pytest.raises(TypeError, match="sslctx"):
        SSLServer(None, ("127.0.0.1", 0), hello)  # type: ignore[arg-type]


def test_the_descriptor_limit_is_what_this_suite_needs():
    """Not a test of Degu: with too few descriptors the others would mislead."""
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 256

"""degu.client: as strict as the server, and honest about a connection that is gone."""

from __future__ import annotations

import gc
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from degu import limits
from degu.base import ChunkedInput, ChunkedOutput, Input, Output
from degu.client import Client, Connection, SSLClient
from degu.errors import (
    AppError,
    BodyClosedError,
    ClosedConnectionError,
    ContentTooLargeError,
    DeguError,
    EmptyHeadError,
    HeadTimeoutError,
    HeadTooLargeError,
    ParseError,
    PeerError,
    ProtocolError,
    SlowPeerError,
    UnconsumedBodyError,
    UnderFlowError,
    UnsupportedError,
    VersionError,
)
from degu.server import Server
from tests.transports import (
    CLOSE,
    HEAD,
    NAMES,
    OK,
    READ,
    RESET,
    ScriptedServer,
    Transport,
    shared_pki,
)

ROOT = Path(__file__).parents[1]
HELLO = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"


def answer(
    data: bytes, method: str = "GET", *, end: Any = CLOSE, **options: Any
) -> tuple[Any, bytes | None, Connection]:
    """What a connection makes of `data`: response, whole body, the connection."""
    with ScriptedServer([READ, data, end]) as server:
        connection = server.make_client(**options).connect()
        response = connection.request(method, "/")
        body = None if response.body is None else response.body.read()
        return response, body, connection


def serve(app: Any, **options: Any) -> Any:
    return Server(("127.0.0.1", 0), app, **options).running()


# --- what comes back -------------------------------------------------------------


GOOD: list[tuple[bytes, str, int, Any, Any]] = [
    (HELLO, "GET", 200, {"content-length": 5}, b"hello"),
    (HELLO.replace(b" OK", b" "), "GET", 200, {"content-length": 5}, b"hello"),
    (OK, "GET", 200, {}, None),
    (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"3;x=y\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n",
        "GET",
        200,
        {"transfer-encoding": "chunked"},
        b"hello",
    ),
    (b"HTTP/1.1 200 OK\r\n\r\nhello", "GET", 200, {}, b"hello"),
    (b"HTTP/1.1 200 OK\r\n\r\n", "GET", 200, {}, b""),
    (b"HTTP/1.0 200 OK\r\n\r\nhello", "GET", 200, {"connection": "close"}, b"hello"),
    (
        b"HTTP/1.0 404 Not Found\r\nContent-Length: 5\r\n\r\nhello",
        "GET",
        404,
        {"content-length": 5, "connection": "close"},
        b"hello",
    ),
    (HELLO[:-5], "HEAD", 200, {"content-length": 5}, None),
    (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        "HEAD",
        200,
        {"transfer-encoding": "chunked"},
        None,
    ),
    (b"HTTP/1.1 200 OK\r\n\r\n", "HEAD", 200, {}, None),
    (b"HTTP/1.1 204 No Content\r\n\r\n", "GET", 204, {}, None),
    (b"HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n", "GET", 204, {}, None),
    (
        b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n",
        "GET",
        304,
        {"content-length": 5},
        None,
    ),
    (b"HTTP/1.1 100 Continue\r\n\r\n" + HELLO, "GET", 200, None, b"hello"),
    (b"HTTP/1.1 103 \r\nlink: </a>\r\n\r\n" * 16 + HELLO, "GET", 200, None, b"hello"),
    (
        b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nSet-Cookie: c=d\r\n"
        b"content-length: 0\r\n\r\n",
        "GET",
        200,
        {"set-cookie": ["a=b", "c=d"]},
        None,
    ),
    (
        b"HTTP/1.1 200 OK\r\nVary: a\r\nVary: b\r\nx:\t { @ } \t\r\nempty:\r\n"
        b"content-length: 0\r\n\r\n",
        "GET",
        200,
        {"vary": "a, b", "x": "{ @ }", "empty": ""},
        None,
    ),
    (b"HTTP/1.1 599 Odd\r\ncontent-length: 0\r\n\r\n", "GET", 599, {}, None),
]


@pytest.mark.parametrize(("data", "method", "status", "headers", "body"), GOOD)
def test_a_good_response_is_taken(data, method, status, headers, body):
    """D11: 1xx, 204, 304, HEAD, cookies, and bodies that end with the connection."""
    response, read, _ = answer(data, method)
    assert response.status == status
    assert read == body
    if headers is not None:
        assert response.headers == headers


@pytest.mark.parametrize(
    "data",
    [row[0] for row in GOOD if b"HTTP/1.0" not in row[0] and b"\r\n\r\nh" not in row[0]]
    + [HELLO],
)
def test_a_good_response_leaves_the_connection_open(data: bytes):
    """S30: whatever has an end of its own is followed by the next exchange."""
    method = next(row[1] for row in GOOD if row[0] == data)
    if data == b"HTTP/1.1 200 OK\r\n\r\n" and method == "GET":
        method = "HEAD"
    with ScriptedServer([READ, data, READ, HELLO]) as server:
        with server.make_client().connect() as connection:
            body = connection.request(method, "/").body
            assert body is None or body.read() is not None
            assert not connection.closed
            assert connection.get("/").body.read() == b"hello"
        assert server.accepted == 1


BAD: list[tuple[bytes, type[DeguError]]] = [
    (b"\r\n" + HELLO, ParseError),
    (b"HTTP/1.1 200\r\n\r\n", ParseError),
    (b"HTTP/1.1  200 OK\r\n\r\n", ParseError),
    (b"HTTP/1.1 2000 OK\r\n\r\n", ParseError),
    (b"HTTP/1.1 20 OK\r\n\r\n", ParseError),
    (b"HTTP/1.1 099 OK\r\n\r\n", ParseError),
    (b"HTTP/1.1 600 OK\r\n\r\n", ParseError),
    (b"HTTP/1.1 +20 OK\r\n\r\n", ParseError),
    (b"HTTP/1.1 \xb2\xb2\xb2 OK\r\n\r\n", ParseError),
    (b"http/1.1 200 OK\r\n\r\n", ParseError),
    (b"HTTP/1.1 200 O\x00K\r\n\r\n", ParseError),
    (b"HTTP/1.1 200 O\xc3\xa4\r\n\r\n", ParseError),
    (b"HTTP/1.2 200 OK\r\n\r\n", VersionError),
    (b"HTTP/2.0 200 OK\r\n\r\n", VersionError),
    (b"HTTP/0.9 200 OK\r\n\r\n", VersionError),
    (b"ICY 200 OK\r\n\r\n", ParseError),
    (b"<html>hello</html>\r\n\r\n", ParseError),
    (b"GET / HTTP/1.1\r\n\r\n", ParseError),
    (HELLO.replace(b"\r\n", b"\n"), ParseError),
    (b"HTTP/1.1 200 OK\r\na: b\nc: d\r\n\r\n", ParseError),
    (b"HTTP/1.1 200 OK\r\na: b\rc: d\r\n\r\n", ParseError),
    (b"HTTP/1.1 200 OK\r\n a: b\r\n\r\n", ParseError),
    (b"HTTP/1.1 200 OK\r\na: b\r\n folded\r\n\r\n", ParseError),
    (b"HTTP/1.1 200 OK\r\na : b\r\n\r\n", ParseError),
    (b"HTTP/1.1 200 OK\r\n: b\r\n\r\n", ParseError),
    (b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", ParseError),
    (b"HTTP/1.1 200 OK\r\na: \x00\r\n\r\n", ParseError),
    (b"HTTP/1.1 200 OK\r\na: \xff\r\n\r\n", ParseError),
    (b"HTTP/1.1 200 OK\r\netag: a\r\netag: b\r\n\r\n", ParseError),
    (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\n", ParseError),
    (b"HTTP/1.1 200 OK\r\ncontent-length: 5, 5\r\n\r\nhello", ParseError),
    (b"HTTP/1.1 200 OK\r\ncontent-length: +5\r\n\r\nhello", ParseError),
    (b"HTTP/1.1 200 OK\r\ncontent-length: 05\r\n\r\nhello", ParseError),
    (b"HTTP/1.1 200 OK\r\ncontent-length: 0x5\r\n\r\nhello", ParseError),
    (b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\nhello", ParseError),
    (b"HTTP/1.1 200 OK\r\ncontent-length: \xb2\r\n\r\nhello", ParseError),
    (b"HTTP/1.1 200 OK\r\ncontent-length:\r\n\r\nhello", ParseError),
    (b"HTTP/1.1 200 OK\r\ncontent-length: " + b"9" * 17 + b"\r\n\r\n", ParseError),
    (
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
        ParseError,
    ),
    (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
        UnsupportedError,
    ),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked, gzip\r\n\r\n", ProtocolError),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: identity\r\n\r\n", ProtocolError),
    (b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", ParseError),
    (b"HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\nhello", ParseError),
    (
        b"HTTP/1.1 204 No Content\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        ParseError,
    ),
    (b"HTTP/1.1 100 Continue\r\ncontent-length: 5\r\n\r\nhello" + OK, ParseError),
    (b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n", ParseError),
    (b"HTTP/1.1 100 Continue\r\n\r\n" * 17 + OK, ProtocolError),
    (b"HTTP/1.1 100 Continue\r\n\r\n", PeerError),
    (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200 + b"\r\n", HeadTooLargeError),
    (b"HTTP/1.1 200 OK\r\na: " + b"x" * 40_000, HeadTooLargeError),
    (b"HTTP/1.1 200 OK\r\na: b", PeerError),
    (b"HTTP/1.1", PeerError),
    (b"", EmptyHeadError),
]


@pytest.mark.parametrize(("data", "error"), BAD)
def test_a_bad_response_is_an_error_of_the_tree(data: bytes, error: type[DeguError]):
    """Strict in: the connection is closed and marked so; a new one works."""
    with ScriptedServer([READ, data, CLOSE], [READ, HELLO]) as server:
        client = server.make_client()
        connection = client.connect()
        with pytest.raises(error) as caught:
            connection.get("/")
        assert isinstance(caught.value, PeerError | ProtocolError)
        assert connection.closed
        with pytest.raises(ClosedConnectionError):
            connection.get("/")
        assert client.get("/").body.read() == b"hello"
        client.close()


def test_half_a_head_is_no_empty_head():
    """Only where nothing came may a request be repeated."""
    for data in (b"H", b"HTTP/1.1 100 Continue\r\n\r\n"):
        with ScriptedServer([READ, data, CLOSE]) as server:
            connection = server.make_client().connect()
            with pytest.raises(PeerError) as caught:
                connection.get("/")
            assert not isinstance(caught.value, EmptyHeadError)


@pytest.mark.parametrize(
    ("data", "error", "match"),
    [
        (HELLO[:-2], UnderFlowError, "after 3 of 5 bytes"),
        (HELLO[:-5], UnderFlowError, "after 0 of 5 bytes"),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhel",
            UnderFlowError,
            "after 3 of an unstated",
        ),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
            UnderFlowError,
            "after 5 of an unstated",
        ),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n+5\r\nhello",
            ParseError,
            "chunk size",
        ),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1000001\r\n",
            ContentTooLargeError,
            "16777216",
        ),
    ],
)
@pytest.mark.parametrize("end", [CLOSE, RESET])
def test_a_body_that_breaks_off_closes_the_connection(data, error, match: str, end):
    """S21, D15: a truncated body is an error, `closed` is True, the next one works."""
    with ScriptedServer([READ, data, end], [READ, HELLO]) as server:
        client = server.make_client()
        body = client.get("/").body
        with pytest.raises(error, match=match):
            body.read()
        connection = client._local.connection
        assert connection.closed
        assert not connection.is_busy
        assert client.get("/").body.read() == b"hello"
        assert server.accepted == 2
        client.close()


def test_a_body_until_close_that_is_reset_is_no_whole_body():
    """An RST is not an end (RFC 9112 §8)."""
    gate = threading.Event()
    script = [READ, b"HTTP/1.1 200 OK\r\n\r\nhello", gate.wait, RESET]
    with ScriptedServer(script) as server:
        connection = server.make_client().connect()
        body = connection.get("/").body
        assert body.read(5) == b"hello"
        gate.set()
        with pytest.raises(UnderFlowError, match="after 5 of an unstated"):
            body.read()
        assert connection.closed


def test_a_body_until_close_over_tls_needs_a_proper_end():
    """Without a close_notify anybody may have cut it (RFC 9112 §9.8)."""
    with (
        ScriptedServer([READ, HELLO[:-5] + b"hel", CLOSE], is_tls=True) as server,
        pytest.raises(UnderFlowError, match="after 3 of 5"),
    ):
        server.make_client().connect().get("/").body.read()
    until_close = b"HTTP/1.1 200 OK\r\n\r\nhello"
    with ScriptedServer([READ, until_close, CLOSE], is_tls=True) as server:
        body = server.make_client().connect().get("/").body
        with pytest.raises(UnderFlowError, match="after 5 of an unstated"):
            body.read()


@pytest.mark.parametrize("is_tls", [False, True])
@pytest.mark.parametrize(
    "data",
    [
        HELLO + b"!",
        HELLO + HELLO,
        OK + b"\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\nhello",
        b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nHTTP/1.1 200",
        b"HTTP/1.1 200 OK\r\ncontent-length: 8100\r\n\r\n" + b"x" * 8100 + b"HTTP/1.1",
        b"HTTP/1.1 200 OK\r\ncontent-length: 12000\r\n\r\n" + b"x" * 12000 + OK,
    ],
)
def test_surplus_bytes_drop_the_connection(data: bytes, is_tls: bool):
    """What nobody asked for never becomes the next response."""
    scripts = [READ, data], [READ, HELLO]
    with ScriptedServer(*scripts, is_tls=is_tls) as server:
        client = server.make_client()
        response = client.get("/")
        if response.body is not None:
            response.body.read()
        assert client._local.connection.closed
        assert client.get("/").body.read() == b"hello"
        assert server.accepted == 2
        client.close()


@pytest.mark.parametrize("is_tls", [False, True])
def test_a_connection_with_a_surplus_takes_no_more_requests(is_tls: bool):
    """Not even where nobody looked at it in between."""
    with ScriptedServer([READ, HELLO + HELLO, READ, HELLO], is_tls=is_tls) as server:
        connection = server.make_client().connect()
        assert connection.get("/").body.read() == b"hello"
        with pytest.raises(ClosedConnectionError):
            connection.get("/")
        with pytest.raises(ClosedConnectionError):
            connection.put("/", {}, b"x")
        connection.close()


def test_a_body_for_head_is_surplus():
    """A server that answers HEAD with a body has said too much."""
    with ScriptedServer([READ, HELLO]) as server:
        connection = server.make_client().connect()
        assert connection.head("/").body is None
        assert connection.closed


def test_connection_close_is_obeyed():
    """D11: after the body was read, the connection is closed from this side too."""
    data = HELLO.replace(b"\r\n\r\n", b"\r\nConnection: Close\r\n\r\n")
    with ScriptedServer([READ, data]) as server:
        connection = server.make_client().connect()
        response = connection.get("/")
        assert not connection.closed
        assert response.body.read() == b"hello"
        assert connection.closed


def test_the_server_hears_at_once_that_the_last_response_was_read():
    """It waits for that; nobody has to look at `closed` first."""
    data = OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        options = limits.check_options({}, limits.CLIENT_OPTIONS)
        connection = Connection(ours, "localhost", options)
        theirs.sendall(data)
        assert connection.get("/").body is None
        theirs.settimeout(20)
        assert theirs.recv(100).startswith(b"GET / ")
        assert theirs.recv(100) == b""


def test_a_request_with_connection_close_is_the_last():
    """Whatever the server thinks of it."""
    with ScriptedServer([READ, OK]) as server:
        connection = server.make_client().connect()
        connection.get("/", {"connection": "close"})
        assert connection.closed


# --- what goes out ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "headers", "body", "sent"),
    [
        ("GET", None, None, b"GET /x?y HTTP/1.1\r\nhost: %b\r\n\r\n"),
        ("HEAD", {}, None, b"HEAD /x?y HTTP/1.1\r\nhost: %b\r\n\r\n"),
        (
            "DELETE",
            {"a": "b"},
            None,
            b"DELETE /x?y HTTP/1.1\r\nhost: %b\r\na: b\r\n\r\n",
        ),
        (
            "POST",
            None,
            None,
            b"POST /x?y HTTP/1.1\r\nhost: %b\r\ncontent-length: 0\r\n\r\n",
        ),
        (
            "PUT",
            None,
            b"hello",
            b"PUT /x?y HTTP/1.1\r\nhost: %b\r\ncontent-length: 5\r\n\r\nhello",
        ),
        (
            "PATCH",
            {"content-length": 5},
            Output([b"hel", b"lo"], 5),
            b"PATCH /x?y HTTP/1.1\r\nhost: %b\r\ncontent-length: 5\r\n\r\nhello",
        ),
        (
            "POST",
            None,
            ChunkedOutput([("k=v", b"hello")]),
            b"POST /x?y HTTP/1.1\r\nhost: %b\r\ntransfer-encoding: chunked\r\n\r\n"
            b"5;k=v\r\nhello\r\n0\r\n\r\n",
        ),
        ("OPTIONS", None, None, b"OPTIONS /x?y HTTP/1.1\r\nhost: %b\r\n\r\n"),
    ],
)
def test_a_request_leaves_as_it_was_given(method, headers, body, sent: bytes):
    """Host and framing are added, nothing else; the caller's dict is left alone."""
    given = None if headers is None else dict(headers)
    with ScriptedServer([READ, OK]) as server:
        with server.make_client().connect() as connection:
            connection.request(method, "/x?y", headers, body)
        host = "{}:{}".format(*server.address).encode()
        assert server.requests == [sent % host]
    assert headers == given


def test_the_shortcuts_are_the_methods_by_name():
    """On a connection and on a client."""
    script = [READ, OK] * 6
    with ScriptedServer(script, script) as server:
        client = server.make_client()
        use_verbs(client)
        with client.connect() as connection:
            use_verbs(connection)
        client.close()
        methods = [request.split(b" ")[0] for request in server.requests]
    assert methods == [b"GET", b"HEAD", b"DELETE", b"PUT", b"POST", b"PATCH"] * 2


def use_verbs(one: Any) -> None:
    for verb in (one.get, one.head, one.delete):
        assert verb("/", {"a": "b"}).status == 200
    for verb in (one.put, one.post, one.patch):
        assert verb("/", {"a": "b"}, b"hello").status == 200


BAD_REQUESTS: list[Any] = [
    ("GET ", "/", None, None),
    ("", "/", None, None),
    ("G\r\nT", "/", None, None),
    (b"GET", "/", None, None),
    (None, "/", None, None),
    ("CONNECT", "/", None, None),
    ("GET", "", None, None),
    ("GET", "x", None, None),
    ("GET", "http://evil.example/", None, None),
    ("GET", "*", None, None),
    ("GET", b"/", None, None),
    ("GET", None, None, None),
    ("GET", "/a b", None, None),
    ("GET", "/ HTTP/1.1\r\nx: y", None, None),
    ("GET", "/\r\n\r\nGET /hidden", None, None),
    ("GET", "/\n", None, None),
    ("GET", "/\x00", None, None),
    ("GET", "/\u00e9", None, None),
    ("GET", "/#fragment", None, None),
    ("GET", "/../x", None, None),
    ("GET", "/%2e%2e/x", None, None),
    ("GET", "/%zz", None, None),
    ("GET", "/" + "x" * 9000, None, None),
    ("GET", "/", [("a", "b")], None),
    ("GET", "/", "a: b", None),
    ("GET", "/", {"A": "b"}, None),
    ("GET", "/", {"a b": "c"}, None),
    ("GET", "/", {b"a": "b"}, None),
    ("GET", "/", {"a": b"b"}, None),
    ("GET", "/", {"a": 5}, None),
    ("GET", "/", {"a": "b\r\nc: d"}, None),
    ("GET", "/", {"a": "b\nc: d"}, None),
    ("GET", "/", {"a": "\x00"}, None),
    ("GET", "/", {"a": "\u00e9"}, None),
    ("GET", "/", {"a": " b"}, None),
    ("GET", "/", {"host": "a\r\nb: c"}, None),
    ("GET", "/", {"connection": 5}, None),
    ("GET", "/", {"content-length": 5}, None),
    ("GET", "/", None, b"hello"),
    ("HEAD", "/", None, b"hello"),
    ("DELETE", "/", None, ChunkedOutput([])),
    ("POST", "/", {"content-length": 5}, None),
    ("POST", "/", {"content-length": 4}, b"hello"),
    ("POST", "/", {"content-length": "5"}, b"hello"),
    ("POST", "/", {"transfer-encoding": "chunked"}, b"hello"),
    ("POST", "/", {"content-length": 5}, ChunkedOutput([b"hello"])),
    ("POST", "/", {"transfer-encoding": "gzip"}, ChunkedOutput([b"hello"])),
    ("POST", "/", None, "text"),
    ("POST", "/", None, ["list"]),
    ("POST", "/", None, 5),
]


@pytest.mark.parametrize(("method", "uri", "headers", "body"), BAD_REQUESTS)
def test_a_bad_request_is_refused_before_a_byte_is_sent(method, uri, headers, body):
    """D1, D3, D4, S13: the error is the caller's; the connection can still be used."""
    with (
        ScriptedServer([READ, HELLO]) as server,
        server.make_client().connect() as connection,
    ):
        with pytest.raises(AppError):
            connection.request(method, uri, headers, body)
        assert connection.get("/").body.read() == b"hello"
        assert len(server.requests) == 1


def test_a_used_body_is_refused_before_a_byte_is_sent():
    """An output body serves one request."""
    body = Output([b"hello"], 5)
    with (
        ScriptedServer([READ, OK, READ, OK]) as server,
        server.make_client().connect() as connection,
    ):
        connection.put("/", None, body)
        with pytest.raises(BodyClosedError):
            connection.put("/", None, body)
        connection.put("/", None, b"hello")
        assert len(server.requests) == 2


def test_a_source_that_breaks_off_closes_the_connection():
    """The server must not take the next request for the rest of this body."""

    def pieces() -> Iterator[bytes]:
        yield b"hel"
        raise KeyError("mine")

    with ScriptedServer([HEAD, READ], [READ, HELLO]) as server:
        client = server.make_client()
        connection = client.connect()
        with pytest.raises(KeyError, match="mine"):
            connection.put("/", None, Output(pieces(), 5))
        assert connection.closed
        with pytest.raises(UnderFlowError):
            client.put("/", None, Output([b"hel"], 5))
        client.close()


def test_a_second_request_needs_the_first_body_to_be_read():
    """The error says so, and the body can still be read."""
    with (
        ScriptedServer([READ, HELLO, READ, HELLO]) as server,
        server.make_client().connect() as connection,
    ):
        body = connection.get("/").body
        assert connection.is_busy
        assert not connection.closed
        with pytest.raises(UnconsumedBodyError, match="to be read first"):
            connection.get("/")
        assert body.read(2) == b"he"
        with pytest.raises(UnconsumedBodyError):
            connection.get("/")
        assert body.read() == b"llo"
        assert not connection.is_busy
        assert connection.get("/").body.read() == b"hello"


def test_a_client_says_so_too():
    """Its private connection is not dropped behind the caller's back."""
    with ScriptedServer([READ, HELLO]) as server:
        client = server.make_client()
        body = client.get("/").body
        with pytest.raises(UnconsumedBodyError):
            client.get("/")
        assert body.read() == b"hello"
        client.close()


# --- closed ----------------------------------------------------------------------


@pytest.mark.parametrize("is_tls", [False, True])
def test_closed_is_true_once_the_server_has_closed(is_tls: bool, wait_until):
    """Found out by looking, without a request."""
    with ScriptedServer([READ, OK, CLOSE], is_tls=is_tls) as server:
        connection = server.make_client().connect()
        connection.get("/")
        wait_until(lambda: connection.closed)
        with pytest.raises(ClosedConnectionError, match="make a new one"):
            connection.get("/")


def test_close_may_be_called_again_and_a_with_does_it():
    """A closed connection refuses requests before anything else."""
    with ScriptedServer([READ, OK]) as server:
        with server.make_client().connect() as connection:
            connection.get("/")
            assert not connection.closed
        assert connection.closed
        connection.close()
        with pytest.raises(ClosedConnectionError):
            connection.get("/")


def test_closing_a_connection_ends_its_body():
    """What was not read can't be read any more, which is an error."""
    with ScriptedServer([READ, HELLO[:-1]]) as server:
        connection = server.make_client().connect()
        body = connection.get("/").body
        connection.close()
        with pytest.raises(UnderFlowError):
            body.read()


def test_a_body_outlives_the_name_of_its_connection():
    """A response can be read though nobody holds the connection any more."""
    with ScriptedServer([READ, HELLO]) as server:
        body = server.make_client().connect().get("/").body
        gc.collect()
        assert body.read() == b"hello"


# --- the retry rule --------------------------------------------------------------


def retry(method: str, body: Any, *second: Any) -> tuple[Any, ScriptedServer]:
    """Ask on a connection of which the server drops the second request unread."""
    server = ScriptedServer([READ, OK, *second], [READ, HELLO])
    with server:
        client = server.make_client()
        client.get("/first")
        try:
            return client.request(method, "/second", None, body), server
        except DeguError as error:
            return error, server
        finally:
            client.close()


@pytest.mark.parametrize(
    ("method", "body"),
    [
        ("GET", None),
        ("HEAD", None),
        ("DELETE", None),
        ("OPTIONS", None),
        ("PUT", None),
        ("PUT", b"hello"),
        ("PUT", bytearray(b"hello")),
        ("PUT", memoryview(b"hello")),
    ],
)
@pytest.mark.parametrize("end", [CLOSE, RESET])
def test_a_request_on_a_connection_closed_while_idle_is_repeated_once(
    method, body, end
):
    """Nothing came back, it is idempotent, its body can be sent again: it is."""
    response, server = retry(method, body, READ, end)
    assert response.status == 200
    assert server.accepted == 2
    assert len(server.requests) == 3
    assert server.requests[1] == server.requests[2]


@pytest.mark.parametrize(
    ("method", "body"),
    [
        ("POST", None),
        ("POST", b"hello"),
        ("PATCH", b"hello"),
        ("PUT", Output([b"hello"], 5)),
        ("PUT", ChunkedOutput([b"hello"])),
    ],
)
def test_what_cannot_be_repeated_safely_is_not(method: str, body: Any):
    """A POST, or a body that is gone: the caller hears it."""
    error, server = retry(method, body, READ, CLOSE)
    assert isinstance(error, EmptyHeadError)
    assert (server.accepted, len(server.requests)) == (1, 2)


@pytest.mark.parametrize("part", [b"H", b"HTTP/1.1 100 Continue\r\n\r\n", HELLO[:30]])
def test_a_request_is_not_repeated_once_anything_came_back(part: bytes):
    """Not even after one byte."""
    error, server = retry("GET", None, READ, part, CLOSE)
    assert isinstance(error, PeerError)
    assert (server.accepted, len(server.requests)) == (1, 2)


def test_a_request_is_not_repeated_after_a_timeout():
    """The server may still be at it."""
    with ScriptedServer([READ, OK, READ], [READ, HELLO]) as server:
        client = server.make_client(timeout=0.1)
        client.get("/")
        with pytest.raises(SlowPeerError):
            client.get("/")
        assert server.accepted == 1
        client.close()


def test_a_request_on_a_new_connection_is_not_repeated():
    """A server that never answers is not asked twice."""
    with ScriptedServer([READ, CLOSE], [READ, HELLO]) as server:
        client = server.make_client()
        with pytest.raises(EmptyHeadError):
            client.get("/")
        assert (server.accepted, len(server.requests)) == (1, 1)
        client.close()


def test_a_request_is_repeated_once_and_not_again():
    """The second failure is the caller's to judge."""
    with ScriptedServer([READ, OK, READ, CLOSE], [READ, CLOSE], [READ, OK]) as server:
        client = server.make_client()
        client.get("/")
        with pytest.raises(EmptyHeadError):
            client.get("/")
        assert (server.accepted, len(server.requests)) == (2, 3)
        client.close()


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_connection_known_to_be_closed_is_replaced_for_any_method(method, wait_until):
    """Nothing was sent on it, so there is nothing to repeat."""
    with ScriptedServer([READ, OK, CLOSE], [READ, HELLO]) as server:
        client = server.make_client()
        client.get("/")
        wait_until(lambda: client._local.connection.closed)
        assert client.request(method, "/").body.read() == b"hello"
        assert (server.accepted, len(server.requests)) == (2, 2)
        client.close()


def test_a_connection_of_ones_own_is_never_repeated_on():
    """`Connection.request` sends once."""
    with ScriptedServer([READ, OK, READ, CLOSE], [READ, OK]) as server:
        connection = server.make_client().connect()
        connection.get("/")
        with pytest.raises(EmptyHeadError):
            connection.get("/")
        assert connection.closed
        assert server.accepted == 1


# --- threads ---------------------------------------------------------------------


def test_threads_get_private_connections():
    """A client is shared; what one thread leaves unread does not bother another."""
    peers: list[Any] = []

    def app(request: Any) -> Any:
        peers.append(request["client"])
        return 200, "OK", {}, b"hello"

    with serve(app) as server:
        client: Any = Client(server.address)
        unread = client.get("/").body
        results: list[bytes] = []

        def use() -> None:
            for _ in range(20):
                results.append(client.get("/").body.read())
            client.close()

        threads = [threading.Thread(target=use) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert unread.read() == b"hello"
        client.close()
    assert results == [b"hello"] * 80
    assert len(set(peers)) == 5


def test_the_connection_of_a_thread_ends_with_it(wait_until):
    """Without waiting for the garbage collector, and without a warning."""
    with ScriptedServer([READ, OK]) as server:
        client = server.make_client()
        gc.disable()
        try:
            thread = threading.Thread(target=client.get, args=("/",))
            thread.start()
            thread.join()
            wait_until(lambda: server.ended == 1)
        finally:
            gc.enable()


def test_a_connection_that_is_dropped_is_closed(wait_until):
    """The server sees it at once."""
    with ScriptedServer([READ, OK]) as server:
        gc.disable()
        try:
            connection = server.make_client().connect()
            connection.get("/")
            assert server.ended == 0
            del connection
            wait_until(lambda: server.ended == 1)
        finally:
            gc.enable()


# --- time ------------------------------------------------------------------------


def test_a_server_that_does_not_answer_is_given_up():
    """`timeout` is for the response to begin."""
    with ScriptedServer([READ]) as server:
        connection = server.make_client(timeout=0.1).connect()
        started = time.monotonic()
        with pytest.raises(SlowPeerError) as caught:
            connection.get("/")
        assert time.monotonic() - started < 2.0
        assert isinstance(caught.value, TimeoutError)
        assert connection.closed


def drip(data: bytes, stop: threading.Event) -> Iterator[Any]:
    """A script that sends `data` again and again, one byte at a time."""
    yield READ
    while not stop.wait(0.02):
        for byte in data:
            yield bytes([byte])
            if stop.wait(0.02):
                return


@pytest.mark.parametrize("part", ["head", "interim", "body"])
def test_a_server_that_drips_is_given_up(part: str):
    """D6: `head_timeout` and `min_rate` bound what a byte now and then can hold."""
    stop = threading.Event()
    data = {"head": b"HTTP/1.1 200 OK\r\n", "interim": b"HTTP/1.1 100 \r\n\r\n"}
    options = {"timeout": 0.3, "head_timeout": 0.3, "min_rate": 10_000}
    if part == "body":
        head = b"HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n"

        def script() -> Iterator[Any]:
            yield READ
            yield head
            yield from list(drip(b"x", stop))[:0]
            while not stop.wait(0.02):
                yield b"x"

        steps: Any = script()
    else:
        steps = drip(data[part], stop)
    with ScriptedServer(steps) as server:
        connection = server.make_client(**options).connect()
        started = time.monotonic()
        with pytest.raises((SlowPeerError, HeadTimeoutError, ProtocolError)):
            connection.get("/").body.read()
        assert time.monotonic() - started < 8.0
        assert connection.closed
        stop.set()


def test_a_server_that_does_not_read_is_given_up():
    """A large request has `timeout` for its progress."""
    stop = threading.Event()
    with ScriptedServer([stop.wait]) as server:
        connection = server.make_client(timeout=0.2).connect()
        started = time.monotonic()
        with pytest.raises(SlowPeerError):
            connection.put("/", None, bytes(50_000_000))
        assert time.monotonic() - started < 5.0
        assert connection.closed
        stop.set()


def test_an_answer_before_the_whole_body_was_sent_is_read():
    """A server may refuse a body and close; the refusal arrives."""
    refusal = b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 0\r\n\r\n"
    with ScriptedServer([HEAD, refusal, CLOSE]) as server:
        connection = server.make_client().connect()
        pieces = (bytes(100_000) for _ in range(500))
        try:
            response = connection.put("/", None, Output(pieces, 50_000_000))
        except PeerError:  # the kernel may drop what came before its RST
            pass
        else:
            assert response.status == 413
        assert connection.closed


def test_a_body_over_the_cap_is_refused():
    """`max_body_size`, whatever the framing."""
    for data in (
        HELLO,
        b"HTTP/1.1 200 OK\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ):
        assert answer(data, max_body_size=5)[1] == b"hello"
        with pytest.raises(ContentTooLargeError):
            answer(data, max_body_size=4)


# --- where it connects -----------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_client_speaks_over_every_transport(name: str, tmp_path: Path):
    """With a connection of its own and with a private one."""
    transport = Transport(name, tmp_path)
    with transport.serve(lambda request: (200, "OK", {}, b"hello")) as server:
        client = transport.make_client(server)
        with client.connect() as connection:
            for _ in range(2):
                assert connection.get("/").body.read() == b"hello"
            assert not connection.closed
        assert client.get("/").body.read() == b"hello"
        client.close()


def test_nobody_there_is_an_os_error(tmp_path: Path):
    """At once, as `connect` says it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    for target in (address, str(tmp_path / "none.sock"), b"\0degu-nobody-here"):
        client = Client(target)
        with pytest.raises(OSError, match=r"refused|No such file"):
            client.get("/")
        with pytest.raises(OSError, match=r"refused|No such file"):
            client.connect()


@pytest.mark.parametrize(
    ("address", "host"),
    [
        (("::1", 8080, 0, 0), "[::1]:8080"),
        (("::1", 80, 0, 0), "[::1]"),
        (("fe80::1", 8080, 0, 2), "[fe80::1]:8080"),
        (("127.0.0.1", 8080), "127.0.0.1:8080"),
        (("localhost", 80), "localhost"),
        ("/run/x.sock", "localhost"),
        (b"\0x", "localhost"),
    ],
)
def test_the_host_is_made_from_the_address(address: Any, host: str):
    """S29: with the port only where it is not the default, and never for TLS's name."""
    assert Client(address).host == host
    assert Client(address, host="other.example").host == "other.example"
    secure = SSLClient(shared_pki().client_sslconfig, address)
    assert ":8080" not in secure.server_hostname
    assert "[" not in secure.server_hostname
    name = secure.server_hostname
    assert name == (address[0] if isinstance(address, tuple) else "localhost")


@pytest.mark.parametrize(
    "address", [None, 5, "relative", ("::1", 0, 0, 0), ("::1", 1), ("127.0.0.1",)]
)
def test_a_bad_address_is_refused(address: Any):
    """The error names the argument; port 0 is found out when connecting."""
    with pytest.raises((TypeError, ValueError), match="address"):
        Client(address).connect()


def test_a_bad_host_is_refused():
    """What would be refused on the way in does not go out."""
    for host in ("a b", "a\r\nb: c", "[::1", "a:b"):
        with pytest.raises(ValueError, match="Host"):
            Client(("127.0.0.1", 1), host=host)


def test_a_caller_may_say_another_host():
    """For a server with more than one name."""
    with ScriptedServer([READ, OK]) as server:
        with server.make_client().connect() as connection:
            connection.get("/", {"host": "other.example"})
        assert server.requests[0].count(b"host: ") == 1
        assert b"host: other.example\r\n" in server.requests[0]


def test_bodies_have_the_documented_types():
    """None, `Input` or `ChunkedInput`, as an app's request has them."""
    assert answer(OK)[0].body is None
    assert isinstance(answer(HELLO)[0].body, Input)
    chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
    assert isinstance(answer(chunked)[0].body, ChunkedInput)
    until_close = answer(b"HTTP/1.1 200 OK\r\n\r\nhello")[0].body
    assert isinstance(until_close, Input)
    assert until_close.content_length is None


def test_a_large_upload_over_tls_survives_session_tickets(tmp_path: Path):
    """What TLS itself sends is no surplus, and leaves the timeout as it was."""

    def app(request: Any) -> Any:
        return 200, "OK", {}, b"%d" % sum(map(len, request["body"]))

    transport = Transport("ipv4+tls", tmp_path)
    server = transport.make_server(app)
    server.sslctx.num_tickets = 2  # type: ignore[attr-defined]
    size = 20_000_000
    with server.running(), transport.make_client(server).connect() as connection:
        time.sleep(0.1)  # so that the tickets are there
        assert connection.put("/", None, bytes(size)).body.read() == b"%d" % size
        assert not connection.closed


# --- the end ---------------------------------------------------------------------

SILENT = """
import sys
sys.path.insert(0, {root!r})
from degu.client import Client, SSLClient
from degu.server import Server
running = Server(("127.0.0.1", 0), lambda r: (200, "OK", {{}}, b"hello")).running()
server = running.__enter__()
client = Client(server.address)
body = client.get("/").body
connection = client.connect()
response = connection.get("/")
class Cycle: pass
cycle = Cycle()
cycle.me, cycle.connection = cycle, client.connect()
cycle.connection.get("/")  # its thread runs: early CPython 3.11 may crash on a new one
"""


def test_a_script_that_exits_with_open_connections_prints_nothing():
    """S27: neither an error nor, in development mode, a warning."""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", SILENT.format(root=str(ROOT))],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_options_have_the_documented_defaults():
    """The client's patience is longer than the server's."""
    client = Client(("127.0.0.1", 1))
    assert client.options["timeout"] == limits.CLIENT_TIMEOUT
    assert client.options["timeout"] > limits.TIMEOUT
    assert repr(client) == "Client(('127.0.0.1', 1))"

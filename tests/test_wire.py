"""degu.wire: values <-> bytes. Tables of each function, and properties of them all.

Where the compiled twin is built, every test here also runs against it.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import itertools
import os
import random
import re
import time
import tracemalloc
from collections import UserDict
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from degu import wire
from degu.base import build_uri
from degu.errors import (
    AppError,
    ContentTooLargeError,
    ExpectationError,
    HeadTooLargeError,
    MisdirectedError,
    ParseError,
    ProtocolError,
    TargetTooLongError,
    UnsupportedError,
    VersionError,
)
from degu.limits import (
    MAX_CHUNK_LINE_SIZE,
    MAX_CHUNK_SIZE,
    MAX_HEAD_SIZE,
    MAX_HEADER_COUNT,
    MAX_TARGET_SIZE,
    MAX_TRAILERS_SIZE,
)
from tests import corpus
from tests.conftest import TIMEOUT_FACTOR

MODULES: list[Any] = [wire]
if not os.environ.get("DEGU_PURE_PYTHON"):
    with contextlib.suppress(ImportError):  # not built: the pure one is all there is
        MODULES.append(importlib.import_module("degu._wire"))

both = pytest.mark.parametrize("wire", MODULES, ids=lambda module: module.__name__)
HOST = {"host": "localhost"}


def lines(*texts: str) -> bytes:
    """A head: `texts` with CRLF between them."""
    return "\r\n".join(texts).encode("latin-1")


def request(*texts: str) -> bytes:
    """The head of a request to localhost with further field lines."""
    return lines("GET / HTTP/1.1", "host: localhost", *texts)


def response(*texts: str) -> bytes:
    """The head of a response with these field lines."""
    return lines("HTTP/1.1 200 OK", *texts)


def repeat(unit: str, size: int) -> str:
    """`unit` again and again, `size` characters in all."""
    return (unit * (size // len(unit) + 1))[:size]


# --- request heads -----------------------------------------------------------


@both
@pytest.mark.parametrize(
    ("head", "method", "uri", "path", "query"),
    [
        (b"GET / HTTP/1.1", "GET", "/", [], None),
        (b"GET /? HTTP/1.1", "GET", "/?", [], ""),
        (b"HEAD // HTTP/1.1", "HEAD", "//", ["", ""], None),
        (b"PUT /foo/ HTTP/1.1", "PUT", "/foo/", ["foo", ""], None),
        (b"POST /a/b?c=d&e HTTP/1.1", "POST", "/a/b?c=d&e", ["a", "b"], "c=d&e"),
        (b"PATCH /%2F%c3%a9 HTTP/1.1", "PATCH", "/%2F%c3%a9", ["%2F%c3%a9"], None),
        (b"OPTIONS * HTTP/1.1", "OPTIONS", "*", [], None),
        (b"\r\nDELETE /x HTTP/1.1", "DELETE", "/x", ["x"], None),
        (b"GET http://LOCALHOST/a?b HTTP/1.1", "GET", "/a?b", ["a"], "b"),
        (b"GET http://localhost HTTP/1.1", "GET", "/", [], None),
        (b"GET http://localhost?b HTTP/1.1", "GET", "/?b", [], "b"),
    ],
)
def test_request_is_parsed(
    wire: Any, head: bytes, method: str, uri: str, path: list[str], query: str | None
):
    """The request-line becomes four values; an absolute target becomes a path."""
    assert wire.parse_request(head + b"\r\nHost:\tlocalhost ") == {
        "method": method,
        "uri": uri,
        "script": [],
        "path": path,
        "query": query,
        "headers": HOST,
    }


@both
def test_request_is_fresh_each_time(wire: Any):
    """Neither the path nor the headers of a remembered line are shared."""
    first = wire.parse_request(request().replace(b"/ ", b"/a/b "))
    first["path"].clear()
    first["script"].append("a")
    first["headers"].clear()
    second = wire.parse_request(request().replace(b"/ ", b"/a/b "))
    assert second["path"] == ["a", "b"]
    assert second["script"] == []
    assert second["headers"] == HOST


@both
def test_methods_and_scheme_are_those_of_the_server(wire: Any):
    """A line that one server took is not taken by one with other methods."""
    head = lines("BREW http://localhost/pot HTTP/1.1", "host: localhost")
    parsed = wire.parse_request(head, {"BREW"}, "http")
    assert (parsed["method"], parsed["path"]) == ("BREW", ["pot"])
    with pytest.raises(UnsupportedError, match=r"one of \['DELETE', .* got 'BREW'"):
        wire.parse_request(head)
    with pytest.raises(MisdirectedError):
        wire.parse_request(head, {"BREW"}, "https")


REFUSED_REQUESTS = [
    (b"", ParseError, "expected 'METHOD TARGET HTTP/1.1', got ''"),
    (b"GET /", ParseError, "expected 'METHOD TARGET HTTP/1.1', got 'GET /'"),
    (b"GET  / HTTP/1.1", ParseError, "got 'GET  / HTTP/1.1'"),
    (b"\r\n\r\nGET / HTTP/1.1", ParseError, "expected 'METHOD TARGET HTTP/1.1'"),
    (b"GET / HTTP/1.0", VersionError, "expected HTTP/1.1, got 'HTTP/1.0'"),
    (b"PRI * HTTP/2.0", VersionError, "expected HTTP/1.1, got 'HTTP/2.0'"),
    (b"GET / http/1.1", ParseError, "expected the version HTTP/1.1, got 'http/1.1'"),
    (b"G@T / HTTP/1.1", ParseError, "expected a method token, got 'G@T'"),
    (b"BREW / HTTP/1.1", UnsupportedError, "expected one of ['DELETE', .*got 'BREW'"),
    (b"GET * HTTP/1.1", ParseError, "expected a path and query by RFC 3986, got '*'"),
    (b"GET /a%2 HTTP/1.1", ParseError, "expected a path and query .* got '/a%2'"),
    (b"GET /../a HTTP/1.1", ParseError, "without dot segments, got '/../a'"),
    (b"GET /" + b"a" * 8192 + b" HTTP/1.1", TargetTooLongError, "8192 .* got 8193"),
    (b"A" * 8300 + b" / HTTP/1.1", TargetTooLongError, "8192 bytes, got more"),
    (request("no colon"), ParseError, "expected a field line .* got 'no colon'"),
    (request("a : b"), ParseError, "expected a field line .* got 'a : b'"),
    (request("a: b", " c"), ParseError, "expected a field line .* got ' c'"),
    (request("a: b", "A: c"), ParseError, "expected the field 'a' once, got it again"),
    (request("a: \0"), ParseError, r"expected ASCII lines .* got b'.x00.r.n'"),
    (request(*["a: b"] * 100), HeadTooLargeError, "at most 100 fields, got 101"),
    (request("content-length: +1"), ParseError, "content-length: .* got '+1'"),
    (request("transfer-encoding: gzip"), ParseError, "'chunked', got 'gzip'"),
    (request("transfer-encoding: XchunkedX"), ParseError, "got 'XchunkedX'"),
    (
        request("transfer-encoding: gzip, chunked"),
        UnsupportedError,
        "'chunked' alone, got 'gzip, chunked'",
    ),
    (request("expect: tea"), ExpectationError, "expected '100-continue', got 'tea'"),
    (lines("GET / HTTP/1.1"), ParseError, "expected a Host field, got none"),
    (lines("", "GET / HTTP/1.1"), ParseError, "expected a Host field, got none"),
    (
        lines("GET / HTTP/1.1", "host: a:b"),
        ParseError,
        "expected a Host such as 'name:8080', got 'a:b'",
    ),
    (
        lines("GET http://a/ HTTP/1.1", "host: b"),
        ParseError,
        "expected the target's authority to be the Host 'b', got 'a'",
    ),
    (
        lines("GET ftp://a/ HTTP/1.1", "host: a"),
        MisdirectedError,
        "expected http, got 'ftp'",
    ),
]


def loosely(message: str) -> str:
    """A pattern for `message`, in which only ``.*`` is more than text."""
    return re.escape(message).replace(r"\.\*", ".*").replace(r"b'\.", r"b'\\")


@both
@pytest.mark.parametrize(("head", "error", "message"), REFUSED_REQUESTS)
def test_request_is_refused_with_what_was_expected_and_came(
    wire: Any, head: bytes, error: type[ProtocolError], message: str
):
    """Each fault has its error, and its message shows the offending part."""
    message = loosely(message).replace(r"\.r\.n", r"\\r\\n")
    with pytest.raises(error, match=message) as caught:
        wire.parse_request(head)
    assert type(caught.value) is error


@both
@pytest.mark.parametrize(
    ("arguments", "head"),
    [
        (("GET", "/", HOST), b"GET / HTTP/1.1\r\nhost: localhost"),
        (("OPTIONS", "*", {}), b"OPTIONS * HTTP/1.1"),
        (("BREW", "/pot?a", {}), b"BREW /pot?a HTTP/1.1"),
        (
            ("PUT", "/%20", {"content-length": 3}),
            b"PUT /%20 HTTP/1.1\r\ncontent-length: 3",
        ),
        (
            ("PUT", "/", {"transfer-encoding": "chunked", "a": ""}),
            b"PUT / HTTP/1.1\r\ntransfer-encoding: chunked\r\na: ",
        ),
    ],
)
def test_request_is_formatted(wire: Any, arguments: Any, head: bytes):
    """Values become a head without its final empty line, in their order."""
    assert wire.format_request(*arguments) == head


@both
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("get it", "/", {}), "method: expected a token .* got 'get it'"),
        ((b"GET", "/", {}), "method: expected a token .* got b'GET'"),
        (("CONNECT", "/", {}), "method: expected a token .* got 'CONNECT'"),
        (("", "/", {}), "method: expected a token .* got ''"),
        (("GET", b"/", {}), "uri: expected a str, got b'/'"),
        (("GET", "", {}), "uri: expected a path and query by RFC 3986, got ''"),
        (("GET", "foo", {}), "uri: expected a path and query .* got 'foo'"),
        (("GET", "/a b", {}), "uri: expected 'METHOD TARGET HTTP/1.1'"),
        (("GET", "/\r\nx:y", {}), "uri: expected a path and query"),
        (("GET", "/é", {}), "uri: expected a path and query .* got '/é'"),
        (("GET", "/a/..", {}), "uri: expected a path without dot segments"),
        (("GET", "*", {}), "uri: expected a path and query .* got '*'"),
        (("GET", "http://a/", {}), "uri: expected a path from '/', got 'http://a/'"),
        (("GET", "X://a/", {}), "uri: expected a path from '/', got 'X://a/'"),
        (("GET", "/" * 8193, {}), "uri: expected a target .* 8192 bytes, got 8193"),
        (("GET", "/" * 9000, {}), "8192 bytes, got a request-line of 9013"),
        (("GET", "/", None), "headers: expected a dict, got None"),
        (("GET", "/", {"A": "b"}), "expected a lower-case field name, got 'A'"),
        (("GET", "/", {"": "b"}), "expected a lower-case field name, got ''"),
        (("GET", "/", {1: "b"}), "expected a lower-case field name, got 1"),
        (("GET", "/", {"a": 1}), "headers: a: expected a str of visible .* got 1"),
        (("GET", "/", {"a": "b\r\nc: d"}), "headers: a: expected a str of visible"),
        (("GET", "/", {"a": "b\0"}), "headers: a: expected a str of visible"),
        (("GET", "/", {"a": " b"}), "surrounding blanks, got ' b'"),
        (("GET", "/", {"a": "b\t"}), r"surrounding blanks, got 'b"),
        (("GET", "/", {"a": "é"}), "surrounding blanks, got 'é'"),
        (("GET", "/", {"content-length": "3"}), "expected an int from 0, got '3'"),
        (("GET", "/", {"content-length": True}), "expected an int from 0, got True"),
        (("GET", "/", {"content-length": -1}), "expected an int from 0, got -1"),
        (("GET", "/", {"content-length": 10**16}), "expected an int from 0, got 1000"),
        (("GET", "/", {"transfer-encoding": "Chunked"}), "'chunked', got 'Chunked'"),
        (("GET", "/", {"transfer-encoding": 1}), "expected 'chunked', got 1"),
        (("GET", "/", {f"a{n}": "b" for n in range(101)}), "100 fields, got 101"),
        (("GET", "/", {"a": "b" * 32768}), "a head of at most 32768 bytes, got 32791"),
    ],
)
def test_request_that_must_not_be_sent_is_an_app_error(
    wire: Any, arguments: Any, message: str
):
    """What a server has to refuse can't be sent; the message names the argument."""
    with pytest.raises(AppError, match=loosely(message)):
        wire.format_request(*arguments)


@both
def test_absolute_target_that_came_in_can_not_be_sent(wire: Any):
    """What was remembered on the way in does not get around the check on output."""
    head = b"GET http://localhost/seen HTTP/1.1\r\nhost: localhost"
    assert wire.parse_request(head)["uri"] == "/seen"
    with pytest.raises(AppError, match="uri: expected a path from '/'"):
        wire.format_request("GET", "http://localhost/seen", {})


@both
def test_largest_head_goes_both_ways(wire: Any):
    """32768 bytes with the empty line that ends it, and no byte more."""
    value = "b" * (MAX_HEAD_SIZE - len("GET / HTTP/1.1\r\nhost: a\r\na: \r\n\r\n"))
    head = wire.format_request("GET", "/", {"host": "a", "a": value})
    assert len(head) + 4 == MAX_HEAD_SIZE
    assert wire.parse_request(head)["headers"] == {"host": "a", "a": value}
    with pytest.raises(AppError, match="at most 32768 bytes, got 32769"):
        wire.format_request("GET", "/", {"host": "a", "a": value + "b"})
    faulty = head.replace(b"\r\na:", b"\r\na ")
    with pytest.raises(ParseError, match="expected a field line"):
        wire.parse_request(faulty)
    faulty = faulty.replace(b"GET / HTTP/1.1\r\nhost: a", b"HTTP/1.1 200 OK\r\nhost: ")
    assert len(faulty) == len(head)
    with pytest.raises(ParseError, match="expected a field line"):
        wire.parse_response(faulty)


@both
def test_request_line_has_a_cap_of_its_own(wire: Any):
    """A long method counts too: 8254 characters pass, one more does not."""
    method = "A" * (MAX_TARGET_SIZE + 62 - len(" / HTTP/1.1"))
    line = f"{method} / HTTP/1.1"
    assert wire.parse_request(lines(line, "host: a"), {method})["method"] == method
    assert wire.format_request(method, "/", {}) == line.encode()
    with pytest.raises(TargetTooLongError):
        wire.parse_request(lines("A" + line, "host: a"), {"A" + method})
    with pytest.raises(AppError, match="got a request-line of 8255"):
        wire.format_request("A" + method, "/", {})


# --- targets and hosts -------------------------------------------------------


@both
@pytest.mark.parametrize(
    ("uri", "path", "query"),
    [
        ("/", [], None),
        ("/foo", ["foo"], None),
        ("/foo/", ["foo", ""], None),
        ("//", ["", ""], None),
        ("/?", [], ""),
        ("/a?b?c/../d", ["a"], "b?c/../d"),
        ("/...", ["..."], None),
        ("/.a/a./a..b", [".a", "a.", "a..b"], None),
        ("/%2e%2e%2e", ["%2e%2e%2e"], None),
        ("/a;b=c:@!$&'()*+,|[]^", ["a;b=c:@!$&'()*+,|[]^"], None),
        ("/?{}`\\|[]^", [], "{}`\\|[]^"),
    ],
)
def test_target_is_split(wire: Any, uri: str, path: list[str], query: str | None):
    """Path components stay encoded; the query begins behind the first ``?``."""
    assert wire.parse_target(uri) == (path, query)
    assert build_uri(path, query) == uri


@both
@pytest.mark.parametrize(
    "uri",
    [
        "",
        "foo",
        "?",
        "*",
        "/a b",
        "/#",
        '/"',
        "/<",
        "/>",
        "/{",
        "/\\",
        "/`",
        "/%",
        "/%a",
        "/%zz",
        "/%²0",
        "/é",
        "/\x00",
        "/\n",
        "/\x7f",
        "/.",
        "/..",
        "/a/../b",
        "/a/./b",
        "/%2e",
        "/.%2E/",
        "/a%2f..",
        "/a%5c.",
        "/..%2fa",
        "/..%5Ca",
        "/?a%g0",
    ],
)
def test_target_is_refused(wire: Any, uri: str):
    """Nothing outside of RFC 3986, and no dot segment, however it is written."""
    with pytest.raises(ParseError, match="expected a path "):
        wire.parse_target(uri)


@both
@pytest.mark.parametrize(
    ("value", "name", "port"),
    [
        ("localhost", "localhost", None),
        ("LocalHost:80", "localhost", 80),
        ("a.b-c_d.", "a.b-c_d.", None),
        ("127.0.0.1:0", "127.0.0.1", 0),
        ("[::]", "[::]", None),
        ("[::1]:65535", "[::1]", 65535),
        ("[FE80::A]", "[fe80::a]", None),
        ("[1:2:3:4:5:6:7:8]", "[1:2:3:4:5:6:7:8]", None),
        ("[1:2:3:4:5:6:7::]", "[1:2:3:4:5:6:7::]", None),
        ("[::2:3:4:5:6:7:8]", "[::2:3:4:5:6:7:8]", None),
        ("[::1.2.3.4]", "[::1.2.3.4]", None),
        ("[1:2:3:4:5:6:1.2.3.4]", "[1:2:3:4:5:6:1.2.3.4]", None),
        ("[1:2:3:4:5::1.2.3.4]", "[1:2:3:4:5::1.2.3.4]", None),
        ("a" * 253, "a" * 253, None),
    ],
)
def test_host_is_parsed(wire: Any, value: str, name: str, port: int | None):
    """Name in lower case and port."""
    assert wire.parse_host(value) == (name, port)


@both
@pytest.mark.parametrize(
    "value",
    [
        "",
        ":",
        ":80",
        "a:",
        "a:b",
        "a:65536",
        "a:000080",
        "a:-1",
        "a:+1",
        "a:1_0",
        "a:²",
        "a b",
        "a,b",
        "a/b",
        "a@b",
        "a%41",
        "é",
        "a\n",
        ".",
        ".a",
        "a..b",
        "a..",
        "::1",
        "[::1",
        "::1]",
        "[]",
        "[::1]a",
        "[::1]:",
        "[::1%lo]",
        "[1:2:3]",
        "[::1::]",
        "[::12345]",
        "[::1.2.3]",
        "[::1.2.3.256]",
        "[1:2:3:4:5:6:7:8:9]",
        "[v1.a]",
        "[1:2:3:4:5:6:7::8]",
        "[1:2:3:4:5:6:7:1.2.3.4]",
        "[1:2:3:4:5:1.2.3.4]",
        "[1:2:3:4:5:6::1.2.3.4]",
        "[1.2.3.4::1]",
        "[:::]",
        "[localhost]",
        "a" * 254,
    ],
)
def test_host_is_refused(wire: Any, value: str):
    """No userinfo, escape, zone, empty label or empty port, and no list."""
    with pytest.raises(ParseError, match="expected a Host such as 'name:8080', got "):
        wire.parse_host(value)


# --- response heads ----------------------------------------------------------


@both
@pytest.mark.parametrize(
    ("head", "status", "reason", "headers"),
    [
        (b"HTTP/1.1 200 OK", 200, "OK", {}),
        (b"HTTP/1.1 100 ", 100, "", {}),
        (b"HTTP/1.1 200  X OK X ", 200, "X OK X", {}),
        (b"HTTP/1.1 599 \t a \t b \t", 599, "a \t b", {}),
        (b"HTTP/1.0 404 Not Found", 404, "Not Found", {"connection": "close"}),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nTransfer-Encoding: CHUNKED",
            200,
            "OK",
            {"content-length": 0, "transfer-encoding": "chunked"},
        ),
    ],
)
def test_response_is_parsed(
    wire: Any, head: bytes, status: int, reason: str, headers: dict[str, Any]
):
    """Status, reason without blanks around it, headers."""
    assert wire.parse_response(head) == (status, reason, headers)


@both
@pytest.mark.parametrize(
    ("head", "error", "message"),
    [
        (b"", ParseError, "expected 'HTTP/1.1 200 OK', got ''"),
        (b"HTTP/1.1 200", ParseError, "expected 'HTTP/1.1 200 OK', got 'HTTP/1.1 200'"),
        (b"HTTP/1.1 099 A", ParseError, "expected 'HTTP/1.1 200 OK'"),
        (b"HTTP/1.1 600 A", ParseError, "expected 'HTTP/1.1 200 OK'"),
        (b"HTTP/1.1  200 A", ParseError, "expected 'HTTP/1.1 200 OK'"),
        (b"\r\nHTTP/1.1 200 OK", ParseError, "expected 'HTTP/1.1 200 OK', got ''"),
        (b"HTTP/1.0 200", ParseError, "expected 'HTTP/1.1 200 OK', got 'HTTP/1.0 200'"),
        (b"HTTP/1.2 200 OK", VersionError, "expected HTTP/1.1, got 'HTTP/1.2'"),
        (b"HTTP/2.0 200 OK", VersionError, "expected HTTP/1.1, got 'HTTP/2.0'"),
        (b"ICY 200 OK", ParseError, "expected 'HTTP/1.1 200 OK', got 'ICY 200 OK'"),
        (b"HTTP/1.1 200 \xe9", ParseError, "expected ASCII lines"),
        (
            b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked",
            ParseError,
            "expected no transfer-encoding in HTTP/1.0, got 'chunked'",
        ),
        (response("a: b", "A: b"), ParseError, "expected the field 'a' once"),
        (response("a b: c"), ParseError, "expected a field line 'name: value'"),
    ],
)
def test_response_is_refused_with_what_was_expected_and_came(
    wire: Any, head: bytes, error: type[ProtocolError], message: str
):
    """Each fault has its error, and its message shows the offending part."""
    with pytest.raises(error, match=re.escape(message)) as caught:
        wire.parse_response(head)
    assert type(caught.value) is error


@both
@pytest.mark.parametrize(
    ("arguments", "head"),
    [
        ((200, "OK", {}), b"HTTP/1.1 200 OK"),
        ((599, "", {"a": "b"}), b"HTTP/1.1 599 \r\na: b"),
        (
            (200, "OK", {"set-cookie": ["a=1", "b=2"]}),
            b"HTTP/1.1 200 OK\r\nset-cookie: a=1\r\nset-cookie: b=2",
        ),
        ((200, "OK", {"set-cookie": ("a=1",)}), b"HTTP/1.1 200 OK\r\nset-cookie: a=1"),
        ((200, "OK", UserDict(a="b")), b"HTTP/1.1 200 OK\r\na: b"),
    ],
)
def test_response_is_formatted(wire: Any, arguments: Any, head: bytes):
    """A list of cookies becomes a line for each."""
    assert wire.format_response(*arguments) == head


@both
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((99, "A", {}), "status: expected an int from 100 to 599, got 99"),
        ((600, "A", {}), "status: expected an int from 100 to 599, got 600"),
        ((True, "A", {}), "status: expected an int from 100 to 599, got True"),
        (("200", "A", {}), "status: expected an int from 100 to 599, got '200'"),
        ((200, b"OK", {}), "reason: expected a str of visible ASCII .* got b'OK'"),
        ((200, " OK", {}), "reason: expected a str of visible ASCII .* got ' OK'"),
        ((200, "O\r\nK: a", {}), "reason: expected a str of visible ASCII"),
        ((200, "Ö", {}), "reason: expected a str of visible ASCII .* got 'Ö'"),
        ((200, "OK", [("a", "b")]), "headers: expected a dict, got [('a', 'b')]"),
        ((200, "OK", {"a": ["b", "c"]}), "headers: a: .* got ['b', 'c']"),
        ((200, "OK", {"set-cookie": [1]}), "headers: set-cookie: .* got 1"),
        ((200, "OK", {"set-cookie": ["a\n"]}), "headers: set-cookie: .* got 'a"),
        ((200, "OK", {"set-cookie": ["a"] * 101}), "at most 100 fields, got 101"),
        ((200, "OK", {"a": "b" * 33000}), "a head of at most 32768 bytes, got"),
    ],
)
def test_response_that_must_not_be_sent_is_an_app_error(
    wire: Any, arguments: Any, message: str
):
    """What a client has to refuse can't be sent; the message names the argument."""
    with pytest.raises(AppError, match=loosely(message)):
        wire.format_response(*arguments)


@both
def test_status_is_checked(wire: Any):
    """Ints from 100 to 599 pass, everything else is an `AppError`."""
    for status in (100, 200, 599):
        assert wire.check_status(status) is None
    wrong: list[Any] = [0, 99, 600, -200, 200.0, "200", None, True]
    for status in wrong:
        with pytest.raises(AppError, match="status: expected an int from 100 to 599"):
            wire.check_status(status)


# --- header sections ---------------------------------------------------------


@both
@pytest.mark.parametrize(
    ("block", "headers"),
    [
        (b"", {}),
        (b"A:b", {"a": "b"}),
        (b"a: \t b \t c \t", {"a": "b \t c"}),
        (b"a:", {"a": ""}),
        (b"content-length: 0", {"content-length": 0}),
        (b"content-length: 9999999999999999", {"content-length": 9999999999999999}),
        (b"accept: a\r\nACCEPT: b\r\naccept:", {"accept": "a, b"}),
        (b"accept:\r\naccept: a", {"accept": "a"}),
        (b"cookie: a=1\r\ncookie: b=2", {"cookie": "a=1; b=2"}),
        (b"set-cookie: a=1", {"set-cookie": "a=1"}),
        (b"set-cookie: a\r\nset-cookie: a\r\nset-cookie: b", {"set-cookie": [*"aab"]}),
    ],
)
def test_headers_are_parsed(wire: Any, block: bytes, headers: dict[str, Any]):
    """Names in lower case, values without blanks around, lists joined."""
    assert wire.parse_headers(block) == headers


# Spelled out, so that none can get lost there unseen.
LIST_VALUED = """
    accept accept-charset accept-encoding accept-language accept-ranges
    access-control-allow-headers access-control-allow-methods
    access-control-expose-headers access-control-request-headers allow alt-svc
    cache-control connection content-encoding content-language
    content-security-policy forwarded if-match if-none-match keep-alive link
    permissions-policy pragma prefer preference-applied proxy-authenticate
    server-timing te trailer upgrade vary via warning www-authenticate
    x-forwarded-for x-forwarded-host x-forwarded-proto
"""


@both
@pytest.mark.parametrize("name", LIST_VALUED.split())
def test_list_field_is_joined(wire: Any, name: str):
    """Each of the list-valued fields may be repeated (others: see below)."""
    block = f"{name}: a\r\nx: y\r\n{name.title()}: b".encode()
    assert wire.parse_headers(block) == {name: "a, b", "x": "y"}


@both
@pytest.mark.parametrize(
    "name",
    [
        "content-length",
        "transfer-encoding",
        "host",
        "expect",
        "content-type",
        "range",
        "authorization",
        "origin",
        "referer",
        "user-agent",
        "date",
        "etag",
        "location",
        "content-range",
        "if-range",
        "max-forwards",
        "x-custom",
    ],
)
def test_other_field_is_refused_when_repeated(wire: Any, name: str):
    """Also where both values are the same: which one counts is nobody's to guess."""
    value = {"content-length": "1", "transfer-encoding": "chunked"}.get(name, "a")
    line = f"{name}: {value}".encode()
    assert name in wire.parse_headers(line)
    with pytest.raises(ParseError, match=f"expected the field '{name}' once"):
        wire.parse_headers(line + b"\r\n" + line)


@both
@pytest.mark.parametrize(
    "value",
    [
        "",
        "+1",
        "-1",
        " ",
        "1 2",
        "1,1",
        "1, 1",
        "01",
        "00",
        "0x1",
        "1_0",
        "1.0",
        "1e1",
        "a",
        "²",
        "\u0661",
        "1;",
        "10000000000000000",
        "\t1\v",
    ],
)
def test_length_that_is_not_canonical_is_refused(wire: Any, value: str):
    """A length is written in one way; what reads as another number is no number."""
    with pytest.raises(ParseError):
        wire.parse_headers(b"content-length:" + value.encode())


@both
def test_headers_are_formatted(wire: Any):
    """Lines have CRLF between them, not behind the last."""
    assert wire.format_headers({}) == b""
    headers = {"a": "b", "content-length": 3, "set-cookie": ["c", "d"]}
    block = b"a: b\r\ncontent-length: 3\r\nset-cookie: c\r\nset-cookie: d"
    assert wire.format_headers(headers) == block


@both
def test_every_cookie_counts_as_a_field(wire: Any):
    """A list of cookies is as many fields as it has items."""
    headers = {"a": "b", "set-cookie": ["c=d"] * (MAX_HEADER_COUNT - 1)}
    block = wire.format_headers(headers)
    assert block.count(b"\r\n") + 1 == MAX_HEADER_COUNT
    assert wire.parse_headers(block) == headers
    headers["e"] = "f"
    with pytest.raises(AppError, match="at most 100 fields, got 101"):
        wire.format_headers(headers)
    with pytest.raises(HeadTooLargeError, match="at most 100 fields, got 101"):
        wire.parse_headers(block + b"\r\ne: f")


# --- framing -----------------------------------------------------------------

LENGTH = {"content-length": 3}
CODED = {"transfer-encoding": "chunked"}
ZERO = {"content-length": 0}


@both
@pytest.mark.parametrize(
    ("headers", "method", "status", "framing"),
    [
        ({}, "GET", None, None),
        ({}, "POST", None, None),
        (ZERO, "GET", None, None),
        (ZERO, "POST", None, None),
        (LENGTH, "POST", None, 3),
        (CODED, "PUT", None, wire.CHUNKED),
        (CODED, "BREW", None, wire.CHUNKED),
        ({}, "GET", 200, wire.UNTIL_CLOSE),
        (ZERO, "GET", 200, None),
        (LENGTH, "DELETE", 404, 3),
        (CODED, "GET", 200, wire.CHUNKED),
        (LENGTH, "HEAD", 200, None),
        (CODED, "HEAD", 200, None),
        ({}, "HEAD", 200, None),
        (LENGTH, "GET", 304, None),
        (CODED, "GET", 304, None),
        ({}, "GET", 204, None),
        (ZERO, "GET", 204, None),
        ({}, "GET", 100, None),
        (LENGTH, "GET", 100, ParseError),
        (CODED, "GET", 103, ParseError),
        (LENGTH, "GET", 204, ParseError),
        (CODED, "GET", 204, ParseError),
        (LENGTH, "GET", None, ParseError),
        (LENGTH, "HEAD", None, ParseError),
        (CODED, "DELETE", None, ParseError),
        ({**LENGTH, **CODED}, "POST", None, ParseError),
        ({**ZERO, **CODED}, "POST", None, ParseError),
        ({**LENGTH, **CODED}, "GET", 200, ParseError),
        ({**LENGTH, **CODED}, "HEAD", 200, ParseError),
    ],
)
def test_framing_is_decided(
    wire: Any, headers: Any, method: str, status: int | None, framing: Any
):
    """RFC 9112 §6.3, with a refusal where a head contradicts itself."""
    if framing is ParseError:
        with pytest.raises(ParseError, match=r"expected .*, got "):
            wire.body_framing(headers, method, status)
    else:
        assert wire.body_framing(headers, method, status) == framing


TOLD: Any = {"a": "b", **LENGTH}
GZIP = {"transfer-encoding": "gzip"}
FRAMED = [
    ({"a": "b"}, None, "GET", None, {"a": "b"}),
    ({"a": "b"}, 0, "DELETE", None, {"a": "b"}),
    ({"a": "b"}, 3, "POST", None, TOLD),
    (TOLD, 3, "BREW", None, TOLD),
    (ZERO, None, "GET", None, ZERO),
    *(({}, None, method, None, ZERO) for method in ("POST", "PUT", "PATCH")),
    ({}, None, "OPTIONS", None, {}),
    ({}, wire.CHUNKED, "PUT", None, CODED),
    (CODED, wire.CHUNKED, "PUT", None, CODED),
    # Left as it is, so that it is refused where it is formatted.
    (GZIP, wire.CHUNKED, "PUT", None, GZIP),
    ({}, None, "GET", 200, ZERO),
    ({}, 3, "GET", 200, LENGTH),
    ({}, wire.CHUNKED, "GET", 599, CODED),
    ({}, None, "HEAD", 200, {}),
    (LENGTH, None, "HEAD", 200, LENGTH),
    *(({}, None, "GET", status, {}) for status in (100, 199, 204, 304)),
    (TOLD, None, "GET", 304, TOLD),
    *(
        ({"a": "b", **ZERO}, None, "GET", status, {"a": "b"})
        for status in (100, 199, 204)
    ),
    *((ZERO, None, "GET", status, ZERO) for status in (200, 304)),
]


@both
@pytest.mark.parametrize(("headers", "framing", "method", "status", "framed"), FRAMED)
def test_framing_is_written(
    wire: Any, headers: Any, framing: Any, method: str, status: Any, framed: Any
):
    """The field that says it is added, and a zero only where it says something."""
    before = dict(headers)
    assert wire.frame_headers(headers, framing, method, status) == framed
    assert headers == before
    if status is None:
        assert wire.frame_headers(headers, framing, method) == framed


@both
@pytest.mark.parametrize(
    ("headers", "framing", "method", "status", "message"),
    [
        (LENGTH, None, "POST", None, "they frame a body of 3, the body has 0"),
        (LENGTH, 4, "POST", None, "they frame a body of 3, the body has 4"),
        (ZERO, 4, "POST", None, "none (method POST, status None), got 4 bytes"),
        (CODED, None, "BREW", None, "body of chunked, the body has 0"),
        (CODED, 3, "POST", None, "expected content-length or .*, got both"),
        (LENGTH, "chunked", "POST", None, "expected content-length or .*, got both"),
        ({}, 3, "GET", None, "expected no body with GET, got 3"),
        ({}, "chunked", "HEAD", None, "expected no body with HEAD, got 'chunked'"),
        (
            {},
            3,
            "HEAD",
            200,
            "body: expected none (method HEAD, status 200), got 3 bytes",
        ),
        (
            {},
            3,
            "GET",
            304,
            "body: expected none (method GET, status 304), got 3 bytes",
        ),
        ({}, "chunked", "GET", 304, "(method GET, status 304), got one in chunks"),
        ({}, 3, "GET", 204, "headers: expected no body with status 204, got 3"),
        ({}, 3, "GET", 199, "expected no body with status 199, got 3"),
        (LENGTH, None, "GET", 200, "body of 3, the body has 0"),
        (LENGTH, None, "GET", 204, "expected no body with status 204, got 3"),
    ],
)
def test_framing_that_contradicts_is_an_app_error(
    wire: Any, headers: Any, framing: Any, method: str, status: Any, message: str
):
    """Headers that say something else than the body, or where none may be."""
    with pytest.raises(AppError, match=loosely(message)):
        wire.frame_headers(headers, framing, method, status)


@both
def test_whole_messages_are_built(wire: Any):
    """Framed, formatted and joined; a host that is given stays, and where it is."""
    built = wire.build_request("PUT", "/a", {"b": "c"}, b"def", "localhost:1")
    assert built == (
        b"PUT /a HTTP/1.1\r\nhost: localhost:1\r\nb: c\r\ncontent-length: 3\r\n\r\ndef"
    )
    assert wire.build_request("GET", "/", {"b": "c", "host": "d"}, None, "e") == (
        b"GET / HTTP/1.1\r\nb: c\r\nhost: d\r\n\r\n"
    )
    assert wire.build_request("POST", "/", {"host": "d"}, bytearray(), "e") == (
        b"POST / HTTP/1.1\r\nhost: d\r\ncontent-length: 0\r\n\r\n"
    )
    assert wire.build_response(201, "Made", {"b": "c"}, bytearray(b"de"), "PUT") == (
        b"HTTP/1.1 201 Made\r\nb: c\r\ncontent-length: 2\r\n\r\nde"
    )
    assert (
        wire.build_response(200, "OK", {}, None, "HEAD") == b"HTTP/1.1 200 OK\r\n\r\n"
    )
    with pytest.raises(
        AppError, match=r"expected none .method HEAD, status 200., got 2 bytes"
    ):
        wire.build_response(200, "OK", {}, b"de", "HEAD")
    with pytest.raises(AppError, match="expected no body with GET, got 2"):
        wire.build_request("GET", "/", {}, b"de", "e")


@both
@pytest.mark.parametrize(
    ("value", "closes"),
    [
        ("close", True),
        ("Close", True),
        ("keep-alive, CLOSE", True),
        ("close\t ,te", True),
        ("te,close", True),
        ("te ,close\x0b", False),
        ("keep-alive", False),
        ("closed", False),
        ('"close"', False),
        ("", False),
    ],
)
def test_connection_option_is_found(wire: Any, value: str, closes: bool):
    """`close` counts anywhere in the list and in any case, but only as a whole."""
    assert wire.says_close({"connection": value}) is closes


# --- chunks and trailers -----------------------------------------------------


@both
@pytest.mark.parametrize(
    ("line", "size", "extension"),
    [
        (b"0", 0, None),
        (b"a", 10, None),
        (b"FfF", 4095, None),
        (b"1000000", MAX_CHUNK_SIZE, None),
        (b"0000000f", 15, None),
        (b"00000000", 0, None),
        (b"1;a", 1, "a"),
        (b"1;a=b;c", 1, "a=b;c"),
        (b'1;a="b\\"\t;c"', 1, 'a="b\\"\t;c"'),
        (b"1; a\t= b ;\tc", 1, " a\t= b ;\tc"),
    ],
)
def test_chunk_head_is_parsed(wire: Any, line: bytes, size: int, extension: str | None):
    """Size in any hexadecimal spelling of eight digits; the extension as it came."""
    assert wire.parse_chunk_head(line) == (size, extension)


@both
@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"g",
        b"+1",
        b"-1",
        b"0x1",
        b"1_0",
        b" 1",
        b"1 ",
        b"1\t",
        b"1 ;a",
        b"1\n",
        b"000000000",
        b"100000003",
        b"\xb2",
        b"1;",
        b"1;;a",
        b"1;a;",
        b"1;a=",
        b"1; ",
        b'1;a="',
        b'1;a="b"c',
        b"1;a b",
        b"1;a=b ",
        b'1;a="\n"',
        b"1;\xe9",
        b"1;a,b",
    ],
)
def test_chunk_head_is_refused(wire: Any, line: bytes):
    """No sign, prefix, underscore or blank, no ninth digit, no half extension."""
    with pytest.raises(ParseError, match=r"expected a chunk .* got b"):
        wire.parse_chunk_head(line)


@both
def test_chunk_over_its_cap_is_refused(wire: Any):
    """One byte more than the cap is too much, both ways."""
    message = "expected a chunk of at most 16777216 bytes, got 16777217"
    with pytest.raises(ContentTooLargeError, match=message):
        wire.parse_chunk_head(b"1000001")
    with pytest.raises(AppError, match=message):
        wire.format_chunk_head(MAX_CHUNK_SIZE + 1)


@both
def test_chunk_head_is_formatted(wire: Any):
    """Lower-case hexadecimal digits without zeros before them."""
    assert wire.format_chunk_head(0) == b"0"
    assert wire.format_chunk_head(MAX_CHUNK_SIZE) == b"1000000"
    assert wire.format_chunk_head(255) == b"ff"
    assert wire.format_chunk_head(255, 'a="b c"') == b'ff;a="b c"'


@both
@pytest.mark.parametrize("size", [-1, True, 1.0, "1", None])
def test_chunk_size_that_is_none_is_an_app_error(wire: Any, size: Any):
    """A size is an int from 0."""
    with pytest.raises(AppError, match=r"expected a chunk of at most .* got "):
        wire.format_chunk_head(size)


@both
@pytest.mark.parametrize("extension", ["", " ", "a=", "a\r\n", "é", b"a", 1, 'a="'])
def test_chunk_extension_that_is_none_is_an_app_error(wire: Any, extension: Any):
    """What would be refused on the way in can't be sent."""
    with pytest.raises(AppError) as caught:
        wire.format_chunk_head(1, extension)
    expected = "expected a chunk extension name=value, got "
    assert str(caught.value) == expected + repr(extension)


@both
def test_chunk_line_over_its_cap_is_an_app_error(wire: Any):
    """The largest line that a peer reads can be sent, and no larger one."""
    longest = "a" * (MAX_CHUNK_LINE_SIZE - 4)
    assert len(wire.format_chunk_head(1, longest)) + 2 == MAX_CHUNK_LINE_SIZE
    with pytest.raises(AppError, match=r"a chunk's line of at most 4096 .* got 4097"):
        wire.format_chunk_head(1, longest + "a")


@both
def test_trailers_go_both_ways(wire: Any):
    """They are a header section, and empty where there are none."""
    assert wire.parse_trailers(b"") == {}
    assert wire.parse_trailers(b"X-Sum: 7\r\nvia: a\r\nvia: b") == {
        "x-sum": "7",
        "via": "a, b",
    }
    assert wire.format_trailers({"x-sum": "7", "a": "b"}) == b"x-sum: 7\r\na: b"


NO_TRAILERS = """
    age authorization cache-control connection content-encoding content-length
    content-range content-type cookie date expect expires host if-match
    if-modified-since if-none-match if-range if-unmodified-since keep-alive location
    max-forwards origin pragma proxy-authenticate proxy-authorization
    proxy-connection range retry-after set-cookie te trailer transfer-encoding
    upgrade vary warning www-authenticate
"""


@both
@pytest.mark.parametrize("name", NO_TRAILERS.split())
def test_field_that_is_no_trailer_is_refused(wire: Any, name: str):
    """A field that would change how the body was read comes too late, both ways."""
    value = {"content-length": "1", "transfer-encoding": "chunked"}.get(name, "a")
    message = f"expected a field that may be a trailer, got '{name}'"
    with pytest.raises(ParseError, match=message):
        wire.parse_trailers(f"{name.upper()}: {value}".encode())
    headers: dict[str, Any] = {name: 1 if name == "content-length" else value}
    with pytest.raises(AppError, match=message):
        wire.format_trailers(headers)


@both
def test_trailers_over_their_cap_are_refused(wire: Any):
    """8192 bytes and 100 fields pass, one more does not, both ways."""
    value = "a" * (MAX_TRAILERS_SIZE - len("x: "))
    assert wire.parse_trailers(b"x: " + value.encode()) == {"x": value}
    assert len(wire.format_trailers({"x": value})) == MAX_TRAILERS_SIZE
    message = "expected trailers of at most 8192 bytes, got 8193"
    with pytest.raises(HeadTooLargeError, match=message):
        wire.parse_trailers(b"x: a" + value.encode())
    with pytest.raises(AppError, match=message):
        wire.format_trailers({"x": value + "a"})
    many = {f"x{n}": "" for n in range(MAX_HEADER_COUNT + 1)}
    with pytest.raises(AppError, match="at most 100 fields, got 101"):
        wire.format_trailers(many)
    with pytest.raises(HeadTooLargeError, match="at most 100 fields, got 101"):
        wire.parse_trailers(b"\r\n".join(b"%b: " % name.encode() for name in many))


# --- heads that are still coming ---------------------------------------------


@both
@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (b"G", None, ""),
        (b"GET / HTTP/1.1\r", None, ""),
        (b"GET / HTTP/1.1\r\nx: " + b"y" * 30000, None, ""),
        (b"GET /" + b"a" * 8251, None, ""),
        (b"\r\nGET /" + b"a" * 9000, None, ""),  # is one when it is whole
        (b"GET /" + b"a" * 8252, TargetTooLongError, "at most 8192 bytes, got more"),
        (b"x: y\r\n" + b"a" * 32762, HeadTooLargeError, "at most 32768 bytes"),
        (b"\x16\x03\x01", ParseError, "expected ASCII lines .* got b'"),
        (b"GET / HTTP/1.1\n", ParseError, "expected ASCII lines .* got b'.n'"),
        (b"GET / HTTP/1.1\rx", ParseError, "expected ASCII lines .* got b'.rx'"),
        (b"GET /\xe9", ParseError, "expected ASCII lines"),
        (b"a" * 8257 + b"\0", TargetTooLongError, "got more"),
        (b"\0" + b"a" * 8257, ParseError, "expected ASCII lines"),
    ],
)
def test_partial_head_is_refused_at_once(
    wire: Any, data: bytes, error: type[ProtocolError] | None, message: str
):
    """What no further byte can mend is refused, and only that."""
    if error is None:
        assert wire.check_partial_head(data, 0, request=True) is None
        return
    with pytest.raises(error, match=loosely(message)) as caught:
        wire.check_partial_head(bytearray(data), 0, request=True)
    assert type(caught.value) is error


@both
def test_partial_head_is_looked_at_once(wire: Any):
    """What was checked is not read again, but a CRLF may be cut in two."""
    begin = b"GET / HTTP/1.1\r"
    for start in (0, len(begin) - 1, len(begin)):
        assert wire.check_partial_head(begin, start, request=True) is None
        assert wire.check_partial_head(begin + b"\n", start, request=True) is None
        with pytest.raises(ParseError, match=r"got b'\\rx'"):
            wire.check_partial_head(begin + b"x", start, request=True)
    assert wire.check_partial_head(b"\0" + begin, len(begin), request=True) is None


@both
def test_fault_is_shown_with_a_little_of_what_follows(wire: Any):
    """A hundred bytes from the fault on, however long the rest is."""
    with pytest.raises(ParseError) as caught:
        wire.check_partial_head(b"x: y\0" + b"a" * 500, 0, request=False)
    assert "got b'\\x00aaaaa" in str(caught.value)
    assert str(caught.value).count("a" * 50) == 1


@both
def test_partial_status_line_has_no_cap_of_its_own(wire: Any):
    """A reason may be longer than a target: there the whole head's cap counts."""
    data = b"HTTP/1.1 200 " + b"a" * 20000
    assert wire.check_partial_head(data, 0, request=False) is None
    with pytest.raises(HeadTooLargeError):
        wire.check_partial_head(data + b"a" * 20000, 0, request=False)
    with pytest.raises(ParseError, match="expected a field line"):
        wire.parse_response(data + b"\r\nno colon")


# --- properties --------------------------------------------------------------

TOKEN = "!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
VISIBLE = "".join(map(chr, range(0x21, 0x7F)))
PATH = "0123456789ABCXYZabcxyz-._~!$&'()*+,;=:@|[]^"


def text(alphabet: str, least: int = 0, most: int = 20) -> st.SearchStrategy[str]:
    return st.text(alphabet, min_size=least, max_size=most)


def escaped(alphabet: str) -> st.SearchStrategy[str]:
    unit = st.sampled_from(alphabet) | st.integers(0, 255).map("%{:02x}".format)
    return st.lists(unit, max_size=8).map("".join)


tokens = text(TOKEN, 1)
values = text(VISIBLE + " \t").map(lambda value: value.strip(" \t"))
names = text(TOKEN, 1).map(str.lower)
labels = text("abcXYZ019-_", 1, 6)
hosts = st.builds(
    "{}{}".format,
    st.lists(labels, min_size=1, max_size=3).map(".".join)
    | st.sampled_from(["127.0.0.1", "[::1]", "[fe80::1:2]", "[::ffff:1.2.3.4]"]),
    st.just("") | st.integers(0, 65535).map(":{}".format),
)
paths = st.lists(escaped(PATH), max_size=5)
queries = st.none() | escaped(PATH + "/?{}`\\")
extensions = st.lists(
    st.builds(
        "{}{}".format,
        tokens,
        st.just("")
        | tokens.map("={}".format)
        | text(VISIBLE + " \t")
        .map(lambda value: value.replace("\\", "\\\\").replace('"', '\\"'))
        .map('="{}"'.format),
    ),
    min_size=1,
    max_size=3,
).map(";".join)


@st.composite
def header_dicts(draw: st.DrawFn) -> dict[str, Any]:
    """Headers as an app may give them."""
    special = {"content-length", "transfer-encoding", "set-cookie", "expect", "host"}
    headers: dict[str, Any] = draw(
        st.dictionaries(names.filter(lambda name: name not in special), values)
    )
    framing = draw(st.sampled_from(["none", "length", "chunked"]))
    if framing == "length":
        headers["content-length"] = draw(st.integers(0, 10**16 - 1))
    elif framing == "chunked":
        headers["transfer-encoding"] = "chunked"
    if draw(st.booleans()):
        cookies = draw(st.lists(values, min_size=1, max_size=3))
        headers["set-cookie"] = cookies if len(cookies) > 1 else cookies[0]
    return headers


def is_plain(path: list[str]) -> bool:
    """Whether no component is a dot segment, or becomes one when it is decoded."""
    decoded = re.sub("%2e", ".", "/".join(["", *path, ""]), flags=re.I)
    decoded = re.sub(r"%2f|%5c|\\", "/", decoded, flags=re.I)
    return "/./" not in decoded and "/../" not in decoded


@both
@given(paths, queries)
@example(["..."], None)
@example(["a%2F%2e"], None)
def test_target_and_uri_are_inverses(
    wire: Any, path: list[str], query: str | None
) -> None:
    """What `build_uri` makes is split again; dot segments are refused, no others."""
    assume(path != [""])  # is "/", which is []
    uri = build_uri(path, query)
    if is_plain(path):
        assert wire.parse_target(uri) == (path, query)
    else:
        with pytest.raises(ParseError, match="dot segments"):
            wire.parse_target(uri)


@both
@given(st.sampled_from(sorted(wire.METHODS)), paths, queries, hosts, header_dicts())
def test_request_formatting_and_parsing_are_inverses(
    wire: Any, method: str, path: list[str], query: str | None, host: str, headers: Any
) -> None:
    """What was formatted is parsed to the same values, and these to the same bytes."""
    assume(path != [""] and is_plain(path))
    uri = build_uri(path, query)
    headers = {"host": host, **headers}
    head = wire.format_request(method, uri, headers)
    parsed = wire.parse_request(head)
    assert parsed == {
        "method": method,
        "uri": uri,
        "script": [],
        "path": path,
        "query": query,
        "headers": headers,
    }
    assert list(parsed["headers"]) == list(headers)
    assert wire.format_request(method, parsed["uri"], parsed["headers"]) == head


@both
@given(st.integers(100, 599), values, header_dicts())
def test_response_formatting_and_parsing_are_inverses(
    wire: Any, status: int, reason: str, headers: Any
) -> None:
    """What was formatted is parsed to the same values, and these to the same bytes."""
    head = wire.format_response(status, reason, headers)
    assert wire.parse_response(head) == (status, reason, headers)
    assert wire.format_response(*wire.parse_response(head)) == head


class Sly(str):
    """A str that formats as something else, as members of an Enum do."""

    def __str__(self) -> str:
        return "x\r\nevil: 1"

    def __format__(self, spec: str) -> str:
        return "x\r\nevil: 1"


@both
def test_a_value_is_sent_as_it_was_checked(wire: Any):
    """Whatever its class makes of it, and it changes nothing for others."""
    for value in (Sly("good"), "good"):
        for name in (Sly("name"), "name"):
            assert wire.format_headers({name: value}) == b"name: good"
    head = wire.format_response(200, Sly("OK"), {"set-cookie": [Sly("a=b")]})
    assert head == b"HTTP/1.1 200 OK\r\nset-cookie: a=b"
    headers = {"host": Sly("localhost")}
    assert (
        wire.format_request("GET", "/", headers) == b"GET / HTTP/1.1\r\nhost: localhost"
    )


@both
@given(header_dicts())
def test_headers_formatting_and_parsing_are_inverses(wire: Any, headers: Any) -> None:
    """The same for a header section, also where its letters and blanks differ."""
    block = wire.format_headers(headers)
    assert wire.parse_headers(block) == headers
    source = random.Random(len(block))
    varied = b"\r\n".join(
        name.swapcase()
        + b":"
        + source.choice([b"", b" ", b"\t  "])
        + value.strip()
        + source.choice([b"", b" ", b" \t"])
        for name, _, value in (line.partition(b":") for line in block.split(b"\r\n"))
        if name
    )
    assert wire.parse_headers(varied) == headers


@both
@given(
    st.dictionaries(names.filter(lambda n: n not in wire.FORBIDDEN_TRAILERS), values)
)
def test_trailer_formatting_and_parsing_are_inverses(wire: Any, trailers: Any) -> None:
    """The same for trailers."""
    assert wire.parse_trailers(wire.format_trailers(trailers)) == trailers


@both
@given(st.integers(0, MAX_CHUNK_SIZE), st.none() | extensions)
def test_chunk_head_formatting_and_parsing_are_inverses(
    wire: Any, size: int, extension: str | None
) -> None:
    """The same for a chunk's line, also in capitals and with zeros before it."""
    line = wire.format_chunk_head(size, extension)
    assert wire.parse_chunk_head(line) == (size, extension)
    digits, semicolon, rest = line.partition(b";")
    varied = digits.upper().rjust(8, b"0") + semicolon + rest
    assert wire.parse_chunk_head(varied) == (size, extension)


# --- any input ---------------------------------------------------------------

CASES: list[corpus.Case] = [*corpus.read_request_cases(), *corpus.read_response_cases()]
HEADS = [one.data.split(b"\r\n\r\n")[0] for one in CASES if len(one.data) < 2000]
MARKS = b'\0\t\n\r "#%+,-./0:;<=?@A[\\]az{}~\x7f\x80\xff'


@st.composite
def hostile_bytes(draw: st.DrawFn) -> bytes:
    """Bytes like those of a head with some changed, or any bytes at all."""
    if draw(st.integers(0, 4)) == 0:
        return draw(st.binary(max_size=200))
    data = bytearray(draw(st.sampled_from(HEADS)))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        piece = draw(st.sampled_from(MARKS).map(lambda b: bytes([b])) | st.binary())
        data[at : at + draw(st.integers(0, 2))] = piece
    return bytes(data)


def catch(
    kind: type[Exception], function: Callable[..., Any], *arguments: Any
) -> Exception | None:
    """The error of this kind that the call raises, or None; others get out."""
    try:
        function(*arguments)
    except kind as error:
        return error
    return None


PARSERS: dict[str, Callable[[Any, bytes], Any]] = {
    "request": lambda wire, data: wire.parse_request(data),
    "response": lambda wire, data: wire.parse_response(data),
    "headers": lambda wire, data: wire.parse_headers(data),
    "trailers": lambda wire, data: wire.parse_trailers(data),
    "chunk": lambda wire, data: wire.parse_chunk_head(data),
    "partial": lambda wire, data: wire.check_partial_head(data, 0, request=True),
}


@both
@pytest.mark.parametrize("parser", PARSERS)
@given(hostile_bytes())
def test_bytes_raise_nothing_but_protocol_errors(
    wire: Any, parser: str, data: bytes
) -> None:
    """Whatever comes, it is parsed or it is the peer's fault, with two halves said."""
    error = catch(ProtocolError, PARSERS[parser], wire, data)
    if error is not None:
        assert re.search("expected .*, got ", str(error), re.S)
        assert len(str(error)) < 400


@both
@given(st.text())
def test_text_raises_nothing_but_protocol_errors(wire: Any, value: str) -> None:
    """The same for the two that take a str, of any characters."""
    for parse in (wire.parse_target, wire.parse_host):
        for candidate in (value, "/" + value, f"localhost:{value}"):
            error = catch(ProtocolError, parse, candidate)
            assert error is None or "expected " in str(error)


anything: Any = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5)
    | values
    | names,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=3) | st.integers() | names, inner)
    ),
    max_leaves=5,
)
header_like: Any = anything | st.dictionaries(
    st.sampled_from(["content-length", "transfer-encoding", "set-cookie", "a"]) | names,
    anything,
)


@both
@given(anything, anything, header_like)
def test_values_raise_nothing_but_app_errors(
    wire: Any, first: Any, second: Any, headers: Any
) -> None:
    """Whatever an app gives, it is sent or it is the app's fault."""
    for function, arguments in [
        (wire.format_request, ("GET", "/", headers)),
        (wire.format_request, (first, second, headers)),
        (wire.format_response, (200, "OK", headers)),
        (wire.format_response, (first, second, headers)),
        (wire.format_headers, (headers,)),
        (wire.format_trailers, (headers,)),
        (wire.format_chunk_head, (first, second)),
        (wire.check_status, (first,)),
    ]:
        error = catch(AppError, function, *arguments)
        if error is not None:
            assert "expected " in str(error)
        elif function is not wire.check_status:
            assert is_plain_ascii(function(*arguments))


def is_plain_ascii(data: bytes) -> bool:
    """Only CRLF, and only between lines; nothing outside of ASCII."""
    return b"\r\n\r\n" not in data and bool(re.fullmatch(rb"(?:[\t -~]|\r\n)*+", data))


# --- any way to arrive -------------------------------------------------------

SMALL_CASES = [case for case in corpus.read_request_cases() if len(case.data) < 9000]
SMALL_RESPONSES = [c for c in corpus.read_response_cases() if len(c.data) < 9000]


@st.composite
def feeds(draw: st.DrawFn, cases: list[Any]) -> tuple[Any, bytes, list[bytes]]:
    """A case, its bytes with some changed, and these in pieces."""
    case = draw(st.sampled_from(cases))
    data = bytearray(case.data)
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(data)))
        mark = draw(
            st.sampled_from([b"", b"\r\n", b"\r\n\r\n", b"0\r\n\r\n", b"x" * 300])
        )
        mark = mark or bytes([draw(st.sampled_from(MARKS))])
        data[at : at + draw(st.integers(0, 1))] = mark
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=6)))
    edges = [0, *cuts, len(data)]
    pieces = [bytes(data[a:b]) for a, b in itertools.pairwise(edges)]
    return case, bytes(data), [piece for piece in pieces if piece]


def outcome(read: Callable[[], Any]) -> Any:
    """What was read, or the type and text of the error."""
    try:
        return read()
    except Exception as error:
        return type(error), re.sub("got .*", "", str(error), flags=re.S)


@given(feeds(SMALL_CASES))
def test_requests_are_the_same_however_they_arrive(feed: Any) -> None:
    """A stream of requests, changed or not, cut anywhere: same requests, same end."""
    case, data, pieces = feed
    whole = corpus.read_requests([data], case.options)
    assert corpus.read_requests(pieces, case.options) == whole
    assert corpus.read_requests(corpus.split_bytes(data), case.options) == whole


@given(feeds(SMALL_RESPONSES))
def test_responses_are_the_same_however_they_arrive(feed: Any) -> None:
    """The same for a response: the same values, or the same kind of error."""
    case, data, pieces = feed

    def read(pieces: list[bytes]) -> Any:
        return outcome(lambda: corpus.read_response(pieces, case.method, case.options))

    whole = read([data])
    assert read(pieces) == whole
    assert read(corpus.split_bytes(data)) == whole


# --- memory ---------------------------------------------------------------------


def test_lines_that_came_before_are_remembered():
    """Peers repeat themselves: the same values are there once, not once a message."""
    head = request("x-one: remembered", "cookie: a=1").replace(b"/ ", b"/remembered ")
    first, second = wire.parse_request(head), wire.parse_request(head)
    assert first["headers"]["x-one"] is second["headers"]["x-one"]
    assert first["uri"] is second["uri"]
    status_line = b"HTTP/1.1 404 Nowhere to be seen"
    assert wire.parse_response(status_line)[1] is wire.parse_response(status_line)[1]
    formatted = [wire.format_response(404, "Nowhere at all", {}) for _ in range(2)]
    assert formatted[0] is formatted[1]
    wire.format_request("GET", "/never-came", {"x-two": "remembered"})
    assert "GET /never-came HTTP/1.1" in wire._request_lines
    kept = wire._field_lines["x-two", "remembered"]
    assert kept == b"\r\nx-two: remembered"
    wire.format_headers({"x-two": "remembered"})
    assert wire._field_lines["x-two", "remembered"] is kept


def test_no_object_of_an_app_is_remembered():
    """What is a str by its exact type holds nothing else; a subclass may."""
    sly: list[dict[str, Any]] = [{Sly("x-three"): "a"}, {"x-three": Sly("a")}]
    for headers in sly:
        assert wire.format_headers(headers) == b"x-three: a"
        assert ("x-three", "a") not in wire._field_lines


def flood(wire: Any, number: int, size: int) -> None:
    """A request and a response, both ways, like no other, with values of this size."""
    text = f"{number:0{size}}"
    headers = {"host": f"h{number}", "x": text}
    method, uri = "GET", f"/{text[:8000]}"
    wire.parse_request(wire.format_request(method, uri, headers))
    wire.parse_response(wire.format_response(200, text, {}))


@both
@pytest.mark.parametrize("size", [20, 200, 15000])
def test_what_is_remembered_stays_small(wire: Any, size: int):
    """Thousands of different lines, short or long, don't fill the memory."""
    for number in range(100):
        flood(wire, number, size)
    tracemalloc.start()
    try:
        for number in range(100, 3000):
            flood(wire, number, size)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 3_000_000


# --- time --------------------------------------------------------------------

UNITS = [
    *("a", "A", "%41", "%2", "/", "/.", "/..", "%2f.", "%2e", "a.", ".", ":", "1:"),
    *(
        " ",
        "\t ",
        "\t",
        ",",
        ", ",
        ";",
        ";a",
        ";a=b",
        ';a="b"',
        ' ; a = "b"',
        '"',
        "\\",
    ),
    *('\\"', "=", "0", "f", "1.", "a: b\r\n", "\r\n", "\r", "é", "a b", "chunked,"),
]
BEGINS = ["", "/", "x:", "HTTP/1.1 200 ", "3;a", '3;a="', "GET /", "[", "a:"]
ENDS = ["", "\0", '"', " "]
MOST_SECONDS = 0.05


def spend(function: Callable[[], Any]) -> float:
    """Seconds of this thread's own work that `function` takes at best, of three."""
    best = 9.9
    for _ in range(3):
        started = time.thread_time()
        outcome(function)
        best = min(best, time.thread_time() - started)
        if best < MOST_SECONDS / 10:
            break
    return best


def find_patterns() -> dict[str, re.Pattern[Any]]:
    """Every regular expression that `degu.wire` uses, by the name of its method."""
    found = {}
    for name, value in vars(wire).items():
        if getattr(value, "__qualname__", "").startswith("_lazy.<locals>"):
            made_of = inspect.getclosurevars(value).nonlocals
            pattern = re.compile(made_of["pattern"])
            found[name] = getattr(pattern, made_of["how"])
    return found


def test_a_slow_pattern_would_be_noticed():
    """The control: a pattern of quadratic time goes over the bound by far."""
    search = re.compile(r"[\t ]+\Z").search
    started = time.thread_time()
    search(" " * 8192 + "x")
    assert time.thread_time() - started > MOST_SECONDS
    assert len(find_patterns()) >= 12


@pytest.mark.parametrize("name", find_patterns())
def test_pattern_takes_linear_time(name: str):
    """32 KiB of what a pattern may begin to match, and then not end to."""
    match: Any = find_patterns()[name]
    is_bytes = isinstance(match.__self__.pattern, bytes)
    for unit in UNITS:
        for begin in BEGINS:
            for end in ENDS:
                subject: Any = begin + repeat(unit, 32768) + end
                if is_bytes:
                    subject = subject.encode("latin-1")
                assert spend(lambda: match(subject)) < MOST_SECONDS * TIMEOUT_FACTOR, (  # noqa: B023
                    begin,
                    unit,
                    end,
                )


@both
@pytest.mark.parametrize("parser", PARSERS)
def test_parser_takes_linear_time(wire: Any, parser: str):
    """Whole parsers too, with what each one is given at most."""
    parse = PARSERS[parser]
    for unit in UNITS:
        for begin in (*BEGINS, "GET / HTTP/1.1\r\nhost: a\r\n", "HTTP/1.1 200 OK\r\n"):
            data = (begin + repeat(unit, MAX_HEAD_SIZE)).encode("latin-1")
            for size in (MAX_TARGET_SIZE, MAX_HEAD_SIZE - 4):
                seconds = spend(lambda: parse(wire, data[:size]))  # noqa: B023
                assert seconds < MOST_SECONDS * TIMEOUT_FACTOR, (begin, unit, size)


@pytest.mark.parametrize(
    "unit",
    [
        "a",
        "a: b\r\n",
        " ",
        "x-%: \t\t\t\t\t\t\t\t\t\t\r\n",
        "cookie: a\r\n",
        "via: ,\r\n",
    ],
)
def test_head_that_comes_byte_by_byte_takes_linear_time(unit: str):
    """Four times the bytes take about four times the work, not sixteen times."""
    begin = "GET / HTTP/1.1\r\nhost: localhost\r\n"

    def read(size: int) -> float:
        data = (begin + "x: " + repeat(unit, size)).encode()
        pieces = [data[at : at + 1] for at in range(len(data))]
        return spend(lambda: corpus.read_requests(pieces))

    small, large = read(7500), read(30000)
    assert large < 9 * small or large < MOST_SECONDS * TIMEOUT_FACTOR

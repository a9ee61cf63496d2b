"""The compiled twin: each function gives what `degu.wire` gives, or is not compiled.

`degu.wire` is the specification and has tests of its own; here both twins get the same
input, and value, class of error and message have to be the same: the whole corpus, what
hypothesis builds, and the corpus mutated. `DEGU_TEST_FUZZ` is the number of mutated
inputs (20 000 unless it says otherwise; a million takes a few minutes).

A build without a C compiler has no twin; then these tests are skipped, no others.
"""

from __future__ import annotations

import collections
import os
import random
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from degu import base, client, limits, server
from degu import wire as pure
from degu.errors import ClosedConnectionError
from tests import corpus

compiled = pytest.importorskip("degu._wire", reason="built without a C compiler")
exchange = pytest.importorskip("degu._exchange", reason="built without a C compiler")

FUZZ = int(os.environ.get("DEGU_TEST_FUZZ", "20000"))
SEED = os.environ.get("DEGU_TEST_FUZZ_SEED", "degu")

COMPILED = {
    "body_framing",
    "build_request",
    "build_response",
    "format_chunk_head",
    "format_headers",
    "format_request",
    "format_response",
    "frame_headers",
    "parse_chunk_head",
    "parse_headers",
    "parse_request",
    "parse_response",
    "says_close",
}
"""The functions that have a compiled form; the others are wire's own."""

MODULES = ["degu._wire", "degu._exchange", "degu._pool"]
"""What is compiled; only all of it together is of any use."""


@pytest.fixture(params=["py", "c"])
def wire(request: pytest.FixtureRequest) -> ModuleType:
    """One of the twins."""
    return {"py": pure, "c": compiled}[request.param]


def describe(value: Any) -> Any:
    """A value with its types, so that True is not 1 and `bytes` not `bytearray`."""
    if isinstance(value, dict):
        return type(value), [(describe(k), describe(v)) for k, v in value.items()]
    if isinstance(value, list | tuple):
        return type(value), [describe(one) for one in value]
    return type(value), value


def outcome(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """What a call gives: its value, or the class and the text of its exception."""
    try:
        return describe(function(*args, **options))
    except Exception as error:
        return "raises", type(error), str(error)


def check_same(name: str, *args: Any, **options: Any) -> Any:
    """Both twins give the same, twice (the second time from their memories)."""
    expected = outcome(getattr(pure, name), *args, **options)
    for _ in range(2):
        assert outcome(getattr(compiled, name), *args, **options) == expected, args
        assert outcome(getattr(pure, name), *args, **options) == expected, args
    return expected


# --- which is which ------------------------------------------------------------


def test_both_twins_offer_all_names(wire: ModuleType):
    """What is in `wire.__all__` is there in both."""
    assert wire.__all__ == pure.__all__
    for name in pure.__all__:
        assert hasattr(wire, name)


def test_module_tells_the_twins_apart():
    """A function is compiled or wire's own, and there is no third."""
    for name in pure.__all__:
        function = getattr(compiled, name)
        if name in COMPILED:
            assert function.__module__ == "degu._wire"
            assert getattr(pure, name).__module__ == "degu.wire"
        else:
            assert function is getattr(pure, name)


def test_switch_chooses_the_twin():
    """`DEGU_PURE_PYTHON` decides, and only that."""
    assert base.wire is (pure if os.environ.get("DEGU_PURE_PYTHON") else compiled)


SCRIPT = """
import socket, sys
sys.modules.update(dict.fromkeys(sys.argv[1:]))  # as if they were not there
from degu import base
compiled = [base.Pool, base.Records, base.exchange_plain, base.is_quiet]
compiled += [base.recv != socket.socket.recv, base.send != socket.socket.send]
print(base.wire.__name__, {bool(one) for one in compiled})
"""


@pytest.mark.parametrize("missing", [None, *MODULES])
def test_a_part_of_the_twin_is_none(missing: str | None):
    """Where one module could not be imported, none of the others is used."""
    environ = {**os.environ, "DEGU_PURE_PYTHON": ""}
    command = [sys.executable, "-c", SCRIPT, *([missing] if missing else [])]
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    assert not done.stderr
    expected = "degu.wire {False}" if missing else "degu._wire {True}"
    assert done.stdout.strip() == expected


def test_twin_answers(wire: ModuleType):
    """A plain example of each direction, with values written out."""
    assert wire.parse_request(b"GET /a/b?c HTTP/1.1\r\nHost: x", environ={"k": 1}) == {
        "k": 1,
        "method": "GET",
        "uri": "/a/b?c",
        "script": [],
        "path": ["a", "b"],
        "query": "c",
        "headers": {"host": "x"},
    }
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 3"
    assert wire.parse_response(head) == (200, "OK", {"content-length": 3})
    assert wire.build_request("PUT", "/", {"k": "v"}, b"abc", "x") == (
        b"PUT / HTTP/1.1\r\nhost: x\r\nk: v\r\ncontent-length: 3\r\n\r\nabc"
    )
    assert wire.build_response(200, "OK", {"k": "v"}, None, "GET") == (
        b"HTTP/1.1 200 OK\r\nk: v\r\ncontent-length: 0\r\n\r\n"
    )


# --- the corpus ------------------------------------------------------------------


def read_cases() -> list[bytes]:
    requests = {case.data for case in corpus.read_request_cases()}
    return sorted(requests | {case.data for case in corpus.read_response_cases()})


CASES = read_cases()


def check_head(data: bytes) -> None:
    """Both twins make the same of a head, as whatever it may be taken for."""
    head = data.partition(b"\r\n\r\n")[0]
    request = check_same("parse_request", head)
    check_same(
        "parse_request", head, {"GET", "CONNECT"}, "https", {"method": 1, "k": 2}
    )
    response = check_same("parse_response", head)
    section = head.partition(b"\r\n")[2]
    headers = check_same("parse_headers", section)
    for line in data.split(b"\r\n")[:8]:
        check_same("parse_chunk_head", line)
    if request[0] is dict:
        check_again("request", pure.parse_request(head))
    if response[0] is tuple:
        check_again("response", pure.parse_response(head))
    if headers[0] is dict:
        check_headers(pure.parse_headers(section))


def check_again(kind: str, parsed: Any) -> None:
    """Format and frame what was parsed."""
    if kind == "request":
        method, uri, headers = parsed["method"], parsed["uri"], parsed["headers"]
        check_same("format_request", method, uri, headers)
        check_same("build_request", method, uri, headers, None, "host")
        check_same("body_framing", headers, method)
    else:
        status, reason, headers = parsed
        check_same("format_response", status, reason, headers)
        for method in ("GET", "HEAD"):
            check_same("build_response", status, reason, headers, b"abc", method)
            check_same("body_framing", headers, method, status)


def check_headers(headers: dict[str, Any]) -> None:
    check_same("format_headers", headers)
    check_same("says_close", headers)
    for framing in (None, 0, 3, pure.CHUNKED):
        check_same("frame_headers", headers, framing, "POST")
        check_same("frame_headers", headers, framing, "GET", 200)


def test_corpus_is_the_same_to_both():
    """Each case of the corpus, whole, as every kind of head."""
    for data in CASES:
        check_head(data)


def mutate(data: bytes, chance: random.Random) -> bytes:
    """`data` with a few small changes of the kind that parsers get wrong."""
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        start = chance.randrange(len(data) + 1)
        stop = min(len(data), start + chance.choice((0, 1, 1, 2, 9)))
        data = data[:start] + make_piece(data, chance) + data[stop:]
    return data[:12000]


PIECES = [
    *(bytes([code]) for code in range(256)),
    *(b'\r\n \r\n\t:/?#%.,;="0aA\0\x7f\x80'[at : at + 1] for at in range(21)),
    *b"|\r\n|\r\n\r\n|: |HTTP/1.1|HTTP/1.0|GET |/../|/%2e/|%2F..|//".split(b"|"),
    *b"OPTIONS * |chunked|close".split(b"|"),
    *b"content-length: 5|transfer-encoding: chunked|connection: close".split(b"|"),
    *b"host: localhost|expect: 100-continue|set-cookie: a=b|a: b|OPTIONS * ".split(
        b"|"
    ),
    *b"9999999999999999|10000000000000000|00|1000000|1000001|ffffff|;a=b".split(b"|"),
    b"a" * 63,
    b"a" * 64,
    b"b" * 65,
    b"c" * 129,
    b"/" + b"d" * 8191,
    b"\r\n".join(b"x-%d: y" % number for number in range(99)),
]


def make_piece(data: bytes, chance: random.Random) -> bytes:
    if chance.random() < 0.2:
        start = chance.randrange(len(data) + 1)
        return data[start : start + chance.randrange(40)]
    return chance.choice(PIECES) if chance.random() < 0.9 else b""


@pytest.mark.timeout(0)
def test_mutated_corpus_is_the_same_to_both():
    """Thousands of neighbours of the corpus; the seed says which ones."""
    chance = random.Random(SEED)
    seeds = [data for data in CASES if len(data) < 4096]
    for _ in range(FUZZ):
        check_head(mutate(chance.choice(seeds), chance))


# --- what hypothesis builds ---------------------------------------------------------

plain = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12)
texts = st.one_of(plain, st.text(max_size=8))
names = st.one_of(
    st.sampled_from(
        ["host", "content-length", "transfer-encoding", "connection", "set-cookie", "a"]
    ),
    st.from_regex(r"[a-z0-9!-]{1,70}", fullmatch=True),
    texts,
)
odd = st.one_of(st.none(), st.booleans(), st.floats(), st.binary(max_size=4))
values = st.one_of(
    texts, st.sampled_from(["chunked", "close"]), st.integers(), odd, st.lists(plain)
)
header_dicts = st.dictionaries(names, values, max_size=6)
bodies = st.one_of(st.none(), st.binary(max_size=64), st.builds(bytearray, st.binary()))
methods = st.one_of(
    st.sampled_from(["GET", "HEAD", "POST", "CONNECT", "OPTIONS"]), texts
)
statuses = st.one_of(st.integers(0, 700), st.sampled_from([200, 204, 304]), odd)
uris = st.one_of(
    st.from_regex(r"/[a-z./%2eEfF?{}\\]*", fullmatch=True), st.just("*"), texts
)


class Sub(dict[str, Any]):
    """A mapping that is not exactly a `dict`."""


@given(methods, uris, header_dicts, bodies, plain)
def test_requests_are_built_the_same(method, uri, headers, body, host):
    """Whatever a caller asks to be sent as a request."""
    check_same("format_request", method, uri, headers)
    check_same("build_request", method, uri, headers, body, host)
    check_same("build_request", method, uri, Sub(headers), body, host)
    check_same("build_request", method, "/", headers, body, "host")


@given(statuses, texts, header_dicts, bodies, methods)
def test_responses_are_built_the_same(status, reason, headers, body, method):
    """Whatever an app returns as a response."""
    check_same("format_response", status, reason, headers)
    check_same("build_response", status, reason, headers, body, method)
    check_same("build_response", 200, "OK", Sub(headers), body, method)
    check_same("build_response", 200, "OK", headers, body, method)


@given(header_dicts, methods, statuses, st.one_of(st.none(), st.integers(0), plain))
def test_headers_are_framed_the_same(headers, method, status, framing):
    """Framing in both directions, and the field lines themselves."""
    check_same("format_headers", headers)
    check_same("body_framing", headers, method)
    check_same("body_framing", headers, method, status)
    for one in (framing, pure.CHUNKED):
        check_same("frame_headers", headers, one, method)
        check_same("frame_headers", headers, one, method, status)


@given(st.binary(max_size=80))
def test_any_bytes_are_the_same(data):
    """Bytes with no grammar at all, and behind the beginning of a good head."""
    for prefix in (b"", b"GET /", b"HTTP/1.1 200 ", b"GET / HTTP/1.1\r\nhost: a\r\n"):
        check_same("parse_request", prefix + data)
        check_same("parse_response", prefix + data)
    check_same("parse_headers", data)
    check_same("parse_headers", bytearray(data))
    check_same("parse_chunk_head", data)


@given(st.one_of(st.integers(-2, 2**24 + 2), st.integers(), st.booleans()), texts)
def test_chunk_heads_are_formatted_the_same(size, extension):
    """Any size, also one that is too large for C."""
    check_same("format_chunk_head", size)
    check_same("format_chunk_head", size, extension)


@pytest.mark.parametrize("size", range(8185, 8200))
def test_a_head_at_the_end_of_the_buffer_is_the_same(size: int):
    """Around what the compiled twin formats on its stack, byte by byte."""
    for over in range(-60, 20):
        check_same("format_response", 200, "OK", {"a": "x" * (size + over - 40)})
    check_same("build_response", 200, "OK", {"a": "x" * (size - 70)}, b"abc", "GET")
    check_same("build_request", "PUT", "/", {"a": "x" * (size - 70)}, b"abc", "h")


@pytest.mark.parametrize("count", [98, 99, 100, 101])
def test_the_number_of_fields_is_limited_the_same(count: int):
    """The field that is added counts too."""
    headers = {f"a{number}": "b" for number in range(count)}
    check_same("build_request", "POST", "/", headers, b"abc", "h")
    check_same("build_request", "GET", "/", headers, None, "h")
    check_same("build_response", 200, "OK", headers, b"abc", "GET")
    block = pure.format_headers(dict(list(headers.items())[:100]))
    check_same("parse_headers", block)
    check_same("parse_headers", block + b"\r\nlast: b")


# --- sockets ----------------------------------------------------------------------


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected sockets; the first gives up waiting after a moment."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        moment = struct.pack("ll", 0, 10_000)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            ours.setsockopt(socket.SOL_SOCKET, option, moment)
        yield ours, theirs


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="kernel timeouts")
RECV = [socket.socket.recv, exchange.recv]
SEND = [socket.socket.send, exchange.send]


@on_linux
@pytest.mark.parametrize("recv", RECV)
@pytest.mark.parametrize("size", [1, limits.RECEIVE_SIZE, 100_000])
def test_recv_is_that_of_a_socket(pair, recv, size):
    """Bytes, the end, a timeout and a closed descriptor."""
    ours, theirs = pair
    with pytest.raises(BlockingIOError):
        recv(ours, size)
    theirs.send(b"hello")
    assert recv(ours, size) == b"hello"[:size]
    theirs.close()
    while recv(ours, size):
        pass
    ours.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        recv(ours, size)


@on_linux
@pytest.mark.parametrize("send", SEND)
@pytest.mark.parametrize("size", [0, 5, 16384, 16385, 300_000])
def test_send_is_that_of_a_socket(pair, send, size):
    """What was sent comes; without room it waits; a broken pipe is told, no signal."""
    ours, theirs = pair
    data = b"x" * size
    sent = send(ours, data)
    assert sent == size or 0 < sent < size == 300_000
    assert (theirs.recv(size) if size else b"") == data[:sent]
    if size:
        with pytest.raises(BlockingIOError):
            collections.deque(iter(lambda: send(ours, data), 0), 0)
    theirs.close()
    if size:
        with pytest.raises(BrokenPipeError):
            send(ours, data)


@on_linux
def test_quiet_is_neither_closed_nor_talking(pair):
    """A byte, the end and a closed descriptor are all found."""
    ours, theirs = pair
    assert exchange.is_quiet(ours)
    theirs.send(b"x")
    assert not exchange.is_quiet(ours)
    assert ours.recv(9) == b"x"
    assert exchange.is_quiet(ours)
    theirs.close()
    assert not exchange.is_quiet(ours)
    ours.close()
    assert not exchange.is_quiet(ours)


# --- plain exchanges ---------------------------------------------------------------


class App:
    """Answers in a way that its request asks for, and remembers what it was asked."""

    def __init__(self) -> None:
        self.requests: list[Any] = []

    def __call__(self, request: dict[str, Any]) -> Any:
        body = request["body"]
        data = None if body is None else body.read()
        self.requests.append(describe({**request, "body": data, "session": None}))
        if "boom" in request["uri"]:
            raise RuntimeError("boom")
        if "bad" in request["uri"]:
            return 200, "OK", {"Bad": "name"}, None
        if "close" in request["uri"]:
            return 200, "OK", {"connection": "close"}, b"last"
        if "large" in request["uri"]:
            return 200, "OK", {}, b"large" * 14_000
        return 200, "OK", {"content-type": "text/plain"}, b"hello"


def serve(data: bytes, plainly: bool) -> Any:
    """What a server makes of `data`: the bytes it answers, and what its app saw."""
    app = App()
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.MonkeyPatch.context() as patch:
        ours.settimeout(20)
        if not plainly:
            patch.setattr(base, "exchange_plain", None)
        one = server.Server(("127.0.0.1", 0), app)
        one.address = ("127.0.0.1", 1)  # the same each time
        ours.sendall(data)
        ours.shutdown(socket.SHUT_WR)
        server._Handler(one, theirs, "").run()
        one.close()
        answer = b"".join(iter(lambda: ours.recv(65536), b""))
    return answer, app.requests


GOOD = b"GET /%s HTTP/1.1\r\nhost: localhost\r\nuser-agent: me\r\n\r\n"


@on_linux
@pytest.mark.parametrize(
    "data",
    [
        b"",
        GOOD % b"",
        GOOD % b"" * 3,
        GOOD % b"boom",
        GOOD % b"bad",
        GOOD % b"close" * 2,
        GOOD % b"large" * 2,
        (GOOD % b"")[:-1],
        (GOOD % b"").replace(b"user-agent", b"connection"),
        (GOOD % b"").replace(b"user-agent: me", b"connection: keep-alive") * 2,
        (GOOD % b"").replace(b"user-agent: me", b"connection: keep-alive, close") * 2,
        (GOOD % b"").replace(b"GET", b"HEAD"),
        (GOOD % b"").replace(b"localhost", b"example.com"),
        (GOOD % b"").replace(b"user-agent: me", b"origin: http://evil.example"),
    ],
)
def test_server_answers_plainly_as_the_long_way(data: bytes):
    """After a first request, which always goes the long way, and alone."""
    for before in (b"", GOOD % b"first"):
        assert serve(before + data, True) == serve(before + data, False)


@on_linux
@pytest.mark.timeout(0)
def test_server_answers_mutations_plainly_as_the_long_way():
    """Neighbours of the corpus, on a connection where a good request went before."""
    chance = random.Random(SEED)
    seeds = [data for data in CASES if len(data) < 2048 and data[:4] != b"HTTP"]
    for _ in range(max(200, FUZZ // 50)):
        data = GOOD % b"first" + mutate(chance.choice(seeds), chance)
        assert serve(data, True) == serve(data, False), data


def talk(data: bytes, plainly: bool, method: str = "GET") -> Any:
    """What a client makes of `data`: its response with the body, or its error."""
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.MonkeyPatch.context() as patch:
        if not plainly:
            patch.setattr(base, "exchange_plain", None)
        options = limits.check_options({"timeout": 20}, limits.CLIENT_OPTIONS)
        connection = client.Connection(ours, "localhost", options)
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        got = outcome(lambda: take(connection.request(method, "/")))
        state = connection.closed
        connection.close()
        return got, state, theirs.recv(65536)


def take(response: client.Response) -> Any:
    body = response.body
    data = None if body is None else body.read()
    return *response[:3], type(body), data


@on_linux
@pytest.mark.timeout(0)
def test_client_takes_mutations_plainly_as_the_long_way():
    """The responses of the corpus and their neighbours."""
    chance = random.Random(SEED)
    seeds = [data for data in CASES if len(data) < 2048 and data[:4] == b"HTTP"]
    mutations = (mutate(chance.choice(seeds), chance) for _ in range(FUZZ // 20))
    for data in (*seeds, *mutations):
        for method in ("GET", "HEAD"):
            expected = talk(data, False, method)
            assert talk(data, True, method) == expected, data


@on_linux
def test_client_looks_before_it_sends():
    """A used connection that was closed, or has a surplus, is found by `exchange`."""
    for surplus in (b"", b"HTTP/1.1 200 OK\r\n\r\n"):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            options = limits.check_options({"timeout": 20}, limits.CLIENT_OPTIONS)
            connection = client.Connection(ours, "localhost", options)
            theirs.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
            assert connection.get("/").status == 204
            theirs.recv(4096)
            theirs.sendall(surplus)
            theirs.shutdown(socket.SHUT_WR)
            with pytest.raises(ClosedConnectionError):
                connection.get("/")
            try:
                assert theirs.recv(4096) == b""
            except ConnectionResetError:
                assert surplus  # which nobody read


# --- the stub ------------------------------------------------------------------------


@pytest.mark.parametrize("module", MODULES)
def test_stub_tells_the_truth(module: str):
    """A `.pyi` names what is there, with the parameters that are there."""
    stubtest = pytest.importorskip("mypy.stubtest")
    options = stubtest.parse_options([module, "--concise", "--ignore-disjoint-bases"])
    assert stubtest.test_stubs(options) == 0

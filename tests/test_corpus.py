"""Every case of the corpus, against the parsers and against real sockets.

What a case says has to come out however its bytes arrive: in one piece, one by one,
and with a further message right behind them.
"""

from __future__ import annotations

import re
import socket
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest

from degu import errors
from degu.client import Client, Connection
from degu.server import Server
from tests import corpus
from tests.corpus import Case, CorpusError, RequestCase, ResponseCase

TIMEOUT = 10.0
HOST = "127.0.0.1"
PROBE = b"GET /probe HTTP/1.1\r\nhost: localhost\r\n\r\n"
PROBE_ANSWER = b"HTTP/1.1 299 Probe\r\ncontent-length: 5\r\n\r\nprobe"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
SMALL = 500  # bytes of a case that is also sent one by one over a socket

REQUEST_CASES = corpus.read_request_cases()
RESPONSE_CASES = corpus.read_response_cases()


def params(cases: list[Any]) -> list[Any]:
    """The cases as parameters with their file names for ids."""
    return [pytest.param(case, id=case.name) for case in cases]


def sample(cases: list[Any]) -> list[Any]:
    """About a fifth of the small cases, the same ones in each run."""
    return [
        case
        for case in cases
        if len(case.data) <= SMALL and zlib.crc32(case.name.encode()) % 5 == 0
    ]


# --- the files ---------------------------------------------------------------


def test_corpus_has_hundreds_of_cases_of_both_directions():
    """Nobody loses half of the corpus without a test that says so."""
    assert len(REQUEST_CASES) >= 600
    assert len(RESPONSE_CASES) >= 200


def test_no_two_cases_have_the_same_bytes_and_circumstances():
    """Each case shows something that no other shows, and none contradicts another."""
    seen: dict[Any, str] = {}
    cases: list[Case] = [*REQUEST_CASES, *RESPONSE_CASES]
    for case in cases:
        method = getattr(case, "method", None)
        key = (type(case), method, case.data, case.eof, repr(case.options))
        assert key not in seen, f"{case.name} repeats {seen[key]}"
        seen[key] = case.name


def test_every_status_and_error_of_the_corpus_has_a_case():
    """Each way to refuse that the format knows is shown by some case."""
    refusals = {case.status for case in REQUEST_CASES} - {None}
    assert refusals == corpus.STATUSES
    for case in RESPONSE_CASES:
        assert case.expect == "ok" or hasattr(errors, case.expect), case.name


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("a b~", b"a b~"),
        (r"\r\n\t\\\{\}", b"\r\n\t\\{}"),
        (r"\x00\x0b\x7f\xff", b"\x00\x0b\x7f\xff"),
        (r"{ab*3}c", b"abababc"),
        (r"{x-\#: \x00\r\n*2}", b"x-1: \x00\r\nx-2: \x00\r\n"),
        ("", b""),
    ],
)
def test_text_stands_for_bytes(text: str, data: bytes):
    """Escapes and repetitions give their bytes, and those give the text again."""
    assert corpus.parse_bytes(text) == data
    assert corpus.parse_bytes(corpus.format_bytes(data)) == data
    if "*" not in text:
        assert corpus.format_bytes(data) == text


@pytest.mark.parametrize(
    "text",
    [
        r"\q",
        "\\",
        r"\x4",
        r"\x0A",
        r"\x41",
        r"\x0d",
        "{a",
        "a}",
        "{a*0}",
        "{a*x}",
        "{*3}",
        r"\#",
        "{{a*2}*2}",
        "\t",
        "é",
    ],
)
def test_text_that_is_not_canonical_is_refused(text: str):
    """There is one way to write a byte, and raw controls are none."""
    with pytest.raises(CorpusError):
        corpus.parse_bytes(text)


REQUEST_TEXT = r"""title: t
rule: r
expect: ok
method: GET
uri: /
path: []
header: host: localhost
---
GET / HTTP/1.1\r\n
host: localhost\r\n
\r\n
"""


def test_case_file_is_parsed():
    """The smallest case of a request gives its values (the control of the next)."""
    case = corpus.parse_request_case("name", REQUEST_TEXT)
    assert case.data == b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"
    assert case.requests == [
        corpus.Request("GET", "/", [], None, {"host": "localhost"}, None, [], {})
    ]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("title: t\n", ""),
        ("title: t", "title:"),
        ("title: t", "title: t "),
        ("rule: r", "rule: r\nrule: r"),
        ("rule: r", "rule: r\ncolour: red"),
        ("rule: r", "rule: r\neof: no"),
        ("rule: r", "rule: r\noption: x"),
        ("expect: ok", "expect: fine"),
        ("expect: ok", "expect: 200"),
        ("expect: ok", "expect: ok\nafter: later"),
        ("uri: /\npath: []", "path: []\nuri: /"),
        ("header: host: localhost", "header: Host: localhost"),
        ("header: host: localhost", "header: a: b\nheader: a: b"),
        ("---\n", ""),
        ("\\n\nhost", "\\nhost"),
        ("\\r\\n\nhost", "\nhost"),
        ("\\r\\n\nhost", "\\r\\n \nhost"),
        ("\\r\\n\n\\r\\n\n", "\\r\\n\n\\r\\n"),
    ],
)
def test_case_file_that_breaks_the_format_is_refused(old: str, new: str):
    """Unknown, missing, repeated and misplaced keys are errors, and so are blanks."""
    assert old in REQUEST_TEXT
    with pytest.raises(CorpusError):
        corpus.parse_request_case("name", REQUEST_TEXT.replace(old, new, 1))


# --- the parsers -------------------------------------------------------------


def read_case(case: RequestCase, pieces: list[bytes]) -> Any:
    """Read the requests of a case; a last request is not read beyond."""
    is_last = case.expect == "ok" and case.after == "closed" and not case.eof
    return corpus.read_requests(
        pieces, case.options, len(case.requests) if is_last else None
    )


@pytest.mark.parametrize("case", params(REQUEST_CASES))
def test_parser_reads_requests_however_they_arrive(case: RequestCase):
    """Whole, byte by byte and with more behind: the same requests, the same end."""
    expected = (case.requests, case.expect)
    assert read_case(case, [case.data]) == expected
    assert read_case(case, corpus.split_bytes(case.data)) == expected
    if case.expect == "incomplete":
        return
    requests, ended = read_case(case, [case.data + PROBE])
    assert ended == case.expect
    is_read_on = case.expect == "ok" and (case.after == "open" or case.eof)
    if is_read_on:
        assert requests.pop().uri == "/probe"
    assert requests == case.requests


# How many interim responses are too many, and that 101 is none, the client decides.
@pytest.mark.parametrize(
    "case", params([c for c in RESPONSE_CASES if c.expect != "ProtocolError"])
)
def test_parser_reads_responses_however_they_arrive(case: ResponseCase):
    """Whole, byte by byte and with more behind: the same response or error."""
    feeds = [[case.data], corpus.split_bytes(case.data)]
    if not case.eof:
        feeds.append([case.data + PROBE_ANSWER])
    for pieces in feeds:
        if case.response is not None:
            read = corpus.read_response(pieces, case.method, case.options)
            assert read == case.response
        else:
            with pytest.raises(getattr(errors, case.expect)):
                corpus.read_response(pieces, case.method, case.options)


REGIONS = {
    "method": (b"B%cT / HTTP/1.1\r\nhost: localhost\r\n\r\n", b"!#$%&'*+-.^_`|~"),
    "path": (
        b"GET /a%cb HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"-._~!$&'()*+,;=:@/|[]^?",
    ),
    "query": (
        b"GET /?a%cb HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"-._~!$&'()*+,;=:@/?|[]^{}`\\",
    ),
    "name": (
        b"GET / HTTP/1.1\r\nhost: localhost\r\nx%cy: z\r\n\r\n",
        b"!#$%&'*+-.^_`|~:",
    ),
    "value": (
        b"GET / HTTP/1.1\r\nhost: localhost\r\nx: y%cz\r\n\r\n",
        bytes(range(0x20, 0x7F)) + b"\t",
    ),
    "chunk size": (
        b"POST / HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
        b"1%c\r\n",
        b"0123456789abcdefABCDEF",
    ),
    "extension name": (
        b"POST / HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
        b"0;x%cy\r\n\r\n",
        b"!#$%&'*+-.^_`|~;=",
    ),
    "extension value": (
        b"POST / HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
        b'0;x="y%cz"\r\n\r\n',
        bytes(set(range(0x20, 0x7F)) - set(b'"\\')) + b"\t\\",
    ),
    "trailer name": (
        b"POST / HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
        b"0\r\nx%cy: z\r\n\r\n",
        b"!#$%&'*+-.^_`|~:",
    ),
    "trailer value": (
        b"POST / HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
        b"0\r\nx: y%cz\r\n\r\n",
        bytes(range(0x20, 0x7F)) + b"\t",
    ),
}
ALPHANUMERIC = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


@pytest.mark.parametrize("region", REGIONS)
def test_each_of_256_bytes_in_each_region_is_taken_or_refused(region: str):
    """A byte outside of a region's own set never gets through, all others do."""
    template, marks = REGIONS[region]
    good = set(marks) | (set() if region == "chunk size" else set(ALPHANUMERIC))
    refused = "501" if region == "method" else "ok"
    for byte in range(256):
        _, ended = corpus.read_requests([template % byte])
        if byte in good:
            assert ended in (refused, "incomplete"), hex(byte)
        else:
            assert ended == "400", hex(byte)


# --- a real server -----------------------------------------------------------


class Recorder:
    """An app that reads each body whole and keeps what each connection asked."""

    def __init__(self) -> None:
        self.requests: dict[Any, list[corpus.Request]] = {}
        self.calls: Counter[Any] = Counter()

    def __call__(
        self, request: dict[str, Any]
    ) -> tuple[int, str, dict[str, Any], None]:
        client = request["client"]
        self.calls[client] += 1
        taken = corpus.take_request(request)
        self.requests.setdefault(client, []).append(taken)
        return 200, "OK", {}, None


Servers = Callable[[dict[str, Any]], tuple[Any, Recorder]]


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    """Start a server for each set of options that some case asks for."""
    made: dict[str, tuple[Any, Recorder]] = {}
    with ExitStack() as stack:

        def get(options: dict[str, Any]) -> tuple[Any, Recorder]:
            key = repr(options)
            if key not in made:
                app = Recorder()
                server = Server((HOST, 0), app, timeout=TIMEOUT, **options)
                stack.enter_context(server.running())
                made[key] = (server.address, app)
            return made[key]

        yield get


ANSWER = re.compile(rb"HTTP/1\.1 ([0-9]{3}) [ -~]+\r\n((?:[!-~]+: [ -~]*\r\n)*)\r\n")
BARE = {b"content-length: 0", b"connection: close"}


class Peer:
    """A raw client: sends bytes, and takes the answers apart by itself."""

    def __init__(self, address: Any) -> None:
        self.sock = socket.create_connection(address, TIMEOUT)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.name = self.sock.getsockname()
        self.data = b""

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.sock.close()

    def send(self, pieces: list[bytes], *, eof: bool = False) -> None:
        for piece in pieces:
            self.sock.sendall(piece)
        if eof:
            self.sock.shutdown(socket.SHUT_WR)

    def read_answer(self) -> tuple[int, set[bytes]] | None:
        """The next final answer: status and fields; None where the server closed."""
        while True:
            while not (match := ANSWER.match(self.data)):
                more = self.sock.recv(65536)
                if not more:
                    assert not self.data, f"half an answer: {self.data!r}"
                    return None
                self.data += more
            self.data = self.data[match.end() :]
            if match[1] != b"100":
                return int(match[1]), set(match[2].split(b"\r\n")) - {b""}


def serve_case(
    servers: Servers, case: RequestCase, pieces: list[bytes], *, hidden: bool = False
) -> None:
    """Send a case; check answers, the connection's fate and what the app saw.

    `hidden`: a further request comes right behind the bytes of a refused one.
    """
    address, app = servers(case.options)
    with Peer(address) as peer:
        peer.send(pieces, eof=case.eof)
        for _ in case.requests:
            answer = peer.read_answer()
            assert answer is not None, "closed before every request was answered"
            assert answer[0] == 200
        if case.after == "open":
            if not hidden:
                peer.send([PROBE])
            assert peer.read_answer() == (200, {b"content-length: 0"})
        elif case.status is not None:
            assert peer.read_answer() == (case.status, BARE)
        if case.after == "closed":
            assert peer.read_answer() is None, "an answer that nobody asked for"
    requests = app.requests.pop(peer.name, [])
    assert app.calls.pop(peer.name, 0) - len(requests) in (0, 1)
    if case.after == "open":
        assert requests.pop().uri == "/probe"
    assert requests == case.requests
    check_alive(address, app)


def check_alive(address: Any, app: Recorder) -> None:
    """A plain GET on a new connection is answered."""
    with Peer(address) as peer:
        peer.send([b"GET /alive HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"])
        assert peer.read_answer() == (200, {b"content-length: 0"})
    assert [request.uri for request in app.requests.pop(peer.name)] == ["/alive"]
    del app.calls[peer.name]


@pytest.mark.parametrize("case", params(REQUEST_CASES))
def test_server_answers(servers: Servers, case: RequestCase):
    """The status, the close and the requests an app sees are those of the case."""
    serve_case(servers, case, [case.data])


@pytest.mark.parametrize("case", params(sample(REQUEST_CASES)))
def test_server_answers_what_comes_byte_by_byte(servers: Servers, case: RequestCase):
    """One byte a segment changes nothing."""
    serve_case(servers, case, corpus.split_bytes(case.data))


@pytest.mark.parametrize(
    "case",
    params(
        [c for c in sample(REQUEST_CASES) if not c.eof and c.expect != "incomplete"]
    ),
)
def test_server_answers_what_has_more_behind(servers: Servers, case: RequestCase):
    """A request behind a refused one stays unseen; behind a good one it is next."""
    serve_case(servers, case, [case.data + PROBE], hidden=True)


def has_expectation(case: RequestCase) -> bool:
    return case.expect == "ok" and "expect" in case.requests[0].headers


@pytest.mark.parametrize(
    "case", params([case for case in REQUEST_CASES if has_expectation(case)])
)
def test_server_asks_for_an_expected_body(servers: Servers, case: RequestCase):
    """100 (Continue) comes before the body, and only where there is to be one."""
    address, _ = servers(case.options)
    head, _, rest = case.data.partition(b"\r\n\r\n")
    with Peer(address) as peer:
        peer.send([head + b"\r\n\r\n"])
        peer.data = peer.sock.recv(65536)
        begin = b"HTTP/1.1 200 " if case.requests[0].body is None else CONTINUE
        assert peer.data.startswith(begin)
        peer.send([rest])
        for _ in case.requests:
            assert peer.read_answer() == (200, {b"content-length: 0"})


# --- a real client -----------------------------------------------------------


class Script:
    """A server that answers each connection's first request with given bytes."""

    def __init__(self) -> None:
        self.listener = socket.create_server((HOST, 0))
        self.address = self.listener.getsockname()
        self.pieces: list[bytes] = []
        self.eof = False
        self.sent = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def play(self, pieces: list[bytes], *, eof: bool) -> threading.Event:
        """Say what the next connection gets; the event is set when all was sent."""
        self.pieces, self.eof, self.sent = pieces, eof, threading.Event()
        return self.sent

    def run(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return  # closed: the module is done
            sent = self.sent
            with sock, suppress(OSError):  # a client may have seen enough
                self.serve(sock, sent)
            sent.set()

    def serve(self, sock: socket.socket, sent: threading.Event) -> None:
        sock.settimeout(TIMEOUT)
        if not self.read_head(sock):
            return
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in self.pieces:
            sock.sendall(piece)
        if self.eof:
            sock.shutdown(socket.SHUT_WR)
        sent.set()
        while self.read_head(sock):
            sock.sendall(PROBE_ANSWER)

    @staticmethod
    def read_head(sock: socket.socket) -> bool:
        data = b""
        while not data.endswith(b"\r\n\r\n"):
            more = sock.recv(65536)
            if not more:
                return False
            data += more
        return True

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(TIMEOUT)


@pytest.fixture(scope="module")
def script() -> Iterator[Script]:
    """One scripted server for the module."""
    script = Script()
    yield script
    script.close()


def play_case(
    script: Script, case: ResponseCase, pieces: list[bytes], after: str
) -> None:
    """Play a case to a client; check what it returns or raises, and what is `after`."""
    sent = script.play(pieces, eof=case.eof)
    client = Client(script.address, timeout=TIMEOUT, **case.options)
    with client.connect() as connection:
        if case.response is not None:
            got = corpus.take_response(*connection.request(case.method, "/"))
            assert got == case.response
        else:
            with pytest.raises(getattr(errors, case.expect)):
                corpus.take_response(*connection.request(case.method, "/"))
        assert sent.wait(TIMEOUT)
        check_next(connection, after)


def check_next(connection: Connection, after: str) -> None:
    """A connection is reused with a clean stream, or is closed and says so."""
    if after == "open":
        assert not connection.closed
        got = corpus.take_response(*connection.request("GET", "/probe"))
        assert (got.status, got.body) == (299, b"probe")
    else:
        assert connection.closed
        with pytest.raises(errors.ClosedConnectionError):
            connection.request("GET", "/probe")


@pytest.mark.parametrize("case", params(RESPONSE_CASES))
def test_client_takes_a_response(script: Script, case: ResponseCase):
    """The response or error is that of the case, and a dead connection is known."""
    play_case(script, case, [case.data], case.after)


@pytest.mark.parametrize("case", params(sample(RESPONSE_CASES)))
def test_client_takes_what_comes_byte_by_byte(script: Script, case: ResponseCase):
    """One byte a segment changes nothing."""
    play_case(script, case, corpus.split_bytes(case.data), case.after)


@pytest.mark.parametrize(
    "case", params([c for c in sample(RESPONSE_CASES) if not c.eof])
)
def test_client_drops_a_connection_with_more_behind(script: Script, case: ResponseCase):
    """A second response that nobody asked for is never taken for the next one."""
    play_case(script, case, [case.data + PROBE_ANSWER], "closed")

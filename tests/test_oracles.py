"""Whatever Degu takes, h11 and httptools take too, and frame in the same way.

Two parsers of other hands and other schools read what Degu accepted: every case of
the corpus, and each again with a few bytes changed. The other way round nothing is
asked: Degu may refuse what they accept. `EXCEPTIONS` says where an oracle refuses
something that Degu takes on purpose.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import h11
import httptools
import pytest

from degu.errors import DeguError
from tests import corpus
from tests.corpus import RequestCase, ResponseCase

REQUEST_CASES = corpus.read_request_cases()
RESPONSE_CASES = corpus.read_response_cases()
CHANGES = 10
"""How often each case is read again with its bytes changed."""

UPGRADED = re.compile(rb"^HTTP/1\.1 101 ", re.MULTILINE)
EXCEPTIONS: dict[str, list[tuple[re.Pattern[bytes], str]]] = {
    "h11": [
        (
            re.compile(
                rb"\A\r\n"
                rb"|\A(?!.*transfer-encoding).*[^\n]\r\n[A-Z]+ \S+ HTTP/1\.1\r\n"
                rb"|\r\n\r\n\r\n[A-Z]+ \S+ HTTP/1\.1\r\n",
                re.I | re.S,
            ),
            "it refuses an empty line before a request-line, which RFC 9112 §2.2 "
            "asks a server to skip",
        ),
        (UPGRADED, "a 101 is refused by Degu's client, not by its parser"),
    ],
    "httptools": [
        (
            re.compile(rb"^transfer-encoding:.*chunked[ \t]+\r\n", re.I | re.M),
            "it refuses blanks after chunked, which are OWS by RFC 9112 §5.1",
        ),
        (
            re.compile(rb"^[0-9a-f]{1,8};(?:[^\"\r\n]*|.*\")[ \t]", re.I | re.M),
            "it refuses blanks inside of a chunk extension, which RFC 9112 §7.1.1 "
            "asks a recipient to read",
        ),
        (
            re.compile(rb"^connection:.*upgrade", re.I | re.M),
            "it leaves what follows an Upgrade to somebody else; Degu ignores "
            "Upgrade, as RFC 9110 §7.8 lets a server do",
        ),
        (UPGRADED, "a 101 is refused by Degu's client, not by its parser"),
    ],
}
"""What an oracle refuses or frames in another way, and why Degu does not."""


@dataclass(frozen=True)
class Message:
    """What every parser can say about a message: how it begins, and its body."""

    start: tuple[bytes, bytes]
    body: bytes


class RefusedError(Exception):
    """The oracle does not take this."""


# --- the oracles -------------------------------------------------------------


def read_by_h11(data: bytes) -> Iterator[Message]:
    """The requests that h11 sees in `data`."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    connection.receive_data(data)
    while True:
        start, body = None, b""
        while not isinstance(event := _next_h11(connection), h11.EndOfMessage):
            if isinstance(event, h11.Request):
                start = (event.method, event.target)
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            else:
                return
        assert start is not None
        yield Message(start, body)
        connection.send(
            h11.Response(status_code=200, headers=[("content-length", "0")])
        )
        connection.send(h11.EndOfMessage())
        if connection.our_state is not h11.DONE:
            return
        connection.start_next_cycle()


def _next_h11(connection: h11.Connection) -> Any:
    try:
        return connection.next_event()
    except h11.RemoteProtocolError as error:
        raise RefusedError(str(error)) from error


def read_by_httptools(data: bytes) -> Iterator[Message]:
    """The requests that httptools (llhttp) sees in `data`."""
    listener = _Listener()
    listener.parser = httptools.HttpRequestParser(listener)
    error = _feed(listener.parser, data)
    yield from listener.messages
    if error is not None:
        raise error


def _feed(parser: Any, data: bytes) -> RefusedError | None:
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        return None  # it leaves what follows to somebody else
    except httptools.HttpParserError as error:
        return RefusedError(repr(error))
    return None


class _Listener:
    """Collects what httptools calls back, for requests and for responses."""

    def __init__(self) -> None:
        self.parser: Any = None
        self.messages: list[Message] = []

    def on_message_begin(self) -> None:
        self.url = self.body = b""

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        if isinstance(self.parser, httptools.HttpRequestParser):
            start = (self.parser.get_method(), self.url)
        else:
            start = (b"%d" % self.parser.get_status_code(), b"")
        self.messages.append(Message(start, self.body))


REQUEST_ORACLES: dict[str, Callable[[bytes], Iterator[Message]]] = {
    "h11": read_by_h11,
    "httptools": read_by_httptools,
}


def read_response_by_h11(data: bytes, method: str, *, eof: bool) -> Message:
    """The final response that h11 sees in `data`."""
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    request = h11.Request(method=method, target="/", headers=[("host", "x")])
    connection.send(request)
    connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    if eof:
        connection.receive_data(b"")
    status, body = b"", b""
    while not isinstance(event := _next_h11(connection), h11.EndOfMessage):
        if isinstance(event, h11.Response):
            status = b"%d" % event.status_code
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif not isinstance(event, h11.InformationalResponse):
            raise RefusedError(f"not complete: {event!r}")
    return Message((status, b""), body)


def read_response_by_httptools(data: bytes, method: str, *, eof: bool) -> Message:
    """The final response that httptools sees in `data`."""
    listener = _Listener()
    listener.parser = httptools.HttpResponseParser(listener)
    error = _feed(listener.parser, data)
    for message in listener.messages:
        if message.start[0][:1] != b"1":
            return message
    if eof and error is None:
        # It has no call for the end of a stream: what it collected is the body.
        return Message((b"%d" % listener.parser.get_status_code(), b""), listener.body)
    raise error or RefusedError("not complete")


RESPONSE_ORACLES: dict[str, Callable[..., Message]] = {
    "h11": read_response_by_h11,
    "httptools": read_response_by_httptools,
}


def is_exception(oracle: str, data: bytes) -> bool:
    """Whether `data` has something that this oracle is known to refuse."""
    return any(pattern.search(data) for pattern, _ in EXCEPTIONS[oracle])


# --- changed bytes -----------------------------------------------------------

PIECES = [
    *(bytes([byte]) for byte in b'\0\t\n\v\f\r "#%+,-./0123:;<=?@AZ[\\]_az{|}~'),
    b"\x7f",
    b"\x80",
    b"\xa0",
    b"\r\n",
    b"\r\n\r\n",
    b"0\r\n\r\n",
    b"content-length: 3\r\n",
    b"transfer-encoding: chunked\r\n",
    b"x: y\r\n",
    b" chunked",
    b", ",
]


def change_bytes(name: str, data: bytes) -> Iterator[bytes]:
    """`data` with a byte less, a piece more, or a piece in place of a byte."""
    source = random.Random(zlib.crc32(name.encode()))
    for _ in range(CHANGES):
        at = source.randrange(len(data) + 1)
        piece = source.choice([b"", *PIECES])
        kept = source.choice([0, 1])
        yield data[:at] + piece + data[at + 1 - kept :]


# --- requests ----------------------------------------------------------------


def check_requests(oracle: str, case: RequestCase, data: bytes) -> bool:
    """Compare what Degu accepts of `data`; whether it accepted anything."""
    requests, ended = corpus.read_requests([data], case.options)
    if not requests or is_exception(oracle, data):
        return bool(requests)
    messages = REQUEST_ORACLES[oracle](data)
    for request in requests:
        message = next(messages, None)
        expected = Message(
            (request.method.encode(), request.uri.encode()), request.body or b""
        )
        assert message is not None, f"{oracle} sees no {expected} ({ended})"
        if message.start[1][:1] not in (b"/", b"*"):  # absolute-form
            assert message.start[1].endswith((request.uri[1:] or "").encode())
            message = Message((message.start[0], expected.start[1]), message.body)
        assert message == expected
        if says_close(request.headers):
            return True
    return True


def says_close(headers: dict[str, Any]) -> bool:
    return "close" in re.split("[ \t]*,[ \t]*", headers.get("connection", "").lower())


REFUSED = [
    b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
    b"GET / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n+3\r\nabc\r\n",
    b"GE(T / HTTP/1.1\r\nhost: x\r\n\r\n",
]


@pytest.mark.parametrize("oracle", REQUEST_ORACLES)
@pytest.mark.parametrize("data", REFUSED)
def test_oracle_can_refuse(oracle: str, data: bytes):
    """The oracles are asked for real: what is plainly wrong they do not take."""
    with pytest.raises(RefusedError):
        list(REQUEST_ORACLES[oracle](data))


@pytest.mark.parametrize("oracle", REQUEST_ORACLES)
def test_oracle_frames_the_requests_of_the_corpus_alike(oracle: str):
    """Each accepted request is one for the oracle too: method, target and body."""
    accepted = 0
    for case in REQUEST_CASES:
        accepted += check_requests(oracle, case, case.data)
    assert accepted > 150


@pytest.mark.parametrize("oracle", REQUEST_ORACLES)
def test_oracle_frames_changed_requests_alike(oracle: str):
    """So is what is still accepted after a change of some bytes."""
    accepted = 0
    for case in REQUEST_CASES:
        for data in change_bytes(case.name, case.data):
            accepted += check_requests(oracle, case, data)
    assert accepted > 150


# --- responses ---------------------------------------------------------------


def check_response(oracle: str, case: ResponseCase, data: bytes) -> bool:
    """Compare what Degu accepts of `data`; whether it accepted it."""
    try:
        response = corpus.read_response([data], case.method, case.options)
    except DeguError:
        return False
    # httptools is not told that the request was HEAD, so it waits for a body.
    is_blind = oracle == "httptools" and case.method == "HEAD"
    if not is_blind and not is_exception(oracle, data):
        # The parsers above saw the end of the stream where the bytes end.
        message = RESPONSE_ORACLES[oracle](data, case.method, eof=True)
        assert message == Message((b"%d" % response.status, b""), response.body or b"")
    return True


@pytest.mark.parametrize("oracle", RESPONSE_ORACLES)
def test_oracle_frames_the_responses_of_the_corpus_alike(oracle: str):
    """Each accepted response is one for the oracle too: status and body."""
    accepted = 0
    for case in RESPONSE_CASES:
        accepted += check_response(oracle, case, case.data)
    assert accepted > 80


@pytest.mark.parametrize("oracle", RESPONSE_ORACLES)
def test_oracle_frames_changed_responses_alike(oracle: str):
    """So is what is still accepted after a change of some bytes."""
    accepted = 0
    for case in RESPONSE_CASES:
        for data in change_bytes(case.name, case.data):
            accepted += check_response(oracle, case, data)
    assert accepted > 80

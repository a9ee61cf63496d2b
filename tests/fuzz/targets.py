"""What is fuzzed: functions of bytes that must raise nothing for any of them.

Each one feeds a part of Degu and then holds it to what it promises: only a
`ProtocolError` or `PeerError` comes out, what was accepted can be written and read
again, and how the bytes were cut into pieces makes no difference.
"""

from __future__ import annotations

import importlib
import io
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import h11

from degu import wire
from degu.base import ChunkedInput, ChunkedOutput, build_uri
from degu.errors import DeguError, PeerError, ProtocolError
from degu.limits import MAX_HEAD_SIZE
from tests import corpus

MAX_BODY_SIZE = 1 << 20
ROOM = MAX_HEAD_SIZE - 300  # what comes without blanks after its colons grows a little
# What h11 leaves to another protocol, and an empty line that it does not skip.
SEPARATE = re.compile(rb"upgrade|\A\r\n", re.I)

try:
    compiled: Any = importlib.import_module("degu._wire")
except ImportError:
    compiled = None


def fuzz_request(data: bytes) -> None:
    """A head of a request: what is accepted is written again and read as the same."""
    try:
        request = wire.parse_request(data)
    except ProtocolError:
        return
    if len(data) > ROOM:
        return
    uri = request["uri"]
    assert uri == "*" or build_uri(request["path"], request["query"]) in (uri, uri[1:])
    assert request["method"] in wire.METHODS
    head = wire.format_request(request["method"], uri, request["headers"])
    assert re.fullmatch(rb"(?:[\t -~]|\r\n)*+", head)
    again = wire.parse_request(head)
    assert again == request
    with suppress(ProtocolError):
        wire.body_framing(request["headers"], request["method"])


def fuzz_response(data: bytes) -> None:
    """The same for the head of a response."""
    try:
        status, reason, headers = wire.parse_response(data)
    except ProtocolError:
        return
    if len(data) > ROOM or data[:8] == b"HTTP/1.0":  # that got a field more
        return
    head = wire.format_response(status, reason, headers)
    assert re.fullmatch(rb"(?:[\t -~]|\r\n)*+", head)
    assert wire.parse_response(head) == (status, reason, headers)
    with suppress(ProtocolError):
        wire.body_framing(headers, "GET", status)


def fuzz_chunked(data: bytes) -> None:
    """A chunked body: what is accepted is written again and read as the same."""
    body = ChunkedInput(io.BytesIO(data), MAX_BODY_SIZE)
    try:
        chunks = list(body.chunks())
    except (ProtocolError, PeerError):
        assert body.closed
        return
    written = io.BytesIO()
    ChunkedOutput(iter(chunks), body.trailers).write_to(written)
    again = ChunkedInput(io.BytesIO(written.getvalue()), MAX_BODY_SIZE)
    assert list(again.chunks()) == chunks
    assert again.trailers == body.trailers
    whole = b"".join(ChunkedInput(io.BytesIO(data), MAX_BODY_SIZE))
    assert whole == b"".join(bytes(piece) for _, piece in chunks)


def cut(data: bytes) -> Iterator[bytes]:
    """Pieces whose sizes the data itself decides, so that the fuzzer has a say."""
    at = 0
    while at < len(data):
        size = 1 + data[at] % 61 if data[at] % 3 else 1
        yield data[at : at + size]
        at += size


def outcome(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (ProtocolError, PeerError) as error:
        return type(error)


def fuzz_requests(data: bytes) -> None:
    """A stream of requests, whole and in pieces; what is accepted h11 accepts too."""
    options = {"max_body_size": MAX_BODY_SIZE}
    whole = corpus.read_requests([data], options)
    assert corpus.read_requests(cut(data), options) == whole
    requests, _ = whole
    if requests and not SEPARATE.search(data):
        check_first(requests[0], data)


def check_first(request: corpus.Request, data: bytes) -> None:
    """The first request is the same for h11: method, target, length of the body."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    connection.receive_data(data)
    event = connection.next_event()
    assert isinstance(event, h11.Request)
    assert event.method == request.method.encode()
    assert event.target.endswith(request.uri.lstrip("/").encode())
    body = b""
    while not isinstance(event := connection.next_event(), h11.EndOfMessage):
        assert isinstance(event, h11.Data)
        body += bytes(event.data)
    assert body == (request.body or b"")


def fuzz_responses(data: bytes) -> None:
    """A stream of a client: interim responses and a final one with its body."""
    options = {"max_body_size": MAX_BODY_SIZE}
    for method in ("GET", "HEAD"):

        def read(pieces: Any, method: str = method) -> Any:
            return outcome(lambda: corpus.read_response(pieces, method, options))

        assert read(cut(data)) == read([data])


def fuzz_twin(data: bytes) -> None:
    """The compiled functions: the same values, or errors that say the same."""
    for name in ("request", "response", "headers", "trailers", "chunk_head"):
        pure, fast = getattr(wire, f"parse_{name}"), getattr(compiled, f"parse_{name}")
        expected, got = said(pure, data), said(fast, data)
        assert got == expected, (name, got, expected)
        if not isinstance(expected, dict) or name not in ("headers", "trailers"):
            continue
        pure, fast = wire.format_headers, compiled.format_headers
        assert said(fast, expected) == said(pure, expected)


def said(function: Callable[[Any], Any], argument: Any) -> Any:
    try:
        return function(argument)
    except DeguError as error:
        return type(error), str(error)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "request": fuzz_request,
    "response": fuzz_response,
    "chunked": fuzz_chunked,
    "requests": fuzz_requests,
    "responses": fuzz_responses,
}
if compiled is not None:
    TARGETS["twin"] = fuzz_twin

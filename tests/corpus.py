r"""The corpus of cases under ``tests/data``: bytes and what must become of them.

One file is one case, ``requests/NAME.case`` or ``responses/NAME.case``::

    title: a chunked body, then a request
    rule: RFC 9112 §9.3.2
    expect: ok
    method: POST
    uri: /
    path: []
    header: host: localhost
    header: transfer-encoding: chunked
    body: abc
    method: GET
    uri: /two
    path: ["two"]
    header: host: localhost
    ---
    POST / HTTP/1.1\r\n
    host: localhost\r\n
    ...

Below the line ``---`` are the bytes that the peer sends: visible ASCII and blanks stand
for themselves, everything else is written ``\r \n \t \\ \{ \} \xHH``. The ends of the
file's own lines mean nothing; a line ends after each ``\n``, so that every CRLF and
every bare LF can be seen. ``{TEXT*100}`` is TEXT a hundred times, ``\#`` in it the
number of the turn, from 1. The values of ``uri path query header body extension
trailer reason`` are written in the same way.

Keys of both directions:

title      what the case shows, in a few words
rule       where it comes from: a section of an RFC, also a CVE where it was exploited
row        optional: numbers of known failures of earlier generations of Degu
option     optional, repeated: NAME=JSON, an option for the server or client
eof        optional, ``yes``: the peer shuts its sending side down after the bytes
after      what must become of the connection: ``open`` or ``closed``

A case of a request says ``expect: ok``, or a status (the answer to what follows the
accepted requests; the connection closes then), or ``incomplete`` (more bytes would be
needed, and no answer is due). Each accepted request begins with ``method``, then
``uri path query header body extension trailer``: no ``query`` means None, no ``body``
means None, an ``extension`` line for each chunk that had one. The ``after`` of a case
of requests is ``open`` unless it says otherwise.

A case of a response names the ``method`` of the request that it answers, and says
``expect: ok`` with ``after status reason header body extension trailer``, or the
name of the class of `degu.errors` that has to be raised.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from degu.base import ChunkedInput, Input, Stream, make_input, wire
from degu.door import Door
from degu.errors import EmptyHeadError, PeerError, ProtocolError
from degu.limits import CLIENT_OPTIONS, SERVER_OPTIONS, check_options

DATA: Final = Path(__file__).parent / "data"
STATUSES: Final = frozenset({400, 403, 413, 414, 417, 421, 431, 501, 505})

_ESCAPES: Final = {
    "r": b"\r",
    "n": b"\n",
    "t": b"\t",
    "\\": b"\\",
    "{": b"{",
    "}": b"}",
}
_NAMES: Final = {value: name for name, value in _ESCAPES.items()}
_match_item = re.compile(
    r"\\(?P<name>[rnt\\{}])"
    r"|\\x(?P<hex>[0-9a-f]{2})"
    r"|(?P<turn>\\#)"
    r"|\{(?P<text>(?:\\.|[^\\{}])+)\*(?P<count>[1-9][0-9]*)\}"
    r"|(?P<plain>[ -\[\]-z|~]+)"
).match
_match_name = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*").fullmatch


class CorpusError(ValueError):
    """A case file breaks a rule of this format."""


@dataclass(frozen=True)
class Request:
    """One request that a server has to hand to its app, with its body read whole."""

    method: str
    uri: str
    path: list[str]
    query: str | None
    headers: dict[str, Any]
    body: bytes | None
    extensions: list[str]
    trailers: dict[str, Any]


@dataclass(frozen=True)
class Response:
    """A response that a client has to return, with its body read whole."""

    status: int
    reason: str
    headers: dict[str, Any]
    body: bytes | None
    extensions: list[str]
    trailers: dict[str, Any]


@dataclass(frozen=True)
class RequestCase:
    """What a client sends (`data`), and what a server makes of it."""

    name: str
    title: str
    rule: str
    rows: tuple[str, ...]
    options: dict[str, Any]
    eof: bool
    expect: str
    after: str
    requests: list[Request]
    data: bytes

    @property
    def status(self) -> int | None:
        """The status of the refusal; None where nothing is refused."""
        return int(self.expect) if self.expect.isdecimal() else None


@dataclass(frozen=True)
class ResponseCase:
    """What a server sends (`data`), and what a client makes of it."""

    name: str
    title: str
    rule: str
    rows: tuple[str, ...]
    options: dict[str, Any]
    eof: bool
    method: str
    expect: str
    after: str
    response: Response | None
    data: bytes


Case = RequestCase | ResponseCase


# --- bytes as text -----------------------------------------------------------


def parse_bytes(text: str, turn: int | None = None) -> bytes:
    """The bytes that `text` stands for; `turn` is the number that ``\\#`` means."""
    pieces = []
    position = 0
    while position < len(text):
        match = _match_item(text, position)
        if match is None:
            raise CorpusError(f"expected an escape or text at {text[position:][:20]!r}")
        pieces.append(_parse_item(match, turn))
        position = match.end()
    return b"".join(pieces)


def _parse_item(match: re.Match[str], turn: int | None) -> bytes:
    if (plain := match["plain"]) is not None:
        return plain.encode("ascii")
    if (name := match["name"]) is not None:
        return _ESCAPES[name]
    if (digits := match["hex"]) is not None:
        return _parse_hex(digits)
    if match["turn"] is not None:
        if turn is None:
            raise CorpusError(r"expected \# only inside of {TEXT*COUNT}")
        return b"%d" % turn
    if turn is not None:
        raise CorpusError("expected no {TEXT*COUNT} inside of another")
    turns = range(1, int(match["count"]) + 1)
    if r"\#" not in match["text"]:
        return parse_bytes(match["text"], 1) * len(turns)
    return b"".join(parse_bytes(match["text"], turn) for turn in turns)


def _parse_hex(digits: str) -> bytes:
    value = bytes.fromhex(digits)
    if value in _NAMES or b" " < value < b"\x7f":
        raise CorpusError(f"expected \\x{digits} to be written without \\x")
    return value


def format_bytes(data: bytes) -> str:
    """`data` as text; the inverse of :func:`parse_bytes`, without repetitions."""
    return "".join(map(_format_byte, data))


def _format_byte(value: int) -> str:
    byte = bytes([value])
    if byte in _NAMES:
        return "\\" + _NAMES[byte]
    return chr(value) if b" " <= byte < b"\x7f" else f"\\x{value:02x}"


# --- case files --------------------------------------------------------------


@dataclass
class _Fields:
    """The ``key: value`` lines of a case, taken one by one from the front."""

    lines: list[tuple[str, str]] = field(default_factory=list)

    def next_is(self, key: str) -> bool:
        return bool(self.lines) and self.lines[0][0] == key

    def take(self, key: str) -> str:
        if not self.next_is(key):
            raise CorpusError(f"expected {key!r} at {self.lines[:1]}")
        return self.lines.pop(0)[1]

    def take_any(self, key: str) -> str | None:
        return self.take(key) if self.next_is(key) else None

    def take_all(self, key: str) -> Iterator[str]:
        while self.next_is(key):
            yield self.take(key)

    def check_empty(self) -> None:
        if self.lines:
            raise CorpusError(f"expected no further key, got {self.lines[0]}")


def parse_request_case(name: str, text: str) -> RequestCase:
    """Parse the text of ``requests/NAME.case``; raises `CorpusError`."""
    fields, data = _split(name, text)
    shared = _take_shared(fields)
    expect = fields.take("expect")
    if not (expect in ("ok", "incomplete") or _is_status(expect)):
        raise CorpusError(f"expected ok, incomplete or a status, got {expect!r}")
    after = _check_after(fields.take_any("after") or "open")
    requests = []
    while fields.next_is("method"):
        requests.append(_take_request(fields))
    fields.check_empty()
    if expect == "ok" and not requests:
        raise CorpusError("expected a request that is accepted")
    if expect != "ok":
        after = "closed"
    return RequestCase(
        name=name, expect=expect, after=after, requests=requests, data=data, **shared
    )


def parse_response_case(name: str, text: str) -> ResponseCase:
    """Parse the text of ``responses/NAME.case``; raises `CorpusError`."""
    fields, data = _split(name, text)
    method, shared = "", _take_shared(fields, lambda: fields.take("method"))
    method = shared.pop("method")
    expect = fields.take("expect")
    response = None
    after = "closed"
    if expect == "ok":
        after = _check_after(fields.take("after"))
        response = _take_response(fields)
    elif not re.fullmatch("[A-Z][A-Za-z]+Error", expect):
        raise CorpusError(f"expected ok or the name of an error, got {expect!r}")
    fields.check_empty()
    return ResponseCase(
        name=name,
        method=method,
        expect=expect,
        after=after,
        response=response,
        data=data,
        **shared,
    )


def _split(name: str, text: str) -> tuple[_Fields, bytes]:
    if not _match_name(name):
        raise CorpusError(f"expected a name like lower-case-words, got {name!r}")
    top, line, bottom = ("\n" + text).partition("\n---\n")
    if not line or not text.endswith("\n"):
        raise CorpusError("expected a line '---' and a last line that ends")
    fields = _Fields([_parse_line(one) for one in top[1:].split("\n")])
    return fields, _parse_data(bottom)


def _parse_line(line: str) -> tuple[str, str]:
    match = re.fullmatch(r"([a-z]+):(?: (\S|\S.*\S))?", line)
    if match is None:
        raise CorpusError(f"expected 'key: value', got {line!r}")
    return match[1], match[2] or ""


def _parse_data(text: str) -> bytes:
    lines = text.split("\n")[:-1]
    for number, line in enumerate(lines):
        inner = re.sub(r"\\\\|\{(?:\\.|[^\\{}])+\}", "", line)
        if not line or line != line.strip(" "):
            raise CorpusError(f"expected a line without blanks around, got {line!r}")
        if r"\n" in inner[:-2] or (number < len(lines) - 1 and inner[-2:] != r"\n"):
            raise CorpusError(rf"expected a line to end after each \n, got {line!r}")
    return parse_bytes("".join(lines))


def _take_shared(
    fields: _Fields, take_method: Callable[[], str] | None = None
) -> dict[str, Any]:
    shared: dict[str, Any] = {
        "title": fields.take("title"),
        "rule": fields.take("rule"),
        "rows": tuple((fields.take_any("row") or "").split()),
        "options": dict(_parse_option(one) for one in fields.take_all("option")),
    }
    if not shared["title"] or not shared["rule"]:
        raise CorpusError("expected a title and a rule")
    if take_method is not None:
        shared["method"] = take_method()
    eof = fields.take_any("eof")
    if eof not in (None, "yes"):
        raise CorpusError(f"eof: expected yes, got {eof!r}")
    shared["eof"] = eof == "yes"
    return shared


def _parse_option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not re.fullmatch("[a-z_]+", name):
        raise CorpusError(f"option: expected NAME=JSON, got {text!r}")
    return name, json.loads(value)


def _is_status(text: str) -> bool:
    return bool(re.fullmatch("[0-9]{3}", text)) and int(text) in STATUSES


def _check_after(after: str) -> str:
    if after not in ("open", "closed"):
        raise CorpusError(f"after: expected open or closed, got {after!r}")
    return after


def _take_request(fields: _Fields) -> Request:
    method = fields.take("method")
    uri = _parse_text(fields.take("uri"))
    path = json.loads(_parse_text(fields.take("path")))
    query = fields.take_any("query")
    return Request(
        method, uri, path, None if query is None else _parse_text(query), *_take(fields)
    )


def _take_response(fields: _Fields) -> Response:
    status = int(fields.take("status"))
    return Response(status, _parse_text(fields.take("reason")), *_take(fields))


def _take(fields: _Fields) -> tuple[Any, ...]:
    """What requests and responses have in common: headers, body, chunks, trailers."""
    headers = _parse_headers(fields.take_all("header"))
    body = fields.take_any("body")
    return (
        headers,
        None if body is None else parse_bytes(body),
        [_parse_text(one) for one in fields.take_all("extension")],
        _parse_headers(fields.take_all("trailer")),
    )


def _parse_text(text: str) -> str:
    return parse_bytes(text).decode("ascii")


def _parse_headers(lines: Iterator[str]) -> dict[str, Any]:
    headers: dict[str, Any] = {}
    for line in lines:
        name, colon, value = _parse_text(line).partition(":")
        if not colon or name != name.lower() or (value and value[0] != " "):
            raise CorpusError(f"expected 'name: value', got {line!r}")
        _add(headers, name, value[1:])
    return headers


def _add(headers: dict[str, Any], name: str, value: str) -> None:
    if name in headers:
        if name != "set-cookie":
            raise CorpusError(f"expected the field {name!r} once")
        before = headers[name]
        headers[name] = [*(before if isinstance(before, list) else [before]), value]
    else:
        headers[name] = int(value) if name == "content-length" else value


# --- the whole corpus --------------------------------------------------------


def read_request_cases() -> list[RequestCase]:
    """Every case of ``tests/data/requests``, by name."""
    return [parse_request_case(*one) for one in _read("requests")]


def read_response_cases() -> list[ResponseCase]:
    """Every case of ``tests/data/responses``, by name."""
    return [parse_response_case(*one) for one in _read("responses")]


def _read(folder: str) -> Iterator[tuple[str, str]]:
    for path in sorted((DATA / folder).iterdir()):
        if path.suffix != ".case":
            raise CorpusError(f"expected only NAME.case, got {path.name!r}")
        yield path.stem, path.read_text(encoding="utf-8")


# --- feeding the parsers without a network -----------------------------------


class Feed:
    """What a `Stream` reads from: each call gives the next piece, at most, then EOF.

    A real socket decides by itself where a piece ends; this one is told.
    """

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._left = b""

    def recv(self, size: int) -> bytes:
        piece = self._left or next(self._pieces, b"")
        self._left = piece[size:]
        return piece[:size]

    def recv_into(self, buffer: memoryview) -> int:
        piece = self.recv(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)

    def send(self, data: bytes) -> int:
        """Nobody is there to listen."""
        return len(data)

    def settimeout(self, seconds: float) -> None:
        """A piece is always there at once."""

    def close(self) -> None:
        """Nothing to release."""


def make_stream(pieces: Iterable[bytes]) -> Stream:
    """A `Stream` that reads `pieces`, one at a time."""
    sock: Any = Feed(pieces)
    return Stream(sock, timeout=60.0, head_timeout=60.0, min_rate=0)


def split_bytes(data: bytes) -> list[bytes]:
    """`data` in pieces of one byte; what is very large in pieces of a prime size."""
    size = 1 if len(data) <= 5000 else 251
    return [data[index : index + size] for index in range(0, len(data), size)]


def read_requests(
    pieces: Iterable[bytes],
    options: Mapping[str, Any] | None = None,
    at_most: int | None = None,
) -> tuple[list[Request], str]:
    """Read requests as a server does; returns them and how it ended.

    That is ``ok`` where the bytes end between two requests or `at_most` were read,
    ``incomplete`` where they end inside of one, or the status of the refusal.
    """
    settings = check_options(options or {}, SERVER_OPTIONS)
    door = Door("http", settings)
    methods = settings["methods"] or wire.METHODS
    stream = make_stream(pieces)
    requests: list[Request] = []
    try:
        while at_most is None or len(requests) < at_most:
            head = stream.read_head(60.0, request=True)
            request = wire.parse_request(head, methods, "http")
            door.check(request["headers"])
            request["body"] = make_input(
                stream,
                request["headers"],
                request["method"],
                None,
                settings["max_body_size"],
            )
            requests.append(take_request(request))
    except EmptyHeadError:
        return requests, "ok" if requests else "incomplete"
    except PeerError:
        return requests, "incomplete"
    except ProtocolError as error:
        return requests, str(error.status)
    return requests, "ok"


def read_response(
    pieces: Iterable[bytes], method: str, options: Mapping[str, Any] | None = None
) -> Response:
    """Read a response to `method` as a client does; raises what it raises.

    Interim responses are skipped without a limit: that one is the client's.
    """
    settings = check_options(options or {}, CLIENT_OPTIONS)
    stream = make_stream(pieces)
    status = 100
    while status < 200:
        head = stream.read_head(60.0, request=False)
        status, reason, headers = wire.parse_response(head)
        wire.body_framing(headers, method, status)
    body = make_input(stream, headers, method, status, settings["max_body_size"])
    return take_response(status, reason, headers, body)


def take_response(
    status: int,
    reason: str,
    headers: dict[str, Any],
    body: Input | ChunkedInput | None,
) -> Response:
    """A response as the corpus speaks about it; reads its body."""
    return Response(status, reason, dict(headers), *take_body(body))


def take_request(request: Mapping[str, Any]) -> Request:
    """The part of a request that the corpus speaks about; reads its body."""
    body, extensions, trailers = take_body(request["body"])
    return Request(
        request["method"],
        request["uri"],
        list(request["path"]),
        request["query"],
        dict(request["headers"]),
        body,
        extensions,
        trailers,
    )


def take_body(
    body: Input | ChunkedInput | None,
) -> tuple[bytes | None, list[str], dict[str, Any]]:
    """Read a body: its data (None for no body), extensions and trailers."""
    if not isinstance(body, ChunkedInput):
        return None if body is None else b"".join(body), [], {}
    data = b""
    extensions = []
    for extension, piece in body.chunks():
        data += piece
        if extension is not None:
            extensions.append(extension)
    return data, extensions, dict(body.trailers)

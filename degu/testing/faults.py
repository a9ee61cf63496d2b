"""Servers and clients that fail in a chosen way, for the tests of others' code.

    with FaultyServer("reset", after=100) as server:
        call_my_client(server.url)

    with FaultyClient("drip_head", server.address, interval=0.1) as client:
        assert client.wait(5), "the server put up with it"

`SERVER_FAULTS` and `CLIENT_FAULTS` are the tables of the kinds, with what each
does and its options. The machinery is raw sockets and threads: what arrives is
exactly what the kind says, whatever a library would have made of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import selectors
import socket
import struct
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from degu.errors import shown

if TYPE_CHECKING:
    import ssl

__all__ = [
    "ANSWER",
    "CLIENT_FAULTS",
    "RECORDED_SIZE",
    "SERVER_FAULTS",
    "STOP_SECONDS",
    "Connection",
    "Fault",
    "FaultyClient",
    "FaultyServer",
]

RECORDED_SIZE = 1024 * 1024
"""How many bytes of what a peer sent are kept (bytes per connection)."""

STOP_SECONDS = 5.0
"""How long `stop` waits for its threads before it gives up with an error."""

CONNECT_SECONDS = 3.0
"""How long a faulty client tries to connect; below `STOP_SECONDS`."""

FLUSH_SECONDS = 1.0
"""How long a reset waits for the peer to have what was sent before it."""

TINY_BUFFER = 2048
"""The socket buffer (bytes) of kinds that make the peer wait while it sends."""


def build_answer(status: bytes, body: bytes, *lines: bytes) -> bytes:
    """A whole response: status line, content-length, more header lines, body."""
    length = b"content-length: %d" % len(body)
    return b"\r\n".join([b"HTTP/1.1 " + status, length, *lines, b"", body])


ANSWER = build_answer(b"200 OK", b"0123456789" * 100)
"""The right answer, which the kinds spoil: 200 with a body of 1000 bytes."""


class _StoppedError(Exception):
    """`stop` was called meanwhile."""


# --- One connection -----------------------------------------------------------------


@dataclasses.dataclass
class Connection:
    """What happened on one connection, as far as it got.

    `peer` is its address; `requests` counts the request heads read (servers);
    `received` is what the peer sent, up to `RECORDED_SIZE`; `received_size` and
    `sent_size` count bytes; `ended_by` is "peer" or "us", or "" while it lives;
    `error` is the text of what went wrong with the socket, or "".
    """

    peer: Any
    began: float
    requests: int = 0
    received: bytes = b""
    received_size: int = 0
    sent_size: int = 0
    ended_by: str = ""
    error: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        end = f"ended by {self.ended_by}" if self.ended_by else "open"
        error = f", {self.error}" if self.error else ""
        return (
            f"{self.peer}: {self.requests} requests, {self.received_size} bytes "
            f"received, {self.sent_size} sent, {end}{error}"
        )


class Wire:
    """A socket with its record, and the verbs that the kinds are written in."""

    def __init__(self, sock: socket.socket, peer: Any, stop: threading.Event) -> None:
        self.sock = sock
        self.stop = stop
        self.buffer = b""
        self.record = Connection(peer, time.monotonic())
        if sock.family != getattr(socket, "AF_UNIX", None):
            # A dripped byte is to travel alone, and at once.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def start_tls(self, sslctx: ssl.SSLContext, **options: Any) -> None:
        """Go on inside of TLS."""
        # In two steps, so that `interrupt` reaches the socket during the handshake.
        sock = sslctx.wrap_socket(self.sock, do_handshake_on_connect=False, **options)
        self.sock = sock
        sock.do_handshake()

    def send(self, data: bytes) -> None:
        """Send all of `data`, counting what went out even when it breaks off."""
        view = memoryview(data)
        while view:
            count = self.sock.send(view)
            self.record.sent_size += count
            view = view[count:]

    def drip(self, data: bytes, interval: float, size: int = 1) -> None:
        """Send `size` bytes each `interval` seconds."""
        for start in range(0, len(data), size):
            self.send(data[start : start + size])
            self.pause(interval)

    def read(self, size: int = 65536) -> bytes:
        """At most `size` bytes; ``b""`` when the peer is done."""
        if self.buffer:
            data, self.buffer = self.buffer[:size], self.buffer[size:]
            return data
        return self.receive(size)

    def receive(self, size: int) -> bytes:
        data = self.sock.recv(size)
        if self.stop.is_set():
            raise _StoppedError
        if not data:
            self.record.ended_by = "peer"
        self.record.received_size += len(data)
        room = RECORDED_SIZE - len(self.record.received)
        self.record.received += data[:room]
        return data

    def read_until(self, mark: bytes) -> bytes:
        """Everything up to and with `mark`; ``b""`` when the peer is done before."""
        data = b""
        while mark not in data:
            more = self.read()
            if not more:
                return b""
            data += more
        end = data.index(mark) + len(mark)
        self.buffer = data[end:] + self.buffer
        return data[:end]

    def read_body(self, head: bytes) -> None:
        """Read what belongs to `head`: by content-length, or chunked."""
        if re.search(rb"(?i)\r\nexpect:", head):
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        if re.search(rb"(?i)\r\ntransfer-encoding:", head):
            self.read_until(b"0\r\n\r\n")
            return
        length = re.search(rb"(?i)\r\ncontent-length:[ \t]*([0-9]+)", head)
        missing = int(length[1]) if length else 0
        while missing > 0 and (data := self.read(min(missing, 65536))):
            missing -= len(data)

    def hold(self) -> None:
        """Keep the connection, and read, until the peer ends it or `stop` is called."""
        while self.read():
            pass

    def pause(self, seconds: float | None) -> None:
        """Wait; None is until `stop`."""
        if self.stop.wait(seconds):
            raise _StoppedError

    def half_close(self) -> None:
        """Say that nothing more comes, and still listen."""
        # Under TLS too: unwrap() would wait for the peer's own close_notify.
        socket.socket.shutdown(self.sock, socket.SHUT_WR)

    def reset(self) -> None:
        """Close with a RST in place of a FIN (a Unix socket knows no difference)."""
        self.flush()
        linger = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close()

    def flush(self) -> None:
        """Wait until the peer has what was sent, since a reset discards the rest."""
        deadline = time.monotonic() + FLUSH_SECONDS
        while _count_unsent(self.sock) and time.monotonic() < deadline:
            self.pause(0.001)

    def close(self) -> None:
        self.record.ended_by = self.record.ended_by or "us"
        if not self.record.seconds:
            self.record.seconds = time.monotonic() - self.record.began
        self.sock.close()

    def interrupt(self) -> None:
        """From another thread: wake whatever waits on the socket."""
        with contextlib.suppress(OSError):
            # SSLSocket.shutdown() would take the TLS state away from under it.
            socket.socket.shutdown(self.sock, socket.SHUT_RDWR)


def _count_unsent(sock: socket.socket) -> int:
    """The bytes that the peer has not acknowledged, or 0 where nobody tells."""
    if sys.platform != "linux":
        return 0
    import fcntl
    import termios

    count = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))
    return int.from_bytes(count, sys.byteorder)


# --- The table ----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Fault:
    """A row of the tables.

    `kind`: its name; `summary`: what it does; `options`: name to default value,
    whose type is the option's; `choices`: the values of those that are names.
    The rest tells the machinery: `times` is how often it happens before all is
    well (0: always), `at_connect` says that it happens before any request,
    `reads_body` that the request's body is read first.
    """

    kind: str
    summary: str
    play: Callable[..., object]
    options: Mapping[str, Any]
    choices: Mapping[str, tuple[str, ...]]
    times: int = 0
    at_connect: bool = False
    reads_body: bool = True
    tiny_buffer: bool = False

    def check_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options with their defaults; raises TypeError or ValueError."""
        for name, value in options.items():
            self._check_option(name, value)
        return {**self.options, **options}

    def _check_option(self, name: str, value: Any) -> None:
        if name not in self.options:
            known = ", ".join(self.options) or "none"
            raise TypeError(f"{self.kind!r} has no option {name!r}; it has: {known}")
        wanted = type(self.options[name])
        given = float if wanted is float and type(value) is int else type(value)
        if given is not wanted:
            raise TypeError(
                f"option {name!r} of {self.kind!r}: expected {wanted.__name__}, "
                f"got {shown(value)}"
            )
        if wanted in (int, float) and value < 0 and name not in _SIGNED:
            raise ValueError(
                f"option {name!r} of {self.kind!r}: expected 0 or more, got {value!r}"
            )
        if name in _POSITIVE and value == 0:
            raise ValueError(f"option {name!r} of {self.kind!r}: expected more than 0")
        if name in self.choices and value not in self.choices[name]:
            raise ValueError(
                f"option {name!r} of {self.kind!r}: expected one of "
                f"{', '.join(self.choices[name])}, got {shown(value)}"
            )


_SIGNED = ("difference",)
_POSITIVE = ("size",)

_server_faults: dict[str, Fault] = {}
_client_faults: dict[str, Fault] = {}

SERVER_FAULTS: Mapping[str, Fault] = types.MappingProxyType(_server_faults)
"""The kinds of `FaultyServer`, by name."""

CLIENT_FAULTS: Mapping[str, Fault] = types.MappingProxyType(_client_faults)
"""The kinds of `FaultyClient`, by name."""

_Play = TypeVar("_Play", bound=Callable[..., object])


def _enter(table: dict[str, Fault], **facts: Any) -> Callable[[_Play], _Play]:
    """Enter the decorated function in `table`; its keywords are the options."""

    def enter(play: _Play) -> _Play:
        kind = play.__name__.removeprefix("_serve_").removeprefix("_send_")
        summary = " ".join((play.__doc__ or "").split())
        options = dict(getattr(play, "__kwdefaults__", None) or {})
        choices = facts.pop("choices", {})
        table[kind] = Fault(kind, summary, play, options, choices, **facts)
        return play

    return enter


def _find_fault(table: Mapping[str, Fault], kind: str) -> Fault:
    if kind not in table:
        known = ", ".join(table)
        raise ValueError(f"no kind of fault {shown(kind)}; known: {known}")
    return table[kind]


# --- Broken messages, for servers and clients alike ---------------------------------

_CHUNK_FLAWS = {
    "size": b"xyz\r\nhello\r\n0\r\n\r\n",
    "negative": b"-5\r\nhello\r\n0\r\n\r\n",
    "prefix": b"0x5\r\nhello\r\n0\r\n\r\n",
    "huge": b"f" * 20 + b"\r\nhello",
    "empty": b"\r\nhello\r\n0\r\n\r\n",
    "longer": b"4\r\nhello\r\n0\r\n\r\n",
    "shorter": b"6\r\nhello\r\n0\r\n\r\n",
    "bare_lf": b"5\nhello\n0\n\n",
    "extension": b"5;x=" + b"x" * 1_000_000 + b"\r\nhello\r\n0\r\n\r\n",
    "trailers": b"5\r\nhello\r\n0\r\n" + b"x: y\r\n" * 100_000 + b"\r\n",
    "no_end": b"5\r\nhello\r\n",
}
_FLAWS = {"flaw": tuple(_CHUNK_FLAWS)}

_GARBAGE = bytes(range(256)) * 4


def _build_bomb(fields: int, size: int) -> Iterator[bytes]:
    """Header lines in pieces of about 64 kB."""
    line = b"x-bomb: " + b"x" * size + b"\r\n"
    at_once = max(1, 65536 // len(line))
    while fields > 0:
        yield line * min(at_once, fields)
        fields -= at_once


def _split_answer(answer: bytes) -> tuple[bytes, bytes]:
    """(status line with its line end, body)."""
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.split(b"\r\n")[0] + b"\r\n", body


# --- What servers do wrong ----------------------------------------------------------
#
# A function that returns True leaves the connection open for another request.


@_enter(_server_faults, at_connect=True)
def _serve_refuse(wire: Wire, answer: bytes) -> None:
    """Refuse every connection; the port stays taken."""


@_enter(_server_faults, at_connect=True)
def _serve_full(wire: Wire, answer: bytes) -> None:
    """Let connecting itself hang: the queue of connections is full (Linux)."""


@_enter(_server_faults, at_connect=True, tiny_buffer=True)
def _serve_deaf(wire: Wire, answer: bytes) -> None:
    """Accept and never read, so that a large request can't be sent."""
    wire.pause(None)


@_enter(_server_faults)
def _serve_silent(wire: Wire, answer: bytes) -> None:
    """Read the request and never answer."""
    wire.hold()


@_enter(_server_faults)
def _serve_late(wire: Wire, answer: bytes, *, delay: float = 1.0) -> bool:
    """Answer rightly, `delay` seconds late."""
    wire.pause(delay)
    wire.send(answer)
    return True


@_enter(_server_faults)
def _serve_drip(
    wire: Wire, answer: bytes, *, interval: float = 1.0, size: int = 1, after: int = 0
) -> bool:
    """Send `size` bytes each `interval` seconds, once `after` bytes went at once."""
    wire.send(answer[:after])
    wire.drip(answer[after:], interval, size)
    return True


@_enter(_server_faults)
def _serve_close(wire: Wire, answer: bytes, *, after: int = 0) -> None:
    """Close the connection after `after` bytes of the answer."""
    wire.send(answer[:after])


@_enter(_server_faults)
def _serve_reset(wire: Wire, answer: bytes, *, after: int = 0) -> None:
    """Reset the connection after `after` bytes of the answer."""
    wire.send(answer[:after])
    wire.reset()


@_enter(_server_faults)
def _serve_half_close(wire: Wire, answer: bytes, *, after: int = 0) -> None:
    """Send `after` bytes and an end of stream, and keep listening."""
    wire.send(answer[:after])
    wire.half_close()
    wire.hold()


@_enter(_server_faults)
def _serve_stale(wire: Wire, answer: bytes, *, idle: float = 0.0) -> None:
    """Answer as if the connection persisted, and close it `idle` seconds later."""
    wire.send(answer)
    wire.pause(idle)


@_enter(_server_faults)
def _serve_wrong_length(wire: Wire, answer: bytes, *, difference: int = 1) -> None:
    """Announce `difference` bytes more (or, below 0, less) than come; close."""
    line, body = _split_answer(answer)
    length = max(len(body) + difference, 0)
    wire.send(line + b"content-length: %d\r\n\r\n" % length + body)


@_enter(_server_faults)
def _serve_bad_length(wire: Wire, answer: bytes, *, value: bytes = b"12x") -> None:
    """Announce `value` as the Content-Length; close after the body."""
    line, body = _split_answer(answer)
    wire.send(line + b"content-length: " + value + b"\r\n\r\n" + body)


@_enter(_server_faults, choices=_FLAWS)
def _serve_bad_chunk(wire: Wire, answer: bytes, *, flaw: str = "size") -> None:
    """Answer in chunks with a `flaw`; close."""
    line, _ = _split_answer(answer)
    wire.send(line + b"transfer-encoding: chunked\r\n\r\n" + _CHUNK_FLAWS[flaw])


@_enter(_server_faults)
def _serve_both_lengths(wire: Wire, answer: bytes) -> bool:
    """Give both a Content-Length and a Transfer-Encoding."""
    lengths = b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n"
    wire.send(_split_answer(answer)[0] + lengths + b"5\r\nhello\r\n0\r\n\r\n")
    return True


@_enter(_server_faults)
def _serve_bad_status(
    wire: Wire, answer: bytes, *, line: bytes = b"HTTP/9.9 0 ?"
) -> None:
    """Begin the answer with `line`; close after it."""
    _, _, rest = answer.partition(b"\r\n")
    wire.send(line + b"\r\n" + rest)


@_enter(_server_faults)
def _serve_extra(wire: Wire, answer: bytes) -> bool:
    """Send two answers to one request."""
    wire.send(answer + answer)
    return True


@_enter(_server_faults)
def _serve_interim_flood(
    wire: Wire, answer: bytes, *, count: int = 0, status: int = 103
) -> bool:
    """Send `count` interim answers (0: without end) before the right one."""
    interim = b"HTTP/1.1 %d Wait\r\n\r\n" % status
    while count == 0:
        wire.send(interim * 100)
        wire.pause(0)
    wire.send(interim * count + answer)
    return True


@_enter(_server_faults)
def _serve_head_bomb(
    wire: Wire, answer: bytes, *, fields: int = 100_000, size: int = 100
) -> bool:
    """Send `fields` header lines with values of `size` bytes, then the rest."""
    line, rest = answer.split(b"\r\n", 1)
    wire.send(line + b"\r\n")
    for lines in _build_bomb(fields, size):
        wire.send(lines)
    wire.send(rest)
    return True


@_enter(_server_faults)
def _serve_endless_body(wire: Wire, answer: bytes, *, size: int = 65536) -> None:
    """Send chunks of `size` bytes without end."""
    line, _ = _split_answer(answer)
    wire.send(line + b"transfer-encoding: chunked\r\n\r\n")
    chunk = b"%x\r\n" % size + b"x" * size + b"\r\n"
    while True:
        wire.send(chunk)
        wire.pause(0)


@_enter(_server_faults)
def _serve_garbage(wire: Wire, answer: bytes, *, data: bytes = _GARBAGE) -> None:
    """Send `data`, which is not HTTP; close."""
    wire.send(data)


@_enter(_server_faults)
def _serve_bad_gzip(wire: Wire, answer: bytes) -> bool:
    """Declare the body to be gzip, which it is not."""
    encoding = b"content-encoding: gzip"
    wire.send(build_answer(b"200 OK", b"this is not gzip", encoding))
    return True


@_enter(_server_faults)
def _serve_redirect_loop(wire: Wire, answer: bytes, *, location: bytes = b"/") -> bool:
    """Redirect every request to `location`, that is, to itself."""
    wire.send(build_answer(b"302 Found", b"", b"location: " + location))
    return True


@_enter(_server_faults, times=3)
def _serve_busy(wire: Wire, answer: bytes, *, retry_after: int = 0) -> bool:
    """Answer 503 `times` times (default 3), then rightly."""
    line = b"retry-after: %d" % retry_after
    wire.send(build_answer(b"503 Service Unavailable", b"busy\n", line))
    return True


@_enter(_server_faults, reads_body=False)
def _serve_early_answer(wire: Wire, answer: bytes) -> None:
    """Answer 413 and close without reading the request's body."""
    wire.send(build_answer(b"413 Content Too Large", b"", b"connection: close"))


@_enter(_server_faults, reads_body=False, tiny_buffer=True)
def _serve_slow_reader(
    wire: Wire, answer: bytes, *, interval: float = 0.1, size: int = 1
) -> None:
    """Read `size` bytes of the request's body each `interval` seconds; no answer."""
    while wire.read(size):
        wire.pause(interval)


@_enter(_server_faults, at_connect=True)
def _serve_tls_alert(wire: Wire, answer: bytes, *, code: int = 40) -> None:
    """Refuse the TLS handshake with the fatal alert `code` (RFC 8446 §6)."""
    wire.read()
    wire.send(bytes([21, 3, 3, 0, 2, 2, code & 0xFF]))


# --- What clients do wrong ----------------------------------------------------------


def _build_head(client: FaultyClient, *lines: bytes, method: bytes = b"GET") -> bytes:
    start = method + b" " + client.uri + b" HTTP/1.1"
    return b"\r\n".join([start, b"host: " + client.host, *lines, b"", b""])


def _build_upload(client: FaultyClient, body_size: int) -> tuple[bytes, bytes]:
    length = b"content-length: %d" % body_size
    return _build_head(client, length, method=b"POST"), b"x" * body_size


@_enter(_client_faults)
def _send_drip_head(
    client: FaultyClient, *, interval: float = 1.0, size: int = 1
) -> None:
    """Send `size` bytes of the head each `interval` seconds."""
    wire = client.connect()
    wire.drip(_build_head(client), interval, size)
    wire.hold()


@_enter(_client_faults)
def _send_half_head(client: FaultyClient) -> None:
    """Send half a head and no more."""
    wire = client.connect()
    head = _build_head(client)
    wire.send(head[: len(head) // 2])
    wire.hold()


@_enter(_client_faults)
def _send_silent(client: FaultyClient) -> None:
    """Connect and send nothing."""
    client.connect().hold()


@_enter(_client_faults)
def _send_drip_body(
    client: FaultyClient,
    *,
    interval: float = 1.0,
    size: int = 1,
    body_size: int = 1000,
) -> None:
    """Send the head at once, and `size` bytes of the body each `interval` seconds."""
    wire = client.connect()
    head, body = _build_upload(client, body_size)
    wire.send(head)
    wire.drip(body, interval, size)
    wire.hold()


@_enter(_client_faults)
def _send_half_body(client: FaultyClient, *, body_size: int = 1000) -> None:
    """Send half of the announced body and no more."""
    wire = client.connect()
    head, body = _build_upload(client, body_size)
    wire.send(head + body[: body_size // 2])
    wire.hold()


@_enter(_client_faults, tiny_buffer=True)
def _send_slow_reader(
    client: FaultyClient, *, interval: float = 0.1, size: int = 1
) -> None:
    """Read `size` bytes of the answer each `interval` seconds."""
    wire = client.connect()
    wire.send(_build_head(client))
    while wire.read(size):
        wire.pause(interval)


@_enter(_client_faults, tiny_buffer=True)
def _send_deaf(client: FaultyClient) -> None:
    """Send request after request and never read an answer."""
    wire = client.connect()
    while True:
        wire.send(_build_head(client))
        wire.pause(0)


@_enter(_client_faults)
def _send_reset(
    client: FaultyClient, *, body_size: int = 1000, after: int = 500
) -> None:
    """Reset the connection after `after` bytes of the body."""
    wire = client.connect()
    head, body = _build_upload(client, body_size)
    wire.send(head + body[:after])
    wire.reset()


@_enter(_client_faults)
def _send_close(
    client: FaultyClient, *, body_size: int = 1000, after: int = 500
) -> None:
    """Close the connection after `after` bytes of the body."""
    wire = client.connect()
    head, body = _build_upload(client, body_size)
    wire.send(head + body[:after])
    wire.close()


@_enter(_client_faults)
def _send_half_close(
    client: FaultyClient, *, body_size: int = 1000, after: int = 1000
) -> None:
    """End the sending side after `after` bytes of the body, and listen on."""
    wire = client.connect()
    head, body = _build_upload(client, body_size)
    wire.send(head + body[:after])
    wire.half_close()
    wire.hold()


@_enter(_client_faults)
def _send_garbage(client: FaultyClient, *, data: bytes = _GARBAGE) -> None:
    """Send `data`, which is not HTTP."""
    wire = client.connect()
    wire.send(data)
    wire.hold()


@_enter(_client_faults)
def _send_head_bomb(
    client: FaultyClient, *, fields: int = 100_000, size: int = 100
) -> None:
    """Send `fields` header lines with values of `size` bytes."""
    wire = client.connect()
    wire.send(_build_head(client)[:-2])
    for lines in _build_bomb(fields, size):
        wire.send(lines)
    wire.send(b"\r\n")
    wire.hold()


@_enter(_client_faults)
def _send_long_target(client: FaultyClient, *, size: int = 100_000) -> None:
    """Ask for a target of `size` bytes more."""
    wire = client.connect()
    start, rest = _build_head(client).split(b" HTTP", 1)
    wire.send(start + b"x" * size + b" HTTP" + rest)
    wire.hold()


@_enter(_client_faults)
def _send_bad_length(client: FaultyClient, *, value: bytes = b"12x") -> None:
    """Announce `value` as the Content-Length."""
    wire = client.connect()
    line = b"content-length: " + value
    wire.send(_build_head(client, line, method=b"POST") + b"hello")
    wire.hold()


@_enter(_client_faults, choices=_FLAWS)
def _send_bad_chunk(client: FaultyClient, *, flaw: str = "size") -> None:
    """Send a body in chunks with a `flaw`."""
    wire = client.connect()
    line = b"transfer-encoding: chunked"
    wire.send(_build_head(client, line, method=b"POST") + _CHUNK_FLAWS[flaw])
    wire.hold()


@_enter(_client_faults)
def _send_both_lengths(client: FaultyClient) -> None:
    """Give both a Content-Length and a Transfer-Encoding, as smugglers do."""
    wire = client.connect()
    lines = (b"content-length: 3", b"transfer-encoding: chunked")
    head = _build_head(client, *lines, method=b"POST")
    wire.send(head + b"5\r\nhello\r\n0\r\n\r\n")
    wire.hold()


@_enter(_client_faults)
def _send_expect_never(client: FaultyClient, *, body_size: int = 1000) -> None:
    """Ask for a 100 (Continue), and send no body when it comes."""
    wire = client.connect()
    lines = (b"content-length: %d" % body_size, b"expect: 100-continue")
    wire.send(_build_head(client, *lines, method=b"POST"))
    wire.hold()


@_enter(_client_faults)
def _send_pipeline(client: FaultyClient, *, count: int = 100) -> None:
    """Send `count` requests at once, before any answer."""
    wire = client.connect()
    wire.send(_build_head(client) * count)
    wire.hold()


@_enter(_client_faults)
def _send_many(client: FaultyClient, *, count: int = 100) -> None:
    """Open `count` connections and send nothing on them."""
    for wire in [client.connect() for _ in range(count)]:
        with contextlib.suppress(OSError):
            wire.hold()


@_enter(_client_faults)
def _send_churn(client: FaultyClient, *, count: int = 100) -> None:
    """Connect and close at once, `count` times."""
    for _ in range(count):
        client.connect().close()


# --- The machinery ------------------------------------------------------------------


class _Player:
    """Threads and sockets that end together, within bounds."""

    def __init__(self, fault: Fault, options: Mapping[str, Any]) -> None:
        self.fault = fault
        self.options = fault.check_options(options)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._wires: list[Wire] = []
        self._threads: list[threading.Thread] = []

    @property
    def kind(self) -> str:
        """The name of what goes wrong."""
        return self.fault.kind

    @property
    def connections(self) -> list[Connection]:
        """The record of every connection so far, the oldest first."""
        with self._lock:
            return [wire.record for wire in self._wires]

    def _add_wire(self, sock: socket.socket, peer: Any) -> Wire:
        wire = Wire(sock, peer, self._stop)
        with self._lock:
            self._wires.append(wire)
        return wire

    def _start_thread(self, target: Callable[..., None], *args: Any) -> None:
        name = f"{type(self).__name__}({self.kind!r})"
        thread = threading.Thread(target=target, args=args, name=name, daemon=True)
        with self._lock:
            self._threads.append(thread)
        thread.start()

    def _end(self) -> None:
        """Wake, join and close everything; raises RuntimeError where that fails."""
        self._stop.set()
        deadline = time.monotonic() + STOP_SECONDS
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            while thread.is_alive():
                # Again each time: a wire may have come between, or not begun to wait.
                for wire in list(self._wires):
                    wire.interrupt()
                thread.join(0.05)
                if time.monotonic() > deadline:
                    raise RuntimeError(f"{thread.name} did not stop: {self!r}")
        for wire in self._wires:
            wire.close()


@contextlib.contextmanager
def _recording(wire: Wire) -> Iterator[None]:
    """Note how the connection ended; an error of the socket is part of the play."""
    try:
        yield
    except _StoppedError:
        wire.record.ended_by = "us"
    except (OSError, ValueError) as error:
        if wire.stop.is_set():
            wire.record.ended_by = "us"
        else:
            wire.record.error = f"{type(error).__name__}: {error}"
            wire.record.ended_by = wire.record.ended_by or "peer"


class FaultyServer(_Player):
    """A server that fails in the way `kind` says (see `SERVER_FAULTS`).

    `address` is as for a socket's bind, or a path for a Unix socket; `times` is how
    often the fault happens before `answer`, the right one in raw bytes, comes
    instead (0: it always happens; default: the kind's own, which is 0 for all but
    "busy"). With an `sslctx` it all happens inside of TLS. The other keywords are
    the kind's options.

    Raises ValueError for an unknown kind or a value out of range, TypeError for an
    unknown option or a value of another type.
    """

    def __init__(
        self,
        kind: str,
        *,
        address: Any = ("127.0.0.1", 0),
        times: int | None = None,
        answer: bytes = ANSWER,
        sslctx: ssl.SSLContext | None = None,
        **options: Any,
    ) -> None:
        super().__init__(_find_fault(SERVER_FAULTS, kind), options)
        if times and self.fault.at_connect:
            raise ValueError(f"{kind!r} happens at connecting, always: got {times=}")
        if self.options.get("after", 0) > len(answer):
            raise ValueError(
                f"after={self.options['after']}, but the answer has only "
                f"{len(answer)} bytes"
            )
        self.answer = answer
        self.times = self.fault.times if times is None else times
        self.sslctx = sslctx
        self.address: Any = address
        self._plays = 0
        self._listener: socket.socket | None = None
        self._fillers: list[socket.socket] = []

    def __repr__(self) -> str:
        return f"<FaultyServer {self.kind!r} at {self.address!r}>"

    @property
    def url(self) -> str:
        """Its URL, with a slash at the end (``http+unix:`` for a Unix socket)."""
        if isinstance(self.address, str | bytes):
            return f"http+unix://{quote(os.fsdecode(self.address), safe='')}/"
        host, port = self.address[:2]
        scheme = "https" if self.sslctx or self.kind == "tls_alert" else "http"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}/"

    def start(self) -> FaultyServer:
        """Bind, and begin; `address` is the real one from here on."""
        if self._listener is not None:
            raise RuntimeError(f"{self!r} was started before")
        listener = self._listener = _bind(self.address)
        if self.fault.tiny_buffer:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, TINY_BUFFER)
        self.address = listener.getsockname()
        if self.kind == "refuse":
            return self
        listener.listen(0 if self.kind == "full" else 128)
        if self.kind == "full":
            self._fillers = [_start_connecting(listener) for _ in range(4)]
        else:
            self._start_thread(self._accept, listener)
        return self

    def stop(self) -> None:
        """End every connection and thread, and remove the Unix socket's file.

        May be called twice. Raises RuntimeError where a thread does not end within
        `STOP_SECONDS`.
        """
        if self._listener is None:
            return
        try:
            self._end()
        finally:
            self._listener.close()
            for sock in self._fillers:
                sock.close()
            if isinstance(self.address, str) and self.address:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.address)

    def take_mark(self) -> tuple[int, int]:
        """A value that changes when something happens to the server."""
        sent = sum(one.sent_size + one.received_size for one in self.connections)
        return len(self.connections), sent

    def describe(self, mark: Any = None) -> str:
        """Its connections since `mark`, for the report of a failed test."""
        first = mark[0] if mark else 0
        lines = [str(one) for one in self.connections[first:]]
        return "\n".join(lines) or "nobody has connected"

    def __enter__(self) -> FaultyServer:
        return self if self._listener is not None else self.start()

    def __exit__(self, *args: object) -> None:
        self.stop()

    def _accept(self, listener: socket.socket) -> None:
        listener.setblocking(False)
        with selectors.DefaultSelector() as selector:
            selector.register(listener, selectors.EVENT_READ)
            while not self._stop.is_set():
                if not selector.select(0.02):
                    continue
                with contextlib.suppress(OSError):
                    sock, peer = listener.accept()
                    sock.setblocking(True)
                    self._start_thread(self._serve, self._add_wire(sock, peer))

    def _serve(self, wire: Wire) -> None:
        with _recording(wire):
            if self.sslctx is not None:
                wire.start_tls(self.sslctx, server_side=True)
            self._talk(wire)
        wire.close()

    def _talk(self, wire: Wire) -> None:
        if self.fault.at_connect:
            self.fault.play(wire, self.answer, **self.options)
            return
        while head := wire.read_until(b"\r\n\r\n"):
            wire.record.requests += 1
            fails = self._count_play()
            if self.fault.reads_body or not fails:
                wire.read_body(head)
            if not fails:
                wire.send(self.answer)
            elif not self.fault.play(wire, self.answer, **self.options):
                return

    def _count_play(self) -> bool:
        """Whether this time it fails."""
        with self._lock:
            self._plays += 1
            return self.times == 0 or self._plays <= self.times


class FaultyClient(_Player):
    """A client that misbehaves in the way `kind` says (see `CLIENT_FAULTS`).

    It connects to `address` (as for a socket's connect, or the path of a Unix
    socket) in a thread of its own. `host` is the value of its Host header and
    `uri` its target; with an `sslctx` it all happens inside of TLS, with `host` for
    the name to expect. The other keywords are the kind's options.

    Raises ValueError for an unknown kind or a value out of range, TypeError for an
    unknown option or a value of another type.
    """

    def __init__(
        self,
        kind: str,
        address: Any,
        *,
        host: str = "localhost",
        uri: str = "/",
        sslctx: ssl.SSLContext | None = None,
        **options: Any,
    ) -> None:
        super().__init__(_find_fault(CLIENT_FAULTS, kind), options)
        self.address = address
        self.host = host.encode("ascii")
        self.uri = uri.encode("ascii")
        self.sslctx = sslctx
        self.error = ""

    def __repr__(self) -> str:
        return f"<FaultyClient {self.kind!r} of {self.address!r}>"

    def start(self) -> FaultyClient:
        """Begin to misbehave, in a thread."""
        if self._threads:
            raise RuntimeError(f"{self!r} was started before")
        self._start_thread(self._run)
        return self

    def wait(self, timeout: float | None = None) -> bool:
        """Whether it is over within `timeout` seconds.

        Most kinds go on until the server closes the connection, so that this tells
        whether the server defended itself; `connections` tell what it answered.
        """
        for thread in self._threads:
            thread.join(timeout)
        return not any(thread.is_alive() for thread in self._threads)

    def stop(self) -> None:
        """End every connection and the thread; may be called twice.

        Raises RuntimeError where the thread does not end within `STOP_SECONDS`.
        """
        self._end()

    def __enter__(self) -> FaultyClient:
        return self if self._threads else self.start()

    def __exit__(self, *args: object) -> None:
        self.stop()

    def connect(self) -> Wire:
        """A new connection (the kinds call it)."""
        if self._stop.is_set():
            raise _StoppedError
        sock = socket.socket(_find_family(self.address))
        wire = self._add_wire(sock, self.address)
        if self.fault.tiny_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, TINY_BUFFER)
        sock.settimeout(CONNECT_SECONDS)
        sock.connect(self.address)
        if self.sslctx is not None:
            name = self.host.decode("ascii")
            wire.start_tls(self.sslctx, server_hostname=name)
        wire.sock.settimeout(None)
        return wire

    def _run(self) -> None:
        try:
            self.fault.play(self, **self.options)
        except _StoppedError:
            pass
        except (OSError, ValueError) as error:
            if not self._stop.is_set():
                self.error = f"{type(error).__name__}: {error}"
                self._note_error()
        for wire in list(self._wires):
            wire.close()

    def _note_error(self) -> None:
        record = self._wires[-1].record
        record.error = self.error
        record.ended_by = record.ended_by or "peer"


def _find_family(address: Any) -> socket.AddressFamily:
    if isinstance(address, str | bytes):
        return socket.AF_UNIX
    return socket.AF_INET6 if ":" in address[0] else socket.AF_INET


def _bind(address: Any) -> socket.socket:
    sock = socket.socket(_find_family(address))
    try:
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock


def _start_connecting(listener: socket.socket) -> socket.socket:
    sock = socket.socket(listener.family)
    sock.setblocking(False)
    sock.connect_ex(listener.getsockname())
    return sock

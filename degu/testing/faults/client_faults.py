"""What clients do wrong: one function a kind, whose keywords are its options."""

from __future__ import annotations

import contextlib
from typing import Protocol

from degu.testing.faults.fault import client_faults, enter_in
from degu.testing.faults.messages import CHUNK_FLAWS, FLAWS, GARBAGE, build_bomb
from degu.testing.faults.wire import Wire


class Caller(Protocol):
    """What the kinds ask of a `FaultyClient`."""

    host: bytes
    uri: bytes

    def connect(self) -> Wire:
        """A new connection."""


def _build_head(client: Caller, *lines: bytes, method: bytes = b"GET") -> bytes:
    start = method + b" " + client.uri + b" HTTP/1.1"
    return b"\r\n".join([start, b"host: " + client.host, *lines, b"", b""])


def _build_upload(client: Caller, body_size: int) -> tuple[bytes, bytes]:
    length = b"content-length: %d" % body_size
    return _build_head(client, length, method=b"POST"), b"x" * body_size


@enter_in(client_faults)
def _send_drip_head(client: Caller, *, interval: float = 1.0, size: int = 1) -> None:
    """Send `size` bytes of the head each `interval` seconds."""
    wire = client.connect()
    wire.drip(_build_head(client), interval, size)
    wire.hold()


@enter_in(client_faults)
def _send_half_head(client: Caller) -> None:
    """Send half a head and no more."""
    wire = client.connect()
    head = _build_head(client)
    wire.send(head[: len(head) // 2])
    wire.hold()


@enter_in(client_faults)
def _send_silent(client: Caller) -> None:
    """Connect and send nothing."""
    client.connect().hold()


@enter_in(client_faults)
def _send_drip_body(
    client: Caller,
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


@enter_in(client_faults)
def _send_half_body(client: Caller, *, body_size: int = 1000) -> None:
    """Send half of the announced body and no more."""
    wire = client.connect()
    head, body = _build_upload(client, body_size)
    wire.send(head + body[: body_size // 2])
    wire.hold()


@enter_in(client_faults, tiny_buffer=True)
def _send_slow_reader(client: Caller, *, interval: float = 0.1, size: int = 1) -> None:
    """Read `size` bytes of the answer each `interval` seconds."""
    wire = client.connect()
    wire.send(_build_head(client))
    while wire.read(size):
        wire.pause(interval)


@enter_in(client_faults, tiny_buffer=True)
def _send_deaf(client: Caller) -> None:
    """Send request after request and never read an answer."""
    wire = client.connect()
    while True:
        wire.send(_build_head(client))
        wire.pause(0)


def _send_part(client: Caller, body_size: int, after: int) -> Wire:
    """Send an upload up to `after` bytes of its body."""
    wire = client.connect()
    head, body = _build_upload(client, body_size)
    wire.send(head + body[:after])
    return wire


@enter_in(client_faults)
def _send_reset(client: Caller, *, body_size: int = 1000, after: int = 500) -> None:
    """Reset the connection after `after` bytes of the body."""
    _send_part(client, body_size, after).reset()


@enter_in(client_faults)
def _send_close(client: Caller, *, body_size: int = 1000, after: int = 500) -> None:
    """Close the connection after `after` bytes of the body."""
    _send_part(client, body_size, after).close()


@enter_in(client_faults)
def _send_half_close(
    client: Caller, *, body_size: int = 1000, after: int = 1000
) -> None:
    """End the sending side after `after` bytes of the body, and listen on."""
    wire = _send_part(client, body_size, after)
    wire.half_close()
    wire.hold()


@enter_in(client_faults)
def _send_garbage(client: Caller, *, data: bytes = GARBAGE) -> None:
    """Send `data`, which is not HTTP."""
    wire = client.connect()
    wire.send(data)
    wire.hold()


@enter_in(client_faults)
def _send_head_bomb(client: Caller, *, fields: int = 100_000, size: int = 100) -> None:
    """Send `fields` header lines with values of `size` bytes."""
    wire = client.connect()
    wire.send(_build_head(client)[:-2])
    for lines in build_bomb(fields, size):
        wire.send(lines)
    wire.send(b"\r\n")
    wire.hold()


@enter_in(client_faults)
def _send_long_target(client: Caller, *, size: int = 100_000) -> None:
    """Ask for a target of `size` bytes more."""
    wire = client.connect()
    start, rest = _build_head(client).split(b" HTTP", 1)
    wire.send(start + b"x" * size + b" HTTP" + rest)
    wire.hold()


@enter_in(client_faults)
def _send_bad_length(client: Caller, *, value: bytes = b"12x") -> None:
    """Announce `value` as the Content-Length."""
    wire = client.connect()
    line = b"content-length: " + value
    wire.send(_build_head(client, line, method=b"POST") + b"hello")
    wire.hold()


@enter_in(client_faults, choices=FLAWS)
def _send_bad_chunk(client: Caller, *, flaw: str = "size") -> None:
    """Send a body in chunks with a `flaw`."""
    wire = client.connect()
    line = b"transfer-encoding: chunked"
    wire.send(_build_head(client, line, method=b"POST") + CHUNK_FLAWS[flaw])
    wire.hold()


@enter_in(client_faults)
def _send_both_lengths(client: Caller) -> None:
    """Give both a Content-Length and a Transfer-Encoding, as smugglers do."""
    wire = client.connect()
    lines = (b"content-length: 3", b"transfer-encoding: chunked")
    head = _build_head(client, *lines, method=b"POST")
    wire.send(head + b"5\r\nhello\r\n0\r\n\r\n")
    wire.hold()


@enter_in(client_faults)
def _send_expect_never(client: Caller, *, body_size: int = 1000) -> None:
    """Ask for a 100 (Continue), and send no body when it comes."""
    wire = client.connect()
    lines = (b"content-length: %d" % body_size, b"expect: 100-continue")
    wire.send(_build_head(client, *lines, method=b"POST"))
    wire.hold()


@enter_in(client_faults)
def _send_pipeline(client: Caller, *, count: int = 100) -> None:
    """Send `count` requests at once, before any answer."""
    wire = client.connect()
    wire.send(_build_head(client) * count)
    wire.hold()


@enter_in(client_faults)
def _send_many(client: Caller, *, count: int = 100) -> None:
    """Open `count` connections and send nothing on them."""
    for wire in [client.connect() for _ in range(count)]:
        with contextlib.suppress(OSError):
            wire.hold()


@enter_in(client_faults)
def _send_churn(client: Caller, *, count: int = 100) -> None:
    """Connect and close at once, `count` times."""
    for _ in range(count):
        client.connect().close()

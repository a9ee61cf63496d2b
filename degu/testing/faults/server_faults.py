"""What servers do wrong: one function a kind, whose keywords are its options."""

from __future__ import annotations

from degu.testing.faults.fault import enter_in, server_faults
from degu.testing.faults.messages import (
    CHUNK_FLAWS,
    FLAWS,
    GARBAGE,
    build_answer,
    build_bomb,
    split_answer,
)
from degu.testing.faults.wire import Wire

#
# A function that returns True leaves the connection open for another request.


@enter_in(server_faults, at_connect=True)
def _serve_refuse(wire: Wire, answer: bytes) -> None:
    """Refuse every connection; the port stays taken."""


@enter_in(server_faults, at_connect=True)
def _serve_full(wire: Wire, answer: bytes) -> None:
    """Let connecting itself hang: the queue of connections is full (Linux)."""


@enter_in(server_faults, at_connect=True, tiny_buffer=True)
def _serve_deaf(wire: Wire, answer: bytes) -> None:
    """Accept and never read, so that a large request can't be sent."""
    wire.pause(None)


@enter_in(server_faults)
def _serve_silent(wire: Wire, answer: bytes) -> None:
    """Read the request and never answer."""
    wire.hold()


@enter_in(server_faults)
def _serve_late(wire: Wire, answer: bytes, *, delay: float = 1.0) -> bool:
    """Answer rightly, `delay` seconds late."""
    wire.pause(delay)
    wire.send(answer)
    return True


@enter_in(server_faults)
def _serve_drip(
    wire: Wire, answer: bytes, *, interval: float = 1.0, size: int = 1, after: int = 0
) -> bool:
    """Send `size` bytes each `interval` seconds, once `after` bytes went at once."""
    wire.send(answer[:after])
    wire.drip(answer[after:], interval, size)
    return True


@enter_in(server_faults)
def _serve_close(wire: Wire, answer: bytes, *, after: int = 0) -> None:
    """Close the connection after `after` bytes of the answer."""
    wire.send(answer[:after])


@enter_in(server_faults)
def _serve_reset(wire: Wire, answer: bytes, *, after: int = 0) -> None:
    """Reset the connection after `after` bytes of the answer."""
    wire.send(answer[:after])
    wire.reset()


@enter_in(server_faults)
def _serve_half_close(wire: Wire, answer: bytes, *, after: int = 0) -> None:
    """Send `after` bytes and an end of stream, and keep listening."""
    wire.send(answer[:after])
    wire.half_close()
    wire.hold()


@enter_in(server_faults)
def _serve_stale(wire: Wire, answer: bytes, *, idle: float = 0.0) -> None:
    """Answer as if the connection persisted, and close it `idle` seconds later."""
    wire.send(answer)
    wire.pause(idle)


@enter_in(server_faults)
def _serve_wrong_length(wire: Wire, answer: bytes, *, difference: int = 1) -> None:
    """Announce `difference` bytes more (or, below 0, less) than come; close."""
    line, body = split_answer(answer)
    length = max(len(body) + difference, 0)
    wire.send(line + b"content-length: %d\r\n\r\n" % length + body)


@enter_in(server_faults)
def _serve_bad_length(wire: Wire, answer: bytes, *, value: bytes = b"12x") -> None:
    """Announce `value` as the Content-Length; close after the body."""
    line, body = split_answer(answer)
    wire.send(line + b"content-length: " + value + b"\r\n\r\n" + body)


@enter_in(server_faults, choices=FLAWS)
def _serve_bad_chunk(wire: Wire, answer: bytes, *, flaw: str = "size") -> None:
    """Answer in chunks with a `flaw`; close."""
    line, _ = split_answer(answer)
    wire.send(line + b"transfer-encoding: chunked\r\n\r\n" + CHUNK_FLAWS[flaw])


@enter_in(server_faults)
def _serve_both_lengths(wire: Wire, answer: bytes) -> bool:
    """Give both a Content-Length and a Transfer-Encoding."""
    lengths = b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n"
    wire.send(split_answer(answer)[0] + lengths + b"5\r\nhello\r\n0\r\n\r\n")
    return True


@enter_in(server_faults)
def _serve_bad_status(
    wire: Wire, answer: bytes, *, line: bytes = b"HTTP/9.9 0 ?"
) -> None:
    """Begin the answer with `line`; close after it."""
    _, _, rest = answer.partition(b"\r\n")
    wire.send(line + b"\r\n" + rest)


@enter_in(server_faults)
def _serve_extra(wire: Wire, answer: bytes) -> bool:
    """Send two answers to one request."""
    wire.send(answer + answer)
    return True


@enter_in(server_faults)
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


@enter_in(server_faults)
def _serve_head_bomb(
    wire: Wire, answer: bytes, *, fields: int = 100_000, size: int = 100
) -> bool:
    """Send `fields` header lines with values of `size` bytes, then the rest."""
    line, rest = answer.split(b"\r\n", 1)
    wire.send(line + b"\r\n")
    for lines in build_bomb(fields, size):
        wire.send(lines)
    wire.send(rest)
    return True


@enter_in(server_faults)
def _serve_endless_body(wire: Wire, answer: bytes, *, size: int = 65536) -> None:
    """Send chunks of `size` bytes without end."""
    line, _ = split_answer(answer)
    wire.send(line + b"transfer-encoding: chunked\r\n\r\n")
    chunk = b"%x\r\n" % size + b"x" * size + b"\r\n"
    while True:
        wire.send(chunk)
        wire.pause(0)


@enter_in(server_faults)
def _serve_garbage(wire: Wire, answer: bytes, *, data: bytes = GARBAGE) -> None:
    """Send `data`, which is not HTTP; close."""
    wire.send(data)


@enter_in(server_faults)
def _serve_bad_gzip(wire: Wire, answer: bytes) -> bool:
    """Declare the body to be gzip, which it is not."""
    encoding = b"content-encoding: gzip"
    wire.send(build_answer(b"200 OK", b"this is not gzip", encoding))
    return True


@enter_in(server_faults)
def _serve_redirect_loop(wire: Wire, answer: bytes, *, location: bytes = b"/") -> bool:
    """Redirect every request to `location`, that is, to itself."""
    wire.send(build_answer(b"302 Found", b"", b"location: " + location))
    return True


@enter_in(server_faults, times=3)
def _serve_busy(wire: Wire, answer: bytes, *, retry_after: int = 0) -> bool:
    """Answer 503 `times` times (default 3), then rightly."""
    line = b"retry-after: %d" % retry_after
    wire.send(build_answer(b"503 Service Unavailable", b"busy\n", line))
    return True


@enter_in(server_faults, reads_body=False)
def _serve_early_answer(wire: Wire, answer: bytes) -> None:
    """Answer 413 and close without reading the request's body."""
    wire.send(build_answer(b"413 Content Too Large", b"", b"connection: close"))


@enter_in(server_faults, reads_body=False, tiny_buffer=True)
def _serve_slow_reader(
    wire: Wire, answer: bytes, *, interval: float = 0.1, size: int = 1
) -> None:
    """Read `size` bytes of the request's body each `interval` seconds; no answer."""
    while wire.read(size):
        wire.pause(interval)


@enter_in(server_faults, at_connect=True)
def _serve_tls_alert(wire: Wire, answer: bytes, *, code: int = 40) -> None:
    """Refuse the TLS handshake with the fatal alert `code` (RFC 8446 §6)."""
    wire.read()
    wire.send(bytes([21, 3, 3, 0, 2, 2, code & 0xFF]))

"""Right answers, and what is broken in wrong messages of servers and clients alike."""

from __future__ import annotations

from collections.abc import Iterator


def build_answer(status: bytes, body: bytes, *lines: bytes) -> bytes:
    """A whole response: status line, content-length, more header lines, body."""
    length = b"content-length: %d" % len(body)
    return b"\r\n".join([b"HTTP/1.1 " + status, length, *lines, b"", body])


ANSWER = build_answer(b"200 OK", b"0123456789" * 100)
"""The right answer, which the kinds spoil: 200 with a body of 1000 bytes."""

CHUNK_FLAWS = {
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
FLAWS = {"flaw": tuple(CHUNK_FLAWS)}

GARBAGE = bytes(range(256)) * 4


def build_bomb(fields: int, size: int) -> Iterator[bytes]:
    """Header lines in pieces of about 64 kB."""
    line = b"x-bomb: " + b"x" * size + b"\r\n"
    at_once = max(1, 65536 // len(line))
    while fields > 0:
        yield line * min(at_once, fields)
        fields -= at_once


def split_answer(answer: bytes) -> tuple[bytes, bytes]:
    """(status line with its line end, body)."""
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.split(b"\r\n")[0] + b"\r\n", body

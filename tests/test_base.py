"""degu.base: bodies that come in and go out, and the stream under them."""

from __future__ import annotations

import contextlib
import gzip
import io
import itertools
import os
import random
import re
import select
import socket
import ssl
import struct
import sys
import threading
import time
import tracemalloc
from array import array
from collections import UserDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from degu import base, tls, wire
from degu.base import (
    ChunkedInput,
    ChunkedOutput,
    FileOutput,
    Input,
    Output,
    Stream,
    build_uri,
    complete_headers,
    make_input,
    make_output_from_input,
    write_body,
)
from degu.errors import (
    AppError,
    BodyClosedError,
    ChunkError,
    ClosedConnectionError,
    ContentTooLargeError,
    EmptyHeadError,
    HeadTimeoutError,
    HeadTooLargeError,
    OverFlowError,
    ParseError,
    PeerError,
    SlowPeerError,
    TargetTooLongError,
    UnderFlowError,
    shown,
)
from degu.limits import (
    EVICTION_SILENCE,
    JOIN_SIZE,
    LINGER_TIMEOUT,
    MAX_BODY_SIZE,
    MAX_CHUNK_LINE_SIZE,
    MAX_CHUNK_SIZE,
    MAX_HEAD_SIZE,
    MAX_READ_SIZE,
    MAX_TRAILERS_SIZE,
)
from degu.testing.pki import TempPKI

linux = pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel")

CHUNKS = [("k=v", b"hello"), (None, b" "), ("a;b=c", b"world"), ("last", b"")]
CODED = b"5;k=v\r\nhello\r\n1\r\n \r\n5;a;b=c\r\nworld\r\n0;last\r\nx-sum: 7\r\n\r\n"


class Dribble(io.RawIOBase):
    """A file that gives one byte a call, whatever it is asked for."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def readinto(self, buffer: Any) -> int:
        piece, self._data = self._data[:1], self._data[1:]
        buffer[: len(piece)] = piece
        return len(piece)

    def readline(self, size: int | None = -1, /) -> bytes:
        size = -1 if size is None else size
        line = b""
        while not line.endswith(b"\n") and len(line) != size and self._data:
            line, self._data = line + self._data[:1], self._data[1:]
        return line


class Takes(io.RawIOBase):
    """A raw file that takes at most `size` bytes a call, as a pipe may."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.data = b""

    def write(self, data: Any) -> int:
        piece = bytes(data[: self.size])
        self.data += piece
        return len(piece)


def sized(data: bytes) -> Input:
    return Input(io.BytesIO(data), len(data))


def chunked(data: bytes) -> ChunkedInput:
    size = b"%x" % len(data)
    return ChunkedInput(io.BytesIO(size + b"\r\n" + data + b"\r\n0\r\n\r\n"))


def until_close(data: bytes) -> Input:
    return Input(io.BytesIO(data), None)


INPUTS = [sized, chunked, until_close]
inputs = pytest.mark.parametrize("make", INPUTS, ids=lambda make: make.__name__)


# --- bodies that came in ---------------------------------------------------------


@inputs
def test_read_without_a_size_gives_the_whole_body(make: Callable[[bytes], Input]):
    """`read()` reads all of it, closes the body, and then gives nothing more."""
    body = make(b"hello world")
    assert not body.closed
    assert body.read() == b"hello world"
    assert body.closed
    assert body.read() == b""
    assert body.read(5) == b""


@inputs
def test_read_with_a_size_gives_that_many_bytes_and_fewer_at_the_end(make):
    """`read(size)` is exact up to the end, and ``b''`` after it."""
    body = make(b"hello world")
    assert body.read(0) == b""
    assert body.read(4) == b"hell"
    assert body.read(4) == b"o wo"
    assert body.read(4) == b"rld"
    assert body.read(4) == b""
    assert body.closed


@inputs
def test_iteration_gives_every_byte_once(make):
    """The pieces of an iteration make up the body, of which a part may be read."""
    body = make(b"hello world")
    assert body.read(3) == b"hel"
    assert b"".join(body) == b"lo world"
    assert body.closed


@inputs
def test_iteration_of_a_body_that_was_read_is_refused(make):
    """A body can't be iterated twice; the error says what it was."""
    body = make(b"hello")
    body.read()
    with pytest.raises(BodyClosedError, match="Input"):
        iter(body)
    with pytest.raises(BodyClosedError, match="Input"):
        body.write_to(io.BytesIO())


@inputs
def test_readinto_fills_at_least_one_byte_until_the_end(make):
    """`readinto` gives 0 at the end only, or for an empty buffer."""
    body = make(b"hello world")
    assert body.readinto(bytearray()) == 0
    assert not body.closed
    collected = bytearray()
    buffer = bytearray(4)
    while count := body.readinto(buffer):
        collected += buffer[:count]
    assert collected == b"hello world"
    assert body.closed
    assert body.readinto(buffer) == 0


@inputs
def test_write_to_copies_the_rest_and_returns_its_size(make):
    """`write_to` says how many bytes it wrote, also to a file that takes few a time."""
    body = make(b"hello world")
    body.read(1)
    target = Takes(3)
    assert body.write_to(target) == 10
    assert target.data == b"ello world"
    assert body.closed


@inputs
@pytest.mark.parametrize(
    ("size", "error"),
    [(-1, ValueError), ("5", TypeError), (True, TypeError), (5.0, TypeError)],
)
def test_read_refuses_a_bad_size(make, size: Any, error: type[Exception]):
    """A bad size is an error that shows it; the body stays as it was."""
    body = make(b"hello")
    with pytest.raises(error, match=f"size: expected an int.*{size!r}"):
        body.read(size)
    assert body.read() == b"hello"


@inputs
def test_read_without_a_size_is_capped_and_nothing_is_lost(make):
    """S8: over 16 MiB `read()` says how to stream; all bytes can still be streamed."""
    data = bytes(range(256)) * (MAX_READ_SIZE // 256) + b"!"
    body = make_large(make, data)
    with pytest.raises(ContentTooLargeError, match=r"read\(size\).*write_to"):
        body.read()
    assert not body.closed
    with pytest.raises(ContentTooLargeError):
        body.read()
    assert body.read(3) == data[:3]
    target = io.BytesIO()
    assert body.write_to(target) == len(data) - 3
    assert target.getvalue() == data[3:]


@inputs
def test_read_without_a_size_takes_a_body_of_the_cap(make):
    """S8: exactly 16 MiB is still read at once."""
    data = bytes(MAX_READ_SIZE)
    assert make_large(make, data).read() == data


def make_large(make: Callable[[bytes], Any], data: bytes) -> Any:
    """A body over the size of one chunk."""
    if make is not chunked:
        return make(data)
    coded = io.BytesIO()
    ChunkedOutput([data]).write_to(coded)
    return ChunkedInput(io.BytesIO(coded.getvalue()))


def test_reading_on_in_small_pieces_after_the_cap_is_not_slow():
    """What was put back is not copied for every small read."""
    body = make_large(chunked, bytes(MAX_READ_SIZE + 1))
    with pytest.raises(ContentTooLargeError):
        body.read()
    started = time.monotonic()
    for _ in range(2000):
        body.read(10)
    assert time.monotonic() - started < 2.0


def test_a_sized_body_cut_short_says_how_many_of_how_many_bytes_came():
    """D15: the error is a `ConnectionError` that knows both numbers."""
    body = Input(io.BytesIO(b"hello"), 9)
    with pytest.raises(UnderFlowError, match="after 5 of 9 bytes") as caught:
        body.read()
    assert isinstance(caught.value, ConnectionError)
    assert (caught.value.received, caught.value.expected) == (5, 9)
    assert body.closed


@pytest.mark.parametrize("cut", range(len(CODED)))
def test_a_chunked_body_cut_short_anywhere_is_an_error(cut: int):
    """D15: no cut of the coding passes for a whole body."""
    body = ChunkedInput(io.BytesIO(CODED[:cut]))
    with pytest.raises(UnderFlowError, match="an unstated number of bytes"):
        body.read()
    assert body.closed


def test_a_body_until_close_that_breaks_off_is_an_error():
    """An RST does not pass for the end of a body that has no stated length."""

    class Breaks(io.BytesIO):
        def readinto(self, buffer: Any) -> int:
            count = super().readinto(buffer)
            if not count:
                raise PeerError("reset")
            return count

    body = Input(Breaks(b"hello"), None)
    with pytest.raises(UnderFlowError, match="after 5 of an unstated") as caught:
        body.read()
    assert isinstance(caught.value.__cause__, PeerError)
    assert until_close(b"hello").read() == b"hello"


def test_a_body_until_close_has_a_cap():
    """`max_size` bounds a body that states no length as well."""
    with pytest.raises(ContentTooLargeError, match="at most 4 bytes"):
        Input(io.BytesIO(b"hello"), None, 4).read()
    assert Input(io.BytesIO(b"hello"), None, 5).read() == b"hello"


def test_bytes_after_a_sized_body_are_left_alone():
    """A body takes its own bytes and not one more."""
    file = io.BytesIO(b"helloGET / HTTP/1.1")
    assert Input(file, 5).read() == b"hello"
    assert file.read() == b"GET / HTTP/1.1"


def test_an_empty_body_is_consumed_from_the_start():
    """D16: nothing has to be read of a body of no bytes."""
    body = Input(io.BytesIO(b""), 0)
    assert body.closed
    assert body.read() == b""


def test_reading_exactly_the_length_consumes_a_body():
    """D16: no extra read is needed to find the end."""
    body = sized(b"hello")
    body.read(5)
    assert body.closed


@pytest.mark.parametrize(
    ("length", "error"),
    [
        (-1, ValueError),
        (10**16, ValueError),
        ("5", TypeError),
        (True, TypeError),
        (5.0, TypeError),
    ],
)
def test_a_bad_content_length_is_refused(length: Any, error: type[Exception]):
    """The error names the argument and shows what came."""
    for make in (Input, lambda _, length: Output([b""], length)):
        with pytest.raises(error, match=f"content_length: expected .*{length!r}"):
            make(io.BytesIO(), length)


def test_a_length_over_four_gibibytes_is_counted_right():
    """S15: lengths do not wrap at 2 or 4 GiB."""
    body = Input(io.BytesIO(b"hello"), 2**32 + 5)
    assert body.read(5) == b"hello"
    assert body.remaining == 2**32
    with pytest.raises(UnderFlowError, match="after 5 of 4294967301"):
        body.read(1)


# --- chunks that came in ---------------------------------------------------------


def test_chunks_come_with_their_extensions_and_trailers():
    """D23: `readchunk` gives every chunk as it was sent, the last one included."""
    body = ChunkedInput(io.BytesIO(CODED + b"GET"))
    assert body.trailers == {}
    assert [body.readchunk() for _ in CHUNKS] == CHUNKS
    assert body.closed
    assert body.trailers == {"x-sum": "7"}
    assert body.readchunk() == (None, b"")
    assert body.rfile.read() == b"GET"


def test_chunks_iterates_to_the_last_one():
    """`chunks()` ends with the empty chunk, and can't be had twice."""
    body = ChunkedInput(io.BytesIO(CODED))
    assert list(body.chunks()) == CHUNKS
    with pytest.raises(BodyClosedError, match=r"read to its end: ChunkedInput\("):
        next(body.chunks())


def test_sized_reads_and_chunks_can_be_mixed():
    """D23: what a sized read left of a chunk is the next chunk."""
    body = ChunkedInput(io.BytesIO(CODED))
    assert body.read(7) == b"hello w"
    assert body.readchunk() == ("a;b=c", b"orld")
    assert body.readchunk() == ("last", b"")


def test_a_chunked_body_from_a_file_that_dribbles_is_the_same():
    """However the bytes arrive, the chunks are those that were sent."""
    body = ChunkedInput(Dribble(CODED))
    assert list(body.chunks()) == CHUNKS
    assert body.trailers == {"x-sum": "7"}
    assert ChunkedInput(Dribble(CODED)).read() == b"hello world"


def test_what_the_cap_put_back_comes_as_a_chunk():
    """After a refused `read()` the chunks go on without loss."""
    data = bytes(MAX_READ_SIZE) + b"!"
    body = make_large(chunked, data)
    with pytest.raises(ContentTooLargeError):
        body.read()
    assert b"".join(piece for _, piece in body.chunks()) == data


BAD_CHUNKS = [
    b"",
    b"+3\r\nabc",
    b"-3\r\nabc",
    b"0x3\r\nabc",
    b"3 \r\nabc",
    b" 3\r\nabc",
    b"0_3\r\nabc",
    b"000000003\r\nabc",
    b"g\r\nabc",
    b"\xd9\xa3\r\nabc",
    b"3\nabc",
    b"3\rabc",
    b"3;\r\nabc",
    b"3;k=\r\nabc",
    b"3;k=\x00\r\nabc",
    b"3\r\nabcd\r\n0\r\n\r\n",
    b"3\r\nabc\n0\r\n\r\n",
    b"3\r\nabcXX0\r\n\r\n",
    b"3\r\nab\r\n0\r\n\r\n",
    b"0\r\n\n",
    b"0\r\nx\r\n\r\n",
    b"0\r\ncontent-length: 5\r\n\r\n",
    b"0\r\nx: 1\r\nx: 1\r\n\r\n",
    b"0\r\n x: 1\r\n\r\n",
    b"0\r\nx: 1\n\r\n",
]


@pytest.mark.parametrize("coded", BAD_CHUNKS)
def test_bad_chunks_are_refused(coded: bytes):
    """S11: no sign, blank, underscore, zero or bare line end passes in a size line."""
    body = ChunkedInput(io.BytesIO(coded + b"\r\n" * 2))
    with pytest.raises(ParseError):
        body.read()
    assert body.closed


def test_a_chunk_over_the_cap_is_refused_before_memory_is_taken():
    """S3: the size line alone is enough to refuse; 16 MiB itself is in order."""
    body = ChunkedInput(io.BytesIO(b"1000001\r\n"))
    with pytest.raises(ContentTooLargeError, match="16777216"):
        body.readchunk()
    body = ChunkedInput(io.BytesIO(b"1000000\r\nabc"))
    with pytest.raises(UnderFlowError, match="after 3 of"):
        body.readchunk()


def test_a_chunked_body_over_its_size_is_refused():
    """The sum of the chunks counts, and is refused before the data is read."""
    coded = b"3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n"
    assert ChunkedInput(io.BytesIO(coded), 6).read() == b"abcdef"
    body = ChunkedInput(io.BytesIO(coded), 5)
    assert body.readchunk() == (None, b"abc")
    with pytest.raises(ContentTooLargeError, match="at most 5 bytes"):
        body.readchunk()


def test_a_size_line_has_a_cap():
    """An endless extension is refused at 4096 bytes."""
    room = MAX_CHUNK_LINE_SIZE - len("1;\r\n")
    for size, fits in ((room, True), (room + 1, False)):
        coded = b"1;" + b"e" * size + b"\r\nx\r\n0\r\n\r\n"
        body = ChunkedInput(io.BytesIO(coded))
        if fits:
            assert body.readchunk() == ("e" * room, b"x")
        else:
            with pytest.raises(ParseError):
                body.readchunk()


def test_trailers_have_a_cap():
    """Over 8 KiB a trailer section is refused as too large."""
    for over in range(-2, 4):
        value = b"v" * (MAX_TRAILERS_SIZE - len("x: ") + over)
        body = ChunkedInput(io.BytesIO(b"0\r\nx: " + value + b"\r\n\r\n"))
        if over <= 0:
            body.read()
            assert body.trailers == {"x": value.decode()}
        else:
            with pytest.raises(HeadTooLargeError):
                body.read()
    many = b"x%d: 1\r\n" * 2000 % tuple(range(2000))
    file = io.BytesIO(b"0\r\n" + many + b"\r\n")
    with pytest.raises(HeadTooLargeError, match="trailers of at most 8192 bytes"):
        ChunkedInput(file).read()
    assert file.tell() < MAX_TRAILERS_SIZE + 10


@pytest.mark.parametrize(
    ("coded", "message"),
    [
        (b"3\r\nabcXX0\r\n", "expected CRLF after a chunk's data, got b'XX'"),
        (b"3\nabc", r"expected a chunk's line ending with CRLF, got b'3\\n'"),
        (b"0\r\nx: 1\n\r\n", r"expected trailers ending with CRLF, got b'x: 1\\n'"),
        (b"0\r\n" + b"x" * 9000 + b"\n", "expected trailers of at most 8192 bytes"),
    ],
)
def test_a_bad_line_of_the_coding_is_shown(coded: bytes, message: str):
    """With what was expected; the body keeps the error."""
    body = ChunkedInput(io.BytesIO(coded))
    with pytest.raises((ParseError, HeadTooLargeError), match=message) as caught:
        body.read()
    assert body.error is caught.value


@pytest.mark.parametrize("part", ["size", "data", "end", "trailers"])
@pytest.mark.parametrize("error", [PeerError("gone"), SlowPeerError("slow")])
def test_a_chunked_body_whose_file_breaks_is_broken(part: str, error: PeerError):
    """An error of the peer is an early end, wherever it comes; slowness stays that."""
    size = {"size": 0, "data": 7, "end": 12, "trailers": len(CODED) - 2}[part]
    aborted: list[BaseException] = []

    class Breaks(io.BytesIO):
        def readinto(self, buffer: Any) -> int:
            if count := super().readinto(buffer):
                return count
            raise error from OSError("why")

        def readline(self, size: int | None = -1, /) -> bytes:
            if line := super().readline(size):
                return line
            raise error from OSError("why")

        def abort(self, error: BaseException) -> None:
            aborted.append(error)

    body = ChunkedInput(Breaks(CODED[:size]))
    with pytest.raises(ConnectionError) as caught:
        body.read()
    assert body.error is caught.value
    assert aborted == [caught.value]
    if isinstance(error, SlowPeerError):
        assert caught.value is error
        assert isinstance(error.__cause__, OSError)
    else:
        assert isinstance(caught.value, UnderFlowError)
        assert caught.value.__cause__ is error


@inputs
def test_an_input_body_says_what_it_is(make: Callable[[bytes], Any]):
    """By its attributes and its `repr`, from the start."""
    body = make(b"hello")
    assert body.closed is False
    assert body.error is None
    assert body.chunked is (make is chunked)
    assert body.content_length == (5 if make is sized else None)
    tail = "" if make is chunked else f", {body.content_length}"
    assert repr(body) == f"{type(body).__name__}({body.rfile!r}{tail})"
    if make is chunked:
        assert body.extension is None
    body.read()
    assert body.closed is True


def test_a_cap_counts_over_all_reads():
    """Not for each of them: of a body until close, and of one in chunks."""
    body: Any = Input(io.BytesIO(b"hello"), None, 4)
    assert body.read(2) == b"he"
    assert body.read(2) == b"ll"
    with pytest.raises(ContentTooLargeError, match="at most 4 bytes"):
        body.read(1)
    body = ChunkedInput(io.BytesIO(b"2\r\nab\r\n2\r\ncd\r\n2\r\nef\r\n0\r\n\r\n"), 5)
    assert body.read(4) == b"abcd"
    with pytest.raises(ContentTooLargeError, match="at most 5 bytes"):
        body.read(1)


def test_what_the_cap_put_back_counts_once_and_breaks_as_before():
    """A refused `read()` leaves the account as it was, and the file known."""
    aborted: list[Any] = []

    class Breaks(io.BytesIO):
        def readinto(self, buffer: Any) -> int:
            if count := super().readinto(buffer):
                return count
            raise PeerError("reset")

        def abort(self, error: BaseException) -> None:
            aborted.append(error)

    size = MAX_READ_SIZE + 5
    body = Input(Breaks(bytes(size)), None, size)
    with pytest.raises(ContentTooLargeError) as refused:
        body.read()
    assert body.error is refused.value
    with pytest.raises(UnderFlowError, match=f"after {size} of an") as caught:
        body.write_to(io.BytesIO())
    assert aborted == [caught.value]


def test_a_body_that_is_all_there_is_taken_at_once(pair):
    """What came with its head needs no further call; what follows is left."""
    ours, _ = pair
    stream = make_stream(ours)
    for rest in (b"", b"!"):
        stream.put_back(b"hello" + rest)
        body = Input(stream, 5)
        assert body.read() == b"hello"
        assert body.closed is True
        assert body.remaining == 0
        assert stream.surplus == rest
    stream.put_back(b"hello")
    buffer = bytearray(3)
    assert Input(stream, 5).readinto(buffer) == 3
    assert buffer == b"hel"


# --- bodies that go out ----------------------------------------------------------


def write(body: Any) -> bytes:
    target = io.BytesIO()
    body.write_to(target)
    return target.getvalue()


def test_output_writes_its_pieces():
    """Bytes, bytearrays and memoryviews are pieces; an empty one is nothing."""
    pieces: list[Any] = [b"he", bytearray(b"ll"), b"", memoryview(b"o")]
    body = Output(pieces, 5)
    target = io.BytesIO()
    assert body.write_to(target) == 5
    assert target.getvalue() == b"hello"
    assert body.closed
    assert list(Output(pieces, 5)) == pieces


@pytest.mark.parametrize("length", [4, 0])
def test_output_with_too_much_is_an_error_and_sends_no_more_than_its_length(length):
    """An overflow is noticed before the piece that causes it is written."""
    target = io.BytesIO()
    with pytest.raises(OverFlowError, match=f"6 bytes, its length is {length}|3 bytes"):
        Output([b"abc", b"def"], length).write_to(target)
    assert len(target.getvalue()) <= length


@pytest.mark.parametrize("pieces", [[], [b""], [b"abc"]])
def test_output_with_too_little_is_an_error(pieces: list[bytes]):
    """An underflow says how many of how many bytes the source gave."""
    for use in (write, list):
        with pytest.raises(UnderFlowError, match=r"[03] of 4 bytes") as caught:
            use(Output(pieces, 4))
        assert caught.value.received == len(b"".join(pieces))


def make_outputs(folder: Path) -> Iterator[Any]:
    (folder / "file").write_bytes(b"hello")
    yield Output([b"hello"], 5)
    yield ChunkedOutput([b"hello"])
    yield FileOutput(open(folder / "file", "rb"))  # noqa: SIM115
    yield Output(sized(b"hello"), 5)
    yield ChunkedOutput(chunked(b"hello"))


def test_an_output_body_says_what_it_is(tmp_path: Path):
    """By its `repr`, and by `closed`, which is True when it was used."""
    for body in make_outputs(tmp_path):
        source = body.fp if isinstance(body, FileOutput) else body.source
        tail = "" if isinstance(body, ChunkedOutput) else ", 5"
        assert repr(body) == f"{type(body).__name__}({source!r}{tail})"
        assert body.closed is False
        write(body)
        assert body.closed is True


def test_an_output_body_goes_to_a_file_that_takes_few_bytes(tmp_path: Path):
    """A raw file or a pipe may take less than it is given; nothing gets lost."""
    bodies = zip(make_outputs(tmp_path), make_outputs(tmp_path), strict=True)
    for body, same in bodies:
        target = Takes(2)
        assert body.write_to(target) == 5
        assert target.data == write(same)
    written: list[bytes] = []

    class Silent:
        def write(self, data: Any) -> None:
            written.append(bytes(data))

    Output([b"hel", b"lo"], 5).write_to(Silent())
    assert written == [b"hel", b"lo"]
    data = bytes(JOIN_SIZE + 1)
    target = Takes(1000)
    assert ChunkedOutput([data], {"x": "y"}).write_to(target) == len(data)
    assert target.data == b"10001\r\n" + data + b"\r\n0\r\nx: y\r\n\r\n"


class Counts(io.BytesIO):
    """A file that knows how much it was given in each call."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def write(self, data: Any) -> int:
        self.sizes.append(len(data))
        return super().write(data)


def test_a_small_chunk_leaves_in_one_call():
    """A large one is not copied to be joined to its line."""
    target = Counts()
    ChunkedOutput([bytes(JOIN_SIZE), bytes(JOIN_SIZE + 1)]).write_to(target)
    assert target.sizes == [JOIN_SIZE + 9, 7, JOIN_SIZE + 1, 2, 5]


def test_an_output_of_another_length_than_its_input_is_an_error():
    """Also where the input could have been sent as it is."""
    target = io.BytesIO()
    with pytest.raises(OverFlowError):
        Output(sized(b"hello"), 3).write_to(target)
    with pytest.raises(UnderFlowError, match="5 of 9 bytes"):
        Output(sized(b"hello"), 9).write_to(target)
    assert Output(sized(b""), 0).write_to(io.BytesIO()) == 0
    assert Output([], MAX_BODY_SIZE).content_length == MAX_BODY_SIZE


def test_pieces_of_other_items_are_bytes():
    """A view of wider or signed numbers is sent as the bytes that it is of."""
    view = memoryview(array("i", [-1, 5]))
    (piece,) = Output([view], view.nbytes)
    assert piece[0] == 255
    assert bytes(piece) == bytes(view)


def test_an_output_body_can_be_used_once(tmp_path: Path):
    """Writing or iterating the second time is an error that shows the body."""
    for body in make_outputs(tmp_path):
        write(body)
        for again in (write, list):
            with pytest.raises(BodyClosedError, match="this body was sent before"):
                again(body)
    for body in make_outputs(tmp_path):
        assert list(body)
        with pytest.raises(BodyClosedError):
            write(body)


def test_a_used_body_is_refused_before_a_head_is_sent(tmp_path: Path):
    """Whoever completes headers for a used body hears it in time."""
    for body in make_outputs(tmp_path):
        assert complete_headers({}, body, "PUT")
        write(body)
        with pytest.raises(BodyClosedError):
            complete_headers({}, body, "PUT")
    for make in INPUTS:
        incoming: Any = make(b"hello")
        assert complete_headers({}, incoming, "PUT")
        incoming.read()
        with pytest.raises(BodyClosedError):
            complete_headers({}, incoming, "PUT")


@pytest.mark.parametrize("make", [lambda s: Output(s, 5), ChunkedOutput])
@pytest.mark.parametrize("source", ["hello", b"hello", 5, None])
def test_a_source_that_is_no_iterable_of_bytes_is_refused(make, source: Any):
    """A `str`, plain bytes (whose items are ints) and others: the error shows them."""
    message = f"source: expected an iterable of bytes, got {source!r}"
    with pytest.raises(TypeError, match=message):
        make(source)


@pytest.mark.parametrize("make", [lambda s: Output(s, 5), ChunkedOutput])
def test_a_source_that_yields_no_bytes_is_refused(make):
    """A piece of text is an error when it is met."""
    with pytest.raises(TypeError, match="expected bytes, got 'hello'"):
        write(make(["hello"]))


def test_chunked_output_writes_what_chunked_input_reads():
    """Chunks, extensions, the last chunk and trailers come out as they came in."""
    body = ChunkedOutput(iter(CHUNKS), {"x-sum": "7"})
    assert write(body) == CODED
    through = ChunkedOutput(ChunkedInput(io.BytesIO(CODED)))
    assert write(through) == CODED


def test_chunked_output_returns_the_bytes_of_data():
    """Sizes and line ends of the coding do not count."""
    assert ChunkedOutput([b"hello", b"world"]).write_to(io.BytesIO()) == 10


def test_a_last_chunk_is_added_where_there_is_none():
    """A source of data alone, and an empty one, end properly; b'' is the last."""
    assert write(ChunkedOutput([b"hello"])) == b"5\r\nhello\r\n0\r\n\r\n"
    assert write(ChunkedOutput([])) == b"0\r\n\r\n"
    assert write(ChunkedOutput([b"hello", b""])) == b"5\r\nhello\r\n0\r\n\r\n"


@pytest.mark.parametrize("after", [b"", b"more"])
def test_a_chunk_after_the_last_is_an_error(after: bytes):
    """An empty piece ends the body; nothing may follow."""
    with pytest.raises(ChunkError, match=f"after the last, got {after!r}"):
        write(ChunkedOutput([b"hello", b"", after]))


def test_a_chunk_over_the_cap_is_split():
    """A piece of more than 16 MiB leaves as chunks that every Degu takes."""
    data = bytes(MAX_CHUNK_SIZE + 3)
    coded = write(ChunkedOutput([data]))
    body = ChunkedInput(io.BytesIO(coded))
    assert [len(piece) for _, piece in body.chunks()] == [MAX_CHUNK_SIZE, 3, 0]


@pytest.mark.parametrize("extension", ["", "a b", "k=\r\nx", "k=\x00", "é", 5, b"k"])
def test_a_bad_extension_is_refused_on_output(extension: Any):
    """S4: no control byte or blank leaves in a chunk extension."""
    target = io.BytesIO()
    with pytest.raises(AppError, match="expected a chunk extension"):
        ChunkedOutput([(extension, b"hello")]).write_to(target)
    assert target.getvalue() == b""


def test_bad_trailers_are_refused_on_output():
    """Fields that frame or route may not come as trailers, nor CR and LF in them."""
    for trailers in ({"content-length": 5}, {"x": "a\r\nb: c"}, {"X": "upper"}):
        with pytest.raises(AppError):
            write(ChunkedOutput([b"hello"], trailers))


def test_file_output_sends_from_the_position_and_closes_the_file(tmp_path: Path):
    """By default the rest of the file; afterwards it is closed."""
    path = tmp_path / "file"
    path.write_bytes(b"hello world")
    with open(path, "rb") as file:
        file.read(6)
        body = FileOutput(file)
        assert body.content_length == 5
        assert write(body) == b"world"
        assert file.closed
    with open(path, "rb") as file:
        assert write(FileOutput(file, 5)) == b"hello"
    with open(path, "rb") as file:
        assert list(FileOutput(file, 5)) == [b"hello"]
    for position in (11, 100):
        with open(path, "rb") as file:
            file.seek(position)
            assert FileOutput(file).content_length == 0
    with open(path, "rb") as file:
        assert b"".join(FileOutput(file)) == b"hello world"
        assert file.closed


def test_a_file_that_is_too_short_is_an_error(tmp_path: Path):
    """Also one that was truncated after it was measured."""
    path = tmp_path / "file"
    path.write_bytes(b"hello world")
    for use in (write, list):
        with open(path, "rb") as file, pytest.raises(UnderFlowError, match="11 of 20"):
            use(FileOutput(file, 20))
    with open(path, "rb") as file:
        body = FileOutput(file)
        path.write_bytes(b"he")
        with pytest.raises(UnderFlowError, match="2 of 11 bytes"):
            write(body)


def test_a_file_opened_for_text_is_refused(tmp_path: Path):
    """The error names the argument."""
    path = tmp_path / "file"
    path.write_text("hello")
    with open(path) as file, pytest.raises(TypeError, match=r"rb', got <_io\.T"):
        FileOutput(file)


# --- the verbs -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "query", "uri"),
    [
        ([], None, "/"),
        ([], "", "/?"),
        (["foo"], None, "/foo"),
        (["foo", ""], None, "/foo/"),
        (["", ""], None, "//"),
        (["a%2Fb", "c"], "k=v&w", "/a%2Fb/c?k=v&w"),
    ],
)
def test_build_uri_is_the_inverse_of_parse_target(path, query, uri: str):
    """What was split is joined again, with percent-encoding left as it came."""
    assert build_uri(path, query) == uri
    assert wire.parse_target(uri) == (path, query)


def test_make_output_from_input_sends_on_what_comes_in():
    """None stays None; each input body gives an output of the same framing."""
    assert make_output_from_input(None) is None
    output = make_output_from_input(sized(b"hello"))
    assert isinstance(output, Output)
    assert output.content_length == 5
    assert write(output) == b"hello"
    output = make_output_from_input(ChunkedInput(io.BytesIO(CODED)))
    assert isinstance(output, ChunkedOutput)
    assert write(output) == CODED
    output = make_output_from_input(until_close(b"hello"))
    assert isinstance(output, ChunkedOutput)
    assert b"".join(piece for _, piece in output) == b"hello"


def test_make_output_from_input_sends_the_rest_of_a_body_that_was_begun():
    """An app may look at the beginning of a body before it passes the rest on."""
    body = sized(b"hello")
    body.read(2)
    assert complete_headers({}, body, "PUT") == {"content-length": 3}
    output = make_output_from_input(body)
    assert write(output) == b"llo"


@pytest.mark.parametrize("body", [b"bytes", "text", 5, Output([], 0)])
def test_make_output_from_input_refuses_anything_else(body: Any):
    """What is no input body is a `TypeError` that shows it."""
    message = re.escape(f"Input or ChunkedInput, got {body!r}")
    with pytest.raises(TypeError, match=message):
        make_output_from_input(body)


def build(headers: dict[str, Any], method: str, status: int | None) -> Any:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        return make_input(make_stream(ours), headers, method, status, 100)


def test_a_length_of_zero_is_no_body():
    """The field goes as well; an answer to HEAD, and a 304, keep it."""
    for method, status in (("POST", None), ("GET", 200)):
        headers: dict[str, Any] = {"content-length": 0, "x": "y"}
        assert build(headers, method, status) is None
        assert headers == {"x": "y"}
    answers = [("HEAD", 200), ("GET", 304), ("HEAD", 404)]
    for (method, status), length in itertools.product(answers, (0, 5)):
        headers = {"content-length": length}
        assert build(headers, method, status) is None
        assert headers == {"content-length": length}


def test_a_body_over_the_cap_is_refused_by_its_head():
    """`max_body_size` is compared with the stated length at once."""
    assert build({"content-length": 100}, "PUT", None).content_length == 100
    with pytest.raises(ContentTooLargeError, match="at most 100 bytes, got 101"):
        build({"content-length": 101}, "PUT", None)


@pytest.mark.parametrize("cap", [4, 5])
@pytest.mark.parametrize(
    ("headers", "status", "data"),
    [
        ({"content-length": 5}, None, b"hello"),
        ({"transfer-encoding": "chunked"}, None, b"5\r\nhello\r\n0\r\n\r\n"),
        ({}, 200, b"hello"),
    ],
)
def test_a_body_is_read_from_its_stream(pair, headers: Any, status: Any, data, cap):
    """By each framing, up to the cap that was given."""
    ours, theirs = pair
    stream = make_stream(ours)
    theirs.sendall(data)
    theirs.close()
    make: Any = make_input
    method = "GET" if status else "PUT"
    if cap < 5:
        with pytest.raises(ContentTooLargeError, match="at most 4 bytes"):
            make(stream, headers, method, status, cap).read()
    else:
        body = make(stream, headers, method, status, cap)
        assert body.rfile is stream
        assert body.read() == b"hello"


@pytest.mark.parametrize(
    "make",
    [
        lambda: b"hello",
        lambda: bytearray(b"hello"),
        lambda: memoryview(b"hello"),
        lambda: memoryview(array("b", b"hello")),
        lambda: Output([b"hello"], 5),
        lambda: FileOutput(io.BytesIO(b"hello"), 5),
        lambda: sized(b"hello"),
        lambda: ChunkedOutput([b"hello"]),
        lambda: chunked(b"hello"),
        lambda: until_close(b"hello"),
        lambda: None,
    ],
)
def test_a_body_is_written_by_its_framing(pair, make: Callable[[], Any]):
    """Whatever its type is, what goes out is what its headers said."""
    ours, theirs = pair
    stream = make_stream(ours)
    body = make()
    framed = complete_headers({}, body, "PUT", 200)
    write_body(stream, body)
    stream.close()
    sent = theirs.makefile("rb").read()
    if "transfer-encoding" in framed:
        assert sent == b"5\r\nhello\r\n0\r\n\r\n"
    else:
        assert sent == (b"" if body is None else b"hello")
        assert framed == {"content-length": len(sent)}


class TestCompleteHeaders:
    """The framing field is supplied, or refused where it contradicts the body."""

    @pytest.mark.parametrize("method", ["PUT", "POST", "PATCH"])
    def test_a_request_without_a_body_says_so(self, method: str):
        """Methods that usually have content say zero (RFC 9110 §8.6)."""
        assert complete_headers({}, None, method) == {"content-length": 0}

    @pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "OPTIONS"])
    def test_a_request_that_has_none_anyway_says_nothing(self, method: str):
        """GET and its like go out without a framing field."""
        assert complete_headers({}, None, method) == {}

    @pytest.mark.parametrize("status", [200, 201, 404, 500])
    def test_a_response_without_a_body_says_so(self, status: int):
        """D2: a None body has content-length 0, so that no client waits for more."""
        assert complete_headers({}, None, "GET", status) == {"content-length": 0}

    @pytest.mark.parametrize(
        ("method", "status"),
        [("HEAD", 200), ("GET", 204), ("GET", 304), ("GET", 100), ("GET", 103)],
    )
    def test_a_response_that_never_has_one_says_nothing(self, method, status):
        """D2: HEAD, 1xx, 204 and 304 get no framing field."""
        assert complete_headers({}, None, method, status) == {}

    @pytest.mark.parametrize(
        ("body", "field"),
        [
            (b"hello", {"content-length": 5}),
            (bytearray(b"hello"), {"content-length": 5}),
            (memoryview(b"hello"), {"content-length": 5}),
            (b"", {"content-length": 0}),
            (Output([], 5), {"content-length": 5}),
            (sized(b"hello"), {"content-length": 5}),
            (ChunkedOutput([]), {"transfer-encoding": "chunked"}),
            (chunked(b"hello"), {"transfer-encoding": "chunked"}),
            (until_close(b"hello"), {"transfer-encoding": "chunked"}),
        ],
    )
    def test_a_body_brings_its_field_unless_it_is_there(self, body: Any, field):
        """The given headers are never changed, and a fitting field is no repeat."""
        given = {"x": "y"}
        for status in (None, 200):
            assert complete_headers(given, body, "PUT", status) == {**given, **field}
            assert given == {"x": "y"}
            whole = {**given, **field}
            assert complete_headers(whole, body, "PUT", status) == whole

    @pytest.mark.parametrize(
        ("headers", "body"),
        [
            ({"content-length": 4}, b"hello"),
            ({"content-length": 6}, b"hello"),
            ({"content-length": 5}, None),
            ({"content-length": "5"}, b"hello"),
            ({"content-length": 5}, ChunkedOutput([])),
            ({"transfer-encoding": "chunked"}, b"hello"),
            ({"transfer-encoding": "chunked"}, None),
            ({"transfer-encoding": "chunked", "content-length": 5}, b"hello"),
            (
                {"transfer-encoding": "chunked", "content-length": 5},
                ChunkedOutput([]),
            ),
        ],
    )
    @pytest.mark.parametrize("status", [None, 200])
    def test_a_field_that_contradicts_the_body_is_refused(self, headers, body, status):
        """D3, D4: never two framings, never another length, in either direction."""
        with pytest.raises(AppError, match="headers: "):
            complete_headers(headers, body, "PUT", status)

    @pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
    @pytest.mark.parametrize("body", [b"x", ChunkedOutput([]), Output([b"x"], 1)])
    def test_a_method_without_a_body_gets_none(self, method: str, body: Any):
        """S13: GET, HEAD and DELETE are refused with a body."""
        with pytest.raises(AppError, match=f"no body with {method}"):
            complete_headers({}, body, method)

    @pytest.mark.parametrize(
        ("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304), ("GET", 103)]
    )
    def test_a_status_without_a_body_gets_none(self, method: str, status: int):
        """Content for HEAD, 1xx, 204 and 304 is the app's mistake."""
        for body in (b"x", ChunkedOutput([])):
            with pytest.raises(AppError):
                complete_headers({}, body, method, status)

    def test_a_head_answer_keeps_its_length(self):
        """HEAD and 304 may say how long the content would be."""
        for method, status in (("HEAD", 200), ("GET", 304)):
            headers = {"content-length": 5}
            assert complete_headers(headers, None, method, status) == headers

    def test_a_length_of_zero_is_dropped_where_none_may_be(self):
        """RFC 9110 §8.6: no content-length in a 204 or 1xx, not even zero."""
        assert complete_headers({"content-length": 0}, None, "GET", 204) == {}
        assert complete_headers({"content-length": 0}, None, "GET", 103) == {}

    @pytest.mark.parametrize(
        "body", ["text", 5, ["list"], {}, memoryview(b"abcd")[::2], object()]
    )
    def test_a_body_of_another_type_is_refused(self, body: Any):
        """The error lists what a body may be."""
        message = re.escape(shown(body))
        with pytest.raises(AppError, match=f"expected None, bytes, .* got {message}"):
            complete_headers({}, body, "PUT")

    @pytest.mark.parametrize("headers", [None, [("a", "b")], "a: b", 5])
    def test_headers_that_are_no_dict_are_refused(self, headers: Any):
        """The error names the argument and shows what came."""
        message = re.escape(f"headers: expected a dict, got {headers!r}")
        with pytest.raises(AppError, match=message):
            complete_headers(headers, None, "GET")

    def test_headers_may_be_any_mapping(self):
        """What is like a dict is as good as one."""
        framed = complete_headers(UserDict(a="b"), b"hello", "PUT")
        assert framed == {"a": "b", "content-length": 5}

    def test_a_body_of_no_bytes_is_none_although_it_is_read(self):
        """It has been at its end from the start; one of a byte has not."""
        assert complete_headers({}, sized(b""), "GET") == {}
        body = sized(b"x")
        body.read()
        with pytest.raises(BodyClosedError, match=r"expected an unused one, got Input"):
            complete_headers({}, body, "PUT")


# --- the stream ------------------------------------------------------------------


def make_stream(sock: socket.socket, **options: Any) -> Stream:
    options = {"timeout": 5.0, "head_timeout": 5.0, "min_rate": 1024, **options}
    return Stream(sock, **options)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two sockets that are connected with each other; what isn't closed gets it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_a_head_is_read_without_its_empty_line_and_the_rest_kept(pair):
    """What follows a head is the beginning of a body, or the next head."""
    ours, theirs = pair
    stream = make_stream(ours)
    theirs.sendall(b"one\r\na: b\r\n\r\ntwo\r\n\r\nhello")
    assert stream.read_head(1.0, request=True) == b"one\r\na: b"
    assert stream.read_head(1.0, request=True) == b"two"
    assert stream.surplus == b"hello"
    assert stream.read(5) == b"hello"


def test_a_head_may_come_byte_by_byte(pair):
    """Any split of the bytes gives the same head."""
    ours, theirs = pair
    stream = make_stream(ours)

    def drip() -> None:
        for byte in b"one\r\na: b\r\n\r\nrest":
            theirs.send(bytes([byte]))

    thread = threading.Thread(target=drip)
    thread.start()
    assert stream.read_head(1.0, request=True) == b"one\r\na: b"
    thread.join()
    assert stream.read(4) == b"rest"


def test_a_head_has_a_deadline_in_total(pair):
    """D6: a byte now and then does not stretch `head_timeout`."""
    ours, theirs = pair
    stream = make_stream(ours, head_timeout=0.2)
    stop = threading.Event()

    def drip() -> None:
        while not stop.wait(0.02):
            theirs.send(b"x")

    theirs.send(b"G")
    thread = threading.Thread(target=drip)
    thread.start()
    started = time.monotonic()
    with pytest.raises(HeadTimeoutError, match=r"0\.2 seconds"):
        stream.read_head(1.0, request=True)
    assert 0.15 < time.monotonic() - started < 2.0
    stop.set()
    thread.join()


def test_a_head_that_never_begins_is_a_slow_peer(pair):
    """Silence is no broken rule: the error is a `TimeoutError`."""
    ours, _ = pair
    stream = make_stream(ours)
    with pytest.raises(SlowPeerError) as caught:
        stream.read_head(0.05, request=True)
    assert isinstance(caught.value, TimeoutError)
    assert isinstance(caught.value, ConnectionError)
    assert stream.error is caught.value


def test_a_peer_that_closes_before_a_head_and_inside_one(pair):
    """Only the first is an `EmptyHeadError`."""
    ours, theirs = pair
    stream = make_stream(ours)
    theirs.send(b"one\r\n\r\nGET /")
    theirs.close()
    stream.read_head(1.0, request=True)
    with pytest.raises(PeerError, match=r"inside a head, after .*GET /") as caught:
        stream.read_head(1.0, request=True)
    assert not isinstance(caught.value, EmptyHeadError)
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours, pytest.raises(EmptyHeadError):
        make_stream(ours).read_head(1.0, request=True)


def read_on(body: Input, size: int) -> None:
    while body.read(size):
        pass


@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_a_body_that_drips_is_cut_off(pair, size: int):
    """D6: below `min_rate` the whole body has little more than `timeout`."""
    ours, theirs = pair
    stream = make_stream(ours, timeout=0.2, min_rate=10_000)
    stop = threading.Event()

    def drip() -> None:
        while not stop.wait(0.02):
            theirs.send(b"x")

    thread = threading.Thread(target=drip)
    thread.start()
    started = time.monotonic()
    body = Input(stream, 1_000_000)
    with pytest.raises(SlowPeerError, match="under 10000 bytes a second"):
        read_on(body, size)
    assert 0.15 < time.monotonic() - started < 3.0
    stop.set()
    thread.join()


def test_without_a_minimum_rate_a_drip_is_let_go_on(pair):
    """``min_rate=0`` leaves the deadline for each read alone."""
    ours, theirs = pair
    stream = make_stream(ours, timeout=0.3, min_rate=0)

    def drip() -> None:
        for _ in range(25):
            time.sleep(0.02)
            theirs.send(b"x")

    thread = threading.Thread(target=drip)
    thread.start()
    assert Input(stream, 25).read() == b"x" * 25
    thread.join()


@pytest.mark.parametrize("how", ["bytes", "file", "pieces"])
@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET])
def test_a_peer_that_reads_a_drip_is_cut_off(tmp_path: Path, how: str, family):
    """D6: also where the kernel copies, one call never waits without bound."""
    ours, theirs = make_pair(family)
    stream = make_stream(ours, timeout=0.3, min_rate=100_000_000)
    path = tmp_path / "large"
    size = 30_000_000
    with open(path, "wb") as file:
        file.truncate(size)
    stop = threading.Event()

    def drip() -> None:
        while not stop.wait(0.01):
            theirs.recv(30_000)

    thread = threading.Thread(target=drip)
    thread.start()
    started = time.monotonic()
    with pytest.raises(SlowPeerError):
        write_large(stream, how, path, size)
    stop.set()
    thread.join()
    stream.close()
    theirs.close()
    assert time.monotonic() - started < 3.0


def write_large(stream: Stream, how: str, path: Path, size: int) -> None:
    if how == "bytes":
        stream.write(bytes(size))
    elif how == "file":
        FileOutput(open(path, "rb")).write_to(stream)  # noqa: SIM115
    else:
        Output((bytes(1_000_000) for _ in range(30)), size).write_to(stream)


def make_pair(family: int) -> tuple[socket.socket, socket.socket]:
    """Connected sockets of one family, with small buffers."""
    if family == socket.AF_UNIX:
        return socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    return ours, theirs


def test_sendfile_sends_what_reading_would(pair, tmp_path: Path):
    """The kernel copies plain files; what decodes its file is read instead."""
    ours, theirs = pair
    stream = make_stream(ours)
    plain, packed = tmp_path / "plain", tmp_path / "packed.gz"
    plain.write_bytes(b"0123456789")
    packed.write_bytes(gzip.compress(b"abcdefghij"))
    with open(plain, "rb") as file:
        file.read(2)
        assert stream.sendfile(file, 5) == 5
        assert theirs.recv(100) == b"23456"
        assert file.read() == b"789"
    assert FileOutput(gzip.GzipFile(packed), 10).write_to(stream) == 10
    assert theirs.recv(100) == b"abcdefghij"
    assert FileOutput(io.BytesIO(b"memory"), 6).write_to(stream) == 6
    assert theirs.recv(100) == b"memory"


@linux
@pytest.mark.parametrize("buffered", [True, False])
def test_the_kernel_copies_a_plain_file(pair, tmp_path: Path, buffered: bool):
    """Its bytes don't come by way of this process."""
    ours, theirs = pair
    (tmp_path / "file").write_bytes(b"hello")

    class Untouched(io.FileIO):
        def readinto(self, buffer: Any) -> int:
            raise AssertionError("was read")

    file: Any = Untouched(tmp_path / "file")
    file = io.BufferedReader(file) if buffered else file
    assert FileOutput(file).write_to(make_stream(ours)) == 5
    assert theirs.recv(100) == b"hello"


def test_a_pipe_is_sent_by_reading_it(pair):
    """It has a descriptor, but no position that the kernel could begin at."""
    ours, theirs = pair
    reading, writing = os.pipe()
    os.write(writing, b"hello")
    os.close(writing)
    with io.FileIO(reading) as pipe:
        assert make_stream(ours).sendfile(pipe, 9) == 5
    assert theirs.recv(100) == b"hello"


def test_sendfile_of_a_truncated_file_is_an_underflow(pair, tmp_path: Path):
    """The kernel's early end is noticed as any other."""
    ours, theirs = pair
    stream = make_stream(ours)
    path = tmp_path / "file"
    path.write_bytes(bytes(1000))
    file = open(path, "rb")  # noqa: SIM115
    body = FileOutput(file)
    path.write_bytes(bytes(10))
    with pytest.raises(UnderFlowError, match="10 of 1000 bytes"):
        body.write_to(stream)
    assert file.closed
    assert theirs.recv(1000) == bytes(10)


@pytest.mark.parametrize("ends", ["plain", "subclassed"], indirect=True)
def test_a_stream_is_quiet_until_its_peer_speaks_or_goes(ends: Any):
    """How a client finds out that an idle connection is of no more use."""
    ours, theirs = ends
    stream = make_stream(ours)
    assert stream.is_quiet()
    stream.put_back(b"x")
    assert not stream.is_quiet()
    assert stream.read(1) == b"x"
    theirs.send(b"x")
    assert not stream.is_quiet()
    assert stream.read(1) == b"x"
    assert stream.is_quiet()
    theirs.close()
    assert not stream.is_quiet()
    stream.close()
    assert not stream.is_quiet()


def test_a_stream_that_is_dropped_closes_its_socket(pair):
    """Neither a collection of garbage nor a warning is needed for it."""
    ours, theirs = pair
    stream = make_stream(ours)
    body = Input(stream, 5)
    del stream
    theirs.send(b"hello")
    assert body.read() == b"hello"
    del body
    assert ours.fileno() == -1
    assert theirs.recv(1) == b""


# What a kernel says of a timeout: that many seconds and microseconds.
def kernel_timeout(sock: socket.socket, option: int) -> float:
    seconds, micros = struct.unpack(
        "ll", sock.getsockopt(socket.SOL_SOCKET, option, 16)
    )
    return float(seconds + micros / 1_000_000)


@linux
@pytest.mark.parametrize("timeout", [100_000.25, 1.0])
def test_the_kernel_keeps_the_timeouts_of_a_plain_socket(pair, timeout: float):
    """Both ways, exactly; none is so small that it would mean to wait forever."""
    ours, _ = pair
    ours.settimeout(7)
    stream = make_stream(ours, timeout=timeout)
    assert ours.gettimeout() is None
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        assert kernel_timeout(ours, option) == pytest.approx(timeout, abs=0.02)
    for wait in (1e-9, 0.0):
        stream.expect(wait)
        assert 0 < kernel_timeout(ours, socket.SO_RCVTIMEO) < 0.1
    assert kernel_timeout(ours, socket.SO_SNDTIMEO) >= timeout


@linux
def test_the_kernel_is_told_of_a_timeout_where_it_changes(pair):
    """Not for each head and each read: it would be a call more."""
    ours, theirs = pair
    stream = make_stream(ours, timeout=5.0)
    stream.expect(3.0)
    theirs.sendall(b"a\r\n\r\nb\r\n\r\n1" * 3)
    assert kernel_timeout(ours, socket.SO_RCVTIMEO) == 3.0
    stream._set_kernel_timeout(socket.SO_RCVTIMEO, 9.0)  # behind its back
    for wait in (3.0, 3.0):
        stream.expect(wait)
        assert kernel_timeout(ours, socket.SO_RCVTIMEO) == 9.0
    assert stream.read_head(3.0, request=True) == b"a"
    assert kernel_timeout(ours, socket.SO_RCVTIMEO) == 9.0
    assert stream.read_head(4.0, request=True) == b"b"
    assert stream.read_head(4.0, request=True) == b"1a"
    stream.put_back(b"")
    theirs.sendall(b"c\r\n\r\n")
    assert stream.read_head(4.0, request=True) == b"c"
    assert kernel_timeout(ours, socket.SO_RCVTIMEO) == 4.0
    theirs.sendall(b"12")
    assert stream.readinto(bytearray(1)) == 1
    assert kernel_timeout(ours, socket.SO_RCVTIMEO) == 5.0
    stream._set_kernel_timeout(socket.SO_RCVTIMEO, 9.0)
    assert stream.readinto(bytearray(1)) == 1
    assert kernel_timeout(ours, socket.SO_RCVTIMEO) == 9.0


@pytest.fixture
def tls_pair(pki: TempPKI) -> Iterator[tuple[ssl.SSLSocket, ssl.SSLSocket]]:
    """A server's and a client's end of TLS after its handshake."""
    ends = socket.socketpair()
    sslctx = tls.build_server_sslctx(pki.server_sslconfig)
    sslctx.num_tickets = 2  # other servers than ours send some
    server = tls.wrap_server(sslctx, ends[0])
    client = tls.wrap_client(
        tls.build_client_sslctx(pki.client_sslconfig), ends[1], "localhost"
    )
    with server, client:
        thread = threading.Thread(target=tls.handshake, args=(server, 5.0))
        thread.start()
        tls.handshake(client, 5.0)
        thread.join()
        client.settimeout(5.0)
        yield server, client


@pytest.fixture(scope="module")
def pki() -> Iterator[TempPKI]:
    """One set of certificates for the module."""
    with TempPKI() as pki:
        yield pki


class Subclassed(socket.socket):
    """A socket whose class may do more than the kernel, as that of TLS does."""


@pytest.fixture(params=["plain", "subclassed", "tls"])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[Any, Any]]:
    """Our end and theirs, as each kind of socket that a stream may have."""
    if request.param == "tls":
        yield request.getfixturevalue("tls_pair")
        return
    ours, theirs = socket.socketpair()
    if request.param == "subclassed":
        ours = Subclassed(fileno=ours.detach())
    with ours, theirs:
        yield ours, theirs


def test_any_socket_reads_and_writes_the_same(ends: Any):
    """Heads, surplus, lines and bodies, both ways."""
    ours, theirs = ends
    stream = make_stream(ours)
    theirs.sendall(b"head\r\n\r\nline\nhello")
    assert stream.read_head(2.0, request=True) == b"head"
    assert stream.readline(100) == b"line\n"
    assert stream.read(5) == b"hello"
    theirs.sendall(b"line")
    theirs.sendall(b" 2\nab")
    assert stream.readline(100) == b"line 2\n"
    assert stream.readline(1) == b"a"
    stream.send_message(b"one")
    stream.send(b" two")
    assert stream.write(b" three") == 6
    received = b""
    while len(received) < 13:
        received += theirs.recv(100)
    assert received == b"one two three"
    assert stream.readinto(bytearray(9)) == 1
    theirs.sendall(b"xyz")
    assert stream.readinto(bytearray(9)) == 3


def test_a_timeout_is_one_on_any_socket(ends: Any):
    """A peer that says nothing ends a wait, with an error that says so."""
    ours, _ = ends
    stream = make_stream(ours, timeout=0.05, head_timeout=0.05)
    for wait in (
        lambda: stream.read(1),
        lambda: stream.readline(10),
        lambda: stream.read_head(0.05, request=True),
    ):
        with pytest.raises(SlowPeerError, match="not send or take a byte in") as caught:
            wait()
        assert isinstance(caught.value.__cause__, TimeoutError | BlockingIOError)
        assert stream.error is caught.value


def test_what_comes_late_is_waited_for(ends: Any):
    """On each kind of socket, however its timeout is kept."""
    ours, theirs = ends
    stream = make_stream(ours)
    timer = threading.Timer(0.05, theirs.sendall, (b"head\r\n\r\nbody",))
    timer.start()
    assert stream.read_head(5.0, request=True) == b"head"
    assert stream.read(4) == b"body"
    timer.join()


def test_a_short_wait_to_read_shortens_no_write(ends: Any):
    """Each has the time that is its own, on each kind of socket."""
    ours, theirs = ends
    stream = make_stream(ours, timeout=30.0)
    stream.expect(0.01)
    received: list[int] = []

    def receive() -> None:
        time.sleep(0.2)
        while sum(received) < 5_000_000:
            received.append(len(theirs.recv(1_000_000)))

    thread = threading.Thread(target=receive)
    thread.start()
    stream.send_message(bytes(5_000_000))
    thread.join()
    assert sum(received) == 5_000_000


def test_a_head_that_has_begun_has_its_own_timeout(ends: Any):
    """What came of it makes the silence after it another error."""
    stream = make_stream(ends[0], timeout=5, head_timeout=0.05)
    stream.put_back(b"G")
    with pytest.raises(HeadTimeoutError):
        stream.read_head(0.05, request=True)


@pytest.mark.parametrize("how", ["send", "send_message", "write"])
def test_a_peer_that_takes_nothing_is_a_slow_one(ends: Any, how: str):
    """Also where a call could still place a part of it."""
    ours, _ = ends
    stream = make_stream(ours, timeout=0.05)
    with pytest.raises(SlowPeerError):
        getattr(stream, how)(bytes(5_000_000))


@pytest.mark.parametrize("how", ["send", "send_message", "write"])
def test_a_large_message_is_sent_whole(ends: Any, how: str):
    """However much the kernel takes at once."""
    ours, theirs = ends
    stream = make_stream(ours)
    data = random.Random(5).randbytes(3_000_000)
    received = bytearray()

    def receive() -> None:
        while len(received) < len(data):
            received.extend(theirs.recv(200_000))

    thread = threading.Thread(target=receive)
    thread.start()
    getattr(stream, how)(data)
    thread.join(5)
    assert received == data


def reset(sock: socket.socket) -> None:
    """Close so that the peer gets an RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


BROKEN: dict[str, Callable[[Stream], Any]] = {
    "readinto": lambda stream: stream.readinto(bytearray(5)),
    "readline": lambda stream: stream.readline(5),
    "send": lambda stream: stream.send(b"x"),
    "send_message": lambda stream: stream.send_message(b"x"),
    "write": lambda stream: stream.write(b"x"),
    "sendfile": lambda stream: FileOutput(open(__file__, "rb")).write_to(stream),  # noqa: SIM115
    "expect": lambda stream: stream.expect(stream.sock.close() or 1),  # type: ignore[func-returns-value]
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_connection_that_broke_says_how(how: str):
    """The error of the system is shown, kept as the cause, and remembered."""
    ours, theirs = make_pair(socket.AF_INET)
    stream = make_stream(ours)
    reset(theirs)
    with pytest.raises(PeerError, match=r"the connection broke: \[Errno") as caught:
        BROKEN[how](stream)
    assert isinstance(caught.value.__cause__, OSError)
    assert not isinstance(caught.value, SlowPeerError | EmptyHeadError)
    assert stream.error is caught.value
    stream.close()


def test_a_reset_where_a_head_should_begin_is_no_head():
    """Whether a peer closes or resets an idle connection is all the same."""
    ours, theirs = make_pair(socket.AF_INET)
    stream = make_stream(ours)
    reset(theirs)
    with pytest.raises(EmptyHeadError, match="closed the connection before") as caught:
        stream.read_head(1.0, request=True)
    assert isinstance(caught.value.__cause__, OSError)
    assert stream.error is caught.value
    stream.close()


def test_a_body_that_breaks_off_aborts_its_stream(pair):
    """Whoever has the connection hears of it, once, with the error of the body."""
    ours, theirs = pair
    calls: list[str] = []
    stream = make_stream(ours, on_abort=lambda: calls.append("aborted"))
    assert stream.error is None
    assert stream.interim == b""
    body = Input(stream, 9)
    theirs.sendall(b"hello")
    theirs.close()
    with pytest.raises(UnderFlowError) as caught:
        body.read()
    assert stream.error is body.error is caught.value
    assert calls == ["aborted"]


TWO_HEADS = b"one\r\na: b\r\n\r\ntwo\r\n\r\nrest"


@pytest.mark.parametrize("cut", range(1, len(TWO_HEADS)))
def test_a_head_in_two_pieces_is_found(pair, cut: int):
    """Wherever it is cut, and although another one follows."""
    ours, theirs = pair
    stream = make_stream(ours)
    stream.put_back(TWO_HEADS[:cut])
    theirs.sendall(TWO_HEADS[cut:])
    assert stream.read_head(1.0, request=True) == b"one\r\na: b"
    assert stream.read_head(1.0, request=True) == b"two"
    assert stream.read(4) == b"rest"


@pytest.mark.parametrize("cut", range(4))
def test_an_empty_head_is_one(pair, cut: int):
    """It is for the grammar to refuse it; what follows is not taken for it."""
    ours, theirs = pair
    stream = make_stream(ours)
    data = b"\r\n\r\none\r\n\r\n"
    stream.put_back(data[:cut])
    theirs.sendall(data[cut:])
    assert stream.read_head(1.0, request=True) == b""
    assert stream.read_head(1.0, request=True) == b"one"


@pytest.mark.parametrize("kept", [0, 1, MAX_HEAD_SIZE - 2, MAX_HEAD_SIZE + 100])
@pytest.mark.parametrize("over", [0, 1])
def test_a_head_has_a_cap(pair, kept: int, over: int):
    """32 KiB with its empty line, and no byte more, however it comes."""
    ours, theirs = pair
    stream = make_stream(ours)
    head = b"x: y\r\nx: " + b"a" * (MAX_HEAD_SIZE - 13 + over)
    data = head + b"\r\n\r\n" + b"b" * 200
    stream.put_back(data[:kept])
    theirs.sendall(data[kept:])
    if over:
        with pytest.raises(HeadTooLargeError):
            stream.read_head(1.0, request=True)
    else:
        assert stream.read_head(1.0, request=True) == head


@pytest.mark.parametrize("request_", [True, False])
def test_a_head_that_nothing_can_mend_is_refused_at_once(pair, request_: bool):
    """As what it is to be: a status line may be longer than a request line."""
    ours, theirs = pair
    stream = make_stream(ours)
    stream.put_back(b"HTTP/1.1 200 " + b"a" * 9000)
    if request_:
        with pytest.raises(TargetTooLongError):
            stream.read_head(1.0, request=True)
    else:
        theirs.sendall(b"\r\n\r\n")
        assert len(stream.read_head(1.0, request=False)) == 9013
    stream.put_back(b"GET / HTTP/1.1\nhost: a\n\n")
    with pytest.raises(ParseError, match="lines ending with CRLF"):
        stream.read_head(1.0, request=request_)


def test_a_head_that_stops_has_its_own_deadline(pair):
    """The rest of it is not waited for as long as its beginning."""
    ours, theirs = pair
    stream = make_stream(ours, head_timeout=0.1)
    theirs.send(b"G")
    started = time.monotonic()
    with pytest.raises(HeadTimeoutError):
        stream.read_head(30.0, request=True)
    assert time.monotonic() - started < 10.0


def test_what_was_put_back_is_read_first(pair):
    """And then what comes; a buffer may be smaller or larger."""
    ours, theirs = pair
    stream = make_stream(ours)
    stream.put_back(b"hello")
    buffer = bytearray(b"......")
    assert stream.readinto(memoryview(buffer)[:2]) == 2
    assert stream.surplus == b"llo"
    assert stream.readinto(memoryview(buffer)[2:]) == 3
    assert buffer == b"hello."
    stream.put_back(b"he")
    theirs.sendall(b"llo")
    theirs.close()
    assert stream.read(5) == b"hello"
    stream.put_back(b"hel")
    assert stream.read(3) == b"hel"
    assert stream.surplus == b""
    stream.put_back(b"hel")
    assert stream.read(2) == b"he"
    assert stream.read(5) == b"l"
    assert stream.read(5) == b""


def test_a_line_ends_at_its_first_lf_or_its_size_or_the_end(pair):
    """What is behind it stays for the next one."""
    ours, theirs = pair
    stream = make_stream(ours)
    theirs.sendall(b"\none\ntwo\nthree\n")
    lines = [stream.readline(size) for size in (9, 4, 3, 9, 5, 9)]
    assert lines == [b"\n", b"one\n", b"two", b"\n", b"three", b"\n"]
    stream.put_back(b"ab")
    theirs.sendall(b"c\nd")
    assert stream.readline(3) == b"abc"
    assert stream.readline(2) == b"\n"
    theirs.sendall(b"e")
    theirs.close()
    assert stream.readline(9) == b"de"
    assert stream.readline(9) == b""


@pytest.mark.parametrize("how", ["readinto", "readline"])
def test_an_interim_response_goes_out_before_a_wait(pair, how: str):
    """Once, and not where nothing has to be waited for."""
    ours, theirs = pair
    stream = make_stream(ours)
    stream.interim = b"HTTP/1.1 100 Continue\r\n\r\n"

    def read() -> bytes:
        if how == "readline":
            return stream.readline(2)
        buffer = bytearray(2)
        return bytes(buffer[: stream.readinto(buffer)])

    stream.put_back(b"ab")
    assert read() == b"ab"
    assert stream.interim
    theirs.sendall(b"cd")
    assert read() == b"cd"
    assert stream.interim == b""
    theirs.sendall(b"ef")
    assert read() == b"ef"
    assert theirs.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
    stream.interim = b"HTTP/1.1 100 Continue\r\n\r\n"
    stream.send_message(b"HTTP/1.1 200 OK\r\n\r\n")
    assert stream.interim == b""
    theirs.sendall(b"gh")
    assert read() == b"gh"
    assert theirs.recv(100) == b"HTTP/1.1 200 OK\r\n\r\n"


@pytest.mark.parametrize("before", ["nothing", "head", "message"])
@pytest.mark.parametrize("how", ["readinto", "readline"])
def test_patience_is_counted_anew_for_each_message(pair, before: str, how: str):
    """What was waited and moved before has no say; then both are added up."""
    ours, theirs = pair
    stream = make_stream(ours, timeout=2.0, min_rate=10)
    if before != "nothing":
        stream._waited, stream._moved = 100.0, 10_000
    if before == "head":
        theirs.sendall(b"x\r\n\r\n")
        stream.read_head(1.0, request=True)
    elif before == "message":
        stream.send_message(b"x")
    assert (stream._waited, stream._moved, stream._since) == (0.0, 0, 0.0)

    def read() -> None:
        theirs.send(b"x")
        stream.readline(1) if how == "readline" else stream.readinto(bytearray(1))

    read()
    stream._waited = 1.1
    read()
    assert stream._waited > 1.1
    stream._waited = 2.29
    moved = r"moved 4 bytes in 9\.\d seconds of waiting, under 10 bytes a second"
    read()
    stream._waited = 9.0
    with pytest.raises(SlowPeerError, match=moved) as caught:
        read()
    assert stream.error is caught.value
    assert stream.lags(9.0)
    assert not stream.lags(10.0)
    stream._waited = 9.0
    for number, lags in ((89, True), (90, False)):
        stream._moved = number
        assert stream.lags(9.0) is lags


def test_a_burst_buys_no_silence(pair, wait_until):
    """Who moved much at first lags all the same, where then nothing comes."""
    ours, theirs = pair
    stream = make_stream(ours, min_rate=10)
    stream._moved = 1_000_000
    stream._waited = 9.0
    assert not stream.lags(9.0)
    thread = threading.Thread(target=stream.read, args=(1,))
    started = time.monotonic()
    thread.start()
    wait_until(lambda: stream.lags(9.0), 5.0)
    assert time.monotonic() - started >= EVICTION_SILENCE
    assert not stream.lags(60.0)
    theirs.send(bytes(1))
    thread.join()


def test_a_peer_lags_while_it_is_waited_for(pair, wait_until):
    """Whoever needs its place can see it, in the middle of a read."""
    ours, theirs = pair
    stream = make_stream(ours, min_rate=10)
    theirs.sendall(b"ab")
    assert stream.read(2) == b"ab"
    assert not stream.lags(0.1)
    thread = threading.Thread(target=stream.read, args=(1,))
    thread.start()
    wait_until(lambda: stream.lags(0.25), 5.0)
    assert not stream.lags(60.0)
    theirs.send(bytes(1))
    thread.join()


# --- the stream over TLS ---------------------------------------------------------


def test_records_are_one_stream_of_bytes(tls_pair):
    """Wherever they begin and end; one that came before a break is still read."""
    ours, theirs = tls_pair
    stream = make_stream(ours)
    for piece in (b"ab", b"cd", b"ef", b"gh"):
        theirs.send(piece)
    assert stream.read(7) == b"abcdefg"
    buffer = bytearray(7)
    assert stream.readinto(buffer) == 1
    assert buffer[:1] == b"h"
    for piece in (b"ij", b"kl", b"mn"):
        theirs.send(piece)
    assert stream.readinto(memoryview(buffer)[:2]) == 2
    assert buffer[:2] == b"ij"
    assert stream.read(4) == b"klmn"
    theirs.send(b"op")
    theirs.close()
    assert stream.readinto(buffer) == 2
    with pytest.raises(PeerError):
        stream.readinto(buffer)


def test_a_stream_over_tls_is_quiet_until_its_peer_speaks_or_goes(tls_pair):
    """A session ticket is no message; what is decrypted already is one."""
    server, client = tls_pair
    stream = make_stream(client, timeout=3.0)
    assert stream.is_quiet()
    assert stream.is_quiet()
    server.send(b"ab")
    assert not stream.is_quiet()
    looking, stream = stream, make_stream(server, timeout=3.0)
    assert stream.is_quiet()
    client.send(b"ab")
    assert stream.read(1) == b"a"
    assert stream.read(1) == b"b"
    assert stream.is_quiet()
    looking.close()
    assert not stream.is_quiet()
    stream.close()
    assert not stream.is_quiet()


def test_a_wait_after_a_look_has_its_timeout(tls_pair):
    """Looking whether a stream is quiet does not shorten what follows."""
    server, client = tls_pair
    stream = make_stream(client, timeout=5.0)
    assert stream.is_quiet()
    timer = threading.Timer(0.1, server.send, (b"x",))
    timer.start()
    assert stream.read(1) == b"x"
    timer.join()


@pytest.mark.parametrize("how", ["close", "linger"])
def test_a_stream_over_tls_says_its_end(tls_pair, how: str):
    """The peer can tell an end from a truncation."""
    ours, theirs = tls_pair
    stream = make_stream(ours)
    stream.send(b"bye")
    thread = threading.Thread(target=getattr(stream, how))
    thread.start()
    assert theirs.recv(100) == b"bye"
    theirs.settimeout(5.0)
    assert theirs.recv(100) == b""
    theirs.close()
    thread.join()
    assert ours.fileno() == -1


def test_what_cannot_be_encrypted_says_why(tls_pair):
    """The error of the socket is in that of the stream."""
    ours, _ = tls_pair
    stream = make_stream(ours)
    ours.close()
    with pytest.raises(PeerError, match="closed on this side") as caught:
        stream.write(b"x")
    assert stream.error is caught.value


def test_a_stream_over_tls_that_broke_says_nothing(tls_pair):
    """Its peer must not take the truncation for an end."""
    ours, theirs = tls_pair
    stream = make_stream(ours)
    stream.abort(UnderFlowError(1, 2))
    stream.close()
    with pytest.raises(ssl.SSLEOFError):
        theirs.recv(100)


@pytest.mark.parametrize("how", ["close", "linger"])
def test_closing_what_is_closed_is_no_error(ends: Any, how: str):
    """Nor where the peer is gone."""
    ours, theirs = ends
    stream = make_stream(ours)
    theirs.close()
    getattr(stream, how)()
    assert ours.fileno() == -1
    getattr(stream, how)()


def test_closing_does_not_wait_for_the_peer(tls_pair):
    """It need not answer to the end of TLS."""
    stream = make_stream(tls_pair[0], timeout=30.0)
    started = time.monotonic()
    stream.close()
    assert time.monotonic() - started < 10.0


@pytest.mark.parametrize("how", ["close", "linger"])
def test_closing_where_tls_has_ended_is_no_error(tls_pair, how: str, monkeypatch):
    """Somebody may have ended it already."""
    monkeypatch.setattr(base, "LINGER_TIMEOUT", 0.4)
    ours, theirs = tls_pair
    stream = make_stream(ours)
    thread = threading.Thread(target=theirs.unwrap)
    thread.start()
    ours.unwrap()
    thread.join()
    started = time.monotonic()
    getattr(stream, how)()
    assert ours.fileno() == -1
    if how == "linger":  # the peer may still read what was sent before
        assert time.monotonic() - started > 0.35


def test_lingering_lets_the_peer_finish(pair):
    """Its data is read and dropped, so that it still reads the answer to it."""
    ours, theirs = make_pair(socket.AF_INET)
    stream = make_stream(ours)
    stream.send(b"answer")
    thread = threading.Thread(target=stream.linger)
    started = time.monotonic()
    thread.start()
    theirs.sendall(bytes(3_000_000))
    assert theirs.recv(100) == b"answer"
    assert theirs.recv(100) == b""  # the end comes before theirs
    theirs.sendall(bytes(100_000))
    assert ours.fileno() != -1
    theirs.close()
    thread.join(5)
    assert ours.fileno() == -1
    assert time.monotonic() - started < LINGER_TIMEOUT / 2


@pytest.mark.parametrize("drips", [True, False])
def test_lingering_has_an_end(ends: Any, drips: bool, monkeypatch):
    """Where the peer never closes, whether it now and then sends a byte or not."""
    monkeypatch.setattr(base, "LINGER_TIMEOUT", 0.4)
    ours, theirs = ends
    stream = make_stream(ours)
    stop = threading.Event()

    def drip() -> None:
        with contextlib.suppress(OSError):
            while drips and not stop.wait(0.05):
                theirs.send(b"x")

    thread = threading.Thread(target=drip)
    thread.start()
    started = time.monotonic()
    stream.linger()
    assert 0.35 < time.monotonic() - started < 10.0
    stop.set()
    thread.join()


def test_a_pool_is_given_the_socket_and_how_it_waits(ends: Any):
    """Whose threads then do by themselves what the stream would do."""

    class Pool:
        def enter(self, *arguments: Any) -> Any:
            return arguments

    sock = ends[0]
    stream = make_stream(sock)
    environ = {"a": "b"}
    pool: Any = Pool()
    entered: Any = stream.enter(pool, "handler", environ)
    assert entered == ("handler", sock, not isinstance(sock, ssl.SSLSocket), environ)


# --- one exchange, where compiled code does it -----------------------------------

GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"


compiled_only = pytest.mark.skipif(base.Pool is None, reason="there is no such code")


@pytest.fixture(params=["plain", "tls"])
def exchanging(request: pytest.FixtureRequest) -> tuple[Stream, Any]:
    """A stream whose socket compiled code knows, and the other end."""
    pair = "tls_pair" if request.param == "tls" else "pair"
    ours, theirs = request.getfixturevalue(pair)
    return make_stream(ours), theirs


def test_plain_says_whether_compiled_code_may_use_the_socket(ends: Any):
    """It knows that of the kernel and that of TLS, and no subclass."""
    sock = ends[0]
    known = type(sock) is socket.socket or isinstance(sock, ssl.SSLSocket)
    compiled = base.Pool is not None
    assert make_stream(sock).plain is (known and compiled)


@compiled_only
@pytest.mark.parametrize("used", [False, True])
def test_an_exchange_sends_and_reads_a_head(exchanging: Any, used: bool):
    """What comes behind the head is left for the body."""
    stream, theirs = exchanging
    requests = []

    def serve(answer: bytes) -> None:
        requests.append(theirs.recv(1000))
        theirs.sendall(answer)

    answers = [b"HTTP/1.1 200 OK\r\na: b\r\n\r\nrest", b"HTTP/1.1 103 \r\n\r\nHTTP"]
    for answer, head in zip(
        answers, [(200, "OK", {"a": "b"}), (103, "", {})], strict=True
    ):
        stream.put_back(b"")
        thread = threading.Thread(target=serve, args=(answer,))
        thread.start()
        assert stream.exchange(GET, used) == head
        assert stream.surplus == answer[-4:]
        thread.join()
    assert requests == [GET, GET]


@compiled_only
def test_an_exchange_takes_a_head_in_pieces(exchanging: Any):
    """Also one whose first line is longer than that of a request may be."""
    stream, theirs = exchanging
    pieces = [b"HTTP/1.1 200 ", b"a" * 8000, b"a" * 8000, b"\r\n\r\nrest"]

    def serve() -> None:
        for piece in pieces:
            time.sleep(0.02)
            theirs.sendall(piece)

    thread = threading.Thread(target=serve)
    thread.start()
    assert stream.exchange(GET, False) == (200, "a" * 16000, {})
    assert stream.read(4) == b"rest"
    thread.join()


@compiled_only
def test_an_exchange_that_gets_no_answer_says_why(exchanging: Any):
    """A peer that is slow, one that closes, and one that has spoken before."""
    stream, theirs = exchanging
    stream.timeout = 0.05
    stream.expect(60.0)
    started = time.monotonic()
    with pytest.raises(SlowPeerError) as caught:
        stream.exchange(GET, False)
    assert time.monotonic() - started < 30.0
    assert isinstance(caught.value.__cause__, OSError)
    theirs.sendall(b"HTTP/1.1 408 Too late\r\n\r\n")
    with pytest.raises(ClosedConnectionError, match="closed, make a new one"):
        stream.exchange(GET, True)


@compiled_only
def test_what_is_left_is_nobodys_answer(exchanging: Any):
    """A response that came behind another one, unasked for; nothing is sent."""
    stream, theirs = exchanging
    stream.put_back(b"HTTP/1.1 200 OK\r\n\r\n")
    with pytest.raises(ClosedConnectionError, match="closed, make a new one"):
        stream.exchange(GET, False)
    stream.put_back(b"")
    stream.send_message(b"x")
    assert theirs.recv(100) == b"x"


@compiled_only
def test_an_exchange_with_a_peer_that_went_is_no_head(exchanging: Any):
    """An end instead of an answer; where nothing can be sent, the long way tells."""
    stream, theirs = exchanging
    socket.socket.shutdown(theirs, socket.SHUT_WR)
    with pytest.raises(EmptyHeadError) as caught:
        stream.exchange(GET, False)
    assert stream.error is caught.value
    theirs.close()
    assert stream.exchange(GET, False) == GET


@compiled_only
def test_an_exchange_leaves_what_was_not_sent(pair: Any):
    """A request that the kernel has no room for goes the long way from there.

    Over TLS it does not: what is encrypted stays there.
    """
    stream, theirs = make_stream(pair[0]), pair[1]
    stream._set_kernel_timeout(socket.SO_SNDTIMEO, 0.05)
    message = random.Random(5).randbytes(5_000_000)
    left: Any = stream.exchange(message, False)
    assert 0 < len(left) < len(message)
    assert message.endswith(left)
    theirs.setblocking(False)
    received = b""
    with contextlib.suppress(BlockingIOError):
        while True:
            received += theirs.recv(1_000_000)
    assert received + left == message


def test_where_there_is_no_poll_select_looks(ends: Any, monkeypatch):
    """Some systems have only the one."""
    monkeypatch.delattr(select, "poll")
    ours, theirs = ends
    stream = make_stream(ours, timeout=30.0)
    theirs.send(b"x")
    assert select.select([ours], [], [], 5)[0]
    assert stream._is_readable()
    assert stream.read(1) == b"x"
    started = time.monotonic()
    assert not stream._is_readable()
    assert time.monotonic() - started < 10.0


def test_the_twin_in_use_is_said_by_one_name():
    """`degu.base.wire` is what every other module speaks through."""
    assert base.wire.parse_target("/a")[0] == ["a"]
    if os.environ.get("DEGU_PURE_PYTHON"):
        assert base.wire is wire


def test_reading_tiny_chunks_takes_the_memory_of_their_data():
    """Not that of an object each: a peer could multiply what it sends."""
    number = 50_000
    body = ChunkedInput(io.BytesIO(b"2\r\nab\r\n" * number + b"0\r\n\r\n"))
    tracemalloc.start()
    try:
        assert len(body.read()) == 2 * number
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()

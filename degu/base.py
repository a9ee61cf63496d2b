"""Bodies, and the verbs of one exchange: read a head, make an input, send a message.

A `Stream` is one connection's bytes with their deadlines. Server and client use it
alike; the client is the server turned by half a turn::

    server   read_head   parse_request   make_input   app   build_response   send
    client   build_request   send   read_head   parse_response   make_input

Bodies that came in (`Input`, `ChunkedInput`) read from any binary file object; bodies
that go out (`Output`, `ChunkedOutput`, `FileOutput`) write themselves to any.
"""

from __future__ import annotations

import io
import os
import select
import socket
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from degu.errors import (
    AppError,
    BodyClosedError,
    ChunkError,
    ClosedConnectionError,
    ContentTooLargeError,
    DeguError,
    EmptyHeadError,
    HeadTimeoutError,
    HeadTooLargeError,
    OverFlowError,
    ParseError,
    PeerError,
    SlowPeerError,
    UnderFlowError,
    shown,
)
from degu.limits import (
    COPY_SIZE,
    EVICTION_SILENCE,
    JOIN_SIZE,
    LINGER_TIMEOUT,
    MAX_BODY_SIZE,
    MAX_CHUNK_LINE_SIZE,
    MAX_CHUNK_SIZE,
    MAX_HEAD_SIZE,
    MAX_READ_SIZE,
    MAX_TRAILERS_SIZE,
    RECEIVE_SIZE,
)

if TYPE_CHECKING:
    from degu._pool import Kept

try:
    if os.environ.get("DEGU_PURE_PYTHON"):
        raise ImportError
    from degu import _wire as wire
    from degu._exchange import Records, exchange_plain, is_quiet, recv, send
    from degu._pool import Pool
except ImportError:
    from degu import wire  # type: ignore[no-redef]

    # What the compiled ones do on a plain socket, each in one call of its method.
    recv, send = socket.socket.recv, socket.socket.send  # type: ignore[assignment]
    Pool = Records = None  # type: ignore[assignment,misc]
    exchange_plain = is_quiet = None  # type: ignore[assignment]

__all__ = [
    "ChunkedInput",
    "ChunkedOutput",
    "FileOutput",
    "Input",
    "Output",
    "Pool",
    "Stream",
    "build_uri",
    "complete_headers",
    "make_input",
    "make_output_from_input",
    "wire",
    "write_body",
]

CHUNKED: str = wire.CHUNKED
UNTIL_CLOSE: str = wire.UNTIL_CLOSE

# The kernel keeps these timeouts, where `settimeout()` costs a poll before each call.
_KERNEL_TIMEOUTS = sys.platform == "linux"

BytesLike = bytes | bytearray | memoryview
JOINABLE = (bytes, bytearray)
"""Bodies that leave in one call with their head, unless they are large."""
Chunk = tuple[str | None, BytesLike]


class ReadFile(Protocol):
    """What an input body reads from: a `Stream`, `io.BytesIO`, `io.BufferedReader`."""

    def readinto(self, buffer: Any, /) -> int | None: ...

    def readline(self, size: int, /) -> bytes: ...


class WriteFile(Protocol):
    """What an output body writes to."""

    def write(self, data: Any, /) -> Any: ...


# --- one connection's bytes --------------------------------------------------


class Stream:
    """A connected socket, the bytes that came and were not used, and the deadlines.

    `timeout`, `head_timeout` (seconds) and `min_rate` (bytes a second) are explained
    in `degu.limits`. `on_abort` is called when a body breaks off. Whatever the
    peer does wrong is raised as a `PeerError` or `ProtocolError` and kept in `error`.
    """

    __slots__ = (
        "_data",
        "_kernel",
        "_moved",
        "_poll",
        "_recv",
        "_send",
        "_since",
        "_tls",
        "_wait",
        "_waited",
        "error",
        "head_timeout",
        "interim",
        "min_rate",
        "on_abort",
        "plain",
        "sock",
        "timeout",
    )

    def __init__(
        self,
        sock: socket.socket,
        *,
        timeout: float,
        head_timeout: float,
        min_rate: float,
        on_abort: Callable[[], None] | None = None,
    ) -> None:
        self.sock = sock
        self.timeout = timeout
        self.head_timeout = head_timeout
        self.min_rate = min_rate
        self.on_abort = on_abort
        self.error: BaseException | None = None
        self.interim = b""
        self._data = b""
        self._waited = 0.0
        self._since = 0.0
        self._moved = 0
        # Below TLS is a socket like any other, with the same timeouts.
        self._tls = _find_tls(sock)
        self._kernel = _KERNEL_TIMEOUTS and (
            self._tls is not None or type(sock) is socket.socket
        )
        self._recv: Callable[[Any, int], bytes] = recv if self._kernel else _recv
        self._send: Callable[[Any, BytesLike], int] = send if self._kernel else _send
        if self._tls is not None:
            self._recv = type(self._tls).read
            self._send = send if self._kernel else socket.socket.send
            if Records is not None:
                self._tls.compile(Records)
        self._poll: Any = None
        self.plain = exchange_plain is not None and self._kernel
        """Whether compiled code may receive and send on this socket by itself."""
        self._wait = -1.0
        if self._kernel:
            sock.settimeout(None)
            self._set_kernel_timeout(socket.SO_SNDTIMEO, timeout)
        self._set_wait(timeout)

    def __del__(self) -> None:
        # A stream lives as long as its connection, or a body that came on it.
        if hasattr(self, "error"):
            self.close()

    def _set_kernel_timeout(self, option: int, seconds: float) -> None:
        micros = max(1, int(seconds * 1_000_000))
        value = struct.pack("ll", *divmod(micros, 1_000_000))
        self.sock.setsockopt(socket.SOL_SOCKET, option, value)

    def _set_wait(self, seconds: float) -> None:
        if seconds == self._wait:
            return
        self._wait = seconds
        try:
            if self._kernel:
                self._set_kernel_timeout(socket.SO_RCVTIMEO, seconds)
                if self._tls is not None:
                    self._tls.patience = seconds
            else:
                self.sock.settimeout(seconds)
        except OSError as error:
            raise self._fail(error) from error

    def _fail(self, error: OSError) -> DeguError:
        """The exception for an `error` of the socket; remembered as the peer's."""
        new: DeguError
        if isinstance(error, TimeoutError | BlockingIOError):
            new = SlowPeerError("the peer did not send or take a byte in time")
        else:
            new = PeerError(f"the connection broke: {error}")
        self.error = new
        return new

    def abort(self, error: BaseException) -> None:
        """Say that a body broke off with `error`: nothing more can be read here."""
        self.error = error
        if self.on_abort is not None:
            self.on_abort()

    @property
    def surplus(self) -> bytes:
        """What came after the message that was read last."""
        return self._data

    # reading

    def _receive(self) -> bytes:
        try:
            return self._recv(self.sock, RECEIVE_SIZE)
        except OSError as error:
            raise self._fail(error) from error

    def read_head(self, wait: float, *, request: bool) -> bytes:
        """Read one head, without its final empty line (RFC 9112 §2.1).

        Waits `wait` seconds for its first byte and then `head_timeout` in all.
        Raises `EmptyHeadError` where the peer closed before the first byte,
        `SlowPeerError` where none came in time, else a `ProtocolError`.
        """
        self._waited = 0.0
        self._moved = 0
        data = self._data
        if not data:
            if wait != self._wait:
                self._set_wait(wait)
            try:
                data = self._recv(self.sock, RECEIVE_SIZE)
            except OSError as error:
                raise self.fail_waiting(error) from error
            if not data:
                raise self._empty()
        end = data.find(b"\r\n\r\n", 0, MAX_HEAD_SIZE)
        if end < 0:
            data, end = self._read_slow_head(data, request)
        self._data = data[end + 4 :]
        return data[:end]

    def fail_waiting(self, error: OSError) -> DeguError:
        """The exception for an `error` of the socket where a head should begin."""
        failure = self._fail(error)
        if not isinstance(failure, SlowPeerError):
            return self._empty()
        self._say_goodbye()
        return failure

    def _say_goodbye(self) -> None:
        """Tell a TLS peer, between two messages, of an end that is none by mistake."""
        if self._tls is not None:
            self._tls.say_goodbye()

    def _empty(self) -> DeguError:
        self._say_goodbye()
        self.error = EmptyHeadError("the peer closed the connection before a head")
        return self.error

    def _read_slow_head(self, first: bytes, request: bool) -> tuple[bytes, int]:
        """The rest of a head that did not come in one piece."""
        deadline = monotonic() + self.head_timeout
        data = bytearray(first)
        checked = 0
        while True:
            wire.check_partial_head(data, checked, request=request)
            checked = len(data)
            more = self._recv_until(deadline)
            if not more:
                begin = shown(bytes(data))
                self.error = PeerError(
                    f"the peer closed the connection inside a head, after {begin}"
                )
                raise self.error
            data += more
            end = data.find(b"\r\n\r\n", max(0, checked - 3), MAX_HEAD_SIZE)
            if end >= 0:
                return bytes(data), end

    def _recv_until(self, deadline: float) -> bytes:
        while (left := deadline - monotonic()) > 0:
            self._set_wait(left)
            with suppress(SlowPeerError):
                return self._receive()
        raise HeadTimeoutError(f"no whole head in {self.head_timeout} seconds")

    def exchange(
        self, message: bytes, used: bool
    ) -> tuple[int, str, wire.Headers] | bytes:
        """Send a whole request and read the head of its response, if that is plain.

        Else what of the request was not yet sent, for the long way. Only where `plain`
        is True. Raises `ClosedConnectionError` where a surplus was left before, or a
        `used` connection is not quiet.
        """
        if self._data:  # what is left would be taken for the answer
            raise ClosedConnectionError("this connection is closed, make a new one")
        self.expect(self.timeout)
        try:
            got = exchange_plain(self.sock, self._tls is None, message, used)
        except OSError as error:
            raise self.fail_waiting(error) from error
        if isinstance(got, tuple):
            status, reason, headers, self._data = got
            return status, reason, headers
        if got is None:
            if self.is_quiet():  # over TLS it was no message
                return message
            raise ClosedConnectionError("this connection is closed, make a new one")
        if isinstance(got, int):
            return message[got:]
        if not got:
            raise self._empty()
        self._data = got
        return wire.parse_response(self.read_head(self.timeout, request=False))

    def enter(self, pool: Pool, handler: Any, environ: dict[str, Any]) -> Kept:
        """Let the threads of a pool receive and send here, while all is plain."""
        return pool.enter(handler, self.sock, self._tls is None, environ)

    def expect(self, wait: float) -> None:
        """Be ready for compiled code to receive, for at most `wait` seconds."""
        if wait != self._wait:
            self._set_wait(wait)

    def put_back(self, data: bytes) -> None:
        """Take what compiled code has received, and left to be read."""
        self._data = data

    def readinto(self, buffer: Any) -> int:
        """Read at least one byte into `buffer`; 0 where the peer has closed."""
        data = self._data
        if data:
            size = min(len(data), len(buffer))
            memoryview(buffer)[:size] = data[:size]
            self._data = data[size:]
            return size
        if self.interim or self._wait != self.timeout:
            self._before_wait()
        self._since = monotonic()
        try:
            if self._tls is None:
                size = self.sock.recv_into(buffer)
            else:
                size = self._tls.read_records(memoryview(buffer))
        except OSError as error:
            raise self._fail(error) from error
        self._count(size)
        return size

    def read(self, size: int) -> bytes:
        """Read `size` bytes, fewer only where the peer closes."""
        data = self._data
        if len(data) >= size:
            self._data = data[size:]
            return data[:size]
        whole = bytearray(size)
        view = memoryview(whole)
        filled = 0
        while filled < size and (count := self.readinto(view[filled:])):
            filled += count
        return bytes(view[:filled])

    def readline(self, size: int) -> bytes:
        """Read up to LF, or `size` bytes, or until the peer closes."""
        while (end := self._data.find(b"\n", 0, size) + 1) == 0:
            if len(self._data) >= size:
                end = size
                break
            self._before_wait()
            self._since = monotonic()
            more = self._receive()
            self._count(len(more))
            if not more:
                end = len(self._data)
                break
            self._data += more
        line, self._data = self._data[:end], self._data[end:]
        return line

    def _before_wait(self) -> None:
        self._set_wait(self.timeout)
        if self.interim:
            interim, self.interim = self.interim, b""
            self.write(interim)

    def _count(self, size: int) -> None:
        """Book a wait; raise where the peer is slower than `min_rate` allows."""
        self._waited += monotonic() - self._since
        self._since = 0.0
        self._moved += size
        if self.min_rate and self._waited > self.timeout + self._moved / self.min_rate:
            self.error = SlowPeerError(
                f"the peer moved {self._moved} bytes in {self._waited:.1f} seconds of "
                f"waiting, under {self.min_rate} bytes a second"
            )
            raise self.error

    def lags(self, seconds: float) -> bool:
        """Whether the peer has been waited for so long, and is slow or silent.

        Slow is below `min_rate`, silent is nothing at all for `EVICTION_SILENCE`: who
        sent or took much at first would else be above that rate for long.
        """
        since = self._since
        silent = monotonic() - since if since else 0.0
        waited = self._waited + silent
        if waited < seconds:
            return False
        return silent >= EVICTION_SILENCE or self._moved < waited * self.min_rate

    def is_quiet(self) -> bool:
        """Whether the peer is there and has said nothing, as it is not its turn."""
        if self._data or self.sock.fileno() < 0:
            return False
        if self._tls is not None:
            return bool(self._tls.is_quiet())
        if is_quiet is not None and self._kernel:
            return is_quiet(self.sock)
        return not self._is_readable()

    def _is_readable(self) -> bool:
        if not hasattr(select, "poll"):
            return bool(select.select([self.sock], [], [], 0)[0])
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self.sock, select.POLLIN)
        return bool(self._poll.poll(0))

    # writing

    def send_message(self, start: bytes) -> None:
        """Write a message, or its head, in one call where the kernel has room.

        From now on the peer's patience is counted anew.
        """
        self._waited = 0.0
        self._moved = 0
        self.interim = b""
        if not self._kernel:  # there reading and writing share one timeout
            self._set_wait(self.timeout)
        if self._tls is not None:
            self.send(start)
            return
        try:
            sent = self._send(self.sock, start)
        except OSError as error:
            raise self._fail(error) from error
        if sent < len(start):
            self._write(memoryview(start)[sent:])

    def send(self, data: bytes) -> None:
        """Write a small message, in one call where the kernel has room."""
        try:
            if self._tls is not None:
                data = self._tls.seal(data)
            sent = self._send(self.sock, data)
        except OSError as error:
            raise self._fail(error) from error
        if sent < len(data):
            self._write(memoryview(data)[sent:])

    def write(self, data: BytesLike) -> int:
        """Write all of `data` (bytes-like of single bytes); returns its size."""
        view = memoryview(data)
        if self._tls is None:
            self._write(view)
            return len(view)
        for start in range(0, len(view), COPY_SIZE):
            try:
                sealed = self._tls.seal(view[start : start + COPY_SIZE])
            except OSError as error:
                raise self._fail(error) from error
            self._write(memoryview(sealed))
        return len(view)

    def _write(self, view: memoryview) -> None:
        while view:
            self._since = monotonic()
            try:
                # Not all at once: inside one call a slow peer would not be noticed.
                sent = self._send(self.sock, view[:COPY_SIZE])
            except OSError as error:
                raise self._fail(error) from error
            self._count(sent)
            view = view[sent:]

    def sendfile(self, file: Any, size: int) -> int:
        """Write `size` bytes of an open file from its position; returns how many.

        The kernel copies where the socket is plain. Fewer where the file ends.
        """
        plain = self._kernel and self._tls is None
        if not plain or not isinstance(getattr(file, "raw", file), io.FileIO):
            return _copy(file, self, size)  # what has a descriptor may still decode it
        try:
            offset, fileno = file.tell(), file.fileno()
        except (AttributeError, OSError):
            return _copy(file, self, size)
        left = size
        while left:
            self._since = monotonic()
            try:
                # Not all at once: inside one call a slow peer would not be noticed.
                sent = os.sendfile(
                    self.sock.fileno(), fileno, offset, min(left, COPY_SIZE)
                )
            except OSError as error:
                raise self._fail(error) from error
            if sent == 0:
                break
            self._count(sent)
            offset += sent
            left -= sent
        file.seek(offset)
        return size - left

    # closing

    def close(self) -> None:
        """Close; over TLS say so first (RFC 8446 §6.1), without waiting."""
        if self._tls is not None and self.error is None:
            self._tls.say_goodbye()
        self.sock.close()

    def linger(self) -> None:
        """Close so that the peer can still read what was sent (RFC 9112 §9.6)."""
        deadline = monotonic() + LINGER_TIMEOUT
        try:
            if self._tls is not None:
                self._tls.say_goodbye()
            self.sock.shutdown(socket.SHUT_WR)
            while (left := deadline - monotonic()) > 0:
                self.sock.settimeout(left)
                if not socket.socket.recv(self.sock, JOIN_SIZE):
                    break
        except (OSError, ValueError):
            pass  # the peer is gone, or never read: nothing left to save
        self.sock.close()


def _find_tls(sock: Any) -> Any:
    """`sock` if it is a `degu.transport.TLSSocket`, found out without that module."""
    return sock if hasattr(sock, "seal") else None


def _recv(sock: Any, size: int) -> bytes:
    """Receive on what need not be a plain socket."""
    data: bytes = sock.recv(size)
    return data


def _send(sock: Any, data: BytesLike) -> int:
    size: int = sock.send(data)
    return size


def _copy(source: Any, target: WriteFile, size: int) -> int:
    """Copy `size` bytes between file objects with one reused buffer."""
    buffer = memoryview(bytearray(min(size, COPY_SIZE)))
    left = size
    while left and (count := source.readinto(buffer[: min(left, COPY_SIZE)])):
        _write_all(target, buffer[:count])
        left -= count
    return size - left


def _write_all(target: WriteFile, data: memoryview) -> None:
    """Write to a file object that may take less than it is given (raw files)."""
    while data:
        size = target.write(data)
        if size is None or size >= len(data):
            return
        data = data[size:]


# --- bodies that came in -----------------------------------------------------


class _InputBody:
    """What both input bodies can do; `readinto` and `_left` make the difference."""

    __slots__ = ("closed", "error", "rfile")

    rfile: Any
    closed: bool
    error: BaseException | None

    def readinto(self, buffer: Any) -> int:
        raise NotImplementedError

    def _break(self, error: BaseException) -> BaseException:
        self.closed = True
        self.error = error
        abort = getattr(self.rfile, "abort", None)
        if abort is not None:
            abort(error)
        return error

    def _fill(self, buffer: Any) -> int:
        """Read at least one byte; a peer that goes away ends the body early."""
        count = 0
        cause = None
        try:
            count = self.rfile.readinto(buffer) or 0
        except SlowPeerError as error:
            raise self._break(error) from error.__cause__
        except PeerError as error:
            cause = error
        if count == 0 and (cause is not None or not self._may_end()):
            raise self._break(self._short()) from cause
        return count

    def _may_end(self) -> bool:
        """Whether a peer that closes here completes the body (RFC 9112 §8)."""
        return False

    def _short(self) -> UnderFlowError:
        """The error of a peer that went away too early."""
        raise NotImplementedError

    def read(self, size: int | None = None) -> bytes:
        """Read `size` bytes, fewer at the end; ``b''`` once all was read.

        Without a size the whole rest, if it is at most `degu.limits.MAX_READ_SIZE`.
        Raises `ContentTooLargeError` where it is more (nothing is lost: it can
        still be streamed), `UnderFlowError` where the peer broke off, and
        `TypeError` or `ValueError` for a bad size.
        """
        if size is None:
            return b"" if self.closed else self._read_all()
        if isinstance(size, bool) or not isinstance(size, int):
            raise TypeError(f"size: expected an int or None, got {shown(size)}")
        if size < 0:
            raise ValueError(f"size: expected an int from 0, got {size}")
        return b"" if self.closed else self._read(size)

    def _read(self, size: int) -> bytes:
        # One buffer, as a peer's pieces may be of a byte each.
        data = bytearray()
        buffer = memoryview(bytearray(min(size, COPY_SIZE)))
        while size and not self.closed:
            count = self.readinto(buffer[:size])
            data += buffer[:count]
            size -= count
        return bytes(data)

    def _read_all(self) -> bytes:
        data = self._read(MAX_READ_SIZE)
        if not self.closed and (more := self._read(1)):
            self._unread(data + more)
            raise self._too_large()
        return data

    def _unread(self, data: bytes) -> None:
        raise NotImplementedError

    def _too_large(self) -> ContentTooLargeError:
        self.error = ContentTooLargeError(
            f"read() without a size is capped at {MAX_READ_SIZE} bytes and this body "
            "is larger: stream it with iteration, read(size), readinto(buffer) or "
            "write_to(file)"
        )
        return self.error

    def __iter__(self) -> Iterator[bytes]:
        """Yield the rest as it comes, in pieces of at most `COPY_SIZE` bytes."""
        if self.closed:
            raise BodyClosedError(f"this body was read to its end: {self!r}")
        return self._pieces()

    def _pieces(self) -> Iterator[bytes]:
        buffer = bytearray(COPY_SIZE)
        view = memoryview(buffer)
        while not self.closed:
            if count := self.readinto(buffer):
                yield bytes(view[:count])

    def write_to(self, file: WriteFile) -> int:
        """Write the rest to a binary file object; returns the number of bytes."""
        if self.closed:
            raise BodyClosedError(f"this body was read to its end: {self!r}")
        total = 0
        buffer = memoryview(bytearray(COPY_SIZE))
        while not self.closed:
            if count := self.readinto(buffer):
                _write_all(file, buffer[:count])
                total += count
        return total


class Input(_InputBody):
    """A body of known length that came in (RFC 9112 §6.2), or one until close.

    `rfile` is a binary file object; `content_length` an `int` of bytes, or None where
    the body ends with the connection, after at most `max_size` bytes. `remaining`
    counts down; `closed` is True when nothing is left to read.
    """

    __slots__ = ("_received", "content_length", "max_size", "remaining")

    chunked = False

    def __init__(
        self,
        rfile: ReadFile,
        content_length: int | None,
        max_size: int = MAX_BODY_SIZE,
    ) -> None:
        if type(content_length) is not int or not 0 <= content_length <= MAX_BODY_SIZE:
            content_length = _check_length(content_length, optional=True)
        self.rfile = rfile
        self.content_length = content_length
        self.max_size = max_size
        self.remaining = content_length
        self._received = 0  # counted where nothing can be counted down
        self.closed = content_length == 0
        self.error = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.rfile!r}, {self.content_length!r})"

    def readinto(self, buffer: Any) -> int:
        """Read at least one byte into `buffer`, unless at the end (0)."""
        view = memoryview(buffer).cast("B")
        if self.closed or not view:
            return 0
        if self.remaining is None:
            count = self._fill(view)
            self.closed = count == 0
            self._received += count
            if self._received > self.max_size:
                raise self._break(_too_large_body(self.max_size))
            return count
        count = self._fill(view[: self.remaining])
        self.remaining -= count
        self.closed = self.remaining == 0
        return count

    def _read_all(self) -> bytes:
        size, rfile = self.remaining, self.rfile
        if size is None:
            return super()._read_all()
        if size > MAX_READ_SIZE:
            raise self._too_large()
        if type(rfile) is Stream and len(rfile._data) >= size:
            self.remaining = 0  # it is all there, as small bodies are
            self.closed = True
            return rfile.read(size)
        return self._read(size)

    def _may_end(self) -> bool:
        return self.content_length is None

    def _short(self) -> UnderFlowError:
        if self.content_length is None or self.remaining is None:
            return UnderFlowError(self._received, None)
        return UnderFlowError(self.content_length - self.remaining, self.content_length)

    def _unread(self, data: bytes) -> None:
        self._received -= len(data)
        self.rfile = _Prefixed(data, self.rfile)


def _too_large_body(most: int) -> ContentTooLargeError:
    return ContentTooLargeError(f"expected a body of at most {most} bytes, got more")


class _Prefixed:
    """A file object with bytes put back before it."""

    def __init__(self, data: bytes, rfile: Any) -> None:
        self._first = io.BytesIO(data)
        self._rfile = rfile

    def readinto(self, buffer: Any) -> int:
        return self._first.readinto(buffer) or self._rfile.readinto(buffer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rfile, name)


class ChunkedInput(_InputBody):
    """A body in the chunked transfer coding that came in (RFC 9112 §7.1).

    `rfile` is a binary file object, `max_size` the most bytes of data in all.
    `trailers` is a `dict`, filled when the last chunk was read.
    """

    __slots__ = ("_left", "_put_back", "extension", "max_size", "received", "trailers")

    chunked = True
    content_length = None

    def __init__(self, rfile: ReadFile, max_size: int = MAX_BODY_SIZE) -> None:
        self.rfile = rfile
        self.max_size = max_size
        self.received = 0
        self.closed = False
        self.error = None
        self.extension: str | None = None
        self.trailers: wire.Headers = {}
        self._left = 0
        self._put_back = memoryview(b"")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.rfile!r})"

    def readinto(self, buffer: Any) -> int:
        """Read at least one byte into `buffer`, unless at the end (0)."""
        view = memoryview(buffer).cast("B")
        if self.closed or not view:
            return 0
        if self._put_back:
            count = min(len(view), len(self._put_back))
            view[:count] = self._put_back[:count]
            self._put_back = self._put_back[count:]
            return count
        if self._left == 0 and not self._start_chunk():
            return 0
        return self._read_data(view)

    def readchunk(self) -> Chunk:
        """Read the next chunk whole: ``(extension, data)``, data ``b''`` at the end.

        `extension` is the `str` after the first ``;`` of the chunk's line, or None.
        What `read(size)` left of a chunk is returned as that chunk.
        """
        if self._put_back:
            back, self._put_back = self._put_back, memoryview(b"")
            return self.extension, bytes(back)
        if self.closed or (self._left == 0 and not self._start_chunk()):
            extension, self.extension = self.extension, None
            return extension, b""
        # Not all at once: a size is only a claim until the data comes.
        data = bytearray()
        extension = self.extension
        while self._left:
            piece = bytearray(min(self._left, COPY_SIZE))
            count = self._read_data(memoryview(piece))
            data += memoryview(piece)[:count]
        return extension, bytes(data)

    def chunks(self) -> Iterator[Chunk]:
        """Yield every chunk as ``(extension, data)``, the last, empty one included."""
        if self.closed:
            raise BodyClosedError(f"this body was read to its end: {self!r}")
        while True:
            chunk = self.readchunk()
            yield chunk
            if not chunk[1]:
                return

    def _read_data(self, view: memoryview) -> int:
        count = self._fill(view[: self._left])
        self.received += count
        self._left -= count
        if self._left == 0 and (end := self._readline(2)) != b"\r\n":
            raise self._break(
                ParseError(f"expected CRLF after a chunk's data, got {shown(end)}")
            )
        return count

    def _start_chunk(self) -> bool:
        """Read a chunk's first line; after the last one the trailers too (False)."""
        line = self._readline(MAX_CHUNK_LINE_SIZE)
        if line[-2:] != b"\r\n":
            raise self._break(
                ParseError(
                    f"expected a chunk's line ending with CRLF, got {shown(line)}"
                )
            )
        try:
            self._left, self.extension = wire.parse_chunk_head(line[:-2])
            if self.received + self._left > self.max_size:
                raise _too_large_body(self.max_size)
            if self._left:
                return True
            self.trailers = wire.parse_trailers(self._read_trailers())
        except DeguError as error:
            if error is not self.error:  # that of a line has broken it already
                self._break(error)
            raise
        self.closed = True
        return False

    def _read_trailers(self) -> bytes:
        lines: list[bytes] = []
        room = MAX_TRAILERS_SIZE + 4  # two more line ends than the section counts
        while (line := self._readline(room)) != b"\r\n":
            if len(line) >= room:
                raise HeadTooLargeError(
                    f"expected trailers of at most {MAX_TRAILERS_SIZE} bytes"
                )
            if line[-2:] != b"\r\n":
                raise ParseError(
                    f"expected trailers ending with CRLF, got {shown(line)}"
                )
            lines.append(line)
            room -= len(line)
        return b"".join(lines)[:-2]

    def _readline(self, size: int) -> bytes:
        cause = None
        line = b""
        try:
            line = self.rfile.readline(size)
        except SlowPeerError as error:
            raise self._break(error) from error.__cause__
        except PeerError as error:
            cause = error
        if not line.endswith(b"\n") and len(line) < size:
            raise self._break(self._short()) from cause
        return line

    def _short(self) -> UnderFlowError:
        return UnderFlowError(self.received, None)

    def _unread(self, data: bytes) -> None:
        self._put_back = memoryview(data)  # so that a slice of it is no copy


# --- bodies that go out ------------------------------------------------------


class _OutputBody:
    """What the output bodies share: they can be written once."""

    __slots__ = ("closed",)

    def __init__(self) -> None:
        self.closed = False

    def _use(self) -> None:
        if self.closed:
            raise BodyClosedError(f"this body was sent before: {self!r}")
        self.closed = True


def _check_length(value: Any, *, optional: bool = False) -> Any:
    if value is None and optional:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"content_length: expected an int, got {shown(value)}")
    if not 0 <= value <= MAX_BODY_SIZE:
        raise ValueError(f"content_length: expected 0 to {MAX_BODY_SIZE}, got {value}")
    return value


def _check_piece(piece: Any) -> BytesLike:
    if isinstance(piece, bytes | bytearray):
        return piece
    if isinstance(piece, memoryview):
        return piece.cast("B")
    raise TypeError(f"a body's source: expected bytes, got {shown(piece)}")


class Output(_OutputBody):
    """A body of known length to be sent: `source` yields its bytes in pieces.

    `source` is an iterable of bytes-like objects, or an `Input`. Writing raises
    `OverFlowError` or `UnderFlowError` where it yields more or fewer than
    `content_length` bytes, and `BodyClosedError` the second time.
    """

    __slots__ = ("content_length", "source")

    def __init__(
        self, source: Iterable[BytesLike] | Input, content_length: int
    ) -> None:
        super().__init__()
        if not isinstance(source, Iterable) or isinstance(source, str | bytes):
            raise TypeError(
                f"source: expected an iterable of bytes, got {shown(source)}"
            )
        self.source = source
        self.content_length: int = _check_length(content_length)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.source!r}, {self.content_length})"

    def __iter__(self) -> Iterator[BytesLike]:
        self._use()
        return self._pieces()

    def _pieces(self) -> Iterator[BytesLike]:
        total = 0
        for piece in self.source:
            piece = _check_piece(piece)
            total += len(piece)
            if total > self.content_length:
                raise OverFlowError(total, self.content_length)
            yield piece
        if total < self.content_length:
            raise UnderFlowError(total, self.content_length)

    def write_to(self, file: WriteFile) -> int:
        """Write the body to a binary file object; returns the number of bytes."""
        source = self.source
        if isinstance(source, Input) and source.remaining == self.content_length:
            self._use()
            return source.write_to(file) if not source.closed else 0
        for piece in self:
            _write_all(file, memoryview(piece))
        return self.content_length


class ChunkedOutput(_OutputBody):
    """A body to be sent in the chunked transfer coding (RFC 9112 §7.1).

    `source` is a `ChunkedInput`, or an iterable of bytes-like objects or of
    ``(extension, data)``. Each item is one chunk (split where it is too large);
    an empty one is the last, and one after that a `ChunkError`. A last chunk is
    added where `source` gives none. `trailers` is a `dict` sent after it.
    """

    __slots__ = ("source", "trailers")

    def __init__(
        self,
        source: Iterable[BytesLike | Chunk] | ChunkedInput | Input,
        trailers: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(source, Iterable) or isinstance(source, str | bytes):
            raise TypeError(
                f"source: expected an iterable of bytes, got {shown(source)}"
            )
        self.source = source
        self.trailers = trailers

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.source!r})"

    def __iter__(self) -> Iterator[Chunk]:
        self._use()
        return self._chunks()

    def _chunks(self) -> Iterator[Chunk]:
        source = self.source
        ended = False
        for item in source.chunks() if isinstance(source, ChunkedInput) else source:
            extension, data = item if isinstance(item, tuple) else (None, item)
            data = _check_piece(data)
            if ended:
                raise ChunkError(f"expected no chunk after the last, got {shown(item)}")
            ended = not data
            for start in range(0, len(data) or 1, MAX_CHUNK_SIZE):
                yield extension, data[start : start + MAX_CHUNK_SIZE]
        if not ended:
            yield None, b""

    def write_to(self, file: WriteFile) -> int:
        """Write the chunks to a binary file object; returns the bytes of data."""
        total = 0
        last = b""
        for extension, data in self:
            head = wire.format_chunk_head(len(data), extension)
            if not data:
                last = head
                continue
            pieces: tuple[BytesLike, ...] = (head + b"\r\n", data, b"\r\n")
            if len(data) <= JOIN_SIZE:
                pieces = (b"".join(pieces),)
            for piece in pieces:
                _write_all(file, memoryview(piece))
            total += len(data)
        trailers = self.trailers
        if trailers is None:
            trailers = getattr(self.source, "trailers", None)
        section = wire.format_trailers(trailers) + b"\r\n" if trailers else b""
        _write_all(file, memoryview(b"".join((last, b"\r\n", section, b"\r\n"))))
        return total


class FileOutput(_OutputBody):
    """A file to be sent, from its position on; closed afterwards.

    `fp` is a file opened for reading bytes; `content_length` the number of bytes, by
    default all that follow. Writing raises `UnderFlowError` where the file is
    shorter. On a plain socket the kernel copies (``sendfile``).
    """

    __slots__ = ("content_length", "fp")

    def __init__(self, fp: Any, content_length: int | None = None) -> None:
        super().__init__()
        if not hasattr(fp, "readinto"):
            raise TypeError(f"fp: expected a file opened with 'rb', got {shown(fp)}")
        if content_length is None:
            content_length = max(0, os.fstat(fp.fileno()).st_size - fp.tell())
        self.fp = fp
        self.content_length: int = _check_length(content_length)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.fp!r}, {self.content_length})"

    def __iter__(self) -> Iterator[bytes]:
        self._use()
        return self._pieces()

    def _pieces(self) -> Iterator[bytes]:
        left = self.content_length
        with self.fp:
            while left and (piece := self.fp.read(min(left, COPY_SIZE))):
                left -= len(piece)
                yield piece
        if left:
            raise UnderFlowError(self.content_length - left, self.content_length)

    def write_to(self, file: WriteFile) -> int:
        """Write the file's bytes to a binary file object; returns their number."""
        self._use()
        with self.fp:
            if isinstance(file, Stream):
                size = file.sendfile(self.fp, self.content_length)
            else:
                size = _copy(self.fp, file, self.content_length)
        if size < self.content_length:
            raise UnderFlowError(size, self.content_length)
        return size


OutputBody = Output | ChunkedOutput | FileOutput
InputBody = Input | ChunkedInput
Body = BytesLike | OutputBody | InputBody | None


# --- the verbs ---------------------------------------------------------------


def build_uri(path: Sequence[str], query: str | None) -> str:
    """The request-target of `path` and `query`; the inverse of `wire.parse_target`.

    ``([], None)`` is ``/``, ``(['foo', ''], 'k=v')`` is ``/foo/?k=v``.
    """
    uri = "/" + "/".join(path)
    return uri if query is None else f"{uri}?{query}"


def make_output_from_input(body: InputBody | None) -> OutputBody | None:
    """An output body that sends on what an input body receives; None for None.

    Raises `TypeError` for anything else.
    """
    if body is None:
        return None
    if isinstance(body, ChunkedInput):
        return ChunkedOutput(body)
    if isinstance(body, Input):
        if body.remaining is None:
            return ChunkedOutput(body)
        return Output(body, body.remaining)
    raise TypeError(f"body: expected None, Input or ChunkedInput, got {shown(body)}")


def make_input(
    stream: Stream,
    headers: wire.Headers,
    method: str,
    status: int | None,
    max_body_size: int,
) -> InputBody | None:
    """The body that follows a head which was just read, or None (RFC 9112 §6.3).

    `status` is None for a request. A length of zero is no body: then
    ``content-length`` is taken out of `headers`. Raises `ContentTooLargeError`.
    """
    framing = wire.body_framing(headers, method, status)
    if framing is None:
        kept = status == 304 or (status is not None and method == "HEAD")
        if not kept and headers.get("content-length") == 0:
            del headers["content-length"]
        return None
    if framing is CHUNKED:
        return ChunkedInput(stream, max_body_size)
    if framing is UNTIL_CLOSE:
        return Input(stream, None, max_body_size)
    assert isinstance(framing, int)
    if framing > max_body_size:
        raise ContentTooLargeError(
            f"expected a body of at most {max_body_size} bytes, got {framing}"
        )
    return Input(stream, framing)


def complete_headers(
    headers: Mapping[str, Any], body: Body, method: str, status: int | None = None
) -> Mapping[str, Any]:
    """`headers` with the framing field that `body` needs; never changed in place.

    Raises `AppError` where they contradict the body, the method or the status.
    """
    length = len(body) if type(body) is bytes else _output_length(body)
    if type(headers) is not dict and not isinstance(headers, Mapping):
        raise AppError(f"headers: expected a dict, got {shown(headers)}")
    return wire.frame_headers(headers, length, method, status)


def _output_length(body: Body) -> int | str | None:
    if body is None or isinstance(body, bytes | bytearray):
        return None if body is None else len(body)
    if isinstance(body, _OutputBody | _InputBody) and body.closed:
        if isinstance(body, Input) and body.content_length == 0:
            return None
        raise BodyClosedError(f"body: expected an unused one, got {body!r}")
    if isinstance(body, Output | FileOutput):
        return body.content_length
    if isinstance(body, ChunkedOutput | ChunkedInput):
        return CHUNKED
    if isinstance(body, Input):
        return CHUNKED if body.remaining is None else body.remaining
    if isinstance(body, memoryview) and body.c_contiguous:
        return body.nbytes
    raise AppError(
        "body: expected None, bytes, Output, ChunkedOutput, FileOutput, Input or "
        f"ChunkedInput, got {shown(body)}"
    )


def write_body(stream: Stream, body: Body) -> None:
    """Write the body that follows a head which was just sent."""
    if isinstance(body, bytes | bytearray | memoryview):
        stream.write(memoryview(body).cast("B"))
    elif isinstance(body, Input | ChunkedInput):
        output = make_output_from_input(body)
        assert output is not None
        output.write_to(stream)
    elif body is not None:
        body.write_to(stream)

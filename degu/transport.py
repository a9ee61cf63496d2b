"""TLS on a socket, with memory between the two.

An `ssl.SSLSocket` receives each record in two calls and sends each in one, and with a
timeout it polls besides. Here the records of many kilobytes pass in one call, which
is the same call as on a plain socket: so compiled code and the kernel's timeouts serve
both alike. What came is decrypted, and what is to go encrypted, in memory.
"""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Any

__all__ = ["TLSSocket"]

FETCH_SIZE = 32 * 1024
"""Bytes received at once for a small read: more than a record, which is 16 KiB."""


class TLSSocket(ssl.SSLSocket):
    """An `ssl.SSLSocket` in all that it tells and does, but for the way of its bytes.

    `incoming` and `outgoing` hold what was received and not yet decrypted, and what
    was encrypted and not yet sent; `rest` what goes before that. `patience` says in
    how many seconds a read has to be complete where the kernel keeps the timeout; None
    where `settimeout` does.
    """

    incoming: ssl.MemoryBIO
    outgoing: ssl.MemoryBIO
    rest: bytes
    again: bool
    patience: float | None
    failure: OSError | None
    records: Any
    _sslobj: Any

    @classmethod
    def wrap(
        cls,
        sslctx: ssl.SSLContext,
        sock: socket.socket,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
    ) -> TLSSocket:
        """Put TLS on a connected `sock`, which it takes over; shake hands next."""
        # What `wrap_socket` calls, which would have the class from the context: that
        # belongs to whoever made it.
        create: Callable[..., TLSSocket] = cls._create  # type: ignore[attr-defined]
        self = create(
            sock=sock,
            server_side=server_side,
            do_handshake_on_connect=False,
            suppress_ragged_eofs=False,
            server_hostname=server_hostname,
            context=sslctx,
        )
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.rest, self.again = b"", False
        self.patience, self.failure, self.records = None, None, None
        inner: Any = sslctx.wrap_bio(
            self.incoming,
            self.outgoing,
            server_side=server_side,
            server_hostname=server_hostname,
        )
        self._sslobj = inner._sslobj
        self._sslobj.owner = self  # whom the context's callbacks are told of
        return self

    # --- what it does as an SSLSocket does

    def getpeername(self) -> Any:
        """The address of the peer; while this is being made, None.

        Where it is an error, `ssl` would read in the clear from what is left, and leave
        the socket open if that fails. Here the handshake finds out, and says so.
        """
        return super().getpeername() if hasattr(self, "incoming") else None

    def do_handshake(self, block: bool = False) -> None:
        """Shake hands, within the timeout in all."""
        self._finish(None, self._inner.do_handshake)

    def read(self, len: int = 1024, buffer: Any = None) -> Any:
        """Read at most `len` bytes of one record; none where the peer has ended."""
        return self.read_since(None, len, buffer)

    def write(self, data: Any) -> int:
        """Write all of `data`, within the timeout for each call; returns its size.

        Without a timeout's waiting, `ssl.SSLWantWriteError` asks for the same again.
        """
        if not self.again:
            self.rest = self.seal(data)
        self.again = False
        try:
            self.flush()
        except ssl.SSLWantWriteError:
            self.again = True  # it is encrypted, and must not be so twice
            raise
        return memoryview(data).nbytes

    def send(self, data: Any, flags: int = 0) -> int:
        """`write`, under the name that sockets have for it."""
        if flags:
            raise ValueError(f"flags: expected 0 over TLS, got {flags}")
        return self.write(data)

    def unwrap(self) -> socket.socket:
        """End TLS on both sides; returns the socket for what comes after it."""
        inner = self._inner
        self._finish(None, inner.shutdown)
        self._sslobj = None
        return self

    # --- what it does besides

    def compile(self, records: Callable[..., Any]) -> None:
        """Let compiled code do the usual; it finds its `records` here."""
        self.records = records(self.incoming, self.outgoing, self._inner)

    @property
    def _inner(self) -> Any:
        if self._sslobj is None:
            raise OSError(errno.EBADF, "the connection was closed on this side")
        return self._sslobj

    def seal(self, data: Any) -> bytes:
        """Encrypt `data`: the bytes to send, after what was still to be sent."""
        inner, started = self._inner, None
        while data:
            try:
                inner.write(data)
                break
            except ssl.SSLWantReadError:  # TLS 1.2 is changing its keys
                self.flush()
                started = self._fetch(started)
        sealed, self.rest = self.rest + self.outgoing.read(), b""
        return sealed

    def flush(self) -> None:
        """Send what is still to be sent."""
        data = memoryview(self.rest + self.outgoing.read())  # a slice of it is no copy
        self.rest = b""  # so that a thread that reads does not send it twice
        try:
            while data:
                data = data[socket.socket.send(self, data) :]
        except BlockingIOError:
            if self.gettimeout() == 0:
                raise ssl.SSLWantWriteError(
                    ssl.SSL_ERROR_WANT_WRITE, "no room"
                ) from None
            raise
        finally:
            self.rest = bytes(data)

    def read_since(self, started: float | None, size: int, buffer: Any = None) -> Any:
        """`read`, for which has been waited since `started` (None: not yet)."""
        inner = self._inner
        if self.failure is not None:
            failure, self.failure = self.failure, None
            with suppress(OSError):
                self.flush()  # the alert that says why
            raise failure
        if buffer is None:
            return self._finish(started, inner.read, size)
        return self._finish(started, inner.read, size, buffer)

    def read_records(self, view: memoryview) -> int:
        """Read all that has come, of as many records as there are; 0 at the end.

        All of `view` is used as working space, also what lies behind the bytes read.
        """
        if len(view) <= FETCH_SIZE:
            count: int = self.read(len(view), view)
            return count
        started = None
        if not (self.failure or self.incoming.pending or self._inner.pending()):
            started = monotonic()
            self.incoming.write(view[: socket.socket.recv_into(self, view)])
        size: int = self.read_since(started, len(view), view)
        read, whole = self._inner.read, len(view)
        try:
            while size < whole and self.incoming.pending:
                count = read(whole - size, view[size:])
                if not count:
                    break  # and it will say so again
                size += count
        except ssl.SSLWantReadError:
            pass
        except OSError as error:
            self.failure = error  # after what came before it
        return size

    def is_quiet(self) -> bool:
        """Whether no data came, as session tickets are none; never waits.

        A peer that sends and sends such records is not quiet either.
        """
        if self.failure is not None:
            return False
        before = self.gettimeout()
        try:
            self.settimeout(0)
            for _ in range(2):
                with suppress(ssl.SSLWantReadError):
                    self._inner.read(1)
                    return False
                self.flush()
                self.incoming.write(self._receive())
            return False
        except ssl.SSLWantReadError:
            return True
        except OSError:
            return False
        finally:
            if self.fileno() >= 0:
                self.settimeout(before)

    def say_goodbye(self) -> None:
        """Tell the peer that no more comes (RFC 8446 §6.1); never waits or raises."""
        with suppress(OSError):
            with suppress(ssl.SSLError):  # the peer need not answer
                self._inner.shutdown()
            self.settimeout(0)
            self.flush()

    def _finish(
        self, started: float | None, step: Callable[..., Any], *args: Any
    ) -> Any:
        """Do one `step` of TLS, and send and receive what it needs for that."""
        while True:
            try:
                result = step(*args)
            except ssl.SSLWantReadError:
                self.flush()
                started = self._fetch(started)
            except ssl.SSLError:
                with suppress(OSError):
                    self.flush()  # the alert that says why
                raise
            else:
                if self.outgoing.pending:
                    with suppress(ssl.SSLWantWriteError):  # it goes before what is next
                        self.flush()
                return result

    def _fetch(self, started: float | None) -> float:
        """Receive some of a record, within what is left since `started`, if it is set.

        Returns when it was. However many pieces a record comes in, it has the time of
        one read.
        """
        before = self.gettimeout()
        if started is None or before == 0:
            started = monotonic()
            self.incoming.write(self._receive())
            return started
        patience = self.patience if before is None else before
        if patience is not None:
            left = started + patience - monotonic()
            if left <= 0:
                raise TimeoutError("the read operation timed out")
            self.settimeout(left)
        try:
            self.incoming.write(self._receive())
        finally:
            self.settimeout(before)
        return started

    def _receive(self) -> bytes:
        """Some bytes of which a record is yet to come, so that none are an error.

        OpenSSL would answer such an end with an alert, and could not say goodbye then.
        """
        try:
            data = socket.socket.recv(self, FETCH_SIZE)
        except BlockingIOError:
            if self.gettimeout() == 0:
                raise ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "no data") from None
            raise
        if not data:
            raise ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "the peer ended without a goodbye")
        return data

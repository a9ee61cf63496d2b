"""The client: write -> read -> answer; the server turned by half a turn.

A `Client` says where and how, and can be shared by threads. A `Connection` is one
socket, used by one thread at a time. `Client.request` keeps one private connection
for each thread.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from degu.address import Address, check_address, connect, format_host
from degu.base import (
    JOINABLE,
    Body,
    ChunkedInput,
    Input,
    Stream,
    complete_headers,
    make_input,
    wire,
    write_body,
)
from degu.errors import (
    AppError,
    ClosedConnectionError,
    DeguError,
    EmptyHeadError,
    ParseError,
    PeerError,
    ProtocolError,
    SlowPeerError,
    UnconsumedBodyError,
    shown,
)
from degu.limits import (
    CLIENT_OPTIONS,
    JOIN_SIZE,
    MAX_INTERIM_RESPONSES,
    SSL_CLIENT_OPTIONS,
    Option,
    check_options,
)

if TYPE_CHECKING:
    import ssl

__all__ = ["Client", "Connection", "Response", "SSLClient"]

IDEMPOTENT_METHODS = frozenset({"GET", "HEAD", "PUT", "DELETE", "OPTIONS"})
"""Methods that may be sent again when nothing came back (RFC 9110 §9.2.2)."""


class Response(NamedTuple):
    """What came back: the same four values that an app returns."""

    status: int
    reason: str
    headers: dict[str, Any]
    body: Input | ChunkedInput | None


class _Verbs:
    """The methods by name, for `Client` and `Connection`."""

    def request(
        self,
        method: str,
        uri: str,
        headers: Mapping[str, Any] | None = None,
        body: Body = None,
    ) -> Response:
        """Send one request and read the head of its response."""
        raise NotImplementedError

    def get(self, uri: str, headers: Mapping[str, Any] | None = None) -> Response:
        """`request` with GET."""
        return self.request("GET", uri, headers)

    def head(self, uri: str, headers: Mapping[str, Any] | None = None) -> Response:
        """`request` with HEAD."""
        return self.request("HEAD", uri, headers)

    def delete(self, uri: str, headers: Mapping[str, Any] | None = None) -> Response:
        """`request` with DELETE."""
        return self.request("DELETE", uri, headers)

    def put(
        self, uri: str, headers: Mapping[str, Any] | None = None, body: Body = None
    ) -> Response:
        """`request` with PUT."""
        return self.request("PUT", uri, headers, body)

    def post(
        self, uri: str, headers: Mapping[str, Any] | None = None, body: Body = None
    ) -> Response:
        """`request` with POST."""
        return self.request("POST", uri, headers, body)

    def patch(
        self, uri: str, headers: Mapping[str, Any] | None = None, body: Body = None
    ) -> Response:
        """`request` with PATCH."""
        return self.request("PATCH", uri, headers, body)


class Connection(_Verbs):
    """One connection to a server, for one thread at a time; made by `Client.connect`.

    `closed` is True once it can't be used any more: it was closed by either side, it
    broke, or the server sent something that nobody asked for. A ``with`` closes it.
    """

    def __init__(
        self, sock: socket.socket, host: str, options: Mapping[str, Any]
    ) -> None:
        self.host = host
        self.options = options
        self._body: Input | ChunkedInput | None = None
        self._last = False
        self._open = True
        # Before its first answer a TLS 1.3 server may say that it refuses us.
        self._used = False
        self._stream = Stream(
            sock,
            timeout=options["timeout"],
            head_timeout=options["head_timeout"],
            min_rate=options["min_rate"],
            on_abort=sock.close,  # not `self.close`: that would be a cycle
        )

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def sock(self) -> socket.socket:
        """The connected socket."""
        return self._stream.sock

    @property
    def is_busy(self) -> bool:
        """Whether a response's body still has to be read."""
        return self._open and self._body is not None and not self._body.closed

    @property
    def closed(self) -> bool:
        """Whether this connection is of no more use (also found out by looking)."""
        if (
            self._open
            and not self.is_busy
            and (self._last or (self._used and not self._stream.is_quiet()))
        ):
            self.close()
        return not self._open

    def close(self) -> None:
        """Close the connection; may be called more than once."""
        if self._open:
            self._open = False
            self._stream.close()

    def request(
        self,
        method: str,
        uri: str,
        headers: Mapping[str, Any] | None = None,
        body: Body = None,
    ) -> Response:
        """Send one request and read the head of its response.

        `headers` have lower-case names; ``host`` and the framing field are added
        (to a copy) where they are missing. The body of the `Response` has to be read
        before the next request.

        Raises `AppError` for arguments that can't be sent, `UnconsumedBodyError`,
        `ClosedConnectionError`; a `PeerError` where the server went away or was too
        slow, a `ProtocolError` where it broke HTTP. The last two close the connection.
        """
        headers = {} if headers is None else headers
        if type(headers) is not dict and not isinstance(headers, Mapping):
            raise AppError(f"headers: expected a dict, got {shown(headers)}")
        if body is None or (isinstance(body, JOINABLE) and len(body) <= JOIN_SIZE):
            start = wire.build_request(method, uri, headers, body, self.host)
            body = None
        else:
            if "host" not in headers:
                headers = {"host": self.host, **headers}
            headers = complete_headers(headers, body, method)
            start = wire.format_request(method, uri, headers) + b"\r\n\r\n"
        if self._body is not None and not self._body.closed and self._open:
            raise UnconsumedBodyError(
                "expected the body of the last response to be read first, "
                f"or the connection to be closed: {self._body!r}"
            )
        if (
            not self._open
            or self._last
            or (
                self._used
                and not (body is None and self._stream.plain)  # there `exchange` looks
                and not self._stream.is_quiet()
            )
        ):
            self.close()
            raise ClosedConnectionError("this connection is closed, make a new one")
        try:
            response = self._exchange(method, start, body)
        except PeerError as error:
            self.close()
            raise self._explain(error) from error.__cause__
        except BaseException:
            self.close()
            raise
        if "connection" in headers and wire.says_close(headers):
            self._last = True
        if self._last and self._body is None:
            self.close()  # the server may be waiting for that
        return response

    def _explain(self, error: PeerError) -> DeguError:
        """The error to raise for one of the connection."""
        return error

    def _exchange(self, method: str, start: bytes, rest: Body) -> Response:
        stream = self._stream
        got: tuple[int, str, dict[str, Any]] | bytes = start
        if rest is None and stream.plain:
            got = stream.exchange(start, self._used)
        if isinstance(got, bytes):
            got = self._exchange_slowly(got, rest)
        status, reason, headers = got
        if status < 200:
            status, reason, headers = self._skip_interim(method, status, headers)
        self._used = True
        self._body = make_input(
            stream, headers, method, status, self.options["max_body_size"]
        )
        if "connection" in headers and wire.says_close(headers):
            self._last = True
        elif self._body is not None and self._body.content_length is None:
            self._last = self._last or isinstance(self._body, Input)
        return Response(status, reason, headers, self._body)

    def _exchange_slowly(
        self, start: bytes, rest: Body
    ) -> tuple[int, str, dict[str, Any]]:
        """Send what is left of a request, and read the next head."""
        stream = self._stream
        try:
            stream.send_message(start)
            if rest is not None:
                write_body(stream, rest)
        except SlowPeerError:
            raise
        except PeerError as error:
            if error is not stream.error:
                raise  # it is the body's source that broke, not the server
            # A server may answer and close before it has read the whole body.
            self._last = True
        head = stream.read_head(self.options["timeout"], request=False)
        return wire.parse_response(head)

    def _skip_interim(
        self, method: str, status: int, headers: dict[str, Any]
    ) -> tuple[int, str, dict[str, Any]]:
        """The final head, after an interim response and more (RFC 9110 §15.2)."""
        for _ in range(MAX_INTERIM_RESPONSES):
            wire.body_framing(headers, method, status)
            if status == 101:
                raise ParseError("expected no 101, as no upgrade was asked for")
            try:
                head = self._stream.read_head(self.options["timeout"], request=False)
            except EmptyHeadError as error:
                raise PeerError("the peer closed after an interim response") from error
            status, reason, headers = wire.parse_response(head)
            if status >= 200:
                return status, reason, headers
        raise ProtocolError(
            f"expected at most {MAX_INTERIM_RESPONSES} interim responses, got more"
        )


class Client(_Verbs):
    """Where a server is and how to talk to it; threads may share it.

    `address` is what the server's `address` says. The `options` and their defaults
    are listed in `degu.limits`: ``timeout``, ``head_timeout``, ``min_rate``,
    ``max_body_size`` and ``host`` (the Host field, by default made from the address).

    Raises `TypeError` or `ValueError` for a bad address or option.
    """

    scheme = "http"
    default_port = 80
    known_options: Mapping[str, Option] = CLIENT_OPTIONS

    def __init__(self, address: Address, **options: Any) -> None:
        check_address(address)
        self.address = address
        self.options = check_options(options, self.known_options)
        self.host: str = self.options["host"] or format_host(address, self.default_port)
        wire.parse_host(self.host)
        self._local = threading.local()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address!r})"

    def connect(self) -> Connection:
        """Make a new connection, independent of all others.

        Raises `OSError` where that fails; over TLS also `TLSError`.
        """
        sock = connect(self.address, self.options["timeout"])
        try:
            return self._make_connection(sock)
        except BaseException:
            sock.close()
            raise

    def _make_connection(self, sock: socket.socket) -> Connection:
        return Connection(sock, self.host, self.options)

    def request(
        self,
        method: str,
        uri: str,
        headers: Mapping[str, Any] | None = None,
        body: Body = None,
    ) -> Response:
        """`Connection.request` on a connection that is private to this thread.

        It is made when there is none. Where the server has closed it since the last
        request, and nothing of a response came, the request is repeated once on a new
        one if that is safe: the method is idempotent and the body None or bytes.
        """
        connection: Connection | None = getattr(self._local, "connection", None)
        if connection is not None and (connection.is_busy or not connection.closed):
            try:
                return connection.request(method, uri, headers, body)
            except EmptyHeadError:
                if not _is_repeatable(method, body):
                    raise
        connection = self._local.connection = self.connect()
        return connection.request(method, uri, headers, body)

    def close(self) -> None:
        """Close this thread's private connection, if there is one."""
        connection: Connection | None = getattr(self._local, "connection", None)
        if connection is not None:
            connection.close()
            self._local.connection = None


class SSLClient(Client):
    """A `Client` over TLS; `sslctx` is an `ssl.SSLContext` or an sslconfig dict.

    Two more options: ``handshake_timeout``, and ``server_hostname``, the name that
    the certificate has to carry, by default the host of the address.
    """

    scheme = "https"
    default_port = 443
    known_options = SSL_CLIENT_OPTIONS

    def __init__(
        self,
        sslctx: ssl.SSLContext | dict[str, Any],
        address: Address,
        **options: Any,
    ) -> None:
        from degu import tls

        self._tls = tls
        self.sslctx = tls.make_client_sslctx(sslctx)
        super().__init__(address, **options)
        self.server_hostname: str = self.options["server_hostname"] or (
            address[0] if isinstance(address, tuple) else "localhost"
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.sslctx!r}, {self.address!r})"

    def _make_connection(self, sock: socket.socket) -> Connection:
        sslsock = self._tls.wrap_client(self.sslctx, sock, self.server_hostname)
        try:
            self._tls.handshake(sslsock, self.options["handshake_timeout"])
            return _SSLConnection(sslsock, self.host, self.options)
        except BaseException:
            sslsock.close()
            raise


class _SSLConnection(Connection):
    """A connection that can tell a refused certificate from a broken line."""

    def _explain(self, error: PeerError) -> DeguError:
        from degu import tls

        # In TLS 1.3 the server's refusal comes with the first read.
        cause = error.__cause__
        if isinstance(cause, OSError) and tls.is_tls_failure(cause):
            return tls.build_tls_error(cause)
        return error


def _is_repeatable(method: str, body: Body) -> bool:
    return method in IDEMPOTENT_METHODS and (
        body is None or isinstance(body, bytes | bytearray | memoryview)
    )

"""The server: listen, a thread for each connection, read -> app -> write.

One request goes through `_Handler.run` (a thread), `attend` and `resume` (a connection
as long as it has requests), `handle` (a request), the app. Everything that a peer can
do wrong is raised by the layers below as an error that knows its status, and answered
in one place, `_Handler.answer`.
"""

from __future__ import annotations

import errno
import logging
import select
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from time import monotonic
from typing import TYPE_CHECKING, Any

from degu.address import Address, identify_socket, listen, unlink_socket
from degu.base import (
    JOINABLE,
    ChunkedInput,
    ChunkedOutput,
    FileOutput,
    Input,
    Output,
    Pool,
    Stream,
    complete_headers,
    make_input,
    wire,
    write_body,
)
from degu.door import Door
from degu.errors import AppError, DeguError, ProtocolError, TLSError, shown
from degu.limits import (
    ACCEPT_BACKOFF,
    EVICTION_AGE,
    GRACE_AGE,
    JOIN_SIZE,
    LINGER_TIMEOUT,
    MAX_REFUSALS,
    SERVER_OPTIONS,
    check_options,
)

if TYPE_CHECKING:
    import ssl

    from degu._pool import Kept

__all__ = ["SSLServer", "Server"]

log = logging.getLogger(__name__)

App = Callable[[Any], Any]

_HOPELESS = (errno.EBADF, errno.EINVAL, errno.ENOTSOCK)
"""What accept() says when the listening socket was closed, and always will say."""


class Server:
    """An HTTP/1.1 server on one listening socket, with a thread a connection.

    `address` is a 4-tuple (IPv6), a 2-tuple (IPv4), a `str` (path of a Unix socket),
    `bytes` (Linux abstract name) or a listening `socket.socket`; `app` a callable by
    the RGI: ``app(request) -> (status, reason, headers, body)``. The `options` and
    their defaults are listed in `degu.limits`.

    Raises `TypeError` or `ValueError` for a bad argument, `OSError` where the address
    can't be bound. It listens from then on; nothing is served before
    `serve_forever`, `handle_request` or `running`.
    """

    scheme = "http"

    def __init__(
        self, address: Address | socket.socket, app: App, **options: Any
    ) -> None:
        if not callable(app):
            raise TypeError(f"app: expected a callable, got {shown(app)}")
        for name in ("on_connect", "on_refused"):
            hook = getattr(app, name, None)
            if hook is not None and not callable(hook):
                raise TypeError(f"app.{name}: expected a callable, got {shown(hook)}")
        self.options = check_options(options, SERVER_OPTIONS)
        self.app = app
        self.methods = frozenset(self.options["methods"] or wire.METHODS)
        self.door = Door(self.scheme, self.options)
        self.pool = self._make_pool()
        self.stopping = False
        self._handlers: dict[_Handler, float] = {}
        self._lock = threading.Lock()
        self._refusals = threading.BoundedSemaphore(MAX_REFUSALS)
        self._stopped = threading.Event()
        self._stopped.set()
        self._path: tuple[str, tuple[int, int] | None] | None = None
        if isinstance(address, socket.socket):
            self.sock = _check_listening(address)
        else:
            self.sock = listen(
                address,
                backlog=self.options["backlog"],
                mode=self.options["socket_mode"],
            )
            if isinstance(address, str):
                self._path = (address, identify_socket(address))
        self.sock.setblocking(False)
        self.address: Address = self.sock.getsockname()
        self._wake_reader, self._wake_writer = socket.socketpair()
        for one in (self._wake_reader, self._wake_writer):
            one.setblocking(False)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address!r}, {self.app!r})"

    def __del__(self) -> None:
        if hasattr(self, "_wake_writer"):
            self.close()

    def fileno(self) -> int:
        """The descriptor to wait on for `handle_request`, in any event loop."""
        return self.sock.fileno()

    # --- accepting

    def serve_forever(self) -> None:
        """Accept and serve until `shutdown()` is called or Ctrl-C is pressed.

        The listening socket is closed afterwards. No error of accept ends the loop.
        """
        self._stopped.clear()
        try:
            # A shutdown() before this has closed the socket, one after it waits.
            poll = None if self.stopping else self._make_waiter()
            while poll is not None and not self.stopping:
                if self._is_ready(poll):
                    self._accept_ready()
        except KeyboardInterrupt:
            log.info("%s: interrupted", self.address)
        finally:
            self.stopping = True
            self._close_listener()
            self._stopped.set()

    def handle_request(self) -> None:
        """Accept one connection, serve one request on it, and close it.

        Waits for a connection where there is none. For event loops that watch
        `fileno()`; the time it may take is bounded by the timeouts.
        """
        while not self.stopping:
            ready = self._is_ready(self._make_waiter())
            if ready and (accepted := self._accept()) is not None:
                handler = _Handler(self, *accepted)
                handler.last = True
                with self._lock:
                    self._handlers[handler] = monotonic()
                handler.run()
                return

    def _make_waiter(self) -> _Waiter:
        return _Waiter(self.sock, self._wake_reader)

    def _is_ready(self, poll: _Waiter) -> bool:
        """Wait for a connection; False where something else came, perhaps a signal."""
        if poll.wait(0):
            return True  # as where an event loop calls, which is to keep its signals
        with _waking(self._wake_writer):
            if poll.wait(None):
                return True
        with suppress(OSError):
            self._wake_reader.recv(4096)
        if self.stopping:
            self._wake()  # others may wait for that, too
        return False

    def _accept_ready(self) -> None:
        accepted = self._accept()
        if accepted is not None:
            sock, peer = accepted
            if _is_gone(sock):
                sock.close()
                return
            handler = _Handler(self, sock, peer)
            if self._admit(handler):
                self._start(handler.run, sock, handler)
            elif self._refusals.acquire(blocking=False):
                self._start(handler.refuse, sock, handler)
            else:
                handler.turn_away()

    def _accept(self) -> tuple[socket.socket, Any] | None:
        try:
            return self.sock.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return None  # somebody else took it, or it went away again
        except OSError as error:
            if error.errno in _HOPELESS:
                self.stopping = True
                return None
            log.error("%s: accept failed, resting: %s", self.address, error)
            self._rest()
            return None

    def _start(self, run: Callable[[], None], sock: Any, handler: _Handler) -> None:
        thread = threading.Thread(target=run, name=f"degu {handler.peer}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            log.error("%s: no thread for a connection: %s", self.address, error)
            self._forget(handler)
            sock.close()
            if run == handler.refuse:
                self._refusals.release()
            self._rest()

    def _rest(self) -> None:
        """Give descriptors or threads time to come back, yet hear a shutdown."""
        _Waiter(None, self._wake_reader).wait(ACCEPT_BACKOFF)

    def _make_pool(self) -> Pool | None:
        """Where compiled code serves the connections that are kept."""
        if Pool is None:
            return None
        options = self.options
        return Pool(
            self.app,
            self.methods,
            self.door.admitted,
            options["max_requests"],
            options["timeout"],
        )

    # --- room for connections

    def _admit(self, handler: _Handler) -> bool:
        """Take a place for a new connection, if need be one from a slow beginner."""
        per_address = self.options["max_connections_per_address"]
        with self._lock:
            if per_address is not None and handler.host is not None:
                same = sum(one.host == handler.host for one in self._handlers)
                if same >= per_address:
                    return False
            if len(self._handlers) >= self.options["max_connections"]:
                slow = self._find_slow()
                if slow is None:
                    return False
                del self._handlers[slow]
                slow.interrupt(socket.SHUT_RDWR)
            self._handlers[handler] = monotonic()
            return True

    def _find_slow(self) -> _Handler | None:
        """The oldest connection without a completed request that keeps us waiting."""
        now = monotonic()
        for handler, accepted in self._handlers.items():
            if handler.count or now - accepted < EVICTION_AGE:
                continue
            if not handler.begun or handler.stream.lags(EVICTION_AGE):
                return handler
        return None

    def _forget(self, handler: _Handler) -> None:
        with self._lock:
            self._handlers.pop(handler, None)

    # --- stopping

    def shutdown(self, grace: float = 5.0) -> bool:
        """Stop: no new connections at once, idle ones closed, answers finished.

        Requests in flight have `grace` seconds; then their connections are closed
        too. Returns whether all of them ended by themselves. May be called from any
        thread, and more than once. Raises `ValueError` for a grace below zero.
        """
        if isinstance(grace, bool) or not isinstance(grace, int | float):
            raise TypeError(f"grace: expected a number of seconds, got {shown(grace)}")
        if not grace >= 0:
            raise ValueError(f"grace: expected seconds from 0, got {grace!r}")
        self.stopping = True
        deadline = monotonic() + grace
        self._wake()
        self._stopped.wait(min(grace + ACCEPT_BACKOFF, threading.TIMEOUT_MAX))
        self._close_listener()
        clean = self._drain(deadline)
        for handler in self._others():
            handler.interrupt(socket.SHUT_RDWR)
        return clean

    def _others(self) -> dict[_Handler, float]:
        """The connections, but for the one whose own app is calling."""
        me = threading.get_ident()
        with self._lock:
            handlers = dict(self._handlers)
        return {
            one: since
            for one, since in handlers.items()
            if one.thread != me or not one.busy  # it served that one before
        }

    def _drain(self, deadline: float) -> bool:
        """Wait for the connections to end; the idle ones are told to."""
        pause = 0.0005
        while True:
            now = monotonic()
            handlers = self._others()
            for handler, accepted in handlers.items():
                # The request of a connection just made may be on its way.
                if not handler.busy and (handler.begun or now > accepted + GRACE_AGE):
                    handler.interrupt(socket.SHUT_RD)
            if not handlers:
                return True
            left = deadline - now
            if left <= 0:
                return False
            threading.Event().wait(min(pause, left))
            pause = min(pause * 2, 0.02)

    @contextmanager
    def running(self, grace: float = 5.0) -> Iterator[Server]:
        """Serve from a background thread inside a ``with``; `shutdown(grace)` after."""
        thread = threading.Thread(target=self.serve_forever, name="degu", daemon=True)
        self._stopped.clear()
        thread.start()
        try:
            yield self
        finally:
            self.shutdown(grace)
            thread.join()
            self.close()

    def close(self) -> None:
        """Release the sockets; connections that are being served go on."""
        self._close_listener()
        self._wake_reader.close()
        self._wake_writer.close()

    def _close_listener(self) -> None:
        self.sock.close()
        path, self._path = self._path, None
        if path is not None:
            unlink_socket(*path)

    def _wake(self) -> None:
        with suppress(OSError):
            self._wake_writer.send(b"\0")

    # --- what TLS changes

    def _wrap(self, sock: socket.socket) -> socket.socket:
        """The socket to speak HTTP on."""
        return sock

    def _handshake(self, sock: Any, timeout: float) -> None:
        """What has to be agreed on before HTTP is spoken."""

    def _describe(self, sock: Any) -> dict[str, Any]:
        """The keys of a request that are the same for a whole connection."""
        return {
            "ssl_cipher": None,
            "ssl_peercert": None,
            "credentials": _peer_credentials(sock),
        }


class SSLServer(Server):
    """A `Server` over TLS; `sslctx` is an `ssl.SSLContext` or an sslconfig dict.

    Clients have to show a certificate of the CA, unless the sslconfig says
    ``allow_unauthenticated_clients: True``.
    """

    scheme = "https"

    def __init__(
        self,
        sslctx: ssl.SSLContext | dict[str, Any],
        address: Address | socket.socket,
        app: App,
        **options: Any,
    ) -> None:
        from degu import tls

        self._tls = tls
        self.sslctx = tls.make_server_sslctx(sslctx)
        super().__init__(address, app, **options)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.sslctx!r}, {self.address!r}, {self.app!r})"

    def _wrap(self, sock: socket.socket) -> socket.socket:
        return self._tls.wrap_server(self.sslctx, sock)

    def _handshake(self, sock: Any, timeout: float) -> None:
        try:
            self._tls.handshake(sock, timeout)
        except TLSError as error:
            if self._tls.is_plain_http(error.__cause__):
                # A client that forgot the "https" should be able to read why.
                plain = socket.socket(fileno=sock.detach())
                stream = Stream(plain, timeout=timeout, head_timeout=1, min_rate=0)
                with suppress(DeguError):
                    stream.send(_bare(400, "Bad Request"))
                stream.linger()
            raise

    def _describe(self, sock: Any) -> dict[str, Any]:
        cipher, peercert = self._tls.peer_info(sock)
        return {
            "ssl_cipher": cipher,
            "ssl_peercert": peercert,
            "credentials": _peer_credentials(sock),
        }


class _Handler:
    """One accepted connection: its requests in turn, from accept to close."""

    __slots__ = (
        "begun",
        "busy",
        "count",
        "environ",
        "host",
        "kept",
        "last",
        "peer",
        "server",
        "sock",
        "stream",
        "thread",
    )

    def __init__(self, server: Server, sock: socket.socket, peer: Any) -> None:
        self.server = server
        self.sock = sock
        self.peer = peer
        self.host: str | None = peer[0] if isinstance(peer, tuple) else None
        self.begun = False  # the head of a request was complete
        self.busy = False  # a request is being answered
        self.last = False  # no further request after this one
        self.count = 0
        self.environ: dict[str, Any] = {}
        self.kept: Kept | None = None
        self.stream: Stream
        self.thread = 0

    def interrupt(self, how: int) -> None:
        """Wake the thread that waits for this peer, from another thread."""
        with suppress(OSError):
            socket.socket.shutdown(self.sock, how)

    def run(self) -> None:
        """Be a thread: serve this connection, then whichever has a request.

        Of as many threads as connections, one ends with each; not always its own.
        """
        handler, got = self, None
        while handler.attend(got):
            try:
                handler, got = handler.wait()
            except Exception as error:  # the app has closed the socket, say
                got = error

    def attend(self, got: Any) -> bool:
        """Do what there is to do until the next request; whether there may be one.

        Where there is none, the connection is closed. `got` is what `wait` returned.
        Nothing gets out of here.
        """
        why = "internal error"
        try:
            self.thread = threading.get_ident()
            if self.resume(got) if self.begun else self.begin():
                return True
            self.stream.close()
            why = str(self.stream.error or "done")
        except (DeguError, OSError) as error:
            why = str(error)
        except Exception:
            log.exception("%s: error in the server", self.peer)
        except BaseException:  # such as SystemExit: not the business of a thread
            if threading.current_thread() is threading.main_thread():
                self.end(why)
                raise
        self.end(why)
        return False

    def end(self, why: str) -> None:
        """Close the connection, and forget it."""
        kept, self.kept = self.kept, None
        if kept is not None:
            kept.leave()
        self.sock.close()
        log.info("%s: closed, answered requests: %d: %s", self.peer, self.count, why)
        with suppress(AttributeError):  # it may have ended before there was one
            _drop_frames(self.stream.error)
        self.server._forget(self)

    def refuse(self) -> None:
        """Tell one peer too many that there is no room (RFC 9110 §15.6.4)."""
        try:
            self.open(LINGER_TIMEOUT)
            self.stream.send(_bare(503, "Service Unavailable"))
            self.stream.linger()
        except (DeguError, OSError):
            pass  # it did not want to know
        finally:
            self.sock.close()
            self.server._refusals.release()
            log.warning("%s: refused, the server is full", self.peer)

    def turn_away(self) -> None:
        """Tell so without a thread, a wait or a lingering: it may not get to know."""
        if self.server.scheme == "http":
            with suppress(OSError):
                self.sock.setblocking(False)
                self.sock.send(_bare(503, "Service Unavailable"))
        self.sock.close()

    def open(self, handshake_timeout: float) -> None:
        """Make the stream to speak HTTP on."""
        if isinstance(self.peer, tuple):
            # Without it TLS 1.3 loses 40 ms on every connection.
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = self.server._wrap(self.sock)
        try:
            self.server._handshake(self.sock, handshake_timeout)
        except DeguError as error:
            self.sock.close()  # the app takes its time, the peer need not wait
            self.tell_refused(error)
            raise
        options = self.server.options
        self.stream = Stream(
            self.sock,
            timeout=options["timeout"],
            head_timeout=options["head_timeout"],
            min_rate=options["min_rate"],
        )

    def begin(self) -> bool:
        """Do what comes before HTTP, and handle the first request."""
        server, options = self.server, self.server.options
        self.open(options["handshake_timeout"])
        session: dict[str, Any] = {}
        self.environ = {
            **_REQUEST,
            "client": self.peer,
            "server": server.address,
            "scheme": server.scheme,
            "session": session,
            **server._describe(self.sock),
        }
        on_connect = getattr(server.app, "on_connect", None)
        if on_connect is not None and self.greet(on_connect, session) is not True:
            raise DeguError("refused by on_connect")
        go_on = self.handle(options["head_timeout"])
        if go_on and self.stream.plain and server.pool is not None:
            self.kept = self.stream.enter(server.pool, self, self.environ)
        return go_on

    def greet(self, on_connect: Callable[..., Any], session: dict[str, Any]) -> Any:
        try:
            return on_connect(session, self.sock)
        except Exception:
            log.exception("%s: on_connect failed", self.peer)
            return False

    def tell_refused(self, error: DeguError) -> None:
        """Tell the app of a peer with whom no handshake came about, and why."""
        on_refused = getattr(self.server.app, "on_refused", None)
        if on_refused is not None:
            try:
                on_refused(self.peer, error)
            except Exception:
                log.exception("%s: on_refused failed", self.peer)

    def wait(self) -> tuple[_Handler, Any]:
        """Wait for a request on this connection, or on any other that waits.

        Compiled code answers what is plain, and tells of what is not. Returns what to
        call `resume` of, and with what.
        """
        if self.kept is None or self.stream.surplus or self.last:
            return self, None
        self.stream.expect(self.server.options["timeout"])
        return self.kept.serve()

    def resume(self, got: Any) -> bool:
        """Go on with what `wait` returned; whether the connection goes on."""
        if isinstance(got, tuple):
            method, response, rest = got
            return self.respond(response, method, None, rest)
        if isinstance(got, bytes):
            self.stream.put_back(got)
        elif got is not None:
            if self.busy:
                return self.fail_app(got, None)
            return self.answer(self.stream.fail_waiting(got))
        return self.handle(self.server.options["timeout"])

    def handle(self, wait: float) -> bool:
        """Read one request, call the app, write its response; whether to go on."""
        server, stream = self.server, self.stream
        body: Input | ChunkedInput | None = None
        try:
            head = stream.read_head(wait, request=True)
            self.begun = self.busy = True
            request = wire.parse_request(
                head, server.methods, server.scheme, self.environ
            )
            method, headers = request["method"], request["headers"]
            # Inline, as nearly every request is of a host that was seen before.
            if (
                headers["host"] not in server.door.admitted
                or "origin" in headers
                or "sec-fetch-site" in headers
            ):
                server.door.check(headers)
            # Without either there is no body (RFC 9112 §6.3).
            if "content-length" in headers or "transfer-encoding" in headers:
                body = request["body"] = make_input(
                    stream, headers, method, None, server.options["max_body_size"]
                )
                if body is not None and "expect" in headers:
                    stream.interim = b"HTTP/1.1 100 Continue\r\n\r\n"
            if "connection" in headers and wire.says_close(headers):
                self.last = True
        except DeguError as error:
            return self.answer(error)
        try:
            response = server.app(request)
        except BaseException as error:
            return self.fail_app(error, body)
        return self.respond(response, method, body)

    def respond(
        self,
        response: Any,
        method: str,
        body: Input | ChunkedInput | None,
        start: bytes | None = None,
    ) -> bool:
        """Write what the app returned; whether the connection can go on.

        `start` is what is left of it where the beginning was sent before.
        """
        stream = self.stream
        rest = None
        try:
            if start is None:
                start, rest = self.build(response, method, body)
        except Exception as error:
            _release(response)
            return self.fail(error, body)
        try:
            if stream.interim and rest is not None and type(rest) not in _WHOLE:
                stream.send(stream.interim)  # this response may need the body
            stream.send_message(start)
            if rest is not None:
                write_body(stream, rest)
        except Exception as error:
            _release(response)
            return self.break_off(error)
        self.count += 1
        self.busy = False
        if self.last or (body is not None and not body.closed):
            stream.linger()
            return False
        return True

    def build(
        self, response: Any, method: str, body: Input | ChunkedInput | None
    ) -> tuple[bytes, Any]:
        """What to send for what the app returned: the beginning, and the rest of it.

        The rest is None where the beginning is all, as with a small body.
        """
        if not isinstance(response, tuple) or len(response) != 4:
            raise AppError(
                "response: expected a tuple (status, reason, headers, body), "
                f"got {shown(response)}"
            )
        status, reason, headers, output = response
        wire.check_status(status)
        if type(headers) is not dict and not isinstance(headers, Mapping):
            raise AppError(f"headers: expected a dict, got {shown(headers)}")
        if (
            (body is not None and not body.closed and type(output) in _WHOLE)
            or status < 200
            or self.server.stopping
            or self.count + 1 >= self.server.options["max_requests"]
            or ("connection" in headers and wire.says_close(headers))
        ):
            self.last = True
        if self.last and status >= 200 and "connection" not in headers:
            headers = complete_headers(headers, output, method, status)
            headers = {**headers, "connection": "close"}
        if output is None or (
            isinstance(output, JOINABLE) and len(output) <= JOIN_SIZE
        ):
            return wire.build_response(status, reason, headers, output, method), None
        headers = complete_headers(headers, output, method, status)
        return wire.format_response(status, reason, headers) + b"\r\n\r\n", output

    def answer(self, error: BaseException) -> bool:
        """Tell the peer what it did wrong, by a status alone; then it is over."""
        self.stream.error = error
        if isinstance(error, ProtocolError):
            self.dismiss(error.status, error.reason)
        return False

    def fail_app(self, error: BaseException, body: Input | ChunkedInput | None) -> bool:
        """Answer for an app that raised; SystemExit and its like end the thread."""
        self.fail(error, body)
        if not isinstance(error, Exception):
            raise error
        return False

    def fail(self, error: BaseException, body: Input | ChunkedInput | None) -> bool:
        """Answer for an app that raised, or returned what can't be sent."""
        if error is self.stream.error or (body is not None and error is body.error):
            return self.answer(error)
        log.error("%s: the app failed", self.peer, exc_info=error)
        self.dismiss(500, "Internal Server Error")
        return False

    def dismiss(self, status: int, reason: str) -> None:
        """Answer by a status alone, and close once the peer has read it."""
        with suppress(DeguError):
            self.stream.send(_bare(status, reason))
        self.busy = False  # a shutdown need not wait for that
        self.stream.linger()

    def break_off(self, error: Exception) -> bool:
        """End a response that can't be completed, so that the peer notices."""
        if error is not self.stream.error:
            log.error("%s: a response broke off", self.peer, exc_info=error)
            self.stream.error = error
        return False


_REQUEST = dict.fromkeys(
    ("method", "uri", "script", "path", "query", "headers", "body")
)
"""The keys of a request that differ from one to the next; its body is None until one
is made."""

_WHOLE = (type(None), bytes, bytearray, memoryview, FileOutput)
"""Bodies of responses that can't need the rest of the request's body."""


def _release(response: Any) -> None:
    """Close the file, or end the generator, of a response that was not sent whole."""
    body = response[-1] if isinstance(response, tuple) and response else None
    source = getattr(body, "fp", getattr(body, "source", None))
    if isinstance(body, FileOutput | Output | ChunkedOutput):
        with suppress(Exception):
            getattr(source, "close", int)()


def _drop_frames(error: BaseException | None) -> None:
    """Let go of what an error's frames keep open, such as a proxy's other end."""
    while error is not None:
        error.__traceback__ = None
        error = error.__context__


def _bare(status: int, reason: str) -> bytes:
    """A whole response that says nothing but its status."""
    return b"HTTP/1.1 %d %b\r\ncontent-length: 0\r\nconnection: close\r\n\r\n" % (
        status,
        reason.encode("ascii"),
    )


def _check_listening(sock: socket.socket) -> socket.socket:
    if sock.type != socket.SOCK_STREAM or not sock.getsockopt(
        socket.SOL_SOCKET, socket.SO_ACCEPTCONN
    ):
        raise ValueError(f"address: expected a listening socket, got {shown(sock)}")
    return sock


def _is_gone(sock: socket.socket) -> bool:
    """Whether the peer of a new connection left without a word.

    It is not worth a thread: in a flood of such ones, honest ones wait behind them.
    """
    if not hasattr(socket, "MSG_DONTWAIT"):
        return False
    try:
        return not sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _peer_credentials(sock: socket.socket) -> tuple[int, int, int] | None:
    """(pid, uid, gid) of the process at the other end of a Unix socket (Linux)."""
    if sys.platform != "linux" or sock.family != socket.AF_UNIX:
        return None
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, gid = struct.unpack("3i", data)
    return pid, uid, gid


@contextmanager
def _waking(sock: socket.socket) -> Iterator[None]:
    """Have signals write to `sock`, where this is the thread that handles them.

    The interpreter looks for signals between its steps. One that comes after the last
    step before a system call would be handled when that is over: after the next
    connection.
    """
    try:
        before = signal.set_wakeup_fd(sock.fileno(), warn_on_full_buffer=False)
    except ValueError:
        yield
        return
    if before >= 0:
        signal.set_wakeup_fd(before)  # of an event loop
    try:
        yield
    finally:
        if before < 0:
            signal.set_wakeup_fd(-1)


class _Waiter:
    """Wait for a listening socket, or to be woken."""

    def __init__(self, sock: socket.socket | None, wake: socket.socket) -> None:
        self._sock = sock
        self._wake = wake
        self._poll = select.poll() if hasattr(select, "poll") else None
        if self._poll is not None:
            for one in (sock, wake):
                if one is not None:
                    self._poll.register(one, select.POLLIN)

    def wait(self, seconds: float | None) -> bool:
        """Whether the listening socket is ready; False where it was woken."""
        if self._poll is None:
            every = [one for one in (self._sock, self._wake) if one is not None]
            ready = [one.fileno() for one in select.select(every, [], [], seconds)[0]]
        else:
            millis = None if seconds is None else seconds * 1000
            ready = [fd for fd, _ in self._poll.poll(millis)]
        return bool(ready) and self._wake.fileno() not in ready

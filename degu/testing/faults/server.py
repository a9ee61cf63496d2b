"""A server that fails."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from degu.testing.faults import server_faults  # noqa: F401 (fills the table)
from degu.testing.faults.fault import SERVER_FAULTS, find_fault
from degu.testing.faults.messages import ANSWER
from degu.testing.faults.player import TINY_BUFFER, Player, find_family, recording
from degu.testing.faults.wire import Wire

if TYPE_CHECKING:
    import ssl


class FaultyServer(Player):
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
        super().__init__(find_fault(SERVER_FAULTS, kind), options)
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
        with recording(wire):
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


def _bind(address: Any) -> socket.socket:
    sock = socket.socket(find_family(address))
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

"""A client that misbehaves."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from degu.testing.faults import client_faults  # noqa: F401 (fills the table)
from degu.testing.faults.fault import CLIENT_FAULTS, find_fault
from degu.testing.faults.player import TINY_BUFFER, Player, find_family
from degu.testing.faults.wire import StoppedError, Wire

if TYPE_CHECKING:
    import ssl

CONNECT_SECONDS = 3.0
"""How long a faulty client tries to connect; below `STOP_SECONDS`."""


class FaultyClient(Player):
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
        super().__init__(find_fault(CLIENT_FAULTS, kind), options)
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
            raise StoppedError
        sock = socket.socket(find_family(self.address))
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
        except StoppedError:
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

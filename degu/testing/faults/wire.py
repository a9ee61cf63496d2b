"""One connection of a faulty peer: its record, and the verbs of the kinds."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import socket
import struct
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import ssl

RECORDED_SIZE = 1024 * 1024
"""How many bytes of what a peer sent are kept (bytes per connection)."""

FLUSH_SECONDS = 1.0
"""How long a reset waits for the peer to have what was sent before it."""


class StoppedError(Exception):
    """`stop` was called meanwhile."""


@dataclasses.dataclass
class Connection:
    """What happened on one connection, as far as it got.

    `peer` is its address; `requests` counts the request heads read (servers);
    `received` is what the peer sent, up to `RECORDED_SIZE`; `received_size` and
    `sent_size` count bytes; `ended_by` is "peer" or "us", or "" while it lives;
    `error` is the text of what went wrong with the socket, or "".
    """

    peer: Any
    began: float
    requests: int = 0
    received: bytes = b""
    received_size: int = 0
    sent_size: int = 0
    ended_by: str = ""
    error: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        end = f"ended by {self.ended_by}" if self.ended_by else "open"
        error = f", {self.error}" if self.error else ""
        return (
            f"{self.peer}: {self.requests} requests, {self.received_size} bytes "
            f"received, {self.sent_size} sent, {end}{error}"
        )


class Wire:
    """A socket with its record, and the verbs that the kinds are written in."""

    def __init__(self, sock: socket.socket, peer: Any, stop: threading.Event) -> None:
        self.sock = sock
        self.stop = stop
        self.buffer = b""
        self.record = Connection(peer, time.monotonic())
        if sock.family != getattr(socket, "AF_UNIX", None):
            # A dripped byte is to travel alone, and at once.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def start_tls(self, sslctx: ssl.SSLContext, **options: Any) -> None:
        """Go on inside of TLS."""
        # In two steps, so that `interrupt` reaches the socket during the handshake.
        sock = sslctx.wrap_socket(self.sock, do_handshake_on_connect=False, **options)
        self.sock = sock
        sock.do_handshake()

    def send(self, data: bytes) -> None:
        """Send all of `data`, counting what went out even when it breaks off."""
        view = memoryview(data)
        while view:
            count = self.sock.send(view)
            self.record.sent_size += count
            view = view[count:]

    def drip(self, data: bytes, interval: float, size: int = 1) -> None:
        """Send `size` bytes each `interval` seconds."""
        for start in range(0, len(data), size):
            self.send(data[start : start + size])
            self.pause(interval)

    def read(self, size: int = 65536) -> bytes:
        """At most `size` bytes; ``b""`` when the peer is done."""
        if self.buffer:
            data, self.buffer = self.buffer[:size], self.buffer[size:]
            return data
        return self.receive(size)

    def receive(self, size: int) -> bytes:
        """At most `size` bytes; none where the peer has ended."""
        data = self.sock.recv(size)
        if self.stop.is_set():
            raise StoppedError
        if not data:
            self.record.ended_by = "peer"
        self.record.received_size += len(data)
        room = RECORDED_SIZE - len(self.record.received)
        self.record.received += data[:room]
        return data

    def read_until(self, mark: bytes) -> bytes:
        """Everything up to and with `mark`; ``b""`` when the peer is done before."""
        data = b""
        while mark not in data:
            more = self.read()
            if not more:
                return b""
            data += more
        end = data.index(mark) + len(mark)
        self.buffer = data[end:] + self.buffer
        return data[:end]

    def read_body(self, head: bytes) -> None:
        """Read what belongs to `head`: by content-length, or chunked."""
        if re.search(rb"(?i)\r\nexpect:", head):
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        if re.search(rb"(?i)\r\ntransfer-encoding:", head):
            self.read_until(b"0\r\n\r\n")
            return
        length = re.search(rb"(?i)\r\ncontent-length:[ \t]*([0-9]+)", head)
        missing = int(length[1]) if length else 0
        while missing > 0 and (data := self.read(min(missing, 65536))):
            missing -= len(data)

    def hold(self) -> None:
        """Keep the connection, and read, until the peer ends it or `stop` is called."""
        while self.read():
            pass

    def pause(self, seconds: float | None) -> None:
        """Wait; None is until `stop`."""
        if self.stop.wait(seconds):
            raise StoppedError

    def half_close(self) -> None:
        """Say that nothing more comes, and still listen."""
        # Under TLS too: unwrap() would wait for the peer's own close_notify.
        socket.socket.shutdown(self.sock, socket.SHUT_WR)

    def reset(self) -> None:
        """Close with a RST in place of a FIN (a Unix socket knows no difference)."""
        self.flush()
        linger = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close()

    def flush(self) -> None:
        """Wait until the peer has what was sent, since a reset discards the rest."""
        deadline = time.monotonic() + FLUSH_SECONDS
        while _count_unsent(self.sock) and time.monotonic() < deadline:
            self.pause(0.001)

    def close(self) -> None:
        """Close, and note that it was us, unless it was the peer."""
        self.record.ended_by = self.record.ended_by or "us"
        if not self.record.seconds:
            self.record.seconds = time.monotonic() - self.record.began
        self.sock.close()

    def interrupt(self) -> None:
        """From another thread: wake whatever waits on the socket."""
        with contextlib.suppress(OSError):
            # SSLSocket.shutdown() would take the TLS state away from under it.
            socket.socket.shutdown(self.sock, socket.SHUT_RDWR)


def _count_unsent(sock: socket.socket) -> int:
    """The bytes that the peer has not acknowledged, or 0 where nobody tells."""
    if sys.platform != "linux":
        return 0
    import fcntl
    import termios

    count = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))
    return int.from_bytes(count, sys.byteorder)

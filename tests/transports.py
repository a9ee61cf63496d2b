"""Every way to reach a server, and scripted peers, for the tests of both ends.

A `Transport` is one kind of address, plain or over TLS: what holds on one has to hold
on all. `ScriptedServer` is a server that does what it is told, byte by byte, for what
no honest server does.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from degu import address as addresses
from degu import tls
from degu.client import Client, SSLClient
from degu.server import Server, SSLServer
from degu.testing.pki import TempPKI

TIMEOUT = 10.0
"""Seconds after which a test gives a peer up; never reached where all is well."""


@functools.cache
def shared_pki() -> TempPKI:
    """One set of certificates a process; removed when it ends."""
    return TempPKI()


_numbers = itertools.count()

KINDS = ("ipv6", "ipv6-scope", "ipv4", "unix", "abstract")
NAMES = tuple(f"{kind}{suffix}" for kind in KINDS for suffix in ("", "+tls"))
"""Every transport by name; what a fixture takes as its params."""


def make_address(kind: str, folder: Path) -> addresses.Address:
    """An address of `kind` that nobody else uses."""
    unique = f"degu-test-{os.getpid()}-{next(_numbers)}"
    if kind == "unix":
        return str(folder / f"{next(_numbers)}.sock")
    if kind == "abstract":
        return b"\0" + unique.encode()
    if kind == "ipv4":
        return "127.0.0.1", 0
    return "::1", 0, 0, {"ipv6": 0, "ipv6-scope": 1}[kind]


class Transport:
    """One kind of address, plain or over TLS: makes servers, clients and sockets."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.kind, _, suffix = name.partition("+")
        self.is_tls = suffix == "tls"
        self.is_unix = self.kind in ("unix", "abstract")
        self.address = make_address(self.kind, folder)
        self.scheme = "https" if self.is_tls else "http"

    def __repr__(self) -> str:
        return f"Transport({self.name!r})"

    def make_server(self, app: Any, **options: Any) -> Server:
        """A server on the address; not yet serving."""
        if self.is_tls:
            config = shared_pki().server_sslconfig
            return SSLServer(config, self.address, app, **options)
        return Server(self.address, app, **options)

    @contextlib.contextmanager
    def serve(self, app: Any, **options: Any) -> Iterator[Server]:
        """A server that serves while the ``with`` runs."""
        with self.make_server(app, **options).running() as server:
            yield server

    def make_client(self, server: Server, **options: Any) -> Any:
        """A client for that server."""
        options = {"timeout": TIMEOUT, **options}
        if self.is_tls:
            return SSLClient(shared_pki().client_sslconfig, server.address, **options)
        return Client(server.address, **options)

    def connect(self, server: Server) -> socket.socket:
        """A plain socket, or one that has TLS on it, without any of Degu's client."""
        return connect(server, self.is_tls)


def connect(server: Server, is_tls: bool = False) -> socket.socket:
    """A socket connected to `server` that gives up after `TIMEOUT` seconds."""
    sock = addresses.connect(server.address, TIMEOUT)
    if not is_tls:
        return sock
    context = tls.build_client_sslctx(shared_pki().client_sslconfig)
    return context.wrap_socket(sock, server_hostname="localhost")


def read_all(sock: socket.socket) -> bytes:
    """Everything until the peer closes; raises where it resets the connection."""
    pieces = []
    while piece := sock.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)


def exchange(server: Server, data: bytes) -> bytes:
    """Send `data` and no more on a connection of its own; all that comes back."""
    with connect(server) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        return read_all(sock)


def ask(server: Server, data: bytes) -> bytes:
    """Send `data`, keep the connection open, return all until the server closes it."""
    with connect(server) as sock:
        sock.sendall(data)
        return read_all(sock)


def read_head(file: Any) -> bytes:
    """A head with its empty line, or what there is of it."""
    head = b""
    while not head.endswith(b"\r\n\r\n") and (line := file.readline()):
        head += line
    return head


def read_response(file: Any) -> tuple[bytes, bytes]:
    """The head (without its empty line) and the sized body of one message."""
    head = read_head(file)
    length = 0
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    return head.removesuffix(b"\r\n\r\n"), file.read(length)


def reset(sock: socket.socket) -> None:
    """Close so that the peer gets an RST instead of a FIN."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


# --- a server that does what it is told ------------------------------------------


class Word(NamedTuple):
    """One word of a script."""

    name: str


READ = Word("read")
"""Read one request, with a sized or chunked body."""
HEAD = Word("head")
"""Read the head of one request only."""
CLOSE = Word("close")
"""Close the connection."""
RESET = Word("reset")
"""Break the connection off with an RST."""

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"


class ScriptedServer:
    """Follows one script for each connection in turn, and keeps what it was sent.

    A script is a sequence of words and of bytes to send. After its last item the
    connection stays open until the peer closes it. `requests` are the raw requests,
    in order; `accepted` counts the connections; `ended` those that are over; `socks`
    are its ends of all.
    """

    def __init__(self, *scripts: Any, is_tls: bool = False) -> None:
        self.requests: list[bytes] = []
        self.accepted = 0
        self.ended = 0
        self._scripts = scripts
        self._sslctx: ssl.SSLContext | None = None
        if is_tls:
            config = shared_pki().server_sslconfig
            self._sslctx = tls.build_server_sslctx(config)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = self._listener.getsockname()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.socks: list[socket.socket] = []

    def __enter__(self) -> ScriptedServer:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self.socks:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive()

    def make_client(self, **options: Any) -> Any:
        """A client for this server."""
        options = {"timeout": TIMEOUT, **options}
        if self._sslctx is not None:
            return SSLClient(shared_pki().client_sslconfig, self.address, **options)
        return Client(self.address, **options)

    def _run(self) -> None:
        threads = []
        for script in itertools.chain(self._scripts, itertools.repeat((CLOSE,))):
            try:
                sock, _ = self._listener.accept()
            except OSError:
                break
            self.accepted += 1
            thread = threading.Thread(target=self._follow, args=(sock, script))
            thread.start()
            threads.append(thread)
        for thread in threads:
            thread.join(TIMEOUT)

    def _follow(self, sock: socket.socket, script: Any) -> None:
        try:
            sock.settimeout(TIMEOUT)
            if self._sslctx is not None:
                sock = self._sslctx.wrap_socket(
                    sock, server_side=True, suppress_ragged_eofs=True
                )
            self.socks.append(sock)
            with sock.makefile("rb") as file:
                for item in script:
                    if self._do(sock, file, item):
                        return
                while file.read(65536):
                    pass
        except OSError:
            pass
        finally:
            sock.close()
            self.ended += 1

    def _do(self, sock: socket.socket, file: Any, item: Any) -> bool:
        """Do one item of a script; whether the connection is over."""
        if item == HEAD:
            self.requests.append(read_head(file))
        elif item == READ:
            head, body = read_response(file)
            if b"transfer-encoding: chunked" in head:
                while not body.endswith(b"0\r\n\r\n"):
                    body += file.readline()
            self.requests.append(head + b"\r\n\r\n" + body)
        elif item == RESET:
            reset(sock)
        elif item == CLOSE:
            socket.socket.shutdown(sock, socket.SHUT_RDWR)
        elif callable(item):
            item()
        else:
            sock.sendall(item)
        return item in (RESET, CLOSE)

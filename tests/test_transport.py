"""TLS by way of memory: an `ssl.SSLSocket` to all who use one, as strict as one."""

from __future__ import annotations

import select
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from degu import address, limits, tls
from degu import client as clients
from degu.base import Stream
from degu.client import SSLClient
from degu.errors import EmptyHeadError, PeerError, SlowPeerError, TLSError
from degu.rgi import Request, ResponseTuple
from degu.server import SSLServer
from degu.testing.pki import TempPKI
from degu.transport import TLSSocket

from .conftest import poll
from .transports import shared_pki

TIMEOUT = 10.0
HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"


@pytest.fixture
def pki() -> TempPKI:
    """The certificates that all tests of a process share."""
    return shared_pki()


class Peer:
    """The other end, whose records are made and sent byte by byte as a test likes."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        sslctx = tls.build_server_sslctx(shared_pki().server_sslconfig)
        self.sslobj = sslctx.wrap_bio(self.incoming, self.outgoing, server_side=True)

    def do(self, step: Callable[..., Any], *args: Any) -> Any:
        """Do one step, with all that has to be sent and received for it."""
        while True:
            try:
                return step(*args)
            except ssl.SSLWantReadError:
                self.send(self.outgoing.read())
                self.incoming.write(self.sock.recv(65536))

    def make(self, *pieces: bytes) -> bytes:
        """A record of each piece, not yet sent."""
        for piece in pieces:
            self.sslobj.write(piece)
        return self.outgoing.read()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)


@pytest.fixture
def ends() -> Iterator[tuple[TLSSocket, Peer]]:
    """A client's socket after the handshake, and the server that it talks to."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(TIMEOUT)
    peer = Peer(theirs)
    sslctx = tls.build_client_sslctx(shared_pki().client_sslconfig)
    sslsock = tls.wrap_client(sslctx, ours, "localhost")
    thread = threading.Thread(target=peer.do, args=(peer.sslobj.do_handshake,))
    thread.start()
    with theirs:
        tls.handshake(sslsock, TIMEOUT)
        thread.join(TIMEOUT)
        with sslsock:
            assert isinstance(sslsock, TLSSocket)
            yield sslsock, peer


def make_stream(sslsock: TLSSocket, **options: Any) -> Stream:
    options = {"timeout": 5.0, "head_timeout": 5.0, "min_rate": 0, **options}
    return Stream(sslsock, **options)


def make_connection(sslsock: TLSSocket, **options: Any) -> clients.Connection:
    options = limits.check_options(options, limits.SSL_CLIENT_OPTIONS)
    return clients.Connection(sslsock, "localhost", options)


def drip(peer: Peer, data: bytes, done: threading.Event) -> threading.Thread:
    """Send `data` by bytes, a little time after each other, until it is `done`."""

    def send() -> None:
        for byte in data:
            if done.wait(0.02):
                return
            peer.send(bytes([byte]))

    thread = threading.Thread(target=send)
    thread.start()
    return thread


# --- as an SSLSocket ------------------------------------------------------------


def test_it_tells_what_an_ssl_socket_tells(pki: TempPKI):
    """Beside a real one, whose peer it is."""
    server_ctx = tls.build_server_sslctx(pki.server_sslconfig)
    ours, theirs = socket.socketpair()
    with (
        TLSSocket.wrap(server_ctx, theirs, server_side=True) as here,
        tls.build_client_sslctx(pki.client_sslconfig).wrap_socket(
            ours, do_handshake_on_connect=False, server_hostname="localhost"
        ) as there,
    ):
        thread = threading.Thread(target=there.do_handshake)
        thread.start()
        here.do_handshake()
        thread.join(TIMEOUT)
        assert isinstance(here, ssl.SSLSocket)
        assert here.version() == there.version() == "TLSv1.3"
        assert here.cipher() == there.cipher()
        assert (here.getpeercert() or {})["subject"]
        assert here.getpeercert(True)
        assert here.shared_ciphers()
        assert here.compression() is here.selected_alpn_protocol() is None
        assert here.context is server_ctx
        assert here.server_side
        assert here.fileno() >= 0
        assert here.get_channel_binding("tls-unique")
        there.sendall(b"x" * 20_000 + b"y")
        buffer = bytearray(20_000)
        assert here.recv_into(buffer) == 16384
        assert here.recv(2) == b"xx"
        assert here.pending() == 20_001 - 16_386
        here.sendall(memoryview(b"hello"))
        assert there.recv(100) == b"hello"
        here.shutdown(socket.SHUT_RDWR)
        with pytest.raises(OSError, match="closed on this side"):
            here.send(b"in the clear?")
    assert here.fileno() == -1


def test_callbacks_of_a_context_get_the_socket(pki: TempPKI):
    """Who looks at the name that a client asks for sees the whole connection."""
    seen: list[Any] = []
    sslctx = tls.build_server_sslctx(pki.server_sslconfig)
    sslctx.sni_callback = lambda sock, name, ctx: seen.append((sock, name))

    def app(_request: Request) -> ResponseTuple:
        return (204, "No", {}, None)

    with (
        SSLServer(sslctx, ("::1", 0, 0, 0), app).running() as server,
        SSLClient(pki.client_sslconfig, server.address).connect() as connection,
    ):
        assert isinstance(connection.sock, ssl.SSLSocket)
        assert connection.get("/").status == 204
    [(sock, _)] = seen
    assert isinstance(sock, TLSSocket)


def test_without_waiting_it_says_what_it_wants(ends):
    """With a timeout of zero, as everybody's loops expect it."""
    sslsock, peer = ends
    sslsock.settimeout(0)
    with pytest.raises(ssl.SSLWantReadError):
        sslsock.recv(1)
    peer.send(peer.make(b"hello"))
    assert sslsock.recv(100) == b"hello"


@pytest.mark.parametrize("patience", [None, 5.0])
def test_without_waiting_a_torn_record_is_none_yet(ends, patience: float | None):
    """Some bytes that came make no difference, and the kernel's timeout neither."""
    sslsock, peer = ends
    sslsock.settimeout(0)
    sslsock.patience = patience
    sealed = peer.make(b"hello")
    peer.send(sealed[:9])
    started = time.monotonic()
    with pytest.raises(ssl.SSLWantReadError):
        sslsock.recv(1)
    assert time.monotonic() - started < 2
    peer.send(sealed[9:])
    assert sslsock.recv(100) == b"hello"


def test_without_waiting_nothing_is_written_twice(ends):
    """Where the kernel has no room, the same call is to be made again."""
    sslsock, peer = ends
    sslsock.settimeout(0)
    data = b"".join(b"%07d\n" % number for number in range(200_000))
    view = memoryview(data)
    got = bytearray()

    def read() -> None:
        while len(got) < len(data):
            got.extend(peer.do(peer.sslobj.read, 65536))

    thread = threading.Thread(target=read)
    while view:
        try:
            view = view[sslsock.send(view[:50_000]) :]
        except ssl.SSLWantWriteError:
            if not thread.ident:
                thread.start()
            select.select([], [sslsock], [], TIMEOUT)
    assert thread.ident
    thread.join(TIMEOUT)
    assert got == data


def test_much_at_once_is_not_copied_again_and_again(ends):
    """The time that `sendall` takes grows with the data, and not with its square."""
    sslsock, peer = ends
    sslsock.settimeout(TIMEOUT)

    def drop() -> None:
        with suppress(OSError):
            while peer.sock.recv(1 << 20):
                pass

    thread = threading.Thread(target=drop)
    thread.start()
    started = time.monotonic()
    sslsock.sendall(bytes(100_000_000))
    assert time.monotonic() - started < 10
    sslsock.shutdown(socket.SHUT_RDWR)
    thread.join(TIMEOUT)


def test_unwrap_leaves_a_plain_socket(ends):
    """Both sides say that they are done, then go on without TLS."""
    sslsock, peer = ends
    thread = threading.Thread(target=peer.do, args=(peer.sslobj.unwrap,))
    thread.start()
    plain = sslsock.unwrap()
    thread.join(TIMEOUT)
    peer.send(b"in the clear")
    assert plain.recv(100) == b"in the clear"


@pytest.mark.parametrize("data", [b"", b"GET / HTTP/1.1\r\n\r\n"])
@pytest.mark.parametrize("side", ["server", "client"])
def test_a_peer_that_is_gone_already_fails_the_handshake(
    pki: TempPKI, side: str, data: bytes
):
    """Nothing of it is left, not even for the garbage collector to close."""
    listener = socket.create_server(("127.0.0.1", 0))
    with listener, socket.create_connection(listener.getsockname()) as theirs:
        ours, _ = listener.accept()
        theirs.sendall(data)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    poll(lambda: not is_connected(ours), what="the reset")
    if side == "server":
        sslsock = tls.wrap_server(tls.build_server_sslctx(pki.server_sslconfig), ours)
    else:
        sslctx = tls.build_client_sslctx(pki.client_sslconfig)
        sslsock = tls.wrap_client(sslctx, ours, "localhost")
    with sslsock, pytest.raises(TLSError):
        tls.handshake(sslsock, TIMEOUT)
    with pytest.raises(OSError, match="Bad file descriptor"):
        sslsock.getpeername()


def is_connected(sock: socket.socket) -> bool:
    """Whether there still is a peer."""
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def test_a_server_that_stops_says_goodbye_to_who_is_idle(pki: TempPKI):
    """A proper end, where an alert would be a connection that failed."""

    def app(_request: Request) -> ResponseTuple:
        return (200, "OK", {}, b"hello")

    sslctx = tls.build_client_sslctx(pki.client_sslconfig)
    with SSLServer(pki.server_sslconfig, ("::1", 0, 0, 0), app).running() as server:
        sock = address.connect(server.address, TIMEOUT)
        theirs = sslctx.wrap_socket(
            sock, server_hostname="localhost", suppress_ragged_eofs=False
        )
        theirs.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert theirs.recv(4096).endswith(b"hello")
    with theirs:
        assert theirs.recv(100) == b""


# --- pieces -----------------------------------------------------------------------


def test_records_in_any_pieces_are_read(ends):
    """Torn in the middle of a header, of a record, or several at once."""
    sslsock, peer = ends
    stream = make_stream(sslsock)
    done = threading.Event()
    thread = drip(peer, peer.make(b"HTTP/1.1 200", b" OK\r\n", b"\r\nbody"), done)
    assert stream.read_head(5.0, request=False) == b"HTTP/1.1 200 OK"
    assert stream.read(4) == b"body"
    thread.join(TIMEOUT)
    data = bytes(range(256)) * 1024
    sealed = peer.make(*(data[at : at + 9999] for at in range(0, len(data), 9999)))
    thread = threading.Thread(target=peer.send, args=(sealed,))
    thread.start()
    assert stream.read(len(data)) == data
    thread.join(TIMEOUT)


def test_a_small_message_that_the_kernel_takes_in_parts_arrives_whole(ends):
    """What is left of an encrypted request goes first, before anything else."""
    sslsock, peer = ends
    sslsock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    connection = make_connection(sslsock)
    got = bytearray()

    def answer() -> None:
        while not got.endswith(b"end"):
            got.extend(peer.do(peer.sslobj.read, 65536))
        peer.send(peer.make(HEAD))

    thread = threading.Thread(target=answer)
    for _ in range(2):
        got.clear()
        thread = threading.Thread(target=answer)
        threading.Timer(0.05, thread.start).start()
        value = "v" * 900
        names = {f"x-{number}": value for number in range(25)}
        body = connection.request("PUT", "/", {**names}, b"b" * 30_000 + b"end").body
        assert body is not None
        assert body.read() == b"hello"
        assert got.count(b"b") > 30_000 - 1
        thread.join(TIMEOUT)


# --- deadlines and ends -------------------------------------------------------------


@pytest.mark.parametrize("first", [True, False])
def test_a_torn_record_has_the_time_of_one_read(ends, first: bool):
    """A byte now and then does not make a peer's time longer, in neither twin."""
    sslsock, peer = ends
    connection = make_connection(sslsock, timeout=0.4)
    if not first:  # from now on by compiled code
        peer.send(peer.make(HEAD))
        body = connection.get("/").body
        assert body is not None
        body.read()
    done = threading.Event()
    threads = []
    threading.Timer(
        0.05, lambda: threads.append(drip(peer, peer.make(HEAD * 4), done))
    ).start()
    started = time.monotonic()
    with pytest.raises(SlowPeerError):
        connection.get("/")
    assert 0.35 < time.monotonic() - started < 3
    done.set()
    threads[0].join(TIMEOUT)


def test_a_body_that_stops_is_a_slow_peer(ends):
    """The kernel's timeout, below TLS, ends a read of a body."""
    sslsock, peer = ends
    stream = make_stream(sslsock, timeout=0.2)
    peer.send(peer.make(b"some") + peer.make(b"more")[:9])
    buffer = bytearray(65536)
    assert stream.readinto(buffer) == 4
    with pytest.raises(SlowPeerError):
        stream.readinto(buffer)


def test_a_peer_that_takes_nothing_is_slow(ends):
    """Writing ends too, however much was encrypted."""
    sslsock, _ = ends
    stream = make_stream(sslsock, timeout=0.2)
    with pytest.raises(SlowPeerError):
        stream.write(bytes(10_000_000))


@pytest.mark.parametrize("size", [100, 65536])
@pytest.mark.parametrize("polite", [True, False])
def test_an_end_is_told_from_a_truncation(ends, size: int, polite: bool):
    """Also where it comes together with the last data."""
    sslsock, peer = ends
    stream = make_stream(sslsock)
    sealed = peer.make(b"last")
    if polite:
        with pytest.raises(ssl.SSLWantReadError):
            peer.sslobj.unwrap()
        sealed += peer.outgoing.read()
    peer.send(sealed)
    peer.sock.shutdown(socket.SHUT_WR)
    buffer = bytearray(size)
    assert stream.readinto(buffer) == 4
    if polite:
        assert stream.readinto(buffer) == 0
        return
    with pytest.raises(PeerError) as info:
        stream.readinto(buffer)
    cause = info.value.__cause__
    assert cause is not None
    assert tls.is_ragged_eof(cause)


@pytest.mark.parametrize("polite", [True, False])
def test_between_two_messages_an_end_is_answered_by_a_goodbye(ends, polite: bool):
    """RFC 9112 §9.8: where the peer ends, and where it was waited for in vain."""
    sslsock, peer = ends
    stream = make_stream(sslsock)
    if polite:
        with pytest.raises(ssl.SSLWantReadError):
            peer.sslobj.unwrap()
        peer.send(peer.outgoing.read())
    with pytest.raises(EmptyHeadError if polite else SlowPeerError):
        stream.read_head(0.1, request=True)
    stream.close()
    peer.incoming.write(peer.sock.recv(65536))
    if polite:
        peer.sslobj.unwrap()  # which is done, now that both have said so
    else:
        assert peer.sslobj.read(1) == b""


def test_a_bad_record_behind_good_ones_is_an_error_of_its_own(ends):
    """It is raised with the read that comes after the data, and not as an end."""
    sslsock, peer = ends
    stream = make_stream(sslsock)
    good, bad = peer.make(b"good"), bytearray(peer.make(b"bad"))
    bad[-1] ^= 1
    peer.send(good + bad)
    buffer = bytearray(65536)
    assert stream.readinto(buffer) == 4
    with pytest.raises(PeerError) as info:
        stream.readinto(buffer)
    cause = info.value.__cause__
    assert cause is not None
    assert tls.is_tls_failure(cause)
    with pytest.raises(ssl.SSLError, match="ALERT_BAD_RECORD_MAC"):
        peer.do(peer.sslobj.read, 1)


def test_a_surplus_record_that_came_along_is_seen(ends):
    """What was received together with an answer is no next answer."""
    sslsock, peer = ends
    connection = make_connection(sslsock)
    peer.send(peer.make(HEAD, HEAD))
    body = connection.get("/").body
    assert body is not None
    assert body.read() == b"hello"
    assert connection.closed


def test_a_look_whether_a_peer_is_quiet_never_waits(ends):
    """Where bytes came that are no data, nor may become any before the timeout."""
    sslsock, peer = ends
    connection = make_connection(sslsock, timeout=5.0)
    peer.send(peer.make(HEAD))
    body = connection.get("/").body
    assert body is not None
    assert body.read() == b"hello"
    sealed = peer.make(HEAD)
    peer.send(sealed[:9])
    started = time.monotonic()
    assert not connection.closed
    assert time.monotonic() - started < 2
    peer.send(sealed[9:])
    assert connection.closed


def test_a_peer_that_sends_more_and_more_is_not_quiet(ends, monkeypatch):
    """However fast records come that are no data, the look at them ends."""
    sslsock, peer = ends
    stream = make_stream(sslsock)
    sealed = peer.make(bytes(1000), bytes(16000))
    pieces = iter(sealed[at : at + 10] for at in range(0, len(sealed), 10))
    monkeypatch.setattr(sslsock, "_receive", lambda: next(pieces))
    assert not stream.is_quiet()
    assert len(list(pieces)) > 1000


def test_a_refusal_that_comes_with_the_first_read_is_explained(pki: TempPKI):
    """A client without a certificate hears why, also by the compiled way."""

    def app(_request: Request) -> ResponseTuple:
        return (200, "OK", {}, b"hello")

    with SSLServer(pki.server_sslconfig, ("::1", 0, 0, 0), app).running() as server:
        client = SSLClient(pki.anonymous_client_sslconfig, server.address)
        with (
            pytest.raises(TLSError, match="requires a client certificate"),
            client.connect() as connection,
        ):
            connection.get("/")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl command")
@pytest.mark.parametrize("word", ["k", "K"])
def test_keys_are_changed_between_requests(pki: TempPKI, word: str):
    """RFC 8446 §4.6.3: a peer that updates its keys, and asks us (K) to do so."""

    def app(request: Request) -> ResponseTuple:
        return (200, "OK", {}, request["uri"].encode())

    config = pki.client_sslconfig
    with SSLServer(pki.server_sslconfig, ("127.0.0.1", 0), app).running() as server:
        host = "{}:{}".format(*server.address)
        command = [
            "openssl",
            "s_client",
            "-connect",
            host,
            "-CAfile",
            config["ca_file"],
        ]
        command += ["-cert", config["cert_file"]]
        command += ["-key", config.get("key_file", config["cert_file"]), "-crlf"]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        with process:
            for number in range(3):
                lines = f"GET /answer-{number} HTTP/1.1\nhost: localhost\n\n"
                for text, said in ((lines, b"content-length"), (f"{word}\n", b"KEYUP")):
                    process.stdin.write(text.encode())
                    process.stdin.flush()
                    while said not in process.stdout.readline():
                        assert process.poll() is None
            process.stdin.close()
            process.stdout.read()

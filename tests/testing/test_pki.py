"""degu.testing.pki: the matrix, the files it leaves behind (none), assert_rejected."""

from __future__ import annotations

import gc
import os
import socket
import ssl
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from degu import tls
from degu.errors import ClosedConnectionError, SlowPeerError, TLSError, UnderFlowError
from degu.testing.pki import TempPKI, assert_rejected

TIMEOUT = 10.0


@pytest.fixture(scope="module")
def pki() -> Iterator[TempPKI]:
    """One set of certificates for the module."""
    with TempPKI() as pki:
        yield pki


@contextmanager
def serving(sslconfig: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Answer one request a connection with 200; the value is the address."""
    sslctx = tls.build_server_sslctx(sslconfig)
    stopping = threading.Event()

    def serve() -> None:
        while True:
            sock, _ = listener.accept()
            with tls.wrap_server(sslctx, sock) as sslsock:
                if stopping.is_set():
                    return
                answer(sslsock)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()
        finally:
            stopping.set()
            socket.create_connection(listener.getsockname()).close()
            thread.join(TIMEOUT)
            assert not thread.is_alive()


def answer(sslsock: ssl.SSLSocket) -> None:
    """Do what a server does with one connection; a refusal ends it."""
    try:
        tls.handshake(sslsock, TIMEOUT)
    except TLSError:
        return
    while not sslsock.recv(1000).endswith(b"\r\n\r\n"):
        pass
    sslsock.sendall(
        b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    )
    tls.write_close_notify(sslsock)


def connect(sslconfig: dict[str, Any], address: tuple[str, int]) -> ssl.SSLSocket:
    """Return a connection after its handshake, before any read."""
    sock = socket.create_connection(address, timeout=TIMEOUT)
    sslctx = tls.build_client_sslctx(sslconfig)
    sslsock = tls.wrap_client(sslctx, sock, address[0])
    try:
        tls.handshake(sslsock, TIMEOUT)
    except OSError:
        sslsock.close()
        raise
    return sslsock


def attempt(sslconfig: dict[str, Any], address: tuple[str, int]) -> Callable[[], Any]:
    """What assert_rejected is given: nothing of the connection made yet."""
    return lambda: connect(sslconfig, address)


# --------------------------------------------------------------------------------------
# TempPKI


def test_sslconfigs_are_fresh_and_have_the_known_keys(pki: TempPKI) -> None:
    """The four shapes; changing one that was handed out changes no other."""
    for name, keys in {
        "server_sslconfig": {"ca_file", "cert_file", "key_file"},
        "client_sslconfig": {"ca_file", "cert_file", "check_hostname", "key_file"},
        "anonymous_server_sslconfig": {
            "allow_unauthenticated_clients",
            "cert_file",
            "key_file",
        },
        "anonymous_client_sslconfig": {"ca_file", "check_hostname"},
    }.items():
        sslconfig = getattr(pki, name)
        assert set(sslconfig) == keys
        sslconfig.clear()
        assert set(getattr(pki, name)) == keys
    assert pki.client_sslconfig["check_hostname"] is True
    assert pki.anonymous_client_sslconfig["check_hostname"] is True


def test_files_are_private(pki: TempPKI) -> None:
    """The directory is 0700 and every file in it 0600."""
    assert stat.S_IMODE(os.stat(pki.path).st_mode) == 0o700
    pki.client_sslconfig_for("self_signed")
    for path in Path(pki.path).iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_directory_goes_with_close_with_and_collection() -> None:
    """Each of the three ends removes it, once; a second close does nothing."""
    pki = TempPKI()
    assert os.path.isdir(pki.path)
    pki.close()
    pki.close()
    assert not os.path.exists(pki.path)
    with TempPKI() as pki:
        assert os.path.isdir(pki.path)
    assert not os.path.exists(pki.path)
    pki = TempPKI()
    path = pki.path
    assert path in repr(pki)
    del pki
    gc.collect()
    assert not os.path.exists(path)


def test_directory_goes_when_a_certificate_can_not_be_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A failure in the constructor leaves nothing behind either."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(TypeError):
        TempPKI(hosts=cast(Any, (17,)))
    assert list(tmp_path.iterdir()) == []
    with TempPKI() as pki:
        assert list(tmp_path.iterdir()) == [Path(pki.path)]


def test_directory_goes_with_the_process() -> None:
    """A script that never closes it leaves nothing, and says nothing."""
    script = """
        import os
        from degu.testing.pki import TempPKI
        pki = TempPKI()
        assert os.path.isdir(pki.path)
        print(pki.path)
    """
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert not os.path.exists(run.stdout.strip())
    assert run.stderr == ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_child_leaves_the_files_to_its_parent() -> None:
    """A child that collects its copy, or exits, removes nothing."""
    script = """
        import os
        from degu.testing.pki import TempPKI
        pki = TempPKI()
        pid = os.fork()
        if pid == 0:
            pki.close()
            raise SystemExit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert os.path.isfile(pki.server_sslconfig["cert_file"])
    """
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=60
    )


def test_without_trustme_the_error_says_what_to_install() -> None:
    """The import of trustme is late, and its absence is explained."""
    script = """
        import sys
        import degu.testing.pki
        assert "trustme" not in sys.modules and "cryptography" not in sys.modules
        sys.modules["trustme"] = None
        try:
            degu.testing.pki.TempPKI()
        except ImportError as error:
            print(error)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "pip install 'degu[testing]'" in run.stdout


def test_unknown_case_is_refused(pki: TempPKI) -> None:
    """The error names the cases that there are, for each side its own."""
    with pytest.raises(ValueError, match=r"valid, no_certificate, .*got 'wrong_host'"):
        pki.client_sslconfig_for("wrong_host")
    for method in (pki.server_sslconfig_for, pki.anonymous_server_sslconfig_for):
        with pytest.raises(ValueError, match="got 'no_certificate'"):
            method("no_certificate")


def test_cases_are_issued_once_also_by_many_threads() -> None:
    """A session's PKI can be shared: one case is one pair of files that match."""
    barrier = threading.Barrier(8)

    def issue(shared: TempPKI) -> dict[str, Any]:
        barrier.wait(TIMEOUT)
        return shared.client_sslconfig_for("expired")

    with ThreadPoolExecutor(8) as pool, TempPKI() as shared:
        made = list(pool.map(issue, [shared] * 8))
        assert all(sslconfig == made[0] for sslconfig in made)
        assert len(list(Path(shared.path).glob("*expired*"))) == 2
        tls.build_client_sslctx(made[0])


def test_two_pkis_do_not_trust_each_other(pki: TempPKI) -> None:
    """Every PKI has CAs of its own."""
    with TempPKI() as other, serving(pki.server_sslconfig) as address:
        assert_rejected(attempt(other.client_sslconfig, address), by="client")
        mixed = {**other.client_sslconfig, "ca_file": pki.client_sslconfig["ca_file"]}
        assert_rejected(attempt(mixed, address), by="server")


def test_more_certificates_can_be_issued(pki: TempPKI, tmp_path: Path) -> None:
    """The CAs are trustme's, for whatever else a test needs."""
    leaf = pki.client_ca.issue_cert("alice.test", common_name="alice")
    both = tmp_path / "alice.pem"
    leaf.private_key_and_cert_chain_pem.write_to_path(both)
    alice = {**pki.anonymous_client_sslconfig, "cert_file": str(both)}
    with serving(pki.server_sslconfig) as address, pytest.raises(AssertionError):
        assert_rejected(attempt(alice, address))
    assert pki.server_ca is not pki.client_ca


def test_hosts_are_what_the_server_certificate_names() -> None:
    """Another set of names replaces the loopback addresses."""
    with TempPKI(hosts=("device.test", "127.0.0.2")) as pki:
        with serving(pki.server_sslconfig) as address:
            assert_rejected(
                attempt(pki.client_sslconfig, address),
                by="client",
                match=r"not valid for '127\.0\.0\.1'",
            )
        sslctx = tls.build_client_sslctx(pki.client_sslconfig)
        with serving(pki.server_sslconfig) as address:
            sock = socket.create_connection(address, timeout=TIMEOUT)
            with tls.wrap_client(sslctx, sock, "device.test") as sslsock:
                tls.handshake(sslsock, TIMEOUT)
                sslsock.sendall(b"\r\n\r\n")
                assert sslsock.recv(12) == b"HTTP/1.1 200"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1"])
def test_certificate_is_valid_in_strict_mode(pki: TempPKI, host: str) -> None:
    """S25: keys and extensions pass security level 2 and strict verification."""
    server_sslctx = tls.build_server_sslctx(pki.server_sslconfig)
    client_sslctx = tls.build_client_sslctx(pki.client_sslconfig)
    for sslctx in (server_sslctx, client_sslctx):
        sslctx.verify_flags |= ssl.VERIFY_X509_STRICT
        sslctx.set_ciphers("DEFAULT:@SECLEVEL=2")
    ours, theirs = socket.socketpair()
    server = tls.wrap_server(server_sslctx, ours)
    client = tls.wrap_client(client_sslctx, theirs, host)
    with server, client:
        thread = threading.Thread(target=tls.handshake, args=(server, TIMEOUT))
        thread.start()
        tls.handshake(client, TIMEOUT)
        thread.join(TIMEOUT)
        assert client.version() == server.version() == "TLSv1.3"


# --------------------------------------------------------------------------------------
# The matrix, through assert_rejected


@pytest.mark.parametrize("case", TempPKI.CLIENT_CASES)
def test_server_rejects_each_wrong_client(pki: TempPKI, case: str) -> None:
    """The client's handshake is through, and yet the client is kept out."""
    with serving(pki.server_sslconfig) as address:
        connect(pki.client_sslconfig_for(case), address).close()
        error = assert_rejected(
            attempt(pki.client_sslconfig_for(case), address), by="server"
        )
        assert isinstance(error, OSError)
        assert "ALERT" in str(error)


@pytest.mark.parametrize("case", TempPKI.SERVER_CASES)
def test_client_rejects_each_wrong_server(pki: TempPKI, case: str) -> None:
    """With a client certificate or without, the client itself refuses."""
    with serving(pki.server_sslconfig_for(case)) as address:
        assert_rejected(attempt(pki.client_sslconfig, address), by="client")
    with serving(pki.anonymous_server_sslconfig_for(case)) as address:
        client = attempt(pki.anonymous_client_sslconfig, address)
        assert_rejected(client, by="client", match="certificate verify failed")


def test_right_client_is_not_rejected(pki: TempPKI) -> None:
    """The control of the whole matrix: assert_rejected fails, and shows the answer."""
    for server, client in [
        (pki.server_sslconfig_for("valid"), pki.client_sslconfig_for("valid")),
        (pki.anonymous_server_sslconfig, pki.anonymous_client_sslconfig),
        (pki.anonymous_server_sslconfig, pki.client_sslconfig_for("self_signed")),
    ]:
        with (
            serving(server) as address,
            pytest.raises(AssertionError, match=r"expected TLS to reject.*200 OK"),
        ):
            assert_rejected(attempt(client, address))


# --------------------------------------------------------------------------------------
# assert_rejected


class Connection:
    """The least of a client's connection that assert_rejected uses."""

    def __init__(self, sslsock: ssl.SSLSocket) -> None:
        self.sslsock = sslsock
        self.closed = False

    def request(self, method: str, uri: str) -> bytes:
        self.sslsock.sendall(f"{method} {uri} HTTP/1.1\r\n\r\n".encode())
        return self.sslsock.recv(1000)

    def close(self) -> None:
        self.sslsock.close()
        self.closed = True


class Client:
    """The least of a client."""

    def __init__(self, sslconfig: dict[str, Any], address: tuple[str, int]) -> None:
        self.sslconfig = sslconfig
        self.address = address
        self.connections: list[Connection] = []

    def connect(self) -> Connection:
        self.connections.append(Connection(connect(self.sslconfig, self.address)))
        return self.connections[-1]


def test_client_is_asked_for_a_connection_and_a_request(pki: TempPKI) -> None:
    """A client is used as a user would, and its connection closed."""
    with serving(pki.server_sslconfig) as address:
        bad = Client(pki.client_sslconfig_for("wrong_ca"), address)
        assert_rejected(bad, by="server")
        good = Client(pki.client_sslconfig, address)
        with pytest.raises(AssertionError, match="200 OK"):
            assert_rejected(good)
    assert [conn.closed for conn in bad.connections + good.connections] == [True, True]


def test_library_that_wraps_errors_is_seen_through(pki: TempPKI) -> None:
    """A library hides the reason in an error of its own; it counts all the same."""

    def fetch(sslconfig: dict[str, Any]) -> object:
        sslctx = tls.build_client_sslctx(sslconfig)
        url = f"https://{address[0]}:{address[1]}/"
        with urllib.request.urlopen(url, timeout=TIMEOUT, context=sslctx) as response:
            return response.read()

    with serving(pki.server_sslconfig) as address:
        assert_rejected(lambda: fetch(pki.anonymous_client_sslconfig), by="server")
        with pytest.raises(AssertionError):
            assert_rejected(lambda: fetch(pki.client_sslconfig))
    with serving(pki.server_sslconfig_for("expired")) as address:
        error = assert_rejected(
            lambda: fetch(pki.client_sslconfig), by="client", match="expired"
        )
    assert isinstance(error, urllib.error.URLError)


def test_wrong_side_is_a_failure(pki: TempPKI) -> None:
    """A rejection for another reason than the one meant does not pass."""
    with serving(pki.server_sslconfig) as address:
        bad = attempt(pki.client_sslconfig_for("expired"), address)
        with pytest.raises(AssertionError, match="expected the client to reject"):
            assert_rejected(bad, by="client")
    with serving(pki.server_sslconfig_for("expired")) as address:
        good = attempt(pki.client_sslconfig, address)
        with pytest.raises(AssertionError, match="expected the server to reject"):
            assert_rejected(good, by="server")
        with pytest.raises(AssertionError, match="matches 'wrong words'"):
            assert_rejected(good, match="wrong words")


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError("nobody listens"),
        TimeoutError("silence"),
        SlowPeerError("silence"),
        UnderFlowError(1, 2),
        ClosedConnectionError("closed by the caller"),
        ValueError("a bug"),
    ],
)
def test_other_failures_are_no_rejections(error: Exception) -> None:
    """Nobody listening, a silence, a short body, a bug: none of them is TLS's."""

    def fail() -> None:
        raise error

    with pytest.raises(AssertionError, match="expected TLS to reject") as info:
        assert_rejected(fail)
    assert info.value.__cause__ is error


def test_silent_server_is_no_rejection() -> None:
    """The wait for a socket's first byte ends with the timeout, as a failure."""
    ours, theirs = socket.socketpair()
    with theirs, pytest.raises(AssertionError, match="expected TLS to reject"):
        assert_rejected(lambda: ours, timeout=0.1)


def test_server_that_just_closes_rejects() -> None:
    """Some servers refuse without a word."""
    ours, theirs = socket.socketpair()
    theirs.close()
    assert_rejected(lambda: ours, by="server")


def test_errors_that_refer_to_each_other_end() -> None:
    """A ring of causes is walked once."""
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first

    def fail() -> None:
        raise first

    with pytest.raises(AssertionError):
        assert_rejected(fail)

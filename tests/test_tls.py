"""degu.tls: sslconfig to contexts, real handshakes, and failures that explain."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from degu import tls
from degu.errors import EmptyHeadError, SlowPeerError, TLSError
from degu.testing.pki import TempPKI

TIMEOUT = 10.0
AEAD = ("GCM", "CHACHA20")


@pytest.fixture(scope="module")
def pki() -> Iterator[TempPKI]:
    """One set of certificates for the module."""
    with TempPKI() as pki:
        yield pki


class EchoServer:
    """Accepts TLS connections in a thread, echoes once, keeps what it learned."""

    def __init__(self, sslctx: ssl.SSLContext, host: str = "127.0.0.1") -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.listener = socket.create_server((host, 0), family=family)
        self.address: Any = self.listener.getsockname()
        self.sslctx = sslctx
        self.peers: list[Any] = []
        self.errors: list[TLSError] = []
        self.thread = threading.Thread(target=self.serve)

    def serve(self) -> None:
        while True:
            sock, _ = self.listener.accept()
            with tls.wrap_server(self.sslctx, sock) as sslsock:
                if not self.handle(sslsock):
                    return

    def handle(self, sslsock: ssl.SSLSocket) -> bool:
        """Return False when told to stop."""
        try:
            tls.handshake(sslsock, TIMEOUT)
        except TLSError as error:
            if error.__cause__ and tls.is_ragged_eof(error.__cause__):
                return False
            self.errors.append(error)
            if tls.is_plain_http(error):
                tls.write_under_tls(sslsock, b"HTTP/1.1 400 Bad Request\r\n\r\n")
            return True
        self.peers.append(tls.peer_info(sslsock))
        sslsock.sendall(sslsock.recv(1000))
        tls.write_close_notify(sslsock)
        return True

    def close(self) -> None:
        # A connection without a byte is how this server is told to stop.
        socket.create_connection(self.address[:2]).close()
        self.thread.join(TIMEOUT)
        self.listener.close()
        assert not self.thread.is_alive()


@contextmanager
def serving(sslconfig: Any, host: str = "127.0.0.1") -> Iterator[EchoServer]:
    """Serve with an sslconfig or a context."""
    server = EchoServer(tls.make_server_sslctx(sslconfig), host)
    server.thread.start()
    try:
        yield server
    finally:
        server.close()


@contextmanager
def connected(
    sslconfig: Any, address: Any, hostname: str | None = None
) -> Iterator[ssl.SSLSocket]:
    """Connect with an sslconfig or a context; the handshake is done."""
    sock = socket.create_connection(address[:2], timeout=TIMEOUT)
    sslctx = tls.make_client_sslctx(sslconfig)
    with tls.wrap_client(sslctx, sock, hostname or address[0]) as sslsock:
        tls.handshake(sslsock, TIMEOUT)
        yield sslsock


def exchange(sslconfig: Any, address: Any, hostname: str | None = None) -> bytes:
    """Return what the server echoes, or raise TLSError, also for a late refusal."""
    with connected(sslconfig, address, hostname) as sslsock:
        try:
            sslsock.sendall(b"hello")
            return sslsock.recv(1000)
        except OSError as error:
            refusal = tls.read_refusal(sslsock, error)
            raise tls.build_tls_error(refusal) from refusal


# --------------------------------------------------------------------------------------
# sslconfig


def test_server_without_ca_and_without_flag_is_refused(pki: TempPKI) -> None:
    """S1: no CA is an error, never a server that silently lets everybody in."""
    sslconfig = pki.server_sslconfig
    assert tls.build_server_sslctx(sslconfig).verify_mode == ssl.CERT_REQUIRED
    del sslconfig["ca_file"]
    with pytest.raises(ValueError, match=r"'ca_file' or 'ca_path'.*got the keys"):
        tls.build_server_sslctx(sslconfig)


def test_server_with_the_flag_lets_everybody_in(pki: TempPKI) -> None:
    """Anonymous clients are let in where that was asked for by name."""
    sslctx = tls.build_server_sslctx(pki.anonymous_server_sslconfig)
    assert sslctx.verify_mode == ssl.CERT_NONE


@pytest.mark.parametrize("flag", [False, None, 1, "True"])
def test_flag_has_no_other_value_than_true(pki: TempPKI, flag: object) -> None:
    """A flag whose only sense is True takes nothing that looks like it."""
    sslconfig = pki.anonymous_server_sslconfig
    sslconfig["allow_unauthenticated_clients"] = flag
    with pytest.raises(ValueError, match=f"expected True.*got {flag!r}"):
        tls.build_server_sslctx(sslconfig)


def test_flag_and_ca_exclude_each_other(pki: TempPKI) -> None:
    """A CA that nobody is checked against would be a trap."""
    sslconfig = {**pki.server_sslconfig, "allow_unauthenticated_clients": True}
    with pytest.raises(ValueError, match="expected either"):
        tls.build_server_sslctx(sslconfig)


@pytest.mark.parametrize("build", [tls.build_server_sslctx, tls.build_client_sslctx])
@pytest.mark.parametrize("value", [None, [], "config", 17])
def test_sslconfig_is_a_dict(build: Any, value: object) -> None:
    """Anything but a dict is a TypeError that shows it."""
    with pytest.raises(TypeError, match="expected a dict, got"):
        build(value)


@pytest.mark.parametrize("key", ["cafile", "Cert_File", "check_hostname", 17])
def test_unknown_key_of_a_server_is_named(pki: TempPKI, key: object) -> None:
    """A misspelt key, or one of the other side, is never ignored."""
    sslconfig: Any = {**pki.server_sslconfig, key: True}
    with pytest.raises(ValueError, match=f"keys of a server .*, got {key!r}"):
        tls.build_server_sslctx(sslconfig)


@pytest.mark.parametrize("key", ["ciphers", "allow_unauthenticated_clients"])
def test_unknown_key_of_a_client_is_named(pki: TempPKI, key: str) -> None:
    """A key that only servers have is as unknown to a client as any other."""
    with pytest.raises(ValueError, match=f"keys of a client .*, got {key!r}"):
        tls.build_client_sslctx({**pki.client_sslconfig, key: True})


@pytest.mark.parametrize("key", ["cert_file", "key_file", "ca_file"])
@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (17, TypeError, "a path"),
        (b"/etc/hosts", TypeError, "a path"),
        (None, TypeError, "a path"),
        ("server.pem", ValueError, "an absolute, normal path"),
        ("/tmp/../tmp/x.pem", ValueError, "an absolute, normal path"),
        ("", ValueError, "an absolute, normal path"),
        ("/nonexistent/x.pem", ValueError, "a file that exists"),
        (os.path.abspath(os.sep), ValueError, "a file that exists"),
    ],
)
def test_wrong_path_is_named_and_shown(
    pki: TempPKI, key: str, value: object, kind: type[Exception], expected: str
) -> None:
    """Wrong type, relative, not normal, missing, a directory: each says so."""
    for build, sslconfig in [
        (tls.build_server_sslctx, pki.server_sslconfig),
        (tls.build_client_sslctx, pki.client_sslconfig),
    ]:
        build(sslconfig)
        sslconfig[key] = value
        with pytest.raises(kind, match=rf"'{key}'\]: expected .*{expected}") as info:
            build(sslconfig)
        assert repr(value) in str(info.value)


def test_paths_can_be_path_objects(pki: TempPKI) -> None:
    """A pathlib.Path is a path."""
    sslconfig = {
        key: Path(value) if key.endswith("_file") else value
        for key, value in pki.client_sslconfig.items()
    }
    with serving(pki.server_sslconfig) as server:
        assert exchange(sslconfig, server.address) == b"hello"


@pytest.mark.parametrize("key", ["cert_file", "key_file", "ca_file"])
def test_file_that_is_not_pem_is_named(pki: TempPKI, key: str, tmp_path: Path) -> None:
    """The name of the key comes with the reason that OpenSSL gives."""
    (tmp_path / "junk.pem").write_text("junk")
    sslconfig = {**pki.server_sslconfig, key: str(tmp_path / "junk.pem")}
    with pytest.raises(ValueError, match=rf"'{key}'.*expected a PEM .*junk\.pem"):
        tls.build_server_sslctx(sslconfig)


def test_long_path_is_shown_whole(pki: TempPKI) -> None:
    """Half a path does not name the missing file; nonsense is cut all the same."""
    path = f"/{'x' * 200}/ca.pem"
    with pytest.raises(ValueError, match=path):
        tls.build_server_sslctx({**pki.server_sslconfig, "ca_file": path})
    with pytest.raises(ValueError, match="ca_file") as info:
        tls.build_server_sslctx({**pki.server_sslconfig, "ca_file": path * 1000})
    assert len(str(info.value)) < 200


def test_key_of_another_certificate_is_refused(pki: TempPKI) -> None:
    """A key that does not belong to the certificate is found when building."""
    sslconfig = pki.server_sslconfig
    sslconfig["key_file"] = pki.client_sslconfig["key_file"]
    with pytest.raises(ValueError, match=r"'key_file'.*mismatch"):
        tls.build_server_sslctx(sslconfig)


def test_key_can_be_in_the_certificate_file(pki: TempPKI, tmp_path: Path) -> None:
    """One file with both will do; a certificate file without the key will not."""
    sslconfig = pki.server_sslconfig
    key_file = Path(sslconfig.pop("key_file"))
    with pytest.raises(ValueError, match="private key"):
        tls.build_server_sslctx(sslconfig)
    both = tmp_path / "both.pem"
    both.write_bytes(key_file.read_bytes() + Path(sslconfig["cert_file"]).read_bytes())
    tls.build_server_sslctx({**sslconfig, "cert_file": str(both)})


def test_encrypted_key_is_refused_without_a_prompt(
    pki: TempPKI, tmp_path: Path
) -> None:
    """No server ever waits for a passphrase on a terminal."""
    serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    sslconfig = pki.server_sslconfig
    plain = Path(sslconfig["key_file"]).read_bytes()
    key = serialization.load_pem_private_key(plain, None)
    (tmp_path / "locked.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    sslconfig["key_file"] = str(tmp_path / "locked.pem")
    with pytest.raises(ValueError, match=r"'key_file'\]: expected an unencrypted"):
        tls.build_server_sslctx(sslconfig)


def test_server_needs_a_certificate(pki: TempPKI) -> None:
    """A server's sslconfig without cert_file, or with the key alone, is refused."""
    with pytest.raises(ValueError, match="expected a 'cert_file'"):
        tls.build_server_sslctx({"ca_file": pki.server_sslconfig["ca_file"]})
    sslconfig = pki.server_sslconfig
    del sslconfig["cert_file"]
    with pytest.raises(ValueError, match="'cert_file' beside 'key_file'"):
        tls.build_server_sslctx(sslconfig)


def test_client_key_needs_its_certificate(pki: TempPKI) -> None:
    """A client may have no certificate, but no key without one."""
    tls.build_client_sslctx(pki.anonymous_client_sslconfig)
    sslconfig = pki.client_sslconfig
    del sslconfig["cert_file"]
    with pytest.raises(ValueError, match="'cert_file' beside 'key_file'"):
        tls.build_client_sslctx(sslconfig)


def test_client_without_ca_trusts_the_system_and_checks_names(pki: TempPKI) -> None:
    """The system's CAs sign for everybody, so the name has to be checked then."""
    sslctx = tls.build_client_sslctx({})
    assert sslctx.verify_mode == ssl.CERT_REQUIRED
    assert sslctx.check_hostname
    with pytest.raises(ValueError, match=r"expected True.*system's CAs.*got False"):
        tls.build_client_sslctx({"check_hostname": False})
    with serving(pki.anonymous_server_sslconfig) as server:
        with pytest.raises(TLSError, match="certificate verify failed"):
            exchange({}, server.address)
        assert exchange(pki.anonymous_client_sslconfig, server.address) == b"hello"


@pytest.mark.parametrize("value", [None, 0, 1, "False"])
def test_check_hostname_is_a_bool(pki: TempPKI, value: object) -> None:
    """Nothing that is merely true or false passes for True or False."""
    with pytest.raises(TypeError, match="expected True or False, got"):
        tls.build_client_sslctx({**pki.client_sslconfig, "check_hostname": value})


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (None, TypeError),
        (1.3, TypeError),
        (b"TLSv1.3", TypeError),
        ("TLSv1.1", ValueError),
        ("1.3", ValueError),
        ("tlsv1.3", ValueError),
        (ssl.TLSVersion.TLSv1_1, ValueError),
        (ssl.TLSVersion.MINIMUM_SUPPORTED, ValueError),
    ],
)
def test_minimum_version_is_one_of_two(
    pki: TempPKI, value: object, kind: type[Exception]
) -> None:
    """The error names both that are allowed."""
    for build, sslconfig in [
        (tls.build_server_sslctx, pki.server_sslconfig),
        (tls.build_client_sslctx, pki.client_sslconfig),
    ]:
        with pytest.raises(kind, match=r"expected 'TLSv1\.3' or 'TLSv1\.2', got"):
            build({**sslconfig, "minimum_version": value})


@pytest.mark.parametrize("value", ["TLSv1.2", ssl.TLSVersion.TLSv1_2])
def test_minimum_version_can_be_a_str_or_a_member(pki: TempPKI, value: object) -> None:
    """Both spellings set it, and 1.3 is what comes without."""
    sslctx = tls.build_client_sslctx({**pki.client_sslconfig, "minimum_version": value})
    assert sslctx.minimum_version == ssl.TLSVersion.TLSv1_2
    sslctx = tls.build_client_sslctx(pki.client_sslconfig)
    assert sslctx.minimum_version == ssl.TLSVersion.TLSv1_3


def test_contexts_keep_the_defaults_of_python(pki: TempPKI) -> None:
    """Strict verification and all else that the standard library switches on stays."""
    for purpose, sslctx in [
        (ssl.Purpose.CLIENT_AUTH, tls.build_server_sslctx(pki.server_sslconfig)),
        (ssl.Purpose.SERVER_AUTH, tls.build_client_sslctx(pki.client_sslconfig)),
    ]:
        default = ssl.create_default_context(purpose)
        assert sslctx.verify_flags & default.verify_flags == default.verify_flags
        kept = default.options & ~ssl.OP_IGNORE_UNEXPECTED_EOF
        assert sslctx.options & kept == kept
        assert not sslctx.options & ssl.OP_IGNORE_UNEXPECTED_EOF
        if sys.version_info >= (3, 13):
            assert sslctx.verify_flags & ssl.VERIFY_X509_STRICT


def test_sslconfig_is_not_changed(pki: TempPKI) -> None:
    """The caller's dict is only read."""
    sslconfig = pki.server_sslconfig
    tls.build_server_sslctx(sslconfig)
    assert sslconfig == pki.server_sslconfig


def test_check_builds_nothing(pki: TempPKI) -> None:
    """A parent process can check the sslconfig that its child will build from."""
    tls.check_server_sslconfig(pki.server_sslconfig)
    tls.check_client_sslconfig(pki.client_sslconfig)
    with pytest.raises(ValueError, match="got 'x'"):
        tls.check_server_sslconfig({**pki.server_sslconfig, "x": 1})
    with pytest.raises(ValueError, match="got 'x'"):
        tls.check_client_sslconfig({**pki.client_sslconfig, "x": 1})


# --------------------------------------------------------------------------------------
# One certificate: a look at it, and nobody but its owner


def look(address: Any, timeout: float = TIMEOUT) -> bytes:
    return tls.read_certificate(socket.create_connection(address[:2], TIMEOUT), timeout)


def test_a_certificate_can_be_seen_without_trusting_it(pki: TempPKI) -> None:
    """It is the one that a client who trusts it sees; silence has its deadline."""
    with serving(pki.anonymous_server_sslconfig) as server:
        with connected(pki.anonymous_client_sslconfig, server.address) as sslsock:
            tls.write_close_notify(sslsock)
            verified = sslsock.getpeercert(True)
        assert look(server.address) == verified
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(SlowPeerError),
    ):
        look(silent.getsockname(), timeout=0.1)


def test_a_pinned_context_is_for_one_certificate(tmp_path: Path) -> None:
    """The owner of another one is refused, also of the same key and name."""
    from datetime import timedelta

    from cryptography.hazmat.primitives.asymmetric import ec

    from tests.devices import build_pem, parse_der

    key = ec.generate_private_key(ec.SECP256R1())
    pem, twin = (build_pem(cn="x", key=key, last=timedelta(days=n)) for n in (1, 2))
    file = tmp_path / "server.pem"
    file.write_bytes(pem)
    config = {"cert_file": str(file), "allow_unauthenticated_clients": True}
    with serving(config) as server:
        for other in (parse_der(twin), parse_der(build_pem(cn="x"))):
            with pytest.raises(TLSError, match="this side refused"):
                exchange(tls.build_pinned_sslctx(other), server.address)
        pinned = tls.build_pinned_sslctx(parse_der(pem))
        assert exchange(pinned, server.address) == b"hello"
    assert pinned.minimum_version == ssl.TLSVersion.TLSv1_3
    tls.check_client_sslctx(pinned)


@pytest.mark.parametrize("certificate", [b"", b"x"])
def test_nothing_can_be_pinned_to_no_certificate(certificate: bytes) -> None:
    """Least of all may the system's CAs take its place."""
    with pytest.raises((ValueError, OSError)):
        tls.build_pinned_sslctx(certificate)


# --------------------------------------------------------------------------------------
# ca_path and revocation lists


@pytest.fixture
def ca_path(pki: TempPKI, tmp_path: Path) -> str:
    """A directory with the CA of clients, under the name that OpenSSL looks for."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command")
    ca_file = pki.server_sslconfig["ca_file"]
    command = [openssl, "x509", "-noout", "-subject_hash", "-in", ca_file]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    (tmp_path / f"{run.stdout.strip()}.0").write_bytes(Path(ca_file).read_bytes())
    return str(tmp_path)


def test_ca_path_is_used(pki: TempPKI, ca_path: str) -> None:
    """A directory of CAs authenticates as a file of them does."""
    sslconfig = pki.server_sslconfig
    del sslconfig["ca_file"]
    sslconfig["ca_path"] = ca_path
    with serving(sslconfig) as server:
        assert exchange(pki.client_sslconfig, server.address) == b"hello"
        with pytest.raises(TLSError, match="not of a CA that it trusts"):
            exchange(pki.client_sslconfig_for("wrong_ca"), server.address)


def test_ca_path_without_hashed_names_is_refused(pki: TempPKI, tmp_path: Path) -> None:
    """OpenSSL would find nothing in it, and the handshakes would fail mysteriously."""
    (tmp_path / "ca.pem").write_bytes(
        Path(pki.server_sslconfig["ca_file"]).read_bytes()
    )
    sslconfig = {**pki.server_sslconfig, "ca_path": str(tmp_path)}
    with pytest.raises(ValueError, match=r"'ca_path'.*openssl rehash"):
        tls.build_server_sslctx(sslconfig)


def test_an_empty_ca_path_trusts_nobody(pki: TempPKI, tmp_path: Path) -> None:
    """At both ends; whom it comes to trust later needs no other context."""
    empty = str(tmp_path)
    server_sslconfig, client_sslconfig = pki.server_sslconfig, pki.client_sslconfig
    with serving({**server_sslconfig, "ca_path": empty}) as server:
        # The control: it adds nothing to the CA of a file, and takes nothing away.
        assert exchange(client_sslconfig, server.address) == b"hello"
        ca_file = client_sslconfig.pop("ca_file")
        client_sslconfig["ca_path"] = empty
        with pytest.raises(TLSError, match="this side refused"):
            exchange(client_sslconfig, server.address)
    del server_sslconfig["ca_file"], client_sslconfig["ca_path"]
    client_sslconfig["ca_file"] = ca_file
    server_sslconfig["ca_path"] = empty
    assert tls.build_server_sslctx(server_sslconfig).verify_mode == ssl.CERT_REQUIRED
    with (
        serving(server_sslconfig) as server,
        pytest.raises(TLSError, match="not of a CA that it trusts"),
    ):
        exchange(client_sslconfig, server.address)


def test_ca_path_is_a_directory(pki: TempPKI) -> None:
    """A file is not what ca_path is for, nor is nothing at all."""
    for path in (pki.server_sslconfig["ca_file"], "/nonexistent"):
        with pytest.raises(ValueError, match=r"'ca_path'.*a directory that exists"):
            tls.build_server_sslctx({**pki.server_sslconfig, "ca_path": path})


def test_ca_file_with_only_a_crl_is_refused(pki: TempPKI, tmp_path: Path) -> None:
    """Nobody could ever be trusted with it."""
    text = Path(pki.server_sslconfig["ca_file"]).read_text()
    crl = tmp_path / "crl.pem"
    crl.write_text(text[text.index("-----BEGIN X509 CRL") :])
    with pytest.raises(ValueError, match="at least one CA certificate"):
        tls.build_server_sslctx({**pki.server_sslconfig, "ca_file": str(crl)})


def test_crl_in_the_ca_file_is_obeyed(pki: TempPKI, tmp_path: Path) -> None:
    """A revoked client stays out; without the list in the file it would get in."""
    revoked = pki.client_sslconfig_for("revoked")
    with serving(pki.server_sslconfig) as server:
        with pytest.raises(TLSError, match="was revoked"):
            exchange(revoked, server.address)
        assert exchange(pki.client_sslconfig, server.address) == b"hello"
    text = Path(pki.server_sslconfig["ca_file"]).read_text()
    bare = tmp_path / "bare.pem"
    bare.write_text(text[: text.index("-----BEGIN X509 CRL")])
    with serving({**pki.server_sslconfig, "ca_file": str(bare)}) as server:
        assert exchange(revoked, server.address) == b"hello"


# --------------------------------------------------------------------------------------
# Ready contexts


def test_ready_contexts_are_taken_as_they_are(pki: TempPKI) -> None:
    """make_ returns the very context, or builds one of a dict."""
    server = tls.build_server_sslctx(pki.server_sslconfig)
    client = tls.build_client_sslctx(pki.client_sslconfig)
    assert tls.make_server_sslctx(server) is server
    assert tls.make_client_sslctx(client) is client
    assert tls.make_server_sslctx(pki.server_sslconfig) is not server
    assert tls.make_client_sslctx(pki.client_sslconfig) is not client


@pytest.mark.parametrize("value", [None, "sslctx", 17, []])
def test_neither_context_nor_dict_is_refused(value: Any) -> None:
    """The error says which two would do."""
    for make in (tls.make_server_sslctx, tls.make_client_sslctx):
        with pytest.raises(TypeError, match=r"ssl\.SSLContext or an sslconfig dict"):
            make(value)


def test_context_of_the_other_side_is_refused(pki: TempPKI) -> None:
    """Swapped contexts are found before any connection."""
    server = tls.build_server_sslctx(pki.server_sslconfig)
    client = tls.build_client_sslctx(pki.client_sslconfig)
    with pytest.raises(ValueError, match="PROTOCOL_TLS_SERVER, for a server, got"):
        tls.check_server_sslctx(client)
    with pytest.raises(ValueError, match="PROTOCOL_TLS_CLIENT, for a client, got"):
        tls.check_client_sslctx(server)
    tls.check_server_sslctx(server)
    tls.check_client_sslctx(client)


def test_context_without_a_clear_stance_is_refused() -> None:
    """CERT_OPTIONAL on a server, anything but CERT_REQUIRED on a client."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.check_server_sslctx(server)
    server.verify_mode = ssl.CERT_OPTIONAL
    with pytest.raises(ValueError, match="got CERT_OPTIONAL"):
        tls.check_server_sslctx(server)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.check_client_sslctx(client)
    client.check_hostname = False
    tls.check_client_sslctx(client)
    for mode in (ssl.CERT_NONE, ssl.CERT_OPTIONAL):
        client.verify_mode = mode
        with pytest.raises(ValueError, match=f"CERT_REQUIRED, got {mode.name}"):
            tls.check_client_sslctx(client)


def test_option_bits_do_not_matter() -> None:
    """S26: a context is fine whatever its option bits are in this OpenSSL."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.options &= ~server.options
    tls.check_server_sslctx(server)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.options &= ~client.options
    tls.check_client_sslctx(client)


# --------------------------------------------------------------------------------------
# Handshakes


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_tls_1_3_with_client_certificate_by_default(pki: TempPKI, host: str) -> None:
    """D19: both sides end at TLS 1.3, and the server knows the client's name."""
    with (
        serving(pki.server_sslconfig, host) as server,
        connected(pki.client_sslconfig, server.address) as sslsock,
    ):
        sslsock.sendall(b"hello")
        assert sslsock.recv(1000) == b"hello"
        cipher, peercert = tls.peer_info(sslsock)
    [(server_cipher, client_cert)] = server.peers
    assert cipher == server_cipher
    assert cipher is not None
    assert cipher[1] == "TLSv1.3"
    assert any(name in cipher[0] for name in AEAD)
    assert peercert is not None
    assert (("commonName", "server"),) in peercert["subject"]
    assert (("commonName", "client"),) in client_cert["subject"]


def test_anonymous_client_has_no_certificate(pki: TempPKI) -> None:
    """Where clients need none the peer certificate is None; the cipher is there."""
    with serving(pki.anonymous_server_sslconfig) as server:
        assert exchange(pki.anonymous_client_sslconfig, server.address) == b"hello"
    [(cipher, peercert)] = server.peers
    assert cipher[1] == "TLSv1.3"
    assert peercert is None


def test_server_sends_no_session_tickets(pki: TempPKI) -> None:
    """Nothing resumes a session, so no time is spent on tickets for it."""
    default = tls.build_server_sslctx(pki.server_sslconfig)
    default.num_tickets = 2
    for sslctx, expected in [(pki.server_sslconfig, False), (default, True)]:
        with (
            serving(sslctx) as server,
            connected(pki.client_sslconfig, server.address) as sslsock,
        ):
            sslsock.sendall(b"hello")
            assert sslsock.recv(1000) == b"hello"
            session = sslsock.session
            assert session is not None
            assert session.has_ticket is expected


def limited(sslconfig: dict[str, Any], version: ssl.TLSVersion) -> ssl.SSLContext:
    """A client that knows nothing newer than `version`."""
    sslctx = tls.build_client_sslctx({**sslconfig, "minimum_version": "TLSv1.2"})
    sslctx.maximum_version = version
    return sslctx


def test_tls_1_2_is_refused_unless_asked_for(pki: TempPKI) -> None:
    """The default server refuses it; one with minimum_version takes it, AEAD only."""
    old_client = limited(pki.client_sslconfig, ssl.TLSVersion.TLSv1_2)
    with serving(pki.server_sslconfig) as server:
        with pytest.raises(TLSError, match="does not accept the TLS versions"):
            exchange(old_client, server.address)
        assert exchange(pki.client_sslconfig, server.address) == b"hello"
    lenient = {**pki.server_sslconfig, "minimum_version": "TLSv1.2"}
    with serving(lenient) as server:
        assert exchange(old_client, server.address) == b"hello"
        assert exchange(pki.client_sslconfig, server.address) == b"hello"
    (old, _), (new, _) = server.peers
    assert old[1] == "TLSv1.2"
    assert old[0].startswith("ECDHE-")
    assert any(name in old[0] for name in AEAD)
    assert new[1] == "TLSv1.3"


def test_default_client_refuses_a_tls_1_2_server(pki: TempPKI) -> None:
    """A server that is stuck at 1.2 is refused, unless the client asked for it."""
    sslctx = tls.build_server_sslctx(
        {**pki.server_sslconfig, "minimum_version": "TLSv1.2"}
    )
    sslctx.maximum_version = ssl.TLSVersion.TLSv1_2
    with serving(sslctx) as server:
        with pytest.raises(TLSError, match="does not accept the TLS versions"):
            exchange(pki.client_sslconfig, server.address)
        lenient = {**pki.client_sslconfig, "minimum_version": "TLSv1.2"}
        assert exchange(lenient, server.address) == b"hello"


def test_suites_without_aead_or_forward_secrecy_are_refused(pki: TempPKI) -> None:
    """S7: a 1.2 peer that offers only CBC or only RSA key exchange gets nothing."""
    lenient = {**pki.server_sslconfig, "minimum_version": "TLSv1.2"}
    weak = limited(pki.client_sslconfig, ssl.TLSVersion.TLSv1_2)
    weak.set_ciphers("ECDHE-ECDSA-AES256-SHA384:ECDHE-ECDSA-AES128-SHA")
    with serving(lenient) as server, pytest.raises(TLSError, match="did not offer"):
        exchange(weak, server.address)
    for build, sslconfig in [
        (tls.build_server_sslctx, pki.server_sslconfig),
        (tls.build_client_sslctx, pki.client_sslconfig),
    ]:
        sslctx = build({**sslconfig, "minimum_version": "TLSv1.2"})
        for cipher in sslctx.get_ciphers():
            assert cipher["aead"], cipher
            assert cipher["protocol"] == "TLSv1.3" or "ECDHE" in cipher["name"]


@pytest.mark.parametrize(
    ("case", "why"),
    [
        ("no_certificate", "requires a client certificate"),
        ("expired", "has expired"),
        ("not_yet_valid", "not valid, or not yet"),
        ("wrong_ca", "not of a CA that it trusts"),
        ("self_signed", "not of a CA that it trusts"),
        ("revoked", "was revoked"),
    ],
)
def test_refused_client_is_told_why(pki: TempPKI, case: str, why: str) -> None:
    """The client's error names the server's reason; the server goes on serving."""
    with serving(pki.server_sslconfig) as server:
        with pytest.raises(TLSError, match=f"the peer refused.*{why}"):
            exchange(pki.client_sslconfig_for(case), server.address)
        assert exchange(pki.client_sslconfig, server.address) == b"hello"
    [error] = server.errors
    assert "this side" in str(error)


@pytest.mark.parametrize(
    ("case", "why"),
    [
        ("expired", "certificate has expired"),
        ("not_yet_valid", "certificate is not yet valid"),
        ("wrong_host", "IP address mismatch"),
        ("wrong_ca", "unable to get local issuer certificate"),
        ("self_signed", "self-signed certificate"),
        ("revoked", "certificate revoked"),
    ],
)
def test_client_refuses_the_server_and_says_why(
    pki: TempPKI, case: str, why: str
) -> None:
    """S2 and its kin: each wrong certificate has its own words; a right one serves."""
    with (
        serving(pki.server_sslconfig_for(case)) as server,
        pytest.raises(TLSError, match=f"certificate verify failed: {why}"),
    ):
        exchange(pki.client_sslconfig, server.address)
    [error] = server.errors
    assert str(error).startswith("the peer refused the connection")
    with serving(pki.server_sslconfig_for("valid")) as server:
        assert exchange(pki.client_sslconfig, server.address) == b"hello"


def test_host_name_is_checked_unless_switched_off_by_name(pki: TempPKI) -> None:
    """S2: another name fails; with check_hostname False it goes through."""
    with serving(pki.server_sslconfig) as server:
        for name in ("localhost", "127.0.0.1", "::1", "localhost."):
            assert exchange(pki.client_sslconfig, server.address, name) == b"hello"
        with pytest.raises(TLSError, match=r"not valid for 'example\.com'"):
            exchange(pki.client_sslconfig, server.address, "example.com")
        unchecked = {**pki.client_sslconfig, "check_hostname": False}
        assert exchange(unchecked, server.address, "example.com") == b"hello"


def test_plain_http_to_a_tls_port_is_answered(pki: TempPKI) -> None:
    """The server notices, may answer in the clear, and goes on serving."""
    with serving(pki.server_sslconfig) as server:
        with socket.create_connection(server.address, timeout=TIMEOUT) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert sock.recv(1000).startswith(b"HTTP/1.1 400 ")
        assert exchange(pki.client_sslconfig, server.address) == b"hello"
    [error] = server.errors
    assert str(error) == "the peer sent plain HTTP to a TLS port"


def test_tls_to_a_plain_port_is_explained(pki: TempPKI) -> None:
    """A client that meets plain HTTP says so."""

    def answer() -> None:
        sock, _ = listener.accept()
        with sock:
            sock.recv(1000)
            sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(TLSError, match="not TLS, perhaps plain HTTP"):
            exchange(pki.client_sslconfig, listener.getsockname())
        thread.join(TIMEOUT)


def test_peer_that_closes_in_the_handshake_is_explained(pki: TempPKI) -> None:
    """A close instead of an answer is a TLSError, not a bare EOF."""
    ours, theirs = socket.socketpair()
    sslctx = tls.build_client_sslctx(pki.client_sslconfig)
    with tls.wrap_client(sslctx, ours, "localhost") as sslsock:
        theirs.close()
        with pytest.raises(TLSError, match=r"the peer (closed|broke)") as info:
            tls.handshake(sslsock, TIMEOUT)
    assert isinstance(info.value, ConnectionError)


@pytest.mark.parametrize("side", ["server", "client"])
def test_silent_peer_ends_at_the_deadline(pki: TempPKI, side: str) -> None:
    """The deadline is for the handshake as a whole, so a drip does not extend it."""
    ours, theirs = socket.socketpair()
    if side == "server":
        sslctx = tls.build_server_sslctx(pki.server_sslconfig)
        sslsock = tls.wrap_server(sslctx, ours)
    else:
        sslctx = tls.build_client_sslctx(pki.client_sslconfig)
        sslsock = tls.wrap_client(sslctx, ours, "localhost")
    done = threading.Event()

    def drip() -> None:
        for byte in b"\x16\x03\x01\x02\x00" + bytes(200):
            theirs.send(bytes([byte]))
            if done.wait(0.05):
                return

    thread = threading.Thread(target=drip)
    with theirs, sslsock:
        thread.start()
        start = time.monotonic()
        with pytest.raises(SlowPeerError, match=r"within 0\.3 s"):
            tls.handshake(sslsock, 0.3)
        assert 0.25 < time.monotonic() - start < 3
        done.set()
        thread.join(TIMEOUT)


def test_end_of_stream_differs_from_truncation(pki: TempPKI) -> None:
    """With a close_notify a read gives b''; without one it is a ragged end."""
    for polite in (True, False):
        ours, theirs = socket.socketpair()
        server = tls.wrap_server(tls.build_server_sslctx(pki.server_sslconfig), ours)
        client = tls.wrap_client(
            tls.build_client_sslctx(pki.client_sslconfig), theirs, "localhost"
        )
        thread = threading.Thread(target=tls.handshake, args=(server, TIMEOUT))
        thread.start()
        tls.handshake(client, TIMEOUT)
        thread.join(TIMEOUT)
        with server:
            if polite:
                tls.write_close_notify(client)
            client.close()
            if polite:
                assert server.recv(100) == b""
            else:
                with pytest.raises(OSError, match="without a goodbye") as info:
                    server.recv(100)
                assert tls.is_ragged_eof(info.value)
                assert not tls.is_tls_failure(info.value)


def test_closing_words_never_raise(pki: TempPKI) -> None:
    """On a connection that is gone, or never was, the polite end does nothing."""
    ours, theirs = socket.socketpair()
    sslctx = tls.build_client_sslctx(pki.client_sslconfig)
    sslsock = tls.wrap_client(sslctx, ours, "localhost")
    tls.write_close_notify(sslsock)
    theirs.close()
    tls.write_close_notify(sslsock)
    tls.write_under_tls(sslsock, b"x")
    error = OSError("the first failure")
    assert tls.read_refusal(sslsock, error) is error
    sslsock.close()
    tls.write_close_notify(sslsock)
    tls.write_under_tls(sslsock, b"x")
    assert tls.read_refusal(sslsock, error) is error


# --------------------------------------------------------------------------------------
# Names


@pytest.mark.parametrize(
    ("host", "name"),
    [
        (None, None),
        ("localhost", "localhost"),
        ("example.com.", "example.com"),
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("fe80::1%3", "fe80::1"),
    ],
)
def test_server_hostname_is_what_a_certificate_names(
    host: str | None, name: str | None
) -> None:
    """A zone id and a final dot go; everything else stays as it is."""
    assert tls.build_server_hostname(host) == name


@pytest.mark.parametrize(
    "host", ["localhost:80", "[::1]", "[::1]:80", "::1:x", "", ".", "%eth0", ".com"]
)
def test_server_hostname_has_no_port(host: str) -> None:
    """S29: a port, brackets or nothing at all is an error that shows what came."""
    with pytest.raises(ValueError, match="without port and brackets") as info:
        tls.build_server_hostname(host)
    assert repr(host) in str(info.value)


def test_sni_is_sent_without_port(pki: TempPKI) -> None:
    """S29: the server sees the bare name."""
    seen: list[str | None] = []
    sslctx = tls.build_server_sslctx(pki.server_sslconfig)
    sslctx.sni_callback = lambda sock, name, ctx: seen.append(name)
    with serving(sslctx) as server:
        exchange(pki.client_sslconfig, server.address, "localhost")
    assert seen == ["localhost"]


def test_missing_name_is_an_error_only_where_it_is_checked(pki: TempPKI) -> None:
    """None goes with check_hostname False, and with nothing else."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sslctx = tls.build_client_sslctx(pki.client_sslconfig)
        with pytest.raises(ValueError, match=r"server_hostname: expected .*got None"):
            tls.wrap_client(sslctx, ours, None)
        sslctx.check_hostname = False
        tls.wrap_client(sslctx, ours, None).close()


# --------------------------------------------------------------------------------------
# Explanations


def test_unknown_reasons_are_passed_on() -> None:
    """An error that has no sentence of its own still says what OpenSSL said."""
    error = ssl.SSLError(1, "[SSL: SOMETHING_NEW] something new")
    assert "something new" in tls.explain(error)
    alert = ssl.SSLError(1, "alert")
    alert.reason = "TLSV1_ALERT_SOME_NEW_ALERT"
    assert tls.explain(alert) == "the peer refused the connection: some new alert"
    assert tls.explain(TimeoutError()) == "the peer did not answer in time"
    assert "Connection reset" in tls.explain(
        ConnectionResetError(104, "Connection reset")
    )
    assert isinstance(tls.build_tls_error(error), TLSError)


def test_refuser_is_told_from_bystanders() -> None:
    """A verification failure is ours, an alert theirs, a silence nobody's."""
    alert = ssl.SSLError(1, "alert")
    alert.reason = "TLSV1_ALERT_UNKNOWN_CA"
    assert tls.who_refused(ssl.SSLCertVerificationError(1, "x")) == "this side"
    assert tls.who_refused(alert) == "the peer"
    assert tls.who_refused(ConnectionResetError()) == "the peer"
    assert tls.who_refused(EmptyHeadError()) == "the peer"
    for error in (
        TimeoutError(),
        ConnectionRefusedError(),
        ValueError(),
        ssl.SSLError(),
    ):
        assert tls.who_refused(error) is None

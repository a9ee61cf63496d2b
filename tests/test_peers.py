"""degu.peers: identities, trusted peers, pinned TLS and pairing over HTTP."""

from __future__ import annotations

import json
import os
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from degu import EmbeddedSSLServer, tls
from degu import peers as peers_module
from degu.client import Client, Response, SSLClient
from degu.errors import DeguError, ParseError, TLSError
from degu.pairing import (
    Invitation,
    Pairing,
    PairingError,
    Peer,
    State,
    build_fingerprint,
    build_peer_fields,
    parse_invitation,
)
from degu.peers import (
    Identity,
    PairingApp,
    PairingWindow,
    PeerClient,
    PeerFileError,
    PeersOnly,
    PeerStore,
    accept_invitation,
    check_certificate,
    expand_address,
    format_invitation,
    load_identity,
    make_identity,
    pair,
    require_peer,
)
from degu.server import Server, SSLServer

posix = pytest.mark.skipif(os.name != "posix", reason="about POSIX file modes")

LOOPBACK = ("127.0.0.1", 0)
DEADLINE = 10.0


def build_pem(
    *,
    cn: str = "degu-test",
    ca: bool | None = False,
    first: timedelta = timedelta(days=-1),
    last: timedelta = timedelta(days=1),
    key: Any = None,
    issuer_key: Any = None,
    issuer: str | None = None,
) -> bytes:
    """A key and a certificate, as wrong as a test wants them."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name.from_rfc4514_string(f"CN={cn}"))
        .issuer_name(x509.Name.from_rfc4514_string(f"CN={issuer or cn}"))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + first)
        .not_valid_after(now + last)
    )
    for extension, critical in peers_module._build_extensions(key.public_key()):
        if not isinstance(extension, x509.BasicConstraints):
            builder = builder.add_extension(extension, critical)
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca, None), True)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    certificate = builder.sign(issuer_key or key, algorithm)
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ) + certificate.public_bytes(serialization.Encoding.PEM)


def parse_der(pem: bytes) -> bytes:
    parsed = x509.load_pem_x509_certificate(pem)
    return parsed.public_bytes(serialization.Encoding.DER)


def write_identity(directory: Path, pem: bytes) -> Identity:
    """An identity that make_identity would not make."""
    directory.mkdir(mode=0o700)
    path = directory / "identity.pem"
    path.touch(mode=0o600)
    path.write_bytes(pem)
    return Identity(str(path), parse_der(pem))


class Device:
    """An identity and a store, as an application has them."""

    def __init__(self, directory: Path, name: str, pem: bytes | None = None) -> None:
        self.name = name
        where = directory / name
        self.identity = (
            make_identity(where) if pem is None else write_identity(where, pem)
        )
        self.store = PeerStore(where / "peers")
        self.me = self.identity.build_peer(name)


def introduce(*devices: Device) -> None:
    for one in devices:
        for other in devices:
            if one is not other:
                one.store.add(other.me)


@pytest.fixture
def anna(tmp_path: Path) -> Device:
    return Device(tmp_path, "Anna")


@pytest.fixture
def ben(tmp_path: Path) -> Device:
    return Device(tmp_path, "Ben")


@pytest.fixture
def mallory(tmp_path: Path) -> Device:
    return Device(tmp_path, "Mallory")


def poll(condition: Callable[[], Any]) -> Any:
    """Wait until `condition()` is true, at most for DEADLINE seconds."""
    deadline = time.monotonic() + DEADLINE
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.005)
    return value


# --- identity ---------------------------------------------------------------------


def test_an_identity_is_made_once(tmp_path):
    """The first call makes key and certificate, the next ones load them."""
    made = make_identity(tmp_path / "new" / "device")

    assert make_identity(tmp_path / "new" / "device") == made
    assert load_identity(tmp_path / "new" / "device") == made
    assert made.fingerprint == build_fingerprint(made.certificate)
    assert make_identity(tmp_path / "other").fingerprint != made.fingerprint


@posix
def test_an_identity_is_for_its_owner_only(tmp_path):
    """Mode 0700 and 0600, whatever the umask is; nothing else is left there."""
    program = (
        "import os, sys; os.umask(int(sys.argv[2], 8))\n"
        "from degu.peers import make_identity; make_identity(sys.argv[1])"
    )
    for umask in ("000", "077"):
        directory = tmp_path / umask
        subprocess.run(
            [sys.executable, "-c", program, directory, umask], check=True, timeout=60
        )

        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert [path.name for path in directory.iterdir()] == ["identity.pem"]
        assert stat.S_IMODE((directory / "identity.pem").stat().st_mode) == 0o600


def test_the_certificate_is_what_strict_verifiers_want(anna):
    """P-256, end entity, for both ends of a connection, ten years, nothing personal."""
    parsed = x509.load_der_x509_certificate(anna.identity.certificate)
    key = parsed.public_key()

    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp256r1"
    assert parsed.subject == parsed.issuer
    assert parsed.subject.rfc4514_string().startswith("CN=degu-")
    assert parsed.not_valid_after_utc > datetime.now(UTC) + timedelta(days=3600)
    check_certificate(anna.identity.certificate)


def test_processes_that_start_at_once_get_one_identity(tmp_path):
    """Eight processes make it at the same time: all have the same, and it is whole."""
    program = (
        "import sys; from degu.peers import make_identity\n"
        "sys.stdin.read(1); print(make_identity(sys.argv[1]).id)"
    )
    children = [
        subprocess.Popen(
            [sys.executable, "-c", program, tmp_path / "device"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(8)
    ]
    ids = {child.communicate("\n", timeout=60)[0] for child in children}

    assert all(child.returncode == 0 for child in children)
    assert ids == {load_identity(tmp_path / "device").id + "\n"}


def test_threads_that_start_at_once_get_one_identity(tmp_path):
    """The lock also holds between the threads of one process."""
    with ThreadPoolExecutor(8) as pool:
        made = set(pool.map(make_identity, [tmp_path / "device"] * 16))

    assert len(made) == 1


def test_a_half_written_identity_is_none(tmp_path):
    """What a process left that was killed while it wrote is cleaned up."""
    directory = tmp_path / "device"
    directory.mkdir(mode=0o700)
    (directory / "identity.pem.new").write_bytes(b"-----BEGIN PRIV")
    identity = make_identity(directory)
    assert os.listdir(directory) == ["identity.pem"]

    (directory / "identity.pem.new").write_bytes(b"-----BEGIN PRIV")
    assert load_identity(directory) == identity
    assert os.listdir(directory) == ["identity.pem"]


def test_a_half_written_store_is_the_old_one(anna, ben):
    """A process that was killed while it wrote leaves the store as it was."""
    introduce(anna, ben)
    new = Path(anna.store.path + ".new")
    new.write_bytes(b'{"version": 1, "pee')
    again = PeerStore(anna.store.directory)

    assert again.peers == anna.store.peers
    assert not new.exists()


def test_there_has_to_be_an_identity_to_load(tmp_path):
    """Loading makes nothing up."""
    with pytest.raises(PeerFileError, match="expected an identity, got no such file"):
        load_identity(tmp_path / "device")


@posix
@pytest.mark.parametrize("name", ["", "identity.pem"])
def test_an_identity_that_others_can_reach_is_refused(tmp_path, name):
    """A key that was open to others may be known to them; the user has to decide."""
    directory = tmp_path / "device"
    made = make_identity(directory)
    path = directory / name
    right = stat.S_IMODE(path.stat().st_mode)

    for wrong in (0o040, 0o004, 0o002):
        path.chmod(right | wrong)
        with pytest.raises(PeerFileError, match=f"expected mode {right:04o}"):
            make_identity(directory)

    path.chmod(right)
    assert make_identity(directory) == made


KEY = ec.generate_private_key(ec.SECP256R1())
GOOD = build_pem()


@pytest.mark.parametrize(
    ("pem", "message"),
    [
        (b"", "damaged file of 0 bytes"),
        (b"\0" * 100, "damaged"),
        (GOOD[:-100], "damaged"),
        (GOOD[: GOOD.index(b"-----BEGIN CERT")], "damaged"),
        (GOOD[GOOD.index(b"-----BEGIN CERT") :], "damaged"),
        (
            GOOD[: GOOD.index(b"-----BEGIN CERT")]
            + build_pem()[len(GOOD[: GOOD.index(b"-----BEGIN CERT")]) :],
            "got another key's",
        ),
        (build_pem(last=timedelta(hours=-1)), "expired on"),
        (build_pem(first=timedelta(hours=1)), "not valid before"),
        (build_pem(ca=True), "got a CA"),
    ],
)
def test_a_damaged_identity_is_explained_and_kept(tmp_path, pem, message):
    """Each way of being wrong has its message, and no byte of the file is lost."""
    directory = tmp_path / "device"
    directory.mkdir(mode=0o700)
    path = directory / "identity.pem"
    path.touch(mode=0o600)
    path.write_bytes(pem)

    for _ in range(2):
        with pytest.raises(PeerFileError, match=message) as caught:
            make_identity(directory)
        assert "the file was left as it is" in str(caught.value)
        assert path.read_bytes() == pem


def test_an_identity_that_is_not_a_file_is_explained(tmp_path):
    """A directory in its place is an error with the path."""
    (tmp_path / "device" / "identity.pem").mkdir(parents=True)
    (tmp_path / "device").chmod(0o700)
    (tmp_path / "device" / "identity.pem").chmod(0o700)
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(PeerFileError, match=r"identity\.pem"):
        make_identity(tmp_path / "device")
    with pytest.raises(PeerFileError, match="expected a directory"):
        make_identity(tmp_path / "file")


def test_the_extra_is_named_where_it_is_missing(tmp_path):
    """Without cryptography the import works and the first use says what to install."""
    program = (
        "import sys; sys.modules['cryptography'] = None\n"
        "from degu.peers import make_identity\n"
        "make_identity(sys.argv[1])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "device"],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert result.returncode == 1
    assert "ImportError" in result.stderr
    assert "pip install 'degu[peers]'" in result.stderr


def test_importing_it_does_not_import_cryptography():
    """A server that only looks peers up does not pay for it."""
    program = (
        "import sys, degu.peers; print([m for m in sys.modules if 'cryptography' in m])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )

    assert result.stdout.strip() == "[]"


# --- certificates -----------------------------------------------------------------


def test_certificates_that_can_not_be_pinned_are_refused():
    """CAs, those that somebody else signed, expired ones and garbage."""
    other = ec.generate_private_key(ec.SECP256R1())
    check_certificate(parse_der(build_pem()))
    check_certificate(parse_der(build_pem(key=ed25519.Ed25519PrivateKey.generate())))

    for pem, message in (
        (build_pem(ca=True), "got a CA"),
        (build_pem(ca=None), "got a CA"),
        (build_pem(issuer_key=other), "expected a self-signed one"),
        (build_pem(issuer_key=other, issuer="other"), "expected a self-signed one"),
        (build_pem(last=timedelta(minutes=-1)), "expired on"),
        (build_pem(first=timedelta(minutes=1)), "is not valid before"),
    ):
        with pytest.raises(ParseError, match=message):
            check_certificate(parse_der(pem))
    for der in (b"", b"x", parse_der(GOOD)[:-1], parse_der(GOOD) + b"\0"):
        with pytest.raises(ParseError, match="certificate: expected"):
            check_certificate(der)


def test_certificates_are_found_by_openssl():
    """The names among the anchors are those that openssl itself computes."""
    for cn in ("degu-00ff", "Ängström  GmbH", "x" * 64, "A  b\\, C"):
        pem = build_pem(cn=cn)
        expected = subprocess.run(
            ["openssl", "x509", "-noout", "-subject_hash"],
            input=pem,
            capture_output=True,
            check=True,
            timeout=60,
        ).stdout.decode()
        parsed = x509.load_pem_x509_certificate(pem)

        assert peers_module._build_subject_hash(parsed) == expected.strip()


def read_body(response: Response) -> bytes:
    assert response.body is not None
    data = response.body.read()
    assert isinstance(data, bytes)
    return data


# --- the store --------------------------------------------------------------------


def test_a_store_keeps_peers(anna, ben, mallory):
    """What was added is there for the next PeerStore; removed is removed."""
    told = ben.identity.build_peer("Ben", [("192.0.2.1", 80), ("fe80::1", 80, 0, 3)])
    added = anna.store.add(told)
    anna.store.add(mallory.me)
    again = PeerStore(anna.store.directory)

    assert again.peers == anna.store.peers
    assert [peer.name for peer in again.peers] == ["Ben", "Mallory"]
    assert again.get(ben.identity.fingerprint) == added
    assert added.addresses == (("192.0.2.1", 80), ("fe80::1", 80, 0, 0))
    assert datetime.fromisoformat(added.added).tzinfo is not None

    assert again.remove(mallory.identity.fingerprint) is True
    assert again.remove(mallory.identity.fingerprint) is False
    assert anna.store.get(mallory.identity.fingerprint) is None
    assert anna.store.peers == (added,)


def test_a_peer_is_brought_up_to_date(anna, ben):
    """Added again under another name it stays one peer, since when it was."""
    first = anna.store.add(ben.me)
    second = anna.store.add(ben.identity.build_peer("Ben's new name"))

    assert anna.store.peers == (second,)
    assert second.added == first.added


def test_a_peer_is_replaced_as_one_change(anna, ben, mallory):
    """A renewed certificate takes the place of the old; only of a trusted one."""
    old = anna.store.add(ben.me)
    new = anna.store.replace(ben.identity.fingerprint, mallory.me)

    assert anna.store.peers == (new,)
    assert new.added == old.added
    with pytest.raises(KeyError):
        anna.store.replace(ben.identity.fingerprint, ben.me)
    assert anna.store.peers == (new,)


@posix
def test_a_store_is_for_its_owner_only(anna, ben):
    """Files 0600 and directories 0700; no temporary file stays."""
    anna.store.add(ben.me)
    root = Path(anna.store.directory)
    files = [path for path in root.rglob("*") if path.is_file()]

    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    assert sorted(path.suffix for path in files) == [".0", ".json", ".r0"]
    Path(anna.store.path).chmod(0o644)
    with pytest.raises(PeerFileError, match="expected mode 0600"):
        PeerStore(anna.store.directory)


def test_what_can_not_be_pinned_is_not_stored(anna):
    """A CA would let in whom it likes, an expired one nobody."""
    for pem in (build_pem(ca=True), build_pem(last=timedelta(hours=-1))):
        with pytest.raises(ParseError):
            anna.store.add(Peer("x", parse_der(pem)))

    assert anna.store.peers == ()


def damage(change: Callable[[Any], Any]) -> Callable[[bytes], bytes]:
    def apply(data: bytes) -> bytes:
        document = json.loads(data)
        change(document)
        return json.dumps(document).encode()

    return apply


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: b"", "expected JSON"),
        (lambda data: data[:-10], "expected JSON"),
        (lambda data: b"\xff" + data, "expected JSON"),
        (lambda data: b"[]", "expected the version 1"),
        (damage(lambda doc: doc.update(version=2)), "expected the version 1"),
        (damage(lambda doc: doc.update(peers={})), "peers: expected a list"),
        (damage(lambda doc: doc.update(peers=[1])), "peers: expected objects"),
        (damage(lambda doc: doc["peers"][0].pop("name")), "name: expected a str"),
        (
            damage(lambda doc: doc["peers"][0].update(fingerprint="x")),
            "fingerprint: expected 56",
        ),
        (
            damage(lambda doc: doc["peers"][0].update(certificate="QUJD")),
            "fingerprint: expected .* that of the certificate",
        ),
    ],
)
def test_a_damaged_store_is_explained_and_kept(anna, ben, change, message):
    """Nobody is trusted by it, nothing is written over it, the message has its path."""
    anna.store.add(ben.me)
    path = Path(anna.store.path)
    damaged = change(path.read_bytes())
    path.write_bytes(damaged)

    with pytest.raises(PeerFileError, match=message):
        PeerStore(anna.store.directory)
    with pytest.raises(PeerFileError, match=r"peers\.json"):
        anna.store.add(ben.me)
    with pytest.raises(PeerFileError):
        anna.store.get(ben.identity.fingerprint)
    with pytest.raises(PeerFileError):
        anna.store.remove(ben.identity.fingerprint)

    assert path.read_bytes() == damaged


def test_changes_made_at_once_are_all_kept(anna, tmp_path):
    """Stores of several threads and processes on one directory lose no peer."""
    everybody = [Device(tmp_path, f"device {n}").me for n in range(12)]
    program = (
        "import sys\n"
        "from degu.peers import PeerStore, make_identity\n"
        "store = PeerStore(sys.argv[1])\n"
        "for path in sys.argv[2:]:\n"
        "    store.add(make_identity(path).build_peer('x'))\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, anna.store.directory]
        + [str(tmp_path / f"child {n}") for n in range(6)]
    )
    with ThreadPoolExecutor(4) as pool:
        list(
            pool.map(lambda peer: PeerStore(anna.store.directory).add(peer), everybody)
        )
    assert child.wait(60) == 0

    assert len(anna.store.peers) == 18


def test_a_stuck_process_is_not_waited_for_for_ever(anna, ben, monkeypatch):
    """The lock of somebody else is an error after its time, not a hang."""
    monkeypatch.setattr(peers_module, "LOCK_TIMEOUT", 0.05)
    with (
        peers_module._locked(anna.store.directory),
        pytest.raises(PeerFileError, match=r"expected it to be free within 0\.05 s"),
    ):
        anna.store.add(ben.me)

    anna.store.add(ben.me)


def test_two_certificates_of_one_name_are_both_anchors(anna):
    """Two subjects with one hash get the suffixes that OpenSSL counts through."""
    one, two = (Peer(name, parse_der(build_pem())) for name in ("one", "two"))
    anna.store.add(one)
    anna.store.add(two)
    names = sorted(os.listdir(anna.store.anchors))

    assert len(names) == 3
    assert names[1].partition(".")[0] == names[2].partition(".")[0]
    assert {name.partition(".")[2] for name in names} == {"r0", "0", "1"}

    anna.store.remove(one.fingerprint)
    names = os.listdir(anna.store.anchors)
    assert sorted(name.partition(".")[2] for name in names) == ["0", "r0"]


def test_a_client_needs_a_trusted_peer(anna, ben):
    """There is no sslconfig to talk to somebody who is not in the store."""
    with pytest.raises(PairingError, match="expected a trusted peer, got 'Ben'"):
        anna.store.client_sslconfig(anna.identity, ben.me)


# --- TLS, with the ssl module on both ends ----------------------------------------


class Greeter:
    """Accepts TLS connections, asks `require_peer`, and answers with who came."""

    def __init__(self, sslctx: ssl.SSLContext, store: PeerStore) -> None:
        self.sslctx = sslctx
        self.refused: list[bytes | None] = []
        self.let_in: list[Peer] = []
        self.failed: list[str] = []
        self.on_connect = require_peer(store, self.refused.append)
        self.listener = socket.create_server(LOOPBACK)
        self.address = self.listener.getsockname()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        while True:
            sock, _ = self.listener.accept()
            sock.settimeout(DEADLINE)
            with sock:
                if sock.recv(1, socket.MSG_PEEK) == b"\0":
                    return
                self.greet(sock)

    def greet(self, sock: socket.socket) -> None:
        try:
            sslsock = self.sslctx.wrap_socket(sock, server_side=True)
        except OSError as error:
            self.failed.append(str(error))
            return
        session: dict[str, Any] = {}
        with sslsock:
            if self.on_connect(session, sslsock):
                self.let_in.append(session["peer"])
                sslsock.sendall(b"welcome")

    def visit(self, sslctx: ssl.SSLContext) -> bytes:
        """What a client with `sslctx` is told; raises what ssl raises."""
        with (
            socket.create_connection(self.address, DEADLINE) as sock,
            sslctx.wrap_socket(sock) as sslsock,
        ):
            return sslsock.recv(100)

    def close(self) -> None:
        with socket.create_connection(self.address) as sock:
            sock.sendall(b"\0")
        self.thread.join(DEADLINE)
        self.listener.close()


@contextmanager
def greeting(device: Device) -> Iterator[Greeter]:
    config = device.store.server_sslconfig(device.identity)
    greeter = Greeter(tls.build_server_sslctx(config), device.store)
    try:
        yield greeter
    finally:
        greeter.close()


def build_sslctx(device: Device, peer: Device) -> ssl.SSLContext:
    config = device.store.client_sslconfig(device.identity, peer.me)
    return tls.build_client_sslctx(config)


def test_contexts_verify_both_sides(anna, ben):
    """TLS 1.3 only, certificates required, no other anchor, no tickets."""
    introduce(anna, ben)
    server = tls.build_server_sslctx(anna.store.server_sslconfig(anna.identity))
    client = build_sslctx(anna, ben)

    for sslctx in (server, client):
        assert sslctx.minimum_version is ssl.TLSVersion.TLSv1_3
        assert sslctx.verify_mode is ssl.CERT_REQUIRED
    assert server.num_tickets == 0  # A resumed session shows no certificate again.
    assert server.cert_store_stats()["x509"] == 0
    assert client.cert_store_stats() == {"x509": 1, "crl": 0, "x509_ca": 0}
    assert client.get_ca_certs(binary_form=True) == []


def test_trusted_peers_connect(anna, ben):
    """Each accepts the other's certificate, and knows who it is."""
    introduce(anna, ben)
    with greeting(anna) as greeter:
        assert greeter.visit(build_sslctx(ben, anna)) == b"welcome"

    assert [peer.name for peer in greeter.let_in] == ["Ben"]
    assert greeter.let_in[0] == anna.store.get(ben.identity.fingerprint)


def test_an_unknown_client_is_refused_in_the_handshake(anna, ben, mallory):
    """One that was never introduced does not even reach on_connect."""
    introduce(anna, ben)
    mallory.store.add(anna.me)
    with greeting(anna) as greeter:
        with pytest.raises(ssl.SSLError, match="UNKNOWN_CA"):
            greeter.visit(build_sslctx(mallory, anna))
        assert greeter.visit(build_sslctx(ben, anna)) == b"welcome"

    assert "self-signed certificate" in greeter.failed[0]
    assert greeter.refused == []


def test_a_client_without_certificate_is_refused_in_the_handshake(anna, ben):
    """There is no connection without one."""
    introduce(anna, ben)
    config = ben.store.client_sslconfig(ben.identity, anna.me)
    with greeting(anna) as greeter:
        nobody = {k: v for k, v in config.items() if k not in ("cert_file", "key_file")}
        with pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"):
            greeter.visit(tls.build_client_sslctx(nobody))
        assert greeter.visit(tls.build_client_sslctx(config)) == b"welcome"

    assert "did not return a certificate" in greeter.failed[0]
    assert greeter.refused == []


def trust_anyway(device: Device, peer: Peer) -> None:
    """Put a peer into a store that would not take it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peers_module, "check_certificate", lambda certificate: None)
        device.store.add(peer)


def test_an_expired_certificate_is_refused_in_the_handshake(anna, tmp_path):
    """A pinned client whose time is over does not get in any more; nor a server."""
    old = Device(tmp_path, "old", build_pem(cn="old", last=timedelta(hours=-1)))
    new = Device(tmp_path, "new", build_pem(cn="new", last=timedelta(hours=1)))
    for device in (old, new):
        trust_anyway(anna, device.me)
        device.store.add(anna.me)
    with greeting(anna) as greeter:
        with pytest.raises(ssl.SSLError, match="CERTIFICATE_EXPIRED"):
            greeter.visit(build_sslctx(old, anna))
        assert greeter.visit(build_sslctx(new, anna)) == b"welcome"
    assert "certificate has expired" in greeter.failed[0]
    with greeting(old) as greeter, pytest.raises(ssl.SSLError, match="has expired"):
        greeter.visit(build_sslctx(anna, old))


def test_a_peer_can_not_vouch_for_others(anna, tmp_path):
    """What a trusted peer signs with its key is refused by both ends."""
    key = ec.generate_private_key(ec.SECP256R1())
    ben = Device(tmp_path, "Ben", build_pem(cn="ben", key=key))
    forged = build_pem(cn="mallory", issuer="ben", issuer_key=key)
    chained = forged + (GOOD and build_pem(cn="ben", key=key))
    mallory = Device(tmp_path, "Mallory", chained)
    introduce(anna, ben)
    mallory.store.add(anna.me)
    with greeting(anna) as greeter:
        with pytest.raises(ssl.SSLError):
            greeter.visit(build_sslctx(mallory, anna))
        assert greeter.visit(build_sslctx(ben, anna)) == b"welcome"
    with greeting(mallory) as greeter, pytest.raises(ssl.SSLError):
        greeter.visit(build_sslctx(anna, ben))

    assert greeter.let_in == []


def test_another_certificate_of_the_same_key_and_name_is_refused(anna, tmp_path):
    """Pinned is the certificate, not its key or its name."""
    key = ec.generate_private_key(ec.SECP256R1())
    ben = Device(tmp_path, "Ben", build_pem(cn="ben", key=key))
    twin = Device(tmp_path, "twin", build_pem(cn="ben", key=key))
    introduce(anna, ben)
    twin.store.add(anna.me)
    with greeting(anna) as greeter:
        with pytest.raises(ssl.SSLError):
            greeter.visit(build_sslctx(twin, anna))
        assert greeter.visit(build_sslctx(ben, anna)) == b"welcome"
    with greeting(twin) as greeter, pytest.raises(ssl.SSLError):
        greeter.visit(build_sslctx(anna, ben))


def test_tls_1_2_is_refused(anna, ben):
    """There is one version, so none to be talked down to."""
    introduce(anna, ben)
    config = ben.store.client_sslconfig(ben.identity, anna.me)
    old = tls.build_client_sslctx(config | {"minimum_version": "TLSv1.2"})
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with greeting(anna) as greeter:
        with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
            greeter.visit(old)
        assert greeter.visit(tls.build_client_sslctx(config)) == b"welcome"


def test_the_wrong_server_is_refused_in_the_handshake(anna, ben, mallory):
    """A client for one peer refuses all others, also those it trusts elsewhere."""
    introduce(anna, ben, mallory)
    with greeting(mallory) as greeter:
        with pytest.raises(ssl.SSLCertVerificationError):
            greeter.visit(build_sslctx(ben, anna))
        assert greeter.visit(build_sslctx(ben, mallory)) == b"welcome"

    assert [peer.name for peer in greeter.let_in] == ["Ben"]


def test_changes_count_without_a_restart(anna, ben):
    """One context, from before anybody was trusted: let in, removed, let in again."""
    ben.store.add(anna.me)
    with greeting(anna) as greeter:
        with pytest.raises(ssl.SSLError, match="UNKNOWN_CA"):
            greeter.visit(build_sslctx(ben, anna))

        PeerStore(anna.store.directory).add(ben.me)
        assert greeter.visit(build_sslctx(ben, anna)) == b"welcome"

        # OpenSSL remembers the anchor: this is where require_peer is needed.
        PeerStore(anna.store.directory).remove(ben.identity.fingerprint)
        assert greeter.visit(build_sslctx(ben, anna)) == b""
        assert greeter.refused == [ben.identity.certificate]

        PeerStore(anna.store.directory).add(ben.me)
        assert greeter.visit(build_sslctx(ben, anna)) == b"welcome"


def test_a_new_context_does_not_know_removed_peers(anna, ben):
    """After a restart the handshake itself refuses them."""
    introduce(anna, ben)
    anna.store.remove(ben.identity.fingerprint)
    with greeting(anna) as greeter, pytest.raises(ssl.SSLError, match="UNKNOWN_CA"):
        greeter.visit(build_sslctx(ben, anna))

    assert greeter.refused == []


def test_nobody_gets_in_by_a_damaged_store(anna, ben, caplog):
    """What can't be read lets nobody in, and the log says why."""
    introduce(anna, ben)
    with greeting(anna) as greeter:
        assert greeter.visit(build_sslctx(ben, anna)) == b"welcome"
        Path(anna.store.path).write_bytes(b"?")
        assert greeter.visit(build_sslctx(ben, anna)) == b""

    assert "expected JSON, got a damaged file" in caplog.text


def test_nobody_gets_in_without_tls(anna):
    """A plain socket has no certificate."""
    refused: list[bytes | None] = []
    one, two = socket.socketpair()
    with one, two:
        assert require_peer(anna.store, refused.append)({}, one) is False

    assert refused == [None]


# --- Degu's server and client -----------------------------------------------------


def hello_app(request: Any) -> tuple[int, str, dict[str, Any], Any]:
    return (200, "OK", {}, request["session"]["peer"].name.encode())


@contextmanager
def serving(device: Device, app: Any) -> Iterator[Any]:
    config = device.store.server_sslconfig(device.identity)
    server = SSLServer(config, LOOPBACK, app)
    with server.running():
        yield server.address


def test_an_app_for_peers_knows_who_asks(anna, ben):
    """The peer is in the session; the client is a description for several threads."""
    introduce(anna, ben)
    with serving(anna, PeersOnly(hello_app, anna.store)) as address:
        client = PeerClient(ben.store, ben.identity, anna.me, address)
        response = client.get("/")
        assert read_body(response) == b"Ben"
        client.close()


def test_strangers_never_reach_the_app(anna, ben, mallory):
    """No byte of HTTP of an unknown, nameless or removed client is served."""
    introduce(anna, ben)
    mallory.store.add(anna.me)
    asked = []

    def app(request: Any) -> Any:
        asked.append(request["session"]["peer"].name)
        return (200, "OK", {}, None)

    with serving(anna, PeersOnly(app, anna.store)) as address:
        config = ben.store.client_sslconfig(ben.identity, anna.me)
        nobody = {k: v for k, v in config.items() if k not in ("cert_file", "key_file")}
        for client in (
            PeerClient(mallory.store, mallory.identity, anna.me, address),
            SSLClient(nobody, address),
        ):
            with pytest.raises(TLSError), client.connect() as connection:
                connection.get("/")
        with Client(address).connect() as connection:
            assert connection.get("/").status == 400  # without TLS
        client = PeerClient(ben.store, ben.identity, anna.me, address)
        with client.connect() as connection:
            assert connection.get("/").status == 200
        anna.store.remove(ben.identity.fingerprint)
        with pytest.raises(DeguError), client.connect() as connection:
            connection.get("/")

    assert asked == ["Ben"]


def build_app(directory: str) -> Any:
    """What a server's own process builds: the store is found by its directory."""
    return PeersOnly(hello_app, PeerStore(directory))


def test_a_server_in_its_own_process_learns_of_changes(anna, ben):
    """The sslconfig crosses over as a dict; who is new gets in, who is removed not."""
    ben.store.add(anna.me)
    config = anna.store.server_sslconfig(anna.identity)
    server = EmbeddedSSLServer(config, LOOPBACK, build_app, anna.store.directory)
    try:
        client = PeerClient(ben.store, ben.identity, anna.me, server.address)
        for trusted in (False, True, False, True):
            if trusted:
                anna.store.add(ben.me)
                with client.connect() as connection:
                    assert read_body(connection.get("/")) == b"Ben"
            else:
                anna.store.remove(ben.identity.fingerprint)
                with pytest.raises(DeguError), client.connect() as connection:
                    connection.get("/")
    finally:
        server.terminate()


def test_who_is_removed_while_connected_gets_no_further(anna, ben):
    """Its next request on the open connection is a 403, and the connection ends."""
    introduce(anna, ben)
    with serving(anna, PeersOnly(hello_app, anna.store)) as address:
        client = PeerClient(ben.store, ben.identity, anna.me, address)
        with client.connect() as connection:
            response = connection.get("/")
            assert (response.status, read_body(response)) == (200, b"Ben")
            anna.store.remove(ben.identity.fingerprint)
            assert connection.get("/").status == 403
            assert connection.closed


def test_the_apps_own_hook_comes_after(anna, ben):
    """An app's on_connect only sees trusted peers, and may refuse them too."""
    introduce(anna, ben)

    class App:
        answer: Any = True
        seen: list[str] = []  # noqa: RUF012

        def __call__(self, request: Any) -> Any:
            return hello_app(request)

        def on_connect(self, session: dict[str, Any], sock: Any) -> Any:
            self.seen.append(session["peer"].name)
            return self.answer

    app = App()
    with serving(anna, PeersOnly(app, anna.store)) as address:
        client = PeerClient(ben.store, ben.identity, anna.me, address)
        with client.connect() as connection:
            assert connection.get("/").status == 200
        app.answer = False
        with pytest.raises(DeguError), client.connect() as connection:
            connection.get("/")

    assert app.seen == ["Ben", "Ben"]


def test_a_client_refuses_another_server(anna, ben, mallory):
    """The handshake fails at the client, before it sends anything."""
    introduce(anna, ben, mallory)
    with serving(mallory, PeersOnly(hello_app, mallory.store)) as address:
        with pytest.raises(TLSError, match="this side refused the peer's certificate"):
            PeerClient(ben.store, ben.identity, anna.me, address).connect()
        with PeerClient(ben.store, ben.identity, mallory.me, address).connect() as ok:
            assert ok.get("/").status == 200


def test_a_client_compares_the_fingerprint_too(anna, ben, mallory):
    """Even with a context that would accept it, another certificate is refused."""
    introduce(anna, ben, mallory)
    with serving(mallory, PeersOnly(hello_app, mallory.store)) as address:
        client = PeerClient(ben.store, ben.identity, anna.me, address)
        client.sslctx.load_verify_locations(cadata=mallory.identity.certificate)
        with pytest.raises(TLSError, match="expected the fingerprint"):
            client.connect()


def test_a_client_forgets_removed_peers(anna, ben):
    """A description from before does not connect any more."""
    introduce(anna, ben)
    with serving(anna, PeersOnly(hello_app, anna.store)) as address:
        client = PeerClient(ben.store, ben.identity, anna.me, address)
        client.connect().close()
        ben.store.remove(anna.identity.fingerprint)
        with pytest.raises(PairingError, match="'Anna', which was removed"):
            client.connect()


# --- addresses --------------------------------------------------------------------


def test_link_local_addresses_are_tried_on_each_interface(monkeypatch):
    """The scope id is this machine's; all other addresses stay as they are."""
    monkeypatch.setattr(
        socket, "if_nameindex", lambda: [(1, "lo"), (2, "eth0"), (7, "wlan0")]
    )

    assert expand_address(("fe80::1", 80, 0, 0)) == [
        ("fe80::1", 80, 0, 2),
        ("fe80::1", 80, 0, 7),
    ]
    for address in (
        ("fe80::1", 80, 0, 2),
        ("2001:db8::1", 80, 0, 0),
        ("192.0.2.1", 80),
        "/run/x.sock",
        b"\0x",
        "/run",
    ):
        assert expand_address(address) == [address]


# --- pairing over HTTP ------------------------------------------------------------


def never(code: str, peer: Peer) -> bool:
    raise AssertionError("nobody should have been asked")


class Clock:
    """Monotonic seconds that a test moves on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def pairing(device: Device, **options: Any) -> Iterator[tuple[PairingApp, Any]]:
    app = PairingApp(device.identity, device.store, name=device.name, **options)
    server = SSLServer(app.sslconfig, LOOPBACK, app)
    with server.running():
        yield app, server.address


def send(
    device: Device, address: Any, message: dict[str, Any], server: Device
) -> tuple[int, dict[str, Any]]:
    """Send one message as any program could."""
    talk = peers_module._Conversation(
        device.identity, address, server.identity.certificate
    )
    with talk._client.connect() as connection:
        response = connection.post(
            "/", {"content-type": "application/json"}, json.dumps(message).encode()
        )
        return response.status, json.loads(read_body(response))


def test_two_devices_pair_over_http(anna, ben):
    """Both users see one code and say yes; then the peers connect, both ways."""
    codes: list[tuple[str, str]] = []
    told: list[Peer] = []

    def on_code(window: PairingWindow) -> None:
        assert window.code is not None
        assert window.peer is not None
        codes.append((window.code, window.peer.name))
        window.confirm()

    def compare(code: str, peer: Peer) -> bool:
        codes.append((code, peer.name))
        assert anna.store.peers == ()
        assert ben.store.peers == ()
        return True

    here, there = ("192.0.2.1", 1), ("192.0.2.2", 2)
    with pairing(anna, on_code=on_code, on_paired=told.append, addresses=[here]) as (
        app,
        address,
    ):
        window = app.open()
        peer = pair(
            ben.identity, ben.store, address, compare, name="Ben", addresses=[there]
        )
        assert window.wait(DEADLINE) == anna.store.peers[0]
        assert window.state is State.PAIRED

    assert codes[0][0] == codes[1][0]
    assert [name for _, name in codes] == ["Ben", "Anna"]
    assert told == list(anna.store.peers)
    assert (peer.fingerprint, peer.addresses) == (anna.identity.fingerprint, (here,))
    assert ben.store.peers == (peer,)
    assert anna.store.peers[0].addresses == (there,)
    with serving(anna, PeersOnly(hello_app, anna.store)) as address:
        client = PeerClient(ben.store, ben.identity, peer, address)
        assert read_body(client.get("/")) == b"Ben"
        client.close()


def test_the_responders_user_may_take_time(anna, ben):
    """The initiator asks again until the other user said yes, from another thread."""
    with pairing(anna) as (app, address), ThreadPoolExecutor(1) as pool:
        window = app.open()
        future = pool.submit(
            pair, ben.identity, ben.store, address, lambda c, p: True, name="Ben"
        )
        poll(lambda: window._pairing.peer_confirmed)
        assert not future.done()
        assert anna.store.peers == ()
        window.confirm()
        assert future.result(DEADLINE).name == "Anna"
        assert window.wait() is not None


def test_the_initiators_no_is_the_end(anna, ben):
    """Nobody is stored, though the responder's user said yes."""
    with pairing(anna, on_code=PairingWindow.confirm) as (app, address):
        window = app.open()
        with pytest.raises(PairingError, match="got this user's no"):
            pair(ben.identity, ben.store, address, lambda c, p: False, name="Ben")
        assert window.wait(DEADLINE) is None
        assert window.state is State.FAILED

    assert anna.store.peers == ben.store.peers == ()


def test_the_responders_no_is_the_end(anna, ben):
    """Nobody is stored, though the initiator's user said yes."""
    with pairing(anna, on_code=PairingWindow.refuse) as (app, address):
        window = app.open()
        with pytest.raises(PairingError, match="the peer refused"):
            pair(ben.identity, ben.store, address, lambda c, p: True, name="Ben")
        assert window.wait(DEADLINE) is None

    assert anna.store.peers == ben.store.peers == ()


def test_a_man_in_the_middle_shows_two_codes(anna, ben, mallory):
    """Mallory pairs with both at once; the codes differ, so the users say no."""
    seen: dict[str, str] = {}

    def on_code(window: PairingWindow) -> None:
        seen["Anna"] = window.code or ""

    def compare(code: str, peer: Peer) -> bool:
        seen["Ben"] = code
        return False

    with (
        pairing(anna, on_code=on_code) as (app, address),
        pairing(mallory) as (middle, middle_address),
        ThreadPoolExecutor(1) as pool,
    ):
        window = app.open()
        middle.open()
        to_anna = pool.submit(
            pair,
            mallory.identity,
            mallory.store,
            address,
            lambda c, p: True,
            name="Ben",
        )
        poll(lambda: "Anna" in seen)
        with pytest.raises(PairingError):
            pair(ben.identity, ben.store, middle_address, compare, name="Ben")
        # Once in a million runs Mallory guesses right.
        assert seen["Anna"] != seen["Ben"]
        window.refuse()
        with pytest.raises(PairingError):
            to_anna.result(DEADLINE)

    assert anna.store.peers == ben.store.peers == ()


def test_without_a_window_there_is_no_pairing(anna, ben):
    """Closed is how it begins, and how it ends."""
    compare = never
    with pairing(anna) as (app, address):
        with pytest.raises(PairingError, match="window, got none"):
            pair(ben.identity, ben.store, address, compare, name="Ben")
        app.open()
        app.close()
        with pytest.raises(PairingError, match="the peer refused"):
            pair(ben.identity, ben.store, address, compare, name="Ben")


def test_a_window_ends_by_itself(anna, ben):
    """After its time there is neither a first message nor a late yes."""
    clock = Clock()
    hello = Pairing("initiator", ben.me).start()
    with pairing(anna, clock=clock) as (app, address):
        window = app.open(60)
        clock.now += 60
        status, answer = send(ben, address, hello, anna)
        assert (status, answer["why"]) == (
            403,
            "expected an open pairing window, got its end",
        )
        assert window.state is State.FAILED
        assert window.wait() is None
        # Nobody came, so the next one may be opened at once.
        window = app.open(60)
        side = Pairing("initiator", ben.me)
        status, answer = send(ben, address, side.start(), anna)
        attempt = {"attempt": answer.pop("attempt")}
        reveal = side.receive(answer) or {}
        assert send(ben, address, reveal | attempt, anna)[0] == 200
        clock.now += 60
        with pytest.raises(PairingError, match="got its end"):
            window.confirm()
        assert send(ben, address, side.confirm() | attempt, anna)[0] == 403

    assert anna.store.peers == ()


def test_a_yes_that_comes_after_the_window_is_too_late(anna, ben):
    """The responder's user said yes in time, the initiator's did not."""
    clock = Clock()
    with pairing(anna, clock=clock, on_code=PairingWindow.confirm) as (app, address):
        window = app.open(60)
        side = Pairing("initiator", ben.me)
        _, answer = send(ben, address, side.start(), anna)
        attempt = {"attempt": answer.pop("attempt")}
        send(ben, address, (side.receive(answer) or {}) | attempt, anna)
        clock.now += 60
        assert send(ben, address, side.confirm() | attempt, anna)[0] == 403
        assert window.state is State.FAILED

    assert anna.store.peers == ()


def test_a_window_is_for_one_attempt(anna, ben, mallory):
    """A second device is refused, and the first goes on undisturbed."""
    with pairing(anna) as (app, address):
        window = app.open()
        side = Pairing("initiator", ben.me)
        _, answer = send(ben, address, side.start(), anna)
        attempt = {"attempt": answer.pop("attempt")}
        other = Pairing("initiator", mallory.me).start()
        for message in (
            other,
            {"type": "refuse", "why": "no"},
            {"type": "refuse", "why": "no", "attempt": "00"},
            {"type": "wait"},
            {"type": "confirm", "attempt": None},
        ):
            status, refusal = send(mallory, address, message, anna)
            assert (status, refusal["type"]) == (403, "refuse")
        reveal = side.receive(answer) or {}
        assert send(ben, address, reveal | attempt, anna) == (200, {"type": "wait"})
        assert window.code == side.code
        window.confirm()
        yes = send(ben, address, side.confirm() | attempt, anna)
        assert yes == (200, {"type": "confirm"})

    assert [peer.name for peer in anna.store.peers] == ["Ben"]


def test_a_wrong_message_uses_the_window_up(anna, ben):
    """Out of turn or malformed with the right attempt: over, the window too."""
    with pairing(anna) as (app, address):
        window = app.open()
        side = Pairing("initiator", ben.me)
        _, answer = send(ben, address, side.start(), anna)
        attempt = {"attempt": answer.pop("attempt")}
        assert send(ben, address, {"type": "confirm"} | attempt, anna)[0] == 403
        reveal = side.receive(answer) or {}
        assert send(ben, address, reveal | attempt, anna)[0] == 403
        assert window.state is State.FAILED
        assert window.code is None


def test_a_device_that_can_not_be_pinned_is_refused_before_the_code(anna, ben):
    """A CA's certificate does not come as far as the users."""
    hello = Pairing("initiator", Peer("Ben", parse_der(build_pem(ca=True)))).start()
    with pairing(anna) as (app, address):
        window = app.open()
        status, answer = send(ben, address, hello, anna)
        assert status == 403
        assert "got a CA" in answer["why"]
        assert window.state is State.FAILED


def test_failed_attempts_make_the_next_one_wait(anna, ben):
    """2, 4, 8 ... 300 seconds, until one succeeds: guessing takes for ever."""
    clock = Clock()
    with pairing(anna, clock=clock) as (app, address):
        for pause in (2, 4, 8, 16, 32, 64, 128, 256, 300, 300):
            window = app.open()
            with pytest.raises(PairingError, match="expected no open pairing window"):
                app.open()
            hello = Pairing("initiator", ben.me).start()
            assert send(ben, address, hello, anna)[0] == 200
            window.refuse()
            for _ in range(2):
                with pytest.raises(PairingError, match=r"expected a pause after \d+"):
                    app.open()
            clock.now += pause - 0.5
            with pytest.raises(PairingError, match="expected a pause"):
                app.open()
            clock.now += 1
        app._on_code = PairingWindow.confirm
        window = app.open()
        pair(ben.identity, ben.store, address, lambda c, p: True, name="Ben")
        app.open().refuse()
        app.open()


def test_a_store_that_can_not_be_written_pairs_nobody(anna, ben, monkeypatch):
    """The initiator is not told yes, and does not store either."""

    def fail(peer: Peer) -> Peer:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(anna.store, "add", fail)
    with pairing(anna) as (app, address), ThreadPoolExecutor(1) as pool:
        window = app.open()
        future = pool.submit(
            pair, ben.identity, ben.store, address, lambda c, p: True, name="Ben"
        )
        poll(lambda: window._pairing.peer_confirmed)
        with pytest.raises(OSError, match="No space"):
            window.confirm()
        with pytest.raises(PairingError):
            future.result(DEADLINE)
        assert window.wait() is None
        assert window.state is State.FAILED

    assert ben.store.peers == ()


def test_only_json_is_answered(anna, ben):
    """Other methods, types, sizes and contents are 400, and touch no window."""
    with pairing(anna) as (app, address):
        window = app.open()
        talk = peers_module._Conversation(
            ben.identity, address, anna.identity.certificate
        )
        json_type = {"content-type": "application/json"}
        for method, headers, body in (
            ("GET", {}, None),
            ("POST", {}, b"{}"),
            ("POST", {"content-type": "text/plain"}, b"{}"),
            ("PUT", json_type, b"{}"),
            ("POST", json_type, None),
            ("POST", json_type, b"[]"),
            ("POST", json_type, b"{"),
            ("POST", json_type, b"\xff"),
            ("POST", json_type, b"[" * 10_000),
            ("POST", json_type, b" " * 20_000 + b"{}"),
        ):
            with talk._client.connect() as connection:
                response = connection.request(method, "/", headers, body)
                assert response.status == 400
                assert json.loads(read_body(response))["type"] == "refuse"
        assert not window.attempted
        assert window.state is State.NEW


# --- invitations ------------------------------------------------------------------


def test_an_invitation_makes_two_devices_trust_each_other(anna, ben):
    """Pasted on the other side it is all that it takes, both ways, with addresses."""
    told: list[Peer] = []
    here, there = ("192.0.2.1", 1), ("192.0.2.2", 2)
    with pairing(anna, addresses=[here], on_paired=told.append) as (app, address):
        text = format_invitation(app.invite([address]))
        peer = accept_invitation(
            ben.identity,
            ben.store,
            parse_invitation(text),
            name="Ben",
            addresses=[there],
        )

    assert (peer.name, peer.addresses) == ("Anna", (here,))
    assert peer.fingerprint == anna.identity.fingerprint
    assert ben.store.peers == (peer,)
    assert anna.store.peers == tuple(told)
    assert (told[0].name, told[0].addresses) == ("Ben", (there,))
    assert told[0].fingerprint == ben.identity.fingerprint


def test_an_invitation_is_good_once(anna, ben, mallory):
    """Who comes second is refused, and finds out that somebody was first."""
    with pairing(anna) as (app, address):
        invitation = app.invite([address])
        accept_invitation(ben.identity, ben.store, invitation, name="Ben")
        with pytest.raises(PairingError, match="one that was used"):
            accept_invitation(
                mallory.identity, mallory.store, invitation, name="Mallory"
            )

    assert [peer.name for peer in anna.store.peers] == ["Ben"]
    assert mallory.store.peers == ()


def test_an_invitation_that_two_use_at_once_is_good_once(anna, ben, mallory):
    """There is no moment between looking it up and using it up."""
    with pairing(anna) as (app, address), ThreadPoolExecutor(2) as pool:
        invitation = app.invite([address])
        futures = [
            pool.submit(
                accept_invitation,
                device.identity,
                device.store,
                invitation,
                name=device.name,
            )
            for device in (ben, mallory)
        ]
        failures = [future.exception(DEADLINE) for future in futures]

    assert sorted(type(failure).__name__ for failure in failures) == [
        "NoneType",
        "PairingError",
    ]
    assert len(anna.store.peers) == 1


def test_an_invitation_expires_on_both_sides(anna, ben):
    """The client does not even try; the server does not trust the client's clock."""
    clock = Clock()
    with pairing(anna, clock=clock) as (app, address):
        expired = app.invite([address], seconds=-1)
        with pytest.raises(PairingError, match="expired 0 minutes ago"):
            accept_invitation(ben.identity, ben.store, expired, name="Ben")
        invitation = app.invite([address], seconds=60)
        clock.now += 60
        with pytest.raises(PairingError, match="is too old"):
            accept_invitation(ben.identity, ben.store, invitation, name="Ben")

    assert anna.store.peers == ben.store.peers == ()


def test_invitations_can_be_revoked(anna, ben):
    """All that are out at once; new ones are good."""
    with pairing(anna) as (app, address):
        invitation = app.invite([address])
        app.revoke_invitations()
        with pytest.raises(PairingError, match="was revoked"):
            accept_invitation(ben.identity, ben.store, invitation, name="Ben")
        accept_invitation(ben.identity, ben.store, app.invite([address]), name="Ben")


def test_a_wrong_token_is_refused(anna, ben):
    """A guess changes nothing for the invitation that is out."""
    with pairing(anna) as (app, address):
        good = app.invite([address])
        guess = Invitation(good.addresses, good.fingerprint, bytes(16), good.until)
        with pytest.raises(PairingError, match="expected one that is still good"):
            accept_invitation(ben.identity, ben.store, guess, name="Ben")
        accept = {"type": "accept"} | build_peer_fields(ben.me)
        for token in (None, 1, "", "zz", good.token.hex()[:-1]):
            assert send(ben, address, accept | {"token": token}, anna)[0] == 403
        assert send(ben, address, accept, anna)[0] == 403
        assert anna.store.peers == ()
        accept_invitation(ben.identity, ben.store, good, name="Ben")

    assert len(anna.store.peers) == 1


def test_an_invitation_is_not_used_up_by_a_bad_certificate(anna, ben):
    """What can't be pinned is refused before the token counts."""
    with pairing(anna) as (app, address):
        good = app.invite([address])
        bad = Peer("Ben", parse_der(build_pem(ca=True)))
        accept = {"type": "accept", "token": good.token.hex()} | build_peer_fields(bad)
        status, answer = send(ben, address, accept, anna)
        assert status == 403
        assert "got a CA" in answer["why"]
        accept_invitation(ben.identity, ben.store, good, name="Ben")


def test_nothing_is_sent_to_a_server_of_another_fingerprint(anna, ben, mallory):
    """Who listens on the address instead learns neither the token nor the name."""
    heard: list[Any] = []

    def app(request: Any) -> Any:
        heard.append(request)
        return (200, "OK", {}, None)

    with (
        pairing(anna) as (real, real_address),
        SSLServer(
            PairingApp(mallory.identity, mallory.store, name="Anna").sslconfig,
            LOOPBACK,
            app,
        ).running() as fake,
    ):
        good = real.invite([real_address])
        lured = Invitation((fake.address,), good.fingerprint, good.token, good.until)
        with pytest.raises(TLSError, match=r"expected the fingerprint .* invitation"):
            accept_invitation(ben.identity, ben.store, lured, name="Ben")
        assert heard == []
        assert ben.store.peers == ()

        # The control: with the real address behind it, the next one is tried.
        both = Invitation(
            (fake.address, real_address), good.fingerprint, good.token, good.until
        )
        assert accept_invitation(ben.identity, ben.store, both, name="Ben")
        assert heard == []


def test_a_server_that_is_swapped_after_the_look_is_refused(anna, ben, mallory):
    """Each connection is pinned anew: no message goes to another certificate."""
    with pairing(mallory) as (_, address):
        talk = peers_module._Conversation(
            ben.identity, address, anna.identity.certificate
        )
        with pytest.raises(TLSError, match="this side refused"):
            talk.send({"type": "wait"})


def test_nobody_there_is_an_error_of_the_connection(anna, ben):
    """No address answers: an OSError, as of any connection."""
    with socket.create_server(LOOPBACK) as listener:
        address = listener.getsockname()
    invitation = Invitation((address,), anna.identity.fingerprint, bytes(16), 2**33)

    with pytest.raises(OSError, match="refused"):
        accept_invitation(ben.identity, ben.store, invitation, name="Ben")


def test_a_server_that_is_no_pairing_server_is_told_apart(anna, ben):
    """An HTTPS server that answers something else is named as that."""

    def app(request: Any) -> Any:
        return (404, "Not Found", {}, b"<html>")

    config = PairingApp(anna.identity, anna.store, name="Anna").sslconfig
    with (
        SSLServer(config, LOOPBACK, app).running() as server,
        pytest.raises(PairingError, match="expected a pairing server, got 404"),
    ):
        pair(ben.identity, ben.store, server.address, never, name="Ben")


def test_a_plain_server_is_no_pairing_server(ben):
    """Without TLS there is no certificate to compare."""
    with (
        Server(LOOPBACK, lambda request: (200, "OK", {}, None)).running() as server,
        pytest.raises(TLSError),
    ):
        pair(ben.identity, ben.store, server.address, never, name="Ben")

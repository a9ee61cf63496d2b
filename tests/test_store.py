"""degu.store: whom a device trusts, and TLS with the ssl module on both ends."""

from __future__ import annotations

import json
import os
import socket
import ssl
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from degu import tls
from degu.errors import PairingError, ParseError, PeerFileError
from degu.pairing import Peer
from degu.peers import require_peer
from degu.store import PeerStore
from tests.devices import (
    DEADLINE,
    LOOPBACK,
    Device,
    a_device_anna,  # noqa: F401
    a_device_ben,  # noqa: F401
    a_device_mallory,  # noqa: F401
    build_pem,
    introduce,
    parse_der,
    trust_anyway,
)

posix = pytest.mark.skipif(os.name != "posix", reason="about POSIX file modes")


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
    assert sorted(path.suffix for path in files) == [".0", ".json"]
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


def test_a_half_written_store_is_the_old_one(anna, ben):
    """A process that was killed while it wrote leaves the store as it was."""
    introduce(anna, ben)
    new = Path(anna.store.path + ".new")
    new.write_bytes(b'{"version": 1, "pee')
    again = PeerStore(anna.store.directory)

    assert again.peers == anna.store.peers
    assert not new.exists()


def test_two_certificates_of_one_name_are_both_anchors(anna):
    """Two subjects with one hash get the suffixes that OpenSSL counts through."""
    one, two = (Peer(name, parse_der(build_pem())) for name in ("one", "two"))
    anna.store.add(one)
    anna.store.add(two)
    names = sorted(os.listdir(anna.store.anchors))

    assert len({name.partition(".")[0] for name in names}) == 1
    assert [name.partition(".")[2] for name in names] == ["0", "1"]

    anna.store.remove(one.fingerprint)
    (name,) = os.listdir(anna.store.anchors)
    assert name.partition(".")[2] == "0"


def test_a_client_needs_a_trusted_peer(anna, ben):
    """There is no sslconfig to talk to somebody who is not in the store."""
    with pytest.raises(PairingError, match="expected a trusted peer, got 'Ben'"):
        anna.store.client_sslconfig(anna.identity, ben.me)


# --- TLS, with the ssl module on both ends ----------------------------------------


class Greeter:
    """Accepts TLS connections, asks `require_peer`, and answers with who came."""

    def __init__(self, sslctx: ssl.SSLContext, store: PeerStore) -> None:
        self.sslctx = sslctx
        self.refused: list[str] = []
        self.let_in: list[Peer] = []
        self.failed: list[str] = []
        self.on_connect = require_peer(
            store, lambda address, error: self.refused.append(str(error))
        )
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
            try:
                return sslsock.recv(100)
            except ssl.SSLError as error:  # so early releases of 3.11 tell an end
                if not tls.is_ragged_eof(error):
                    raise
                return b""

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
    chained = forged + build_pem(cn="ben", key=key)
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
        assert greeter.refused == [
            f"expected a trusted peer, got the fingerprint {ben.identity.id}"
        ]

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

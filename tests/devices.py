"""Devices for tests: identities, stores, servers, and wrong certificates."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from degu import store
from degu.certificate import build_device_extensions
from degu.client import Response, SSLClient
from degu.identity import Identity, make_identity
from degu.meeting import PairingApp
from degu.pairing import Peer, format_message
from degu.server import SSLServer
from degu.store import PeerStore
from degu.tls import build_pinned_sslctx

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
    for extension, critical in build_device_extensions(key):
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


def trust_anyway(device: Device, peer: Peer) -> None:
    """Put a peer into a store that would not take it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "check_certificate", lambda certificate: None)
        device.store.add(peer)


@pytest.fixture(name="anna")
def a_device_anna(tmp_path: Path) -> Device:
    return Device(tmp_path, "Anna")


@pytest.fixture(name="ben")
def a_device_ben(tmp_path: Path) -> Device:
    return Device(tmp_path, "Ben")


@pytest.fixture(name="mallory")
def a_device_mallory(tmp_path: Path) -> Device:
    return Device(tmp_path, "Mallory")


def read_body(response: Response) -> bytes:
    assert response.body is not None
    data = response.body.read()
    assert isinstance(data, bytes)
    return data


def hello_app(request: Any) -> tuple[int, str, dict[str, Any], Any]:
    return (200, "OK", {}, request["session"]["peer"].name.encode())


@contextmanager
def serving(device: Device, app: Any) -> Iterator[Any]:
    config = device.store.server_sslconfig(device.identity)
    server = SSLServer(config, LOOPBACK, app)
    with server.running():
        yield server.address


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
    address: Any, message: dict[str, Any], server: Device
) -> tuple[int, dict[str, Any]]:
    """Send one message as any program could."""
    client = SSLClient(build_pinned_sslctx(server.identity.certificate), address)
    with client.connect() as connection:
        response = connection.post(
            "/", {"content-type": "application/json"}, format_message(message)
        )
        return response.status, json.loads(read_body(response))

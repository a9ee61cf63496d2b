"""Who this device is: a key and a self-signed certificate, made once.

    identity.pem     both of them, mode 0600

There is no CA that would vouch for a device, so others *pin* its certificate: they
accept just this one. `degu.certificate.check_certificate` tells what can be pinned.

Needs the extra ``degu[peers]`` (cryptography), which is imported where it is used.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from degu.address import Address
from degu.certificate import (
    build_certificate,
    build_device_extensions,
    build_name,
    build_subject_hash,
    check_certificate,
    format_certificate,
    format_key,
    format_pem,
    import_cryptography,
    make_key,
    parse_certificate,
    parse_key,
    parse_pem,
)
from degu.errors import PeerFileError
from degu.fingerprint import build_fingerprint, format_fingerprint
from degu.pairing import Peer
from degu.private import locked, make_directory, read_private, sweep, write_private

__all__ = [
    "Identity",
    "build_subject_hash",
    "check_certificate",
    "format_pem",
    "load_identity",
    "make_identity",
    "parse_certificate",
]

IDENTITY_FILE = "identity.pem"

LIFETIME = timedelta(days=3650)
"""How long a certificate is good: what is pinned needs no short life, and each new
one has to be told to every peer."""

CLOCK_SKEW = timedelta(days=1)
"""How much a peer's clock may be behind ours when a certificate is new."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A device's key and certificate; comes from `make_identity` or `load_identity`."""

    path: str
    """The PEM file with the private key and the certificate, mode 0600."""
    certificate: bytes
    """DER."""

    @property
    def fingerprint(self) -> bytes:
        """The SHA-256 of the certificate, 32 bytes."""
        return build_fingerprint(self.certificate)

    @property
    def id(self) -> str:
        """The fingerprint as people read it (`format_fingerprint`)."""
        return format_fingerprint(self.fingerprint)

    def build_peer(self, name: str, addresses: Iterable[Address] = ()) -> Peer:
        """Build what others may know of this device; `ValueError` as `Peer`."""
        return Peer(name, self.certificate, tuple(addresses))


def make_identity(directory: str | os.PathLike[str]) -> Identity:
    """Load the identity in `directory`, or make one there if there is none.

    A P-256 key and a self-signed certificate for ten years. Of several processes that
    do this at once, all get the same identity; a process that dies leaves a whole
    one or none. Raises `PeerFileError` as `load_identity`; what is there is never
    replaced.
    """
    directory = make_directory(directory)
    path = os.path.join(directory, IDENTITY_FILE)
    if not os.path.lexists(path):
        with locked(directory), suppress(FileExistsError):
            if not os.path.lexists(path):
                write_private(path, _build_identity_pem(), exclusive=True)
    return load_identity(directory)


def load_identity(directory: str | os.PathLike[str]) -> Identity:
    """Load the identity in `directory`.

    Raises `PeerFileError` where there is none, others could read it, the file is
    damaged, or the certificate expired.
    """
    directory = make_directory(directory)
    sweep(directory)
    path = os.path.join(directory, IDENTITY_FILE)
    try:
        certificate = _parse_identity_pem(read_private(path))
    except FileNotFoundError:
        raise PeerFileError(f"{path}: expected an identity, got no such file") from None
    except (ValueError, TypeError) as error:
        raise PeerFileError(f"{path}: {error}; the file was left as it is") from error
    return Identity(path, certificate)


def _build_identity_pem() -> bytes:
    import_cryptography()
    key = make_key()
    now = datetime.now(UTC)
    certificate = build_certificate(
        # A name of its own, since OpenSSL looks anchors up by it; it tells nothing.
        build_name(f"degu-{secrets.token_hex(16)}"),
        key,
        (now - CLOCK_SKEW, now + LIFETIME),
        build_device_extensions(key),
    )
    return format_key(key) + format_pem(certificate)


def _parse_identity_pem(data: bytes) -> bytes:
    """The certificate's DER; raises `ValueError` or `TypeError`."""
    import_cryptography()
    try:
        key, parsed = parse_key(data), parse_pem(data)
    except ValueError as error:
        raise ValueError(
            f"expected a private key and a certificate in PEM, got a damaged file "
            f"of {len(data)} bytes ({str(error).splitlines()[0][:80]})"
        ) from error
    if key.public_key() != parsed.public_key():
        raise ValueError("expected the certificate of this key, got another key's")
    certificate = format_certificate(parsed)
    check_certificate(certificate)
    return certificate

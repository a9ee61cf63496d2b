"""Who this device is: a key and a self-signed certificate, made once.

    identity.pem     both of them, mode 0600

There is no CA that would vouch for a device, so others *pin* its certificate: they
accept just this one. `check_certificate` tells what can be pinned.

Needs the extra ``degu[peers]`` (cryptography), which is imported where it is used.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from degu.address import Address
from degu.errors import ParseError, PeerFileError
from degu.fingerprint import build_fingerprint, format_fingerprint
from degu.pairing import Peer
from degu.private import locked, make_directory, read_private, sweep, write_private

if TYPE_CHECKING:
    from cryptography import x509

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


# --- certificates -----------------------------------------------------------------


def check_certificate(certificate: bytes, now: datetime | None = None) -> None:
    """Check that `certificate` (DER `bytes`) can be pinned.

    It has to be self-signed, of a subject that OpenSSL can look up, valid at `now`
    (by default: now) and no CA: one that may sign others would let in whom it
    likes. Raises `ParseError`.
    """
    parsed = parse_certificate(certificate)
    try:
        parsed.verify_directly_issued_by(parsed)
    except Exception as error:  # InvalidSignature, ValueError, TypeError
        raise ParseError(
            f"certificate: expected a self-signed one, got {parsed.issuer}'s: {error}"
        ) from error
    if _can_sign(parsed):
        raise ParseError(
            "certificate: expected one that can't sign others (CA:FALSE), got a CA"
        )
    _check_validity(parsed, datetime.now(UTC) if now is None else now)
    build_subject_hash(parsed)


def parse_certificate(certificate: bytes) -> x509.Certificate:
    """Parse a `certificate`, strictly DER; raises `ParseError`."""
    _import_cryptography()
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    try:
        parsed = x509.load_der_x509_certificate(certificate)
        canonical = parsed.public_bytes(Encoding.DER)
    except ValueError as error:
        raise ParseError(f"certificate: expected DER, got {error}") from error
    if canonical != certificate:
        raise ParseError("certificate: expected DER, got something around it")
    return parsed


def format_pem(parsed: x509.Certificate) -> bytes:
    """Format a certificate as PEM."""
    from cryptography.hazmat.primitives.serialization import Encoding

    return parsed.public_bytes(Encoding.PEM)


def _import_cryptography() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "degu.peers: expected the package 'cryptography', which is not installed: "
            "pip install 'degu[peers]'"
        ) from error


def _can_sign(parsed: x509.Certificate) -> bool:
    from cryptography import x509

    try:
        return parsed.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return True  # OpenSSL takes an old self-signed one without it for a CA.
    except ValueError as error:
        raise ParseError(f"certificate: expected X.509 v3, got {error}") from error


def _check_validity(parsed: x509.Certificate, now: datetime) -> None:
    first, last = parsed.not_valid_before_utc, parsed.not_valid_after_utc
    if not first <= now <= last:
        what = "expired on" if now > last else "is not valid before"
        when = last if now > last else first
        raise ParseError(
            f"certificate: expected one that is valid, got one that {what} "
            f"{when:%Y-%m-%d %H:%M} UTC (the clock here says {now:%Y-%m-%d %H:%M} UTC)"
        )


def build_subject_hash(parsed: x509.Certificate) -> str:
    """Build the 8 hex digits by which OpenSSL finds a certificate in a directory.

    As ``openssl x509 -subject_hash``: SHA-1 of the name with its texts as UTF-8, in
    lower case and without superfluous spaces. A file name, nothing is secured by it.
    Raises `ParseError` for a name of anything but texts.
    """
    sets = []
    for rdn in parsed.subject.rdns:
        attributes = list(rdn)
        if len(attributes) != 1 or not isinstance(attributes[0].value, str):
            raise ParseError(
                f"certificate: expected a subject of plain texts, got {parsed.subject}"
            )
        text = b" ".join(attributes[0].value.encode().split()).lower()
        pair = _build_oid(attributes[0].oid.dotted_string) + _build_der(0x0C, text)
        sets.append(_build_der(0x31, _build_der(0x30, pair)))
    digest = hashlib.sha1(b"".join(sets), usedforsecurity=False).digest()
    return digest[3::-1].hex()


def _build_der(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8)
    return bytes([tag, 0x80 | len(length)]) + length + content


def _build_oid(dotted: str) -> bytes:
    first, second, *rest = map(int, dotted.split("."))
    content = b""
    for number in (40 * first + second, *rest):
        digits = [number & 0x7F]
        while number := number >> 7:
            digits.append(0x80 | (number & 0x7F))
        content += bytes(reversed(digits))
    return _build_der(0x06, content)


# --- identity ---------------------------------------------------------------------


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
    _import_cryptography()
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    # A name of its own, since OpenSSL looks anchors up by it; it tells nothing.
    name = x509.Name.from_rfc4514_string(f"CN=degu-{secrets.token_hex(16)}")
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + LIFETIME)
    )
    for extension, critical in _build_extensions(key.public_key()):
        builder = builder.add_extension(extension, critical)
    certificate = builder.sign(key, hashes.SHA256())
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ) + format_pem(certificate)


def _build_extensions(public: Any) -> list[tuple[x509.ExtensionType, bool]]:
    """An end entity for both ends of a connection (RFC 5280 §4.2.1), as strict
    verifiers (VERIFY_X509_STRICT, the default from Python 3.13 on) want it.
    """
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    subject = x509.SubjectKeyIdentifier.from_public_key(public)
    authority = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(subject)
    return [
        (x509.BasicConstraints(ca=False, path_length=None), True),
        # A digital signature, and none of the eight other usages.
        (x509.KeyUsage(True, *[False] * 8), True),
        (x509.ExtendedKeyUsage(both), False),
        (subject, False),
        (authority, False),
    ]


def _parse_identity_pem(data: bytes) -> bytes:
    """The certificate's DER; raises `ValueError` or `TypeError`."""
    _import_cryptography()
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    try:
        key = serialization.load_pem_private_key(data, password=None)
        parsed = x509.load_pem_x509_certificate(data)
    except ValueError as error:
        raise ValueError(
            f"expected a private key and a certificate in PEM, got a damaged file "
            f"of {len(data)} bytes ({str(error).splitlines()[0][:80]})"
        ) from error
    if key.public_key() != parsed.public_key():
        raise ValueError("expected the certificate of this key, got another key's")
    certificate = parsed.public_bytes(serialization.Encoding.DER)
    check_certificate(certificate)
    return certificate

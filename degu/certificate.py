"""Certificates (X.509): made, written as PEM, parsed, and checked.

What an identity (:mod:`degu.identity`) and a CA of one's own (:mod:`degu.pki`) have in
common. Needs the package ``cryptography`` (extra ``peers``), which is imported where
it is used.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from degu.errors import ParseError, shown

if TYPE_CHECKING:
    from cryptography import x509

    Extensions = Sequence[tuple[x509.ExtensionType, bool]]
    """Each with whether it is critical."""

__all__ = [
    "build_ca_extensions",
    "build_certificate",
    "build_device_extensions",
    "build_name",
    "build_subject_hash",
    "check_certificate",
    "format_certificate",
    "format_key",
    "format_pem",
    "import_cryptography",
    "make_key",
    "parse_certificate",
    "parse_key",
    "parse_pem",
]


def import_cryptography() -> None:
    """Raise an `ImportError` that names the extra, where it is not installed."""
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "certificates need the package cryptography: pip install 'degu[peers]'"
        ) from error


# --- made -------------------------------------------------------------------------


def make_key() -> Any:
    """Make a private key (P-256)."""
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def build_certificate(
    subject: x509.Name,
    key: Any,
    validity: tuple[datetime, datetime],
    extensions: Extensions,
    *,
    ca: tuple[x509.Certificate, Any] | None = None,
) -> x509.Certificate:
    """Build the certificate of a private `key`.

    Signed by the `ca` (its certificate and private key), without one by itself.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives.hashes import SHA256

    issuer, issuer_key = (subject, key) if ca is None else (ca[0].subject, ca[1])
    first, last = validity
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(first)
        .not_valid_after(last)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(issuer_key, SHA256())


def build_ca_extensions(key: Any) -> Extensions:
    """Build what makes it a CA's, which signs certificates but no further CAs."""
    from cryptography import x509

    return [
        (x509.BasicConstraints(ca=True, path_length=0), True),
        (_build_usage(key_cert_sign=True, crl_sign=True), True),
        (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
    ]


def build_device_extensions(
    key: Any, ca: x509.Certificate | None = None, hosts: Iterable[str] = ()
) -> Extensions:
    """Build what makes it an end entity's, for both ends of a connection.

    As strict verifiers want it (RFC 5280 §4.2.1; VERIFY_X509_STRICT, the default from
    Python 3.13 on). `hosts` are names and IP addresses; raises `ValueError` for others.
    """
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID as Usage

    kind = x509.SubjectKeyIdentifier
    own = kind.from_public_key(key.public_key())
    issuer = own if ca is None else ca.extensions.get_extension_for_class(kind).value
    authority = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier
    extensions: list[tuple[x509.ExtensionType, bool]] = [
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_build_usage(digital_signature=True), True),
        (x509.ExtendedKeyUsage([Usage.SERVER_AUTH, Usage.CLIENT_AUTH]), False),
        (own, False),
        (authority(issuer), False),
    ]
    if names := [_build_host(host) for host in hosts]:
        extensions.append((x509.SubjectAlternativeName(names), False))
    return extensions


def build_name(text: str) -> x509.Name:
    """Build a name of one attribute, the common name."""
    from cryptography import x509

    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def _build_usage(**wanted: bool) -> x509.KeyUsage:
    from cryptography import x509

    names = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{name: wanted.get(name, False) for name in names})


def _build_host(host: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not re.fullmatch(r"(\*\.)?[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63})*", host):
        raise ValueError(f"host: expected a name or an IP address, got {shown(host)}")
    return x509.DNSName(host)


# --- written and parsed -----------------------------------------------------------


def format_key(key: Any) -> bytes:
    """Format a private key as PEM, not encrypted."""
    from cryptography.hazmat.primitives import serialization

    return bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


def parse_key(data: bytes) -> Any:
    """Parse what `format_key` gave; raises `ValueError` or `TypeError`."""
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    return load_pem_private_key(data, None)


def format_pem(parsed: x509.Certificate) -> bytes:
    """Format a certificate as PEM."""
    from cryptography.hazmat.primitives.serialization import Encoding

    return parsed.public_bytes(Encoding.PEM)


def parse_pem(data: bytes) -> x509.Certificate:
    """Parse what `format_pem` gave, wherever it is in `data`; raises `ValueError`."""
    from cryptography import x509

    return x509.load_pem_x509_certificate(data)


def format_certificate(parsed: x509.Certificate) -> bytes:
    """Format a certificate as DER."""
    from cryptography.hazmat.primitives.serialization import Encoding

    return parsed.public_bytes(Encoding.DER)


def parse_certificate(certificate: bytes) -> x509.Certificate:
    """Parse a `certificate`, strictly DER; raises `ParseError`."""
    import_cryptography()
    from cryptography import x509

    try:
        parsed = x509.load_der_x509_certificate(certificate)
        canonical = format_certificate(parsed)
    except ValueError as error:
        raise ParseError(f"certificate: expected DER, got {error}") from error
    if canonical != certificate:
        raise ParseError("certificate: expected DER, got something around it")
    return parsed


# --- checked ----------------------------------------------------------------------


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

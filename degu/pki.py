"""A small PKI of one's own: a CA in a folder, and certificates for devices.

For a handful of devices that belong together. `make_ca` and `make_certificate` write
PEM files, keys readable by their owner only, and give *sslconfigs* (:mod:`degu.tls`).
Devices that meet without a common CA pair up instead: :mod:`degu.peers`.

Needs the package ``cryptography`` (extra ``peers``).
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from degu.errors import shown

if TYPE_CHECKING:
    from cryptography import x509

__all__ = ["make_ca", "make_certificate"]

CA_DAYS = 3650
DEVICE_DAYS = 825
"""Days a device's certificate is valid by default: what Apple accepts at most."""

SKEW = timedelta(hours=1)
"""How wrong the clock of a device may be for a new certificate to be valid there."""

LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")


def make_ca(folder: str | os.PathLike[str]) -> tuple[str, bool]:
    """Make ``ca.pem`` and ``ca-key.pem`` in `folder`, unless they are there.

    Returns the path of ``ca.pem`` and whether it was made. Raises `OSError`,
    `ValueError` where only one of the two is there, `ImportError` without the extra.
    """
    _import_cryptography()
    folder = os.path.abspath(folder)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    cert_file = os.path.join(folder, "ca.pem")
    key_file = os.path.join(folder, "ca-key.pem")
    there = os.path.exists(cert_file), os.path.exists(key_file)
    if all(there):
        return cert_file, False
    if any(there):
        raise ValueError(f"{folder}: expected both ca.pem and ca-key.pem, or neither")
    key = _make_key()
    name = _build_name(f"Degu CA of {os.path.basename(folder) or 'this host'}"[:64])
    builder = _start(name, name, key, CA_DAYS)
    from cryptography import x509

    usage = _build_usage(key_cert_sign=True, crl_sign=True)
    builder = (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .add_extension(usage, True)
        .add_extension(_build_identifier(key), False)
    )
    _write_pair(cert_file, key_file, _sign(builder, key), key)
    return cert_file, True


def make_certificate(
    folder: str | os.PathLike[str],
    name: str,
    hosts: Sequence[str] = (),
    *,
    days: int = DEVICE_DAYS,
) -> dict[str, str]:
    """Make ``NAME.pem`` and ``NAME-key.pem`` by the CA in `folder`; an sslconfig.

    The certificate is for a server at `hosts` (names or IP addresses, by default this
    host), and for a client. It is valid for `days`.

    Raises `FileExistsError` where there is one, `FileNotFoundError` without a CA,
    `ValueError` for a bad name, host or number of days.
    """
    _import_cryptography()
    folder = os.path.abspath(folder)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,60}", name) or name == "ca":
        raise ValueError(
            f"name: expected letters, digits, dots and dashes, got {shown(name)}"
        )
    if not 1 <= days <= CA_DAYS:
        raise ValueError(f"days: expected 1 to {CA_DAYS}, got {days}")
    ca, ca_key = _load_ca(folder)
    key = _make_key()
    builder = _start(_build_name(name), ca.subject, key, days, ca.not_valid_after_utc)
    for extension, critical in _build_device(ca, key, hosts or LOCAL_HOSTS):
        builder = builder.add_extension(extension, critical)
    config = {
        "ca_file": os.path.join(folder, "ca.pem"),
        "cert_file": os.path.join(folder, f"{name}.pem"),
        "key_file": os.path.join(folder, f"{name}-key.pem"),
    }
    data = _sign(builder, ca_key)
    _write_pair(config["cert_file"], config["key_file"], data, key)
    return config


def _import_cryptography() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "certificates need the package cryptography: pip install degu[peers]"
        ) from error


def _make_key() -> Any:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def _build_name(text: str) -> x509.Name:
    from cryptography import x509

    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def _start(
    subject: x509.Name,
    issuer: x509.Name,
    key: Any,
    days: int,
    latest: datetime | None = None,
) -> x509.CertificateBuilder:
    from cryptography import x509

    now = datetime.now(UTC)
    end = now + timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(end if latest is None else min(end, latest))
    )


def _build_device(
    ca: x509.Certificate, key: Any, hosts: Sequence[str]
) -> Iterator[tuple[x509.ExtensionType, bool]]:
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID as Usage

    both = [Usage.SERVER_AUTH, Usage.CLIENT_AUTH]
    ca_id = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    yield x509.BasicConstraints(ca=False, path_length=None), True
    yield _build_usage(digital_signature=True), True
    yield x509.ExtendedKeyUsage(both), False
    yield x509.SubjectAlternativeName([_build_host(host) for host in hosts]), False
    yield _build_identifier(key), False
    authority = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier
    yield authority(ca_id), False


def _build_host(host: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not re.fullmatch(r"(\*\.)?[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63})*", host):
        raise ValueError(f"host: expected a name or an IP address, got {shown(host)}")
    return x509.DNSName(host)


def _build_identifier(key: Any) -> x509.SubjectKeyIdentifier:
    from cryptography import x509

    return x509.SubjectKeyIdentifier.from_public_key(key.public_key())


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


def _sign(builder: x509.CertificateBuilder, key: Any) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import Encoding

    return builder.sign(key, SHA256()).public_bytes(Encoding.PEM)


def _load_ca(folder: str) -> tuple[x509.Certificate, Any]:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    with open(os.path.join(folder, "ca.pem"), "rb") as file:
        ca = x509.load_pem_x509_certificate(file.read())
    with open(os.path.join(folder, "ca-key.pem"), "rb") as file:
        return ca, load_pem_private_key(file.read(), None)


def _write_pair(cert_file: str, key_file: str, cert: bytes, key: Any) -> None:
    """Write both files, or none; never over one that is there."""
    from cryptography.hazmat.primitives import serialization

    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    _write_new(key_file, pem, 0o600)
    try:
        _write_new(cert_file, cert, 0o644)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(key_file)
        raise


def _write_new(path: str, data: bytes, mode: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with open(fd, "wb") as file:
        file.write(data)

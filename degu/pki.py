"""A small PKI of one's own: a CA in a folder, and certificates for devices.

For a handful of devices that belong together. `make_ca` and `make_certificate` write
PEM files, keys readable by their owner only, and give *sslconfigs* (:mod:`degu.tls`).
Devices that meet without a common CA pair up instead: :mod:`degu.peers`.

Needs the package ``cryptography`` (extra ``peers``).
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from degu.certificate import (
    build_ca_extensions,
    build_certificate,
    build_device_extensions,
    build_name,
    format_key,
    format_pem,
    import_cryptography,
    make_key,
    parse_key,
    parse_pem,
)
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
    import_cryptography()
    folder = os.path.abspath(folder)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    cert_file = os.path.join(folder, "ca.pem")
    key_file = os.path.join(folder, "ca-key.pem")
    there = os.path.exists(cert_file), os.path.exists(key_file)
    if all(there):
        return cert_file, False
    if any(there):
        raise ValueError(f"{folder}: expected both ca.pem and ca-key.pem, or neither")
    key = make_key()
    ca = build_certificate(
        build_name(f"Degu CA of {os.path.basename(folder) or 'this host'}"[:64]),
        key,
        _build_validity(CA_DAYS),
        build_ca_extensions(key),
    )
    _write_pair(cert_file, key_file, ca, key)
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
    import_cryptography()
    folder = os.path.abspath(folder)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,60}", name) or name == "ca":
        raise ValueError(
            f"name: expected letters, digits, dots and dashes, got {shown(name)}"
        )
    if not 1 <= days <= CA_DAYS:
        raise ValueError(f"days: expected 1 to {CA_DAYS}, got {days}")
    ca, ca_key = _load_ca(folder)
    key = make_key()
    certificate = build_certificate(
        build_name(name),
        key,
        _build_validity(days, ca.not_valid_after_utc),
        build_device_extensions(key, ca, hosts or LOCAL_HOSTS),
        ca=(ca, ca_key),
    )
    config = {
        "ca_file": os.path.join(folder, "ca.pem"),
        "cert_file": os.path.join(folder, f"{name}.pem"),
        "key_file": os.path.join(folder, f"{name}-key.pem"),
    }
    _write_pair(config["cert_file"], config["key_file"], certificate, key)
    return config


def _build_validity(
    days: int, latest: datetime | None = None
) -> tuple[datetime, datetime]:
    now = datetime.now(UTC)
    end = now + timedelta(days=days)
    return now - SKEW, end if latest is None else min(end, latest)


def _load_ca(folder: str) -> tuple[x509.Certificate, Any]:
    with open(os.path.join(folder, "ca.pem"), "rb") as file:
        ca = parse_pem(file.read())
    with open(os.path.join(folder, "ca-key.pem"), "rb") as file:
        return ca, parse_key(file.read())


def _write_pair(
    cert_file: str, key_file: str, certificate: x509.Certificate, key: Any
) -> None:
    """Write both files, or none; never over one that is there."""
    made = []
    try:
        for path, data, mode in (
            (key_file, format_key(key), 0o600),
            (cert_file, format_pem(certificate), 0o644),
        ):
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            made.append(path)
            with open(fd, "wb") as file:
                file.write(data)
    except BaseException:
        for path in made:
            with contextlib.suppress(OSError):
                os.unlink(path)
        raise

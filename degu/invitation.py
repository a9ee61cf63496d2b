"""What leads one device to another, as text to paste or to scan; pure.

    degu:1?at=192.0.2.7:8443&at=[2001:db8::1]:8443&id=...&token=...&until=...&sum=...

The addresses in it are those of another machine: IP literals and ports, no host names
and no scope ids, which mean something else elsewhere.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

from degu.address import Address, format_host
from degu.errors import PairingError, ParseError, shown
from degu.fingerprint import (
    FINGERPRINT_SIZE,
    format_base32,
    format_fingerprint,
    parse_base32,
    parse_fingerprint,
)

__all__ = [
    "Invitation",
    "build_peer_addresses",
    "check_fresh",
    "format_invitation",
    "format_peer_address",
    "parse_invitation",
    "parse_peer_address",
]

MAX_ADDRESSES = 16
"""Addresses of one device: more interfaces than a computer has."""

TOKEN_SIZE = 16
"""Bytes of an invitation's token: nobody guesses 128 bits over a network."""

INVITATION = "degu:1?"
"""How an invitation begins: a scheme of its own, and the version of the format."""

SUM_LENGTH = 4
"""Check characters at the end: they tell a damaged invitation from a wrong one."""


# --- addresses --------------------------------------------------------------------


def format_peer_address(address: Address) -> str:
    """Format a TCP `address` for other machines: ``192.0.2.7:80``, ``[fe80::1]:80``.

    The scope id of a link-local address is a number of this machine and stays here.
    Raises `ValueError` for what no other machine can connect to: Unix sockets, host
    names, the unspecified address, port 0.
    """
    if not isinstance(address, tuple):
        raise ValueError(f"address: expected one of TCP, got {shown(address)}")
    host = address[0].partition("%")[0]
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        raise ValueError(
            f"address: expected an IP literal, got {shown(host)}"
        ) from None
    if (ip.version == 6) != (len(address) == 4):
        raise ValueError(
            "address: expected a 4-tuple for IPv6 and a 2-tuple for IPv4, "
            f"got {shown(address)}"
        )
    _check_reachable(ip, address[1])
    return format_host((str(ip), *address[1:]))


def parse_peer_address(text: str) -> Address:
    """Parse what `format_peer_address` gave into a 4-tuple or 2-tuple.

    Raises `ParseError`; also for a zone (``fe80::1%eth0``), which only has a meaning
    on the machine that wrote it.
    """
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([0-9.]+)):([0-9]{1,5})", text)
    if match is None:
        raise ParseError(
            "address: expected an IP literal and a port, as 192.0.2.7:80 or "
            f"[2001:db8::1]:80, got {shown(text)}"
        )
    six, four, port = match[1], match[2], int(match[3])
    try:
        ip = ipaddress.IPv6Address(six) if six else ipaddress.IPv4Address(four)
        _check_reachable(ip, port)
    except ValueError as error:
        raise ParseError(f"address: {error}, got {shown(text)}") from None
    return (str(ip), port, 0, 0) if six else (str(ip), port)


def _check_reachable(
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int
) -> None:
    if ip.is_unspecified or ip.is_multicast:
        raise ValueError(f"expected the address of one machine, not {ip}")
    if not 0 < port < 65536:
        raise ValueError(f"expected a port of 1 to 65535, not {port}")


def build_peer_addresses(
    addresses: Iterable[Address], least: int = 0
) -> tuple[Address, ...]:
    """Build the `addresses` of a device as another one will parse them.

    Raises `ValueError` for fewer than `least`, more than 16, and as
    `format_peer_address`.
    """
    told = tuple(parse_peer_address(format_peer_address(one)) for one in addresses)
    if not least <= len(told) <= MAX_ADDRESSES:
        raise ValueError(
            f"addresses: expected {least} to {MAX_ADDRESSES}, got {len(told)}"
        )
    return told


# --- invitations ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Invitation:
    """What lets another device in: whoever has it first is trusted, until it expires.

    Raises `ValueError` for fields that no invitation can have.
    """

    addresses: tuple[Address, ...]
    """Where to connect: at least one 4-tuple or 2-tuple, without scope ids."""
    fingerprint: bytes
    """Whom to find there: 32 bytes."""
    token: bytes
    """The secret that is good once: 16 bytes."""
    until: int
    """When it expires: seconds since 1970, UTC."""

    def __post_init__(self) -> None:
        for name, size in (("fingerprint", FINGERPRINT_SIZE), ("token", TOKEN_SIZE)):
            if len(getattr(self, name)) != size:
                raise ValueError(f"{name}: expected {size} bytes")
        if self.until < 0:
            raise ValueError(f"until: expected a time after 1970, got {self.until}")
        told = build_peer_addresses(self.addresses, least=1)
        object.__setattr__(self, "addresses", told)


def format_invitation(invitation: Invitation) -> str:
    """Format an `invitation` as one word of ASCII, to be pasted or shown as a QR code.

    For a QR code `.upper()` of it means the same.
    """
    fields = [
        *(f"at={format_peer_address(address)}" for address in invitation.addresses),
        f"id={format_fingerprint(invitation.fingerprint).replace('-', '')}",
        f"token={format_base32(invitation.token)}",
        f"until={invitation.until}",
    ]
    text = (INVITATION + "&".join(fields)).lower()
    return f"{text}&sum={_build_sum(text)}"


def parse_invitation(text: str) -> Invitation:
    """Parse what `format_invitation` gave; white space and case do not matter.

    Raises `ParseError` that says what is wrong with it. An expired one is parsed:
    see `check_fresh`.
    """
    word = "".join(text.split()).lower()
    _check_start(word)
    body, found, checksum = word.rpartition("&sum=")
    if not found or len(checksum) < SUM_LENGTH:
        raise ParseError(
            "invitation: expected it to end in '&sum=' and "
            f"{SUM_LENGTH} characters, so its end is missing: {shown(word[-30:])}"
        )
    if checksum != _build_sum(body):
        raise ParseError(
            "invitation: expected its check characters to fit, so some of it was "
            f"changed or is missing, got {shown(checksum)}"
        )
    return _parse_fields(body.removeprefix(INVITATION))


def _check_start(word: str) -> None:
    if not word.startswith("degu:"):
        raise ParseError(
            "invitation: expected text that begins with 'degu:', "
            f"got {shown(word) if word else 'none'}"
        )
    if not word.startswith(INVITATION):
        version = word.removeprefix("degu:").partition("?")[0]
        raise ParseError(
            f"invitation: expected version 1, got {shown(version)}: "
            "a newer program may have made it"
        )


def _parse_fields(body: str) -> Invitation:
    fields: dict[str, list[str]] = {"at": [], "id": [], "token": [], "until": []}
    for field in body.split("&"):
        key, _, value = field.partition("=")
        if key not in fields:
            raise ParseError(
                f"invitation: expected the fields {', '.join(fields)}, got {shown(key)}"
            )
        fields[key].append(value)
    for key, values in fields.items():
        if not values or (len(values) > 1 and key != "at"):
            raise ParseError(f"invitation: expected one {key!r}, got {len(values)}")
    until = fields["until"][0]
    if not re.fullmatch("[0-9]{1,12}", until):
        raise ParseError(f"invitation: until: expected seconds, got {shown(until)}")
    try:
        return Invitation(
            tuple(map(parse_peer_address, fields["at"])),
            parse_fingerprint(fields["id"][0]),
            parse_base32(fields["token"][0], TOKEN_SIZE, "token"),
            int(until),
        )
    except ValueError as error:
        raise ParseError(f"invitation: {error}") from None


def _build_sum(text: str) -> str:
    return format_base32(hashlib.sha256(text.encode()).digest())[:SUM_LENGTH].lower()


def check_fresh(invitation: Invitation, now: float) -> None:
    """Raise `PairingError` if `invitation` expired before `now` (Unix seconds)."""
    if now > invitation.until:
        minutes = int(now - invitation.until) // 60
        raise PairingError(
            f"invitation: expected one that is still good, got one that expired "
            f"{minutes} minutes ago: ask for a new one"
        )

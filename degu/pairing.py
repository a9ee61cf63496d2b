"""What two devices tell each other until they trust each other; pure, without I/O.

    fingerprint   the SHA-256 of a certificate's DER, 32 bytes; as text, 8 groups of 7
    Peer          a device as others know it: name, certificate, addresses
    Invitation    addresses, fingerprint and a one-time token, as text to paste or scan
    Pairing       one attempt at a short code that both users compare, as one side of it

Pairing is a commitment, two nonces and a code (the recipe of the short
authentication strings of ZRTP, RFC 6189 §4.4.1.1, and of dnssd-pairing):

    initiator                                           responder
      hello   me, HMAC(nonce_i, me)   ------------>
              <------------   me, nonce_r             answer
      reveal  nonce_i                 ------------>   does it fit the hello?
         both show   HMAC(nonce_i + nonce_r, both)  modulo a million
         both users compare, and say yes or no
      confirm                         <----------->   confirm

Whoever sits in the middle has to choose what it shows to each side before it can
know what the other will add, so it can't search for certificates that give both
sides one code: it has one guess in a million, and the users see the other 999 999.

Files, sockets and contexts are in `degu.peers`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from degu.address import Address, format_host
from degu.errors import DeguError, ParseError, shown

__all__ = [
    "Invitation",
    "Message",
    "Pairing",
    "PairingError",
    "Peer",
    "Role",
    "State",
    "build_fingerprint",
    "build_pairing_code",
    "build_peer_fields",
    "check_fresh",
    "format_fingerprint",
    "format_invitation",
    "format_peer_address",
    "parse_fingerprint",
    "parse_invitation",
    "parse_peer_address",
    "parse_peer_fields",
]

Message = dict[str, Any]
"""What the sides exchange: a dict that JSON can hold."""

MAX_NAME_LENGTH = 64
"""Characters of a device's name: one line of a dialog."""

MAX_CERTIFICATE_SIZE = 4096
"""Bytes of a certificate's DER; Degu's own have about 450."""

MAX_ADDRESSES = 16
"""Addresses of one device: more interfaces than a computer has."""

MAX_WHY_LENGTH = 200
"""Characters of a peer's reason that are shown: as much as Degu's own messages."""

NONCE_SIZE = 32
"""Bytes of a nonce: as long as the hash, so that it hides what it commits to."""

TOKEN_SIZE = 16
"""Bytes of an invitation's token: nobody guesses 128 bits over a network."""

CODE_DIGITS = 6
"""Digits of a pairing code: a guess is right once in a million windows."""


class PairingError(DeguError):
    """Two devices did not come to trust each other; nothing was stored."""


def build_refused_error(why: object) -> PairingError:
    """Build the error for a peer's refusal, whose `why` is text of a stranger."""
    text = why if isinstance(why, str) else ""
    printable = "".join(character for character in text if character.isprintable())
    return PairingError(f"the peer refused: {printable[:MAX_WHY_LENGTH]}")


# --- fingerprints -----------------------------------------------------------------

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
"""Crockford's base32: without I, L, O (read as 1, 1, 0) and U (taken for V)."""

RFC_4648 = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
TO_ALPHABET = str.maketrans(RFC_4648, ALPHABET)
FROM_ALPHABET = str.maketrans(ALPHABET, RFC_4648)
LOOK_ALIKES = str.maketrans("OIL", "011")
# Word processors turn the hyphen into one of the others.
DASHES = dict.fromkeys(map(ord, "-\u2010\u2011\u2012\u2013\u2014\u2212"))

FINGERPRINT_SIZE = 32
FINGERPRINT_CHARACTERS = 56
ROW = 13
"""Characters that one check character follows: a wrong one is found within 2 groups."""
GROUP = 7
"""Characters between two dashes: what people keep in mind while they read."""


def build_fingerprint(certificate: bytes) -> bytes:
    """The fingerprint of a `certificate` (DER `bytes`): its SHA-256, 32 bytes."""
    return hashlib.sha256(certificate).digest()


def format_fingerprint(fingerprint: bytes) -> str:
    """Format 32 bytes as 8 groups of 7 characters that people can read out.

    Each 13 characters are followed by a check character (Luhn's, modulo 32).
    Raises `ValueError` for another number of bytes.
    """
    if len(fingerprint) != FINGERPRINT_SIZE:
        raise ValueError(
            f"fingerprint: expected {FINGERPRINT_SIZE} bytes, got {len(fingerprint)}"
        )
    text = _encode(fingerprint)
    rows = (text[at : at + ROW] for at in range(0, len(text), ROW))
    checked = "".join(row + _build_check(row) for row in rows)
    return "-".join(_split(checked, GROUP))


def parse_fingerprint(text: str) -> bytes:
    """Parse what `format_fingerprint` gave, as people type it; 32 bytes.

    Case, spaces and dashes do not matter; O is 0, I and L are 1. Raises `ParseError`
    that says where to look.
    """
    characters = _normalise(text)
    if len(characters) != FINGERPRINT_CHARACTERS:
        raise ParseError(
            f"fingerprint: expected {FINGERPRINT_CHARACTERS} letters and digits, "
            f"got {len(characters)}: {shown(text)}"
        )
    rows = _split(characters, ROW + 1)
    for number, row in enumerate(rows):
        if _build_check(row[:ROW]) != row[ROW]:
            raise ParseError(
                f"fingerprint: expected the check character to fit, got a mistake in "
                f"group {2 * number + 1} or {2 * number + 2}: "
                f"{row[:GROUP]}-{row[GROUP:]}"
            )
    return _decode("".join(row[:ROW] for row in rows), FINGERPRINT_SIZE, "fingerprint")


def _normalise(text: str) -> str:
    characters = "".join(text.split()).translate(DASHES)
    # Only ASCII: the upper case of other letters can have another length.
    if characters.isascii():
        characters = characters.upper().translate(LOOK_ALIKES)
    wrong = [character for character in characters if character not in ALPHABET]
    if wrong:
        raise ParseError(
            f"expected letters (no U) and digits, got {shown(wrong[0])} "
            f"in {shown(text)}"
        )
    return characters


def _build_check(row: str) -> str:
    total, factor = 0, 2
    for character in reversed(row):
        product = factor * ALPHABET.index(character)
        total += product // 32 + product % 32
        factor = 3 - factor
    return ALPHABET[-total % 32]


def _encode(data: bytes) -> str:
    return base64.b32encode(data).decode().rstrip("=").translate(TO_ALPHABET)


def _decode(characters: str, size: int, name: str) -> bytes:
    padded = characters.translate(FROM_ALPHABET) + "=" * (-len(characters) % 8)
    try:
        data = base64.b32decode(padded)
    except ValueError:
        data = b""
    # One value has one text: bits after the last byte have to be zero.
    if len(data) != size or _encode(data) != characters:
        raise ParseError(
            f"{name}: expected {size} bytes in base32, got {shown(characters)}"
        )
    return data


def _split(text: str, size: int) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


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


# --- peers ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Peer:
    """A device as others know it. Two are the same if their certificates are.

    Raises `ValueError` for a name that is empty, too long or would not print as it
    is, for an impossible certificate, and for addresses that can't be told to others.
    """

    name: str
    """1 to 64 printable characters; chosen by the device, so no proof of anything."""
    certificate: bytes
    """DER."""
    addresses: tuple[Address, ...] = ()
    """Where it listens, 4-tuples and 2-tuples without scope ids; hints, no proof."""
    added: str = ""
    """When it became trusted, ISO 8601 in UTC; empty for one that is not stored."""

    def __post_init__(self) -> None:
        _check_name(self.name)
        if not 0 < len(self.certificate) <= MAX_CERTIFICATE_SIZE:
            raise ValueError(
                f"certificate: expected 1 to {MAX_CERTIFICATE_SIZE} bytes of DER, "
                f"got {len(self.certificate)}"
            )
        if len(self.addresses) > MAX_ADDRESSES:
            raise ValueError(
                f"addresses: expected at most {MAX_ADDRESSES}, "
                f"got {len(self.addresses)}"
            )
        plain = tuple(
            parse_peer_address(format_peer_address(address))
            for address in self.addresses
        )
        object.__setattr__(self, "addresses", plain)

    @property
    def fingerprint(self) -> bytes:
        """The SHA-256 of the certificate, 32 bytes."""
        return build_fingerprint(self.certificate)

    @property
    def id(self) -> str:
        """The fingerprint as people read it (`format_fingerprint`)."""
        return format_fingerprint(self.fingerprint)


def _check_name(name: str) -> None:
    # isprintable() is also False for what turns the direction of a line around.
    if (
        not isinstance(name, str)
        or not 0 < len(name) <= MAX_NAME_LENGTH
        or not name.isprintable()
        or name != name.strip()
    ):
        raise ValueError(
            f"name: expected 1 to {MAX_NAME_LENGTH} printable characters without "
            f"spaces around them, got {shown(name)}"
        )


def build_peer_fields(peer: Peer) -> Message:
    """Build what JSON can hold of `peer`: name, certificate and addresses."""
    return {
        "name": peer.name,
        "certificate": base64.b64encode(peer.certificate).decode(),
        "addresses": [format_peer_address(address) for address in peer.addresses],
    }


def parse_peer_fields(fields: Message) -> Peer:
    """Parse what `build_peer_fields` built; other keys are left alone.

    Raises `ParseError` that names the field.
    """
    name = _get(fields, "name", str)
    text = _get(fields, "certificate", str)
    addresses = _get(fields, "addresses", list)
    try:
        certificate = base64.b64decode(text, validate=True)
    except ValueError:
        raise ParseError(f"certificate: expected base64, got {shown(text)}") from None
    if not all(isinstance(address, str) for address in addresses):
        raise ParseError(f"addresses: expected strings, got {shown(addresses)}")
    try:
        return Peer(name, certificate, tuple(map(parse_peer_address, addresses)))
    except ValueError as error:
        raise ParseError(str(error)) from None


def _get(fields: Message, key: str, kind: type) -> Any:
    value = fields.get(key)
    if not isinstance(value, kind):
        raise ParseError(f"{key}: expected a {kind.__name__}, got {shown(value)}")
    return value


# --- invitations ------------------------------------------------------------------

INVITATION = "degu:1?"
"""How an invitation begins: a scheme of its own, and the version of the format."""

SUM_LENGTH = 4
"""Check characters at the end: they tell a damaged invitation from a wrong one."""


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
        if not 0 < len(self.addresses) <= MAX_ADDRESSES:
            raise ValueError(
                f"addresses: expected 1 to {MAX_ADDRESSES}, got {len(self.addresses)}"
            )
        for name, size in (("fingerprint", FINGERPRINT_SIZE), ("token", TOKEN_SIZE)):
            if len(getattr(self, name)) != size:
                raise ValueError(f"{name}: expected {size} bytes")
        if self.until < 0:
            raise ValueError(f"until: expected a time after 1970, got {self.until}")
        plain = tuple(
            parse_peer_address(format_peer_address(address))
            for address in self.addresses
        )
        object.__setattr__(self, "addresses", plain)


def format_invitation(invitation: Invitation) -> str:
    """Format an `invitation` as one word of ASCII, to be pasted or shown as a QR code.

    For a QR code `.upper()` of it means the same.
    """
    fields = [
        *(f"at={format_peer_address(address)}" for address in invitation.addresses),
        f"id={format_fingerprint(invitation.fingerprint).replace('-', '')}",
        f"token={_encode(invitation.token)}",
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
    return _parse_invitation_fields(body.removeprefix(INVITATION))


def _check_start(word: str) -> None:
    if not word:
        raise ParseError("invitation: expected text that begins with 'degu:', got none")
    if not word.startswith("degu:"):
        raise ParseError(
            f"invitation: expected text that begins with 'degu:', got {shown(word)}"
        )
    if not word.startswith(INVITATION):
        version = word.removeprefix("degu:").partition("?")[0]
        raise ParseError(
            f"invitation: expected version 1, got {shown(version)}: "
            "a newer program may have made it"
        )


def _parse_invitation_fields(body: str) -> Invitation:
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
            _decode(_normalise(fields["token"][0]), TOKEN_SIZE, "token"),
            int(until),
        )
    except ValueError as error:
        raise ParseError(f"invitation: {error}") from None


def _build_sum(text: str) -> str:
    return _encode(hashlib.sha256(text.encode()).digest())[:SUM_LENGTH].lower()


def check_fresh(invitation: Invitation, now: float) -> None:
    """Raise `PairingError` if `invitation` expired before `now` (Unix seconds)."""
    if now > invitation.until:
        minutes = int(now - invitation.until) // 60
        raise PairingError(
            f"invitation: expected one that is still good, got one that expired "
            f"{minutes} minutes ago: ask for a new one"
        )


# --- pairing ----------------------------------------------------------------------

Role = Literal["initiator", "responder"]

PAIRING_VERSION = 1

MESSAGES = {
    "hello": {"version", "name", "certificate", "addresses", "commitment"},
    "answer": {"version", "name", "certificate", "addresses", "nonce"},
    "reveal": {"nonce"},
    "confirm": set(),
    "refuse": {"why"},
}
"""The type of each message, and the names of its other fields: no more, no fewer."""


class State(StrEnum):
    """How far a `Pairing` is."""

    NEW = "new"
    WAITING = "waiting"
    """For the peer's nonce: the code is not known yet."""
    COMPARING = "comparing"
    """For the users."""
    PAIRED = "paired"
    FAILED = "failed"


def build_pairing_code(
    initiator: Peer, responder: Peer, nonce_i: bytes, nonce_r: bytes
) -> str:
    """Build the 6 digits that both users compare."""
    data = b"degu pairing 1 code" + _build_digest(initiator) + _build_digest(responder)
    number = int.from_bytes(hmac.digest(nonce_i + nonce_r, data, "sha256"))
    return f"{number % 10**CODE_DIGITS:0{CODE_DIGITS}}"


def _build_commitment(nonce: bytes, peer: Peer) -> bytes:
    data = b"degu pairing 1 commitment" + _build_digest(peer)
    return hmac.digest(nonce, data, "sha256")


def _build_digest(peer: Peer) -> bytes:
    """Hash all that a device says about itself; lengths keep the fields apart."""
    fields = [
        peer.certificate,
        peer.name.encode(),
        *(format_peer_address(address).encode() for address in peer.addresses),
    ]
    joined = b"".join(len(field).to_bytes(4) + field for field in fields)
    return hashlib.sha256(joined).digest()


class Pairing:
    """One attempt at pairing, as one of its two sides; messages in, messages out.

    The initiator begins with `start()`. What `receive()` returns goes to the peer.
    With `state` COMPARING there is a `code` to show beside the `peer`'s name; then
    the user's yes is `confirm()` and its no is `refuse()`. PAIRED is reached when
    both users said yes; only then may `peer` be trusted. Any message out of turn
    ends the attempt for good.
    """

    def __init__(
        self,
        role: Role,
        me: Peer,
        *,
        shown_certificate: bytes | None = None,
        nonce: bytes | None = None,
    ) -> None:
        """Prepare one attempt of this device, `me`.

        `shown_certificate` (DER) is the one of the TLS handshake, where there was
        one: the peer has to claim just that. `nonce` is for tests alone.
        """
        self.role = role
        self.me = me
        self.state = State.NEW
        self.code: str | None = None
        self.peer: Peer | None = None
        self.confirmed = False
        """This side's user said yes."""
        self.peer_confirmed = False
        self._shown_certificate = shown_certificate
        self._nonce = secrets.token_bytes(NONCE_SIZE) if nonce is None else nonce
        self._commitment = b""
        self._steps: dict[tuple[State, str], Callable[[Message], Message | None]] = {
            (State.COMPARING, "confirm"): self._receive_confirm,
        }
        if role == "responder":
            self._steps[State.NEW, "hello"] = self._receive_hello
            self._steps[State.WAITING, "reveal"] = self._receive_reveal
        else:
            self._steps[State.WAITING, "answer"] = self._receive_answer

    def start(self) -> Message:
        """The initiator's hello; raises `PairingError` but for the first call."""
        if self.role != "initiator" or self.state is not State.NEW:
            raise PairingError(
                f"expected a new initiator to start, got a {self.state} {self.role}"
            )
        self.state = State.WAITING
        commitment = _build_commitment(self._nonce, self.me)
        return self._build_introduction("hello", commitment=commitment.hex())

    def receive(self, message: object) -> Message | None:
        """Take the peer's next `message`; return the answer to send, or None.

        Raises `PairingError` for a message that is malformed, out of turn, not what
        was committed to, or the peer's refusal; the attempt is then over.
        """
        final = self.state in (State.PAIRED, State.FAILED)
        try:
            kind, fields = _parse_message(message)
            if kind == "refuse" and not final:
                raise build_refused_error(fields["why"])
            step = self._steps.get((self.state, kind))
            if step is None:
                raise PairingError(
                    f"pairing: expected no {kind!r} while {self.state}, got one"
                )
            return step(fields)
        except (ParseError, PairingError) as error:
            if not final:
                self.state = State.FAILED
            raise PairingError(str(error)) from error

    def confirm(self) -> Message:
        """This side's user saw equal codes; the message that tells the peer."""
        if self.state is not State.COMPARING or self.confirmed:
            raise PairingError(
                "pairing: expected one yes while the users compare, "
                f"got one while {self.state}"
            )
        self.confirmed = True
        self._settle()
        return {"type": "confirm"}

    def refuse(self, why: str = "the codes are not equal") -> Message:
        """This side says no, before PAIRED; the message that tells the peer."""
        if self.state is State.PAIRED:
            raise PairingError("pairing: expected a no before the end, got one after")
        self.state = State.FAILED
        return {"type": "refuse", "why": why}

    def _build_introduction(self, kind: str, **fields: str) -> Message:
        introduction = {"type": kind, "version": PAIRING_VERSION}
        return introduction | build_peer_fields(self.me) | fields

    def _receive_hello(self, fields: Message) -> Message:
        peer = self._parse_introduction(fields)
        self._commitment = _parse_hex(fields, "commitment")
        self.peer = peer
        self.state = State.WAITING
        return self._build_introduction("answer", nonce=self._nonce.hex())

    def _receive_answer(self, fields: Message) -> Message:
        peer = self._parse_introduction(fields)
        nonce = _parse_hex(fields, "nonce")
        self.code = build_pairing_code(self.me, peer, self._nonce, nonce)
        self.peer = peer
        self.state = State.COMPARING
        return {"type": "reveal", "nonce": self._nonce.hex()}

    def _receive_reveal(self, fields: Message) -> None:
        assert self.peer is not None
        nonce = _parse_hex(fields, "nonce")
        commitment = _build_commitment(nonce, self.peer)
        if not hmac.compare_digest(commitment, self._commitment):
            raise PairingError("nonce: expected the one that was committed to")
        self.code = build_pairing_code(self.peer, self.me, nonce, self._nonce)
        self.state = State.COMPARING

    def _receive_confirm(self, _: Message) -> None:
        if self.peer_confirmed:
            raise PairingError("pairing: expected one 'confirm', got a second")
        self.peer_confirmed = True
        self._settle()

    def _settle(self) -> None:
        if self.confirmed and self.peer_confirmed:
            self.state = State.PAIRED

    def _parse_introduction(self, fields: Message) -> Peer:
        if fields["version"] != PAIRING_VERSION:
            raise ParseError(
                f"version: expected {PAIRING_VERSION}, got {shown(fields['version'])}"
            )
        peer = parse_peer_fields(fields)
        if peer.certificate == self.me.certificate:
            raise PairingError("certificate: expected another device's, got our own")
        if self._shown_certificate not in (None, peer.certificate):
            raise PairingError(
                "certificate: expected the one of the TLS handshake, got another"
            )
        return peer


def _parse_message(message: object) -> tuple[str, Message]:
    if not isinstance(message, dict):
        raise ParseError(f"pairing: expected a message, got {shown(message)}")
    fields = dict(message)
    kind = fields.pop("type", None)
    if not isinstance(kind, str) or kind not in MESSAGES:
        raise ParseError(
            f"type: expected one of {', '.join(MESSAGES)}, got {shown(kind)}"
        )
    if fields.keys() != MESSAGES[kind]:
        raise ParseError(
            f"{kind}: expected the fields {sorted(MESSAGES[kind])}, "
            f"got {shown(sorted(map(str, fields)))}"
        )
    return kind, fields


def _parse_hex(fields: Message, key: str) -> bytes:
    text = _get(fields, key, str)
    if not re.fullmatch(f"[0-9a-f]{{{2 * NONCE_SIZE}}}", text):
        raise ParseError(
            f"{key}: expected {NONCE_SIZE} bytes in hex, got {shown(text)}"
        )
    return bytes.fromhex(text)

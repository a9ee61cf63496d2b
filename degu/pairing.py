"""What two devices tell each other until they trust each other; pure, without I/O.

    Peer          a device as others know it: name, certificate, addresses
    Message       what they exchange, as JSON
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

Over HTTP it is in `degu.meeting` (the responder) and `degu.joining` (the initiator).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from degu.address import Address
from degu.errors import PairingError, ParseError, shown
from degu.fingerprint import build_fingerprint, format_fingerprint, parse_fingerprint
from degu.invitation import (
    MAX_ADDRESSES,
    Invitation,
    build_peer_addresses,
    check_fresh,
    format_invitation,
    format_peer_address,
    parse_invitation,
    parse_peer_address,
)

__all__ = [
    "MAX_ADDRESSES",
    "MAX_NAME_LENGTH",
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
    "build_refusal",
    "build_refused_error",
    "check_fresh",
    "format_fingerprint",
    "format_invitation",
    "format_message",
    "format_peer_address",
    "parse_fields",
    "parse_fingerprint",
    "parse_hex",
    "parse_invitation",
    "parse_message",
    "parse_peer_address",
    "parse_peer_fields",
]

MAX_NAME_LENGTH = 64
"""Characters of a device's name: one line of a dialog."""

MAX_CERTIFICATE_SIZE = 4096
"""Bytes of a certificate's DER; Degu's own have about 450."""

MAX_MESSAGE_SIZE = 16 * 1024
"""Bytes of a message: a certificate in base64, and room."""

JSON = "application/json"
"""The content-type of a message."""

WINDOW_SECONDS = 120.0
"""Seconds that two users have: to walk to the other device and compare."""

MAX_WHY_LENGTH = 200
"""Characters of a peer's reason that are shown: as much as Degu's own messages."""

NONCE_SIZE = 32
"""Bytes of a nonce: as long as the hash, so that it hides what it commits to."""

COMMITMENT_SIZE = 32
"""Bytes of a commitment, a SHA-256."""

CODE_DIGITS = 6
"""Digits of a pairing code: a guess is right once in a million windows."""


# --- messages ---------------------------------------------------------------------

Message = dict[str, Any]
"""What the sides exchange: a dict that JSON can hold."""

WAIT: Message = {"type": "wait"}
"""Over HTTP, an answer: nothing yet, ask again with the same."""

FIELDS = {
    "hello": {"version", "name", "certificate", "addresses", "commitment"},
    "answer": {"version", "name", "certificate", "addresses", "nonce"},
    "reveal": {"nonce"},
    "confirm": set(),
    "refuse": {"why"},
    "accept": {"token", "name", "certificate", "addresses"},
    "accepted": {"name", "certificate", "addresses"},
}
"""The type of each message, and the names of its other fields: no more, no fewer.

The last two are of an invitation; the others of a pairing."""


def parse_message(data: bytes) -> Message:
    """Parse what `format_message` gave; raises `ParseError`."""
    if len(data) > MAX_MESSAGE_SIZE:
        raise ParseError(f"expected a message of at most {MAX_MESSAGE_SIZE} bytes")
    try:
        message = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ParseError(f"expected JSON, got {shown(data)}") from error
    if not isinstance(message, dict):
        raise ParseError(f"expected a JSON object, got {shown(data)}")
    return message


def format_message(message: Message) -> bytes:
    """Format a `message` as JSON."""
    return json.dumps(message).encode()


def parse_fields(message: object) -> tuple[str, Message]:
    """Parse a message into its type and its other fields, which have to be all there.

    Raises `ParseError`.
    """
    if not isinstance(message, dict):
        raise ParseError(f"pairing: expected a message, got {shown(message)}")
    fields = dict(message)
    kind = fields.pop("type", None)
    if not isinstance(kind, str) or kind not in FIELDS:
        raise ParseError(
            f"type: expected one of {', '.join(FIELDS)}, got {shown(kind)}"
        )
    if fields.keys() != FIELDS[kind]:
        raise ParseError(
            f"{kind}: expected the fields {sorted(FIELDS[kind])}, "
            f"got {shown(sorted(map(str, fields)))}"
        )
    return kind, fields


def parse_hex(fields: Message, key: str, size: int) -> bytes:
    """Parse a field of `size` bytes in hex; raises `ParseError` that names it."""
    text = _get(fields, key, str)
    if not re.fullmatch(f"[0-9a-f]{{{2 * size}}}", text):
        raise ParseError(f"{key}: expected {size} bytes in hex, got {shown(text)}")
    return bytes.fromhex(text)


def _get(fields: Message, key: str, kind: type) -> Any:
    value = fields.get(key)
    if not isinstance(value, kind):
        raise ParseError(f"{key}: expected a {kind.__name__}, got {shown(value)}")
    return value


def build_refusal(why: str) -> Message:
    """Build the message that says no."""
    return {"type": "refuse", "why": why}


def build_refused_error(why: object) -> PairingError:
    """Build the error for a peer's refusal, whose `why` is text of a stranger."""
    text = why if isinstance(why, str) else ""
    printable = "".join(character for character in text if character.isprintable())
    return PairingError(f"the peer refused: {printable[:MAX_WHY_LENGTH]}")


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
        told = build_peer_addresses(self.addresses)
        object.__setattr__(self, "addresses", told)

    @property
    def fingerprint(self) -> bytes:
        """The SHA-256 of the certificate, 32 bytes."""
        return build_fingerprint(self.certificate)

    @property
    def id(self) -> str:
        """The fingerprint as people read it (`format_fingerprint`)."""
        return format_fingerprint(self.fingerprint)


BLANKS = frozenset("\u115f\u1160\u2800\u3164\uffa0")
"""Fillers of Hangul and Braille: printable by their class, but nobody sees them."""


def _check_name(name: str) -> None:
    # isprintable() is also False for what turns the direction of a line around.
    if (
        not isinstance(name, str)
        or not 0 < len(name) <= MAX_NAME_LENGTH
        or not name.isprintable()
        or not BLANKS.isdisjoint(name)
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


# --- pairing ----------------------------------------------------------------------

Role = Literal["initiator", "responder"]

PAIRING_VERSION = 1


class State(StrEnum):
    """How far a `Pairing` is."""

    NEW = "new"
    WAITING = "waiting"
    """For the peer's nonce: the code is not known yet."""
    COMPARING = "comparing"
    """For the users."""
    PAIRED = "paired"
    FAILED = "failed"

    @property
    def is_final(self) -> bool:
        """Whether nothing follows."""
        return self in (State.PAIRED, State.FAILED)


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
        final = self.state.is_final
        try:
            kind, fields = parse_fields(message)
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
        return build_refusal(why)

    def _build_introduction(self, kind: str, **fields: str) -> Message:
        introduction = {"type": kind, "version": PAIRING_VERSION}
        return introduction | build_peer_fields(self.me) | fields

    def _receive_hello(self, fields: Message) -> Message:
        peer = self._parse_introduction(fields)
        self._commitment = parse_hex(fields, "commitment", COMMITMENT_SIZE)
        self.peer = peer
        self.state = State.WAITING
        return self._build_introduction("answer", nonce=self._nonce.hex())

    def _receive_answer(self, fields: Message) -> Message:
        peer = self._parse_introduction(fields)
        nonce = parse_hex(fields, "nonce", NONCE_SIZE)
        self.code = build_pairing_code(self.me, peer, self._nonce, nonce)
        self.peer = peer
        self.state = State.COMPARING
        return {"type": "reveal", "nonce": self._nonce.hex()}

    def _receive_reveal(self, fields: Message) -> None:
        assert self.peer is not None
        nonce = parse_hex(fields, "nonce", NONCE_SIZE)
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

"""The fingerprint of a certificate, also as text that people can read out; pure.

32 bytes (the SHA-256 of the certificate's DER), or 8 groups of 7 letters and digits.
"""

from __future__ import annotations

import base64
import hashlib

from degu.errors import ParseError, shown

__all__ = [
    "build_fingerprint",
    "format_base32",
    "format_fingerprint",
    "parse_base32",
    "parse_fingerprint",
]

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
    rows = _split(format_base32(fingerprint), ROW)
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
    data = "".join(row[:ROW] for row in rows)
    return parse_base32(data, FINGERPRINT_SIZE, "fingerprint")


def format_base32(data: bytes) -> str:
    """Format `data` in the alphabet of fingerprints, without padding."""
    return base64.b32encode(data).decode().rstrip("=").translate(TO_ALPHABET)


def parse_base32(text: str, size: int, name: str) -> bytes:
    """Parse what `format_base32` gave for `size` bytes, as people type it.

    Raises `ParseError` that begins with `name`.
    """
    characters = _normalise(text)
    padded = characters.translate(FROM_ALPHABET) + "=" * (-len(characters) % 8)
    try:
        data = base64.b32decode(padded)
    except ValueError:
        data = b""
    # One value has one text: bits after the last byte have to be zero.
    if len(data) != size or format_base32(data) != characters:
        raise ParseError(
            f"{name}: expected {size} bytes in base32, got {shown(characters)}"
        )
    return data


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


def _split(text: str, size: int) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]

"""degu.fingerprint: what people read out and type."""

from __future__ import annotations

import hashlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from degu.errors import ParseError
from degu.fingerprint import (
    ALPHABET,
    _build_check,
    build_fingerprint,
    format_fingerprint,
    parse_fingerprint,
)

FINGERPRINT = hashlib.sha256(b"degu").digest()


def test_a_fingerprint_is_the_sha256_of_the_certificate():
    """Whoever has openssl and the certificate can compute it without Degu."""
    assert build_fingerprint(b"x") == hashlib.sha256(b"x").digest()


@given(st.binary(min_size=32, max_size=32))
def test_fingerprints_survive_being_written_down(fingerprint):
    """Formatting and parsing are inverses; 8 groups of 7 unmistakable letters."""
    text = format_fingerprint(fingerprint)

    assert parse_fingerprint(text) == fingerprint
    assert [len(group) for group in text.split("-")] == [7] * 8
    assert set(text) <= {*ALPHABET, "-"}
    assert not set(text) & set("ILOU")


@pytest.mark.parametrize("size", [0, 31, 33])
def test_other_sizes_are_no_fingerprint(size):
    """Only 32 bytes are formatted."""
    with pytest.raises(ValueError, match=f"expected 32 bytes, got {size}"):
        format_fingerprint(bytes(size))


def test_people_may_type_fingerprints_their_way():
    """Case, spaces, missing and typographic dashes, and O, I and L do not matter."""
    text = format_fingerprint(FINGERPRINT)

    for typed in (
        text.lower(),
        text.replace("-", ""),
        text.replace("-", " \n\t"),
        text.replace("-", "\u2013"),
        f"  {text.replace('-', ' - ')}\n",
        text.replace("0", "o").replace("1", "l"),
        text.replace("0", "O").replace("1", "I"),
    ):
        assert parse_fingerprint(typed) == FINGERPRINT


def test_every_single_wrong_character_is_found():
    """Each of the 56 characters, replaced by each other one, is refused."""
    text = format_fingerprint(FINGERPRINT).replace("-", "")

    for at, right in enumerate(text):
        for wrong in set(ALPHABET) - {right}:
            with pytest.raises(ParseError, match="mistake in group"):
                parse_fingerprint(text[:at] + wrong + text[at + 1 :])


def test_swapped_neighbours_are_found():
    """Two neighbours of a row in the wrong order are refused, but for 0 and Z."""
    rng = random.Random(8)
    for _ in range(200):
        text = format_fingerprint(rng.randbytes(32)).replace("-", "")
        at = rng.choice([n for n in range(55) if n % 14 != 13])
        one, two = text[at], text[at + 1]
        if one == two or {one, two} == {"0", "Z"}:
            continue
        with pytest.raises(ParseError):
            parse_fingerprint(text[:at] + two + one + text[at + 2 :])


def test_a_mistake_is_told_by_its_groups():
    """The message names the two groups to look at."""
    groups = format_fingerprint(FINGERPRINT).split("-")
    groups[2] = ("0" if groups[2][0] != "0" else "1") + groups[2][1:]

    with pytest.raises(ParseError, match="group 3 or 4"):
        parse_fingerprint("-".join(groups))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected 56 letters and digits, got 0"),
        (format_fingerprint(FINGERPRINT)[:-1], "got 55"),
        (format_fingerprint(FINGERPRINT) + "0", "got 57"),
        ("U" * 56, r"\(no U\) and digits, got 'U'"),
        ("ß" * 56, "got 'ß'"),
        ("\u0131" * 56, "letters"),
        ("\u0660" * 56, "letters"),
    ],
)
def test_a_wrong_fingerprint_is_explained(text, message):
    """Each way of being wrong has its message."""
    with pytest.raises(ParseError, match=message):
        parse_fingerprint(text)


def test_one_fingerprint_has_one_text():
    """Bits behind the last byte are refused, with check characters that fit."""
    text = format_fingerprint(FINGERPRINT).replace("-", "")
    last = ALPHABET[ALPHABET.index(text[54]) ^ 1]
    row = text[42:54] + last

    with pytest.raises(ParseError, match="expected 32 bytes in base32"):
        parse_fingerprint(text[:42] + row + _build_check(row))

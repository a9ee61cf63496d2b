"""degu.invitation: what is pasted or scanned, and the addresses in it."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from degu.errors import PairingError, ParseError
from degu.invitation import (
    Invitation,
    _build_sum,
    check_fresh,
    format_invitation,
    format_peer_address,
    parse_invitation,
    parse_peer_address,
)

FINGERPRINT = hashlib.sha256(b"degu").digest()


# --- addresses --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (("192.0.2.7", 80), "192.0.2.7:80"),
        (("2001:db8::1", 8443, 0, 0), "[2001:db8::1]:8443"),
        (("127.0.0.1", 65535), "127.0.0.1:65535"),
        (("fe80::1", 1, 0, 0), "[fe80::1]:1"),
    ],
)
def test_addresses_survive_being_told(address, text):
    """Formatting and parsing are inverses."""
    assert format_peer_address(address) == text
    assert parse_peer_address(text) == address


def test_a_scope_stays_on_its_machine():
    """The scope id of a link-local address means another interface elsewhere."""
    assert format_peer_address(("fe80::1", 80, 0, 3)) == "[fe80::1]:80"
    assert format_peer_address(("fe80::1%eth0", 80, 0, 0)) == "[fe80::1]:80"
    with pytest.raises(ParseError, match="expected an IP literal"):
        parse_peer_address("[fe80::1%eth0]:80")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("/run/degu.sock", "expected one of TCP"),
        (b"\0degu", "expected one of TCP"),
        (("example.org", 80), "expected an IP literal"),
        (("::1", 80), "4-tuple for IPv6"),
        (("127.0.0.1", 80, 0, 0), "4-tuple for IPv6"),
        (("::", 80, 0, 0), "address of one machine"),
        (("0.0.0.0", 80), "address of one machine"),
        (("ff02::1", 80, 0, 0), "address of one machine"),
        (("::1", 0, 0, 0), "port of 1 to 65535"),
    ],
)
def test_an_address_that_nobody_can_connect_to_is_not_told(address, message):
    """Unix sockets, names, the unspecified address and port 0 are refused."""
    with pytest.raises(ValueError, match=message):
        format_peer_address(address)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "192.0.2.7",
        "192.0.2.7:",
        "192.0.2.7:99999",
        "192.0.2.7:0",
        "192.0.2.256:80",
        "192.0.2.7:80 ",
        "2001:db8::1:80",
        "[2001:db8::1]",
        "[2001:db8:::1]:80",
        "[192.0.2.7]:80",
        "[::]:80",
        "192.0.2.\u0667:80",
        "localhost:80",
    ],
)
def test_a_wrong_address_is_refused(text):
    """Whatever format_peer_address does not give is an error."""
    with pytest.raises(ParseError):
        parse_peer_address(text)


# --- invitations ------------------------------------------------------------------

INVITATION = Invitation(
    (("192.0.2.7", 8443), ("fe80::1", 8443, 0, 0)), FINGERPRINT, bytes(range(16)), 1000
)


def test_invitations_survive_being_pasted():
    """Formatting and parsing are inverses; case and white space do not matter."""
    text = format_invitation(INVITATION)

    assert parse_invitation(text) == INVITATION
    assert parse_invitation(text.upper()) == INVITATION
    assert parse_invitation(f"  {text[:40]}\n> {text[40:]}\n".replace(">", "")) == (
        INVITATION
    )
    assert text.isascii()
    assert len(text.split()) == 1


def test_an_invitation_holds_no_scope():
    """What one machine calls interface 3 is not what the other does."""
    scoped = Invitation((("fe80::1", 80, 0, 3),), FINGERPRINT, bytes(16), 0)

    assert scoped.addresses == (("fe80::1", 80, 0, 0),)
    assert parse_invitation(format_invitation(scoped)) == scoped


def seal(body: str) -> str:
    return f"{body}&sum={_build_sum(body)}"


BODY = format_invitation(INVITATION).rpartition("&sum=")[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "begins with 'degu:', got none"),
        ("https://example.org/", "begins with 'degu:', got 'https"),
        ("degu:2?x", "expected version 1, got '2'"),
        (format_invitation(INVITATION)[:-1], "its end is missing"),
        (BODY, "its end is missing"),
        (format_invitation(INVITATION) + "0", "some of it was changed"),
        (format_invitation(INVITATION).replace("8443", "8444", 1), "was changed"),
        (format_invitation(INVITATION).replace("at=", "", 1), "was changed"),
        (seal(BODY + "&evil=1"), "got 'evil'"),
        (seal(BODY + "&until=2000"), "expected one 'until', got 2"),
        (seal(BODY.replace("&until=1000", "")), "expected one 'until', got 0"),
        (seal(BODY.replace("until=1000", "until=soon")), "until: expected seconds"),
        (seal(BODY.replace("192.0.2.7", "0.0.0.0")), "address of one machine"),
        (seal(BODY.replace("fe80::1]", "fe80::1%2]")), "expected an IP literal"),
        (seal(BODY.replace("token=", "token=0")), "token: expected 16 bytes"),
        (seal(BODY.replace("id=", "id=0")), "fingerprint: expected 56"),
        (seal("degu:1?" + "at=192.0.2.7:1&" * 17 + BODY[7:]), "expected 1 to 16"),
        (seal("degu:1?id=" + BODY.partition("&id=")[2]), "expected one 'at', got 0"),
    ],
)
def test_a_wrong_invitation_is_explained(text, message):
    """Each way of being wrong has its message."""
    with pytest.raises(ParseError, match=message):
        parse_invitation(text)


def test_an_invitation_expires():
    """It is good up to its second, and the message says for how long it was not."""
    check_fresh(INVITATION, 1000)

    with pytest.raises(PairingError, match="expired 2 minutes ago"):
        check_fresh(INVITATION, 1000 + 121)


@pytest.mark.parametrize(
    "change", [{"addresses": ()}, {"fingerprint": b""}, {"token": b""}, {"until": -1}]
)
def test_an_impossible_invitation_is_not_made(change):
    """What could not be parsed is not built either."""
    fields: dict[str, Any] = {
        "addresses": INVITATION.addresses,
        "fingerprint": FINGERPRINT,
        "token": bytes(16),
        "until": 0,
    }

    Invitation(**fields)
    with pytest.raises(ValueError, match="expected"):
        Invitation(**(fields | change))

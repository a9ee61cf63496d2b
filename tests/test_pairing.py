"""degu.pairing: fingerprints, invitations and the pairing of two devices, as values."""

from __future__ import annotations

import copy
import hashlib
import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from degu.errors import ParseError
from degu.pairing import (
    ALPHABET,
    Invitation,
    Pairing,
    PairingError,
    Peer,
    State,
    build_fingerprint,
    build_pairing_code,
    build_peer_fields,
    check_fresh,
    format_fingerprint,
    format_invitation,
    format_peer_address,
    parse_fingerprint,
    parse_invitation,
    parse_peer_address,
    parse_peer_fields,
)

FINGERPRINT = hashlib.sha256(b"degu").digest()

ANNA = Peer("Anna's laptop", b"certificate of Anna", (("192.0.2.1", 8080),))
BEN = Peer("Ben's phone", b"certificate of Ben", (("2001:db8::2", 8080, 0, 0),))
MALLORY = Peer("Ben's phone", b"certificate of Mallory", BEN.addresses)


# --- fingerprints -----------------------------------------------------------------


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
    from degu.pairing import _build_check

    text = format_fingerprint(FINGERPRINT).replace("-", "")
    last = ALPHABET[ALPHABET.index(text[54]) ^ 1]
    row = text[42:54] + last

    with pytest.raises(ParseError, match="expected 32 bytes in base32"):
        parse_fingerprint(text[:42] + row + _build_check(row))


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


# --- peers ------------------------------------------------------------------------


def test_peers_survive_json():
    """What is told of a device comes back as it was."""
    fields = json.loads(json.dumps(build_peer_fields(ANNA)))

    assert parse_peer_fields(fields) == ANNA


@pytest.mark.parametrize(
    "name", ["", " Anna", "A\nB", "A\u202eB", "A\0", "x" * 65, "A\x1b[2J"]
)
def test_a_name_prints_as_it_is(name):
    """Controls and what turns the direction of a line around are refused."""
    with pytest.raises(ValueError, match="expected 1 to 64 printable"):
        Peer(name, b"x")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", 1),
        ("name", ""),
        ("certificate", "!"),
        ("certificate", ""),
        ("certificate", "A" * 8000),
        ("addresses", {}),
        ("addresses", [1]),
        ("addresses", ["localhost:80"]),
        ("addresses", ["192.0.2.7:80"] * 17),
    ],
)
def test_a_wrong_field_of_a_peer_is_named(key, value):
    """The message begins with the field."""
    with pytest.raises(ParseError, match=r"name|certificate|address"):
        parse_peer_fields(build_peer_fields(ANNA) | {key: value})


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
    from degu.pairing import _build_sum

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


# --- pairing ----------------------------------------------------------------------


def copied(message):
    """A message as it comes out of the other end of a wire."""
    return json.loads(json.dumps(message))


def exchange(initiator: Pairing, responder: Pairing) -> None:
    """Let two sides come to the point where the users compare."""
    answer = responder.receive(copied(initiator.start()))
    reveal = initiator.receive(copied(answer))
    assert responder.receive(copied(reveal)) is None


def make_sides() -> tuple[Pairing, Pairing]:
    return Pairing("initiator", ANNA), Pairing("responder", BEN)


def test_two_devices_pair():
    """Both show one code of six digits, and are paired when both users said yes."""
    initiator, responder = make_sides()
    exchange(initiator, responder)

    assert initiator.code == responder.code
    assert initiator.code is not None
    assert len(initiator.code) == 6
    assert initiator.code.isdecimal()
    assert (initiator.peer, responder.peer) == (BEN, ANNA)

    responder.receive(copied(initiator.confirm()))
    assert (initiator.state, responder.state) == (State.COMPARING, State.COMPARING)
    initiator.receive(copied(responder.confirm()))

    assert (initiator.state, responder.state) == (State.PAIRED, State.PAIRED)


def test_one_yes_is_not_enough():
    """A side that only heard the other's yes, or only said its own, is not paired."""
    initiator, responder = make_sides()
    exchange(initiator, responder)
    responder.receive(initiator.confirm())

    assert initiator.state is State.COMPARING
    assert responder.state is State.COMPARING


def test_a_no_ends_it_on_both_sides():
    """One user's no is the end, whatever the other one said."""
    initiator, responder = make_sides()
    exchange(initiator, responder)
    initiator.confirm()

    with pytest.raises(PairingError, match="the peer refused: no"):
        initiator.receive(copied(responder.refuse("no")))

    assert initiator.state is State.FAILED
    assert responder.state is State.FAILED
    with pytest.raises(PairingError):
        responder.confirm()


def test_a_strangers_reason_prints_as_it_is():
    """Controls are left out of it, and it has a length that a dialog can take."""
    for why, expected in (
        ("\x1b[2Jno\n", "the peer refused: [2Jno"),
        ("x" * 1000, "the peer refused: " + "x" * 200),
        (None, "the peer refused: "),
    ):
        side = Pairing("responder", BEN)
        with pytest.raises(PairingError) as caught:
            side.receive({"type": "refuse", "why": why})
        assert str(caught.value) == expected


def test_codes_are_fresh():
    """The same two devices get another code each time."""
    codes = set()
    for _ in range(20):
        initiator, responder = make_sides()
        exchange(initiator, responder)
        codes.add(initiator.code)

    assert len(codes) > 15


def test_the_code_depends_on_everything():
    """Each certificate, name, address and nonce changes it; who began does too."""
    one, two = bytes(32), bytes([1]) * 32
    code = build_pairing_code(ANNA, BEN, one, two)
    moved = Peer(BEN.name, BEN.certificate, (("192.0.2.66", 1),))
    renamed = Peer("B", BEN.certificate, BEN.addresses)

    assert code == build_pairing_code(ANNA, BEN, one, two)
    for other in (
        build_pairing_code(ANNA, MALLORY, one, two),
        build_pairing_code(MALLORY, BEN, one, two),
        build_pairing_code(ANNA, moved, one, two),
        build_pairing_code(ANNA, renamed, one, two),
        build_pairing_code(BEN, ANNA, one, two),
        build_pairing_code(ANNA, BEN, two, one),
        build_pairing_code(ANNA, BEN, one, one),
    ):
        assert other != code


def test_the_code_is_what_other_programs_compute():
    """One value, spelt out with hashlib and hmac, so that the protocol can't drift."""
    import hmac

    def digest(*fields: bytes) -> bytes:
        data = b"".join(len(f).to_bytes(4, "big") + f for f in fields)
        return hashlib.sha256(data).digest()

    one, two = bytes(32), bytes([1]) * 32
    anna = digest(ANNA.certificate, b"Anna's laptop", b"192.0.2.1:8080")
    ben = digest(BEN.certificate, b"Ben's phone", b"[2001:db8::2]:8080")
    mac = hmac.new(one + two, b"degu pairing 1 code" + anna + ben, hashlib.sha256)
    number = int(mac.hexdigest(), 16) % 1_000_000

    assert build_pairing_code(ANNA, BEN, one, two) == f"{number:06d}"


def test_fields_can_not_run_into_each_other():
    """What moves from a name into a certificate is another device."""
    one, two = bytes(32), bytes([1]) * 32
    left, right = Peer("bc", b"a"), Peer("c", b"ab")

    assert build_pairing_code(ANNA, left, one, two) != build_pairing_code(
        ANNA, right, one, two
    )


def test_a_man_in_the_middle_gives_two_codes():
    """Who pairs with each side under its own certificate shows each another code."""
    differing = 0
    for _ in range(50):
        anna, ben = make_sides()
        to_anna = Pairing("responder", MALLORY)
        to_ben = Pairing("initiator", Peer(ANNA.name, b"Mallory's", ANNA.addresses))
        exchange(anna, to_anna)
        exchange(to_ben, ben)
        differing += anna.code != ben.code

    assert differing >= 49  # A guess is right once in a million.


def test_a_man_in_the_middle_that_forwards_the_nonces_gives_two_codes():
    """Nor does it help to pass on the honest nonces around other certificates."""
    anna, ben = make_sides()
    answer = ben.receive(
        anna.start() | {"certificate": build_peer_fields(MALLORY)["certificate"]}
    )
    reveal = anna.receive(
        copied(answer) | {"certificate": build_peer_fields(MALLORY)["certificate"]}
    )

    # The commitment covers the certificate, so Ben's side does not even get a code.
    with pytest.raises(PairingError, match="committed to"):
        ben.receive(reveal)
    assert ben.code is None
    assert anna.code is not None


def test_a_nonce_that_was_not_committed_to_is_refused():
    """Else the initiator could choose its nonce after the responder's: any code."""
    initiator, responder = make_sides()
    answer = responder.receive(initiator.start())
    reveal = initiator.receive(answer)
    assert reveal is not None

    with pytest.raises(PairingError, match="expected the one that was committed to"):
        responder.receive(reveal | {"nonce": "00" * 32})

    assert responder.state is State.FAILED
    assert responder.code is None
    with pytest.raises(PairingError):  # Nor is there a second try with the right one.
        responder.receive(reveal)


def test_a_replay_gives_another_code():
    """The messages of an old attempt, sent again, meet a fresh nonce."""
    initiator, responder = make_sides()
    hello = copied(initiator.start())
    reveal = copied(initiator.receive(responder.receive(hello)))
    responder.receive(reveal)
    again = Pairing("responder", BEN)
    again.receive(hello)
    again.receive(reveal)

    assert again.code != responder.code


def test_a_reflection_is_refused():
    """A device does not pair with itself, nor with an echo of itself."""
    initiator = Pairing("initiator", ANNA)
    hello = initiator.start()

    with pytest.raises(PairingError, match="got our own"):
        Pairing("responder", ANNA).receive(hello)
    with pytest.raises(PairingError, match="expected no 'hello' while waiting"):
        initiator.receive(hello)


def test_the_certificate_of_the_handshake_is_the_one_that_counts():
    """A server that claims another certificate than TLS saw is refused."""
    answer = Pairing("responder", BEN).receive(Pairing("initiator", ANNA).start())

    for certificate, ok in ((BEN.certificate, True), (b"another", False)):
        side = Pairing("initiator", ANNA, shown_certificate=certificate)
        side.start()
        if ok:
            side.receive(copied(answer))
            assert side.state is State.COMPARING
        else:
            with pytest.raises(PairingError, match="one of the TLS handshake"):
                side.receive(copied(answer))
            assert side.state is State.FAILED


HELLO = Pairing("initiator", ANNA).start()


def advance(role: str, state: State) -> Pairing:
    """One side in `state`."""
    initiator, responder = make_sides()
    side = initiator if role == "initiator" else responder
    if state is State.NEW:
        return side
    hello = initiator.start()
    if state is State.WAITING and role == "initiator":
        return side
    answer = responder.receive(hello)
    if state is State.WAITING:
        return side
    responder.receive(initiator.receive(answer))
    if state is State.COMPARING:
        return side
    if state is State.FAILED:
        side.refuse()
        return side
    yes = initiator.confirm()
    initiator.receive(responder.confirm())
    responder.receive(yes)
    return side


IN_TURN = {
    ("responder", State.NEW): "hello",
    ("responder", State.WAITING): "reveal",
    ("initiator", State.WAITING): "answer",
    ("responder", State.COMPARING): "confirm",
    ("initiator", State.COMPARING): "confirm",
}


@pytest.mark.parametrize("kind", ["hello", "answer", "reveal", "confirm"])
@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("role", ["initiator", "responder"])
def test_a_message_out_of_turn_ends_the_attempt(role, state, kind):
    """In each state of each side, all messages but one are the end of it."""
    hello = Pairing("initiator", MALLORY).start()
    answer = Pairing("responder", MALLORY).receive(HELLO)
    messages = {
        "hello": hello,
        "answer": answer,
        "reveal": {"type": "reveal", "nonce": "00" * 32},
        "confirm": {"type": "confirm"},
    }
    side = advance(role, state)
    assert side.state is state
    if IN_TURN.get((role, state)) == kind != "reveal":
        side.receive(messages[kind])
        assert side.state is not State.FAILED
        return

    with pytest.raises(PairingError):
        side.receive(messages[kind])

    assert side.state is (State.PAIRED if state is State.PAIRED else State.FAILED)


def test_nothing_is_said_twice():
    """A second start, a second yes, a second confirm and a late no are errors."""
    initiator, responder = make_sides()
    exchange(initiator, responder)
    with pytest.raises(PairingError, match="expected a new initiator"):
        initiator.start()
    with pytest.raises(PairingError, match="expected a new initiator"):
        responder.start()
    initiator.confirm()
    with pytest.raises(PairingError, match="expected one yes"):
        initiator.confirm()
    paired = advance("initiator", State.PAIRED)
    with pytest.raises(PairingError, match="got one after"):
        paired.refuse()

    responder.receive({"type": "confirm"})
    with pytest.raises(PairingError, match="got a second"):
        responder.receive({"type": "confirm"})


@pytest.mark.parametrize(
    "message",
    [
        None,
        [],
        "hello",
        {},
        {"type": None},
        {"type": ["hello"]},
        {"type": "hallo"},
        {"type": "hello"},
        HELLO | {"extra": 1},
        HELLO | {"version": 2},
        HELLO | {"version": "1"},
        HELLO | {"commitment": "00"},
        HELLO | {"commitment": "AA" * 32},
        HELLO | {"commitment": 1},
        HELLO | {"certificate": "?"},
        HELLO | {"name": "\x1b"},
        HELLO | {"addresses": ["::"]},
    ],
)
def test_a_malformed_message_ends_the_attempt(message):
    """Strict in: every field, no other, each in its one form."""
    before = copy.deepcopy(message)
    Pairing("responder", BEN).receive(HELLO)
    side = Pairing("responder", BEN)

    with pytest.raises(PairingError):
        side.receive(message)

    assert side.state is State.FAILED
    assert side.peer is None
    assert message == before

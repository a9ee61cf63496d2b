"""degu.pairing: the messages of two devices, and the code that both users compare."""

from __future__ import annotations

import copy
import hashlib
import json

import pytest

from degu.errors import PairingError, ParseError
from degu.pairing import (
    Pairing,
    Peer,
    State,
    build_pairing_code,
    build_peer_fields,
    parse_peer_fields,
)

ANNA = Peer("Anna's laptop", b"certificate of Anna", (("192.0.2.1", 8080),))
BEN = Peer("Ben's phone", b"certificate of Ben", (("2001:db8::2", 8080, 0, 0),))
MALLORY = Peer("Ben's phone", b"certificate of Mallory", BEN.addresses)


# --- peers ------------------------------------------------------------------------


def test_peers_survive_json():
    """What is told of a device comes back as it was."""
    fields = json.loads(json.dumps(build_peer_fields(ANNA)))

    assert parse_peer_fields(fields) == ANNA


@pytest.mark.parametrize(
    "name", ["", " Anna", "A\nB", "A\u202eB", "A\0", "x" * 65, "A\x1b[2J", "\u3164"]
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

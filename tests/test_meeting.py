"""degu.meeting: two devices pair over HTTP, while a window is open."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from degu.client import SSLClient
from degu.errors import PairingError
from degu.joining import pair
from degu.meeting import PairingWindow
from degu.pairing import Pairing, Peer, State
from degu.peers import PeerClient, PeersOnly
from degu.tls import build_pinned_sslctx
from tests.conftest import poll
from tests.devices import (
    DEADLINE,
    Clock,
    a_device_anna,  # noqa: F401
    a_device_ben,  # noqa: F401
    a_device_mallory,  # noqa: F401
    build_pem,
    hello_app,
    never,
    pairing,
    parse_der,
    read_body,
    send,
    serving,
)


def test_two_devices_pair_over_http(anna, ben):
    """Both users see one code and say yes; then the peers connect, both ways."""
    codes: list[tuple[str, str]] = []
    told: list[Peer] = []

    def on_code(window: PairingWindow) -> None:
        assert window.code is not None
        assert window.peer is not None
        codes.append((window.code, window.peer.name))
        window.confirm()

    def compare(code: str, peer: Peer) -> bool:
        codes.append((code, peer.name))
        assert anna.store.peers == ()
        assert ben.store.peers == ()
        return True

    here, there = ("192.0.2.1", 1), ("192.0.2.2", 2)
    with pairing(anna, on_code=on_code, on_paired=told.append, addresses=[here]) as (
        app,
        address,
    ):
        window = app.open()
        peer = pair(
            ben.identity, ben.store, address, compare, name="Ben", addresses=[there]
        )
        assert window.wait(DEADLINE) == anna.store.peers[0]
        assert window.state is State.PAIRED

    assert codes[0][0] == codes[1][0]
    assert [name for _, name in codes] == ["Ben", "Anna"]
    assert told == list(anna.store.peers)
    assert (peer.fingerprint, peer.addresses) == (anna.identity.fingerprint, (here,))
    assert ben.store.peers == (peer,)
    assert anna.store.peers[0].addresses == (there,)
    with serving(anna, PeersOnly(hello_app, anna.store)) as address:
        client = PeerClient(ben.store, ben.identity, peer, address)
        assert read_body(client.get("/")) == b"Ben"
        client.close()


def test_the_responders_user_may_take_time(anna, ben):
    """The initiator asks again until the other user said yes, from another thread."""
    with pairing(anna) as (app, address), ThreadPoolExecutor(1) as pool:
        window = app.open()
        future = pool.submit(
            pair, ben.identity, ben.store, address, lambda c, p: True, name="Ben"
        )
        poll(lambda: window._pairing.peer_confirmed)
        assert not future.done()
        assert anna.store.peers == ()
        window.confirm()
        assert future.result(DEADLINE).name == "Anna"
        assert window.wait() is not None


def test_the_initiators_no_is_the_end(anna, ben):
    """Nobody is stored, though the responder's user said yes."""
    with pairing(anna, on_code=PairingWindow.confirm) as (app, address):
        window = app.open()
        with pytest.raises(PairingError, match="got this user's no"):
            pair(ben.identity, ben.store, address, lambda c, p: False, name="Ben")
        assert window.wait(DEADLINE) is None
        assert window.state is State.FAILED

    assert anna.store.peers == ben.store.peers == ()


def test_the_responders_no_is_the_end(anna, ben):
    """Nobody is stored, though the initiator's user said yes."""
    with pairing(anna, on_code=PairingWindow.refuse) as (app, address):
        window = app.open()
        with pytest.raises(PairingError, match="the peer refused"):
            pair(ben.identity, ben.store, address, lambda c, p: True, name="Ben")
        assert window.wait(DEADLINE) is None

    assert anna.store.peers == ben.store.peers == ()


def test_a_man_in_the_middle_shows_two_codes(anna, ben, mallory):
    """Mallory pairs with both at once; the codes differ, so the users say no."""
    seen: dict[str, str] = {}

    def on_code(window: PairingWindow) -> None:
        seen["Anna"] = window.code or ""

    def compare(code: str, peer: Peer) -> bool:
        seen["Ben"] = code
        return False

    with (
        pairing(anna, on_code=on_code) as (app, address),
        pairing(mallory) as (middle, middle_address),
        ThreadPoolExecutor(1) as pool,
    ):
        window = app.open()
        middle.open()
        to_anna = pool.submit(
            pair,
            mallory.identity,
            mallory.store,
            address,
            lambda c, p: True,
            name="Ben",
        )
        poll(lambda: "Anna" in seen)
        with pytest.raises(PairingError):
            pair(ben.identity, ben.store, middle_address, compare, name="Ben")
        # Once in a million runs Mallory guesses right.
        assert seen["Anna"] != seen["Ben"]
        window.refuse()
        with pytest.raises(PairingError):
            to_anna.result(DEADLINE)

    assert anna.store.peers == ben.store.peers == ()


def test_without_a_window_there_is_no_pairing(anna, ben):
    """Closed is how it begins, and how it ends."""
    compare = never
    with pairing(anna) as (app, address):
        with pytest.raises(PairingError, match="window, got none"):
            pair(ben.identity, ben.store, address, compare, name="Ben")
        app.open()
        app.close()
        with pytest.raises(PairingError, match="the peer refused"):
            pair(ben.identity, ben.store, address, compare, name="Ben")


def test_a_window_ends_by_itself(anna, ben):
    """After its time there is neither a first message nor a late yes."""
    clock = Clock()
    hello = Pairing("initiator", ben.me).start()
    with pairing(anna, clock=clock) as (app, address):
        window = app.open(60)
        clock.now += 60
        status, answer = send(address, hello, anna)
        assert (status, answer["why"]) == (
            403,
            "expected an open pairing window, got its end",
        )
        assert window.state is State.FAILED
        assert window.wait() is None
        # Nobody came, so the next one may be opened at once.
        window = app.open(60)
        side = Pairing("initiator", ben.me)
        status, answer = send(address, side.start(), anna)
        attempt = {"attempt": answer.pop("attempt")}
        reveal = side.receive(answer) or {}
        assert send(address, reveal | attempt, anna)[0] == 200
        clock.now += 60
        with pytest.raises(PairingError, match="got its end"):
            window.confirm()
        assert send(address, side.confirm() | attempt, anna)[0] == 403

    assert anna.store.peers == ()


def test_a_yes_that_comes_after_the_window_is_too_late(anna, ben):
    """The responder's user said yes in time, the initiator's did not."""
    clock = Clock()
    with pairing(anna, clock=clock, on_code=PairingWindow.confirm) as (app, address):
        window = app.open(60)
        side = Pairing("initiator", ben.me)
        _, answer = send(address, side.start(), anna)
        attempt = {"attempt": answer.pop("attempt")}
        send(address, (side.receive(answer) or {}) | attempt, anna)
        clock.now += 60
        assert send(address, side.confirm() | attempt, anna)[0] == 403
        assert window.state is State.FAILED

    assert anna.store.peers == ()


def test_a_window_is_for_one_attempt(anna, ben, mallory):
    """A second device is refused, and the first goes on undisturbed."""
    with pairing(anna) as (app, address):
        window = app.open()
        side = Pairing("initiator", ben.me)
        _, answer = send(address, side.start(), anna)
        attempt = {"attempt": answer.pop("attempt")}
        other = Pairing("initiator", mallory.me).start()
        for message in (
            other,
            {"type": "refuse", "why": "no"},
            {"type": "refuse", "why": "no", "attempt": "00"},
            {"type": "wait"},
            {"type": "confirm", "attempt": None},
        ):
            status, refusal = send(address, message, anna)
            assert (status, refusal["type"]) == (403, "refuse")
        reveal = side.receive(answer) or {}
        assert send(address, reveal | attempt, anna) == (200, {"type": "wait"})
        assert window.code == side.code
        window.confirm()
        yes = send(address, side.confirm() | attempt, anna)
        assert yes == (200, {"type": "confirm"})

    assert [peer.name for peer in anna.store.peers] == ["Ben"]


def test_a_wrong_message_uses_the_window_up(anna, ben):
    """Out of turn or malformed with the right attempt: over, the window too."""
    with pairing(anna) as (app, address):
        window = app.open()
        side = Pairing("initiator", ben.me)
        _, answer = send(address, side.start(), anna)
        attempt = {"attempt": answer.pop("attempt")}
        assert send(address, {"type": "confirm"} | attempt, anna)[0] == 403
        reveal = side.receive(answer) or {}
        assert send(address, reveal | attempt, anna)[0] == 403
        assert window.state is State.FAILED
        assert window.code is None


def test_a_device_that_can_not_be_pinned_is_refused_before_the_code(anna, ben):
    """A CA's certificate does not come as far as the users."""
    hello = Pairing("initiator", Peer("Ben", parse_der(build_pem(ca=True)))).start()
    with pairing(anna) as (app, address):
        window = app.open()
        status, answer = send(address, hello, anna)
        assert status == 403
        assert "got a CA" in answer["why"]
        assert window.state is State.FAILED


def test_failed_attempts_make_the_next_one_wait(anna, ben):
    """2, 4, 8 ... 300 seconds, until one succeeds: guessing takes for ever."""
    clock = Clock()
    with pairing(anna, clock=clock) as (app, address):
        for pause in (2, 4, 8, 16, 32, 64, 128, 256, 300, 300):
            window = app.open()
            with pytest.raises(PairingError, match="expected no open pairing window"):
                app.open()
            hello = Pairing("initiator", ben.me).start()
            assert send(address, hello, anna)[0] == 200
            window.refuse()
            for _ in range(2):
                with pytest.raises(PairingError, match=r"expected a pause after \d+"):
                    app.open()
            clock.now += pause - 0.5
            with pytest.raises(PairingError, match="expected a pause"):
                app.open()
            clock.now += 1
        app.on_code = PairingWindow.confirm
        window = app.open()
        pair(ben.identity, ben.store, address, lambda c, p: True, name="Ben")
        app.open().refuse()
        app.open()


def test_a_store_that_can_not_be_written_pairs_nobody(anna, ben, monkeypatch):
    """The initiator is not told yes, and does not store either."""

    def fail(peer: Peer) -> Peer:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(anna.store, "add", fail)
    with pairing(anna) as (app, address), ThreadPoolExecutor(1) as pool:
        window = app.open()
        future = pool.submit(
            pair, ben.identity, ben.store, address, lambda c, p: True, name="Ben"
        )
        poll(lambda: window._pairing.peer_confirmed)
        with pytest.raises(OSError, match="No space"):
            window.confirm()
        with pytest.raises(PairingError):
            future.result(DEADLINE)
        assert window.wait() is None
        assert window.state is State.FAILED

    assert ben.store.peers == ()


def test_only_json_is_answered(anna, ben):
    """Other methods, types, sizes and contents are 400, and touch no window."""
    with pairing(anna) as (app, address):
        window = app.open()
        client = SSLClient(build_pinned_sslctx(anna.identity.certificate), address)
        json_type = {"content-type": "application/json"}
        for method, headers, body in (
            ("GET", {}, None),
            ("POST", {}, b"{}"),
            ("POST", {"content-type": "text/plain"}, b"{}"),
            ("PUT", json_type, b"{}"),
            ("POST", json_type, None),
            ("POST", json_type, b"[]"),
            ("POST", json_type, b"{"),
            ("POST", json_type, b"\xff"),
            ("POST", json_type, b"[" * 10_000),
            ("POST", json_type, b" " * 20_000 + b"{}"),
        ):
            with client.connect() as connection:
                response = connection.request(method, "/", headers, body)
                assert response.status == 400
                assert json.loads(read_body(response))["type"] == "refuse"
        assert not window.attempted
        assert window.state is State.NEW

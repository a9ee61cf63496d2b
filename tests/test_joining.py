"""degu.joining: a device comes by an invitation, or to a server that is none."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from degu import meeting
from degu.errors import PairingError, ParseError, TLSError
from degu.invitation import Invitation, format_invitation, parse_invitation
from degu.joining import _Conversation, accept_invitation, expand_address, pair
from degu.meeting import PairingApp
from degu.pairing import JSON, Peer, build_peer_fields, format_message
from degu.server import Server, SSLServer
from tests.devices import (
    DEADLINE,
    LOOPBACK,
    Clock,
    Device,
    a_device_anna,  # noqa: F401
    a_device_ben,  # noqa: F401
    a_device_mallory,  # noqa: F401
    build_pem,
    never,
    pairing,
    parse_der,
    send,
)


def test_link_local_addresses_are_tried_on_each_interface(monkeypatch):
    """The scope id is this machine's; all other addresses stay as they are."""
    monkeypatch.setattr(
        socket, "if_nameindex", lambda: [(1, "lo"), (2, "eth0"), (7, "wlan0")]
    )

    assert expand_address(("fe80::1", 80, 0, 0)) == [
        ("fe80::1", 80, 0, 2),
        ("fe80::1", 80, 0, 7),
    ]
    for address in (
        ("fe80::1", 80, 0, 2),
        ("2001:db8::1", 80, 0, 0),
        ("192.0.2.1", 80),
        "/run/x.sock",
        b"\0x",
        "/run",
    ):
        assert expand_address(address) == [address]


def test_an_invitation_makes_two_devices_trust_each_other(anna, ben):
    """Pasted on the other side it is all that it takes, both ways, with addresses."""
    told: list[Peer] = []
    here, there = ("192.0.2.1", 1), ("192.0.2.2", 2)
    with pairing(anna, addresses=[here], on_paired=told.append) as (app, address):
        text = format_invitation(app.invite([address]))
        peer = accept_invitation(
            ben.identity,
            ben.store,
            parse_invitation(text),
            name="Ben",
            addresses=[there],
        )

    assert (peer.name, peer.addresses) == ("Anna", (here,))
    assert peer.fingerprint == anna.identity.fingerprint
    assert ben.store.peers == (peer,)
    assert anna.store.peers == tuple(told)
    assert (told[0].name, told[0].addresses) == ("Ben", (there,))
    assert told[0].fingerprint == ben.identity.fingerprint


def test_an_invitation_is_good_once(anna, ben, mallory):
    """Who comes second is refused, and finds out that somebody was first."""
    with pairing(anna) as (app, address):
        invitation = app.invite([address])
        accept_invitation(ben.identity, ben.store, invitation, name="Ben")
        with pytest.raises(PairingError, match="one that was used"):
            accept_invitation(
                mallory.identity, mallory.store, invitation, name="Mallory"
            )

    assert [peer.name for peer in anna.store.peers] == ["Ben"]
    assert mallory.store.peers == ()


def test_a_guest_renames_nobody(anna, ben):
    """A certificate is public: to show another's is no proof of being that device."""
    with pairing(anna) as (app, address):
        accept_invitation(ben.identity, ben.store, app.invite([address]), name="Ben")
        known = anna.store.peers
        for name in ("Mallory", "Anna"):
            with pytest.raises(PairingError):
                accept_invitation(
                    ben.identity, ben.store, app.invite([address]), name=name
                )
        with pytest.raises(PairingError):
            accept_invitation(
                anna.identity, ben.store, app.invite([address]), name="Anna"
            )
        assert anna.store.peers == known
        accept_invitation(ben.identity, ben.store, app.invite([address]), name="Ben")


def test_an_invitation_that_two_use_at_once_is_good_once(anna, ben, mallory):
    """There is no moment between looking it up and using it up."""
    with pairing(anna) as (app, address), ThreadPoolExecutor(2) as pool:
        invitation = app.invite([address])
        futures = [
            pool.submit(
                accept_invitation,
                device.identity,
                device.store,
                invitation,
                name=device.name,
            )
            for device in (ben, mallory)
        ]
        failures = [future.exception(DEADLINE) for future in futures]

    assert sorted(type(failure).__name__ for failure in failures) == [
        "NoneType",
        "PairingError",
    ]
    assert len(anna.store.peers) == 1


def test_an_invitation_expires_on_both_sides(anna, ben):
    """The client does not even try; the server does not trust the client's clock."""
    clock = Clock()
    with pairing(anna, clock=clock) as (app, address):
        expired = app.invite([address], seconds=-1)
        with pytest.raises(PairingError, match="expired 0 minutes ago"):
            accept_invitation(ben.identity, ben.store, expired, name="Ben")
        invitation = app.invite([address], seconds=60)
        clock.now += 60
        with pytest.raises(PairingError, match="is too old"):
            accept_invitation(ben.identity, ben.store, invitation, name="Ben")

    assert anna.store.peers == ben.store.peers == ()


def test_invitations_can_be_revoked(anna, ben):
    """All that are out at once; new ones are good."""
    with pairing(anna) as (app, address):
        invitation = app.invite([address])
        app.revoke_invitations()
        with pytest.raises(PairingError, match="was revoked"):
            accept_invitation(ben.identity, ben.store, invitation, name="Ben")
        accept_invitation(ben.identity, ben.store, app.invite([address]), name="Ben")


def test_a_wrong_token_is_refused(anna, ben):
    """A guess changes nothing for the invitation that is out."""
    with pairing(anna) as (app, address):
        good = app.invite([address])
        guess = Invitation(good.addresses, good.fingerprint, bytes(16), good.until)
        with pytest.raises(PairingError, match="expected one that is still good"):
            accept_invitation(ben.identity, ben.store, guess, name="Ben")
        accept = {"type": "accept"} | build_peer_fields(ben.me)
        for token in (None, 1, "", "zz", good.token.hex()[:-1]):
            assert send(address, accept | {"token": token}, anna)[0] == 403
        assert send(address, accept, anna)[0] == 403
        assert anna.store.peers == ()
        accept_invitation(ben.identity, ben.store, good, name="Ben")

    assert len(anna.store.peers) == 1


def test_an_invitation_is_not_used_up_by_a_bad_certificate(anna, ben):
    """What can't be pinned is refused before the token counts."""
    with pairing(anna) as (app, address):
        good = app.invite([address])
        bad = Peer("Ben", parse_der(build_pem(ca=True)))
        accept = {"type": "accept", "token": good.token.hex()} | build_peer_fields(bad)
        status, answer = send(address, accept, anna)
        assert status == 403
        assert "got a CA" in answer["why"]
        accept_invitation(ben.identity, ben.store, good, name="Ben")


def test_nothing_is_sent_to_a_server_of_another_fingerprint(anna, ben, mallory):
    """Who listens on the address instead learns neither the token nor the name."""
    heard: list[Any] = []

    def app(request: Any) -> Any:
        heard.append(request)
        return (200, "OK", {}, None)

    with (
        pairing(anna) as (real, real_address),
        SSLServer(
            PairingApp(mallory.identity, mallory.store, name="Anna").sslconfig,
            LOOPBACK,
            app,
        ).running() as fake,
    ):
        good = real.invite([real_address])
        lured = Invitation((fake.address,), good.fingerprint, good.token, good.until)
        with pytest.raises(TLSError, match=r"expected the fingerprint .* invitation"):
            accept_invitation(ben.identity, ben.store, lured, name="Ben")
        assert heard == []
        assert ben.store.peers == ()

        # The control: with the real address behind it, the next one is tried.
        both = Invitation(
            (fake.address, real_address), good.fingerprint, good.token, good.until
        )
        assert accept_invitation(ben.identity, ben.store, both, name="Ben")
        assert heard == []


def test_a_server_that_is_swapped_after_the_look_is_refused(anna, mallory):
    """Each connection is pinned anew: no message goes to another certificate."""
    with pairing(mallory) as (_, address):
        talk = _Conversation(address, anna.identity.certificate)
        with pytest.raises(TLSError, match="this side refused"):
            talk.send({"type": "wait"})
        # The control: to the owner of the certificate it goes.
        talk = _Conversation(address, mallory.identity.certificate)
        with pytest.raises(PairingError, match="window, got none"):
            talk.send({"type": "wait"})


def test_a_server_that_can_not_be_pinned_is_told_nothing(ben, tmp_path):
    """A CA could let others pose as the one that was seen."""
    heard: list[Any] = []
    ca = Device(tmp_path, "ca", build_pem(ca=True))
    config = PairingApp(ca.identity, ca.store, name="ca").sslconfig
    with (
        SSLServer(config, LOOPBACK, heard.append).running() as server,
        pytest.raises(ParseError, match="got a CA"),
    ):
        pair(ben.identity, ben.store, server.address, never, name="Ben")

    assert heard == []


def test_nobody_there_is_an_error_of_the_connection(anna, ben):
    """No address answers: an OSError, as of any connection."""
    with socket.create_server(LOOPBACK) as listener:
        address = listener.getsockname()
    invitation = Invitation((address,), anna.identity.fingerprint, bytes(16), 2**33)

    with pytest.raises(OSError, match="refused"):
        accept_invitation(ben.identity, ben.store, invitation, name="Ben")


def test_a_server_that_is_no_pairing_server_is_told_apart(anna, ben):
    """An HTTPS server that answers something else is named as that."""

    def app(request: Any) -> Any:
        return (404, "Not Found", {}, b"<html>")

    config = PairingApp(anna.identity, anna.store, name="Anna").sslconfig
    with (
        SSLServer(config, LOOPBACK, app).running() as server,
        pytest.raises(PairingError, match="expected a pairing server, got 404"),
    ):
        pair(ben.identity, ben.store, server.address, never, name="Ben")


def test_a_user_who_never_answers_is_not_waited_for_for_ever(anna, ben, monkeypatch):
    """It is asked again until the time is over, and nobody is stored."""
    monkeypatch.setattr(meeting, "POLL_SECONDS", 0.01)
    with pairing(anna) as (app, address):
        app.open()
        with pytest.raises(PairingError, match=r"user to confirm in 0\.1 s"):
            pair(
                ben.identity,
                ben.store,
                address,
                lambda code, peer: True,
                name="Ben",
                timeout=0.1,
            )

    assert anna.store.peers == ben.store.peers == ()


def test_an_inviter_that_names_another_is_not_trusted(anna, ben, mallory):
    """The certificate that it claims has to be the one that was seen."""

    def app(request: Any) -> Any:
        answer = {"type": "accepted"} | build_peer_fields(mallory.me)
        return (200, "OK", {"content-type": JSON}, format_message(answer))

    config = PairingApp(anna.identity, anna.store, name="Anna").sslconfig
    with SSLServer(config, LOOPBACK, app).running() as server:
        invitation = Invitation(
            (server.address,), anna.identity.fingerprint, bytes(16), 2**33
        )
        with pytest.raises(PairingError, match="the inviter's own certificate"):
            accept_invitation(ben.identity, ben.store, invitation, name="Ben")

    assert ben.store.peers == ()


def test_a_plain_server_is_no_pairing_server(ben):
    """Without TLS there is no certificate to compare."""
    with (
        Server(LOOPBACK, lambda request: (200, "OK", {}, None)).running() as server,
        pytest.raises(TLSError),
    ):
        pair(ben.identity, ben.store, server.address, never, name="Ben")

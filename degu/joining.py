"""How a device joins another over HTTP, by a code or an invitation; the client's end.

It looks at the certificate of whoever listens there, and then talks to its owner alone.
The server's end is in `degu.meeting`.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from degu.address import Address, connect
from degu.certificate import check_certificate
from degu.client import SSLClient
from degu.errors import PairingError, ParseError, TLSError
from degu.fingerprint import build_fingerprint, format_fingerprint
from degu.identity import Identity
from degu.invitation import Invitation, check_fresh
from degu.pairing import (
    JSON,
    MAX_MESSAGE_SIZE,
    WAIT,
    WINDOW_SECONDS,
    Message,
    Pairing,
    Peer,
    build_peer_fields,
    build_refused_error,
    format_message,
    parse_fields,
    parse_message,
    parse_peer_fields,
)
from degu.store import PeerStore
from degu.tls import build_pinned_sslctx, read_certificate

__all__ = ["accept_invitation", "expand_address", "pair"]

LOOK_TIMEOUT = 10.0
"""Seconds for a first look at a server's certificate."""

Compare = Callable[[str, Peer], bool]
"""Show the code and the peer, who is not trusted yet; the user's yes or no."""


def pair(
    identity: Identity,
    store: PeerStore,
    address: Address,
    compare: Compare,
    *,
    name: str,
    addresses: Iterable[Address] = (),
    timeout: float = WINDOW_SECONDS,
) -> Peer:
    """Pair with the device whose `PairingApp` listens on `address`; blocks.

    `compare(code, peer)` asks this device's user and returns True for equal codes;
    the peer's user has to say yes too, within `timeout` seconds after that. `name`
    and `addresses` are what the peer stores of this device.

    Returns the peer, then in `store`. Raises `PairingError` where the devices did
    not come to trust each other, `ParseError` for a server whose certificate can't
    be pinned, and `OSError` where there is no connection.
    """
    certificate = _look_at(address, LOOK_TIMEOUT)
    me = identity.build_peer(name, addresses)
    pairing = Pairing("initiator", me, shown_certificate=certificate)
    conversation = _Conversation(address, certificate)
    answer = conversation.send(pairing.start())
    attempt = {"attempt": answer.pop("attempt", None)}
    reveal = pairing.receive(answer) or {}
    code, peer = pairing.code, pairing.peer
    assert code is not None
    assert peer is not None
    conversation.send(reveal | attempt)
    if compare(code, peer) is not True:
        with suppress(PairingError, OSError):
            conversation.send(pairing.refuse() | attempt)
        raise PairingError("expected equal codes, got this user's no")
    answer = conversation.send(pairing.confirm() | attempt)
    deadline = time.monotonic() + timeout
    while answer == WAIT:
        if time.monotonic() > deadline:
            raise PairingError(f"expected the peer's user to confirm in {timeout} s")
        answer = conversation.send(WAIT | attempt)
    pairing.receive(answer)
    return store.add(peer)


def accept_invitation(
    identity: Identity,
    store: PeerStore,
    invitation: Invitation,
    *,
    name: str,
    addresses: Iterable[Address] = (),
    timeout: float = LOOK_TIMEOUT,
) -> Peer:
    """Become trusted by the device that made `invitation`, and trust it; blocks.

    The addresses of the invitation are tried in turn, `timeout` seconds each. Nothing
    is sent, not even this device's name, to a server of another fingerprint.

    Returns the peer, then in `store`. Raises `PairingError` for an invitation that
    expired or was used, `TLSError` where only others were found, `OSError` where
    there is no connection.
    """
    check_fresh(invitation, time.time())
    me = identity.build_peer(name, addresses)
    address, certificate = _find_inviter(invitation, timeout)
    accept = {"type": "accept", "token": invitation.token.hex()}
    conversation = _Conversation(address, certificate)
    kind, fields = parse_fields(conversation.send(accept | build_peer_fields(me)))
    peer = parse_peer_fields(fields)
    if kind != "accepted" or peer.certificate != certificate:
        raise PairingError("expected the inviter's own certificate, got another")
    return store.add(peer)


def _find_inviter(invitation: Invitation, timeout: float) -> tuple[Address, bytes]:
    failure: OSError = TLSError("expected an address to connect to, got none")
    for address in _expand_all(invitation.addresses):
        try:
            certificate = _look_at(address, timeout)
        except OSError as error:
            failure = error
            continue
        fingerprint = build_fingerprint(certificate)
        if fingerprint == invitation.fingerprint:
            return address, certificate
        failure = TLSError(
            f"this side refused {address!r}: expected the fingerprint "
            f"{format_fingerprint(invitation.fingerprint)} of the invitation, "
            f"got {format_fingerprint(fingerprint)}"
        )
    raise failure


def _look_at(address: Address, timeout: float) -> bytes:
    return read_certificate(connect(address, timeout), timeout)


def _expand_all(addresses: Iterable[Address]) -> list[Address]:
    return [one for address in addresses for one in expand_address(address)]


def expand_address(address: Address) -> list[Address]:
    """Expand an address that came from another machine to what can be connected to.

    A link-local IPv6 address without a scope id can be on any interface of this
    machine: one 4-tuple for each. Any other address is itself.
    """
    if len(address) != 4 or not isinstance(address, tuple) or address[3]:
        return [address]
    if not address[0].lower().startswith(("fe8", "fe9", "fea", "feb")):
        return [address]
    host, port, flow_info, _ = address
    return [
        (host, port, flow_info, index)
        for index, name in socket.if_nameindex()
        if not name.startswith("lo")
    ]


class _Conversation:
    """Messages to the one server that owns `certificate`, which can be pinned."""

    def __init__(self, address: Address, certificate: bytes) -> None:
        check_certificate(certificate)
        self._client = SSLClient(build_pinned_sslctx(certificate), address)

    def send(self, message: Message) -> Message:
        """Send `message`; the answer. Raises `PairingError` where it is a refusal."""
        # A connection for each: a user may take longer than a server keeps one.
        with self._client.connect() as connection:
            response = connection.post(
                "/", {"content-type": JSON}, format_message(message)
            )
            body = response.body
            data = b"" if body is None else body.read(MAX_MESSAGE_SIZE + 1)
        try:
            answer = parse_message(data)
        except ParseError as error:
            raise PairingError(
                f"expected a pairing server, got {response.status} "
                f"{response.reason}: {error}"
            ) from error
        if response.status != 200:
            raise build_refused_error(answer.get("why"))
        return answer

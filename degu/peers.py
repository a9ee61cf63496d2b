"""Devices that know each other: who is let in, and who is talked to.

There is no CA. The TLS handshake lets through the certificates of a `PeerStore` and no
others. After it the SHA-256 of the certificate is looked up in the store once more,
since OpenSSL keeps the anchors that it has seen, and a peer that was removed meanwhile
is refused by this.

All that an application needs of the modules below is here as well:

    degu.identity                        a device's own key and certificate
    degu.store                           the peers that it trusts, and their sslconfigs
    degu.meeting, degu.joining           how they come to be trusted, over HTTP
    degu.pairing                         the messages and the code of that, pure
    degu.invitation, degu.fingerprint    text for people

Needs the extra ``degu[peers]`` (cryptography) to make, load and check certificates;
the rest does not import it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from degu.address import Address
from degu.certificate import check_certificate
from degu.client import Connection, SSLClient
from degu.errors import DeguError, PairingError, PeerFileError, TLSError
from degu.fingerprint import build_fingerprint, format_fingerprint, parse_fingerprint
from degu.identity import Identity, load_identity, make_identity
from degu.invitation import Invitation, format_invitation, parse_invitation
from degu.joining import accept_invitation, expand_address, pair
from degu.meeting import PairingApp, PairingWindow
from degu.pairing import Peer, State
from degu.store import PeerStore
from degu.tls import SSLSocket

__all__ = [
    "Identity",
    "Invitation",
    "PairingApp",
    "PairingError",
    "PairingWindow",
    "Peer",
    "PeerClient",
    "PeerFileError",
    "PeerStore",
    "PeersOnly",
    "State",
    "accept_invitation",
    "build_fingerprint",
    "check_certificate",
    "expand_address",
    "format_fingerprint",
    "format_invitation",
    "load_identity",
    "make_identity",
    "pair",
    "parse_fingerprint",
    "parse_invitation",
    "require_peer",
]

log = logging.getLogger(__name__)

App = Callable[[Any], tuple[int, str, dict[str, Any], Any]]
OnConnect = Callable[[dict[str, Any], Any], bool]
OnRefused = Callable[[Any, DeguError], object]


# --- the server's end -------------------------------------------------------------


def require_peer(store: PeerStore, on_refused: OnRefused | None = None) -> OnConnect:
    """Make an `app.on_connect` that lets in the peers of `store` and nobody else.

    It runs after the handshake and before the first request, and puts the `Peer`
    into ``session['peer']``. ``on_refused(address, error)`` is called for who is not
    let in, with a `PairingError`, or a `PeerFileError` where the store is of no use.

    The handshake refuses most of them before: give the app the same `on_refused`,
    and the server calls it for these. `PeersOnly` does both.
    """

    def on_connect(session: dict[str, Any], sock: Any) -> bool:
        try:
            session["peer"] = _get_peer(store, sock)
        except (PairingError, PeerFileError) as error:
            if isinstance(error, PeerFileError):
                log.error("no peer is let in: %s", error)
            if on_refused is not None:
                on_refused(_get_address(sock), error)
            return False
        return True

    return on_connect


def _get_peer(store: PeerStore, sock: Any) -> Peer:
    fingerprint = _get_fingerprint(sock)
    if fingerprint is None:
        raise PairingError("expected a trusted peer, got one without a certificate")
    peer = store.get(fingerprint)
    if peer is None:
        raise PairingError(
            "expected a trusted peer, got the fingerprint "
            f"{format_fingerprint(fingerprint)}"
        )
    return peer


def _get_fingerprint(sock: Any) -> bytes | None:
    # A plain socket has no certificate, so nobody gets in without TLS.
    certificate = sock.getpeercert(True) if isinstance(sock, SSLSocket) else None
    return None if certificate is None else build_fingerprint(certificate)


def _get_address(sock: Any) -> Any:
    try:
        return sock.getpeername()
    except OSError:
        return None  # It went away meanwhile.


class PeersOnly:
    """An app for trusted peers alone: ``request['session']['peer']`` is who asks.

    Who is removed while connected gets a 403 and no further request through.
    """

    def __init__(
        self, app: App, store: PeerStore, on_refused: OnRefused | None = None
    ) -> None:
        """Put `app` behind `require_peer`; the app's own `on_connect` runs after it.

        `on_refused`, by default the app's own, sees everybody who is not let in, those
        too whom the handshake refused (`TLSError`).
        """
        self.app = app
        self.store = store
        self.on_refused = on_refused or getattr(app, "on_refused", None)
        self._require = require_peer(store, self.on_refused)

    def __call__(self, request: Any) -> tuple[int, str, dict[str, Any], Any]:
        """Serve one request."""
        peer = request["session"].get("peer")
        if peer is None or self.store.get(peer.fingerprint) is None:
            return (403, "Forbidden", {"connection": "close"}, None)
        return self.app(request)

    def on_connect(self, session: dict[str, Any], sock: Any) -> bool:
        """Let in trusted peers."""
        if not self._require(session, sock):
            return False
        inner: OnConnect | None = getattr(self.app, "on_connect", None)
        return inner is None or inner(session, sock)


# --- the client's end -------------------------------------------------------------


class PeerClient(SSLClient):
    """An `SSLClient` that talks to one trusted peer and to nobody else."""

    def __init__(
        self,
        store: PeerStore,
        identity: Identity,
        peer: Peer,
        address: Address,
        **options: Any,
    ) -> None:
        """Describe a client of `peer` at `address`; `options` are those of `SSLClient`.

        Raises `PairingError` for a peer that `store` does not trust.
        """
        super().__init__(store.client_sslconfig(identity, peer), address, **options)
        self.store = store
        self.peer = peer

    def connect(self) -> Connection:
        """Connect to the peer; raises as `SSLClient.connect`.

        `PairingError` if it was removed from the store, `TLSError` for any other
        certificate than its own, in both cases before a byte of HTTP is sent.
        """
        if self.store.get(self.peer.fingerprint) is None:
            raise PairingError(
                f"expected a trusted peer, got {self.peer.name!r}, which was removed"
            )
        connection = super().connect()
        fingerprint = _get_fingerprint(connection.sock)
        if fingerprint == self.peer.fingerprint:
            return connection
        connection.close()
        raise TLSError(
            "this side refused the peer's certificate: expected the fingerprint "
            f"{self.peer.id}, got {format_fingerprint(fingerprint or bytes(32))}"
        )

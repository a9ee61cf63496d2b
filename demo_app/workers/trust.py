"""Making devices trust each other: the side that invites, and the one that joins."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Any

from PySide6.QtCore import QObject, Signal

from degu.address import Address
from degu.invitation import format_peer_address, parse_peer_address
from degu.peers import (
    PairingApp,
    PairingWindow,
    Peer,
    accept_invitation,
    format_invitation,
    pair,
    parse_invitation,
)
from degu.server import SSLServer
from demo_app.workers.addresses import list_addresses
from demo_app.workers.pool import Pool
from demo_app.workers.share import ANYWHERE, ONLY_HERE, Share

WINDOW_SECONDS = 600.0
"""How long a device may try while the dialog is open."""


class Inviter(QObject):
    """Serves a `PairingApp` in a thread, from `open` to `close`.

    Apart from the share, which refuses whoever is not known yet. It is a thread of
    this process, not one of its own, as it lives for a minute and talks to the user.
    """

    opened = Signal(str, list)
    """The invitation, and the addresses to type instead."""
    asked = Signal(str, str)
    """A code, and the name of the device that should show the same."""
    paired = Signal(str)
    failed = Signal(str)
    closed = Signal()

    def __init__(self, share: Share) -> None:
        super().__init__()
        self.share = share
        self.pool = Pool(3, self)
        self.is_open = False
        self._app: PairingApp | None = None
        self._server: SSLServer | None = None
        self._window: PairingWindow | None = None

    def open(self) -> None:
        """Begin; `opened` follows, or `failed`."""
        self.is_open = True
        self.pool.run(self._open, self._opened, self._fail)

    def _open(self) -> tuple[str, list[str]]:
        device = self.share.device
        app = PairingApp(
            device.identity,
            device.store,
            name=device.name,
            addresses=self.share.addresses,
            on_code=self._tell_code,
            on_paired=lambda peer: self.paired.emit(peer.name),
        )
        host = ONLY_HERE if self.share.local else ANYWHERE
        server = SSLServer(app.sslconfig, (host, 0, 0, 0), app)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self._app, self._server = app, server
        self._window = app.open(WINDOW_SECONDS)
        addresses = list_addresses(int(server.address[1]), self.share.local)
        invitation = app.invite(addresses, WINDOW_SECONDS)
        texts = [format_peer_address(address) for address in addresses]
        return format_invitation(invitation), texts

    def _opened(self, result: tuple[str, list[str]]) -> None:
        if self.is_open:
            self.opened.emit(*result)
        else:
            self.close()

    def _tell_code(self, window: PairingWindow) -> None:
        peer = window.peer
        assert peer is not None
        self.asked.emit(window.code, peer.name)

    def answer(self, same: bool) -> None:
        """The user compared the codes."""
        window = self._window
        if window is not None:
            self.pool.run(window.confirm if same else window.refuse, None, self._fail)

    def reopen(self) -> None:
        """Let another device try, after one that did not succeed."""
        app = self._app
        if app is not None:
            self.pool.run(lambda: app.open(WINDOW_SECONDS), self._keep, self._fail)

    def _keep(self, window: PairingWindow) -> None:
        self._window = window

    def close(self) -> None:
        """End it; `closed` follows."""
        self.is_open = False
        app, server = self._app, self._server
        self._app = self._server = self._window = None
        if app is not None and server is not None:
            self.pool.run(lambda: _close(app, server), lambda _: self.closed.emit())
        else:
            self.closed.emit()

    def _fail(self, error: Exception) -> None:
        self.failed.emit(str(error))


def _close(app: PairingApp, server: SSLServer) -> None:
    app.revoke_invitations()
    app.close()
    server.shutdown(0.5)
    server.close()


class Joiner(QObject):
    """Follows an invitation, or pairs with a device at an address."""

    asked = Signal(str, str)
    """A code, and the name of the device that should show the same."""
    paired = Signal(str)
    failed = Signal(str)

    def __init__(self, share: Share) -> None:
        super().__init__()
        self.share = share
        self.pool = Pool(2, self)
        self._answered = threading.Event()
        self._same = False

    def join(self, text: str) -> None:
        """Begin with what the user pasted or typed."""
        self._answered.clear()
        self._same = False
        addresses = self.share.addresses
        self.pool.run(
            lambda: self._join(text.strip(), addresses),
            lambda peer: self.paired.emit(peer.name),
            lambda error: self.failed.emit(str(error)),
        )

    def _join(self, text: str, addresses: list[Address]) -> Peer:
        device = self.share.device
        options: dict[str, Any] = {"name": device.name, "addresses": addresses}
        if text.lower().startswith("degu:"):
            invitation = parse_invitation(text)
            return accept_invitation(
                device.identity, device.store, invitation, **options
            )
        address = parse_peer_address(text)
        return pair(device.identity, device.store, address, self._compare, **options)

    def _compare(self, code: str, peer: Peer) -> bool:
        """Ask the user; blocks a thread that has nothing else to do."""
        self.asked.emit(code, peer.name)
        self._answered.wait(WINDOW_SECONDS)
        return self._same

    def answer(self, same: bool) -> None:
        """The user compared the codes."""
        self._same = same
        self._answered.set()

    def close(self) -> None:
        """The user has no answer any more."""
        with suppress(RuntimeError):
            self.answer(False)

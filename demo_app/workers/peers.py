"""Looking into the folders of peers, and keeping the list of them."""

from __future__ import annotations

from dataclasses import replace

from PySide6.QtCore import QObject, Signal

from degu.invitation import format_peer_address, parse_peer_address
from degu.peers import Peer
from demo_app.device import Device
from demo_app.entry import ROOT
from demo_app.remote import Remote
from demo_app.workers.pool import Pool


class PeerBrowser(QObject):
    """The folder of one peer; where we are in it."""

    listed = Signal(str, list)
    """The URI of a folder, and its entries."""
    failed = Signal(str, str)
    """The URI of a folder, and why it can't be shown."""

    forgotten = Signal()

    def __init__(self, device: Device, peer: Peer) -> None:
        super().__init__()
        self.device = device
        self.peer = peer
        self.remote = Remote(device, peer)
        self.uri = ROOT
        self.pool = Pool(2, self)
        self._asked = 0

    @property
    def address_text(self) -> str:
        """The first address that is known, to be edited."""
        return next(map(format_peer_address, self.peer.addresses), "")

    def open(self, uri: str = ROOT) -> None:
        """Look into the folder at `uri`."""
        self._asked += 1
        asked = self._asked
        self.uri = uri
        self.pool.run(
            lambda: self.remote.list_folder(uri),
            lambda entries: self._show(asked, uri, entries),
            lambda error: self._fail(asked, uri, error),
        )

    def refresh(self) -> None:
        """Look again."""
        self.open(self.uri)

    def open_parent(self) -> None:
        """Look into the folder above."""
        if self.uri != ROOT:
            self.open(self.uri.rstrip("/").rpartition("/")[0] + "/")

    def connect_to(self, text: str) -> None:
        """Look for the peer at another address, and keep that if it is there.

        Raises `ParseError` for text that is no address.
        """
        address = parse_peer_address(text)
        others = [one for one in self.peer.addresses if one != address]
        self.peer = replace(self.peer, addresses=(address, *others[:15]))
        self.remote = Remote(self.device, self.peer)
        peer = self.peer
        self.pool.run(lambda: self.device.store.add(peer))
        self.open(ROOT)

    def forget(self) -> None:
        """Trust this peer no more."""
        fingerprint = self.peer.fingerprint
        self.pool.run(
            lambda: self.device.store.remove(fingerprint),
            lambda _: self.forgotten.emit(),
        )

    # What was asked for later is shown, whatever comes first.

    def _show(self, asked: int, uri: str, entries: list[object]) -> None:
        if asked == self._asked:
            self.listed.emit(uri, entries)

    def _fail(self, asked: int, uri: str, error: Exception) -> None:
        if asked == self._asked:
            self.failed.emit(uri, str(error))

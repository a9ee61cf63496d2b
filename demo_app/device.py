"""This device: its identity, its name, and whom it trusts. No HTTP, no Qt."""

from __future__ import annotations

import getpass
import socket
from dataclasses import dataclass
from pathlib import Path

from degu.pairing import MAX_NAME_LENGTH
from degu.peers import Identity, Peer, PeerStore, make_identity


@dataclass(frozen=True)
class Device:
    """What is kept in the application's data folder."""

    name: str
    folder: Path
    identity: Identity
    store: PeerStore

    @property
    def others(self) -> list[Peer]:
        """The trusted peers, but for this device itself, by name."""
        mine = self.identity.fingerprint
        peers = [peer for peer in self.store.peers if peer.fingerprint != mine]
        return sorted(peers, key=lambda peer: peer.name.casefold())

    def find(self, fingerprint: bytes) -> Peer | None:
        """The trusted peer with this fingerprint."""
        return self.store.get(fingerprint)


def open_device(folder: Path, name: str) -> Device:
    """Open the device whose data is in `folder`; made at the first time.

    It is its own first peer: the proxy for the local browser is a client of the
    share like any other, and needs to be let in.
    """
    identity = make_identity(folder / "identity")
    store = PeerStore(folder / "peers")
    known = store.get(identity.fingerprint)
    if known is None or known.name != name:
        store.add(identity.build_peer(name))
    return Device(name, folder, identity, store)


def build_name() -> str:
    """A name for a device that was not given one: ``anna on laptop``."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = "somebody"
    host = socket.gethostname().partition(".")[0] or "computer"
    text = "".join(c for c in f"{user} on {host}" if c.isprintable())
    return text[:MAX_NAME_LENGTH].strip()

"""Whom this device trusts, as files that several processes share.

    peers.json       the trusted peers: the truth
    anchors/         the same certificates, named as OpenSSL looks them up

A connection is let through by the TLS handshake only where the certificate that comes
is, byte for byte, one of the pinned ones: they are the only trust anchors, and none of
them may sign others. Host names play no part, so their check is switched off.

OpenSSL reads `anchors/` at each handshake, so a new peer is let in at once, also by
a server in another process that was started before.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from degu.certificate import (
    build_subject_hash,
    check_certificate,
    format_pem,
    parse_certificate,
)
from degu.errors import PairingError, ParseError, PeerFileError, shown
from degu.fingerprint import format_fingerprint, parse_fingerprint
from degu.identity import Identity
from degu.pairing import Peer, build_peer_fields, parse_peer_fields
from degu.private import locked, make_directory, read_private, sweep, write_private

__all__ = ["PeerStore"]

STORE_FILE = "peers.json"
ANCHORS = "anchors"
STORE_VERSION = 1

Peers = dict[bytes, Peer]
"""Peers by their fingerprints."""


class PeerStore:
    """Whom this device trusts; for several threads and processes at once.

    A change is seen by every `PeerStore` on the directory at its next look, and by
    the TLS handshakes of servers that run.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        """Open the store in `directory`, which is made if need be (mode 0700).

        Raises `PeerFileError` for a file that is damaged or open to others; it stays.
        """
        self.directory = make_directory(directory)
        self.path = os.path.join(self.directory, STORE_FILE)
        self.anchors = make_directory(os.path.join(self.directory, ANCHORS))
        sweep(self.directory)
        self._lock = threading.Lock()
        self._seen: tuple[int, ...] | None = None
        self._peers: Peers = {}
        self._load()

    @property
    def peers(self) -> tuple[Peer, ...]:
        """All trusted peers, the newest last."""
        return tuple(self._load().values())

    def get(self, fingerprint: bytes) -> Peer | None:
        """The trusted peer with this `fingerprint` (32 bytes), or None."""
        return self._load().get(fingerprint)

    def add(self, peer: Peer) -> Peer:
        """Trust `peer` from now on, or bring a trusted one up to date.

        Returns it with `added`. Raises `ParseError` for a certificate that can't be
        pinned (`check_certificate`), `PeerFileError`, `OSError`.
        """
        check_certificate(peer.certificate)
        with self._changing() as peers:
            known = peers.get(peer.fingerprint)
            added = known.added if known else f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
            peers[peer.fingerprint] = peer = replace(peer, added=added)
        return peer

    def remove(self, fingerprint: bytes) -> bool:
        """Trust this peer no more; whether it was trusted.

        Servers with `require_peer` refuse its next connection, those with `PeersOnly`
        its next request as well.
        """
        with self._changing() as peers:
            return peers.pop(fingerprint, None) is not None

    def replace(self, fingerprint: bytes, peer: Peer) -> Peer:
        """Trust `peer` in place of the one with `fingerprint`, as one change.

        For a device that renews its certificate and says so over a connection made
        with the old one. Raises `KeyError` if the old one is not trusted.
        """
        check_certificate(peer.certificate)
        with self._changing() as peers:
            old = peers.pop(fingerprint)
            peers[peer.fingerprint] = peer = replace(peer, added=old.added)
        return peer

    def server_sslconfig(self, identity: Identity) -> dict[str, Any]:
        """The sslconfig of a server that only trusted peers get through to.

        Give the app `require_peer` or `PeersOnly` too: they refuse who was removed.
        """
        self._refresh_anchors()
        return {"cert_file": identity.path, "ca_path": self.anchors}

    def client_sslconfig(self, identity: Identity, peer: Peer) -> dict[str, Any]:
        """The sslconfig of a client that talks to `peer` and nobody else.

        Raises `PairingError` if the store does not trust it (any more).
        """
        names = self._refresh_anchors()
        if peer.fingerprint not in names:
            raise PairingError(f"expected a trusted peer, got {peer.name!r} {peer.id}")
        return {
            "cert_file": identity.path,
            "ca_file": os.path.join(self.anchors, names[peer.fingerprint]),
            # The certificate itself is pinned; names and addresses change.
            "check_hostname": False,
        }

    def _load(self) -> Peers:
        """The peers, read again if the file is another one by now."""
        with self._lock:
            seen = _stat(self.path)
            if seen != self._seen:
                self._peers = {} if seen is None else _read_peers(self.path)
                self._seen = seen
            return self._peers

    @contextmanager
    def _changing(self) -> Iterator[Peers]:
        with locked(self.directory):
            peers = dict(self._load())
            yield peers
            write_private(self.path, _format_peers(peers.values()))
            self._write_anchors(peers)

    def _refresh_anchors(self) -> dict[bytes, str]:
        """Mend what a process left half done; the file name of each fingerprint."""
        with locked(self.directory):
            return self._write_anchors(self._load())

    def _write_anchors(self, peers: Peers) -> dict[bytes, str]:
        """Make `anchors` what the store says; the file name of each fingerprint."""
        wanted, names = _build_anchors(peers)
        there = set(os.listdir(self.anchors))
        for name in there - wanted.keys():
            os.unlink(os.path.join(self.anchors, name))
        for name, data in wanted.items():
            path = os.path.join(self.anchors, name)
            if name not in there or read_private(path) != data:
                write_private(path, data)
        return names


def _stat(path: str) -> tuple[int, ...] | None:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return (status.st_ino, status.st_size, status.st_mtime_ns, status.st_mode)


def _build_anchors(peers: Peers) -> tuple[dict[str, bytes], dict[bytes, str]]:
    """The contents by file name, and the file name by fingerprint."""
    wanted: dict[str, bytes] = {}
    names = {}
    for fingerprint, peer in sorted(peers.items()):
        parsed = parse_certificate(peer.certificate)
        subject = build_subject_hash(parsed)
        number = 0
        while (name := f"{subject}.{number}") in wanted:
            number += 1
        wanted[name] = format_pem(parsed)
        names[fingerprint] = name
    return wanted, names


def _format_peers(peers: Iterable[Peer]) -> bytes:
    entries = [
        build_peer_fields(peer) | {"fingerprint": peer.id, "added": peer.added}
        for peer in peers
    ]
    document = {"version": STORE_VERSION, "peers": entries}
    return json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n"


def _read_peers(path: str) -> Peers:
    try:
        return _parse_peers(read_private(path))
    except ValueError as error:
        raise PeerFileError(f"{path}: {error}; the file was left as it is") from error


def _parse_peers(data: bytes) -> Peers:
    try:
        document = json.loads(data)
    except ValueError as error:
        raise ParseError(f"expected JSON, got a damaged file ({error})") from error
    if not isinstance(document, dict) or document.get("version") != STORE_VERSION:
        raise ParseError(
            f"expected the version {STORE_VERSION} of a peer store, got {shown(data)}"
        )
    entries = document.get("peers")
    if not isinstance(entries, list):
        raise ParseError(f"peers: expected a list, got {shown(entries)}")
    return {peer.fingerprint: peer for peer in map(_parse_entry, entries)}


def _parse_entry(entry: object) -> Peer:
    if not isinstance(entry, dict):
        raise ParseError(f"peers: expected objects, got {shown(entry)}")
    peer = parse_peer_fields(entry)
    fingerprint = parse_fingerprint(str(entry.get("fingerprint")))
    if fingerprint != peer.fingerprint:
        raise ParseError(
            f"fingerprint: expected {peer.id}, that of the certificate, "
            f"got {format_fingerprint(fingerprint)}"
        )
    return replace(peer, added=str(entry.get("added", "")))

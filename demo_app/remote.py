"""Another device's folder: look into it, fetch from it, put into it. No Qt.

Everything here blocks, and is called in a worker's thread.
"""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from urllib.parse import quote, unquote_to_bytes

from degu.client import Connection
from degu.errors import DeguError, PeerError, TLSError
from degu.peers import Peer, PeerClient, expand_address
from demo_app.device import Device
from demo_app.entry import ROOT, Entry
from demo_app.transfers import Transfer

CONNECT_SECONDS = 20.0

_BROKEN = (
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
)


class RemoteError(DeguError):
    """The other device answered, but not with what was asked for."""

    def __init__(self, status: int, what: str) -> None:
        super().__init__(f"{what} ({status})")
        self.status = status


ANSWERS = {
    403: "the other device does not allow it",
    404: "it is not there any more",
    405: "the other device takes no files",
    409: "the other device is busy with this file",
    412: "a file of this name is there already",
    422: "the file arrived damaged, or changed meanwhile",
    507: "the other device has no room left",
}


def build_remote_error(status: int) -> RemoteError:
    """Build the error for an answer that is not the one hoped for."""
    return RemoteError(status, ANSWERS.get(status, "an answer that was not expected"))


def is_broken_line(error: BaseException) -> bool:
    """Whether it may work later: the line broke, or nobody was there."""
    if isinstance(error, RemoteError):
        return error.status in (409, 500, 503)
    if isinstance(error, PeerError | TLSError | ConnectionError | TimeoutError):
        return True
    return isinstance(error, OSError) and error.errno in _BROKEN


class Remote:
    """The way to one peer; `connect` tries its addresses, the last good one first."""

    def __init__(self, device: Device, peer: Peer) -> None:
        self.device = device
        self.peer = peer
        self.addresses = [
            one for address in peer.addresses for one in expand_address(address)
        ]

    def connect(self) -> Connection:
        """Make a connection. Raises `OSError`, `TLSError` or `PairingError`."""
        failure: OSError = ConnectionRefusedError(
            f"no address of {self.peer.name} is known"
        )
        for address in list(self.addresses):
            client = PeerClient(
                self.device.store,
                self.device.identity,
                self.peer,
                address,
                timeout=CONNECT_SECONDS,
            )
            try:
                connection = client.connect()
            except OSError as error:
                failure = error
                continue
            self.addresses.remove(address)
            self.addresses.insert(0, address)
            return connection
        raise failure

    def list_folder(self, uri: str = ROOT) -> list[Entry]:
        """What is in the folder at `uri`, folders first."""
        with self.connect() as connection:
            return list_folder(connection, uri)


def list_folder(connection: Connection, uri: str) -> list[Entry]:
    """What is in the folder at `uri`; raises `RemoteError`."""
    response = connection.get(uri, {"accept": "application/json"})
    body = b"" if response.body is None else response.body.read()
    if response.status != 200:
        raise build_remote_error(response.status)
    return [parse_entry(uri, fields) for fields in json.loads(body)]


def parse_entry(uri: str, fields: dict[str, object]) -> Entry:
    """An entry of the listing of `uri`; its name can be used as one on this side.

    Raises `RemoteError` for a name that would lead out of a folder.
    """
    href = str(fields["href"]).removeprefix("./")
    name = os.fsdecode(unquote_to_bytes(href.rstrip("/")))
    if not name or "/" in name or "\0" in name or name in (".", ".."):
        raise RemoteError(200, f"a name that can't be one: {name!r}")
    size = fields.get("size")
    return Entry(
        name=name,
        uri=uri + href,
        is_folder=fields["type"] == "folder",
        size=size if isinstance(size, int) else None,
        modified=int(str(fields.get("modified", 0))),
    )


def build_uri(folder: str, names: Iterable[str]) -> str:
    """The URI of what has `names` below the `folder`."""
    return folder + "/".join(quote(os.fsencode(name)) for name in names)


class Line:
    """A connection for one transfer, that the user's wish can break off."""

    def __init__(self, remote: Remote, transfer: Transfer) -> None:
        self.transfer = transfer
        transfer.check()
        self.connection = remote.connect()

    def __enter__(self) -> Connection:
        # Not close(): this is called from another thread, while ours reads.
        sock = self.connection.sock
        try:
            self.transfer.hold(partial(_break_off, sock))
        except BaseException:
            self.connection.close()
            raise
        return self.connection

    def __exit__(self, *exc: object) -> None:
        with self.transfer.lock:
            self.transfer.close = None
        self.connection.close()


def _break_off(sock: socket.socket) -> None:
    with suppress(OSError):  # it may be over already
        socket.socket.shutdown(sock, socket.SHUT_RDWR)

"""The HTTP side of the demo: what runs in the embedded servers. No Qt here.

The functions are called in the server's process; their arguments are plain data.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from degu.address import Address
from degu.apps import FilesApp, ProxyApp, RequestLogger, RouterApp
from degu.client import SSLClient
from degu.files import PART_SUFFIX
from degu.peers import PeersOnly, PeerStore
from degu.rgi import App, Request, ResponseTuple
from demo_app.events import send_event
from demo_app.monitor import Monitor

PART_SECONDS = 24 * 3600.0
"""How long the beginning of an upload is kept for its sender to go on with it."""


def build_share_app(folder: str, inbox: str) -> App:
    """Serve `folder` for reading below ``/files/``, take uploads below ``/inbox/``."""
    return RequestLogger(
        RouterApp({"files": FilesApp(folder), "inbox": FilesApp(inbox, writable=True)})
    )


def build_proxy_app(sslconfig: dict[str, Any], address: Address) -> App:
    """A reverse proxy to the share at `address`, over TLS with our certificate."""
    return ProxyApp(SSLClient(sslconfig, address))


def build_drop_app(name: str, folder: str, store: str, writable: bool) -> App:
    """Serve `folder` below ``/files/`` to the peers of the `PeerStore` in `store`.

    With `writable` they may add files, but never replace one. Events carry `name`.
    """
    remove_old_parts(Path(folder), time.time() - PART_SECONDS)
    files = AddOnly(FilesApp(folder, writable=writable))
    monitor = Monitor(name, RouterApp({"files": files}), send_event)
    monitor.start()
    send_event({"kind": "up", "server": name, "pid": os.getpid()})
    app: Any = monitor
    return PeersOnly(app, PeerStore(store))


class AddOnly:
    """`app`, to which a PUT never replaces what is there: 412 (RFC 9110 §13.1.2)."""

    def __init__(self, app: App) -> None:
        self.app = app

    def __call__(self, request: Request) -> ResponseTuple:
        """Serve one request."""
        if request["method"] == "PUT":
            request["headers"]["if-none-match"] = "*"
        return self.app(request)


def remove_old_parts(folder: Path, before: float) -> None:
    """Remove the beginnings of uploads that nobody went on with since `before`."""
    for path in folder.rglob(f".*{PART_SUFFIX}"):
        with suppress(OSError):
            if path.lstat().st_mtime < before:
                path.unlink()

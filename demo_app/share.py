"""The HTTP side of the demo: what runs in the embedded servers. No Qt here.

The functions are called in the server's process; their arguments are plain data.
"""

from __future__ import annotations

from typing import Any

from degu.address import Address
from degu.apps import FilesApp, ProxyApp, RequestLogger, RouterApp
from degu.client import SSLClient
from degu.rgi import App


def build_share_app(folder: str, inbox: str) -> App:
    """Serve `folder` for reading below ``/files/``, take uploads below ``/inbox/``."""
    return RequestLogger(
        RouterApp({"files": FilesApp(folder), "inbox": FilesApp(inbox, writable=True)})
    )


def build_proxy_app(sslconfig: dict[str, Any], address: Address) -> App:
    """A reverse proxy to the share at `address`, over TLS with our certificate."""
    return ProxyApp(SSLClient(sslconfig, address))

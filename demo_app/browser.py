"""The local browser's way in: a reverse proxy on loopback, and the key to it.

The share speaks TLS and asks for a certificate, which no browser has. So a second
server on 127.0.0.1 speaks plain HTTP, and passes requests on with our certificate.
Pages of other sites are kept out by Degu's own door (Host and Origin); other users of
this machine by a key: the first URL holds one that is good once, a cookie follows.
"""

from __future__ import annotations

import hmac
import os
import secrets
import threading
from typing import Any

from degu.address import Address
from degu.apps import ProxyApp
from degu.peers import PeerClient, PeerStore, load_identity
from degu.rgi import App, Request, ResponseTuple
from demo_app.events import send_event

FIRST = "key="
"""How the query of the first URL begins."""


def make_link(url: str, secret: str) -> str:
    """The URL to open in the browser: good for one visit, which gets the cookie."""
    number = secrets.token_hex(8)
    return f"{url}files/?{FIRST}{number}{_sign(secret, number)}"


def _sign(secret: str, text: str) -> str:
    return hmac.digest(secret.encode(), text.encode(), "sha256").hex()


class KeyDoor:
    """Let nobody to `app` but the browser that came by a fresh link."""

    def __init__(self, app: App, secret: str) -> None:
        self.app = app
        self.secret = secret
        self.cookie = _sign(secret, "cookie")
        self._used: set[str] = set()
        self._lock = threading.Lock()

    def __call__(self, request: Request) -> ResponseTuple:
        """Serve one request."""
        # Cookies do not know ports, so the name tells our servers apart.
        name = f"degu-drop-{request['server'][1]}"
        query = request["query"] or ""
        if query.startswith(FIRST):
            if not self._take(query.removeprefix(FIRST)):
                return 403, "Forbidden", {}, _SORRY
            cookie = f"{name}={self.cookie}; Path=/; HttpOnly; SameSite=Strict"
            location = request["uri"].partition("?")[0]
            return 303, "See Other", {"location": location, "set-cookie": cookie}, None
        if not self._has_cookie(request["headers"].get("cookie", ""), name):
            return 403, "Forbidden", {}, _SORRY
        headers: dict[str, Any] = {**request["headers"]}
        del headers["cookie"]  # not for the server behind
        inner: Any = {**request, "headers": headers}
        return self.app(inner)

    def _take(self, key: str) -> bool:
        """Whether `key` is one of ours and was not used before."""
        number, signature = key[:16], key[16:]
        if not hmac.compare_digest(signature.encode(), self._expect(number)):
            return False
        with self._lock:
            fresh = number not in self._used
            self._used.add(number)
        return fresh

    def _expect(self, number: str) -> bytes:
        return _sign(self.secret, number).encode()

    def _has_cookie(self, field: str, name: str) -> bool:
        wanted = f"{name}={self.cookie}".encode()
        return any(
            hmac.compare_digest(part.strip().encode(), wanted)
            for part in field.split(";")
        )


_SORRY = b"Open this page from Degu Drop: the link is good for one browser, once.\n"


def build_browser_app(
    name: str, identity: str, store: str, address: Address, secret: str
) -> App:
    """Pass requests of the local browser on to our own share at `address`."""
    me = load_identity(identity)
    peers = PeerStore(store)
    own = peers.get(me.fingerprint)
    assert own is not None  # `open_device` made us our own first peer
    client = PeerClient(peers, me, own, address)
    send_event({"kind": "up", "server": name, "pid": os.getpid()})
    return KeyDoor(ProxyApp(client), secret)

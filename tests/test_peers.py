"""degu.peers: who is let in, who is talked to, and who is refused."""

from __future__ import annotations

import socket
from datetime import timedelta
from typing import Any

import pytest

from degu import EmbeddedSSLServer
from degu.client import Client, SSLClient
from degu.errors import DeguError, PairingError, TLSError
from degu.peers import PeerClient, PeersOnly, PeerStore, require_peer
from tests.conftest import poll
from tests.devices import (
    LOOPBACK,
    Device,
    a_device_anna,  # noqa: F401
    a_device_ben,  # noqa: F401
    a_device_mallory,  # noqa: F401
    build_pem,
    hello_app,
    introduce,
    read_body,
    serving,
    trust_anyway,
)


def test_an_app_for_peers_knows_who_asks(anna, ben):
    """The peer is in the session; the client is a description for several threads."""
    introduce(anna, ben)
    with serving(anna, PeersOnly(hello_app, anna.store)) as address:
        client = PeerClient(ben.store, ben.identity, anna.me, address)
        response = client.get("/")
        assert read_body(response) == b"Ben"
        client.close()


def test_strangers_never_reach_the_app(anna, ben, mallory):
    """No byte of HTTP of an unknown, nameless or removed client is served."""
    introduce(anna, ben)
    mallory.store.add(anna.me)
    asked = []

    def app(request: Any) -> Any:
        asked.append(request["session"]["peer"].name)
        return (200, "OK", {}, None)

    with serving(anna, PeersOnly(app, anna.store)) as address:
        config = ben.store.client_sslconfig(ben.identity, anna.me)
        nobody = {k: v for k, v in config.items() if k not in ("cert_file", "key_file")}
        for client in (
            PeerClient(mallory.store, mallory.identity, anna.me, address),
            SSLClient(nobody, address),
        ):
            with pytest.raises(TLSError), client.connect() as connection:
                connection.get("/")
        with Client(address).connect() as connection:
            assert connection.get("/").status == 400  # without TLS
        client = PeerClient(ben.store, ben.identity, anna.me, address)
        with client.connect() as connection:
            assert connection.get("/").status == 200
        anna.store.remove(ben.identity.fingerprint)
        with pytest.raises(DeguError), client.connect() as connection:
            connection.get("/")

    assert asked == ["Ben"]


def build_app(directory: str) -> Any:
    """What a server's own process builds: the store is found by its directory."""
    return PeersOnly(hello_app, PeerStore(directory))


def test_a_server_in_its_own_process_learns_of_changes(anna, ben):
    """The sslconfig crosses over as a dict; who is new gets in, who is removed not."""
    ben.store.add(anna.me)
    config = anna.store.server_sslconfig(anna.identity)
    server = EmbeddedSSLServer(config, LOOPBACK, build_app, anna.store.directory)
    try:
        client = PeerClient(ben.store, ben.identity, anna.me, server.address)
        for trusted in (False, True, False, True):
            if trusted:
                anna.store.add(ben.me)
                with client.connect() as connection:
                    assert read_body(connection.get("/")) == b"Ben"
            else:
                anna.store.remove(ben.identity.fingerprint)
                with pytest.raises(DeguError), client.connect() as connection:
                    connection.get("/")
    finally:
        server.terminate()


def test_who_is_removed_while_connected_gets_no_further(anna, ben):
    """Its next request on the open connection is a 403, and the connection ends."""
    introduce(anna, ben)
    with serving(anna, PeersOnly(hello_app, anna.store)) as address:
        client = PeerClient(ben.store, ben.identity, anna.me, address)
        with client.connect() as connection:
            response = connection.get("/")
            assert (response.status, read_body(response)) == (200, b"Ben")
            anna.store.remove(ben.identity.fingerprint)
            assert connection.get("/").status == 403
            assert connection.closed


def test_the_apps_own_hook_comes_after(anna, ben):
    """An app's on_connect only sees trusted peers, and may refuse them too."""
    introduce(anna, ben)

    class App:
        answer: Any = True
        seen: list[str] = []  # noqa: RUF012

        def __call__(self, request: Any) -> Any:
            return hello_app(request)

        def on_connect(self, session: dict[str, Any], sock: Any) -> Any:
            self.seen.append(session["peer"].name)
            return self.answer

    app = App()
    with serving(anna, PeersOnly(app, anna.store)) as address:
        client = PeerClient(ben.store, ben.identity, anna.me, address)
        with client.connect() as connection:
            assert connection.get("/").status == 200
        app.answer = False
        with pytest.raises(DeguError), client.connect() as connection:
            connection.get("/")

    assert app.seen == ["Ben", "Ben"]


def test_a_client_refuses_another_server(anna, ben, mallory):
    """The handshake fails at the client, before it sends anything."""
    introduce(anna, ben, mallory)
    with serving(mallory, PeersOnly(hello_app, mallory.store)) as address:
        with pytest.raises(TLSError, match="this side refused the peer's certificate"):
            PeerClient(ben.store, ben.identity, anna.me, address).connect()
        with PeerClient(ben.store, ben.identity, mallory.me, address).connect() as ok:
            assert ok.get("/").status == 200


def test_a_client_compares_the_fingerprint_too(anna, ben, mallory):
    """Even with a context that would accept it, another certificate is refused."""
    introduce(anna, ben, mallory)
    with serving(mallory, PeersOnly(hello_app, mallory.store)) as address:
        client = PeerClient(ben.store, ben.identity, anna.me, address)
        client.sslctx.load_verify_locations(cadata=mallory.identity.certificate)
        with pytest.raises(TLSError, match="expected the fingerprint"):
            client.connect()


def test_a_client_forgets_removed_peers(anna, ben):
    """A description from before does not connect any more."""
    introduce(anna, ben)
    with serving(anna, PeersOnly(hello_app, anna.store)) as address:
        client = PeerClient(ben.store, ben.identity, anna.me, address)
        client.connect().close()
        ben.store.remove(anna.identity.fingerprint)
        with pytest.raises(PairingError, match="'Anna', which was removed"):
            client.connect()


# --- who is refused, and who hears of it ------------------------------------------


Refusals = list[tuple[Any, str]]


def note(refusals: Refusals) -> Any:
    return lambda address, error: refusals.append((address, str(error)))


def visit(sslconfig: Any, address: Any) -> Any:
    """Send a request from a port that is known; that port's address."""
    with SSLClient(sslconfig, address).connect() as connection:
        source = connection.sock.getsockname()
        with pytest.raises(DeguError):
            connection.get("/")
    return source


def test_everybody_who_is_refused_is_shown(anna, ben, mallory, tmp_path):
    """Wrong, missing, expired, not pinned any more: each with address and reason."""
    old = Device(tmp_path, "old", build_pem(cn="old", last=timedelta(hours=-1)))
    introduce(anna, ben)
    trust_anyway(anna, old.me)
    mallory.store.add(anna.me)
    old.store.add(anna.me)
    config = ben.store.client_sslconfig(ben.identity, anna.me)
    nameless = {key: value for key, value in config.items() if key != "cert_file"}
    refusals: Refusals = []

    with serving(anna, PeersOnly(hello_app, anna.store, note(refusals))) as address:
        for sslconfig, why in (
            (mallory.store.client_sslconfig(mallory.identity, anna.me), "self-signed"),
            (nameless, "and the peer sent none"),
            (old.store.client_sslconfig(old.identity, anna.me), "has expired"),
        ):
            source = visit(sslconfig, address)
            poll(lambda: refusals)
            ((peer, reason),) = refusals
            assert peer == source
            assert why in reason
            refusals.clear()

        client = PeerClient(ben.store, ben.identity, anna.me, address)
        with client.connect() as connection:
            assert connection.get("/").status == 200
        assert refusals == []

        anna.store.remove(ben.identity.fingerprint)
        source = visit(config, address)
        poll(lambda: refusals)
        assert refusals == [
            (source, f"expected a trusted peer, got the fingerprint {ben.identity.id}")
        ]


def test_the_apps_own_hook_hears_of_refusals(anna, ben, mallory):
    """Without an `on_refused` of its own, PeersOnly leaves it to the app's."""

    class App:
        def __init__(self) -> None:
            self.refusals: Refusals = []

        def __call__(self, request: Any) -> Any:
            return hello_app(request)

        def on_refused(self, address: Any, error: DeguError) -> None:
            self.refusals.append((address, str(error)))

    introduce(anna, ben)
    mallory.store.add(anna.me)
    app = App()
    instead: Refusals = []
    for guarded, heard in (
        (PeersOnly(app, anna.store), app.refusals),
        (PeersOnly(app, anna.store, note(instead)), instead),
    ):
        with serving(anna, guarded) as address:
            visit(mallory.store.client_sslconfig(mallory.identity, anna.me), address)
            poll(heard.copy)

    assert len(app.refusals) == len(instead) == 1
    assert PeersOnly(hello_app, anna.store).on_refused is None


def test_nobody_gets_in_without_tls(anna):
    """A plain socket has no certificate, also one whose other end is gone."""
    refusals: Refusals = []
    require = require_peer(anna.store, note(refusals))
    why = "expected a trusted peer, got one without a certificate"
    one, two = socket.socketpair()
    with one, two:
        assert require({}, one) is False
    with socket.socket() as unconnected:
        assert require({}, unconnected) is False

    assert refusals == [("", why), (None, why)]

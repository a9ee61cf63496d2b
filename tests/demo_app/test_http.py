"""The HTTP side, without Qt: the share, who gets in, the way in for browsers."""

from __future__ import annotations

import datetime
import json
import logging
import os
import shutil
import socket
import ssl
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from degu.client import Client, SSLClient
from degu.errors import PeerError, TLSError
from degu.files import PART_SUFFIX
from degu.peers import PeerClient
from degu.server import Server, SSLServer
from demo_app import browser, share
from demo_app.device import open_device
from demo_app.events import EventHandler, listen_for_events, send_event
from demo_app.monitor import Monitor
from tests.conftest import poll
from tests.demo_app.conftest import befriend

HERE = ("::1", 0, 0, 0)


def read(response: Any) -> bytes:
    """The whole body."""
    data: bytes = response.body.read()
    return data


class Events(list):
    """What was told."""

    def ticks(self) -> list[dict]:
        return [event for event in self if event["kind"] == "tick"]

    def rows(self) -> list[dict]:
        return [row for event in self.ticks() for row in event["requests"]]

    def refusals(self) -> list[list[str]]:
        return [one for event in self.ticks() for one in event["refused"]]


@pytest.fixture
def events(monkeypatch) -> Events:
    """What apps in this process report."""
    events = Events()

    def send(event: dict) -> None:
        events.append(json.loads(json.dumps(event)))

    monkeypatch.setattr(share, "send_event", send)
    monkeypatch.setattr(browser, "send_event", send)
    return events


@contextmanager
def serving(device, folder, writable=True):
    """Serve a folder to the peers of `device`."""
    app = share.build_drop_app("name", str(folder), device.store.directory, writable)
    sslconfig = device.store.server_sslconfig(device.identity)
    server = SSLServer(sslconfig, HERE, app)
    with server.running(grace=0.2):
        yield server


def connect(device, other, address):
    """Connect as `device` to the share of `other`."""
    peer = device.store.get(other.identity.fingerprint)
    return PeerClient(device.store, device.identity, peer, address).connect()


def test_a_peer_sees_the_folder(anna, ben, folder, events):
    """And nobody is let in before they are friends."""
    befriend(anna, ben)
    with serving(anna, folder) as server, connect(ben, anna, server.address) as conn:
        response = conn.get("/files/hello.txt")
        assert (response.status, response.body.read()) == (200, b"Hello!\n")
    assert events[0]["kind"] == "up"
    assert events[0]["pid"] == os.getpid()


def test_requests_are_told_of(anna, ben, folder, events):
    """Who asked for what, how much it was, and what came of it."""
    befriend(anna, ben)
    with serving(anna, folder) as server:
        with connect(ben, anna, server.address) as conn:
            conn.get("/files/hello.txt").body.read()
            assert conn.get("/files/nothing").status == 404
            poll(lambda: len([r for r in events.rows() if not r["running"]]) >= 2)
            ben_hex = ben.identity.fingerprint.hex()
            assert events.ticks()[-1]["peers"] == {ben_hex: 1}
        poll(lambda: events.ticks()[-1]["peers"] == {}, what="the end of the visit")
    rows = {row["path"]: row for row in events.rows()}
    assert rows["/files/hello.txt"]["peer"] == "Ben"
    assert rows["/files/hello.txt"]["bytes"] == 7
    assert rows["/files/hello.txt"]["status"] == 200
    assert rows["/files/nothing"]["status"] == 404
    assert events.ticks()[-1]["sent"] == 7


def test_a_download_that_breaks_off_is_told_of(anna, ben, folder, events):
    """It did not send all that it should have."""
    befriend(anna, ben)
    (folder / "big").write_bytes(bytes(30_000_000))
    with serving(anna, folder) as server:
        with connect(ben, anna, server.address) as conn:
            conn.get("/files/big").body.read(100)
        poll(lambda: any(row["broken"] for row in events.rows()), what="the break")


def test_peers_add_files_but_replace_none(anna, ben, folder, events):
    """A name that is taken is a 412, a new one a 201."""
    befriend(anna, ben)
    with serving(anna, folder) as server, connect(ben, anna, server.address) as conn:
        assert conn.put("/files/new.txt", {}, b"new").status == 201
        assert conn.put("/files/new.txt", {}, b"newer").status == 412
        poll(lambda: events.ticks() and events.ticks()[-1]["received"] >= 3)
    assert (folder / "new.txt").read_bytes() == b"new"


def test_peers_add_nothing_where_they_may_not(anna, ben, folder, events):
    """A share that is not writable answers 405."""
    befriend(anna, ben)
    with (
        serving(anna, folder, False) as server,
        connect(ben, anna, server.address) as conn,
    ):
        assert conn.put("/files/new.txt", {}, b"new").status == 405
    assert not (folder / "new.txt").exists()


def test_old_beginnings_of_uploads_are_swept(tmp_path):
    """A fresh one stays, and so does every other file."""
    for name in (f".old.1{PART_SUFFIX}", f".new.1{PART_SUFFIX}", f"seen{PART_SUFFIX}"):
        (tmp_path / name).touch()
    os.utime(tmp_path / f".old.1{PART_SUFFIX}", (1, 1))
    os.utime(tmp_path / f"seen{PART_SUFFIX}", (1, 1))
    share.remove_old_parts(tmp_path, time.time() - 60)
    assert sorted(os.listdir(tmp_path)) == [
        f".new.1{PART_SUFFIX}",
        f"seen{PART_SUFFIX}",
    ]


# --- who is not let in


def ask_with(context: ssl.SSLContext, address) -> None:
    """Ask for a file; raises where the server refuses."""
    with (
        socket.create_connection(address[:2], 5) as sock,
        context.wrap_socket(sock) as tls,
    ):
        tls.sendall(b"GET /files/hello.txt HTTP/1.1\r\nhost: localhost\r\n\r\n")
        if not tls.recv(1):
            raise ConnectionError("nothing came")


def build_context(certificate: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if certificate is not None:
        context.load_cert_chain(certificate)
    return context


def make_expired(device, folder: Path) -> Path:
    """A certificate of the device's own key and name that was good until yesterday."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization

    data = Path(device.identity.path).read_bytes()
    key: Any = serialization.load_pem_private_key(data, None)
    old = x509.load_pem_x509_certificate(data)
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(old.subject)
        .issuer_name(old.issuer)
        .public_key(old.public_key())
        .serial_number(7)
        .not_valid_before(now - datetime.timedelta(days=9))
        .not_valid_after(now - datetime.timedelta(days=1))
    )
    for extension in old.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    pem = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    path = folder / "expired.pem"
    path.write_bytes(data.partition(b"-----BEGIN CERTIFICATE")[0] + pem)
    return path


@pytest.mark.parametrize("who", ["nobody", "a stranger", "expired", "a removed one"])
def test_who_is_not_trusted_is_refused_and_shown(who, anna, ben, folder, events):
    """Not a byte of HTTP is answered, the app is not called, and the window is told."""
    befriend(anna, ben)
    tmp = folder.parent
    stranger = open_device(tmp / "stranger", "Eve")
    certificate = {
        "nobody": None,
        "a stranger": Path(stranger.identity.path),
        "expired": make_expired(ben, tmp),
        "a removed one": Path(ben.identity.path),
    }[who]
    with serving(anna, folder) as server:
        ask_with(build_context(Path(ben.identity.path)), server.address)
        poll(lambda: events.rows(), what="the friend's request")
        if who == "a removed one":
            anna.store.remove(ben.identity.fingerprint)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            ask_with(build_context(certificate), server.address)
        poll(lambda: events.refusals(), what="the refusal")
        assert len({row["id"] for row in events.rows()}) == 1
    address, why = events.refusals()[0]
    assert address == "::1"
    assert "certificate" in why or "expected a trusted peer" in why


def test_plain_http_is_refused_and_shown(anna, folder, events):
    """Who forgets the TLS is told 400, and shown."""
    with serving(anna, folder) as server:
        with Client(server.address).connect() as conn:
            assert conn.get("/files/").status == 400
        poll(lambda: events.refusals(), what="the refusal")


def test_a_silent_visitor_is_not_a_refusal(anna, ben, folder, events):
    """A friend that connects and goes away did nothing wrong."""
    befriend(anna, ben)
    with serving(anna, folder) as server:
        connect(ben, anna, server.address).close()
        connect(ben, anna, server.address).close()
        with connect(ben, anna, server.address) as conn:
            conn.get("/files/").body.read()
            poll(lambda: events.rows(), what="the request")
    assert events.refusals() == []


# --- the monitor alone


def test_many_requests_make_few_messages():
    """Beyond a screenful they are only counted."""
    monitor = Monitor("name", lambda request: (200, "OK", {}, b"12345"), print)
    request: Any = {"session": {}, "method": "GET", "path": ["x"], "body": None}
    for _ in range(100):
        monitor(request)
    event = monitor.build_event()
    assert len(event["requests"]) == 30
    assert event["skipped"] == 70
    assert event["sent"] == 500
    assert monitor.build_event()["requests"] == []


def test_an_app_that_fails_is_shown_as_500():
    """And its exception goes on to the server."""

    def app(request):
        raise LookupError

    monitor = Monitor("name", app, print)
    request: Any = {"session": {}, "method": "GET", "path": [], "body": None}
    with pytest.raises(LookupError):
        monitor(request)
    assert monitor.build_event()["requests"][0]["status"] == 500


def test_events_come_out_as_they_went_in():
    """An event survives being a log record."""
    told: list[dict] = []
    handler = EventHandler(told.append)
    listen_for_events(handler)
    try:
        send_event({"kind": "up", "server": "x", "pid": 1})
    finally:
        logging.getLogger("demo_app.events").removeHandler(handler)
    assert told == [{"kind": "up", "server": "x", "pid": 1}]


def test_who_was_refused_is_told_of_once():
    """With the address and the reason, also of one that was gone already."""
    monitor = Monitor("name", lambda request: (200, "OK", {}, None), print)
    monitor.on_refused(("::1", 5, 0, 0), TLSError("this side refused"))
    monitor.on_refused(None, TLSError("the peer went"))
    assert monitor.build_event()["refused"] == [
        ("::1", "this side refused"),
        ("", "the peer went"),
    ]
    assert monitor.build_event()["refused"] == []


# --- the browser's way in


@pytest.fixture
def door(anna, folder, events):
    """The browser's server, and the secret that its links are made of."""
    with serving(anna, folder) as behind:
        identity = str(Path(anna.identity.path).parent)
        app = browser.build_browser_app(
            "name", identity, anna.store.directory, behind.address, "secret"
        )
        server = Server(("127.0.0.1", 0), app)
        with server.running(grace=0.2):
            url = f"http://127.0.0.1:{server.address[1]}/"
            yield server.address, browser.make_link(url, "secret").removeprefix(url)


def test_the_first_link_gives_a_cookie_and_that_opens_the_share(door):
    """Through the proxy and TLS, to the file itself."""
    address, link = door
    with Client(address).connect() as conn:
        first = conn.get("/" + link)
        assert first.status == 303
        assert first.headers["location"] == "/files/"
        cookie = first.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=Strict" in cookie
        pair = {"cookie": "other=1; " + cookie.partition(";")[0]}
        response = conn.get("/files/hello.txt", pair)
        assert read(response) == b"Hello!\n"


def test_a_link_is_good_once(door):
    """Who looks it up in the history comes too late."""
    address, link = door
    with Client(address).connect() as conn:
        assert conn.get("/" + link).status == 303
        second = conn.get("/" + link)
        assert second.status == 403
        assert b"Open this page from Degu Drop" in read(second)


@pytest.mark.parametrize(
    "headers",
    [{}, {"cookie": "degu-drop=1"}, {"cookie": "degu-drop-{port}=" + "0" * 64}],
    ids=["no cookie", "another cookie", "a wrong value"],
)
def test_without_the_cookie_nobody_gets_in(door, headers):
    """Other users of this machine see nothing."""
    address, _ = door
    headers = {name: text.format(port=address[1]) for name, text in headers.items()}
    with Client(address).connect() as conn:
        response = conn.get("/files/hello.txt", headers)
        assert response.status == 403
        assert b"Hello" not in read(response)


@pytest.mark.parametrize("key", ["", "0" * 16, "0" * 80])
def test_a_made_up_key_opens_nothing(door, key):
    """The number has to be signed with the secret."""
    address, _ = door
    with Client(address).connect() as conn:
        response = conn.get(f"/files/?key={key}")
        assert response.status == 403
        assert read(response)


def test_a_foreign_page_is_kept_out_even_with_the_cookie(door):
    """Degu's own door looks at Origin and Host before the app is asked."""
    address, link = door
    with Client(address).connect() as conn:
        cookie = conn.get("/" + link).headers["set-cookie"].partition(";")[0]
    for headers in ({"origin": "https://evil.example"}, {"host": "evil.example"}):
        with Client(address).connect() as conn:
            response = conn.get("/files/", {"cookie": cookie, **headers})
            assert response.status in (403, 421)


def test_the_cookie_stays_on_this_side(door, anna):
    """The share behind the proxy has no use for it."""
    seen = []

    def app(request):
        seen.append(request["headers"])
        return 200, "OK", {}, None

    key_door = browser.KeyDoor(app, "secret")
    cookie = f"degu-drop-5={key_door.cookie}"
    request: Any = {"server": ("::1", 5), "query": None, "headers": {"cookie": cookie}}
    assert key_door(request)[0] == 200
    assert seen == [{}]
    assert request["headers"] == {"cookie": cookie}


def test_a_stranger_gets_no_answer_from_an_sslclient(anna, folder, events):
    """Degu's own client without a certificate is told that one is required."""
    with serving(anna, folder) as server:
        sslconfig = {"ca_file": anna.identity.path, "check_hostname": False}
        with pytest.raises((PeerError, OSError)):
            SSLClient(sslconfig, server.address).get("/files/")


def test_a_share_without_its_folder_does_not_start(anna, folder, events):
    """The error is raised where it can be shown."""
    shutil.rmtree(folder)
    with pytest.raises(OSError, match="No such file"), serving(anna, folder):
        pass

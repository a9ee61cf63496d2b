"""`degu.testing.servers` and the factories behind the fixtures, without pytest."""

from __future__ import annotations

import os
import signal
import socket
import socketserver
import time

import pytest

from degu.client import Client
from degu.errors import DiedError, PeerError
from degu.testing import TempPKI, TempServer, TempService, assert_rejected, check_leaks
from degu.testing import report as reports
from degu.testing.fixtures import (
    ServerFactory,
    SharedServers,
    SSLServerFactory,
    connect,
    describe_shared,
    order_args,
    parse_plan,
)
from degu.testing.leaks import UnclosedFileError

LOCAL = ("127.0.0.1", 0)
KEPT: list = []


def app(request):
    """Say which process answers; some paths do something else."""
    if request["uri"] == "/kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if request["uri"] == "/sleep":
        time.sleep(30)
    if request["uri"] == "/leak":
        KEPT.append(open(__file__))  # noqa: SIM115
    return 200, "OK", {}, str(os.getpid()).encode()


def build_app(text):
    return lambda request: (200, "OK", {}, text)


def build_plain_app():
    return build_app(b"plain")


class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.readline())


def build_echo():
    return socketserver.ThreadingTCPServer(LOCAL, Echo)


@pytest.fixture(scope="module")
def pki():
    with TempPKI() as pki:
        yield pki


@pytest.fixture
def factory():
    with ServerFactory() as factory:
        yield factory


def get(server, uri="/"):
    client = server.client()
    try:
        body = client.get(uri).body
        return b"" if body is None else body.read()
    finally:
        client.close()


def is_gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


# --- Making and stopping ------------------------------------------------------------


def test_an_app_is_served_by_a_process_of_its_own(factory):
    """One argument is the app, by itself or by its name."""
    server = factory(app)
    assert int(get(server)) == server.pid != os.getpid()
    assert get(factory("degu.testing.recorder:refuse_unexpected"))[:4] == b"This"


def test_a_build_function_gets_its_arguments(factory):
    """More arguments are for the first; without any it goes to `build`."""
    assert get(factory(build_app, b"built")) == b"built"
    assert get(factory(build=build_plain_app)) == b"plain"
    assert get(factory(None, build_app(b"as for TempServer"))) == b"as for TempServer"
    with pytest.raises(TypeError, match="got both"):
        factory(app, build=build_plain_app)
    assert order_args(None, None, ()) == ()


def test_without_an_app_there_are_expectations(factory):
    """All else is an error, for the client and for the test."""
    server = factory()
    server.expect("GET", "/a").answer(200, "a")
    assert get(server, "/a") == b"a"
    server.assert_all_met()


def test_all_servers_are_stopped_at_the_end():
    """Those of every sort, the faulty too; no process and no port is left."""
    with check_leaks(grace=1):
        with ServerFactory() as factory:
            servers: list = [factory(app), factory(app), factory.service(build_echo)]
            servers.append(factory.faulty("silent"))
            addresses = [server.address for server in servers]
            pids = [server.pid for server in servers[:3]]
        assert all(is_gone(pid) for pid in pids)
        for address in addresses:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(address)


def test_the_address_and_the_options_can_be_chosen(tmp_path):
    """For all servers of a factory, or for one."""
    names = iter("abc")
    with ServerFactory(
        lambda: str(tmp_path / next(names)), options={"timeout": 3.0}
    ) as factory:
        assert factory(app).address == str(tmp_path / "a")
        assert factory(app, timeout=4.0).options == {"timeout": 4.0}
        assert factory(app, address=LOCAL).options == {"timeout": 3.0}
        assert factory.faulty("late").address == str(tmp_path / "c")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_start_stops_nothing_else(factory):
    """What was started before is still stopped, and the error is the server's own."""
    factory(app)
    with pytest.raises(TypeError, match="unknown option"):
        factory(app, colour="red")
    assert len(factory.servers) == 1


def test_a_server_that_died_is_an_error_at_the_end():
    """A test whose server crashed unnoticed does not pass."""
    factory = ServerFactory()
    server = factory(app)
    other = factory(app)
    with pytest.raises(PeerError):
        get(server, "/kill")
    assert server.wait(5) == -signal.SIGKILL
    with pytest.raises(DiedError, match="before it was told to: SIGKILL") as caught:
        factory.close()
    assert caught.value.exitcode == -signal.SIGKILL
    assert not other.is_alive()


def test_a_server_that_the_test_ended_is_no_error():
    """Nor is one whose death the test knows of, and says so."""
    with ServerFactory() as factory:
        factory(app).terminate()
        factory(app).stop()
        server = factory(app)
        with pytest.raises(PeerError):
            get(server, "/kill")
        server.terminate()


def test_several_errors_at_the_end_are_all_told():
    """As a group, after everything was stopped."""
    factory = ServerFactory()
    servers = [factory(app), factory(app)]
    for server in servers:
        with pytest.raises(PeerError):
            get(server, "/kill")
        server.wait(5)
    with pytest.raises(ExceptionGroup) as caught:
        factory.close()
    assert len(caught.value.exceptions) == 2


@pytest.mark.parametrize("uri", [None, "/", "/sleep"])
def test_no_client_delays_the_end_beyond_the_grace(uri):
    """Neither an idle connection nor one that is being answered."""
    with ServerFactory(grace=0.2) as factory:
        server = factory(app)
        with socket.create_connection(server.address) as sock:
            if uri is not None:
                host = b"GET %s HTTP/1.1\r\nhost: localhost\r\n\r\n" % uri.encode()
                sock.sendall(host)
                if uri == "/":
                    sock.recv(1000)
            begin = time.monotonic()
            factory.close()
            assert time.monotonic() - begin < 10
    assert is_gone(server.pid)


# --- TLS, proxies, services ---------------------------------------------------------


def test_tls_asks_for_a_client_certificate(pki):
    """The server's own client has one; one without is kept out."""
    with SSLServerFactory(pki) as factory:
        server = factory(build_app, b"secret")
        assert get(server) == b"secret"
        bad = server.client(pki.anonymous_client_sslconfig)
        assert_rejected(bad, by="server")
        faulty = factory.faulty("close", after=10)
        with pytest.raises(PeerError):
            get_from(faulty, pki)
        assert faulty.url.startswith("https://")


def get_from(faulty, pki):
    from degu.client import SSLClient

    client = SSLClient(pki.client_sslconfig, faulty.address)
    try:
        return client.get("/")
    finally:
        client.close()


def test_another_sslconfig_can_be_chosen(pki):
    """A server that lets everybody in."""
    with SSLServerFactory(pki) as factory:
        server = factory(app, sslconfig=pki.anonymous_server_sslconfig)
        client = server.client(pki.anonymous_client_sslconfig)
        assert client.get("/").status == 200
        client.close()


def test_a_proxy_stands_before_any_server(pki, factory):
    """By its object or its address; a prefix goes before every path."""
    server = factory(app)
    proxy = factory.proxy(server, prefix="/api")
    assert int(get(proxy, "/x")) == server.pid
    assert server.requests[0].uri == "/api/x"
    assert "via" in server.requests[0].headers
    assert int(get(factory.proxy(server.address))) == server.pid
    with pytest.raises(TypeError, match="upstream: expected a server"):
        factory.proxy(3)


def test_a_proxy_speaks_tls_to_its_upstream(pki, factory):
    """With the certificate of the same TempPKI, known from the server."""
    with SSLServerFactory(pki) as ssl_factory:
        server = ssl_factory(build_app, b"secret")
        proxy = factory.proxy(server, host="localhost")
        assert get(proxy) == b"secret"
        assert server.requests[0].peercert


def test_any_server_can_be_a_service(factory):
    """One of the standard library's, as it is."""
    server = factory.service(build_echo)
    assert isinstance(server, TempService)
    with socket.create_connection(server.address) as sock:
        sock.sendall(b"hello\n")
        assert sock.recv(100) == b"hello\n"


def test_the_servers_process_can_be_checked_for_leaks():
    """What a request leaves open there is named."""
    with TempServer(LOCAL, None, app) as server:
        get(server)
        with server.check_leaks(grace=0.5):
            get(server)
        with (
            pytest.raises(UnclosedFileError, match=r"test_fixtures\.py"),
            server.check_leaks(grace=0.2),
        ):
            get(server, "/leak")


def test_a_server_before_a_check_is_no_leak_of_it(factory):
    """Although starting another one makes anew what serves both."""
    factory(app)
    with check_leaks(grace=0.5), TempServer(LOCAL, None, app) as server:
        get(server)


# --- Reports ------------------------------------------------------------------------


def test_a_report_shows_what_the_server_did_since_the_mark(factory):
    """Its state, its sockets, its requests and its log; nothing of before."""
    server = factory(app)
    quiet = factory(app)
    get(server, "/before")
    marks = reports.take_marks()
    begun = factory(app)
    with server.client().connect() as connection:
        connection.get("/after").body.read()
        sections = dict(reports.build_sections(marks))
    text = sections[f"degu: {server!r}"]
    assert f"process {server.pid} runs" in text
    assert "(established)" in text
    assert "GET /after from 127.0.0.1" in text
    assert "/before" not in text
    assert f"degu: {begun!r}" in sections
    assert f"degu: {quiet!r}" not in sections


def test_a_report_shows_how_a_server_ended(factory):
    """By itself, and why; or because it was told to."""
    marks = reports.take_marks()
    server = ServerFactory()(app)
    with pytest.raises(PeerError):
        get(server, "/kill")
    server.wait(5)
    stopped = factory(app)
    stopped.stop()
    texts = [text for _, text in reports.build_sections(marks)]
    assert any("ended without being told to: SIGKILL" in text for text in texts)
    assert any("was told to end: exit code 0" in text for text in texts)


def test_a_report_shows_what_a_faulty_server_did(factory):
    """Each connection with what went over it."""
    server = factory.faulty("close", after=10)
    assert server.describe() == "nobody has connected"
    marks = reports.take_marks()
    assert server not in dict(reports.build_sections(marks))
    with socket.create_connection(server.address) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        while sock.recv(100):
            pass
    ((title, text),) = [
        one for one in reports.build_sections(marks) if "Faulty" in one[0]
    ]
    assert "'close'" in title
    assert "1 requests, 18 bytes received, 10 sent" in text


def test_a_report_comes_without_psutil(factory, monkeypatch):
    """The open sockets are left out then."""
    import degu.testing.leaks

    def fail(pid):
        raise ImportError

    monkeypatch.setattr(degu.testing.leaks, "list_sockets", fail)
    assert reports.describe_sockets(factory(app).pid) == []


# --- Shared servers -----------------------------------------------------------------


def test_a_plan_names_its_targets():
    """One a line; anything else is an error that shows the line."""
    plan = parse_plan(["api = a.b:app", "web=c:build()"])
    assert plan == {"api": "a.b:app", "web": "c:build()"}
    for line in ("api", "api = nothing"):
        with pytest.raises(ValueError, match="expected 'name = module:attribute'"):
            parse_plan([line])


def test_a_shared_server_is_seen_by_those_who_connect():
    """They see what comes, and give orders; it is not theirs to stop."""
    shared = SharedServers({"api": "degu.apps:InspectApp()"})
    try:
        described = describe_shared(shared.start())
        server = connect(described["api"])
        owner = shared.get("api")
        assert server.address == owner.address
        assert server.url == owner.url
        server.expect("GET", "/x").answer(201)
        client = server.client()
        assert client.get("/x").status == 201
        client.close()
        assert [one.uri for one in server.requests] == ["/x"]
        assert [one.uri for one in owner.requests] == ["/x"]
        server.assert_all_met()
        later = connect(described["api"])
        assert later.requests == []
        assert "GET /x" in server.describe(None)
        assert "SharedServer" in repr(server)
        with pytest.raises(LookupError, match=r"no shared server 'web'.*api"):
            shared.get("web")
    finally:
        shared.stop()
    assert not owner.is_alive()


def test_a_shared_server_can_be_built():
    """A target that ends in () is called."""
    shared = SharedServers({"api": "degu.testing.recorder:refuse_unexpected"})
    try:
        client = Client(shared.get("api").address)
        assert client.get("/").status == 500
        client.close()
    finally:
        shared.stop()
    shared = SharedServers({"api": "degu.apps:InspectApp()"})
    try:
        client = Client(shared.get("api").address)
        assert client.get("/").status == 200
        client.close()
    finally:
        shared.stop()

"""What a server was asked, as its test sees it; and answers in the app's place."""

from __future__ import annotations

import multiprocessing
import os
import re
import time

import pytest

from degu import IPv4_LOOPBACK
from degu.base import ChunkedOutput, Output
from degu.errors import EmptyHeadError
from degu.testing import TempPKI, TempServer, TempSSLServer, UnmetError, check_leaks
from degu.testing.faults import FaultyClient
from tests.conftest import poll

METHODS = multiprocessing.get_all_start_methods()
BIG = bytes(range(256)) * 1000


def app(request):
    """Echo the body; some paths fail in a way of their own."""
    body = request["body"]
    if request["uri"] == "/raise":
        raise ValueError("no such luck")
    if request["uri"] == "/exit":
        os._exit(3)
    if request["uri"] == "/type":
        body = f"{type(body).__name__} {getattr(body, 'content_length', None)}".encode()
    elif request["uri"] == "/chunks":
        body = (
            b"|".join(
                b"%s;%s" % (data, (extension or "").encode())
                for extension, data in body.chunks()
            )
            + repr(request["body"].trailers).encode()
        )
    elif request["uri"] == "/some":
        body = body.read(10)
    return 200, "OK", {"x-app": "yes"}, body


def not_an_app(request):
    """Answer with something that can't be sent."""
    return "200", "OK", {}, None


def canned(request):
    """An answer that is computed."""
    return 200, "OK", {}, request["uri"].encode() + (request["body"].read())


@pytest.fixture(scope="module")
def module_server():
    with TempServer(IPv4_LOOPBACK, None, app) as server:
        yield server


@pytest.fixture
def server(module_server):
    """A server for the whole module, without a past."""
    module_server.clear()
    return module_server


@pytest.fixture
def bare():
    """A server that knows expectations only."""
    with TempServer(IPv4_LOOPBACK) as server:
        yield server


@pytest.fixture
def ask(request):
    """Ask a server in one line; gives (status, body)."""
    clients = []

    def ask(server, method, uri, headers=None, body=None):
        client = server.client()
        clients.append(client)
        response = client.request(method, uri, headers or {}, body)
        data = b"" if response.body is None else response.body.read()
        return response.status, data

    yield ask
    for client in clients:
        client.close()


# --- What came ----------------------------------------------------------------------


def test_a_request_is_recorded_with_all_that_is_known(server, ask):
    """Method, URI, headers, body, peer, time, and what the app made of it."""
    before = time.time()
    assert ask(server, "POST", "/a?b=1", {"x-y": "z"}, b"hello") == (200, b"hello")
    (request,) = server.requests
    assert (request.method, request.uri, request.path) == ("POST", "/a?b=1", "/a")
    assert request.query == "b=1"
    assert request.headers["x-y"] == "z"
    assert request.headers["content-length"] == 5
    assert (request.body, request.body_size) == (b"hello", 5)
    assert request.peer[0] == "127.0.0.1"
    assert (request.scheme, request.peercert, request.cipher) == ("http", None, None)
    assert before <= request.time <= time.time()
    assert 0 < request.seconds < 5
    assert (request.status, request.error, request.met) == (200, None, None)


def test_a_request_is_there_before_its_client_has_the_answer(server, ask):
    """Nobody has to wait for what the server wrote down."""
    for number in range(50):
        ask(server, "GET", f"/{number}")
        assert server.requests[-1].uri == f"/{number}"
        assert server.requests[-1].status == 200
    assert len(server.requests) == 50


def test_the_app_gets_the_body_that_came(server, ask):
    """Recording takes nothing away and changes no type."""
    assert ask(server, "POST", "/type", body=b"hello") == (200, b"Input 5")
    body = ChunkedOutput([(None, b"a"), ("k=v", b"b"), (None, b"")])
    _, answer = ask(server, "POST", "/chunks", {}, body)
    assert answer == b"a;|b;k=v|;{}"
    assert server.requests[-1].body == b"ab"
    _, data = ask(server, "POST", "/", {}, Output([BIG], len(BIG)))
    assert data == BIG


def test_the_body_is_kept_up_to_the_cap(server, ask):
    """The size counts all of it."""
    ask(server, "PUT", "/", body=BIG)
    (request,) = server.requests
    assert request.body == BIG[: 64 * 1024]
    assert request.body_size == len(BIG)


def test_the_cap_can_be_chosen(ask):
    """Nothing at all is a choice, too."""
    with TempServer(IPv4_LOOPBACK, None, app, recorded_body_size=3) as server:
        assert ask(server, "PUT", "/", body=b"hello")[1] == b"hello"
        assert (server.requests[0].body, server.requests[0].body_size) == (b"hel", 5)
    with TempServer(IPv4_LOOPBACK, None, app, recorded_body_size=0) as server:
        ask(server, "PUT", "/", body=b"hello")
        assert (server.requests[0].body, server.requests[0].body_size) == (b"", 5)


def test_what_the_app_left_is_not_recorded(server, ask):
    """Only what was read is known."""
    _, data = ask(server, "PUT", "/some", body=b"0123456789abc")
    assert data == b"0123456789"
    assert server.requests[0].body.startswith(b"0123456789")


def test_an_app_that_fails_is_recorded_with_its_error(server, ask):
    """The client gets what it would get without a recorder."""
    assert ask(server, "GET", "/raise")[0] == 500
    (request,) = server.requests
    assert (request.status, request.error) == (None, "ValueError: no such luck")
    assert "the app failed" in "".join(server.server_log)


def test_a_body_that_breaks_off_is_recorded_as_far_as_it_came(server):
    """What came is there, with the reason why it ended."""
    with FaultyClient("close", server.address, body_size=1000, after=500) as client:
        assert client.wait(5)
        server.wait_for_requests(1)
        # The echo is answered with a body that is still to be read.
        poll(lambda: server.requests[0].body_size == 500)
    (request,) = server.requests
    assert request.body == b"x" * 500
    assert request.status == 200 or "UnderFlowError" in request.error


def test_nonsense_from_the_app_is_recorded_without_a_status(ask):
    """The server says what is wrong with it, in its log."""
    with TempServer(IPv4_LOOPBACK, None, not_an_app) as server:
        assert ask(server, "GET", "/")[0] == 500
        assert server.requests[0].status is None


def test_a_request_that_never_came_to_the_app_is_in_the_log(server, ask):
    """A wrong Host is refused before; the reason can be read."""
    status, _ = ask(server, "GET", "/", {"host": "example.com"})
    assert status == 421
    assert server.requests == []
    deadline = time.monotonic() + 5
    while not any("example.com" in line for line in server.server_log):
        assert time.monotonic() < deadline, server.server_log
        time.sleep(0.005)


def test_the_client_certificate_is_recorded(ask):
    """With TLS, who asked is known by name."""
    with (
        TempPKI() as pki,
        TempSSLServer(pki, IPv4_LOOPBACK, None, app) as server,
    ):
        assert ask(server, "GET", "/x") == (200, b"")
        (request,) = server.requests
    assert request.scheme == "https"
    assert request.cipher
    assert ("commonName", "client") in [name[0] for name in request.peercert["subject"]]


def test_a_unix_peer_is_recorded_with_its_credentials(tmp_path, ask):
    """Who asked is known by process and user."""
    with TempServer(str(tmp_path / "sock"), None, app) as server:
        assert ask(server, "GET", "/") == (200, b"")
        (request,) = server.requests
    assert request.credentials == (os.getpid(), os.getuid(), os.getgid())


@pytest.mark.parametrize("method", METHODS)
def test_it_works_by_every_start_method(method, monkeypatch, ask):
    """A server that is no fork is recorded and given orders just the same."""
    monkeypatch.setattr(TempServer, "start_method", method)
    with TempServer(IPv4_LOOPBACK, "degu.apps:InspectApp") as server:
        server.expect("POST", "/x", json=[1]).answer(201, "done")
        assert ask(server, "POST", "/x", body=b"[1]") == (201, b"done")
        assert ask(server, "GET", "/y")[1].startswith(b"Client address")
        assert [one.uri for one in server.requests] == ["/x", "/y"]
        server.assert_all_met()


def test_what_came_stays_readable_after_the_end(ask):
    """Stopped or killed, the server's past is known."""
    with TempServer(IPv4_LOOPBACK, None, app) as server:
        ask(server, "GET", "/a")
    assert [one.uri for one in server.requests] == ["/a"]
    server = TempServer(IPv4_LOOPBACK, None, app)
    ask(server, "GET", "/b")
    with pytest.raises(EmptyHeadError):
        ask(server, "GET", "/exit")
    assert server.wait(5) == 3
    assert [one.uri for one in server.requests] == ["/b", "/exit"]
    assert server.died == "exit code 3"
    server.terminate()


def test_nothing_is_recorded_where_nobody_wants_it(ask):
    """And asking for it is an error that says so."""
    with TempServer(IPv4_LOOPBACK, None, app, record=False) as server:
        assert ask(server, "GET", "/") == (200, b"")
        with pytest.raises(RuntimeError, match="record=False"):
            _ = server.requests
        with pytest.raises(RuntimeError, match="record=False"):
            server.expect("GET", "/")


def test_a_bad_option_is_refused():
    """Before anything is started."""
    with pytest.raises(TypeError, match="record: expected"):
        TempServer(IPv4_LOOPBACK, None, app, record="yes")
    with pytest.raises(TypeError, match="recorded_body_size: expected"):
        TempServer(IPv4_LOOPBACK, None, app, recorded_body_size="1")
    with pytest.raises(ValueError, match="recorded_body_size: expected"):
        TempServer(IPv4_LOOPBACK, None, app, recorded_body_size=-1)


def test_recording_leaves_nothing_behind(ask):
    """Not even while the server's object still lives, or where the start failed."""
    kept = []
    with check_leaks(grace=1):
        with TempServer(IPv4_LOOPBACK, None, app) as server:
            kept.append(server)
        with pytest.raises(ZeroDivisionError):
            TempServer(IPv4_LOOPBACK, divmod, 1, 0)
    with pytest.raises(TypeError, match="app: expected a callable"):
        TempServer(IPv4_LOOPBACK, divmod, 7, 3)


def test_waiting_for_requests_ends(server, ask):
    """With what came, or with an error that shows it."""
    ask(server, "GET", "/a")
    assert [one.uri for one in server.wait_for_requests(1)] == ["/a"]
    with pytest.raises(UnmetError, match=r"expected 2 answered.*got 1:\n  GET /a"):
        server.wait_for_requests(2, within=0.05)


# --- What should come ---------------------------------------------------------------


def test_an_expected_request_is_answered_in_the_apps_place(server, ask):
    """Status, headers and body are the ones that the test chose; then it is over."""
    server.expect("GET", "/a").answer(
        404, json={"x": 1}, headers={"X-Test": "1"}, reason="Nope"
    )
    client = server.client()
    response = client.get("/a")
    assert (response.status, response.reason) == (404, "Nope")
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-test"] == "1"
    assert response.body.read() == b'{"x": 1}'
    assert client.get("/a").headers == {"x-app": "yes"}
    client.close()
    server.assert_all_met()
    assert [one.met is not None for one in server.requests] == [True, False]


def test_several_answers_follow_each_other(server, ask):
    """503 twice, then well, and so it stays for as many times as were asked for."""
    server.expect("GET", "/", times=4).answer(503).answer(503).answer(200, "well")
    statuses = [ask(server, "GET", "/")[0] for _ in range(4)]
    assert statuses == [503, 503, 200, 200]
    server.assert_all_met()


def test_a_stub_answers_as_often_as_it_is_asked(server, ask):
    """Never is fine; expectations go first, later stubs before earlier ones."""
    server.stub("GET", re.compile("/.*")).answer(200, "old")
    server.stub("GET", "/a").answer(200, "new")
    server.stub("GET", "/never")
    server.expect("GET", "/a").answer(200, "once")
    assert [ask(server, "GET", "/a")[1] for _ in range(3)] == [b"once", b"new", b"new"]
    assert ask(server, "GET", "/b")[1] == b"old"
    server.assert_all_met()


def test_ordered_requests_have_to_come_in_order(bare, ask):
    """One that is too early is not expected yet."""
    for path in ("/login", "/data", "/logout"):
        bare.expect("GET", path, ordered=True).answer(200, path)
    assert ask(bare, "GET", "/login") == (200, b"/login")
    assert ask(bare, "GET", "/logout")[0] == 500
    assert ask(bare, "GET", "/data") == (200, b"/data")
    with pytest.raises(UnmetError, match="came out of order: GET /logout"):
        bare.assert_all_met()
    assert ask(bare, "GET", "/logout") == (200, b"/logout")


def test_a_body_decides_and_the_app_still_gets_it(server, ask):
    """What does not match after all is passed on whole, of either kind."""
    server.expect("POST", "/", json={"a": 1}).answer(201)
    assert ask(server, "POST", "/", body=b'{"a": 2}') == (200, b'{"a": 2}')
    server.expect("POST", "/chunks", body=b"never")
    body = ChunkedOutput([(None, b"a"), ("k=v", b"b\nc"), ("e", b"")])
    assert ask(server, "POST", "/chunks", {}, body)[1] == b"a;|b\nc;k=v|;e{}"
    server.expect("POST", "/type", body=b"never")
    assert ask(server, "POST", "/type", {}, b"hello")[1] == b"Input 5"
    assert ask(server, "POST", "/", body=b'{"a": 1}') == (201, b"")
    assert [one.body for one in server.requests][1] == b"ab\nc"


def test_a_body_nobody_asked_about_is_read_before_the_answer(server, ask):
    """So that it is recorded, and the connection can go on."""
    server.expect("PUT", "/up", times=2).answer(204)
    client = server.client()
    for _ in range(2):
        assert client.put("/up", {}, BIG).status == 204
    client.close()
    assert [one.body_size for one in server.requests] == [len(BIG)] * 2
    assert server.requests[0].peer == server.requests[1].peer


def test_a_head_request_gets_the_head_of_its_answer(server):
    """The length is told, the body kept back."""
    server.expect("HEAD", "/").answer(200, "hello")
    with server.client().connect() as connection:
        response = connection.head("/")
        assert response.headers["content-length"] == 5


def test_an_answer_can_be_late(server, ask):
    """By as many seconds as the test says."""
    server.expect("GET", "/").answer(200, delay=0.2)
    begin = time.monotonic()
    ask(server, "GET", "/")
    assert time.monotonic() - begin >= 0.2


def test_an_app_can_answer(server, ask):
    """By its name, or itself where it can travel; the body is still unread."""
    server.expect("POST", "/i").answer_with("degu.apps:InspectApp")
    server.expect("POST", "/c").answer_with(canned)
    assert ask(server, "POST", "/c", body=b"!") == (200, b"/c!")
    with pytest.raises(ValueError, match="can be sent to another process"):
        server.expect("GET", "/").answer_with(lambda request: None)


def test_what_is_not_expected_is_a_failure_where_there_is_no_app(bare, ask):
    """The client gets a 500, the test the whole list."""
    bare.expect("POST", "/users", json={"name": "ada"}).answer(201)
    assert ask(bare, "POST", "/users", body=b'{"name": "bob"}')[0] == 500
    assert ask(bare, "GET", "/favicon.ico")[0] == 500
    with pytest.raises(UnmetError) as caught:
        bare.assert_all_met()
    text = str(caught.value)
    assert "expected, and did not come: POST /users" in text
    assert '-     "name": "ada"' in text
    assert '+     "name": "bob"' in text
    assert "not expected:" in text
    assert "GET /favicon.ico from 127.0.0.1" in text


def test_what_is_missing_is_waited_for(bare, ask):
    """A request that is on its way may still come."""
    bare.expect("GET", "/late")
    with FaultyClient("drip_head", bare.address, uri="/late", interval=0.005):
        bare.assert_all_met(within=5)
    bare.expect("GET", "/never")
    with pytest.raises(UnmetError, match="did not come: GET /never"):
        bare.assert_all_met(within=0.02)


def test_what_was_asked_can_be_asserted_afterwards(server, ask):
    """At least once, so many times, or never."""
    ask(server, "GET", "/a?x=1")
    ask(server, "GET", "/a?x=2")
    assert len(server.assert_requested("GET", "/a")) == 2
    assert server.assert_requested("GET", "/a?x=2", times=1)[0].query == "x=2"
    assert server.assert_requested("PUT", "/a", times=0) == []
    with pytest.raises(UnmetError, match=r"expected 1 times, came 2 times: GET /a\n"):
        server.assert_requested("GET", "/a", times=1)
    with pytest.raises(UnmetError, match=r"- GET /b\n    \+ GET /a"):
        server.assert_requested("GET", "/b")
    with pytest.raises(UnmetError, match="expected 0 times, came 2 times"):
        server.assert_requested("GET", "/a", times=0)


def test_a_cleared_server_has_no_past(server, ask):
    """Neither requests nor expectations of before count."""
    server.expect("GET", "/a").answer(404)
    ask(server, "GET", "/b")
    server.clear()
    assert server.requests == []
    server.assert_all_met()
    assert ask(server, "GET", "/a")[0] == 200


@pytest.mark.skipif("fork" not in METHODS, reason="restarts need fork")
def test_a_restarted_server_goes_on_where_it_was(ask):
    """Its orders and what it has had of them outlive the process."""
    with TempServer(IPv4_LOOPBACK, None, app, restart="on-failure") as server:
        server.expect("GET", "/a", times=2).answer(404)
        assert ask(server, "GET", "/a")[0] == 404
        with pytest.raises(EmptyHeadError):
            ask(server, "GET", "/exit")
        assert ask(server, "GET", "/a")[0] == 404
        assert ask(server, "GET", "/a")[0] == 200
        assert [one.uri for one in server.requests] == ["/a", "/exit", "/a", "/a"]
        server.assert_all_met()


def test_a_request_whose_beginning_was_lost_is_not_there():
    """What is heard of it later does not hide those that follow."""
    with TempServer(IPv4_LOOPBACK, None, app) as server:
        server.client().get("/before")
        link = server._link
        assert link is not None
        for event in (("body", 99, b"x", 1), ("met", 99, 0), ("answered", 99, 200, 0)):
            link.requests.append(*event)
        server.client().get("/after")
        server.wait_for_requests(2)
        assert [one.uri for one in server.requests] == ["/before", "/after"]

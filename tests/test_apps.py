"""`degu.apps`: proxy, router, methods, logger and inspector, with real peers."""

from __future__ import annotations

import json
import logging
import socket
import threading
from contextlib import ExitStack
from typing import Any

import pytest

from degu.apps import (
    AllowedMethods,
    InspectApp,
    MethodsApp,
    ProxyApp,
    RequestLogger,
    RouterApp,
    answer_head,
    strip_hop_by_hop,
)
from degu.base import ChunkedOutput, FileOutput, Output
from degu.client import Client, SSLClient
from degu.errors import TLSError, UnderFlowError
from degu.forms import FilePart, format_form, format_multipart
from degu.rgi import Validator
from degu.server import Server, SSLServer
from degu.testing import TempPKI

LOCALHOST = ("127.0.0.1", 0)


@pytest.fixture(scope="module")
def pki():
    """Certificates for both sides."""
    with TempPKI() as pki:
        yield pki


@pytest.fixture
def stack():
    """Where servers and clients are closed, in reverse order."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def serve(stack):
    """Serve an app, checked by the Validator; gives a client of it."""

    def start(app, address=LOCALHOST, **options):
        server = Server(address, Validator(app), **options)
        stack.enter_context(server.running())
        client = Client(server.address)
        stack.callback(client.close)
        return client

    return start


def read(response):
    """The whole body, b"" where there is none."""
    return b"" if response.body is None else response.body.read()


def echo(request):
    """An upstream that tells what it was asked."""
    body = b"" if request["body"] is None else request["body"].read()
    seen = {key: request[key] for key in ("method", "uri", "headers")}
    seen["body"] = body.decode()
    return 200, "OK", {"content-type": "application/json"}, json.dumps(seen).encode()


# --- proxy


def test_a_proxy_passes_requests_and_responses_on(serve):
    """Method, URI, query, headers, body, status and reason arrive as they were."""

    def app(request):
        seen = [request["method"], request["uri"], read_body(request)]
        headers = {"x-seen": json.dumps(seen), "x-more": request["headers"]["x-one"]}
        return 201, "Made It", headers, b"answer"

    client = serve(ProxyApp(serve(app)))
    for method, uri, body in (
        ("GET", "/", None),
        ("GET", "/a%2Fb/c//?q=1&r=%20", None),
        ("DELETE", "/x/?", None),
        ("POST", "/p", b"data"),
        ("PATCH", "/p?x", b"data"),
        ("PUT", "/", None),
    ):
        response = client.request(method, uri, {"x-one": "1"}, body)
        assert (response.status, response.reason) == (201, "Made It")
        seen = json.loads(response.headers["x-seen"])
        assert seen == [method, uri, (body or b"").decode()]
        assert response.headers["x-more"] == "1"
        assert read(response) == b"answer"


def read_body(request):
    return "" if request["body"] is None else request["body"].read().decode()


def test_a_proxy_tells_who_asked(serve):
    """Host is the upstream's; Via, Forwarded and the X-Forwarded ones say the rest."""
    upstream = serve(echo)
    client = serve(ProxyApp(upstream, name="front"))
    headers = json.loads(read(client.get("/", {"x-forwarded-proto": "lie"})))["headers"]
    port = upstream.address[1]
    assert headers["host"] == f"127.0.0.1:{port}"
    assert headers["via"] == "1.1 front"
    assert headers["forwarded"].startswith('for="127.0.0.1:')
    assert headers["forwarded"].endswith(f';host="{client.host}";proto=http')
    assert headers["x-forwarded-for"] == "127.0.0.1"
    assert headers["x-forwarded-host"] == client.host
    assert headers["x-forwarded-proto"] == "http"
    assert "via" in client.get("/").headers


def test_what_earlier_proxies_said_is_kept(serve):
    """Via and Forwarded are lists to which each hop adds itself."""
    client = serve(ProxyApp(serve(echo)))
    before = {"via": "1.0 old", "forwarded": "for=_x", "x-forwarded-for": "10.0.0.1"}
    headers = json.loads(read(client.get("/", before)))["headers"]
    assert headers["via"] == "1.0 old, 1.1 degu"
    assert headers["forwarded"].startswith("for=_x, for=")
    assert headers["x-forwarded-for"] == "10.0.0.1, 127.0.0.1"


def test_a_unix_peer_is_unknown(serve, tmp_path):
    """Who has no IP address is named as RFC 7239 has it."""
    client = serve(ProxyApp(serve(echo)), str(tmp_path / "s"))
    headers = json.loads(read(client.get("/")))["headers"]
    assert headers["forwarded"] == 'for=unknown;host="localhost";proto=http'
    assert headers["x-forwarded-for"] == "unknown"


def test_hop_by_hop_fields_stay_on_their_hop(serve):
    """Neither the named ones nor those that Connection names are passed on."""

    def app(request):
        assert set(request["headers"]) >= {"host", "x-end"}
        hop = {"te", "keep-alive", "x-hop", "proxy-connection", "connection", "upgrade"}
        assert not hop & set(request["headers"]), request["headers"]
        headers = {"connection": "x-private", "x-private": "1", "keep-alive": "max=5"}
        return 200, "OK", {**headers, "x-public": "1"}, b"ok"

    client = serve(ProxyApp(serve(app)))
    headers = {
        "connection": "x-hop, te",
        "x-hop": "1",
        "te": "trailers",
        "keep-alive": "1",
        "proxy-connection": "keep-alive",
        "upgrade": "h2c",
        "x-end": "1",
    }
    response = client.get("/", headers)
    assert response.status == 200
    assert response.headers["x-public"] == "1"
    assert not {"x-private", "keep-alive"} & set(response.headers)
    assert read(response) == b"ok"


def test_content_length_is_not_dropped_by_a_trick():
    """A Connection that names the framing does not change it."""
    headers = {"connection": "content-length, x", "content-length": 5, "x": "1"}
    assert strip_hop_by_hop(headers) == {"content-length": 5}


@pytest.mark.parametrize(
    ("method", "status", "headers", "body"),
    [
        ("GET", 204, {}, None),
        ("GET", 304, {"etag": '"x"'}, None),
        ("GET", 304, {"content-length": 9}, None),
        ("HEAD", 200, {"content-length": 12345}, None),
        ("HEAD", 404, {}, None),
        ("GET", 200, {}, None),
        ("GET", 200, {"set-cookie": ["a=1", "b=2"]}, b"cookies"),
        ("OPTIONS", 200, {"allow": "GET"}, None),
    ],
)
def test_every_kind_of_answer_comes_through(serve, method, status, headers, body):
    """Answers without a body, with a length only, with two cookies."""
    upstream = serve(lambda request: (status, "Reason", headers, body))
    client = serve(ProxyApp(upstream))
    direct = upstream.request(method, "/x")
    direct = (direct.status, direct.reason, direct.headers, read(direct))
    response = client.request(method, "/x")
    assert response.headers.pop("via") == "1.1 degu"
    response = (response.status, response.reason, response.headers, read(response))
    assert response == direct


def test_options_of_the_server_itself_pass(serve):
    """`OPTIONS *` stays what it is."""
    client = serve(ProxyApp(serve(echo), prefix="/below"))
    response = client.request("OPTIONS", "*")
    assert json.loads(read(response))["uri"] == "*"


def test_bodies_are_streamed_both_ways(serve):
    """The first piece is through before the second one exists, in both directions."""
    gates = [threading.Event() for _ in range(2)]

    def app(request):
        first = next(iter(request["body"]))
        gates[0].set()
        rest = request["body"].read()

        def answer():
            yield b"one"
            assert gates[1].wait(10)
            yield first + rest

        return 200, "OK", {}, ChunkedOutput(answer())

    client = serve(ProxyApp(serve(app)))

    def ask():
        yield b"a"
        assert gates[0].wait(10)
        yield b"b"

    response = client.post("/", {}, ChunkedOutput(ask()))
    pieces = iter(response.body)
    assert next(pieces) == b"one"
    gates[1].set()
    assert b"".join(pieces) == b"ab"


def test_large_bodies_of_known_length_pass(serve):
    """Ten megabytes up and down, with their length."""

    def app(request):
        body = request["body"]
        received = body.read(body.content_length)
        return 200, "OK", {}, Output(iter([received]), len(received))

    client = serve(ProxyApp(serve(app)))
    data = bytes(range(256)) * 40_000
    response = client.put("/", {}, data)
    assert response.headers["content-length"] == len(data)
    assert response.body.read() == data


def test_trailers_and_chunk_extensions_pass(serve):
    """What a chunked message has beside its data arrives as well."""

    def app(request):
        body = request["body"]
        chunks = list(body.chunks())
        assert body.trailers == {"x-sum": "2"}
        return 200, "OK", {}, ChunkedOutput(chunks, {"x-back": "3"})

    client = serve(ProxyApp(serve(app)))
    body = ChunkedOutput([("k=v", b"data"), (None, b"")], {"x-sum": "2"})
    response = client.post("/", {}, body)
    assert response.body.readchunk() == ("k=v", b"data")
    assert response.body.read() == b""
    assert response.body.trailers == {"x-back": "3"}


def test_a_prefix_is_put_before_the_path(serve):
    """A proxy in a router, to a folder of the upstream."""
    proxy = ProxyApp(serve(echo), prefix="/v1/")
    client = serve(RouterApp({"api": proxy}))
    for uri, seen in (("/api/x?y", "/v1/x?y"), ("/api/", "/v1/"), ("/api", "/v1/")):
        assert json.loads(read(client.get(uri)))["uri"] == seen


def test_a_location_points_to_the_proxy(serve):
    """Only where the upstream speaks of itself, below the prefix."""
    where: list[str] = []
    upstream = serve(lambda request: (303, "See Other", {"location": where[0]}, None))
    client = serve(RouterApp({"api": ProxyApp(upstream, prefix="/v1")}))
    own = f"http://{upstream.host}"
    for location, expected in (
        ("/v1/x?y#z", "/api/x?y#z"),
        (f"{own}/v1/x", "/api/x"),
        (f"{own}/v1", "/api/"),
        ("/v1?x", "/api/?x"),
        ("/v10/x", "/v10/x"),
        ("/other", "/other"),
        ("next", "next"),
        ("../up", "../up"),
        ("//example.com/v1/x", "//example.com/v1/x"),
        ("https://example.com/v1/x", "https://example.com/v1/x"),
        (f"{own}.example.com/v1/x", f"{own}.example.com/v1/x"),
    ):
        where[:] = [location]
        assert client.get("/api/a").headers["location"] == expected


def test_an_origin_of_the_proxy_becomes_one_of_the_upstream(serve):
    """So that the upstream's own door lets a page of the same site in."""
    upstream = serve(echo)
    client = serve(ProxyApp(upstream))
    headers = {"origin": f"http://{client.host}", "sec-fetch-site": "same-origin"}
    seen = json.loads(read(client.post("/", headers, b"x")))["headers"]
    assert seen["origin"] == f"http://{upstream.host}"
    assert "sec-fetch-site" not in seen
    assert client.post("/", {"origin": "http://evil.example"}, b"x").status == 403


def test_an_upstream_over_tls_is_reached(stack, pki, serve):
    """With certificates on both sides; one without is a 502."""
    server = SSLServer(pki.server_sslconfig, LOCALHOST, Validator(echo))
    stack.enter_context(server.running())
    good = ProxyApp(SSLClient(pki.client_sslconfig, server.address))
    seen = json.loads(read(serve(good).get("/")))
    assert seen["headers"]["forwarded"].endswith("proto=http")
    bad = ProxyApp(SSLClient(pki.anonymous_client_sslconfig, server.address))
    assert serve(bad).get("/").status == 502


def test_a_proxy_over_tls_says_so(stack, pki, serve):
    """A request that came over TLS is forwarded as https."""
    server = SSLServer(
        pki.server_sslconfig, LOCALHOST, Validator(ProxyApp(serve(echo)))
    )
    stack.enter_context(server.running())
    client = SSLClient(pki.client_sslconfig, server.address)
    stack.callback(client.close)
    headers = json.loads(read(client.get("/")))["headers"]
    assert headers["x-forwarded-proto"] == "https"
    assert headers["forwarded"].endswith("proto=https")


@pytest.fixture
def scripted(stack):
    """An upstream that answers each connection with the next of some bytes."""
    listener = stack.enter_context(socket.create_server(LOCALHOST))
    answers: list[bytes | None] = []

    def run():
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with sock:
                sock.settimeout(10)
                answer = answers.pop(0)
                data = b""
                while b"\r\n\r\n" not in data and (more := sock.recv(65536)):
                    data += more
                if answer is None:
                    while sock.recv(100):
                        pass  # says nothing, until the peer is tired of it
                else:
                    sock.sendall(answer)

    thread = threading.Thread(target=run)
    thread.start()

    def stop():
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()

    stack.callback(stop)
    return listener.getsockname(), answers


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b"", 502),
        (b"garbage\r\n\r\n", 502),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab", 502),
        (b"HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\n\r\n", 502),
        (b"HTTP/1.1 100 Continue\r\n\r\n", 502),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n", 502),
        (None, 504),
        (b"HTTP/1.1 200 \r\ncontent-length: 2\r\n\r\nok", 200),
        (b"HTTP/1.0 200 OK\r\n\r\nuntil the end", 200),
    ],
)
def test_an_upstream_that_fails_is_a_502_or_504(serve, scripted, answer, status):
    """Breaches, hang-ups and silence of the upstream, and two odd but good answers."""
    address, answers = scripted
    answers.append(answer)
    client = serve(ProxyApp(Client(address, timeout=0.3)))
    response = client.post("/", {}, b"data")
    assert (response.status, response.reason != "") == (status, True)
    if status == 200:
        assert read(response) in (b"ok", b"until the end")


def test_an_upstream_that_is_not_there_is_a_502(serve):
    """A refused connection, and then the same proxy with the upstream back."""
    with socket.create_server(LOCALHOST) as sock:
        address = sock.getsockname()
    client = serve(ProxyApp(address))
    assert client.get("/").status == 502
    serve(echo, address)
    assert client.get("/").status == 200


def test_an_upstream_that_was_started_again_is_reconnected(serve, stack):
    """The connection that the old one closed costs no request, not even a POST."""
    server = Server(LOCALHOST, echo)
    address = server.address
    with server.running():
        client = serve(ProxyApp(address))
        assert read(client.get("/"))
    serve(echo, address)
    assert client.post("/", {}, b"data").status == 200


def test_an_upstream_that_breaks_off_breaks_the_answer_off(serve, scripted):
    """Half a body is never passed on as a whole one."""
    address, answers = scripted
    answers += [
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    ]
    client = serve(ProxyApp(address))
    for _ in range(2):
        response = client.get("/")
        with pytest.raises(UnderFlowError):
            response.body.read()
        client.close()


def test_a_client_that_breaks_off_is_no_fault_of_the_upstream(serve, wait_until):
    """The upstream sees the request end early, and the proxy goes on."""
    seen = []

    def app(request):
        try:
            request["body"].read()
        except UnderFlowError as error:
            seen.append(error)
            raise
        return 200, "OK", {}, None

    client = serve(ProxyApp(serve(app)))
    with socket.create_connection(client.address) as sock:
        sock.sendall(
            b"PUT / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\nabc"
        )
    wait_until(lambda: seen, what="the upstream notices")
    assert client.put("/", {}, b"whole").status == 200


def test_an_early_answer_of_the_upstream_gets_through(serve):
    """A refusal that does not wait for the body is what the client is told."""
    upstream = serve(lambda request: (403, "Forbidden", {}, None))
    client = serve(ProxyApp(upstream))
    assert client.post("/", {}, Output(iter([b"x" * 1000] * 1000), 10**6)).status == 403


def test_an_answer_that_nobody_read_is_no_obstacle(serve):
    """A client that goes away in the middle leaves the proxy ready for the next."""
    upstream = serve(lambda request: (200, "OK", {}, b"x" * 10_000_000))
    client = serve(ProxyApp(upstream))
    for _ in range(3):
        client.get("/").body.read(10)
        client.close()
    assert len(client.get("/").body.read()) == 10_000_000


def test_two_proxies_in_a_row_are_as_good_as_one(serve):
    """A chain keeps the path and adds to Via."""
    client = serve(ProxyApp(serve(ProxyApp(serve(echo), name="back")), name="front"))
    response = client.get("/x/%41?y")
    assert response.headers["via"] == "1.1 back, 1.1 front"
    seen = json.loads(read(response))
    assert seen["uri"] == "/x/%41?y"
    assert seen["headers"]["via"] == "1.1 front, 1.1 back"


@pytest.mark.parametrize(
    "arguments", [{"prefix": "x"}, {"prefix": "/x?y"}, {"name": "a\r\nb"}]
)
def test_bad_arguments_of_a_proxy_are_errors_at_once(arguments):
    """A prefix that is no path, and a name that is no header value."""
    with pytest.raises(ValueError, match="expected"):
        ProxyApp(("127.0.0.1", 1), **arguments)


# --- routing


def say(text):
    """An app that answers with a text, and with what it was given."""

    def app(request):
        given = f"{text} {request['script']} {request['path']}"
        return 200, "OK", {}, given.encode()

    return app


def test_a_router_goes_by_the_components(serve):
    """Nested dicts, a trailing slash, an end, and what is left for the app."""
    client = serve(
        RouterApp(
            {
                None: say("root"),
                "a": say("a"),
                "b": {None: say("b"), "": say("b/"), "c": {"d%20e": say("d")}},
            }
        )
    )
    for uri, expected in (
        ("/", "root [] []"),
        ("/a", "a ['a'] []"),
        ("/a/", "a ['a'] ['']"),
        ("/a/x/y", "a ['a'] ['x', 'y']"),
        ("/b", "b ['b'] []"),
        ("/b/", "b/ ['b', ''] []"),
        ("/b/c/d%20e?q", "d ['b', 'c', 'd%20e'] []"),
    ):
        assert read(client.get(uri)).decode() == expected
    for uri in ("/x", "/b/x", "/b/c", "/b/c/", "/b/c/d", "/A", "//a"):
        assert client.get(uri)[:2] == (404, "Not Found"), uri


@pytest.mark.parametrize(
    "routes", [[], {"a": 1}, {"a/b": say("x")}, {1: say("x")}, {"a": {"b": None}}]
)
def test_bad_routes_are_errors_at_once(routes):
    """What could never be found, or called, is told to who wrote it."""
    with pytest.raises(TypeError, match="routes"):
        RouterApp(routes)


def test_methods_choose_an_app(serve):
    """405 with Allow for others; HEAD is what GET would answer."""
    client = serve(MethodsApp(GET=say("got"), PUT=say("put")))
    assert read(client.get("/x")) == b"got [] ['x']"
    assert read(client.put("/x")) == b"put [] ['x']"
    response = client.head("/x")
    assert (response.headers, response.body) == ({"content-length": 12}, None)
    response = client.delete("/x")
    assert response == (405, "Method Not Allowed", {"allow": "GET, HEAD, PUT"}, None)
    assert serve(MethodsApp(PUT=say("put"))).head("/").status == 405
    own = serve(MethodsApp(GET=say("got"), HEAD=lambda r: (204, "No", {}, None)))
    assert own.head("/").status == 204


@pytest.mark.parametrize("apps", [{"get": say("x")}, {"GET": 1}, {"G\xcbT": say("x")}])
def test_bad_methods_are_errors_at_once(apps):
    """A method in lower case would never match."""
    with pytest.raises((TypeError, ValueError), match="expected"):
        MethodsApp(**apps)


def test_head_of_any_body_lets_go_of_it(tmp_path):
    """The length is kept, and neither a file nor a generator stays open."""
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    files = []
    ended = []

    def generate():
        try:
            yield b"x"
        finally:
            ended.append(True)

    def open_file(request):
        files.append(path.open("rb"))
        return 200, "OK", {}, FileOutput(files[0])

    def answer(body):
        def app(request):
            return 200, "OK", {}, body

        return app

    request: Any = {"method": "HEAD"}
    assert answer_head(open_file, request) == (200, "OK", {"content-length": 5}, None)
    assert files[0].closed
    started = generate()
    next(started)
    for body, headers in (
        (Output(started, 7), {"content-length": 7}),
        (memoryview(b"1234"), {"content-length": 4}),
        (b"", {"content-length": 0}),
        (None, {}),
        (ChunkedOutput([b"x"]), {}),
    ):
        assert answer_head(answer(body), request) == (200, "OK", headers, None)
    assert ended


def test_allowed_methods_lets_only_those_through(serve):
    """Around any app: others are a 405 with Allow."""
    client = serve(AllowedMethods(say("x"), "GET", "POST"))
    assert read(client.get("/")) == b"x [] []"
    response = client.put("/")
    assert response == (405, "Method Not Allowed", {"allow": "GET, POST"}, None)
    with pytest.raises(ValueError, match="upper case"):
        AllowedMethods(say("x"), "get")
    with pytest.raises(TypeError, match="app"):
        AllowedMethods(None, "GET")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrap", [RequestLogger, lambda app: AllowedMethods(app, "GET")]
)
def test_what_is_wrapped_still_decides_whom_to_speak_with(serve, wrap):
    """An app's on_connect is asked through a wrapper too."""

    class Guarded:
        answer = True

        def on_connect(self, session, sock):
            session["seen"] = True
            return self.answer

        def __call__(self, request):
            return 200, "OK", {"seen": str(request["session"]["seen"])}, None

    app = Guarded()
    client = serve(wrap(app))
    assert client.get("/").headers == {"seen": "True"}
    client.close()
    app.answer = False
    with pytest.raises(ConnectionError):
        client.get("/")


# --- looking at requests


def test_requests_are_logged_in_a_line(serve, caplog):
    """Who, what, and what came of it; an exception is logged and goes on."""
    caplog.set_level(logging.INFO, "degu.requests")

    def app(request):
        if request["path"]:
            raise KeyError("x")
        return 404, "Not Found", {}, None

    client = serve(RequestLogger(app))
    client.get("/?q")
    assert client.get("/x").status == 500
    lines = [r.getMessage() for r in caplog.records if r.name == "degu.requests"]
    assert lines[0].startswith("127.0.0.1:")
    assert "GET /?q -> 404 in " in lines[0]
    assert lines[1].endswith("GET /x -> KeyError")


def test_requests_are_logged_where_one_wants(serve, caplog, tmp_path):
    """Through a logger of one's own, also from a Unix socket."""
    caplog.set_level(logging.INFO, "mine")
    app = RequestLogger(say("x"), logging.getLogger("mine"))
    serve(app, str(tmp_path / "s")).get("/")
    [line] = [r.getMessage() for r in caplog.records if r.name == "mine"]
    assert line.startswith("unix GET / -> 200 in ")


def test_who_is_refused_is_logged_and_still_shown_to_the_app(caplog):
    """With an app that asks for it and one that does not."""
    app, told = say("x"), []
    RequestLogger(app).on_refused(("::1", 5, 0, 0), TLSError("no certificate"))
    app.on_refused = lambda *facts: told.append(facts)
    error = TLSError("another one")
    RequestLogger(app).on_refused(("::1", 6, 0, 0), error)
    assert told == [(("::1", 6, 0, 0), error)]
    assert [record.getMessage() for record in caplog.records] == [
        "[::1]:5 refused: no certificate",
        "[::1]:6 refused: another one",
    ]


def test_the_inspector_tells_all_it_knows(serve, caplog):
    """Addresses, head and form: as text by default, and in the log."""
    caplog.set_level(logging.INFO, "degu.inspect")
    client = serve(InspectApp())
    headers = {"x-thing": "it's"}
    response = client.get("/foo?x=42&y=10&x=43", headers)
    text = read(response).decode()
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    lines = text.splitlines()
    assert lines[0].startswith("Client address: ('127.0.0.1', ")
    assert lines[1] == f"Server address: {client.address!r}"
    assert lines[2] == "Request: GET /foo?x=42&y=10&x=43 HTTP/1.1"
    assert lines[3] == "Headers:"
    assert '    x-thing: "it\'s"' in lines
    assert lines[-3:] == ["Form:", "    x ['42', '43']", "    y ['10']"]
    assert [r.getMessage() for r in caplog.records if r.name == "degu.inspect"] == [
        text
    ]


def test_the_inspector_shows_forms_and_uploads(serve):
    """Urlencoded, multipart, and a body of any other kind."""
    client = serve(InspectApp())
    fields = {"pets": ["dog", "cat"], "user2": ""}
    text = read(client.post("/foo/bar?hi=john%20doe", *format_form(fields))).decode()
    assert "    pets ['dog', 'cat']\n    user2 ['']\n" in text
    assert "    hi " not in text
    upload = FilePart(b"This is a test.\nIt is only a test.\n", "text1")
    text = read(client.post("/", *format_multipart({}, {"myfile": upload}))).decode()
    assert "    myfile ['This is a test.\\nIt is only a test.\\n']\n" in text
    text = read(client.put("/", {}, b"raw\xff" * 2000)).decode()
    assert "Size: 8000\nBody: 'raw\ufffdraw" in text
    assert len(text) < 6000
    assert "Form" not in text


def test_the_inspector_answers_as_is_asked_for(serve):
    """HTML for browsers, JSON for programs, HEAD with the length."""
    client = serve(InspectApp())
    facts = json.loads(read(client.get("/?a=1", {"accept": "application/json"})))
    assert facts["request"] == "GET /?a=1 HTTP/1.1"
    assert facts["form"] == {"a": ["1"]}
    assert facts["headers"]["accept"] == "application/json"
    response = client.get("/?a=<b>".replace("<b>", "%3Cb%3E"), {"accept": "text/html"})
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    page = read(response).decode()
    assert "[&#x27;&lt;b&gt;&#x27;]" in page
    assert 'name="myfile"' in page
    length = len(read(client.get("/")))
    head = client.head("/")
    assert (head.headers["content-length"], head.body) == (length + 1, None)


def test_the_inspector_shows_a_query_that_is_no_form(serve):
    """Whatever HTTP allows is shown; a body that is no form has its own status."""
    client = serve(InspectApp())
    assert "    'a\\nb' ['c']\n" in read(client.get("/?a%0Ab=c")).decode()
    assert "Problem: " in read(client.get("/?x=%ff")).decode()
    headers = {"content-type": "application/x-www-form-urlencoded"}
    assert client.post("/", headers, b"x=%f").status == 400


def test_the_inspector_shows_the_peer(stack, pki, serve, tmp_path):
    """Cipher and certificate over TLS, the credentials over a Unix socket."""
    server = SSLServer(pki.server_sslconfig, LOCALHOST, Validator(InspectApp()))
    stack.enter_context(server.running())
    client = SSLClient(pki.client_sslconfig, server.address)
    stack.callback(client.close)
    text = read(client.get("/")).decode()
    assert "\nCipher: ('TLS_" in text
    assert "\nCertificate: {'subject': " in text
    facts = json.loads(read(client.get("/", {"accept": "application/json"})))
    assert facts["cipher"][1] == "TLSv1.3"
    unix = read(serve(InspectApp(), str(tmp_path / "s")).get("/")).decode()
    assert "\nCredentials: (" in unix
    assert "Cipher" not in unix
    abstract = serve(InspectApp(), b"")
    assert read(abstract.get("/", {"accept": "application/json"}))

"""`degu.wsgi`: real WSGI apps on Degu, and a Degu app on real WSGI servers."""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import logging
import os
import re
import subprocess
import sys
import threading
import wsgiref.simple_server
import wsgiref.util
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from wsgiref.validate import validator

import pytest

from degu.base import ChunkedOutput, FileOutput, Input, Output
from degu.client import Client, SSLClient
from degu.errors import OverFlowError, PeerError, UnderFlowError
from degu.forms import format_form, format_multipart
from degu.rgi import Validator
from degu.server import Server, SSLServer
from degu.testing import TempPKI
from degu.wsgi import from_wsgi, parse_status, parse_wsgi_headers, to_wsgi

ROOT = Path(__file__).parents[1]
LOCALHOST = ("127.0.0.1", 0)
DATA = bytes(range(256)) * 4000


@pytest.fixture
def stack():
    """Where servers and clients are closed, in reverse order."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def serve(stack):
    """Serve a WSGI app on Degu, both checked; gives a client of it."""

    def start(app, address=LOCALHOST, checked=True, **options):
        inner = validator(app) if checked else app
        server = Server(address, Validator(from_wsgi(inner, **options)))
        stack.enter_context(server.running())
        client = Client(server.address)
        stack.callback(client.close)
        return client

    return start


def read(response):
    """The whole body, b"" where there is none."""
    return b"" if response.body is None else response.body.read()


def show_environ(environ, start_response):
    """A WSGI app that answers with its environ."""
    shown = {k: v for k, v in environ.items() if isinstance(v, str | bool)}
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(shown).encode()]


def say(*pieces, status="200 OK", headers=()):
    """A WSGI app that answers with these pieces."""

    def app(environ, start_response):
        start_response(status, [("Content-Type", "text/plain"), *headers])
        return list(pieces)

    return app


# --- environ


def test_the_environ_says_what_was_asked(serve):
    """The CGI variables of PEP 3333, as the validator wants them."""
    client = serve(show_environ)
    headers = {"cookie": "a=b; c=d", "x-one": "1", "content-type": "text/x"}
    environ = json.loads(
        read(client.post("/a%20b/%C3%BC%2Fx//?x=42&y=%20", headers, b"12345"))
    )
    port = str(client.address[1])
    assert environ["REQUEST_METHOD"] == "POST"
    assert environ["SCRIPT_NAME"] == ""
    assert environ["PATH_INFO"] == "/a b/\xc3\xbc/x//"
    assert environ["QUERY_STRING"] == "x=42&y=%20"
    assert environ["REQUEST_URI"] == "/a%20b/%C3%BC%2Fx//?x=42&y=%20"
    assert environ["CONTENT_TYPE"] == "text/x"
    assert environ["CONTENT_LENGTH"] == "5"
    assert environ["HTTP_COOKIE"] == "a=b; c=d"
    assert environ["HTTP_X_ONE"] == "1"
    assert environ["HTTP_HOST"] == f"127.0.0.1:{port}"
    assert environ["SERVER_NAME"] == "127.0.0.1"
    assert environ["SERVER_PORT"] == port
    assert environ["SERVER_PROTOCOL"] == "HTTP/1.1"
    assert environ["REMOTE_ADDR"] == "127.0.0.1"
    assert environ["REMOTE_PORT"].isdecimal()
    assert environ["wsgi.url_scheme"] == "http"
    assert environ["wsgi.multithread"] is True
    assert "HTTPS" not in environ
    assert "HTTP_CONTENT_TYPE" not in environ


@pytest.mark.parametrize(
    ("uri", "script", "path"),
    [
        ("/", "", "/"),
        ("/app", "/app", ""),
        ("/app/", "/app", "/"),
        ("/app/x", "/app", "/x"),
        ("/other", "", "/other"),
    ],
)
def test_routing_becomes_script_name(stack, uri, script, path):
    """What a router has consumed is the script, the rest the path."""
    from degu.apps import RouterApp

    app = from_wsgi(validator(show_environ))
    router = RouterApp({"app": app, None: app, "other": app})
    routed = router if script or uri == "/" else app
    server = Server(LOCALHOST, Validator(routed))
    stack.enter_context(server.running())
    client = Client(server.address)
    stack.callback(client.close)
    environ = json.loads(read(client.get(uri)))
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == (script, path)


def test_options_of_the_server_itself_have_no_path(serve):
    """`OPTIONS *` is for no resource."""
    environ = json.loads(read(serve(show_environ).request("OPTIONS", "*")))
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("", "")


def test_headers_that_pretend_to_be_others_are_dropped(serve):
    """x_one would become what x-one is, and Proxy what a program's own proxy is."""
    client = serve(show_environ)
    headers = {"x_one": "evil", "x-two": "2", "proxy": "http://evil/"}
    environ = json.loads(read(client.get("/", headers)))
    assert "HTTP_X_ONE" not in environ
    assert "HTTP_PROXY" not in environ
    assert environ["HTTP_X_TWO"] == "2"


def test_a_unix_peer_has_no_address(serve, tmp_path):
    """Over a Unix socket the names come from Host."""
    client = serve(show_environ, str(tmp_path / "s"))
    environ = json.loads(read(client.get("/", {"host": "localhost:81"})))
    assert environ["REMOTE_ADDR"] == ""
    assert (environ["SERVER_NAME"], environ["SERVER_PORT"]) == ("localhost", "81")


def test_ipv6_addresses_are_bare(serve):
    """REMOTE_ADDR is an address, without brackets or scope."""
    environ = json.loads(read(serve(show_environ, ("::1", 0, 0, 0)).get("/")))
    assert environ["REMOTE_ADDR"] == environ["SERVER_NAME"] == "::1"


def test_tls_is_told_as_by_mod_ssl(stack):
    """HTTPS and the SSL_ variables, with and without a client's certificate."""
    app = Validator(from_wsgi(validator(show_environ)))
    with TempPKI() as pki:
        for config, client_config in (
            (pki.server_sslconfig, pki.client_sslconfig),
            (pki.anonymous_server_sslconfig, pki.anonymous_client_sslconfig),
        ):
            server = SSLServer(config, LOCALHOST, app)
            with server.running():
                client = SSLClient(client_config, server.address)
                environ = json.loads(read(client.get("/")))
                client.close()
            assert environ["HTTPS"] == "on"
            assert environ["wsgi.url_scheme"] == "https"
            assert environ["SSL_PROTOCOL"] == "TLSv1.3"
            assert environ["SSL_CIPHER"].startswith("TLS_")
            if "cert_file" not in client_config:
                assert environ["SSL_CLIENT_VERIFY"] == "NONE"
                assert "SSL_CLIENT_S_DN" not in environ
                continue
            assert environ["SSL_CLIENT_VERIFY"] == "SUCCESS"
            assert environ["SSL_CLIENT_S_DN_CN"] == "client"
            assert environ["SSL_CLIENT_S_DN"].startswith("CN=client,")
            assert "O=Degu TempPKI" in environ["SSL_CLIENT_I_DN"]
            assert environ["SSL_CLIENT_M_SERIAL"]


@pytest.mark.parametrize(
    "more",
    [{"REMOTE_USER": "me"}, lambda request: {"REMOTE_USER": request["method"]}],
)
def test_an_environ_of_ones_own_is_added(serve, more):
    """REMOTE_USER comes from whoever knows the user."""
    environ = json.loads(read(serve(show_environ, environ=more).get("/")))
    assert environ["REMOTE_USER"] in ("me", "GET")


def test_the_request_itself_is_there(serve):
    """What WSGI has no name for is in the RGI request."""

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [repr(environ["degu.request"]["path"]).encode()]

    assert read(serve(app).get("/x/y")) == b"['x', 'y']"


# --- wsgi.input and wsgi.errors


@pytest.mark.parametrize("chunked", [False, True])
def test_the_input_has_all_of_its_methods(serve, chunked):
    """read, readline, readlines and iteration, of a body of either kind."""
    body = b"first line\nsecond\n\nfourth" + b"x" * 100_000 + b"\nlast"

    def app(environ, start_response):
        file = environ["wsgi.input"]
        result = [file.read(3), file.readline(), file.readline(2)]
        result += [file.readlines(1)[0], next(iter(file)), file.read(10), b""]
        rest = file.read(1_000_000)
        assert file.read(1) == b""
        assert file.readline() == b""
        assert environ["wsgi.input_terminated"]
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"|".join(result), rest]

    client = serve(app)
    output: Any = ChunkedOutput([body[:7], body[7:]]) if chunked else body
    got = read(client.post("/", {}, output))
    assert got[:38] == b"fir|st line\n|se|cond\n|\n|fourthxxxx|xxx"
    assert got.endswith(b"\nlast")


@pytest.mark.parametrize("size", [5, 3_000_000])
def test_a_chunked_body_can_be_spooled(serve, size):
    """For frameworks that go by CONTENT_LENGTH; the framing is never theirs to see."""

    def app(environ, start_response):
        assert "HTTP_TRANSFER_ENCODING" not in environ
        length = int(environ.get("CONTENT_LENGTH") or 0)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"%d" % len(environ["wsgi.input"].read(length))]

    data = b"x" * size
    for spool, expected in ((True, b"%d" % size), (False, b"0")):
        client = serve(app, spool=spool)
        assert read(client.post("/", {}, ChunkedOutput([data]))) == expected
        client.close()
    client = serve(app, spool=True)
    assert read(client.post("/", {}, data)) == b"%d" % size


def test_bottle_and_django_read_a_spooled_body(serve, django_app):
    """As they read one whose length was told."""
    digest = hashlib.sha256(DATA).hexdigest().encode()
    for app in (make_bottle_app(), django_app):
        client = serve(app, spool=True)
        assert read(client.post("/raw", {}, ChunkedOutput([DATA]))) == digest


def test_no_body_is_an_empty_input(serve):
    """A GET can be read, there is nothing."""

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [repr(environ["wsgi.input"].read(5)).encode()]

    assert read(serve(app).get("/")) == b"b''"


def test_an_input_that_breaks_off_is_an_error_for_the_app(serve, wait_until):
    """An app never takes half a body for a whole one."""
    seen: list[Exception] = []

    def app(environ, start_response):
        try:
            environ["wsgi.input"].read(1000)
        except OSError as error:
            seen.append(error)
            raise
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"whole"]

    client = serve(app)
    connection = http.client.HTTPConnection(*client.address)
    connection.request("POST", "/", b"half", {"content-length": "1000"})
    connection.close()
    wait_until(lambda: seen)
    assert isinstance(seen[0], UnderFlowError)
    assert read(client.post("/", {}, b"x" * 1000)) == b"whole"


def test_what_an_app_complains_of_is_logged(serve, caplog):
    """wsgi.errors goes to logging, a line a record."""

    def app(environ, start_response):
        errors = environ["wsgi.errors"]
        errors.write("one\ntw")
        errors.writelines(["o\n", "three"])
        errors.flush()
        return say(b"x")(environ, start_response)

    read(serve(app).get("/"))
    records = [r.getMessage() for r in caplog.records if r.name == "degu.wsgi"]
    assert records == ["one", "two", "three"]


# --- responses


def test_a_response_comes_as_the_app_said(serve):
    """Status, reason, headers and the pieces, with a length where it is known."""
    client = serve(say(b"one", b"", b"two", status="404 Gone Fishing"))
    response = client.get("/")
    assert (response.status, response.reason) == (404, "Gone Fishing")
    assert response.headers["content-type"] == "text/plain"
    assert read(response) == b"onetwo"
    response = serve(say(b"all of it"), checked=False).get("/")
    assert response.headers["content-length"] == 9
    assert read(response) == b"all of it"
    length = ("Content-Length", "6")
    response = serve(say(b"one", b"two", headers=[length])).get("/")
    assert isinstance(response.body, Input)
    assert read(response) == b"onetwo"
    response = serve(say()).get("/")
    assert (response.status, response.body) == (200, None)


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_statuses_without_a_body(serve, status):
    """Nothing is sent after them."""

    def app(environ, start_response):
        start_response(status, [])
        return []

    client = serve(app)
    for _ in range(2):
        response = client.get("/")
        assert f"{response.status} {response.reason}" == status
        assert response.body is None


def test_head_has_the_headers_and_no_body(serve):
    """The app runs as for GET; its bytes are dropped and it is closed."""
    client = serve(say(b"12345", headers=[("Content-Length", "5")]))
    response = client.head("/")
    assert (response.headers["content-length"], response.body) == (5, None)
    assert read(client.get("/")) == b"12345"


def test_two_cookies_are_two_headers(serve):
    """Set-Cookie may come repeatedly, also to somebody else's client."""
    cookies = [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2; Path=/")]
    client = serve(say(b"x", headers=[*cookies, ("Vary", "a"), ("Vary", "b")]))
    response = client.get("/")
    assert response.headers["set-cookie"] == ["a=1", "b=2; Path=/"]
    assert response.headers["vary"] == "a, b"
    connection = http.client.HTTPConnection(*client.address)
    connection.request("GET", "/")
    answer = connection.getresponse()
    assert answer.headers.get_all("set-cookie") == ["a=1", "b=2; Path=/"]
    connection.close()


def test_a_generator_streams(serve):
    """The first piece arrives before the second is made, and the head before it."""
    gate = threading.Event()

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])

        def generate():
            yield b""
            yield b"one"
            assert gate.wait(10)
            yield b"two"

        return generate()

    pieces = iter(serve(app).get("/").body)
    assert next(pieces) == b"one"
    gate.set()
    assert b"".join(pieces) == b"two"


def test_the_head_may_come_as_late_as_the_first_byte(serve):
    """An app that is a generator itself calls start_response when it is run."""

    def app(environ, start_response):
        yield b""
        start_response("202 Accepted", [("Content-Type", "text/plain")])
        yield b"late"

    response = serve(app, checked=False).get("/")
    assert (response.status, read(response)) == (202, b"late")


def test_an_app_may_change_its_mind_until_the_first_byte(serve):
    """start_response with exc_info replaces the head; afterwards it raises."""

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        early = environ["PATH_INFO"] == "/early"

        def generate():
            if not early:
                yield b"begun"
            try:
                raise KeyError("x")
            except KeyError:
                start_response(
                    "500 Oops", [("Content-Type", "text/plain")], sys.exc_info()
                )
            yield b"sorry"

        return generate()

    client = serve(app, checked=False)
    response = client.get("/early")
    assert (response.status, response.reason) == (500, "Oops")
    assert read(response) == b"sorry"
    response = client.get("/late")
    assert response.status == 200
    with pytest.raises(PeerError):
        response.body.read()


@pytest.mark.parametrize(
    "app",
    [
        lambda environ, start_response: [b"no head"],
        lambda environ, start_response: start_response("200 OK", []) and None,
        lambda environ, start_response: [start_response("OK", []), b"x"][1:],
        lambda environ, start_response: [start_response(200, []), b"x"][1:],
        lambda environ, start_response: [start_response("200 OK", []), "text"][1:],
        lambda environ, start_response: [
            start_response("200 OK", []), start_response("200 OK", []), b"x"][2:],
        lambda environ, start_response: [
            start_response("200 OK", [("X", "a\r\nb: c")]), b"x"][1:],
        lambda environ, start_response: [
            start_response("200 OK", [("X-A", "1"), ("X-A", "2")]), b"x"][1:],
        lambda environ, start_response: [
            start_response("200 OK", [("Content-Length", "x")]), b"x"][1:],
    ],
)  # fmt: skip
def test_an_app_that_breaks_the_rules_is_a_500(serve, app, caplog):
    """Each breach is told in the log, and a bare 500 to the client."""
    assert serve(app, checked=False).get("/").status == 500
    assert "Error" in caplog.text


def test_a_wrong_length_is_never_passed_off_as_right(serve):
    """Too few bytes break the connection off, too many are not sent."""
    client = serve(say(b"123", headers=[("Content-Length", "5")]), checked=False)
    with pytest.raises(UnderFlowError):
        client.get("/").body.read()
    client = serve(say(b"123456", headers=[("Content-Length", "5")]), checked=False)
    with pytest.raises((PeerError, OverFlowError)):
        client.get("/").body.read()


def test_the_connection_is_the_servers(serve):
    """Fields of the connection that an app sets are not sent."""
    headers = [("Connection", "keep-alive"), ("Keep-Alive", "timeout=5")]
    client = serve(say(b"x", headers=headers), checked=False)
    assert not {"connection", "keep-alive"} & set(client.get("/").headers)


class Closing:
    """An iterable that counts how often it was closed."""

    def __init__(self, pieces, closed):
        self.pieces = pieces
        self.closed = closed

    def __iter__(self):
        yield from self.pieces

    def close(self):
        self.closed.append(True)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("pieces", [[], [b"x"], [b"x", b"y"]])
def test_what_an_app_returns_is_closed_once(serve, wait_until, method, pieces):
    """After the last byte, also where none are sent."""
    closed: list[bool] = []

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return Closing(pieces, closed)

    client = serve(app)
    assert read(client.request(method, "/")) == (
        b"".join(pieces) if method == "GET" else b""
    )
    wait_until(lambda: closed)
    assert closed == [True]


def test_what_an_app_returns_is_closed_after_errors_too(serve, wait_until):
    """A client that goes away, an app that raises, a head that can't be sent."""
    closed: list[bool] = []

    def app(environ, start_response):
        kind = environ["PATH_INFO"]
        headers = [("Content-Type", "a\nb")] if kind == "/head" else []
        start_response("200 OK", headers)

        def pieces():
            while kind == "/gone":
                yield b"x" * 100_000
            yield b"x"
            raise ValueError("broken")

        return Closing(pieces(), closed)

    client = serve(app, checked=False)
    response = client.get("/gone")
    response.body.read(10)
    client.close()
    wait_until(lambda: len(closed) == 1)
    with pytest.raises(PeerError):
        client.get("/raises").body.read()
    wait_until(lambda: len(closed) == 2)
    assert client.get("/head").status == 500
    wait_until(lambda: len(closed) == 3)


def test_write_is_there_for_old_apps(serve):
    """What is written comes first, then what is returned."""

    def app(environ, start_response):
        write = start_response("200 OK", [("Content-Type", "text/plain")])
        write(b"one ")
        write(b"two ")
        return [b"three"] if environ["PATH_INFO"] == "/" else []

    client = serve(app)
    assert read(client.get("/")) == b"one two three"
    assert read(client.get("/only")) == b"one two "
    assert read(client.head("/")) == b""

    def big(environ, start_response):
        write = start_response("200 OK", [("Content-Type", "text/plain")])
        for _ in range(30):
            write(b"x" * 100_000)
        return []

    assert read(serve(big).get("/")) == b"x" * 3_000_000


def test_files_are_sent_by_the_kernel(serve, tmp_path, monkeypatch):
    """wsgi.file_wrapper of a real file is a sendfile; of any other it is read."""
    path = tmp_path / "file"
    path.write_bytes(DATA)
    calls: list[bool] = []
    sendfile = os.sendfile

    def spy(*args):
        calls.append(True)
        return sendfile(*args)

    monkeypatch.setattr(os, "sendfile", spy)
    files: list[Any] = []

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        real = environ["PATH_INFO"] == "/real"
        files.append(path.open("rb") if real else io.BytesIO(DATA))
        return environ["wsgi.file_wrapper"](files[-1])

    client = serve(app, checked=False)
    assert read(client.get("/real")) == DATA
    assert calls
    calls.clear()
    assert read(client.get("/memory")) == DATA
    assert not calls
    assert client.head("/real").body is None
    client.get("/real").body.read(5)
    client.close()
    assert all(file.closed for file in files[:3])


@pytest.mark.parametrize("status", ["", "20 OK", "600 X", "2000 OK", "200OK", "²00 OK"])
def test_a_status_is_three_digits(status):
    """Anything else is the app's error; a missing reason is not."""
    with pytest.raises(ValueError, match="status"):
        parse_status(status)
    assert parse_status("200") == (200, "-")
    assert parse_status("303 See Other") == (303, "See Other")


def test_a_length_may_be_an_int():
    """Seeds say so: a number is as good as its text."""
    headers: Any = [("Content-Length", 5), ("A", " b ")]
    assert parse_wsgi_headers(headers) == {"content-length": 5, "a": "b"}


def test_only_a_callable_is_an_app():
    """A wrong argument is an error at once."""
    for wrap in (from_wsgi, to_wsgi):
        with pytest.raises(TypeError, match="app"):
            wrap(None)  # type: ignore[arg-type]


# --- real apps: the same bytes as on their own servers


@contextmanager
def own_server(app, make):
    """The server that a framework comes with."""
    server = make(app)
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}
    )
    thread.start()
    try:
        yield server.server_address[:2]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def make_flask_app():
    """An app with what people do in Flask."""
    import flask

    app = flask.Flask(__name__)
    app.secret_key = "not a secret"

    @app.get("/hello/<name>")
    def hello(name):
        return f"Hello, {name}! {flask.request.args.getlist('x')}"

    @app.post("/form")
    def form():
        upload = flask.request.files["myfile"]
        fields = flask.request.form.to_dict(flat=False)
        return {
            "fields": fields,
            "name": upload.filename,
            "text": upload.read().decode(),
        }

    @app.put("/raw")
    def raw():
        return hashlib.sha256(flask.request.get_data()).hexdigest()

    @app.get("/cookies")
    def cookies():
        response = flask.make_response("cookies")
        response.set_cookie("a", "1")
        response.set_cookie("b", "2", httponly=True)
        return response

    @app.get("/stream")
    def stream():
        return flask.Response((b"%d," % n for n in range(1000)), mimetype="text/plain")

    @app.get("/file")
    def file():
        return flask.send_file(Path(__file__), conditional=True, mimetype="text/plain")

    @app.get("/away")
    def away():
        return flask.redirect("/hello/you")

    @app.get("/crash")
    def crash():
        raise RuntimeError("crash")

    return app


def make_bottle_app():
    """The same for Bottle."""
    import bottle

    app = bottle.Bottle()

    @app.get("/hello/<name>")
    def hello(name):
        return bottle.template("<b>Hello {{name}}</b>!", name=name)

    @app.post("/form")
    def form():
        upload = bottle.request.files.myfile
        text = upload.file.read().decode()
        return {
            "user": bottle.request.forms.user,
            "name": upload.filename,
            "text": text,
        }

    @app.route("/raw", method=["POST", "PUT"])
    def raw():
        return hashlib.sha256(bottle.request.body.read()).hexdigest()

    @app.get("/file")
    def file():
        return bottle.static_file("test_wsgi.py", root=str(Path(__file__).parent))

    @app.get("/cookies")
    def cookies():
        bottle.response.set_cookie("a", "1")
        bottle.response.set_cookie("b", "2")
        return "cookies"

    return app


UPLOAD = format_multipart(
    {"user": "James & Nancy"}, {"myfile": __file__}, boundary="xyz"
)
UPLOAD_BODY = b"".join(bytes(piece) for piece in UPLOAD[1])

RECORDED = [
    ("GET", "/hello/w%C3%B6rld?x=1&x=2", {}, None),
    ("HEAD", "/hello/you", {}, None),
    ("POST", "/form", UPLOAD[0], UPLOAD_BODY),
    ("PUT", "/raw", {"Content-Type": "application/octet-stream"}, DATA),
    ("GET", "/cookies", {"Cookie": "a=b; c=d"}, None),
    ("GET", "/stream", {}, None),
    ("GET", "/file", {}, None),
    ("GET", "/file", {"Range": "bytes=10-19"}, None),
    ("GET", "/file", {"If-Modified-Since": "Fri, 31 Dec 2100 23:59:59 GMT"}, None),
    ("GET", "/away", {}, None),
    ("GET", "/missing", {}, None),
    ("DELETE", "/hello/you", {}, None),
    ("OPTIONS", "/hello/you", {}, None),
]

OF_THE_SERVER = {"date", "server", "connection", "transfer-encoding"}


def play(address, requests):
    """What a server answers to the recorded requests, without its own fields."""
    answers = []
    for method, uri, headers, body in requests:
        connection = http.client.HTTPConnection(address[0], address[1], timeout=20)
        connection.request(method, uri, body, {"Host": "localhost", **headers})
        answer = connection.getresponse()
        fields = sorted(
            (name.lower(), value)
            for name, value in answer.getheaders()
            if name.lower() not in OF_THE_SERVER
        )
        data = answer.read()
        if "chunked" in (answer.getheader("transfer-encoding") or ""):
            fields = [field for field in fields if field[0] != "content-length"]
        answers.append([method, uri, answer.status, answer.reason, fields, data])
        connection.close()
    return answers


def without_lengths(answers):
    """The answers without a length that only one of two servers has added."""
    for answer in answers:
        answer[4] = [field for field in answer[4] if field[0] != "content-length"]
    return answers


@pytest.mark.parametrize("framework", ["flask", "bottle"])
def test_a_framework_answers_the_same_on_degu(serve, framework, monkeypatch):
    """The same bytes for a set of recorded requests as on its own server."""
    monkeypatch.setattr(
        wsgiref.simple_server.WSGIRequestHandler, "log_message", lambda *_: None
    )

    def make_werkzeug(app):
        import werkzeug.serving

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        return werkzeug.serving.make_server("127.0.0.1", 0, app, threaded=True)

    def make_wsgiref(app):
        return wsgiref.simple_server.make_server("127.0.0.1", 0, app)

    app: Any = make_flask_app() if framework == "flask" else make_bottle_app()
    make = make_werkzeug if framework == "flask" else make_wsgiref
    with own_server(app, make) as address:
        expected = without_lengths(play(address, RECORDED))
    client = serve(app, checked=framework == "bottle")
    got = without_lengths(play(client.address, RECORDED))
    for mine, theirs in zip(got, expected, strict=True):
        assert mine == theirs
    assert {answer[2] for answer in got} >= {200, 206, 304, 404, 405}


def test_a_crash_in_flask_is_its_own_500(serve, caplog):
    """Flask answers for its views, and complains to the log."""
    app = make_flask_app()
    response = serve(app).get("/crash")
    assert response.status == 500
    assert b"Internal Server Error" in read(response)
    assert "RuntimeError: crash" in caplog.text


@pytest.fixture(scope="module")
def django_app(tmp_path_factory):
    """A Django with its admin and one user."""
    import django
    from django.conf import settings

    folder = tmp_path_factory.mktemp("django")
    settings.configure(
        SECRET_KEY="not a secret",
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF=__name__ + "_urls",
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": str(folder / "db.sqlite3"),
            }
        },
        INSTALLED_APPS=[
            "django.contrib.admin",
            "django.contrib.auth",
            "django.contrib.contenttypes",
            "django.contrib.sessions",
            "django.contrib.messages",
            "django.contrib.staticfiles",
        ],
        MIDDLEWARE=[
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.middleware.common.CommonMiddleware",
            "django.middleware.csrf.CsrfViewMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
            "django.contrib.messages.middleware.MessageMiddleware",
        ],
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "APP_DIRS": True,
                "OPTIONS": {
                    "context_processors": [
                        "django.template.context_processors.request",
                        "django.contrib.auth.context_processors.auth",
                        "django.contrib.messages.context_processors.messages",
                    ]
                },
            }
        ],
        STATIC_URL="static/",
        PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
        LOGGING_CONFIG=None,
        USE_TZ=True,
    )
    django.setup()
    make_urls()
    from django.contrib.auth.models import User
    from django.core.management import call_command
    from django.core.wsgi import get_wsgi_application
    from django.db import connections

    call_command("migrate", verbosity=0)
    User.objects.create_superuser("admin", "a@example.com", "secret")
    connections.close_all()
    yield get_wsgi_application()
    connections.close_all()


def make_urls():
    """The module of URLs that the settings name."""
    import types

    from django.contrib import admin
    from django.http import FileResponse, HttpResponse, StreamingHttpResponse
    from django.urls import path
    from django.views.decorators.csrf import csrf_exempt

    @csrf_exempt
    def raw(request):
        return HttpResponse(hashlib.sha256(request.body).hexdigest())

    @csrf_exempt
    def form(request):
        file = request.FILES["myfile"]
        return HttpResponse(
            f"{request.POST['user']} {file.name}\n{file.read().decode()}"
        )

    module: Any = types.ModuleType(__name__ + "_urls")
    module.urlpatterns = [
        path("admin/", admin.site.urls),
        path("hello/<name>", lambda request, name: HttpResponse(f"Hello, {name}")),
        path("raw", raw),
        path("form", form),
        path("stream", lambda r: StreamingHttpResponse(b"%d" % n for n in range(99))),
        path("file", lambda request: FileResponse(open(__file__, "rb"))),  # noqa: SIM115
    ]
    sys.modules[module.__name__] = module


def normalize(answers):
    """The answers without what Django makes by chance: tokens and times."""
    for answer in answers:
        fields = [
            (name, re.sub(r"(csrftoken|sessionid)=\w+|expires=[^;]*", r"\1", value))
            for name, value in answer[4]
            if name not in ("content-length", "expires")
        ]
        token = rb'name="csrfmiddlewaretoken" value="\w+"'
        answer[4:] = [fields, re.sub(token, b"token", answer[5])]
    return answers


def test_django_answers_the_same_on_degu(serve, django_app, monkeypatch):
    """The same bytes for recorded requests, the admin's pages among them."""
    from django.core.servers.basehttp import ThreadedWSGIServer, WSGIRequestHandler

    monkeypatch.setattr(WSGIRequestHandler, "log_message", lambda *_: None)
    requests = [
        *RECORDED[:4],
        ("GET", "/stream", {}, None),
        ("GET", "/file", {}, None),
        ("GET", "/admin/", {}, None),
        ("GET", "/admin/login/?next=/admin/", {}, None),
        ("POST", "/admin/login/", *format_form({"username": "admin"})),
        ("GET", "/missing", {}, None),
    ]

    def make(app):
        server = ThreadedWSGIServer(("127.0.0.1", 0), WSGIRequestHandler)
        server.set_app(app)
        return server

    with own_server(django_app, make) as address:
        expected = normalize(play(address, requests))
    client = serve(django_app)
    got = normalize(play(client.address, requests))
    for mine, theirs in zip(got, expected, strict=True):
        assert mine == theirs


def test_one_can_log_in_to_djangos_admin(serve, django_app):
    """Cookie, token, form and session: the right password gets in, a wrong one not."""
    client = serve(django_app)
    response = client.get("/admin/login/")
    page = read(response).decode()
    [cookie] = as_list(response.headers["set-cookie"])
    cookies = cookie.partition(";")[0]
    [token] = re.findall(r'csrfmiddlewaretoken" value="(\w+)"', page)
    fields = {"csrfmiddlewaretoken": token, "username": "admin", "next": "/admin/"}
    for password, status in (("wrong", 200), ("secret", 302)):
        headers, body = format_form({**fields, "password": password})
        headers["cookie"] = cookies
        response = client.post("/admin/login/?next=/admin/", headers, body)
        read(response)
        assert response.status == status
    assert response.headers["location"] == "/admin/"
    new = [c.partition(";")[0] for c in as_list(response.headers["set-cookie"])]
    assert {c.partition("=")[0] for c in new} == {"csrftoken", "sessionid"}
    response = client.get("/admin/", {"cookie": "; ".join(new)})
    assert response.status == 200
    assert b"Site administration" in read(response)
    assert client.get("/admin/", {"cookie": cookies}).status == 302


def as_list(value):
    return value if isinstance(value, list) else [value]


# --- a Degu app on other servers


def degu_app(request):
    """An app with every kind of body, for any server."""
    name = request["path"][0] if request["path"] else ""
    body = request["body"]
    if name == "echo":
        data = b"" if body is None else body.read()
        seen = {
            "method": request["method"],
            "uri": request["uri"],
            "script": request["script"],
            "path": request["path"],
            "query": request["query"],
            "scheme": request["scheme"],
            "session": request["session"],
            "x": request["headers"].get("x-one"),
            "type": request["headers"].get("content-type"),
            "size": len(data),
            "digest": hashlib.sha256(data).hexdigest(),
        }
        return 200, "OK", {"content-type": "text/x"}, json.dumps(seen).encode()
    if name == "stream":
        pieces: list[Any] = [b"one", ("k=v", b"two"), b"three"]
        return 200, "OK", {}, ChunkedOutput(iter(pieces))
    if name == "length":
        return 200, "OK", {}, Output([bytearray(b"one"), memoryview(b"two")], 6)
    if name == "file":
        return 206, "Partial", {}, FileOutput(open(__file__, "rb"), 100)
    if name == "through":
        return 200, "OK", {}, Output(iter([body.read()]), body.content_length)
    if name == "cookies":
        return 200, "OK", {"set-cookie": ["a=1", "b=2"]}, None
    if name == "none":
        return 204, "No Content", {}, None
    if name == "head":
        return 200, "OK", {"content-length": 12345}, None
    if name == "crash":
        raise RuntimeError("crash")
    return 404, "Not Found", {"x-empty": ""}, None


PLAYED = [
    ("GET", "/echo/a%2Fb/%C3%BC//?x=%20&y", {"X-One": "1"}, None),
    ("POST", "/echo", {"Content-Type": "text/y"}, DATA),
    ("PUT", "/echo", {}, b""),
    ("DELETE", "/echo?", {}, None),
    ("GET", "/stream", {}, None),
    ("GET", "/length", {}, None),
    ("GET", "/file", {}, None),
    ("POST", "/through", {}, DATA),
    ("GET", "/cookies", {}, None),
    ("GET", "/none", {}, None),
    ("HEAD", "/head", {}, None),
    ("GET", "/", {}, None),
    ("GET", "/echo", {"Host": "evil.example"}, None),
    ("POST", "/echo", {"Origin": "http://evil.example"}, b"x"),
]


SERVERS = {
    "gunicorn": "-m gunicorn --bind unix:{path} --workers 1 tests.test_wsgi:wsgi_app",
    "gunicorn-threads": "-m gunicorn --bind unix:{path} --workers 1 --threads 4 "
    "tests.test_wsgi:wsgi_app",
    "granian": "-m granian --interface wsgi --uds {path} --workers 1 "
    "tests.test_wsgi:wsgi_app",
    "waitress": "-m waitress --unix-socket={path} tests.test_wsgi:wsgi_app",
}


class UnixConnection(http.client.HTTPConnection):
    """A connection of the standard library's client to a Unix socket."""

    def __init__(self, path: str) -> None:
        http.client.HTTPConnection.__init__(self, "localhost")
        self.path = path

    def connect(self):
        import socket

        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20)
        self.sock.connect(self.path)


class Foreign(NamedTuple):
    """Another server: what it is, and the path of its Unix socket."""

    name: str
    path: str


@pytest.fixture(scope="module", params=sorted(SERVERS))
def foreign(request, tmp_path_factory):
    """Another server that runs the app, behind a Unix socket."""
    folder = tmp_path_factory.mktemp("foreign")
    path = str(folder / "s")
    command = [word.format(path=path) for word in SERVERS[request.param].split()]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )
        try:
            wait_for(path, process, folder / "log")
            yield Foreign(request.param, path)
        finally:
            process.terminate()
            process.wait(20)


def wait_for(path, process, log):
    """Wait until somebody listens."""
    import time

    deadline = time.monotonic() + 40
    while True:
        connection = UnixConnection(path)
        try:
            connection.request("GET", "/none")
            connection.getresponse().read()
            return
        except OSError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        finally:
            connection.close()


def play_unix(path, requests):
    """Like `play`, over a Unix socket."""
    answers = []
    for method, uri, headers, body in requests:
        connection = UnixConnection(path)
        connection.request(method, uri, body, {"Host": "localhost", **headers})
        answer = connection.getresponse()
        fields = sorted(
            (name.lower(), value)
            for name, value in answer.getheaders()
            if name.lower() not in {*OF_THE_SERVER, "via", "content-length"}
        )
        length = answer.getheader("content-length") if method == "HEAD" else None
        answers.append((method, uri, answer.status, fields, answer.read(), length))
        connection.close()
    return answers


def test_the_app_answers_the_same_everywhere(foreign, tmp_path):
    """On gunicorn, granian and waitress as on Degu, for every kind of body."""
    requests = PLAYED
    if foreign.name == "granian":
        # It does not tell an app the URI: an encoded slash is a slash, and an
        # empty query is none.
        requests = [("GET", "/echo/%C3%BC//?x=%20&y", {}, None)]
        requests += [one for one in PLAYED[1:] if not one[1].endswith("?")]
    with Server(str(tmp_path / "s"), Validator(degu_app)).running() as server:
        expected = play_unix(server.address, requests)
    for theirs, mine in zip(play_unix(foreign.path, requests), expected, strict=True):
        assert theirs == mine


def test_a_chunked_body_arrives_everywhere(foreign):
    """A body without a length is read to its end, and no further."""
    client = Client(foreign.path, host="localhost")
    for _ in range(2):
        body = ChunkedOutput([DATA[:1000], DATA[1000:]])
        seen = json.loads(read(client.post("/echo", {}, body)))
        assert (seen["size"], seen["digest"]) == (
            len(DATA),
            hashlib.sha256(DATA).hexdigest(),
        )
    client.close()


def test_a_crash_is_a_500_everywhere(foreign):
    """The server answers for an app that raises, and goes on."""
    [answer] = play_unix(foreign.path, [("GET", "/crash", {}, None)])
    assert answer[2] == 500
    [answer] = play_unix(foreign.path, [("GET", "/none", {}, None)])
    assert answer[2] == 204


def call_wsgi(app, method="GET", path="/", body=b"", checked=True, **environ):
    """Call a WSGI app as the most minimal server would, and check both."""
    given = {
        "REQUEST_METHOD": method,
        "PATH_INFO": path,
        "SCRIPT_NAME": "",
        "QUERY_STRING": "",
        "HTTP_HOST": "localhost",
        "wsgi.input": io.BytesIO(body),
        **environ,
    }
    wsgiref.util.setup_testing_defaults(given)
    given["HTTP_HOST"] = environ.get("HTTP_HOST", "localhost")
    given = {key: value for key, value in given.items() if value is not None}
    said: list[Any] = []

    def start_response(status, headers, exc_info=None):
        said[:] = [status, headers]
        return lambda data: None

    # The validator wants a content-type even where there is no content.
    result: Any = (validator(app) if checked else app)(given, start_response)
    try:
        data = b"".join(result)
    finally:
        if checked:
            result.close()
    return (*said, data)


def show_request(request):
    """A Degu app that shows parts of its request."""
    keys = ("script", "path", "query", "client", "server", "scheme")
    text = json.dumps([request[key] for key in keys])
    return 200, "OK", {"content-type": "text/plain"}, text.encode()


def test_without_the_uri_the_path_is_quoted_again():
    """A server that gives only PATH_INFO, as wsgiref, with and without a mount."""
    app = to_wsgi(Validator(show_request))
    status, _, data = call_wsgi(
        app,
        path="/a b/\xc3\xbc",
        SCRIPT_NAME="/my app",
        QUERY_STRING="x=1",
        REMOTE_ADDR="::1",
        REMOTE_PORT="5",
        SERVER_NAME="127.0.0.1",
        SERVER_PORT="80",
    )
    assert status == "200 OK"
    assert json.loads(data) == [
        ["my%20app"],
        ["a%20b", "%C3%BC"],
        "x=1",
        ["::1", 5, 0, 0],
        ["127.0.0.1", 80],
        "http",
    ]
    assert json.loads(call_wsgi(app, path="")[2])[:3] == [[], [], None]


@pytest.mark.parametrize(
    ("environ", "status"),
    [
        ({}, "200 OK"),
        ({"path": "/../x"}, "400 Bad Request"),
        ({"path": "/a/%2e%2e/x", "REQUEST_URI": "/a/%2e%2e/x"}, "400 Bad Request"),
        ({"HTTP_HOST": "evil.example"}, "421 Misdirected Request"),
        ({"HTTP_ORIGIN": "http://evil.example"}, "403 Forbidden"),
        ({"HTTP_EXPECT": "magic"}, "417 Expectation Failed"),
        ({"HTTP_X": "a\r\nb: c"}, "400 Bad Request"),
        ({"method": "TRACE"}, "501 Not Implemented"),
        ({"CONTENT_LENGTH": "5x", "method": "POST"}, "400 Bad Request"),
        ({"HTTP_HOST": ""}, "400 Bad Request"),
    ],
)
def test_requests_are_refused_as_by_degus_own_server(environ, status):
    """The same rules and statuses, whatever the server before let through."""
    app = to_wsgi(Validator(show_request))
    assert call_wsgi(app, checked=False, **environ)[0] == status


def test_a_public_name_is_allowed_by_an_option():
    """`allowed_hosts` and `allowed_origins` are those of a server."""
    app = to_wsgi(
        Validator(show_request),
        allowed_hosts=["my.example"],
        allowed_origins=["https://my.example"],
    )
    environ = {"HTTP_HOST": "my.example", "HTTP_ORIGIN": "https://my.example"}
    assert call_wsgi(app, **environ)[0] == "200 OK"
    with pytest.raises(TypeError, match="unknown option 'timeout'"):
        to_wsgi(show_request, timeout=5)


def test_a_body_that_ends_early_is_an_error_for_the_app():
    """An app never takes half a body for a whole one, here neither."""

    def app(request):
        request["body"].read()
        return 200, "OK", {}, None

    with pytest.raises(UnderFlowError):
        call_wsgi(to_wsgi(app), "POST", body=b"half", CONTENT_LENGTH="100")


def test_a_refused_body_has_its_status():
    """What reading a body refuses is answered, as by Degu's server."""
    from degu.forms import read_form

    def app(request):
        read_form(request)
        return 200, "OK", {}, None

    environ = {"CONTENT_TYPE": "application/x-www-form-urlencoded"}
    environ["CONTENT_LENGTH"] = "4"
    answer = call_wsgi(to_wsgi(app), "POST", "/", b"x=%f", False, **environ)
    assert answer == ("400 Bad Request", [("content-length", "0")], b"")


def test_a_hook_that_nobody_would_call_is_refused():
    """An app that looks at its peers can't be moved by accident."""

    class Guarded:
        def on_connect(self, session, sock):
            return False

        def __call__(self, request):
            return 200, "OK", {}, None

    with pytest.raises(TypeError, match="on_connect"):
        to_wsgi(Guarded())


def test_there_and_back_again_is_the_same(serve):
    """A Degu app as a WSGI app on Degu answers as the app itself."""
    inner = serve(to_wsgi(Validator(degu_app)), checked=False)
    with Server(LOCALHOST, Validator(degu_app)).running() as server:
        expected = without_lengths(play(server.address, PLAYED))
    got = without_lengths(play(inner.address, PLAYED))
    for mine, theirs in zip(got, expected, strict=True):
        assert mine == theirs


wsgi_app = to_wsgi(Validator(degu_app))

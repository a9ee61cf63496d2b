"""Jobs that people give to Python's own servers, done with Degu: one row, one test.

The table is doc/reference/rows.rst. Rows that belong to a module are tested with that
module; here are the others: the control surface of a server, and the servers of the
standard library in a process of their own.
"""

from __future__ import annotations

import _thread
import http.server
import os
import re
import select
import socket
import socketserver
import threading
import urllib.request
import wsgiref.simple_server
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from degu import EmbeddedServer, EmbeddedService, tls
from degu.address import connect, format_url
from degu.apps import InspectApp
from degu.base import wire
from degu.client import Client, SSLClient
from degu.errors import ClosedConnectionError, PeerError
from degu.forms import parse_query, read_multipart
from degu.rgi import Validator
from degu.server import Server, SSLServer
from degu.testing import TempPKI
from degu.wsgi import from_wsgi

ROOT = Path(__file__).parents[1]
LOCALHOST = ("127.0.0.1", 0)
PAGE = b"<html><head><title>Hello</title></head>\n<body>Hello, World!</body>\n</html>\n"


def hello(request):
    """The page of the seeds."""
    return 200, "OK", {"content-type": "text/html"}, PAGE


@pytest.fixture
def stack():
    """Where servers and clients are closed, in reverse order."""
    with ExitStack() as stack:
        yield stack


def read(response):
    """The whole body, b"" where there is none."""
    return b"" if response.body is None else response.body.read()


# --- the table


def rows() -> dict[str, list[str]]:
    """Each row of the table in the documentation, and the tests that it names."""
    text = (ROOT / "doc/reference/rows.rst").read_text(encoding="utf-8")
    table = {}
    for row in re.split(r"\n   \* - ", text)[1:]:
        name = row.split("\n", 1)[0].strip()
        table[name] = re.findall(r"``(test_\w+)::(test_\w+)``", row)
    return {name: [f"{a}::{b}" for a, b in found] for name, found in table.items()}


def test_every_row_names_a_test_that_exists():
    """C1 to C40 and K1 to K16, each with at least one test of this suite."""
    table = rows()
    table.pop("Row")
    expected = [f"C{n}" for n in range(1, 41)] + [f"K{n}" for n in range(1, 17)]
    assert list(table) == expected
    for row, tests in table.items():
        assert tests, row
        for test in tests:
            module, _, name = test.partition("::")
            [path] = (ROOT / "tests").rglob(f"{module}.py")
            assert f"\ndef {name}(" in path.read_text(encoding="utf-8"), (row, test)


# --- C: the servers of a web framework


def test_a_server_is_bound_when_it_is_made(stack):
    """The address has the port that the system chose, before anything is served."""
    for address in (("0.0.0.0", 0), ("::", 0, 0, 0)):
        server = Server(address, hello)
        stack.callback(server.close)
        assert server.address[0] == address[0]
        assert int(server.address[1]) > 0
        assert server.address == server.sock.getsockname()


def test_one_request_or_many(stack):
    """handle_request serves one connection and returns, serve_forever goes on."""
    server = Server(LOCALHOST, Validator(hello))
    stack.callback(server.close)
    once = threading.Thread(target=server.handle_request)
    once.start()
    client = Client(server.address)
    stack.callback(client.close)
    assert read(client.get("/")) == PAGE
    client.close()
    once.join(10)
    assert not once.is_alive()
    with server.running():
        for _ in range(5):
            assert read(client.get("/")) == PAGE


def test_a_connection_has_its_session_and_its_addresses(stack):
    """What a handler object is elsewhere: a dict that lives as long as a connection."""
    seen = []

    def app(request):
        count = request["session"].setdefault("count", 0)
        request["session"]["count"] = count + 1
        seen.append((request["client"], request["server"]))
        return 200, "OK", {"count": str(count)}, None

    server = Server(LOCALHOST, Validator(app))
    stack.enter_context(server.running())
    for _ in range(2):
        with Client(server.address).connect() as connection:
            mine = connection.sock.getsockname()
            assert connection.get("/").headers["count"] == "0"
            assert connection.get("/").headers["count"] == "1"
            assert seen[-1] == (mine, server.address)


class HandlerOfSeeds(socketserver.StreamRequestHandler):
    """Answers with what a handler has, and with the text of the request."""

    def handle(self):
        head = b"".join(iter(self.rfile.readline, b"\r\n"))
        length = re.search(rb"content-length: (\d+)", head)
        body = self.rfile.read(int(length[1])) if length else b""
        facts = [
            self.connection is self.request,
            isinstance(self.request, socket.socket),
            isinstance(self.server, socketserver.TCPServer),
            self.client_address == self.request.getpeername(),
            super().handle() is None,
        ]
        text = f"{facts}\nServer address: {self.server.server_address}\n".encode()
        text += b"BEGIN REQUEST\n" + head + b"\n" + body + b"\nEND REQUEST\n"
        self.wfile.write(
            b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n"
            b"connection: close\r\n\r\n%b" % (len(text), text)
        )


def test_a_handler_of_the_standard_library_has_all_it_has(stack):
    """A StreamRequestHandler in a process of its own, spoken to by Degu's client."""
    service = EmbeddedService(socketserver.TCPServer, LOCALHOST, HandlerOfSeeds)
    stack.enter_context(service)
    client = Client(service.address)
    for body in (None, b"user=x"):
        text = read(client.request("POST" if body else "GET", "/a/b", {}, body))
        lines = text.decode().split("\n")
        assert lines[0] == str([True] * 5)
        assert lines[1] == f"Server address: {service.address}"
        assert lines[2] == "BEGIN REQUEST"
        assert lines[-2] == "END REQUEST"
        assert (body or b"").decode() in lines[-3]


def test_the_page_of_the_seeds_comes_to_the_byte(stack):
    """To Degu's client, and to the standard library's."""
    server = Server(LOCALHOST, Validator(hello))
    stack.enter_context(server.running())
    client = Client(server.address)
    stack.callback(client.close)
    assert read(client.get("/")) == PAGE
    with urllib.request.urlopen(format_url("http", server.address)) as answer:
        assert answer.read() == PAGE
        assert answer.headers["content-type"] == "text/html"


def test_start_and_stop_in_a_thread_by_hand(stack):
    """As the seeds do it: a thread id, requests, shutdown, and the port is free."""
    server = Server(LOCALHOST, Validator(hello))
    stack.callback(server.close)
    assert isinstance(_thread.start_new_thread(server.serve_forever, ()), int)
    client = Client(server.address)
    assert read(client.get("/")) == PAGE
    client.close()
    assert server.shutdown()
    with pytest.raises(ConnectionRefusedError):
        client.get("/")
    again = Server(server.address, Validator(hello))
    with again.running():
        assert read(client.get("/")) == PAGE
        client.close()


def test_several_servers_at_once(stack):
    """Each at its own address, with its own app."""

    def make(number):
        return Server(LOCALHOST, lambda request: (200, "OK", {"n": str(number)}, None))

    servers = [make(number) for number in range(3)]
    for server in servers:
        stack.enter_context(server.running())
    for number, server in enumerate(servers):
        assert Client(server.address).get("/").headers["n"] == str(number)


def test_a_request_is_a_line_headers_and_data():
    """The seeds' examples, as the parser takes them apart."""
    head = (
        b"POST /foo/bar?hi=john%20doe HTTP/1.1\r\n"
        b"Host: localhost:8000\r\n"
        b"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n"
        b"Connection: keep-alive\r\n"
        b"Content-Type: application/x-www-form-urlencoded\r\n"
        b"Content-Length: 67"
    )
    request = wire.parse_request(head)
    assert request["method"] == "POST"
    assert request["path"] == ["foo", "bar"]
    assert request["query"] == "hi=john%20doe"
    assert request["headers"]["content-length"] == 67
    assert request["headers"]["connection"] == "keep-alive"
    assert wire.parse_target("/foo?x=42&y=10") == (["foo"], "x=42&y=10")
    assert wire.parse_target("/foo") == (["foo"], None)


def test_any_path_reaches_the_app_unchanged(stack):
    """What a path means is the app's own business."""

    def app(request):
        return 200, "OK", {"uri": request["uri"]}, None

    server = Server(LOCALHOST, Validator(app))
    stack.enter_context(server.running())
    client = Client(server.address)
    stack.callback(client.close)
    for uri in ("/", "/any/thing", "/a//b/", "/%41%2f", "/x?", "/?y=/z"):
        assert client.get(uri).headers["uri"] == uri


class HandlerOfForms(http.server.BaseHTTPRequestHandler):
    """Reads the data that http.server has left in rfile."""

    server: http.server.HTTPServer

    def do_POST(self):
        data = self.rfile.read(int(self.headers["Content-Length"]))
        text = f"{self.command} {self.path} {self.request_version} "
        text += f"{self.requestline} {self.headers['HOST']} {data.decode()} "
        text += f"{self.server.server_name} {self.server.server_port}"
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args):
        pass


def test_an_http_server_of_the_standard_library_has_all_it_has(stack):
    """Its attributes, and the data that its handler reads itself."""
    service = EmbeddedService(http.server.HTTPServer, LOCALHOST, HandlerOfForms)
    stack.enter_context(service)
    client = Client(service.address)
    words = read(client.post("/foo?x=1", {}, b"pets=dog")).decode().split(" ")
    port = str(service.address[1])
    assert words[:3] == ["POST", "/foo?x=1", "HTTP/1.1"]
    assert " ".join(words[3:6]) == "POST /foo?x=1 HTTP/1.1"
    assert words[6:8] == [f"127.0.0.1:{port}", "pets=dog"]
    assert words[-1] == port


def test_a_degu_app_has_the_same_facts(stack):
    """Method, URI, string headers, server address; the body is unread until asked."""

    def app(request):
        assert request["body"].remaining == 8
        facts = [request["method"], request["uri"], request["server"][1]]
        return 200, "OK", {"facts": repr(facts)}, request["body"].read()

    server = Server(LOCALHOST, Validator(app))
    stack.enter_context(server.running())
    client = Client(server.address)
    stack.callback(client.close)
    response = client.post("/foo?x=1", {}, b"pets=dog")
    assert response.headers["facts"] == repr(["POST", "/foo?x=1", server.address[1]])
    assert read(response) == b"pets=dog"


def build_tls_server(sslconfig):
    """An HTTP server of the standard library whose listening socket speaks TLS."""
    server = http.server.HTTPServer(LOCALHOST, HandlerOfForms)
    sslctx = tls.build_server_sslctx(sslconfig)
    server.socket = sslctx.wrap_socket(server.socket, server_side=True)
    return server


def test_a_listening_socket_may_speak_tls(stack):
    """The handler does not change, and Degu's client gets through."""
    pki = stack.enter_context(TempPKI())
    service = EmbeddedService(build_tls_server, pki.server_sslconfig)
    stack.enter_context(service)
    client = SSLClient(pki.client_sslconfig, service.address)
    assert b" pets=dog " in read(client.post("/", {}, b"pets=dog"))


@pytest.mark.parametrize("secure", [True, False])
def test_one_app_with_and_without_tls(stack, secure):
    """The same app, in either kind of server: only the cipher tells."""
    app = Validator(InspectApp())
    if secure:
        pki = stack.enter_context(TempPKI())
        server: Any = SSLServer(pki.server_sslconfig, LOCALHOST, app)
        client: Any = SSLClient(pki.client_sslconfig, server.address)
    else:
        server = Server(LOCALHOST, app)
        client = Client(server.address)
    stack.enter_context(server.running())
    stack.callback(client.close)
    assert ("Cipher: ('TLS_" in read(client.get("/")).decode()) == secure


# --- C31 to C39: WSGI


def seed_handler(environ, send):
    """The simple example of the seeds."""
    contents = [b"Hello, world!\n", b"Path: ", environ["PATH_INFO"].encode("ascii")]
    nb = sum(len(s) for s in contents)
    send(
        "200 OK",
        [("Content-Type", "text/plain;charset=utf-8"), ("Content-Length", str(nb))],
    )
    return contents


def build_wsgiref_server():
    """The seeds' make_server."""
    return wsgiref.simple_server.make_server(
        "localhost", 0, seed_handler, handler_class=QuietHandler
    )


class QuietHandler(wsgiref.simple_server.WSGIRequestHandler):
    """One that logs nothing."""

    def log_message(self, *args):
        pass


def test_the_wsgi_example_of_the_seeds(stack):
    """On Degu, and on wsgiref's own server in a process of its own."""
    server = Server(LOCALHOST, Validator(from_wsgi(seed_handler)))
    stack.enter_context(server.running())
    service = stack.enter_context(EmbeddedService(build_wsgiref_server))
    for address in (server.address, service.address):
        client = Client(address)
        response = client.get("/x")
        assert response.headers["content-type"] == "text/plain;charset=utf-8"
        assert response.headers["content-length"] == 22
        assert read(response) == b"Hello, world!\nPath: /x"
        client.close()


@pytest.fixture
def wsgi(stack):
    """Serve a WSGI app on Degu; gives a client of it."""

    def start(app):
        server = Server(LOCALHOST, Validator(from_wsgi(app)))
        stack.enter_context(server.running())
        client = Client(server.address)
        stack.callback(client.close)
        return client

    return start


@pytest.mark.parametrize(
    "status",
    [
        "200 OK",
        "303 See Other",
        "400 Bad Request",
        "401 Permission Denied",
        "404 Not Found",
        "500 Internal Server Error",
    ],
)
def test_statuses_are_sent_as_they_are(wsgi, status):
    """Also with a reason of the app's own."""

    def app(environ, send):
        send(status, [("Content-Type", "text/plain"), ("Content-Length", "1")])
        return [b"x"]

    response = wsgi(app).get("/")
    assert f"{response.status} {response.reason}" == status
    assert read(response) == b"x"


def test_a_redirect_has_its_two_headers(wsgi):
    """Location and a length of zero, and nothing else."""

    def app(environ, send):
        send("303 See Other", [("Location", "/there"), ("Content-Length", "0")])
        return []

    client = wsgi(app)
    response = client.get("/")
    assert response == (303, "See Other", {"location": "/there"}, None)
    with socket.create_connection(client.address) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
        head = sock.recv(1000)
    assert head.endswith(b"location: /there\r\ncontent-length: 0\r\n\r\n")


@pytest.mark.parametrize(
    "kind",
    [
        "text/css;charset=us-ascii",
        "text/html;charset=utf-8",
        "application/javascript;charset=us-ascii",
        "video/mp4",
        "text/pdf",
        "text/plain;charset=utf-8",
        "audio/wave",
    ],
)
def test_types_are_sent_as_they_are(wsgi, kind):
    """Whatever the app says it is."""

    def app(environ, send):
        contents = [b"one", b"two"]
        length: Any = sum(map(len, contents))  # an int, as in the seeds
        send("200 OK", [("Content-Type", kind), ("Content-Length", length)])
        return contents

    response = wsgi(app).get("/")
    assert response.headers["content-type"] == kind
    assert response.headers["content-length"] == 6
    assert read(response) == b"onetwo"


def test_forms_are_read_from_an_environ(wsgi):
    """The query by parse_query, a multipart body by read_multipart."""
    from degu.forms import format_multipart, parse_content_type

    def app(environ, send):
        form = {k: list(v) for k, v in parse_query(environ["QUERY_STRING"]).items()}
        kind, parameters = parse_content_type(environ["CONTENT_TYPE"])
        if kind != "multipart/form-data":
            send("415 Unsupported Media Type", [("Content-Type", "text/plain")])
            return [b""]
        with read_multipart(environ["wsgi.input"], parameters["boundary"]) as parts:
            form |= parts.fields
        send("200 OK", [("Content-Type", "text/plain")])
        return [repr(form).encode()]

    client = wsgi(app)
    parts = format_multipart({"pets": ["dog", "cat"]}, {})
    body = read(client.post("/?x=42&y=10", *parts))
    assert body == b"{'x': ['42'], 'y': ['10'], 'pets': ['dog', 'cat']}"
    assert client.post("/", {"content-type": "text/plain"}, b"x").status == 415


# --- K: the control surface


def test_what_is_no_app_is_refused_at_once():
    """An app is called; what can't be is told where it is given."""
    with pytest.raises(TypeError, match="app: expected a callable"):
        Server(LOCALHOST, "app")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="app: expected a callable"):
        EmbeddedServer(LOCALHOST, None, "app")
    with pytest.raises(TypeError):
        EmbeddedService(socketserver.BaseServer)


def test_a_loop_of_ones_own_may_look_between_requests(stack):
    """handle_request, called in a loop, with whatever is to be done between."""
    log = []

    class Looping(Server):
        def handle_request(self):
            log.append("handle_request")
            super().handle_request()

    def app(request):
        log.append(request["uri"])
        return 200, "OK", {}, None

    server = Looping(LOCALHOST, Validator(app))
    stack.callback(server.close)

    def loop():
        for _ in range(3):
            server.handle_request()

    thread = threading.Thread(target=loop)
    thread.start()
    for number in range(3):
        with Client(server.address).connect() as connection:
            connection.get(f"/{number}")
    thread.join(10)
    assert log == [word for n in range(3) for word in ("handle_request", f"/{n}")]


def test_one_select_for_several_servers(stack):
    """Servers have a fileno: a foreign loop waits for all, and serves who is ready."""

    def make(name):
        server = Server(LOCALHOST, lambda request: (200, "OK", {"name": name}, None))
        stack.callback(server.close)
        return server

    servers = {}
    for name in ("one", "two", "three"):
        servers[name] = make(name)
    answers = []

    def ask():
        for name in ("two", "one", "three", "two"):
            with Client(servers[name].address).connect() as connection:
                answers.append((name, connection.get("/").headers["name"]))

    thread = threading.Thread(target=ask)
    thread.start()
    for _ in range(4):
        ready, _, _ = select.select(list(servers.values()), [], [], 10)
        assert len(ready) == 1
        ready[0].handle_request()
    thread.join(10)
    assert answers == [(n, n) for n in ("two", "one", "three", "two")]


class Guarded:
    """An app that looks at who connects, and notes the order of things."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.answer: Any = True

    def on_connect(self, session, sock):
        self.log.append("on_connect")
        session["peer"] = sock.getpeername()
        return self.answer

    def __call__(self, request):
        assert request["session"]["peer"] == request["client"]
        self.log.append(f"app {request['uri']}")

        def body():
            self.log.append("body")
            yield b"x"

        from degu.base import Output

        return 200, "OK", {}, Output(body(), 1)


def test_verify_before_serve(stack):
    """A client that on_connect does not want gets an end, and the app no call."""
    app = Guarded()
    server = Server(LOCALHOST, Validator(app))
    stack.enter_context(server.running())
    client = Client(server.address)
    stack.callback(client.close)
    assert read(client.get("/")) == b"x"
    client.close()
    app.answer = False
    app.log.clear()
    with connect(server.address, 10) as sock:
        assert sock.recv(1) == b""
    with pytest.raises((PeerError, ClosedConnectionError)):
        client.get("/")
    assert set(app.log) == {"on_connect"}


def test_the_hooks_come_in_a_stated_order(stack):
    """on_connect once, then for each request the app and its body."""
    app = Guarded()
    server = Server(LOCALHOST, Validator(app))
    stack.enter_context(server.running())
    for _ in range(2):
        with Client(server.address).connect() as connection:
            for uri in ("/1", "/2"):
                assert read(connection.get(uri)) == b"x"
    once = ["on_connect", "app /1", "body", "app /2", "body"]
    assert app.log == once * 2


class LoggingServer(socketserver.TCPServer):
    """A server of the standard library that notes its hooks in a file."""

    allow_reuse_address = True

    def __init__(self, address, path):
        self.path = path
        self.note("__init__")
        super().__init__(address, LoggingHandler)

    def note(self, word):
        with open(self.path, "a") as file:
            file.write(f"{word}\n")

    def server_activate(self):
        self.note("server_activate")
        super().server_activate()

    def serve_forever(self, poll_interval=0.5):
        while True:
            self.handle_request()

    def handle_request(self):
        self.note("handle_request")
        super().handle_request()

    def verify_request(self, request, client_address):
        self.note("verify_request")
        return super().verify_request(request, client_address)

    def process_request(self, request, client_address):
        self.note("process_request")
        super().process_request(request, client_address)

    def finish_request(self, request, client_address):
        self.note("finish_request")
        super().finish_request(request, client_address)

    def close_request(self, request):
        self.note("close_request")
        super().close_request(request)

    def handle_error(self, request, client_address):
        self.note("handle_error")


class LoggingHandler(socketserver.BaseRequestHandler):
    """Echoes, and notes its hooks; raises if it is told to."""

    server: LoggingServer

    def __init__(self, request, client_address, server):
        server.note("handler __init__")
        super().__init__(request, client_address, server)

    def setup(self):
        self.server.note("setup")

    def handle(self):
        self.server.note("handle")
        data = self.request.recv(1024)
        if data == b"raise":
            raise ValueError("as told")
        self.request.send(data)

    def finish(self):
        self.server.note("finish")


def test_the_hooks_of_the_standard_library_come_in_their_order(
    stack, tmp_path, wait_until
):
    """As the seeds show it, overridden in a subclass, in a process of its own."""
    path = tmp_path / "log"
    service = EmbeddedService(LoggingServer, LOCALHOST, str(path))
    stack.callback(service.terminate)
    for data, answer in ((b"Hello, world", b"Hello, world"), (b"raise", b"")):
        with connect(service.address, 10) as sock:
            sock.sendall(data)
            assert sock.recv(1024) == answer
            assert sock.recv(1024) == b""
    before = "handle_request verify_request process_request finish_request"
    handler = "handler __init__ setup handle finish"
    once = f"{before} {handler} close_request".replace("handler __init__", "handler")
    raised = once.replace("close_request", "handle_error close_request")
    wait_until(lambda: path.read_text().count("close_request") == 2)
    words = path.read_text().replace("handler __init__", "handler").split()
    expected = ["__init__", "server_activate", *once.split(), *raised.split()]
    assert words[: len(expected)] == expected


class NamingHandler(socketserver.BaseRequestHandler):
    """Tells which thread and process serves, before what it was sent."""

    def handle(self):
        data, sock = (
            self.request
            if isinstance(self.request, tuple)
            else (self.request.recv(1024), None)
        )
        name = f"{threading.current_thread().name} {os.getpid()}: ".encode()
        if sock is None:
            self.request.send(name + data)
        else:
            sock.sendto(name + data, self.client_address)


class DatagramHandler(socketserver.DatagramRequestHandler):
    """Datagrams by rfile and wfile."""

    def handle(self):
        self.wfile.write(self.rfile.read().upper())


class ThreadingUnixDatagram(
    socketserver.ThreadingMixIn, socketserver.UnixDatagramServer
):
    """The mix-ins with every kind of server: the standard library names not all."""


class ForkingUnixStream(socketserver.ForkingMixIn, socketserver.UnixStreamServer):
    """Stream, Unix, a process a request."""


class ForkingUnixDatagram(socketserver.ForkingMixIn, socketserver.UnixDatagramServer):
    """Datagram, Unix, a process a request."""


MIXED = [
    socketserver.ThreadingTCPServer,
    socketserver.ThreadingUDPServer,
    socketserver.ThreadingUnixStreamServer,
    ThreadingUnixDatagram,
    socketserver.ForkingTCPServer,
    socketserver.ForkingUDPServer,
    ForkingUnixStream,
    ForkingUnixDatagram,
]


def place(server_class, tmp_path):
    """An address for a server of that class."""
    unix = server_class.address_family == socket.AF_UNIX
    return str(tmp_path / "sock") if unix else LOCALHOST


def exchange(server_class, address, tmp_path, data):
    """Send one message and receive one."""
    with socket.socket(server_class.address_family, server_class.socket_type) as sock:
        sock.settimeout(10)
        if server_class.socket_type == socket.SOCK_DGRAM:
            path = tmp_path / "mine"
            path.unlink(missing_ok=True)
            sock.bind(str(path) if sock.family == socket.AF_UNIX else LOCALHOST)
        sock.connect(address)
        sock.send(data)
        return sock.recv(1024)


@pytest.mark.parametrize("server_class", MIXED)
def test_a_thread_or_a_process_for_each_request(
    stack, tmp_path, server_class, wait_until
):
    """Both mix-ins with all four types; children are reaped."""
    address = place(server_class, tmp_path)
    service = EmbeddedService(server_class, address, NamingHandler)
    stack.enter_context(service)
    seen = set()
    for _ in range(3):
        answer = exchange(server_class, service.address, tmp_path, b"Hello, world")
        who, _, data = answer.partition(b": ")
        assert data == b"Hello, world"
        name, _, pid = who.decode().rpartition(" ")
        forking = issubclass(server_class, socketserver.ForkingMixIn)
        assert (int(pid) != service.pid) == forking
        assert forking or name.startswith("Thread-")
        seen.add(pid if forking else name)
    assert len(seen) == 3
    wait_until(lambda: not count_zombies(service.pid), what="all children are reaped")


def count_zombies(pid):
    """How many children of a process have ended and wait for somebody to know."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    states = []
    for child in children:
        with suppress(OSError):  # gone between being listed and being asked
            text = Path(f"/proc/{child}/stat").read_text()
            states += text.rpartition(")")[2].split()[:1]
    return states.count("Z")


def test_a_datagram_has_files_too(stack, tmp_path):
    """DatagramRequestHandler: rfile is what came, wfile what goes back."""
    service = EmbeddedService(socketserver.UDPServer, LOCALHOST, DatagramHandler)
    stack.enter_context(service)
    answer = exchange(socketserver.UDPServer, service.address, tmp_path, b"hello")
    assert answer == b"HELLO"


def test_a_port_may_be_chosen(stack):
    """A number in the address is the port."""
    with socket.create_server(LOCALHOST) as sock:
        port = sock.getsockname()[1]
    server = Server(("127.0.0.1", port), Validator(hello))
    stack.enter_context(server.running())
    assert server.address == ("127.0.0.1", port)
    assert read(Client(server.address).get("/")) == PAGE

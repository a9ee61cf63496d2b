"""Others' clients against a Degu server, Degu's client against another's server.

All with their default settings: what they send by themselves has to be in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.client
import http.server
import io
import os
import shutil
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from degu.base import ChunkedOutput, FileOutput, make_output_from_input
from degu.client import Client, SSLClient
from degu.rgi import Validator
from degu.server import Server, SSLServer
from degu.testing.pki import TempPKI
from tests.transports import TIMEOUT, connect, read_response, shared_pki

LARGE = os.urandom(3_000_000)
DIGEST = hashlib.sha256(LARGE).hexdigest().encode()


def app(request: Any) -> Any:
    """What a site has: a page, nothing, a file, an upload, an echo, an error."""
    name = request["path"][0] if request["path"] else ""
    method, body = request["method"], request["body"]
    if name == "echo":
        return 200, "OK", {}, make_output_from_input(body)
    if name == "digest":
        digest = hashlib.sha256()
        for piece in body or ():
            digest.update(piece)
        return 200, "OK", {}, digest.hexdigest().encode()
    if name == "refuse":
        return 403, "Forbidden", {}, b"no"
    if name == "none":
        return 200, "OK", {"x-test": "none"}, None
    if name == "gone":
        return 204, "No Content", {}, None
    content: Any = {
        "": lambda: b"hello",
        "large": lambda: LARGE,
        "chunked": lambda: ChunkedOutput([LARGE[:70_000], LARGE[70_000:]]),
    }.get(name)
    if content is None:
        return 404, "Not Found", {}, b"not here"
    headers: dict[str, Any] = {"content-type": "text/plain", "set-cookie": ["a=b", "c"]}
    if method == "HEAD":
        return 200, "OK", {**headers, "content-length": 5}, None
    return 200, "OK", headers, content()


@pytest.fixture(params=["ipv4", "ipv6"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server with default options, whose app is checked as it serves."""
    address: Any = {"ipv4": ("127.0.0.1", 0), "ipv6": ("::1", 0, 0, 0)}[request.param]
    with Server(address, Validator(app)).running() as server:
        yield server


@pytest.fixture
def url(server: Server) -> str:
    """The root of the server, without the final slash."""
    host = server.address[0]
    name = f"[{host}]" if ":" in str(host) else host
    return f"http://{name}:{server.address[1]}"


def run(*command: str, **options: Any) -> bytes:
    """What a tool prints; it has to succeed, and to be there."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    environ = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    done = subprocess.run(
        command, capture_output=True, timeout=60, check=False, env=environ, **options
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    return done.stdout


curl = partial(run, "curl", "--silent", "--show-error", "--max-time", "20")


# --- others' clients -------------------------------------------------------------


def test_curl_gets_and_heads(url: str):
    """Complete answers, none of which it waits for, also for a None body."""
    started = time.monotonic()
    answer = curl("--include", f"{url}/")
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\nhello")
    assert curl("--include", f"{url}/none").endswith(b"content-length: 0\r\n\r\n")
    assert curl("--include", f"{url}/gone").startswith(b"HTTP/1.1 204")
    assert b"content-length: 5\r\n" in curl("--head", f"{url}/")
    assert curl(f"{url}/missing") == b"not here"
    assert time.monotonic() - started < 10.0


def test_curl_downloads_and_uses_a_connection_again(url: str):
    """Sized and chunked, on one connection."""
    assert curl(f"{url}/large", f"{url}/chunked", f"{url}/") == LARGE + LARGE + b"hello"
    said = curl("--write-out", "%{num_connects}", *[f"{url}/"] * 3)
    assert said == b"hello1hello0hello0"


def test_curl_uploads_with_100_continue(url: str, tmp_path: Path):
    """Above 1 MiB it waits for a 100; sized from a file, chunked from a pipe."""
    path = tmp_path / "file"
    path.write_bytes(LARGE)
    started = time.monotonic()
    assert curl("--data-binary", f"@{path}", f"{url}/digest") == DIGEST
    assert curl("--upload-file", str(path), f"{url}/digest") == DIGEST
    assert curl("-T", "-", f"{url}/digest", input=LARGE) == DIGEST
    assert curl("-d", "a=b", f"{url}/echo") == b"a=b"
    assert curl("-F", "a=b", f"{url}/echo").count(b"a") >= 1
    assert curl("-X", "POST", f"{url}/none") == b""
    assert curl("-X", "DELETE", f"{url}/none") == b""
    # Who is refused does not send its body, or sends it in vain; he hears it.
    assert curl("--data-binary", f"@{path}", f"{url}/refuse") == b"no"
    assert time.monotonic() - started < 15.0


def test_curl_speaks_over_a_unix_socket_and_over_tls(tmp_path: Path):
    """With a client certificate, and the server's checked."""
    with Server(str(tmp_path / "x.sock"), app).running() as server:
        said = curl("--unix-socket", str(server.address), "http://localhost/")
        assert said == b"hello"
    pki = shared_pki()
    config = pki.client_sslconfig
    with SSLServer(pki.server_sslconfig, ("127.0.0.1", 0), app).running() as server:
        said = curl(
            *("--cacert", config["ca_file"]),
            *("--cert", config["cert_file"], "--key", config["key_file"]),
            f"https://localhost:{server.address[1]}/",
        )
        assert said == b"hello"


def test_curl_gets_absolute_form_through_as_a_proxy_would_send_it(url: str):
    """A target that names this very server is in order (RFC 9112 §3.2.2)."""
    assert curl("--request-target", f"{url}/", f"{url}/x") == b"hello"


def test_wget_downloads(url: str, tmp_path: Path):
    """Sized and chunked, and a missing page is its error, not a hang."""
    assert (
        run("wget", "-q", "--tries=1", "--timeout=20", "-O", "-", f"{url}/") == b"hello"
    )
    assert (
        run(
            "wget",
            "-q",
            "--tries=1",
            "--timeout=20",
            "-O",
            "-",
            f"{url}/large",
            f"{url}/chunked",
        )
        == LARGE * 2
    )
    assert (
        run(
            "wget",
            "-q",
            "--tries=1",
            "--timeout=20",
            "-O",
            "-",
            "--post-data=a=b",
            f"{url}/echo",
        )
        == b"a=b"
    )
    assert (
        run("wget", "-q", "--tries=1", "--timeout=20", "-O", "-", "--spider", f"{url}/")
        == b""
    )


def test_http_client(server: Server):
    """The standard library's, on one connection."""
    client = http.client.HTTPConnection(*server.address[:2], timeout=TIMEOUT)  # type: ignore[misc]
    with contextlib.closing(client):
        for method, path, body, status, answer in [
            ("GET", "/", None, 200, b"hello"),
            ("GET", "/none", None, 200, b""),
            ("GET", "/gone", None, 204, b""),
            ("HEAD", "/", None, 200, b""),
            ("GET", "/chunked", None, 200, LARGE),
            ("POST", "/digest", LARGE, 200, DIGEST),
            ("POST", "/digest", iter([LARGE[:9], LARGE[9:]]), 200, DIGEST),
            ("POST", "/none", None, 200, b""),
            ("DELETE", "/none", None, 200, b""),
        ]:
            client.request(method, path, body)
            response = client.getresponse()
            assert (response.status, response.read()) == (status, answer)


def test_urllib(url: str):
    """The standard library's other one closes each connection."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for path, data, answer in (
        ("/", None, b"hello"),
        ("/large", None, LARGE),
        ("/echo", b"a=b", b"a=b"),
    ):
        with opener.open(url + path, data, timeout=TIMEOUT) as response:
            assert response.read() == answer


def test_requests(url: str):
    """With a session, cookies, forms, streams in both directions."""
    requests = pytest.importorskip("requests")
    with requests.Session() as session:
        session.trust_env = False
        get = partial(session.get, timeout=TIMEOUT)
        post = partial(session.post, timeout=TIMEOUT)
        first = get(f"{url}/")
        assert first.content == b"hello"
        assert first.cookies["a"] == "b"
        assert get(f"{url}/none").content == b""
        assert get(f"{url}/gone").status_code == 204
        assert session.head(f"{url}/", timeout=TIMEOUT).headers["content-length"] == "5"
        assert get(f"{url}/large").content == LARGE
        assert get(f"{url}/chunked").content == LARGE
        assert post(f"{url}/digest", data=LARGE).content == DIGEST
        assert post(f"{url}/digest", data=iter([LARGE])).content == DIGEST
        assert post(f"{url}/echo", data={"a": "b c"}).content == b"a=b+c"
        assert post(f"{url}/echo", json={"a": 1}).json() == {"a": 1}
        assert post(f"{url}/echo", files={"f": b"x"}).status_code == 200
        assert session.options(f"{url}/none", timeout=TIMEOUT).status_code == 200
        assert session.delete(f"{url}/none", timeout=TIMEOUT).status_code == 200


def test_httpx(url: str):
    """Sized and chunked, sync."""
    httpx = pytest.importorskip("httpx")
    with httpx.Client(trust_env=False, timeout=TIMEOUT) as client:
        assert client.get(f"{url}/").content == b"hello"
        assert client.get(f"{url}/none").content == b""
        assert client.get(f"{url}/gone").status_code == 204
        assert client.head(f"{url}/").headers["content-length"] == "5"
        assert client.get(f"{url}/chunked").content == LARGE
        assert client.post(f"{url}/digest", content=LARGE).content == DIGEST
        assert client.post(f"{url}/digest", content=iter([LARGE])).content == DIGEST
        assert client.post(f"{url}/echo", data={"a": "b"}).content == b"a=b"
        assert client.post(f"{url}/echo", json=[1]).json() == [1]
        assert client.put(f"{url}/none").status_code == 200
        assert client.delete(f"{url}/none").status_code == 200


def test_aiohttp(url: str):
    """Asynchronous, several requests at once."""
    aiohttp = pytest.importorskip("aiohttp")

    async def use() -> None:
        timeout = aiohttp.ClientTimeout(total=TIMEOUT)
        async with aiohttp.ClientSession(timeout=timeout) as session:

            async def fetch(method: str, path: str, **options: Any) -> bytes:
                async with session.request(method, url + path, **options) as response:
                    data: bytes = await response.read()
                    return data

            assert await fetch("GET", "/") == b"hello"
            assert await fetch("GET", "/none") == b""
            assert await fetch("HEAD", "/") == b""
            assert await fetch("POST", "/digest", data=io.BytesIO(LARGE)) == DIGEST
            assert await fetch("POST", "/echo", data={"a": "b"}) == b"a=b"
            assert await fetch("POST", "/echo", json=[1]) == b"[1]"
            assert await fetch("POST", "/digest", data=stream()) == DIGEST
            many = [fetch("GET", "/chunked") for _ in range(4)]
            assert await asyncio.gather(*many) == [LARGE] * 4

    async def stream() -> Any:
        yield LARGE[:9]
        yield LARGE[9:]

    asyncio.run(use())


BROWSER = {
    "Connection": "keep-alive",
    "Cache-Control": "max-age=0",
    "sec-ch-ua": '"Chromium";v="131", "Not_A Brand";v="24"',
    "sec-ch-ua-mobile": "?0",
    "sec-ch-ua-platform": '"Linux"',
    "Upgrade-Insecure-Requests": "1",
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like "
    "Gecko) Chrome/131.0.0.0 Safari/537.36",
    "Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    "Sec-Fetch-Site": "none",
    "Sec-Fetch-Mode": "navigate",
    "Sec-Fetch-User": "?1",
    "Sec-Fetch-Dest": "document",
    "Accept-Encoding": "gzip, deflate, br, zstd",
    "Accept-Language": "de-DE,de;q=0.9,en;q=0.8",
    "Cookie": "session=abc; theme=dark; {odd}=@!#$%&",
}


@pytest.mark.parametrize("path", [b"/", b"/none", b"/a%20b?q={x}|y&%C3%A4=[1]^`"])
def test_a_browsers_set_of_headers(server: Server, path: bytes):
    """Fifteen headers and a cookie are answered in one round trip, twice."""
    fields = "".join(f"{name}: {value}\r\n" for name, value in BROWSER.items())
    head = b"GET %b HTTP/1.1\r\nHost: localhost:8080\r\n%b\r\n" % (
        path,
        fields.encode(),
    )
    with connect(server) as sock, sock.makefile("rb") as file:
        for _ in range(2):
            sock.sendall(head)
            answer, body = read_response(file)
            assert answer.split(b" ")[1] in (b"200", b"404")
            assert b"content-length: %d" % len(body) in answer


# --- Degu's client and another's server ------------------------------------------


class Handler(http.server.BaseHTTPRequestHandler):
    """The standard library's server with sized, chunked and endless bodies."""

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Set-Cookie", "a=b")
        self.send_header("Set-Cookie", "c=d")
        if self.path == "/sized":
            self.send_header("Content-Length", str(len(LARGE)))
            self.end_headers()
            self.wfile.write(LARGE)
        elif self.path == "/chunked":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            ChunkedOutput([LARGE[:9], LARGE[9:]], {"x-sum": "7"}).write_to(self.wfile)
        elif self.path == "/none":
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self.close_connection = True
            self.end_headers()
            self.wfile.write(LARGE)

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextlib.contextmanager
def serve_stdlib(handler: Callable[..., Any]) -> Iterator[Any]:
    """The standard library's server, in a thread."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("version", ["HTTP/1.0", "HTTP/1.1"])
def test_the_client_speaks_with_http_server(version: str):
    """Sized, chunked (1.1 only), until close; kept alive where the version does."""
    handler = type("Versioned", (Handler,), {"protocol_version": version})
    paths = ["/sized", "/none", "/chunked", "/sized", "/endless"]
    if version == "HTTP/1.0":
        paths.remove("/chunked")
    with serve_stdlib(handler) as server:
        client = Client(server.server_address, timeout=TIMEOUT)
        for path in paths:
            response = client.get(path)
            assert (response.status, response.reason) == (200, "OK")
            assert response.headers["set-cookie"] == ["a=b", "c=d"]
            if path == "/none":
                assert response.body is None
            else:
                assert response.body is not None
                assert b"".join(response.body) == LARGE
            if path == "/chunked":
                assert response.body.trailers == {"x-sum": "7"}  # type: ignore[union-attr]
            kept = version == "HTTP/1.1" and path != "/endless"
            assert client._local.connection.closed is not kept
        assert client.head("/sized").headers["content-length"] == 5
        response = client.put("/", None, LARGE)
        assert response.body is not None
        assert response.body.read() == LARGE
        assert client.post("/", None, b"x").status == 501
        client.close()


def test_the_client_downloads_a_folder_from_http_server(tmp_path: Path):
    """Files and the listing of `SimpleHTTPRequestHandler`."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    (tmp_path / "file.bin").write_bytes(LARGE)
    with serve_stdlib(partial(Quiet, directory=str(tmp_path))) as server:
        client = Client(server.server_address, timeout=TIMEOUT)
        listing = client.get("/").body
        assert listing is not None
        assert b"file.bin" in listing.read()
        response = client.get("/file.bin")
        assert response.headers["content-type"] == "application/octet-stream"
        assert response.body is not None
        with open(tmp_path / "copy", "wb") as copy:
            assert response.body.write_to(copy) == len(LARGE)
        assert (tmp_path / "copy").read_bytes() == LARGE
        assert client.get("/missing").status == 404
        client.close()


def test_the_client_speaks_tls_with_http_server(tmp_path: Path):
    """Another's TLS sends session tickets, which are no surplus."""
    from degu import tls

    pki: TempPKI = shared_pki()
    context = tls.build_server_sslctx(pki.server_sslconfig)
    context.num_tickets = 2
    handler = type("Versioned", (Handler,), {"protocol_version": "HTTP/1.1"})
    path = tmp_path / "file"
    path.write_bytes(LARGE)
    with serve_stdlib(handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        address = server.server_address
        client = SSLClient(pki.client_sslconfig, address, timeout=TIMEOUT)
        with client.connect() as connection:
            for name in ("/sized", "/chunked", "/none"):
                body = connection.get(name).body
                assert body is None or body.read() == LARGE
            put = connection.put("/", None, FileOutput(path.open("rb")))
            assert put.body is not None
            assert put.body.read() == LARGE
            assert not connection.closed

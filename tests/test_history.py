"""The failures of an earlier Degu: one test each, where no other test module has it.

The rows S1 to S30 (security and reliability) and D1 to D23 (shortcomings) are named in
the docstrings of all tests; the last test here looks for every one of them.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import os
import re
import ssl
import subprocess
import sys
import threading
import time
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import pytest

from degu import misc, testing, tls, wire
from degu.client import Client, SSLClient
from degu.errors import DiedError, ParseError, TLSError
from degu.files import FilesApp
from degu.rgi import Validator
from degu.server import Server, SSLServer
from tests.transports import TIMEOUT, connect, exchange, read_response, shared_pki

ROOT = Path(__file__).parents[1]
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
OK: Any = (200, "OK", {}, None)


def hello(request: Any) -> Any:
    return OK


def serve(app: Any, **options: Any) -> Any:
    return Server(("127.0.0.1", 0), app, **options).running()


def run_script(script: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *options, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


# --- TLS -------------------------------------------------------------------------


def test_a_server_without_a_ca_and_without_the_flag_is_refused():
    """S1: never silently unauthenticated; with the flag it is said aloud."""
    pki = shared_pki()
    bare = {k: v for k, v in pki.server_sslconfig.items() if k != "ca_file"}
    with pytest.raises(ValueError, match="allow_unauthenticated_clients"):
        SSLServer(bare, ("127.0.0.1", 0), hello)
    for flag in (False, None, 1, "yes"):
        config = {**bare, "allow_unauthenticated_clients": flag}
        with pytest.raises((TypeError, ValueError)):
            SSLServer(config, ("127.0.0.1", 0), hello)
    config = {**bare, "allow_unauthenticated_clients": True}
    with SSLServer(config, ("127.0.0.1", 0), hello).running() as server:
        client = SSLClient(pki.anonymous_client_sslconfig, server.address)
        assert client.get("/").status == 200
        client.close()


def test_a_client_checks_the_host_name():
    """S2: a certificate for another name is refused, unless that is switched off."""
    pki = shared_pki()
    config = pki.server_sslconfig_for("wrong_host")
    with SSLServer(config, ("127.0.0.1", 0), hello).running() as server:
        client = SSLClient(pki.client_sslconfig, server.address)
        with pytest.raises(TLSError, match="certificate verify failed"):
            client.get("/")
        lax = {**pki.client_sslconfig, "check_hostname": False}
        client = SSLClient(lax, server.address)
        assert client.get("/").status == 200
        client.close()


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
def test_the_suite_is_forward_secret_and_authenticated(version: str):
    """S7, D19: by either version that this OpenSSL has, and by nothing older."""
    pki = shared_pki()
    seen = []

    def app(request: Any) -> Any:
        seen.append(request["ssl_cipher"])
        return OK

    config = {**pki.server_sslconfig, "minimum_version": "TLSv1.2"}
    with SSLServer(config, ("127.0.0.1", 0), app).running() as server:
        context = tls.build_client_sslctx(
            {**pki.client_sslconfig, "minimum_version": "TLSv1.2"}
        )
        if version == "TLSv1.2":
            context.maximum_version = ssl.TLSVersion.TLSv1_2
        client = SSLClient(context, server.address)
        assert client.get("/").status == 200
        client.close()
        old = tls.build_client_sslctx(pki.client_sslconfig)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            old.minimum_version = ssl.TLSVersion.TLSv1
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises(TLSError):
            SSLClient(old, server.address).get("/")
    ((name, protocol, bits),) = seen
    assert protocol == version
    assert bits >= 128
    assert "GCM" in name or "CHACHA20" in name
    assert name.startswith("ECDHE-" if version == "TLSv1.2" else "TLS_")


def test_tls_1_3_is_what_both_sides_ask_for():
    """D19: the default is the newest; less has to be asked for by name."""
    pki = shared_pki()
    with SSLServer(pki.server_sslconfig, ("127.0.0.1", 0), hello).running() as server:
        with SSLClient(pki.client_sslconfig, server.address).connect() as connection:
            assert connection.get("/").status == 200
            assert connection.sock.version() == "TLSv1.3"  # type: ignore[attr-defined]
        context = tls.build_client_sslctx(
            {**pki.client_sslconfig, "minimum_version": "TLSv1.2"}
        )
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(TLSError):
            SSLClient(context, server.address).get("/")


def test_temporary_certificates_are_strong_enough():
    """S25: they work where OpenSSL refuses weak keys."""
    pki = shared_pki()
    server_context = tls.build_server_sslctx(pki.server_sslconfig)
    client_context = tls.build_client_sslctx(pki.client_sslconfig)
    for context in (server_context, client_context):
        context.set_ciphers("DEFAULT:@SECLEVEL=2")
    with SSLServer(server_context, ("127.0.0.1", 0), hello).running() as server:
        client = SSLClient(client_context, server.address)
        assert client.get("/").status == 200
        client.close()


def test_a_context_is_not_judged_by_option_bits():
    """S26: which bits exist, and which are zero, changes with OpenSSL."""
    pki = shared_pki()
    context = tls.build_server_sslctx(pki.server_sslconfig)
    for options in (ssl.Options(0), ssl.OP_NO_COMPRESSION, ssl.OP_ALL):
        context.options = options
        tls.check_server_sslctx(context)
    context = tls.build_client_sslctx(pki.client_sslconfig)
    for options in (ssl.Options(0), ssl.OP_ALL):
        context.options = options
        tls.check_client_sslctx(context)
    with pytest.raises(ValueError, match="sslctx"):
        tls.check_server_sslctx(context)  # the control: a client's is refused


# --- the grammar -----------------------------------------------------------------

CONTROLS = [*range(9), *range(10, 32), *range(127, 256)]


@pytest.mark.parametrize("byte", [*CONTROLS, 9])
def test_a_control_byte_is_refused_in_every_region(byte: int):
    """S4: method, target, version, name, value; a tab may be inside a value only."""
    odd = bytes([byte])
    regions = [
        b"G%bET / HTTP/1.1\r\nHost: localhost",
        b"GET /%b HTTP/1.1\r\nHost: localhost",
        b"GET /?%b HTTP/1.1\r\nHost: localhost",
        b"GET / HTTP/1.1%b\r\nHost: localhost",
        b"GET / HTTP/1.1\r\nHost: localhost\r\na%bb: c",
        b"GET / HTTP/1.1\r\nHost: local%bhost",
        b"GET / HTTP/1.1\r\nHost: localhost\r\na: b%bc",
    ]
    for region in regions[:-1] if byte == 9 else regions:
        with pytest.raises(ParseError):
            wire.parse_request(region % odd)
    with pytest.raises(ParseError):
        wire.parse_chunk_head(b"5;k=%bv" % odd if byte != 9 else b"5%b" % odd)
    if byte == 9:
        request = wire.parse_request(regions[-1] % odd)
        assert request["headers"]["a"] == "b\tc"


def test_a_link_header_is_accepted():
    """S16: angle brackets are part of a value, in both directions."""
    link = "</a>; rel=next"

    def app(request: Any) -> Any:
        assert request["headers"]["link"] == link
        return 200, "OK", {"link": link}, None

    with serve(app) as server:
        client = Client(server.address)
        assert client.get("/", {"link": link}).headers["link"] == link
        client.close()


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/..", 400),
        ("/.", 400),
        ("/a/../b", 400),
        ("/a/./b", 400),
        ("/a/..", 400),
        ("/%2e%2e/x", 400),
        ("/.%2E/x", 400),
        ("/a%2f..%2fb", 400),
        ("/a%5c..%5cb", 400),
        ("/..?a", 400),
        ("/a..b", 200),
        ("/..b", 200),
        ("/b..", 200),
        ("/...", 200),
        ("/a.b/.c", 200),
        ("/?a=/../b", 200),
    ],
)
def test_dot_segments_are_refused_and_dots_are_not(target: str, status: int):
    """S23: plain and percent-encoded; a name may begin with dots."""
    with serve(Validator(hello)) as server:
        answer = exchange(server, GET.replace(b"/ ", target.encode() + b" ", 1))
    assert answer.startswith(b"HTTP/1.1 %d " % status)


@pytest.mark.parametrize(
    "line",
    [
        *("GET /a%20b HTTP/1.1", "GET /%C3%A4 HTTP/1.1", "GET /a@b:c;d=e,f! HTTP/1.1"),
        *("GET /(a)'*+~$& HTTP/1.1", "GET /?a={b}|[c]^`d HTTP/1.1", "GET /?? HTTP/1.1"),
    ],
)
def test_what_clients_send_in_a_target_is_accepted(line: str):
    """D12: the sets of RFC 3986, and what browsers leave as it is."""
    with serve(Validator(hello)) as server:
        answer = exchange(server, f"{line}\r\nHost: localhost\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 200 ")


def test_what_clients_send_in_a_value_is_accepted():
    """D12, D13: all visible characters; blanks around a value go, inside they stay."""
    visible = "".join(map(chr, range(0x21, 0x7F)))
    seen = []

    def app(request: Any) -> Any:
        seen.append(request["headers"])
        return OK

    with serve(app) as server:
        fields = f"a:{visible}\r\nb: \t x \t y \t \r\nc:\r\nd:\t\r\ne:f: g\r\n"
        data = b"GET / HTTP/1.1\r\nHost:localhost\r\n%b\r\n" % fields.encode()
        assert exchange(server, data).startswith(b"HTTP/1.1 200 ")
    assert seen == [
        {
            "host": "localhost",
            "a": visible,
            "b": "x \t y",
            "c": "",
            "d": "",
            "e": "f: g",
        }
    ]


@pytest.mark.parametrize(
    "name", ["etag", "x", "content-type", "host", "content-length"]
)
@pytest.mark.parametrize("value", ["1", "12345"])
def test_a_repeated_field_is_found_whatever_its_value(name: str, value: str):
    """D14: by its presence, also where both values are the same short object."""
    line = f"{name}: {value}\r\n"
    host = "" if name == "host" else "Host: localhost\r\n"
    with serve(hello) as server:
        for count, status in ((1, 200), (2, 400)):
            if name == "host" and count == 1:
                line_ = "host: localhost\r\n"
            else:
                line_ = line * count
            data = f"POST / HTTP/1.1\r\n{host}{line_}\r\n".encode() + bytes(12345)
            answer = exchange(server, data)
            assert answer.startswith(b"HTTP/1.1 %d " % status)


@pytest.mark.parametrize(
    ("value", "status"),
    [
        ("bytes=0-1", 206),
        ("bytes=3-", 206),
        ("bytes=-3", 206),
        ("bytes=99-", 416),
        ("bytes=0-1, 3-4", None),
        ("lines=1-2", 200),
        ("nonsense", 200),
    ],
)
def test_any_range_is_answered(value: str, status: int | None, tmp_path: Path):
    """D21: open, suffix, several, unknown: a status, and the connection lives on."""
    (tmp_path / "file").write_bytes(b"0123456789")
    with serve(FilesApp(tmp_path)) as server:
        client = Client(server.address)
        with client.connect() as connection:
            for _ in range(2):
                response = connection.get("/file", {"range": value})
                assert response.status == (status or response.status)
                assert response.status in (200, 206, 416)
                if response.body is not None:
                    response.body.read()
            assert not connection.closed


@pytest.mark.parametrize(
    "target",
    [
        *("/../secret", "/%2e%2e/secret", "/sub/%2e%2e/%2e%2e/secret", "/..%2fsecret"),
        *("/%2fetc%2fpasswd", "//etc/passwd", "/..%5csecret", "/link", "/links/secret"),
        *("/sub%2f..%2f..%2fsecret", "/file%00", "/./../secret", "/%252e%252e/secret"),
    ],
)
def test_files_are_served_from_their_folder_only(target: str, tmp_path: Path):
    """S24: neither dots, nor encoded slashes, nor a symbolic link lead out."""
    (tmp_path / "secret").write_bytes(b"secret")
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "file").write_bytes(b"public")
    (root / "link").symlink_to(tmp_path / "secret")
    (root / "links").symlink_to(tmp_path)
    with serve(FilesApp(root)) as server:
        answer = exchange(server, GET.replace(b"/ ", target.encode() + b" ", 1))
        assert answer.split(b" ")[1][:1] == b"4", answer
        assert b"secret" not in answer.partition(b"\r\n\r\n")[2]
        answer = exchange(server, GET.replace(b"/ ", b"/file ", 1))
        assert answer.endswith(b"public")


# --- memory, descriptors, processes ----------------------------------------------


def count_resident() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux")
def test_memory_does_not_grow_with_connections():
    """S14, S17: nor do descriptors or threads, over thousands of them."""
    with serve(hello) as server:
        burst(server, 300)
        before = count_resident()
        descriptors = len(os.listdir("/proc/self/fd"))
        threads = threading.active_count()
        burst(server, 1500)
        deadline = time.monotonic() + TIMEOUT
        while threading.active_count() > threads and time.monotonic() < deadline:
            time.sleep(0.01)
        assert threading.active_count() <= threads
        assert len(os.listdir("/proc/self/fd")) <= descriptors + 2
        assert count_resident() - before < 4_000_000


def burst(server: Server, count: int) -> None:
    """That many connections with one request each."""
    for _ in range(count):
        with connect(server) as sock:
            sock.sendall(GET)
            assert sock.recv(4096)


def test_parsing_what_was_never_seen_before_keeps_no_memory():
    """S20: methods, targets, names, values, hosts: all new, thousands of times."""

    def parse(numbers: range) -> None:
        for number in numbers:
            head = (
                f"GET /{number} HTTP/1.1\r\nHost: h{number}:80\r\n"
                f"name-{number}: {number}\r\ncookie: {'x' * 100}{number}"
            )
            wire.parse_request(head.encode())
            with contextlib.suppress(Exception):
                wire.parse_request(f"M{number} / HTTP/1.1\r\nHost: x".encode())
            wire.format_headers({f"name-{number}": str(number)})

    parse(range(1000))
    tracemalloc.start()
    try:
        parse(range(1000, 2000))
        before = tracemalloc.get_traced_memory()[0]
        parse(range(2000, 5000))
        assert tracemalloc.get_traced_memory()[0] - before < 1_000_000
    finally:
        tracemalloc.stop()


WARNS = """
import gc, tempfile, os, warnings
from degu.base import FileOutput, ChunkedOutput
from degu.client import Client
from degu.server import Server
path = os.path.join(tempfile.mkdtemp(), "file")
open_ = open(path, "wb"); open_.write(b"hello"); open_.close()
def app(request):
    body = request["body"]
    if body is not None:
        return 200, "OK", {}, ChunkedOutput(body)
    return 200, "OK", {}, FileOutput(open(path, "rb"))
with Server(("127.0.0.1", 0), app).running() as server:
    client = Client(server.address)
    for _ in range(3):
        client.get("/").body.read()
        client.put("/", None, b"hello").body.read()
        client.connect().get("/")
    one = client.connect()
    one.get("/")
    del one
gc.collect()
os.unlink(path)
os.rmdir(os.path.dirname(path))
"""


def test_nothing_is_left_to_warn_about():
    """S22: in development mode, with every warning an error, nothing is said."""
    done = run_script(WARNS, "-X", "dev", "-W", "error")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_child_that_dies_without_a_word_is_noticed():
    """D8: the parent does not wait for a report that never comes."""
    from degu import EmbeddedServer

    started = time.monotonic()
    with pytest.raises(DiedError) as caught:
        EmbeddedServer(("127.0.0.1", 0), os._exit, 3)
    assert time.monotonic() - started < TIMEOUT
    assert caught.value.exitcode == 3


def test_an_address_that_was_published_is_listened_on():
    """S28: connecting right after the start is never refused."""
    for _ in range(20):
        server = Server(("127.0.0.1", 0), hello)
        with connect(server):
            pass
        server.close()


def test_head_and_chunked_do_not_spoil_each_other():
    """S30: the answer to HEAD ends with its head, on either side."""

    def app(request: Any) -> Any:
        if request["method"] == "HEAD":
            return 200, "OK", {"transfer-encoding": "chunked"}, None
        return 200, "OK", {}, b"hello"

    with serve(app) as server, Client(server.address).connect() as connection:
        for _ in range(2):
            response = connection.head("/")
            assert response.headers == {"transfer-encoding": "chunked"}
            assert response.body is None
            body = connection.get("/").body
            assert body is not None
            assert body.read() == b"hello"


def test_a_chunked_read_takes_a_size():
    """D23: in both framings, over the wire."""

    def app(request: Any) -> Any:
        body = request["body"]
        return 200, "OK", {"first": body.read(3).decode()}, body.read()

    with serve(app) as server, connect(server) as sock, sock.makefile("rb") as file:
        for framed in (
            b"Content-Length: 5\r\n\r\nhello",
            b"Transfer-Encoding: chunked\r\n\r\n1\r\nh\r\n4\r\nello\r\n0\r\n\r\n",
        ):
            sock.sendall(b"PUT / HTTP/1.1\r\nHost: localhost\r\n" + framed)
            head, body = read_response(file)
            assert b"first: hel" in head
            assert body == b"lo"


# --- the table -------------------------------------------------------------------


@functools.cache
def find_rows() -> dict[str, list[str]]:
    """Every row to the tests whose docstrings name it."""
    rows: dict[str, list[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                text = ast.get_docstring(node) or ""
                for row in re.findall(r"\b[SD][1-9][0-9]?\b", text):
                    rows.setdefault(row, []).append(f"{path.name}::{node.name}")
    return rows


def test_the_older_name_of_testing_is_there():
    """What the seeds import from `degu.misc` are the very same classes."""
    for name in misc.__all__:
        assert getattr(misc, name) is getattr(testing, name)


@pytest.mark.parametrize("row", [f"S{n}" for n in range(1, 31)])
def test_every_security_row_has_a_test(row: str):
    """The table of fixes can be made from the docstrings."""
    assert find_rows().get(row), f"no test names {row}"


@pytest.mark.parametrize("row", [f"D{n}" for n in range(1, 24)])
def test_every_defect_row_has_a_test(row: str):
    """The table of shortcomings can be made from the docstrings."""
    assert find_rows().get(row), f"no test names {row}"

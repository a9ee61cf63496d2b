"""degu.address: four kinds of address, told apart in one place."""

from __future__ import annotations

import errno
import os
import socket
import stat
import sys
import threading
import time

import pytest

import degu
from degu.address import (
    check_address,
    connect,
    family,
    format_host,
    format_url,
    identify_socket,
    listen,
    unlink_socket,
    unlink_stale,
)

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")


@pytest.fixture(
    params=["IPv6", "IPv4", "Unix", pytest.param("abstract", marks=linux_only)]
)
def address(request, tmp_path):
    """One address to listen on, of every kind."""
    return {
        "IPv6": degu.IPv6_LOOPBACK,
        "IPv4": degu.IPv4_LOOPBACK,
        "Unix": str(tmp_path / "sock"),
        "abstract": b"",
    }[request.param]


# --- check_address() --------------------------------------------------------------


@pytest.mark.parametrize(
    "good",
    [
        *degu.ADDRESS_CONSTANTS,
        ("fe80::1", 65535, 2**20 - 1, 2**32 - 1),
        ("fe80::1%eth0", 80, 0, 0),
        ("fe80::1%3", 80, 0, 3),
        ("localhost", 80, 0, 0),
        ("localhost", 80),
        ("xn--bcher-kva.example", 80),
        "/run/sock",
        "/" + "x" * 102,
        "/run/süß",
        b"",
        b"\0name",
        b"\0\xff\0 ",
    ],
)
def test_an_address_passes(good):
    """Nothing is looked up, so names and zones pass that may not exist."""
    check_address(good)


@pytest.mark.parametrize(
    ("bad", "error", "match"),
    [
        (
            None,
            TypeError,
            r"expected a 4-tuple, a 2-tuple, a str or a bytes, got NoneType: None",
        ),
        (["::1", 0, 0, 0], TypeError, r"got list: \['::1', 0, 0, 0\]"),
        (bytearray(b"\0x"), TypeError, r"got bytearray"),
        ((), ValueError, r"got 0 items"),
        (("::1", 0, 0), ValueError, r"got 3 items: \('::1', 0, 0\)"),
        (("::1", 80), ValueError, r"never IPv6, write \('::1', 80, 0, 0\)"),
        (("127.0.0.1", 0, 0, 0), ValueError, r"a 4-tuple is always IPv6"),
        (("127.0.0.1%lo", 0), ValueError, r"no zone"),
        (("", 0), ValueError, r"address\[0\]: expected a host"),
        ((b"::1", 0, 0, 0), TypeError, r"address\[0\]: expected a str, got bytes"),
        (("a b", 0), ValueError, r"address\[0\]: not a host"),
        (("a\r\nb", 0), ValueError, r"address\[0\]: not a host"),
        (("user@host", 0), ValueError, r"address\[0\]: not a host"),
        (("[::1]", 0, 0, 0), ValueError, r"address\[0\]: not a host"),
        (("1:2", 0, 0, 0), ValueError, r"not an IPv6 address"),
        (("fe80::1%", 0, 0, 0), ValueError, r"expected a zone after '%'"),
        (("name%eth0", 0, 0, 0), ValueError, r"expected a zone after '%'"),
        (("::1", "80", 0, 0), TypeError, r"address\[1\]: the port has to be an int"),
        (("::1", True, 0, 0), TypeError, r"address\[1\].* got bool"),
        (("::1", -1, 0, 0), ValueError, r"address\[1\]: expected a port of 0 to 65535"),
        (("::1", 65536, 0, 0), ValueError, r"address\[1\]"),
        (("::1", 0, 2**20, 0), ValueError, r"address\[2\]: expected a flow info"),
        (("::1", 0, 0, 2**32), ValueError, r"address\[3\]: expected a scope id"),
        (("::1", 0, 0, None), TypeError, r"address\[3\]"),
        ("", ValueError, r"absolute, normalised path"),
        ("sock", ValueError, r"absolute, normalised path"),
        ("http://[::1]:80/", ValueError, r"this is a URL: .*what server.address is"),
        ("/run//sock", ValueError, r"as '/run/sock': got '/run//sock'"),
        ("/run/../sock", ValueError, r"as '/sock'"),
        ("/run/sock/", ValueError, r"as '/run/sock'"),
        ("/run/\0sock", ValueError, r"no NUL"),
        ("/" + "ü" * 60, ValueError, r"at most 10[37] bytes here, got 121"),
        (b"name", ValueError, r"begins with b'\\0'"),
        (b"\0" * 109, ValueError, r"at most 10[48] bytes, got 109"),
    ],
)
def test_a_bad_address_is_refused(bad, error, match):
    """The message names the item, says what was expected and shows what came."""
    with pytest.raises(error, match=match) as caught:
        check_address(bad)
    assert str(caught.value).startswith("address")


def test_the_kind_decides_on_the_family():
    """A 4-tuple is IPv6, a 2-tuple IPv4, the rest Unix."""
    assert family(degu.IPv6_ANY) == socket.AF_INET6
    assert family(degu.IPv4_ANY) == socket.AF_INET
    assert family("/sock") == socket.AF_UNIX


@linux_only
def test_an_abstract_name_is_linux_only(monkeypatch):
    """Elsewhere the error says so."""
    assert family(b"") == socket.AF_UNIX
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(OSError, match="abstract names are Linux only") as caught:
        family(b"")
    assert caught.value.errno == errno.EAFNOSUPPORT


# --- listen() and connect() -------------------------------------------------------


def test_what_listens_can_be_connected_to(address):
    """The bound address is of the same kind, and good for a client."""
    with listen(address) as server:
        bound = server.getsockname()
        assert type(bound) is type(address)
        check_address(bound)
        with connect(bound, 5) as client, server.accept()[0] as accepted:
            client.sendall(b"hello")
            assert accepted.recv(10) == b"hello"
            assert client.gettimeout() == 5


def test_tcp_does_not_wait_for_more():
    """Nagle's algorithm is off on the client's side."""
    with (
        listen(degu.IPv6_LOOPBACK) as server,
        connect(server.getsockname(), None) as client,
    ):
        assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert client.gettimeout() is None


def test_an_address_in_use_is_named(address):
    """The error tells which one; the first listener goes on."""
    with listen(address) as server:
        bound = server.getsockname()
        with pytest.raises(OSError, match="cannot listen on address") as caught:
            listen(bound)
        assert caught.value.errno == errno.EADDRINUSE
        assert repr(bound) in str(caught.value)
        connect(bound, 5).close()


def test_a_port_can_be_bound_again_at_once():
    """Also while connections of its last owner are in TIME_WAIT."""
    with listen(degu.IPv4_LOOPBACK) as server:
        bound = server.getsockname()
        with connect(bound, 5):
            server.accept()[0].close()
    listen(bound).close()


def test_nobody_there_is_a_refused_connection(address):
    """The error names the address."""
    with listen(address) as server:
        bound = server.getsockname()
    with pytest.raises(ConnectionRefusedError, match="cannot connect") as caught:
        connect(bound, 5)
    assert repr(bound) in str(caught.value)


@pytest.mark.parametrize(
    ("bad", "match"),
    [(("::1", 0, 0, 0), "port 0 is for servers"), (b"", "b'' is for servers")],
)
def test_a_client_needs_the_whole_address(bad, match):
    """What the kernel would choose for a server is nothing to connect to."""
    with pytest.raises(ValueError, match=match):
        connect(bad, 5)


@linux_only
def test_a_unix_server_with_a_full_queue_is_waited_for(tmp_path):
    """Until the time-out, as TCP does; then it is a TimeoutError."""
    path = str(tmp_path / "sock")
    with listen(path, backlog=0) as server, connect(path, 5):
        began = time.monotonic()
        with pytest.raises(TimeoutError, match="cannot connect"):
            connect(path, 0.2)
        assert 0.2 <= time.monotonic() - began < 2
        timer = threading.Timer(0.05, lambda: server.accept()[0].close())
        timer.start()
        connect(path, 5).close()
        timer.join()


def test_a_dns_name_in_a_2_tuple_is_ipv4():
    """And in a 4-tuple IPv6."""
    with (
        listen(degu.IPv4_LOOPBACK) as server,
        connect(("localhost", server.getsockname()[1]), 5) as client,
    ):
        assert client.family == socket.AF_INET
    with pytest.raises(socket.gaierror):
        connect(("nowhere.invalid", 80), 5)


@linux_only
def test_a_zone_is_a_scope_id():
    """By name or number; bind() itself would forget it."""
    index = socket.if_nametoindex("lo")
    for host in ("::1%lo", f"::1%{index}"):
        with listen((host, 0, 0, 0)) as server:
            bound = server.getsockname()
            with connect((host, bound[1], 0, index), 5):
                pass
    with pytest.raises(ValueError, match="the zone 'lo' is scope id"):
        connect(("::1%lo", 80, 0, index + 1), 5)
    for function in (listen, lambda address: connect(address, 5)):
        with pytest.raises(OSError, match="no network interface 'nowhere0'"):
            function(("::1%nowhere0", 80, 0, 0))


# --- Unix socket files ------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o277])
@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
def test_a_socket_file_has_the_mode_it_is_given(tmp_path, mode, umask):
    """Whatever the umask is, which is the process's own business."""
    path = str(tmp_path / "sock")
    before = os.umask(umask)
    try:
        with listen(path, mode=mode):
            assert stat.S_IMODE(os.stat(path).st_mode) == mode
    finally:
        assert os.umask(before) == umask


def test_a_socket_file_is_private_unless_told_otherwise(tmp_path):
    """0600."""
    path = str(tmp_path / "sock")
    with listen(path):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_a_stale_socket_file_is_replaced(tmp_path):
    """One that nobody listens on, and nothing else."""
    path = str(tmp_path / "sock")
    listen(path).close()
    assert os.path.exists(path)
    with listen(path):
        connect(path, 5).close()


@pytest.mark.parametrize("kind", ["file", "folder", "link", "datagram"])
def test_anything_else_in_the_way_stays(tmp_path, kind):
    """It is in use, as far as we know."""
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        match kind:
            case "file":
                path.write_text("precious")
            case "folder":
                path.mkdir()
            case "link":
                path.symlink_to(tmp_path / "target")
            case "datagram":
                other.bind(str(path))
        with pytest.raises(OSError, match="in use"):
            listen(str(path))
    assert path.is_symlink() or path.exists()


def test_only_the_owners_file_is_removed(tmp_path):
    """A newer server's at the same path stays."""
    path = str(tmp_path / "sock")
    with listen(path):
        first = identify_socket(path)
        os.rename(path, tmp_path / "old")
        with listen(path):
            assert not unlink_socket(path, first)
            assert os.path.exists(path)
            assert unlink_socket(path, identify_socket(path))
            assert not os.path.exists(path)
            assert not unlink_socket(path, first)
            assert not unlink_socket(path, None)


def test_only_a_stale_file_is_removed_as_one(tmp_path):
    """Not one that is listened on, and no other kind of file."""
    path = str(tmp_path / "sock")
    with listen(path):
        assert not unlink_stale(path)
    assert unlink_stale(path)
    assert not unlink_stale(path)
    (tmp_path / "sock").write_text("precious")
    assert not unlink_stale(path)
    assert identify_socket(path) is None


def test_of_many_that_replace_a_stale_file_one_wins(tmp_path):
    """The others find the address in use, and nobody's file is lost."""
    path = str(tmp_path / "sock")
    for _ in range(20):
        listen(path).close()
        won: list[socket.socket] = []
        lost: list[int | None] = []

        def attempt(won=won, lost=lost):
            try:
                won.append(listen(path))
            except OSError as exc:
                lost.append(exc.errno)

        threads = [threading.Thread(target=attempt) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert lost == [errno.EADDRINUSE] * 3
        connect(path, 5).close()
        won[0].close()


def test_a_folder_that_is_missing_is_an_error(tmp_path):
    """With the address in its words."""
    with pytest.raises(FileNotFoundError, match="cannot listen on address"):
        listen(str(tmp_path / "no" / "sock"))


# --- text -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "default_port", "host"),
    [
        (("::1", 8080, 0, 0), None, "[::1]:8080"),
        (("::1", 443, 0, 0), 443, "[::1]"),
        (("fe80::1%eth0", 80, 0, 2), None, "[fe80::1]:80"),
        (("127.0.0.1", 80), 80, "127.0.0.1"),
        (("127.0.0.1", 80), 443, "127.0.0.1:80"),
        (("example.com", 8080), 80, "example.com:8080"),
        ("/run/sock", 80, "localhost"),
        (b"\0name", None, "localhost"),
    ],
)
def test_a_host_field(address, default_port, host):
    """Brackets for IPv6, no zone, no default port; Unix is localhost."""
    assert format_host(address, default_port) == host


@pytest.mark.parametrize(
    ("scheme", "address", "url"),
    [
        ("https", ("::1", 54321, 0, 0), "https://[::1]:54321/"),
        ("http", ("127.0.0.1", 54321), "http://127.0.0.1:54321/"),
        ("http", ("127.0.0.1", 80), "http://127.0.0.1/"),
        ("https", ("127.0.0.1", 80), "https://127.0.0.1:80/"),
        ("http", "/run/a b", "http+unix://%2Frun%2Fa%20b/"),
        ("http", b"\0name", "http+unix://%00name/"),
    ],
)
def test_a_url(scheme, address, url):
    """Of the root, with its slash."""
    assert format_url(scheme, address) == url

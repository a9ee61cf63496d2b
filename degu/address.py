"""Socket addresses: one value for servers and clients alike.

    ('::1', 8080, 0, 0)     4-tuple  AF_INET6: host, port, flow info, scope id
    ('127.0.0.1', 8080)     2-tuple  AF_INET; never IPv6
    '/run/user/1000/x.sock' str      AF_UNIX, an absolute and normalised path
    b'\\0name'               bytes    AF_UNIX, a Linux abstract name; b'' = any free one

Everything that tells these four apart is here, so that `degu.embed` can bind a socket
in a process that never imports `degu.server`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator

from degu.errors import shown

__all__ = [
    "Address",
    "check_address",
    "connect",
    "family",
    "format_host",
    "format_url",
    "identify_socket",
    "listen",
    "unlink_socket",
    "unlink_stale",
]

Address = tuple[str, int, int, int] | tuple[str, int] | str | bytes

DEFAULT_PORTS = {"http": 80, "https": 443}

MAX_PORT = 65535
MAX_FLOWINFO = 2**20 - 1
"""The flow label is 20 bits wide (RFC 8200 §3)."""
MAX_SCOPE_ID = 2**32 - 1

SUN_PATH_BYTES = 108 if sys.platform == "linux" else 104
"""Room for a path and its NUL in `struct sockaddr_un`."""

RETRY_SECONDS = (0.001, 0.05)
"""First and longest pause between tries at a Unix socket whose queue is full."""

LOCK_SECONDS = 1.0
"""How long to wait for a folder that somebody else keeps locked."""

Identity = tuple[int, int]
"""Device and inode of a socket file."""


def check_address(address: object) -> None:
    """Raise unless `address` is one of the four kinds of this module.

    Nothing is looked up and no socket is made.

    Raises `TypeError` for a wrong type of the address or one of its items, and
    `ValueError` for a wrong number of items or a value out of range.
    """
    if isinstance(address, tuple):
        if len(address) == 4:
            _check_inet6(address)
        elif len(address) == 2:
            _check_inet(address)
        else:
            raise ValueError(
                "address: expected a 2-tuple (IPv4) or a 4-tuple (IPv6), "
                f"got {len(address)} items: {shown(address)}"
            )
    elif isinstance(address, str):
        _check_path(address)
    elif isinstance(address, bytes):
        _check_abstract(address)
    else:
        raise TypeError(
            "address: expected a 4-tuple, a 2-tuple, a str or a bytes, "
            f"got {type(address).__name__}: {shown(address)}"
        )


def _check_inet6(address: tuple[object, ...]) -> None:
    host = _check_host(address)
    if _is_ipv4(host):
        raise ValueError(
            f"address[0]: a 4-tuple is always IPv6, got an IPv4 host: {shown(address)}"
        )
    literal, _, zone = host.partition("%")
    if ":" in host and not _is_ipv6(literal):
        raise ValueError(f"address[0]: not an IPv6 address: {shown(host)}")
    if "%" in host and not (zone and ":" in host):
        raise ValueError(
            f"address[0]: expected a zone after '%', as in 'fe80::1%eth0', "
            f"got {shown(host)}"
        )
    _check_number(address, 2, "flow info", MAX_FLOWINFO)
    _check_number(address, 3, "scope id", MAX_SCOPE_ID)


def _check_inet(address: tuple[object, ...]) -> None:
    host = _check_host(address)
    if ":" in host:
        raise ValueError(
            "address: a 2-tuple is never IPv6, write "
            f"({host!r}, {address[1]!r}, 0, 0): got {shown(address)}"
        )
    if "%" in host:
        raise ValueError(f"address[0]: an IPv4 host has no zone: {shown(host)}")


def _check_host(address: tuple[object, ...]) -> str:
    host = address[0]
    if not isinstance(host, str):
        raise TypeError(
            f"address[0]: expected a str, got {type(host).__name__}: {shown(address)}"
        )
    if not host:
        raise ValueError(
            "address[0]: expected a host, as '::1', '::', '127.0.0.1' or '0.0.0.0', "
            f"got {shown(address)}"
        )
    if not host.isprintable() or any(char in host for char in " []/@?#"):
        raise ValueError(f"address[0]: not a host: {shown(host)}")
    _check_number(address, 1, "port", MAX_PORT)
    return host


def _check_number(
    address: tuple[object, ...], index: int, name: str, most: int
) -> None:
    value = address[index]
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(
            f"address[{index}]: the {name} has to be an int, "
            f"got {type(value).__name__}: {shown(address)}"
        )
    if not 0 <= value <= most:
        raise ValueError(
            f"address[{index}]: expected a {name} of 0 to {most}, got {shown(address)}"
        )


def _check_path(path: str) -> None:
    if "://" in path:
        raise ValueError(
            f"address: this is a URL: {shown(path)}; expected what server.address is, "
            "as ('::1', 8000, 0, 0), or the path of a Unix socket"
        )
    if "\0" in path:
        raise ValueError(
            "address: a path has no NUL in it, an abstract name is a bytes: "
            f"got {shown(path)}"
        )
    normal = os.path.abspath(path) if path else ""
    if path != normal or not path:
        raise ValueError(
            "address: a str is the absolute, normalised path of a Unix socket"
            f"{f', as {shown(normal)}' if normal else ''}: got {shown(path)}"
        )
    size = len(os.fsencode(path))
    if size >= SUN_PATH_BYTES:
        raise ValueError(
            f"address: the path of a Unix socket is at most {SUN_PATH_BYTES - 1} bytes "
            f"here, got {size}: {shown(path)}"
        )


def _check_abstract(name: bytes) -> None:
    if name and not name.startswith(b"\0"):
        raise ValueError(
            "address: a bytes is a Linux abstract name and begins with b'\\0' "
            f"(a path is a str): got {shown(name)}"
        )
    if len(name) > SUN_PATH_BYTES:
        raise ValueError(
            f"address: an abstract name is at most {SUN_PATH_BYTES} bytes, "
            f"got {len(name)}: {shown(name)}"
        )


def _is_ipv4(host: str) -> bool:
    return _is_literal(socket.AF_INET, host)


def _is_ipv6(host: str) -> bool:
    return _is_literal(socket.AF_INET6, host)


def _is_literal(kind: int, host: str) -> bool:
    try:
        socket.inet_pton(kind, host)
    except (OSError, UnicodeEncodeError):
        return False
    return True


def family(address: Address) -> socket.AddressFamily:
    """The address family of a checked `address`.

    Raises `OSError` (EAFNOSUPPORT) for a Unix address where the system has none, and
    for an abstract name anywhere but on Linux.
    """
    if isinstance(address, tuple):
        return socket.AF_INET6 if len(address) == 4 else socket.AF_INET
    if isinstance(address, bytes) and sys.platform != "linux":
        raise OSError(
            errno.EAFNOSUPPORT, f"abstract names are Linux only: {shown(address)}"
        )
    if not hasattr(socket, "AF_UNIX"):
        raise OSError(
            errno.EAFNOSUPPORT, f"no Unix sockets on this system: {shown(address)}"
        )
    return socket.AF_UNIX


def _resolve_zone(address: Address) -> Address:
    """Turn the zone of 'fe80::1%eth0' into a scope id, which bind() would not do."""
    if not isinstance(address, tuple) or len(address) != 4 or "%" not in address[0]:
        return address
    host, _, zone = address[0].partition("%")
    try:
        scope_id = int(zone) if zone.isdecimal() else socket.if_nametoindex(zone)
    except OSError:
        raise OSError(
            errno.ENODEV, f"no network interface {zone!r}: address: {address!r}"
        ) from None
    if address[3] not in (0, scope_id):
        raise ValueError(
            f"address: the zone {zone!r} is scope id {scope_id}, "
            f"not {address[3]}: got {shown(address)}"
        )
    return (host, address[1], address[2], scope_id)


# --- the server's end -------------------------------------------------------------


def listen(
    address: Address, *, backlog: int = 1024, mode: int = 0o600
) -> socket.socket:
    """Make a listening stream socket.

    `mode` is the file mode of a Unix socket, in force before anyone can connect. A
    socket file that nobody listens on any more is replaced, one that is in use is not.
    Remove the file with `unlink_socket()`.

    Raises `OSError` with the address in its message, as EADDRINUSE.
    """
    check_address(address)
    kind = family(address)
    sock = socket.socket(kind, socket.SOCK_STREAM)
    try:
        if isinstance(address, str):
            _listen_path(sock, address, backlog, mode)
        else:
            if isinstance(address, tuple):
                _set_reuse(sock, kind)
            sock.bind(_resolve_zone(address))
            sock.listen(backlog)
    except OSError as exc:
        sock.close()
        if exc.errno is None or "address:" in str(exc):
            raise
        text = exc.strerror or str(exc)
        raise OSError(
            exc.errno, f"{text}: cannot listen on address: {address!r}"
        ) from None
    except BaseException:
        sock.close()
        raise
    return sock


def _set_reuse(sock: socket.socket, kind: int) -> None:
    if os.name == "posix":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    elif hasattr(socket, "SO_EXCLUSIVEADDRUSE"):  # pragma: no cover - Windows
        # There SO_REUSEADDR would let another program take the port over.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
    if kind == socket.AF_INET6:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)


def _listen_path(sock: socket.socket, path: str, backlog: int, mode: int) -> None:
    with _locked_folder(path):
        if sys.platform == "linux":
            # The new file takes its mode from the socket, so it is never wider.
            os.fchmod(sock.fileno(), mode)
        try:
            sock.bind(path)
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE or not _is_stale(path):
                raise
            os.unlink(path)
            sock.bind(path)
        try:
            if stat.S_IMODE(os.lstat(path).st_mode) != mode:
                os.chmod(path, mode)
            sock.listen(backlog)
        except BaseException:
            os.unlink(path)
            raise


@contextlib.contextmanager
def _locked_folder(path: str) -> Iterator[None]:
    """Keep two processes from replacing one stale file, or each other's new one.

    The lock is on the folder itself, so no lock file is left behind.
    """
    try:
        import fcntl

        folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
    except (ImportError, OSError):
        yield
        return
    try:
        _lock(lambda: fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB))
        yield
    finally:
        # Closing alone would leave the lock to a process forked meanwhile.
        with contextlib.suppress(OSError):
            fcntl.flock(folder, fcntl.LOCK_UN)
        os.close(folder)


def _lock(take: Callable[[], None]) -> None:
    """Take a lock that is held for moments; go on without where it cannot be had."""
    pause, _ = RETRY_SECONDS
    deadline = time.monotonic() + LOCK_SECONDS
    while time.monotonic() < deadline:
        try:
            take()
        except BlockingIOError:
            time.sleep(pause)
        except OSError:
            return
        else:
            return


def _is_stale(path: str) -> bool:
    """Whether `path` is a socket file that no process listens on."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return False
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            probe.connect(path)
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


def identify_socket(path: str) -> Identity | None:
    """Device and inode of the socket file at `path`, None where there is none."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISSOCK(status.st_mode) else None


def unlink_socket(path: str, identity: Identity | None) -> bool:
    """Remove the socket file at `path` if it still is the one of `identity`.

    A newer server's file at the same path stays. Returns whether a file was removed;
    raises nothing that the file system may say.
    """
    if identity is None:
        return False
    try:
        with _locked_folder(path):
            if identify_socket(path) != identity:
                return False
            os.unlink(path)
    except OSError:
        return False
    return True


def unlink_stale(path: str) -> bool:
    """Remove a socket file that no process listens on; whether there was one."""
    try:
        with _locked_folder(path):
            if not _is_stale(path):
                return False
            os.unlink(path)
    except OSError:
        return False
    return True


# --- the client's end -------------------------------------------------------------


def connect(address: Address, timeout: float | None) -> socket.socket:
    """Connect a stream socket within `timeout` seconds (None: no limit).

    The socket keeps `timeout` for its reads and writes; TCP_NODELAY is set. The host
    of a 2-tuple may be a DNS name, of which the IPv4 addresses are tried in turn; the
    time that the resolver takes is its own. A Unix server whose queue is full is tried
    again until the time is over, as TCP does it.

    Raises `OSError`; `TimeoutError` where the time was over.
    """
    check_address(address)
    _check_target(address)
    deadline = None if timeout is None else time.monotonic() + timeout
    error: OSError | None = None
    for kind, target in _targets(address):
        sock = socket.socket(kind, socket.SOCK_STREAM)
        try:
            _connect_one(sock, target, deadline)
            if isinstance(target, tuple):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(timeout)
        except OSError as exc:
            sock.close()
            error = OSError(
                exc.errno or errno.ETIMEDOUT,
                f"{exc.strerror or exc}: cannot connect to address: {address!r}",
            )
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    assert error is not None
    raise error


def _check_target(address: Address) -> None:
    if address == b"":
        raise ValueError("address: b'' is for servers, a client needs the name")
    if isinstance(address, tuple) and address[1] == 0:
        raise ValueError(
            f"address[1]: port 0 is for servers, a client needs a port: {address!r}"
        )


def _targets(address: Address) -> list[tuple[int, Address]]:
    kind = family(address)
    if not isinstance(address, tuple):
        return [(kind, address)]
    if len(address) == 4:
        return [(kind, _resolve_zone(address))]
    host, port = address
    if _is_ipv4(host):
        return [(kind, address)]
    found = socket.getaddrinfo(host, port, kind, socket.SOCK_STREAM)
    return [(kind, (str(item[4][0]), port)) for item in found]


def _connect_one(sock: socket.socket, target: Address, deadline: float | None) -> None:
    pause, longest = RETRY_SECONDS
    while True:
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(errno.ETIMEDOUT, "timed out")
            sock.settimeout(left)
        try:
            sock.connect(target)
        except BlockingIOError:
            time.sleep(pause)
            pause = min(2 * pause, longest)
        else:
            return


# --- text -------------------------------------------------------------------------


def format_host(address: Address, default_port: int | None = None) -> str:
    """The Host field of a request to `address` (RFC 9110 §7.2).

    The port is left out where it is `default_port`; a zone never goes out (RFC 9844
    §6); a Unix socket is 'localhost'.
    """
    if not isinstance(address, tuple):
        return "localhost"
    host, port = address[0], address[1]
    if ":" in host:
        host = f"[{host.partition('%')[0]}]"
    return host if port == default_port else f"{host}:{port}"


def format_url(scheme: str, address: Address) -> str:
    """The URL of the root of a server, as 'http://[::1]:8080/'.

    No standard has a URL for a Unix socket; what several clients understand is the
    path, percent-encoded, as the host of 'http+unix://'.
    """
    if isinstance(address, tuple):
        return f"{scheme}://{format_host(address, DEFAULT_PORTS.get(scheme))}/"
    name = os.fsencode(address) if isinstance(address, str) else address
    quoted = "".join(
        chr(byte)
        if (chr(byte).isalnum() and byte < 128) or byte in b"-._~"
        else f"%{byte:02X}"
        for byte in name
    )
    return f"{scheme}+unix://{quoted}/"

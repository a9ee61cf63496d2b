"""Sockets of a process, with their states and peers."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
from typing import Any

from degu.testing.leaks.errors import Leak
from degu.testing.leaks.probe import import_psutil
from degu.testing.leaks.snapshot import Found
from degu.testing.leaks.tracker import tracker


@dataclasses.dataclass(frozen=True)
class OpenSocket:
    """A socket of a process.

    `descriptor`: its number; `family`: "ipv4", "ipv6" or "unix"; `type`: "tcp",
    "udp", "stream" or "datagram"; `address` and `peer`: texts, "" where there is
    none; `state`: "listen", "established", "close_wait", ..., or "" without one.
    """

    descriptor: int
    family: str
    type: str
    address: str
    peer: str
    state: str

    def __str__(self) -> str:
        words = [f"{self.family} {self.type} socket"]
        words += [self.address] if self.address else []
        words += [f"to {self.peer}"] if self.peer else []
        words += [f"({self.state})"] if self.state else []
        return " ".join(words)


def list_sockets(pid: int | None = None) -> list[OpenSocket]:
    """The sockets of a process (default: this one), by state and address.

    Those that are neither bound nor connected are not in the system's tables and
    so not in the list. A process that is gone has none. Raises ImportError
    without psutil.
    """
    psutil = import_psutil()
    sockets = []
    with contextlib.suppress(psutil.Error, OSError):
        for found in psutil.Process(pid).net_connections(kind="all"):
            state = "" if found.status == psutil.CONN_NONE else found.status.lower()
            address, peer = map(_format_address, (found.laddr, found.raddr))
            names = _name_socket(found.family, found.type)
            sockets.append(OpenSocket(found.fd, *names, address, peer, state))
    return sorted(sockets, key=lambda s: (s.state, s.address, s.descriptor))


def _format_address(address: Any) -> str:
    if not address:
        return ""
    if isinstance(address, str):
        return address
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _name_socket(family: int, kind: int) -> tuple[str, str]:
    families = {socket.AF_INET: "ipv4", socket.AF_INET6: "ipv6"}
    stream = kind == socket.SOCK_STREAM
    if family in families:
        return families[socket.AddressFamily(family)], "tcp" if stream else "udp"
    return "unix", "stream" if stream else "datagram"


def _name_own_socket(number: int) -> str:
    """What a socket of this process is where the system's tables do not list it."""
    try:
        with socket.socket(fileno=os.dup(number)) as sock:
            return f"{' '.join(_name_socket(sock.family, sock.type))} socket"
    except OSError:
        return "socket"


def describe_socket(found: Found) -> Leak:
    """Name the socket, and where it was created."""
    name, place = "socket", None
    for known in list_sockets(found.pid):
        if known.descriptor == found.number:
            name = str(known)
    if found.pid == os.getpid():
        if name == "socket":
            name = _name_own_socket(found.number)
        for sock, noted in list(tracker.sockets.items()):
            if sock.fileno() == found.number:
                place = noted
    return found.build_leak(f"{name}, descriptor {found.number}", place)

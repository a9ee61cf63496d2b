"""Starting, stopping, and memory: an embedded server, idle connections, the import."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.servers import rgi_app
from bench.small import Arena
from bench.tools import Row, Settings, Table, processes

CONNECTIONS = 1000
IMPORT = """
import gc, sys, time
def rss():
    return int(open("/proc/self/statm").read().split()[1]) * 4
before = rss()
started = time.perf_counter()
import degu
spent = time.perf_counter() - started
print(spent * 1e6, rss() - before)
"""


def measure_starts(settings: Settings) -> Table:
    """Milliseconds from the call, in a parent that has imported what it needs."""
    from degu import EmbeddedServer, IPv6_LOOPBACK
    from degu.client import Client

    names = ("address known", "first answer", "stopped")
    rows = {name: Row(name, []) for name in names}
    for turn in range(settings.rounds * 3 + 1):
        started = time.perf_counter()
        server = EmbeddedServer(IPv6_LOOPBACK, None, rgi_app)
        known = time.perf_counter()
        with Client(server.address).connect() as connection:
            connection.get("/")
            answered = time.perf_counter()
        stopping = time.perf_counter()
        server.terminate()
        ended = time.perf_counter()
        if turn:
            rows["address known"].samples.append((known - started) * 1e3)
            rows["first answer"].samples.append((answered - started) * 1e3)
            rows["stopped"].samples.append((ended - stopping) * 1e3)
    title = "An embedded server in a process of its own, from the call"
    return Table("start", title, "milliseconds", list(rows.values()), digits=2)


def measure_import(settings: Settings) -> list[Table]:
    """In a new interpreter each time; without its own start."""
    spent, grown = Row("import degu", []), Row("import degu", [])
    for _ in range(settings.rounds * 2):
        words = [sys.executable, "-c", IMPORT]
        answer = subprocess.run(words, capture_output=True, text=True, check=True)
        micros, kib = answer.stdout.split()
        spent.samples.append(float(micros))
        grown.samples.append(float(kib))
    return [
        Table("import-time", "import degu: time", "microseconds", [spent], digits=0),
        Table("import-memory", "import degu: memory", "KiB of RSS", [grown], digits=0),
    ]


def read_rss(pid: int) -> int:
    """KiB of memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4


def measure_idle(settings: Settings) -> list[Table]:
    """A server alone, and with a thousand connections that said something once."""
    alone, each = [], []
    for name in ("degu", "degu, pure Python", "http.server"):
        with processes() as start:
            arena = Arena(settings, start, None)
            address, server = arena.server(name)
            before = read_rss(server.pid)
            alone.append(Row(name, [before]))
            socks = [open_idle(int(address)) for _ in range(CONNECTIONS)]
            after = read_rss(server.pid)
            each.append(Row(name, [(after - before) / CONNECTIONS]))
            for sock in socks:
                sock.close()
    where = f"{CONNECTIONS} idle connections"
    return [
        Table("idle", "Memory of an idle server", "KiB of RSS", alone, digits=0),
        Table("idle-each", f"Memory of each of {where}", "KiB of RSS", each),
    ]


def open_idle(port: int) -> Any:
    """A connection that has had one answer."""
    sock = socket.create_connection(("::1", port), 20)
    sock.sendall(b"GET /a/b HTTP/1.1\r\nhost: localhost\r\n\r\n")
    data = b""
    while not data.endswith(b"world!"):
        data += sock.recv(4096)
    return sock


def measure(settings: Settings) -> list[Table]:
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 8192), most))
    return [
        measure_starts(settings),
        *measure_import(settings),
        *measure_idle(settings),
    ]

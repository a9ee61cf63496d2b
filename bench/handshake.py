"""New TLS 1.3 connections with client certificates, and kept ones."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from bench.bulk import client_config, make_context, make_pki, server_config
from bench.servers import rgi_app
from bench.tools import (
    REQUEST_HEADERS,
    RESPONSE,
    Settings,
    Table,
    make_rows,
    processes,
    take_turns,
    write_messages,
)


def serve_degu(folder: str) -> None:
    from degu.server import SSLServer

    server = SSLServer(server_config(folder), ("::1", 0, 0, 0), rgi_app, timeout=600)
    print(server.sock.getsockname()[1], flush=True)
    server.serve_forever()


def serve_raw(folder: str) -> None:
    """A thread for each connection, as Degu has it."""
    context = make_context(folder, server=True)

    def serve(sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with context.wrap_socket(sock, server_side=True) as ours:
            while ours.recv(8192):
                ours.send(RESPONSE)

    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            threading.Thread(target=serve, args=(listener.accept()[0],)).start()


def make_degu(port: int, folder: str, keep: bool) -> Callable[[], Any]:
    from degu.client import SSLClient

    client = SSLClient(client_config(folder), ("::1", port, 0, 0))
    headers = {"host": "localhost", **REQUEST_HEADERS}
    kept = client.connect() if keep else None

    def exchange() -> None:
        connection = kept or client.connect()
        body = connection.get("/a/b", headers).body
        assert body is not None
        body.read()
        if kept is None:
            connection.close()

    return exchange


def make_raw(port: int, folder: str, keep: bool) -> Callable[[], Any]:
    context = make_context(folder, server=False)
    with open(f"{folder}/request", "rb") as file:
        request = file.read()

    def connect() -> Any:
        sock = socket.create_connection(("::1", port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return context.wrap_socket(sock, server_hostname="::1")

    kept = connect() if keep else None

    def exchange() -> None:
        sock = kept or connect()
        sock.send(request)
        sock.recv(8192)
        if kept is None:
            sock.close()

    return exchange


def run_client(who: str, port: int, folder: str, keep: bool) -> None:
    exchange = (make_degu if who == "degu" else make_raw)(port, folder, keep)
    for line in sys.stdin:
        started = time.perf_counter()
        for _ in range(int(line)):
            exchange()
        spent = time.perf_counter() - started
        print(f"{spent / int(line) * 1e6:.3f}", flush=True)


def measure_case(settings: Settings, keep: bool) -> Table:
    folder = str(settings.folder)
    turns = {}
    with processes() as start:
        for who in ("raw ssl loop", "degu"):
            command = [sys.executable, "-m", "bench.handshake"]
            port = start([*command, "serve", who, folder], cpu=settings.cpu).read()
            words = [*command, "talk", who, port, folder, str(keep)]
            turns[who] = start(words, cpu=settings.cpu)
        samples = take_turns(turns, settings)
    what = "kept connection" if keep else "new connection and a request"
    return Table(
        "tls-kept" if keep else "tls-new",
        f"TLS 1.3 with client certificates: {what}, one CPU",
        "microseconds",
        make_rows(samples, "raw ssl loop"),
    )


def measure(settings: Settings) -> list[Table]:
    write_messages(settings.folder)
    pki = make_pki(settings.folder)
    tables = [measure_case(settings, keep) for keep in (False, True)]
    pki.close()
    return tables


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        (serve_degu if sys.argv[2] == "degu" else serve_raw)(sys.argv[3])
    else:
        run_client(sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5] == "True")

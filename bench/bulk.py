"""One large body: down, up, from a file and over TLS, beside raw loops of the same.

The raw loops are Python's: `recv_into`, `sendall`, `os.sendfile` with the same buffers
as Degu's, on the same sockets, and nothing else.
"""

from __future__ import annotations

import os
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.tools import Process, Row, Settings, Table, processes

BLOCK = 256 * 1024
KINDS = ("down", "up", "file", "tls-down", "tls-up")
TITLES = {
    "down": "down",
    "up": "up",
    "file": "down, from a file",
    "tls-down": "down over TLS 1.3",
    "tls-up": "up over TLS 1.3",
}


def blocks(size: int) -> Iterator[memoryview]:
    block = memoryview(bytes(BLOCK))
    while size > 0:
        yield block[:size]
        size -= BLOCK


def read_all(readinto: Callable[[Any], int], size: int) -> None:
    buffer = bytearray(BLOCK)
    while size > 0:
        count = readinto(buffer)
        if count == 0:
            raise RuntimeError(f"{size} bytes are missing")
        size -= count


def read_growth() -> int:
    """KiB of memory that this process had at most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1])
    return 0


# --- the server's side ---


def make_app(folder: str) -> Callable[[dict[str, Any]], Any]:
    from degu.base import FileOutput, Output

    def app(request: dict[str, Any]) -> Any:
        what, _, size = request["uri"][1:].partition("/")
        if what == "down":
            return 200, "OK", {}, Output(blocks(int(size)), int(size))
        if what == "file":
            return 200, "OK", {}, FileOutput(open(f"{folder}/file", "rb"), int(size))
        if what == "up":
            body = request["body"]
            read_all(body.readinto, body.content_length)
        return 200, "OK", {"memory": str(read_growth())}, None

    return app


def serve_degu(tls: bool, folder: str) -> None:
    from degu.server import Server, SSLServer

    if tls:
        server: Server = SSLServer(
            server_config(folder), ("::1", 0, 0, 0), make_app(folder)
        )
    else:
        server = Server(("::1", 0, 0, 0), make_app(folder))
    print(server.sock.getsockname()[1], flush=True)
    server.serve_forever()


def serve_raw(tls: bool, folder: str) -> None:
    """One connection after the other: a line that says what, then the bytes."""
    context = make_context(folder, server=True) if tls else None
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            sock, _ = listener.accept()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if context is not None:
                sock = context.wrap_socket(sock, server_side=True)
            with sock:
                what, size = sock.recv(100).decode().split()
                answer_raw(sock, what, int(size), folder)


def answer_raw(sock: socket.socket, what: str, size: int, folder: str) -> None:
    if what == "up":
        sock.sendall(b"k")
        read_all(sock.recv_into, size)
        sock.sendall(b"k")
    elif what == "file":
        with open(f"{folder}/file", "rb") as file:
            offset = 0
            while offset < size:
                sent = os.sendfile(sock.fileno(), file.fileno(), offset, BLOCK)
                offset += sent
    else:
        for block in blocks(size):
            sock.sendall(block)


# --- the client's side ---


def move_degu(kind: str, port: int, size: int, folder: str) -> int:
    """Move so many bytes; returns what the server's memory was at most."""
    from degu.base import Output
    from degu.client import Client, SSLClient

    what = kind.removeprefix("tls-")
    address = ("::1", port, 0, 0)
    if kind.startswith("tls-"):
        client: Client = SSLClient(client_config(folder), address)
    else:
        client = Client(address)
    with client.connect() as connection:
        if what == "up":
            connection.put(f"/up/{size}", {}, Output(blocks(size), size))
        else:
            body = connection.get(f"/{what}/{size}").body
            assert body is not None
            read_all(body.readinto, size)
        return int(connection.get("/memory").headers["memory"])


def move_raw(kind: str, port: int, size: int, folder: str) -> int:
    what = kind.removeprefix("tls-")
    sock: Any = socket.create_connection(("::1", port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if kind.startswith("tls-"):
        sock = make_context(folder, server=False).wrap_socket(
            sock, server_hostname="::1"
        )
    with sock:
        sock.sendall(f"{what} {size}".encode())
        if what == "up":
            sock.recv(1)
            for block in blocks(size):
                sock.sendall(block)
            sock.recv(1)
        else:
            read_all(sock.recv_into, size)
    return 0


def run_client(who: str, kind: str, port: int, folder: str) -> None:
    move = move_degu if who == "degu" else move_raw
    move(kind, port, 1 << 20, folder)
    for line in sys.stdin:
        size = int(line)
        before = read_growth()
        started = time.perf_counter()
        memory = move(kind, port, size, folder)
        spent = time.perf_counter() - started
        print(f"{spent} {read_growth() - before} {memory}", flush=True)


# --- certificates ---


def make_pki(folder: Path) -> Any:
    """Certificates for both sides; to be kept alive as long as they are used."""
    from degu.testing.pki import TempPKI

    pki = TempPKI()
    for side, config in (
        ("server", pki.server_sslconfig),
        ("client", pki.client_sslconfig),
    ):
        (folder / f"{side}.json").write_text(dump_config(config))
    return pki


def dump_config(config: Any) -> str:
    import json

    return json.dumps({name: str(value) for name, value in config.items()})


def server_config(folder: str) -> dict[str, Any]:
    return read_config(folder, "server")


def client_config(folder: str) -> dict[str, Any]:
    return read_config(folder, "client")


def read_config(folder: str, side: str) -> dict[str, Any]:
    import json

    config: dict[str, Any] = json.loads(Path(f"{folder}/{side}.json").read_text())
    return {
        name: value == "True" if value in ("True", "False") else value
        for name, value in config.items()
    }


def make_context(folder: str, *, server: bool) -> ssl.SSLContext:
    """What a program without Degu would make of the same certificates."""
    config = read_config(folder, "server" if server else "client")
    purpose = ssl.Purpose.CLIENT_AUTH if server else ssl.Purpose.SERVER_AUTH
    context = ssl.create_default_context(purpose, cafile=config["ca_file"])
    context.load_cert_chain(config["cert_file"], config["key_file"])
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


# --- measuring ---


def measure_kind(settings: Settings, kind: str, size: int) -> Table:
    folder = str(settings.folder)
    with processes() as start:
        clients: dict[str, Process] = {}
        for who in ("raw loop", "degu"):
            command = [sys.executable, "-m", "bench.bulk"]
            tls = str(kind.startswith("tls-"))
            server = start([*command, "serve", who, tls, folder], cpu=settings.cpu)
            port = server.read()
            clients[who] = start(
                [*command, "move", who, kind, port, folder], cpu=settings.cpu
            )
        rows = {who: Row(who, []) for who in clients}
        growth: dict[str, list[int]] = {who: [] for who in clients}
        memory: list[int] = []
        for _ in range(max(3, settings.rounds // 3)):
            for who, client in clients.items():
                spent, grown, server_memory = client.ask(size).split()
                rows[who].samples.append(size / float(spent) / 2**20)
                growth[who].append(int(grown))
                if who == "degu":
                    memory.append(int(server_memory))
    rows["degu"].base = rows["raw loop"].base = rows["raw loop"].median
    server_growth = memory[-1] - memory[0]
    rows["degu"].note = f"RSS +{max(growth['degu'])} / +{server_growth} KiB"
    return Table(
        f"bulk-{kind}",
        f"{size >> 20} MiB {TITLES[kind]}, one CPU",
        "MiB/s",
        list(rows.values()),
        "Memory: how much the client and the server grew while the bytes passed.",
        digits=0,
    )


def measure(settings: Settings) -> list[Table]:
    size = (64 if settings.quick else 1024) << 20
    pki = make_pki(settings.folder)
    with open(settings.folder / "file", "wb") as file:
        file.truncate(size)
    tables = [measure_kind(settings, kind, size) for kind in KINDS]
    (settings.folder / "file").unlink()
    pki.close()
    return tables


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve = serve_degu if sys.argv[2] == "degu" else serve_raw
        serve(sys.argv[3] == "True", sys.argv[4])
    else:
        run_client(sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5])

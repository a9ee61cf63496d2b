"""Small round trips: Degu with Degu, servers side by side, clients side by side."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bench.clients import CLIENTS
from bench.servers import ANNOUNCED, SERVERS
from bench.tools import (
    Process,
    Settings,
    Table,
    build_raw,
    free_port,
    make_rows,
    processes,
    python_of,
    take_turns,
    wait_for,
    write_messages,
)

Start = Callable[..., Process]
OURS = ("degu", "degu, pure Python")


def twin(name: str) -> dict[str, str]:
    """What the environment says about the compiled twin."""
    return {"DEGU_PURE_PYTHON": "1" if name == OURS[1] else ""}


class Arena:
    """Starts raw and Python servers and clients for one section."""

    def __init__(self, settings: Settings, start: Start, cpu: int | None) -> None:
        self.folder = settings.folder
        self.start = start
        self.cpu = cpu
        self.raw = build_raw(self.folder)
        self.request, self.response = write_messages(self.folder)

    def raw_server(self, kind: str, name: str) -> str:
        where = str(self.folder / f"{name}.sock") if kind == "unix" else "0"
        Path(where).unlink(missing_ok=True)
        command = [str(self.raw), "serve", where, str(self.response)]
        return self.start(command, cpu=self.cpu).read()

    def raw_client(self, address: str) -> Process:
        command = [str(self.raw), "ping", address, str(self.request)]
        return self.start(command, cpu=self.cpu)

    def server(self, name: str, kind: str = "ipv6") -> tuple[str, Process]:
        unix = self.folder / f"{name}-server.sock"
        address = str(unix) if kind == "unix" else str(free_port())
        python = python_of(peers=not name.startswith("degu"))
        command = [python, "-m", "bench.servers", name, address]
        process = self.start(command, cpu=self.cpu, **twin(name))
        if name in ANNOUNCED:
            process.read()
        elif kind == "unix":
            wait_for_file(unix)
        else:
            wait_for(int(address), process)
        return address, process

    def client(self, name: str, address: str) -> Process:
        python = python_of(peers=name not in OURS)
        command = [python, "-m", "bench.clients", name, address]
        return self.start(command, cpu=self.cpu, **twin(name))


def wait_for_file(path: Path) -> None:
    import time

    deadline = time.monotonic() + 10
    while not path.exists():
        if time.monotonic() > deadline:
            raise RuntimeError(f"no socket at {path}")
        time.sleep(0.01)


def measure_pairs(settings: Settings, kind: str, cpu: int | None) -> Table:
    """Degu's client with Degu's server, beside the raw exchange of the same bytes."""
    with processes() as start:
        arena = Arena(settings, start, cpu)
        turns = {"raw C": arena.raw_client(arena.raw_server(kind, "raw"))}
        for name in OURS:
            address, _ = arena.server(name, kind)
            turns[f"{name}: both"] = arena.client(name, address)
            turns[f"{name}: server, raw client"] = arena.raw_client(address)
            mine = arena.raw_server(kind, f"raw-{name}")
            turns[f"{name}: client, raw server"] = arena.client(name, mine)
        samples = take_turns(turns, settings)
    where = "a Unix socket" if kind == "unix" else "IPv6 loopback"
    pinned = "two CPUs, unpinned" if cpu is None else "one CPU"
    return Table(
        f"pair-{kind}" + ("-unpinned" if cpu is None else ""),
        f"A small exchange over {where}, {pinned}",
        "microseconds",
        make_rows(samples, "raw C"),
    )


def measure_servers(settings: Settings) -> Table:
    """The same raw client drives every server."""
    with processes() as start:
        arena = Arena(settings, start, settings.cpu)
        turns = {}
        for name in SERVERS:
            if name in ANNOUNCED:
                continue  # those need more than one CPU
            address, _ = arena.server(name)
            turns[name] = arena.raw_client(address)
        samples = take_turns(turns, settings)
    return Table(
        "servers",
        "Servers, driven by the same raw C client, one CPU",
        "microseconds",
        make_rows(samples, "degu"),
    )


def measure_clients(settings: Settings) -> Table:
    """The same raw server answers every client."""
    with processes() as start:
        arena = Arena(settings, start, settings.cpu)
        turns = {}
        for name in [*CLIENTS, "aiohttp"]:
            turns[name] = arena.client(name, arena.raw_server("ipv6", f"for-{name}"))
        samples = take_turns(turns, settings)
    return Table(
        "clients",
        "Clients, answered by the same raw C server, one CPU",
        "microseconds",
        make_rows(samples, "degu"),
    )


def measure(settings: Settings) -> list[Table]:
    tables = []
    for kind in ("unix", "ipv6"):
        tables.append(measure_pairs(settings, kind, settings.cpu))
    tables.append(measure_pairs(settings, "ipv6", None))
    return [*tables, measure_servers(settings), measure_clients(settings)]

"""Many kept connections at once, unpinned: throughput, latency, and who is served."""

from __future__ import annotations

from bench.small import Arena
from bench.tools import Row, Settings, Table, processes

NUMBERS = (1, 2, 8, 64)
SERVERS = (
    "degu",
    "degu, pure Python",
    "degu, 2 workers",
    "http.server",
    "granian wsgi",
)
BUSY = ("degu, busy app", "degu, busy app, 2 workers")
COUNT = 20_000


def take_rounds(
    settings: Settings, number: int, names: tuple[str, ...], total: float
) -> tuple[dict[str, Row], dict[str, Row]]:
    """Rates and latencies; every connection has one request under way at any time."""
    rates: dict[str, Row] = {}
    latest: dict[str, Row] = {}
    with processes() as start:
        arena = Arena(settings, start, None)
        turns = {}
        for name in names:
            address, _ = arena.server(name)
            words = [str(arena.raw), "load", address, str(arena.request), str(number)]
            turns[name] = start(words)
            turns[name].ask(200)
            rates[name], latest[name] = Row(name, []), Row(name, [])
        for _ in range(settings.rounds):
            for name, driver in turns.items():
                count = max(number * 20, int(total * settings.seconds))
                rate, median, late, most, fewest = driver.ask(count).split()
                rates[name].samples.append(float(rate))
                latest[name].samples.append(float(late))
                latest[name].note = f"p50 {median}, slowest {most}, fewest {fewest}"
    return rates, latest


def measure_number(settings: Settings, number: int) -> list[Table]:
    """The smallest app, of several servers."""
    rates, latest = take_rounds(settings, number, SERVERS, COUNT)
    for rows in (rates, latest):
        for row in rows.values():
            row.base = rows["http.server"].median
    where = f"{number} connections, unpinned"
    return [
        Table(f"many-{number}", where, "requests/s", list(rates.values()), digits=0),
        Table(
            f"many-{number}-p99",
            f"{where}: the slowest hundredth (p99)",
            "microseconds",
            list(latest.values()),
            "Of the last round: the median, the slowest, and how many exchanges the "
            "connection had that was served least.",
            digits=0,
        ),
    ]


def measure_busy(settings: Settings) -> Table:
    """What a second worker adds where the load generator needs little of the CPUs."""
    rates, _ = take_rounds(settings, 8, BUSY, COUNT / 5)
    for row in rates.values():
        row.base = rates[BUSY[0]].median
    return Table(
        "many-busy",
        "8 connections, unpinned, an app that computes 200 microseconds in Python",
        "requests/s",
        list(rates.values()),
        digits=0,
    )


def measure(settings: Settings) -> list[Table]:
    tables = []
    for number in NUMBERS:
        tables += measure_number(settings, number)
    return [*tables, measure_busy(settings)]

"""What all sections use: processes pinned to a CPU, addresses, samples, rounds."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PEERS_VENV = ROOT / ".venv-bench"
PATIENCE = 30.0
"""Seconds for a server to listen."""

REQUEST_HEADERS = {
    "user-agent": "bench",
    "accept": "text/plain",
    "x-one": "1",
    "x-two": "two",
}
RESPONSE = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 13\r\n\r\n"
    b"Hello, world!"
)


@dataclass
class Settings:
    """How long and where to measure."""

    quick: bool
    rounds: int
    seconds: float
    """Of one turn of one competitor."""

    only: set[str]
    cpu: int = 0
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp("-bench")))


@dataclass
class Row:
    """One competitor of a table: its samples, and how it does beside the first one."""

    name: str
    samples: list[float]
    base: float | None = None
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def ratio(self) -> float | None:
        return None if self.base is None else self.median / self.base


@dataclass
class Table:
    """One section's result."""

    key: str
    title: str
    unit: str
    rows: list[Row]
    note: str = ""
    digits: int = 1


# --- processes ---


def python_of(peers: bool) -> str:
    """The interpreter that has the peers, or this one."""
    peer = PEERS_VENV / "bin" / "python"
    return str(peer) if peers and peer.exists() else sys.executable


def make_peers_venv() -> None:
    """Install what Degu is compared with, once."""
    if not (PEERS_VENV / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", str(PEERS_VENV)], check=True)
    stamp = PEERS_VENV / "installed"
    wanted = ROOT / "bench" / "requirements.txt"
    if not stamp.exists() or stamp.stat().st_mtime < wanted.stat().st_mtime:
        pip = [str(PEERS_VENV / "bin" / "python"), "-m", "pip", "install", "-q"]
        subprocess.run([*pip, "-r", str(wanted)], check=True)
        stamp.touch()


def build_raw(folder: Path) -> Path:
    """Compile raw.c; without a C compiler there is no speed limit to compare with."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise SystemExit("the benchmarks need a C compiler, for bench/raw.c")
    program = folder / "raw"
    source = ROOT / "bench" / "raw.c"
    subprocess.run([compiler, "-O2", "-o", str(program), str(source)], check=True)
    return program


def pin(cpu: int | None) -> Callable[[], None] | None:
    """What a child process calls to stay on one CPU; None for no bounds."""
    if cpu is None or not hasattr(os, "sched_setaffinity"):
        return None
    return lambda: os.sched_setaffinity(0, {cpu})


class Process:
    """A child that is told things on stdin and answers on stdout, line by line."""

    def __init__(
        self, command: Sequence[str], *, cpu: int | None = None, **environ: str
    ) -> None:
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
            preexec_fn=pin(cpu),
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def read(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args!r} ended: {self.process.wait()}")
        return line.strip()

    def ask(self, *words: object) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        return self.read()

    def close(self) -> None:
        # The whole group: some servers leave their workers behind.
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


@contextmanager
def processes() -> Iterator[Callable[..., Process]]:
    """Start children that end with the ``with``."""
    with ExitStack() as stack:

        def start(command: Sequence[str], **options: Any) -> Process:
            process = Process(command, **options)
            stack.callback(process.close)
            return process

        yield start


def free_port() -> int:
    """A port on ::1 that nobody uses at this moment."""
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as sock:
        port: int = sock.getsockname()[1]
        return port


def wait_for(port: int, process: Process) -> None:
    """Until something accepts connections on the port."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            socket.create_connection(("::1", port), 1).close()
            return
        except OSError:
            if time.monotonic() > deadline or process.process.poll() is not None:
                raise RuntimeError(f"{process.process.args!r} does not serve") from None
            time.sleep(0.02)


def write_messages(folder: Path) -> tuple[Path, Path]:
    """Files with the bytes of one request and one response."""
    request, response = folder / "request", folder / "response"
    lines = ["GET /a/b HTTP/1.1", "host: localhost"]
    lines += [f"{name}: {value}" for name, value in REQUEST_HEADERS.items()]
    request.write_text("\r\n".join(lines) + "\r\n\r\n", newline="")
    response.write_bytes(RESPONSE)
    return request, response


# --- rounds ---


def take_turns(
    competitors: dict[str, Process], settings: Settings
) -> dict[str, list[float]]:
    """Microseconds an exchange: each competitor in each round, for the same time."""
    counts = {}
    for name, one in competitors.items():
        one.ask(50)
        spent = float(one.ask(50))
        counts[name] = max(20, int(settings.seconds * 1e6 / spent))
    samples: dict[str, list[float]] = {name: [] for name in competitors}
    for _ in range(settings.rounds):
        for name, one in competitors.items():
            samples[name].append(float(one.ask(counts[name])))
    return samples


def make_rows(samples: dict[str, list[float]], base: str | None) -> list[Row]:
    """Rows in the order given, each compared with the row `base`."""
    least = None if base is None else statistics.median(samples[base])
    return [Row(name, values, least) for name, values in samples.items()]


# --- the machine ---


def describe_machine() -> dict[str, str]:
    """Where and when this was measured."""
    options = str(sysconfig.get_config_var("CONFIG_ARGS") or "")
    optimized = "--enable-optimizations" in options or "--with-lto" in options
    build = "PGO" if optimized else "without PGO"
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "processor": f"{read_processor()}, {os.cpu_count()} CPUs",
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "interpreter": f"CPython {platform.python_version()}, {build}",
        "compiler": platform.python_compiler(),
    }


def read_processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()


def dump(value: Any) -> str:
    return json.dumps(value, indent=2)

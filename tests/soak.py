"""A server under hostile connections by the ten thousand, and what it has left.

``python -m tests.soak --count 200000`` starts a server in a process of its own, opens
that many connections to it, of all the kinds below mixed, asks for a plain page on a
new connection now and then, and prints descriptors, threads and memory before and
after, and how long an honest client waited. The suite runs a short one.
"""

from __future__ import annotations

import argparse
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from degu.base import ChunkedOutput
from degu.server import Server
from tests import corpus

GET = b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"
POST = (
    b"POST /read HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 20\r\n\r\n"
    b"twenty bytes of body"
)
CHUNKED = (
    b"POST /read HTTP/1.1\r\nhost: 127.0.0.1\r\ntransfer-encoding: chunked\r\n\r\n"
    b"5;a=b\r\nhello\r\n0\r\nx-sum: 7\r\n\r\n"
)
LARGE = GET.replace(b" / ", b" /large ")
WHOLE = (GET, POST, CHUNKED)
FOREIGN = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
    b"\0" * 50,
    b"\n\n\n\n",
    b"SSH-2.0-Test\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\xff\xfe" * 2000,
)
RESET = struct.pack("ii", 1, 0)
HELD = 40  # connections that are left open for a while
TIMEOUT = 5.0


# --- the server, in a process of its own --------------------------------------


def answer(request: dict[str, Any]) -> tuple[int, str, dict[str, Any], Any]:
    """A small app: reads what it is sent, and has one large page."""
    if request["body"] is not None:
        for _ in request["body"]:
            pass
    if request["method"] == "HEAD":
        return 200, "OK", {}, None
    if request["path"] == ["large"]:
        return 200, "OK", {}, ChunkedOutput(b"x" * 65536 for _ in range(1000))
    return 200, "OK", {}, b"hello"


def serve() -> None:
    """Serve until standard input ends; the address is the first line of output."""
    options = {"timeout": 2.0, "head_timeout": 1.0}
    with Server(("127.0.0.1", 0), answer, **options).running(grace=0.1) as server:
        assert isinstance(server.address, tuple)
        print(server.address[1], flush=True)
        sys.stdin.read()


@contextmanager
def started(*arguments: str) -> Iterator[tuple[int, int]]:
    """Run `serve` in a child; gives its pid and its port."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.soak", "--serve", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield process.pid, int(process.stdout.readline())
        finally:
            process.communicate()


@dataclass(frozen=True)
class Usage:
    """What a process holds: descriptors, threads, and resident memory in KiB."""

    files: int
    threads: int
    memory: int

    @classmethod
    def measure(cls, pid: int) -> Usage:
        with open(f"/proc/{pid}/smaps_rollup") as fp:
            memory = next(int(one.split()[1]) for one in fp if one[:4] == "Rss:")
        with open(f"/proc/{pid}/status") as fp:
            threads = next(int(one.split()[1]) for one in fp if one[:8] == "Threads:")
        return cls(len(os.listdir(f"/proc/{pid}/fd")), threads, memory)

    @classmethod
    def settle(cls, pid: int, threads: int, seconds: float = 10.0) -> Usage:
        """Measure once no more than `threads` are left, or after `seconds`."""
        deadline = time.monotonic() + seconds
        usage = cls.measure(pid)
        while usage.threads > threads and time.monotonic() < deadline:
            time.sleep(0.05)
            usage = cls.measure(pid)
        return usage


# --- one hostile connection ---------------------------------------------------


class Attacker:
    """Opens connections to one port, each from another address of 127/8.

    So the ports of this machine do not run out while closed connections linger.
    """

    def __init__(self, port: int, seed: int = 0) -> None:
        self.port = port
        self.random = random.Random(seed)
        self.held: deque[socket.socket] = deque()
        self.cases = [
            case.data for case in corpus.read_request_cases() if len(case.data) < 9000
        ]

    def connect(self) -> socket.socket:
        sock = socket.socket()
        sock.settimeout(TIMEOUT)
        pick = self.random.randrange
        sock.setsockopt(socket.SOL_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT
        sock.bind((f"127.{pick(1, 255)}.{pick(1, 255)}.{pick(1, 255)}", 0))
        sock.connect(("127.0.0.1", self.port))
        return sock

    def run(self, action: Callable[[Attacker, socket.socket], None]) -> None:
        """Open one connection and do `action` with it; a refusal is nothing special."""
        with suppress(OSError):
            sock = self.connect()
            with sock:
                action(self, sock)

    def close(self) -> None:
        while self.held:
            self.held.popleft().close()

    def cut(self, data: bytes) -> bytes:
        return data[: self.random.randrange(len(data))]


def reset(sock: socket.socket) -> None:
    """Close with RST and not with FIN."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    sock.close()


def drain(sock: socket.socket) -> bytes:
    """All that comes until the peer closes."""
    data = b""
    while more := sock.recv(65536):
        data += more
    return data


def open_and_close(attacker: Attacker, sock: socket.socket) -> None:
    """Connect and leave."""


def open_and_reset(attacker: Attacker, sock: socket.socket) -> None:
    """Connect and vanish."""
    reset(sock)


def half_request(attacker: Attacker, sock: socket.socket) -> None:
    """A request that ends somewhere, with FIN."""
    sock.sendall(attacker.cut(attacker.random.choice(WHOLE)))


def half_request_reset(attacker: Attacker, sock: socket.socket) -> None:
    """A request that ends somewhere, with RST."""
    sock.sendall(attacker.cut(attacker.random.choice(WHOLE)))
    reset(sock)


def foreign(attacker: Attacker, sock: socket.socket) -> None:
    """Another protocol, and then all that is answered."""
    sock.sendall(attacker.random.choice(FOREIGN))
    sock.shutdown(socket.SHUT_WR)
    drain(sock)


def bad_request(attacker: Attacker, sock: socket.socket) -> None:
    """A case of the corpus, read to the end of the answer."""
    sock.sendall(attacker.random.choice(attacker.cases))
    sock.shutdown(socket.SHUT_WR)
    drain(sock)


def bad_request_unread(attacker: Attacker, sock: socket.socket) -> None:
    """A case of the corpus whose answer nobody reads."""
    sock.sendall(attacker.random.choice(attacker.cases))
    reset(sock)


def pipeline(attacker: Attacker, sock: socket.socket) -> None:
    """Requests in a row, garbage, and a request that must never be seen."""
    sock.sendall(GET * 3 + POST + attacker.random.choice(FOREIGN) + GET)
    sock.shutdown(socket.SHUT_WR)
    drain(sock)


def leave_early(attacker: Attacker, sock: socket.socket) -> None:
    """A large answer of which only the beginning is read."""
    sock.sendall(LARGE)
    sock.recv(1000)
    reset(sock)


def hold(attacker: Attacker, sock: socket.socket) -> None:
    """A connection that stays open for a while, silent in the middle of something."""
    sock.sendall(attacker.cut(GET))
    attacker.held.append(sock.dup())
    if len(attacker.held) > HELD:
        attacker.held.popleft().close()


DROPS = (open_and_close, open_and_reset, half_request, half_request_reset)
ACTIONS = (
    *DROPS,
    foreign,
    bad_request,
    bad_request,
    bad_request_unread,
    pipeline,
    leave_early,
    hold,
)


def ask(port: int, seconds: float = TIMEOUT) -> float:
    """Seconds until a plain GET on a new connection was answered with 200.

    A full server may refuse: then it is asked again, and the time goes on.
    """
    address = ("127.0.0.1", port)
    begin = time.monotonic()
    while time.monotonic() - begin < seconds:
        with suppress(OSError), socket.create_connection(address, seconds) as sock:
            sock.sendall(GET)
            if sock.recv(65536).startswith(b"HTTP/1.1 200 "):
                return time.monotonic() - begin
        time.sleep(0.01)
    raise TimeoutError(f"no answer within {seconds} seconds")


# --- a whole run --------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """What a run found.

    `waits` are the seconds of the honest client during the run, sorted; `last` those
    after it, the best of three.
    """

    count: int
    seconds: float
    before: Usage
    after: Usage
    waits: list[float]
    last: float

    def __str__(self) -> str:
        rows = [f"{self.count} hostile connections in {self.seconds:.1f} seconds"]
        for name, usage in (("before", self.before), ("after", self.after)):
            rows.append(
                f"  {name:7}{usage.files:6} descriptors{usage.threads:6} threads"
                f"{usage.memory:9} KiB"
            )
        middle, most = self.waits[len(self.waits) // 2], self.waits[-1]
        rows.append(
            f"  {len(self.waits)} plain GETs between: median {middle * 1000:.1f} ms, "
            f"slowest {most * 1000:.1f} ms; after it {self.last * 1000:.1f} ms"
        )
        return "\n".join(rows)


def run(
    count: int, warm_up: int = 2000, actions: Sequence[Any] = ACTIONS, threads: int = 2
) -> Report:
    """Attack a new server with `count` connections; `warm_up` ones come before."""
    with started() as (pid, port):
        idle = Usage.measure(pid).threads
        attack(port, warm_up, actions, threads, [])
        before = Usage.settle(pid, idle)
        waits: list[float] = []
        begin = time.monotonic()
        attack(port, count, actions, threads, waits)
        seconds = time.monotonic() - begin
        waits.append(ask(port))
        after = Usage.settle(pid, idle)
        last = min(ask(port) for _ in range(3))
        return Report(count, seconds, before, after, sorted(waits), last)


def attack(
    port: int, count: int, actions: Sequence[Any], threads: int, waits: list[float]
) -> None:
    """Open `count` connections from some threads at once."""
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        attacker = Attacker(port, seed)
        try:
            for number in range(count // threads):
                attacker.run(attacker.random.choice(actions))
                if number % 500 == 499:
                    waits.append(ask(port))
        except BaseException as error:
            errors.append(error)
        finally:
            attacker.close()

    workers = [threading.Thread(target=work, args=(one,)) for one in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if errors:
        raise errors[0]


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--warm-up", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--files", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.files:
        import resource

        resource.setrlimit(resource.RLIMIT_NOFILE, (arguments.files, arguments.files))
    if arguments.serve:
        serve()
    else:
        print(run(arguments.count, arguments.warm_up, threads=arguments.threads))


if __name__ == "__main__":
    main()

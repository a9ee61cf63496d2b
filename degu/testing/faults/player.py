"""What faulty servers and clients share: threads and sockets that end together."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from degu.testing.faults.fault import Fault
from degu.testing.faults.wire import Connection, StoppedError, Wire

STOP_SECONDS = 5.0
"""How long `stop` waits for its threads before it gives up with an error."""

TINY_BUFFER = 2048
"""The socket buffer (bytes) of kinds that make the peer wait while it sends."""


class Player:
    """Threads and sockets that end together, within bounds."""

    def __init__(self, fault: Fault, options: Mapping[str, Any]) -> None:
        self.fault = fault
        self.options = fault.check_options(options)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._wires: list[Wire] = []
        self._threads: list[threading.Thread] = []

    @property
    def kind(self) -> str:
        """The name of what goes wrong."""
        return self.fault.kind

    @property
    def connections(self) -> list[Connection]:
        """The record of every connection so far, the oldest first."""
        with self._lock:
            return [wire.record for wire in self._wires]

    def _add_wire(self, sock: socket.socket, peer: Any) -> Wire:
        wire = Wire(sock, peer, self._stop)
        with self._lock:
            self._wires.append(wire)
        return wire

    def _start_thread(self, target: Callable[..., None], *args: Any) -> None:
        name = f"{type(self).__name__}({self.kind!r})"
        thread = threading.Thread(target=target, args=args, name=name, daemon=True)
        with self._lock:
            self._threads.append(thread)
        thread.start()

    def _end(self) -> None:
        """Wake, join and close everything; raises RuntimeError where that fails."""
        self._stop.set()
        deadline = time.monotonic() + STOP_SECONDS
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            while thread.is_alive():
                # Again each time: a wire may have come between, or not begun to wait.
                for wire in list(self._wires):
                    wire.interrupt()
                thread.join(0.05)
                if time.monotonic() > deadline:
                    raise RuntimeError(f"{thread.name} did not stop: {self!r}")
        for wire in self._wires:
            wire.close()


@contextlib.contextmanager
def recording(wire: Wire) -> Iterator[None]:
    """Note how the connection ended; an error of the socket is part of the play."""
    try:
        yield
    except StoppedError:
        wire.record.ended_by = "us"
    except (OSError, ValueError) as error:
        if wire.stop.is_set():
            wire.record.ended_by = "us"
        else:
            wire.record.error = f"{type(error).__name__}: {error}"
            wire.record.ended_by = wire.record.ended_by or "peer"


def find_family(address: Any) -> socket.AddressFamily:
    """The family of a socket's `address`."""
    if isinstance(address, str | bytes):
        return socket.AF_UNIX
    return socket.AF_INET6 if ":" in address[0] else socket.AF_INET

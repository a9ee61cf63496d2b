"""Several servers that accept from one listening socket, each its share.

All of them wake up for a connection, and the first one takes it. That is a lottery: of
two connections that are kept, both are with the same worker half of the time, and the
other one idles. So each worker says in shared memory how many connections it has, and
one that has more than another lets that one go first, for a moment.
"""

from __future__ import annotations

import mmap
import select
import socket
import time
from typing import Any, NamedTuple

from degu.server import Server, SSLServer

YIELD_SECONDS = 0.01
"""How long a worker at most leaves a connection to one that has fewer."""

YIELD_POLL_SECONDS = 0.0005
"""How often it looks meanwhile whether the connection was taken."""

ABSENT = -1


def make_shares(count: int) -> list[Share]:
    """A place for each of `count` workers, that are to be forked from here."""
    loads = memoryview(mmap.mmap(-1, 4 * count)).cast("i")
    shares = [Share(loads, number) for number in range(count)]
    for share in shares:
        share.leave()
    return shares


class Share(NamedTuple):
    """The place of one worker among all."""

    loads: memoryview
    """How many connections each of them has."""

    number: int

    def note(self, count: int) -> None:
        """Say how many connections there are."""
        self.loads[self.number] = count

    def leave(self) -> None:
        """Say that there is no such worker at the moment."""
        self.loads[self.number] = ABSENT

    def is_ahead(self) -> bool:
        """Whether another one has fewer connections."""
        mine = self.loads[self.number]
        return any(ABSENT < load < mine for load in self.loads)


class SharedListener(socket.socket):
    """A listening socket that belongs to others too."""

    share: Share

    def __init__(self, sock: socket.socket, share: Share) -> None:
        super().__init__(fileno=sock.detach())
        self.share = share

    def wait_turn(self) -> bool:
        """Let others go first, for a moment; whether there is something left."""
        if not self.share.is_ahead():
            return True
        deadline = time.monotonic() + YIELD_SECONDS
        poll = select.poll()
        poll.register(self, select.POLLIN)
        while self.share.is_ahead() and time.monotonic() < deadline:
            time.sleep(YIELD_POLL_SECONDS)
            if not poll.poll(0):
                return False
        return True


class SharingServer(Server):
    """A `Server` on a `SharedListener`."""

    sock: SharedListener

    def serve_forever(self) -> None:
        """Serve like any other, with a share from the start."""
        self._note()
        super().serve_forever()

    def _note(self) -> None:
        with self._lock:
            self.sock.share.note(len(self._handlers))

    def _accept(self) -> tuple[socket.socket, Any] | None:
        return super()._accept() if self.sock.wait_turn() else None

    def _accept_ready(self) -> None:
        super()._accept_ready()
        self._note()

    def _forget(self, handler: Any) -> None:
        super()._forget(handler)
        self._note()


class SharingSSLServer(SharingServer, SSLServer):
    """An `SSLServer` on a `SharedListener`."""

"""An app around an app that tells what is going on: requests, peers, bytes.

A thread sends one event every tenth of a second, and only if there is news. So a
folder of ten thousand small files does not bury the window under messages.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections import Counter, deque
from collections.abc import Callable
from time import monotonic
from typing import Any
from urllib.parse import unquote

from degu.base import FileOutput, Input
from degu.errors import DeguError
from degu.rgi import App, Request, ResponseTuple
from demo_app.events import Event

TICK_SECONDS = 0.1
MAX_ROWS = 30
"""Requests told of in one event; of more than these only the bytes are counted."""
MAX_PATH = 120
"""Characters of a path that are shown."""


class Entry:
    """One request, from its head to the last byte of its response."""

    def __init__(self, number: int, request: Request) -> None:
        peer = request["session"].get("peer")
        self.number = number
        self.peer = peer.name if peer else ""
        self.method = request["method"]
        path = unquote("/" + "/".join(request["path"]))
        self.path = path if len(path) <= MAX_PATH else f"…{path[1 - MAX_PATH :]}"
        self.body = request["body"]
        self.started = monotonic()
        self.seconds: float | None = None
        self.status = 0
        self.size = 0
        self.sent = 0

    @property
    def received(self) -> int:
        """Bytes of the request's body so far."""
        body = self.body
        if not isinstance(body, Input) or body.content_length is None:
            return 0
        return int(body.content_length) - (body.remaining or 0)

    def end(self) -> None:
        """Nothing more will be sent or received."""
        if self.seconds is None:
            self.seconds = monotonic() - self.started

    def build_row(self) -> dict[str, Any]:
        """What the window shows of it."""
        seconds = monotonic() - self.started if self.seconds is None else self.seconds
        return {
            "id": self.number,
            "peer": self.peer,
            "method": self.method,
            "path": self.path,
            "status": self.status,
            "bytes": self.sent or self.received,
            "seconds": round(seconds, 4),
            "running": self.seconds is None,
            "broken": self.seconds is not None and self.sent < self.size,
        }


class CountedFile:
    """A file whose bytes are counted for an `Entry` as they are read."""

    def __init__(self, file: Any, entry: Entry) -> None:
        self.file = file
        self.entry = entry

    def __enter__(self) -> CountedFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; the request is over."""
        self.file.close()
        self.entry.end()

    def readinto(self, buffer: Any) -> int:
        """Read, and count."""
        count = self.file.readinto(buffer) or 0
        self.entry.sent += count
        return count


class Monitor:
    """`app`, watched; ``tell(event)`` is called in a thread of its own."""

    def __init__(self, name: str, app: App, tell: Callable[[Event], object]) -> None:
        self.name = name
        self.app = app
        self.tell = tell
        self.active: dict[int, Entry] = {}
        self.refusals: deque[tuple[str, str]] = deque(maxlen=MAX_ROWS)
        self.peers: Counter[str] = Counter()
        self._changed = threading.Event()
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._last: tuple[Any, ...] = ()
        self._sent = self._received = 0  # of requests that are over

    def __call__(self, request: Request) -> ResponseTuple:
        """Serve one request."""
        entry = Entry(next(self._numbers), request)
        self.active[entry.number] = entry
        self._changed.set()
        try:
            status, reason, headers, body = self.app(request)
        except BaseException:
            entry.status = 500
            entry.end()
            raise
        entry.status = status
        if isinstance(body, FileOutput):
            entry.size = body.content_length
            counted = CountedFile(body.fp, entry)
            return status, reason, headers, FileOutput(counted, entry.size)
        entry.sent = len(body) if isinstance(body, bytes) else 0
        entry.end()
        return status, reason, headers, body

    def on_connect(self, session: dict[str, Any], sock: Any) -> bool:
        """Count the connections of each peer, as long as they last."""
        fingerprint = session["peer"].fingerprint.hex()
        visit = session["visit"] = Visit()
        self._count(fingerprint, 1)
        # The session ends with its connection, and nothing else holds the visit.
        weakref.finalize(visit, self._count, fingerprint, -1)
        return True

    def _count(self, fingerprint: str, by: int) -> None:
        with self._lock:
            self.peers[fingerprint] += by
        self._changed.set()

    def on_refused(self, address: Any, error: DeguError) -> None:
        """Tell of somebody who was not let in."""
        host = address[0] if isinstance(address, tuple) else str(address or "")
        self.refusals.append((host, str(error)))
        self._changed.set()

    def start(self) -> None:
        """Send an event now and then from here on."""
        threading.Thread(target=self._run, name="monitor", daemon=True).start()

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            self._changed.wait(0 if self.active else None)
            pause.wait(TICK_SECONDS)
            self._changed.clear()
            event = self.build_event()
            news = (event["requests"], event["refused"], event["peers"])
            if news != self._last:
                self._last = news
                self.tell(event)

    def build_event(self) -> Event:
        """The news since the last call."""
        entries = list(self.active.values())
        rows = [entry.build_row() for entry in entries]
        sent, received = self._sent, self._received
        for entry, row in zip(entries, rows, strict=True):
            sent += entry.sent
            received += entry.received
            if not row["running"]:
                del self.active[entry.number]
                self._sent += entry.sent
                self._received += entry.received
        refused = [self.refusals.popleft() for _ in range(len(self.refusals))]
        return {
            "kind": "tick",
            "server": self.name,
            "sent": sent,
            "received": received,
            "requests": rows[-MAX_ROWS:],
            "skipped": max(0, len(rows) - MAX_ROWS),
            "refused": refused,
            "peers": {name: count for name, count in self.peers.items() if count > 0},
        }


class Visit:
    """Lives as long as one connection."""

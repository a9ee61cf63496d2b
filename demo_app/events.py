"""What the servers' processes report to the window, as records of `logging`.

An embedded server sends its log records to the process that started it. An event is
a record whose message is JSON; so there is no second channel to build, nor to lose.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

LOGGER = "demo_app.events"

Event = dict[str, Any]
"""``kind`` says what it is: ``up`` (a server began) or ``tick`` (a moment's news)."""


def send_event(event: Event) -> None:
    """Report `event`; in a server's process."""
    logging.getLogger(LOGGER).info("%s", json.dumps(event))


class EventHandler(logging.Handler):
    """Calls ``tell(event)`` for each event that comes, in a thread of Degu's."""

    def __init__(self, tell: Callable[[Event], object]) -> None:
        super().__init__()
        self.tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        """Hand the event on."""
        self.tell(json.loads(record.getMessage()))


def listen_for_events(handler: logging.Handler) -> None:
    """Have `handler` get all events; before the servers start, as they ask then."""
    logger = logging.getLogger(LOGGER)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(handler)

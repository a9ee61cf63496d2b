"""Looking again and again, until time is up."""

from __future__ import annotations

import time
from collections.abc import Iterator

FIRST_PAUSE, LONGEST_PAUSE = 0.0005, 0.05
"""Seconds between two looks: short at first, for what is nearly done."""


def looks(seconds: float) -> Iterator[None]:
    """Have a look now, then ever more rarely, and a last one after `seconds`."""
    begin = time.monotonic()
    pause = FIRST_PAUSE
    while True:
        yield
        if time.monotonic() - begin >= seconds:
            return
        time.sleep(pause)
        pause = min(pause * 1.5, LONGEST_PAUSE)

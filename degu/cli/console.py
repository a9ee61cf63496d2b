"""What a command says besides its output: lines and a bar, on standard error."""

from __future__ import annotations

import contextlib
import sys
import time


def say(text: str) -> None:
    """Say a line, if anybody can hear it."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


class Progress:
    """A bar on standard error, if that is a terminal; begun at `done` of `total`."""

    WIDTH = 30

    def __init__(self, total: int | None, done: int = 0, *, quiet: bool) -> None:
        self.total = total
        self.start = self.done = done
        self.begun = time.monotonic()
        self.drawn = 0.0
        self.shown = not quiet and sys.stderr.isatty()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.shown:
            self.draw()
            say("")

    def add(self, size: int) -> None:
        """Count `size` bytes more."""
        self.done += size
        if self.shown and time.monotonic() - self.drawn > 0.1:
            self.draw()

    def draw(self) -> None:
        """Write the bar over the one before."""
        self.drawn = time.monotonic()
        with contextlib.suppress(OSError):
            sys.stderr.write(f"\r\033[K{self.format(self.drawn - self.begun)}")
            sys.stderr.flush()

    def format(self, seconds: float) -> str:
        """The bar as text, `seconds` after the beginning."""
        from degu.files import format_size

        rate = (self.done - self.start) / seconds if seconds > 0 else 0
        text = f"{format_size(self.done)}"
        if self.total:
            share = min(1.0, self.done / self.total)
            bar = ("=" * round(share * self.WIDTH)).ljust(self.WIDTH)
            text = f"{share:4.0%} [{bar}] {text} of {format_size(self.total)}"
        text += f", {format_size(int(rate))}/s"
        if self.total and rate and self.done < self.total:
            left = int((self.total - self.done) / rate)
            text += f", {left // 60}:{left % 60:02} left"
        return text

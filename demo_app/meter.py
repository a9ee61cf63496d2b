"""How fast something goes. No HTTP, no Qt."""

from __future__ import annotations

from collections import deque


class Meter:
    """The speed over the last seconds of a total that grows."""

    def __init__(self, seconds: float = 3.0) -> None:
        self.seconds = seconds
        self._points: deque[tuple[float, int]] = deque()

    def note(self, now: float, total: int) -> None:
        """At `now` (seconds of a monotonic clock) it was `total` bytes."""
        if self._points and total < self._points[-1][1]:
            self._points.clear()
        self._points.append((now, total))
        while len(self._points) > 2 and self._points[1][0] <= now - self.seconds:
            self._points.popleft()

    def clear(self) -> None:
        """Forget what was: it begins anew."""
        self._points.clear()

    @property
    def speed(self) -> float:
        """Bytes per second; 0 where nothing is known."""
        if len(self._points) < 2:
            return 0.0
        (start, first), (end, last) = self._points[0], self._points[-1]
        return (last - first) / (end - start) if end > start else 0.0


class History:
    """The last values of several totals as rates, for the plot.

    `add` is called at even steps; a total that falls (a server began anew) counts
    from there.
    """

    def __init__(self, names: tuple[str, ...], length: int, step: float) -> None:
        self.step = step
        self.length = length
        self.rates = {name: deque([0.0] * length, length) for name in names}
        self._totals: dict[str, int] = {}

    def add(self, **totals: int) -> None:
        """Add one step."""
        for name, total in totals.items():
            before = self._totals.get(name, total)
            grown = total - before if total >= before else total
            self.rates[name].append(grown / self.step)
            self._totals[name] = total

    @property
    def top(self) -> float:
        """The highest rate of all."""
        return max(max(rates) for rates in self.rates.values())


def format_rate(rate: float) -> str:
    """Bytes per second for people: ``12.4 MB/s``."""
    return f"{format_bytes(rate)}/s"


def format_bytes(size: float) -> str:
    """Bytes for people, in powers of 1000: ``1.5 MB``."""
    if size < 1000:
        return f"{size:.0f} B"
    for unit in ("kB", "MB", "GB", "TB"):
        size /= 1000
        if size < 999.95 or unit == "TB":
            break
    return f"{size:.1f} {unit}" if size < 99.95 else f"{size:.0f} {unit}"


def format_seconds(seconds: float) -> str:
    """A time to wait for people: ``45 s``, ``3 min``, ``2 h 5 min``."""
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"

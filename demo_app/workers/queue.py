"""The transfers: which run, which wait, which are tried again."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from PySide6.QtCore import QObject, QTimer, Signal

from demo_app.device import Device
from demo_app.download import Download
from demo_app.entry import Entry
from demo_app.remote import Remote, is_broken_line
from demo_app.transfers import BUSY, FINAL, Interrupted, State, Transfer
from demo_app.upload import Upload
from demo_app.workers.pool import Pool

MAX_RUNNING = 2
MAX_ATTEMPTS = 7
"""Breaks in a row after which the user is asked."""
RETRY_SECONDS = (0.2, 5.0)
"""First and longest pause before a new attempt; it doubles."""
TICK_SECONDS = 0.1


class Job(Protocol):
    """What a transfer has to do."""

    def run(self) -> None:
        """Do it, or what is left of it; blocks."""

    def close(self) -> None:
        """It will not be run again."""


class TransferQueue(QObject):
    """Runs transfers in threads, two at a time."""

    added = Signal(object)
    changed = Signal(object)
    """A `Transfer` has another state."""
    ticked = Signal()
    """Time to show how far they are; only while one runs."""
    removed = Signal(object)

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device
        self.transfers: list[Transfer] = []
        self._jobs: dict[Transfer, Job] = {}
        self._running: set[Transfer] = set()
        self._pool = Pool(MAX_RUNNING, self)
        self._timer = QTimer(self)
        self._timer.setInterval(int(TICK_SECONDS * 1000))
        self._timer.timeout.connect(self._tick)
        self._over = {"download": 0, "upload": 0}  # bytes of those off the list

    def download(self, remote: Remote, entries: list[Entry], folder: Path) -> Transfer:
        """Fetch `entries` into `folder`."""
        transfer = self._build("download", remote, [entry.name for entry in entries])
        return self._add(transfer, Download(transfer, remote, entries, folder))

    def upload(self, remote: Remote, paths: list[Path], uri: str) -> Transfer:
        """Send `paths` to the folder at `uri`."""
        transfer = self._build("upload", remote, [path.name for path in paths])
        return self._add(transfer, Upload(transfer, remote, paths, uri))

    def _build(self, kind: str, remote: Remote, names: list[str]) -> Transfer:
        title = names[0] if len(names) == 1 else f"{names[0]} + {len(names) - 1}"
        return Transfer(kind, title, remote.peer.name, remote.peer.fingerprint)

    def _add(self, transfer: Transfer, job: Job) -> Transfer:
        self.transfers.append(transfer)
        self._jobs[transfer] = job
        self.added.emit(transfer)
        self._run(transfer)
        return transfer

    def pause(self, transfer: Transfer) -> None:
        """Hold it, until `resume`."""
        if transfer.state in BUSY:
            self._wish(transfer, State.PAUSED)

    def resume(self, transfer: Transfer) -> None:
        """Go on with one that was paused or failed."""
        if transfer.state in (State.PAUSED, State.FAILED):
            transfer.wish = None
            transfer.attempts = 0
            self._run(transfer)

    def cancel(self, transfer: Transfer) -> None:
        """End it; one that is over is taken off the list."""
        if transfer.state in FINAL:
            self.transfers.remove(transfer)
            self._over[transfer.kind] += transfer.done
            self.removed.emit(transfer)
        else:
            self._wish(transfer, State.CANCELLED)

    def clear(self) -> None:
        """Take all that are over off the list."""
        for transfer in list(self.transfers):
            if transfer.state in FINAL:
                self.cancel(transfer)

    def stop(self) -> None:
        """End all."""
        for transfer in self.transfers:
            if transfer.state not in FINAL:
                self._wish(transfer, State.CANCELLED)

    @property
    def is_idle(self) -> bool:
        """Whether no thread is busy."""
        return not self._running

    def wait(self, seconds: float) -> bool:
        """Wait for the threads; False if that takes longer."""
        return self._pool.wait(seconds)

    def count(self) -> dict[str, int]:
        """Bytes that were moved so far, by kind."""
        totals = dict(self._over)
        for transfer in self.transfers:
            totals[transfer.kind] += transfer.done
        return totals

    def _wish(self, transfer: Transfer, wish: State) -> None:
        transfer.interrupt(wish)
        if transfer not in self._running:
            self._end(transfer, wish)

    def _run(self, transfer: Transfer) -> None:
        self._running.add(transfer)
        transfer.error = ""
        transfer.meter.clear()
        self._change(transfer, State.WAITING)
        job = self._jobs[transfer]

        def run() -> None:
            transfer.check()
            transfer.state = State.RUNNING
            job.run()

        self._pool.run(
            run,
            lambda _: self._end(transfer, State.DONE),
            lambda error: self._break(transfer, error),
        )
        self._timer.start()

    def _break(self, transfer: Transfer, error: Exception) -> None:
        self._running.discard(transfer)
        if transfer.wish is not None:
            self._end(transfer, transfer.wish)
            return
        assert not isinstance(error, Interrupted)
        transfer.error = str(error)
        if transfer.done > transfer.best:
            transfer.best = transfer.done
            transfer.attempts = 0
        if not is_broken_line(error) or transfer.attempts >= MAX_ATTEMPTS:
            self._end(transfer, State.FAILED)
            return
        first, longest = RETRY_SECONDS
        pause = min(first * 2**transfer.attempts, longest)
        transfer.attempts += 1
        self._change(transfer, State.RETRYING)
        QTimer.singleShot(int(pause * 1000), self, lambda: self._retry(transfer))

    def _retry(self, transfer: Transfer) -> None:
        if transfer.state is State.RETRYING:
            self._run(transfer)

    def _end(self, transfer: Transfer, state: State) -> None:
        self._running.discard(transfer)
        if state in FINAL:
            self._jobs.pop(transfer).close()
        self._change(transfer, state)

    def _change(self, transfer: Transfer, state: State) -> None:
        transfer.state = state
        self.changed.emit(transfer)

    def _tick(self) -> None:
        for transfer in self._running:
            transfer.measure()
        self.ticked.emit()
        if not self._running:
            self._timer.stop()

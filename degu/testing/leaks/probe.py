"""What the operating system says of a process: the one module that uses psutil."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from typing import Any, Protocol

__all__ = ["MARK", "Probe", "find_start", "import_psutil", "read_command", "system"]

MARK = "DEGU_LEAKS"
"""The environment variable by which a process is known after its parents ended."""


def import_psutil() -> Any:
    """The module; an ImportError that says where it is to be had."""
    try:
        return importlib.import_module("psutil")
    except ImportError as error:
        raise ImportError(
            "leak checks need psutil: install it with pip install 'degu[testing]'"
        ) from error


class Probe(Protocol):
    """The few questions that a snapshot asks the operating system."""

    def list_pids(self) -> frozenset[int]:
        """Every process of this machine."""

    def list_descriptors(self, pid: int) -> dict[int, str]:
        """Descriptor to what it is open on: a path, ``socket:[inode]``, ..."""

    def list_threads(self, pid: int) -> frozenset[int]:
        """The native thread ids."""

    def find_parent(self, pid: int) -> tuple[int, bool] | None:
        """(parent, whether `pid` is a zombie), or None where there is no `pid`."""

    def has_mark(self, pid: int, mark: str) -> bool:
        """Whether the environment that `pid` was started with carries `mark`."""


class ProcProbe:
    """Linux: straight from /proc, because a check surrounds every test."""

    def list_pids(self) -> frozenset[int]:
        return frozenset(int(name) for name in os.listdir("/proc") if name.isdigit())

    def list_descriptors(self, pid: int) -> dict[int, str]:
        folder = f"/proc/{pid}/fd"
        targets = {}
        for name in _list_folder(folder):
            with contextlib.suppress(OSError):
                targets[int(name)] = os.readlink(f"{folder}/{name}")
        return targets

    def list_threads(self, pid: int) -> frozenset[int]:
        return frozenset(map(int, _list_folder(f"/proc/{pid}/task")))

    def find_parent(self, pid: int) -> tuple[int, bool] | None:
        fields = _read_stat(pid)
        return (int(fields[1]), fields[0] in ("Z", "X")) if fields else None

    def has_mark(self, pid: int, mark: str) -> bool:
        try:
            with open(f"/proc/{pid}/environ", "rb") as fp:
                return mark.encode() in fp.read()
        except OSError:
            return False


class PsutilProbe:
    """Elsewhere: through psutil, which knows every system."""

    def list_pids(self) -> frozenset[int]:
        return frozenset(import_psutil().pids())

    def list_descriptors(self, pid: int) -> dict[int, str]:
        psutil = import_psutil()
        targets = {}
        with contextlib.suppress(psutil.Error, OSError):
            process = psutil.Process(pid)
            # Windows has no descriptor numbers: psutil gives -1 for each.
            for index, file in enumerate(process.open_files()):
                targets[file.fd if file.fd >= 0 else -2 - index] = file.path
            for index, found in enumerate(process.net_connections(kind="all")):
                number = found.fd if found.fd >= 0 else -100_000 - index
                ends = f"{found.family}/{found.type}/{found.laddr}/{found.raddr}"
                targets[number] = f"socket:[{ends}]"
        return targets

    def list_threads(self, pid: int) -> frozenset[int]:
        psutil = import_psutil()
        with contextlib.suppress(psutil.Error, OSError):
            return frozenset(thread.id for thread in psutil.Process(pid).threads())
        return frozenset()

    def find_parent(self, pid: int) -> tuple[int, bool] | None:
        psutil = import_psutil()
        try:
            process = psutil.Process(pid)
            return process.ppid(), process.status() == psutil.STATUS_ZOMBIE
        except psutil.Error:
            return None

    def has_mark(self, pid: int, mark: str) -> bool:
        psutil = import_psutil()
        try:
            return mark in psutil.Process(pid).environ().get(MARK, "")
        except (psutil.Error, OSError):
            return False


system: Probe = ProcProbe() if sys.platform == "linux" else PsutilProbe()
"""The probe that all others ask."""


def _list_folder(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _read_stat(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat after the name, or [] without that process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as fp:
            text = fp.read().decode("ascii", "replace")
    except OSError:
        return []
    # The name stands in parentheses and may itself contain spaces and parentheses.
    return text[text.rindex(")") + 2 :].split()


def find_start(pid: int) -> str | None:
    """A text that differs between two processes that had the same pid, or None."""
    if sys.platform == "linux":
        fields = _read_stat(pid)
        return fields[19] if fields else None
    return None


def read_command(pid: int) -> list[str]:
    """The words of its command line, [] of a process that is gone."""
    psutil = import_psutil()
    try:
        command: list[str] = psutil.Process(pid).cmdline()
    except (psutil.Error, OSError):
        return []
    return command

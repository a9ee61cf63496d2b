"""Files that are for this user alone, and whole or not there at all.

Directories have mode 0700 and files 0600; what others could have read or changed is
refused until its owner looked at it. A file is written beside its place, synced and
renamed, under a lock on its directory that ends with its holder.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from degu.errors import PeerFileError

__all__ = ["locked", "make_directory", "read_private", "sweep", "write_private"]

LOCK_TIMEOUT = 10.0
"""Seconds to wait for another process that changes the same directory."""

UNFINISHED = ".new"
"""How the name of a file ends that is being written."""


def make_directory(path: str | os.PathLike[str]) -> str:
    """Make a directory of mode 0700, or check that it is one; its absolute path.

    Raises `PeerFileError`.
    """
    directory = os.path.abspath(path)
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        status = os.stat(directory)
    except OSError as error:
        raise PeerFileError(f"{directory}: expected a directory: {error}") from error
    _check_private(directory, status, "0700")
    return directory


def sweep(directory: str) -> None:
    """Remove what a process left in `directory` that died while it wrote."""
    if _list_unfinished(directory):
        with locked(directory):
            for path in _list_unfinished(directory):
                os.unlink(path)


def _list_unfinished(directory: str) -> list[str]:
    names = os.listdir(directory)
    return [
        os.path.join(directory, name) for name in names if name.endswith(UNFINISHED)
    ]


@contextmanager
def locked(directory: str) -> Iterator[None]:
    """Keep other threads and processes from changing `directory`.

    The lock is on the directory itself, so it leaves no file. Raises `PeerFileError`
    where another one keeps it for `LOCK_TIMEOUT`.
    """
    try:
        import fcntl
    except ImportError:  # pragma: no cover - Windows
        yield
        return
    folder = os.open(directory, os.O_RDONLY)
    try:
        deadline = time.monotonic() + LOCK_TIMEOUT
        while True:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise PeerFileError(
                        f"{directory}: expected it to be free within {LOCK_TIMEOUT} s, "
                        "got no lock: another process holds it"
                    ) from None
                time.sleep(0.005)
        yield
    finally:
        # Closing alone would leave the lock to a process forked meanwhile.
        with suppress(OSError):
            fcntl.flock(folder, fcntl.LOCK_UN)
        os.close(folder)


def read_private(path: str) -> bytes:
    """Read a file of mode 0600.

    Raises `FileNotFoundError` where there is none, else `PeerFileError`.
    """
    try:
        with open(path, "rb") as file:
            # Of the open file, so that it can't be another one by now.
            _check_private(path, os.fstat(file.fileno()), "0600")
            return file.read()
    except (FileNotFoundError, PeerFileError):
        raise
    except OSError as error:
        raise PeerFileError(
            f"{path}: expected a file to read, got {error.strerror}"
        ) from error


def write_private(path: str, data: bytes, *, exclusive: bool = False) -> None:
    """Put a whole file of mode 0600 at `path`, or nothing; inside of `locked`.

    Raises `OSError`; `FileExistsError` if `exclusive` and there is one.
    """
    new = path + UNFINISHED
    # What a process left that died here; the lock says that it is not in use.
    with suppress(FileNotFoundError):
        os.unlink(new)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if exclusive:
            os.link(new, path)
        else:
            os.replace(new, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(new)
    _sync_directory(os.path.dirname(path))


def _sync_directory(directory: str) -> None:
    with suppress(OSError):  # Windows can't open one.
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _check_private(path: str, status: os.stat_result, mode: str) -> None:
    if os.name != "posix":
        return  # There the directory's ACL, inherited from the profile, protects it.
    if status.st_uid != os.geteuid():
        raise PeerFileError(
            f"{path}: expected a file of user {os.geteuid()}, "
            f"got one of user {status.st_uid}"
        )
    if status.st_mode & 0o077:
        raise PeerFileError(
            f"{path}: expected mode {mode}, as others must not use it, "
            f"got {stat.S_IMODE(status.st_mode):04o}: chmod {mode} it if nobody did"
        )

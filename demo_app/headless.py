"""The main job without a window: a folder goes through two servers and comes back.

A TLS server that asks for a client certificate serves the folder; a reverse proxy in
front of it speaks plain HTTP on loopback. Each runs in its own process. Every file is
downloaded through both, one is uploaded, every digest is compared, and at the end
nothing may be left: no process, no port, no file.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import sysconfig
import tempfile
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple, TextIO
from urllib.parse import quote

from degu import EmbeddedServer, EmbeddedSSLServer, IPv6_LOOPBACK
from degu.address import connect, format_url
from degu.base import Output
from degu.client import Client
from degu.limits import COPY_SIZE
from degu.testing import TempPKI
from demo_app.share import build_proxy_app, build_share_app

SHOWN_ROWS = 20
"""Lines of the table; where there are more files, the largest are shown."""

PROGRESS_SECONDS = 1.0
"""What takes longer gets progress, every so many seconds."""


class Row(NamedTuple):
    """What happened to one file."""

    name: str
    size: int
    seconds: float
    ok: bool


def main(folder: Path | None, out: TextIO = sys.stdout) -> int:
    """Run the job on `folder` (default: Python's own library); 0 if all was well."""
    pattern = "*" if folder else "*.py"
    folder = (folder or Path(sysconfig.get_path("stdlib"))).resolve()
    if not folder.is_dir():
        print(f"expected a folder, got {str(folder)!r}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="degu-demo-") as inbox, TempPKI() as pki:
        temporary = [Path(inbox), Path(pki.client_sslconfig["ca_file"])]
        share = EmbeddedSSLServer(
            pki.server_sslconfig, IPv6_LOOPBACK, build_share_app, str(folder), inbox
        )
        with share:
            proxy = EmbeddedServer(
                IPv6_LOOPBACK, build_proxy_app, pki.client_sslconfig, share.address
            )
            with proxy:
                print(f"serving  {folder}", file=out)
                url = format_url("https", share.address)
                print(f"at       {url}  (client certificate required)", file=out)
                print(f"proxy    {format_url('http', proxy.address)}", file=out)
                rows = list(transfer(Client(proxy.address), folder, pattern, inbox))
        print_table(rows, out)
        if not rows:
            print(f"expected a folder with files in it, got {str(folder)!r}", file=out)
        servers = [share, proxy]
    left = list(find_left(servers, temporary))
    for line in left or ["nothing left: no process, no port, no temporary file"]:
        print(line, file=out)
    return 0 if rows and all(row.ok for row in rows) and not left else 1


def transfer(client: Client, folder: Path, pattern: str, inbox: str) -> Iterator[Row]:
    """Download all files of `folder` through `client`, then upload the largest."""
    largest: tuple[int, str] = (-1, "")
    progress = Progress()
    with client.connect() as connection:
        for name in list_files(connection, pattern):
            row = download(connection, folder, name, progress)
            largest = max(largest, (row.size, name))
            yield row
        if largest[0] >= 0:
            yield upload(connection, folder / largest[1], Path(inbox), progress)
    progress.end()


def list_files(connection: Any, pattern: str, path: str = "") -> Iterator[str]:
    """The names of all files below `path`, as the server lists them."""
    uri = "/files/" + quote(path)
    response = connection.get(uri, {"accept": "application/json"})
    if response.status != 200:
        raise RuntimeError(f"GET {uri}: {response.status} {response.reason}")
    for entry in json.loads(response.body.read()):
        name = path + entry["name"]
        if entry["type"] == "folder":
            if entry["name"] not in ("__pycache__", "site-packages"):
                yield from list_files(connection, pattern, name + "/")
        elif Path(entry["name"]).match(pattern):
            yield name


def download(connection: Any, folder: Path, name: str, progress: Progress) -> Row:
    """Download one file and compare it with the one in `folder`."""
    started = monotonic()
    response = connection.get("/files/" + quote(name))
    digest = hashlib.sha256()
    size = 0
    for piece in response.body or ():
        digest.update(piece)
        size += len(piece)
        progress.show(f"{name}: {size / 1e6:.1f} MB")
    seconds = monotonic() - started
    ok = response.status == 200 and digest.digest() == sha256(folder / name)
    return Row(name, size, seconds, ok)


def upload(connection: Any, path: Path, inbox: Path, progress: Progress) -> Row:
    """Upload one file; the server checks the digest, and so do we in the inbox."""
    started = monotonic()
    digest = sha256(path)
    headers = {"repr-digest": f"sha-256=:{b64encode(digest).decode()}:"}
    uri = "/inbox/" + quote(path.name)
    body = Output(read_pieces(path, progress), path.stat().st_size)
    response = connection.put(uri, headers, body)
    seconds = monotonic() - started
    arrived = inbox / path.name
    ok = response.status == 201 and sha256(arrived) == digest
    return Row(f"{path.name} (upload)", arrived.stat().st_size, seconds, ok)


def read_pieces(path: Path, progress: Progress) -> Iterator[bytes]:
    """A file's content in pieces, with progress."""
    sent = 0
    with path.open("rb") as file:
        while piece := file.read(COPY_SIZE):
            yield piece
            sent += len(piece)
            progress.show(f"{path.name}: {sent / 1e6:.1f} MB up")


def sha256(path: Path) -> bytes:
    """The digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


class Progress:
    """A line about what is going on, for whoever waits longer than a second.

    It writes over itself, so that only a terminal gets it.
    """

    def __init__(self) -> None:
        self.shown = monotonic()
        self.started = self.shown
        self.any = False
        self.seen = sys.stderr.isatty()

    def show(self, text: str) -> None:
        """Show `text` if it is time."""
        now = monotonic()
        if self.seen and now - self.shown >= PROGRESS_SECONDS:
            self.shown = now
            self.any = True
            line = f"{now - self.started:4.0f} s  {text}"
            print(f"{line:<78}", end="\r", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Leave the line empty."""
        if self.any:
            print(" " * 78, end="\r", file=sys.stderr, flush=True)


def print_table(rows: list[Row], out: TextIO) -> None:
    """File, size, speed and digest; every failure is among what is shown."""
    shown = sorted(rows, key=lambda row: (row.ok, -row.size))
    failed = sum(not row.ok for row in rows)
    shown = shown[: max(SHOWN_ROWS, failed)]
    print(f"{'file':<48} {'size':>12} {'MB/s':>8}  digest", file=out)
    for row in shown:
        speed = row.size / max(row.seconds, 1e-9) / 1e6
        name = row.name if len(row.name) <= 48 else "…" + row.name[-47:]
        mark = "ok" if row.ok else "DIFFERS"
        print(f"{name:<48} {row.size:>12,} {speed:>8.1f}  {mark}", file=out)
    total = sum(row.size for row in rows)
    seconds = sum(row.seconds for row in rows)
    if len(rows) > len(shown):
        print(f"… and {len(rows) - len(shown)} smaller ones, all ok", file=out)
    print(
        f"{len(rows)} files, {total / 1e6:.1f} MB in {seconds:.2f} s, "
        f"{len(rows) - failed} digests ok, {failed} not",
        file=out,
    )


def find_left(servers: list[EmbeddedServer], paths: list[Path]) -> Iterator[str]:
    """What the servers left behind, a line each; that should be nothing."""
    for server in servers:
        pid, address = server.pid, server.address
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            pass
        else:
            yield f"LEFT: process {pid}"
        try:
            connect(address, 1.0).close()
        except ConnectionRefusedError:
            pass
        else:
            yield f"LEFT: port {address[1]}"
    for path in paths:
        if path.exists():
            yield f"LEFT: file {path}"

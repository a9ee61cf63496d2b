"""The two servers of Degu Drop: the share for peers, and the way in for the browser."""

from __future__ import annotations

import errno
import secrets
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from PySide6.QtCore import QObject, Signal, Slot

from degu.address import Address, format_url
from degu.embed import EmbeddedServer, EmbeddedSSLServer
from demo_app.browser import make_link
from demo_app.device import Device
from demo_app.events import Event
from demo_app.workers.addresses import list_addresses
from demo_app.workers.bridge import Bridge
from demo_app.workers.pool import Pool
from demo_app.workers.server import ServerControl, ServerState

ANYWHERE = "::"
ONLY_HERE = "::1"

PORT_SECONDS = 1.0
"""How long to wait for the port of a server that died."""


class ShareServer(EmbeddedSSLServer):
    """Started by 'spawn', which leaves nothing whatever becomes of this process.

    A program with threads may not fork, and multiprocessing's fork server, which
    would be the choice then, has a socket in a folder below the temporary one.
    """

    start_method = "spawn"


class BrowserServer(EmbeddedServer):
    """As `ShareServer`."""

    start_method = "spawn"


class Share(QObject):
    """Serves a folder to the peers of a device."""

    reported = Signal(object)
    """An event of kind ``tick``."""
    linked = Signal(str)
    """The URL to open in the browser."""

    def __init__(
        self, device: Device, folder: Path, port: int = 0, *, local: bool = False
    ) -> None:
        super().__init__()
        self.device = device
        self.folder = folder
        self.writable = True
        self.port = port
        self.local = local
        self.pool = Pool(4, self)
        self.bridge = Bridge(self)
        mine = device.identity.id
        self.server = ServerControl(
            f"share {mine}", self._start, self.pool, self.bridge
        )
        self.browser = ServerControl(
            f"browser {mine}", self._start_browser, self.pool, self.bridge
        )
        self._secret = secrets.token_hex(16)
        self._link_wanted = False
        self._addresses: list[Address] = []
        self.bridge.told.connect(self._hear)
        self.server.changed.connect(self._follow)
        self.browser.changed.connect(self._send_link)

    @property
    def addresses(self) -> list[Address]:
        """Where peers find it, the best one first; none while it does not serve."""
        return [] if self.server.is_off else self._addresses

    @property
    def urls(self) -> list[str]:
        """The same as text."""
        return [format_url("https", address) for address in self.addresses]

    @property
    def qr_text(self) -> str:
        """The first URL with the certificate's fingerprint, for the QR code."""
        urls = self.urls
        return f"{urls[0]}#{self.device.identity.id}" if urls else ""

    def change_folder(self, folder: Path) -> None:
        """Serve another folder."""
        self.folder = folder
        if not self.server.is_off:
            self.server.restart()

    def open_link(self) -> None:
        """Emit `linked` with a fresh link, as soon as the servers are there."""
        self._link_wanted = True
        self.server.start()
        self._follow()
        self._send_link()

    def stop(self) -> None:
        """Stop both servers."""
        self._link_wanted = False
        self.browser.stop()
        self.server.stop()

    @property
    def is_off(self) -> bool:
        """Whether neither server has a process."""
        return self.server.is_off and self.browser.is_off

    def _start(self, before: Any) -> EmbeddedServer:
        """Start the share where it was before, or where it was the last time."""
        if before:
            # Peers know the address; what is left of the last server may hold it yet.
            with suppress(OSError):
                return self._start_within(PORT_SECONDS, before)
        port = before[1] if before else self.port
        host = ONLY_HERE if self.local else ANYWHERE
        choice: list[Address] = [(host, port, 0, 0), (host, 0, 0, 0), ("0.0.0.0", 0)]
        for address in choice:
            try:
                server = self._start_at(address)
            except OSError as error:
                failure = error
                continue
            # Here, since asking the system for them may take its time.
            self._addresses = list_addresses(server.address[1], self.local)
            return server
        raise failure

    def _start_within(self, seconds: float, address: Address) -> EmbeddedServer:
        """Start the share at `address` as soon as that is free."""
        deadline = monotonic() + seconds
        while True:
            try:
                return self._start_at(address)
            except OSError as error:
                if error.errno != errno.EADDRINUSE or monotonic() > deadline:
                    raise
            sleep(0.02)

    def _start_at(self, address: Address) -> EmbeddedServer:
        return ShareServer(
            self.device.store.server_sslconfig(self.device.identity),
            address,
            "demo_app.share:build_drop_app",
            self.server.name,
            str(self.folder),
            self.device.store.directory,
            self.writable,
            restart="on-failure",
        )

    def _start_browser(self, before: Any) -> EmbeddedServer:
        port = self.server.address[1]
        if len(self.server.address) == 4:
            address: Address = (ONLY_HERE, port, 0, 0)
        else:
            address = ("127.0.0.1", port)
        return BrowserServer(
            before or ("127.0.0.1", 0),
            "demo_app.browser:build_browser_app",
            self.browser.name,
            str(Path(self.device.identity.path).parent),
            self.device.store.directory,
            address,
            self._secret,
            restart="on-failure",
        )

    @Slot()
    def _follow(self) -> None:
        """The browser's way in is open while the share is."""
        if self.server.state is ServerState.SERVING:
            self.port = self.server.address[1]
            self.browser.start()
        elif self.server.state is ServerState.STOPPING:
            self.browser.stop()

    @Slot()
    def _send_link(self) -> None:
        if self._link_wanted and self.browser.state is ServerState.SERVING:
            self._link_wanted = False
            self.linked.emit(make_link(self.browser.url, self._secret))

    @Slot(object)
    def _hear(self, event: Event) -> None:
        if event["kind"] == "tick" and event["server"] == self.server.name:
            self.reported.emit(event)

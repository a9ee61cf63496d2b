"""What the tests of Degu Drop share: devices, folders, applications off screen."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

# Before Qt is asked for a screen. The test under Xvfb sets its own in its processes.
os.environ["QT_QPA_PLATFORM"] = "offscreen"

from PySide6.QtWidgets import QApplication

from demo_app.application import Application
from demo_app.device import Device, open_device
from demo_app.windows.settings import Settings
from tests.conftest import TIMEOUT_FACTOR

WAIT_MS = int(20_000 * TIMEOUT_FACTOR)

Until = Callable[[Callable[[], object]], None]


@pytest.fixture
def until(qtbot) -> Until:
    """Let the event loop run until a condition is true."""

    def wait(condition: Callable[[], object]) -> None:
        qtbot.waitUntil(lambda: bool(condition()), timeout=WAIT_MS)

    return wait


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder to share: a file, an empty one, and one two folders below."""
    shared = tmp_path / "shared"
    (shared / "inner" / "most").mkdir(parents=True)
    (shared / "hello.txt").write_text("Hello!\n")
    (shared / "empty").touch()
    (shared / "inner" / "most" / "naïve name?.bin").write_bytes(bytes(range(256)) * 999)
    return shared


@pytest.fixture
def anna(tmp_path: Path) -> Device:
    """A device."""
    return open_device(tmp_path / "anna", "Anna")


@pytest.fixture
def ben(tmp_path: Path) -> Device:
    """Another device."""
    return open_device(tmp_path / "ben", "Ben")


@pytest.fixture(autouse=True)
def _server_log() -> Iterator[None]:
    """What an app does to the log of its process is undone in this one."""
    logger = logging.getLogger("degu.server")
    filters, level = list(logger.filters), logger.level
    yield
    logger.filters[:] = filters
    logger.setLevel(level)


def befriend(one: Device, other: Device, address: Any = None) -> None:
    """Have two devices trust each other, as if they had been paired."""
    addresses = () if address is None else (address,)
    one.store.add(other.identity.build_peer(other.name))
    other.store.add(one.identity.build_peer(one.name, addresses))


@pytest.fixture
def make_application(qapp: QApplication, tmp_path: Path, until: Until) -> Iterator:
    """Start `Application` with a name and a folder; they are ended afterwards."""
    made: list[Application] = []

    def make(name: str, folder: Path, *, start: bool = True) -> Application:
        data = tmp_path / f"data of {name}"
        settings = Settings(data)
        settings.name = name
        settings.downloads = tmp_path / f"downloads of {name}"
        settings.store.sync()
        application = Application(data, folder, local=True)
        made.append(application)
        if start:
            application.start()
        return application

    yield make
    for application in made:
        application.window.close()
    for application in made:
        until(partial(getattr, application, "is_over"))
        application.window.deleteLater()
        application.deleteLater()

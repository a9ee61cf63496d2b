"""The real thing: two windows on a screen, a folder, a killed server, a killed app."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import time
from pathlib import Path

import pytest

from tests.conftest import TIMEOUT_FACTOR, poll
from tests.demo_app.screen import Screen, Window, introduce, wait_gone

MIB = int(os.environ.get("DEGU_DEMO_MIB", "64"))
"""How much goes across; 1024 by hand."""

KILLS = int(os.environ.get("DEGU_DEMO_KILLS", "3"))
"""How often the app is killed; 50 by hand."""

FRAME_MS = 16.0
"""A frame at 60 Hz: longer than this the window must not be busy with itself."""


@pytest.fixture(scope="module")
def screen():
    """A screen, where there is a program for that; else none."""
    if shutil.which("Xvfb") is None:
        yield None
        return
    screen = Screen()
    yield screen
    screen.close()


def fill(folder: Path, mib: int) -> None:
    """A folder with files of many sizes, `mib` in all."""
    block = os.urandom(1 << 20)
    sizes = [mib // 2, mib // 4, mib // 8, mib // 8]
    for number, size in enumerate(sizes):
        path = folder / "box" / f"inner {number % 2}" / f"file {number}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for count in range(size):
                file.write(count.to_bytes(8) + block[8:])


def digest_all(folder: Path) -> dict[str, str]:
    digests = {}
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            digests[str(path.relative_to(folder))] = digest
    return digests


@pytest.mark.timeout(60 + MIB)
def test_a_folder_goes_across_and_survives_the_death_of_the_server(
    screen, tmp_path, record_property
):
    """Two users pair their windows; the transfer breaks, goes on, and is whole."""
    anna, ben = (Window(screen, tmp_path, name) for name in ("Anna", "Ben"))
    try:
        fill(anna.folder, MIB)
        for window in (anna, ben):
            window.wait_shown()
            window.until(lambda state: state["browser"] == "serving")
        introduce(anna, ben)
        poll(lambda: ben.do("names") == ["box"], 20, "Anna's folder on Ben's screen")
        pid = anna.state()["pid"]
        for window in (anna, ben):
            window.do("lateness")
        ben.do("download")
        ben.until(lambda s: s["transfers"][0][1] > MIB << 18, what="a quarter of it")
        anna.do("kill_server")
        began = time.monotonic()
        anna.until(lambda s: s["pid"] not in (None, pid) and s["server"] == "serving")
        record_property("healed", time.monotonic() - began)
        ben.until(lambda s: s["transfers"][0][0] == "done", 30 + MIB, "the end")
        assert ben.state()["transfers"][0][1:3] == [MIB << 20, MIB << 20]
        assert digest_all(ben.downloads) == digest_all(anna.folder)
        for window in (anna, ben):
            lateness = window.do("lateness")
            record_property(window.name, lateness)
            print(window.name, lateness)
            assert lateness["own"]["p99"] < FRAME_MS * TIMEOUT_FACTOR, lateness
    finally:
        codes = [window.end() for window in (anna, ben)]
    assert codes == [0, 0]
    wait_gone(str(tmp_path))


@pytest.mark.timeout(60 + 10 * KILLS)
def test_an_app_that_is_killed_leaves_nothing(tmp_path):
    """At any moment: no process, no port, no temporary file, no half of a download."""
    anna = Window(None, tmp_path, "Anna")
    try:
        fill(anna.folder, 32)
        anna.wait_shown()
        anna.until(lambda state: state["browser"] == "serving")
        whole = digest_all(anna.folder)
        for number in range(KILLS):
            kill_ben_somewhere(anna, tmp_path, whole, 3.0 * (number + 1) / KILLS)
    finally:
        anna.end()
    wait_gone(str(tmp_path))


def kill_ben_somewhere(anna: Window, base: Path, whole: dict, most: float) -> None:
    """Start Ben, let him pair and download, and kill him within `most` seconds."""
    ben = Window(None, base, "Ben")
    try:
        deadline = time.monotonic() + random.uniform(0, most)
        if most > 1.5:
            ben.wait_shown()
            if anna.state()["peers"] == []:
                introduce(anna, ben)
            names = poll(lambda: ben.do("names"), 20, "Anna's folder on Ben's screen")
            ben.do("download", row=names.index("box"))
            deadline = time.monotonic() + random.uniform(0, 0.3)
        while time.monotonic() < deadline:
            time.sleep(0.001)
    finally:
        ben.kill()
    for pipe in (ben.process.stdin, ben.process.stdout):
        assert pipe is not None
        pipe.close()
    wait_gone(str(ben.data))
    for name, digest in digest_all(ben.downloads).items():
        assert Path(name).name[0] != ".", name
        assert digest in whole.values(), name
    assert os.listdir(ben.temporary) == []
    shutil.rmtree(ben.downloads, ignore_errors=True)

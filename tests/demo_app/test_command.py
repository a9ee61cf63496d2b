"""``python -m demo_app``: the headless job, and what is said of wrong arguments."""

from __future__ import annotations

import ast
import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo_app import __main__, headless
from tests.conftest import poll
from tests.demo_app.screen import find_processes, wait_gone

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "demo_app"

QT = {"PySide6", "segno"}
HTTP = {
    "degu.apps",
    "degu.base",
    "degu.client",
    "degu.files",
    "degu.rgi",
    "degu.server",
}
STORES = {"device", "entry", "events", "meter", "partfile", "transfers"}


def test_the_main_job_moves_everything_and_leaves_nothing(folder):
    """Each file through both servers, one back, all digests right."""
    out = io.StringIO()
    assert headless.main(folder, out) == 0
    assert "4 digests ok, 0 not" in out.getvalue()
    assert "nothing left" in out.getvalue()


def test_the_command_runs_without_a_window(folder):
    """As `make demo` calls it where there is no display."""
    command = [sys.executable, "-m", "demo_app", "--headless", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "nothing left" in done.stdout


@pytest.mark.parametrize("options", [["--headless"], []], ids=["headless", "window"])
def test_a_folder_that_is_not_there_is_said(options, capsys):
    """On stderr, with a status of its own."""
    assert __main__.main([*options, "/no/such/folder"]) == 2
    assert "expected a folder" in capsys.readouterr().err


def test_a_shell_that_leaves_the_tilde_alone_is_helped(folder):
    """`make demo FOLDER=~/Pictures` hands it on as it stands; the control is a name."""
    command = [sys.executable, "-m", "demo_app", "--headless"]
    for name, status in (("~/inner", 0), ("inner~", 2)):
        done = subprocess.run(
            [*command, name],
            cwd=ROOT,
            env={**os.environ, "HOME": str(folder)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == status, done.stderr
        assert (str(folder / "inner") in done.stdout) is (status == 0)


def test_progress_is_for_a_terminal(folder, monkeypatch, capsys):
    """A pipe gets none, however long it takes; a terminal gets a line that moves."""
    monkeypatch.setattr(headless, "PROGRESS_SECONDS", 0)
    assert headless.main(folder, io.StringIO()) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert headless.main(folder, io.StringIO()) == 0
    assert "hello.txt" in capsys.readouterr().err


def test_an_empty_folder_is_said(tmp_path):
    """There is nothing that could go well, so the status is that of a failure."""
    out = io.StringIO()
    assert headless.main(tmp_path, out) == 1
    assert "expected a folder with files in it" in out.getvalue()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_window_and_all_of_it(tmp_path, folder, number):
    """Ctrl-C and the SIGTERM of a desktop's logout are as good as closing it."""
    data = str(tmp_path / "data of this run")
    marks = {"QT_QPA_PLATFORM": "offscreen", "TEST_MARK": data}
    process = subprocess.Popen(
        [sys.executable, "-m", "demo_app", "--local", "--data", data, str(folder)],
        cwd=ROOT,
        env={**os.environ, **marks},
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            poll(lambda: len(find_processes(data)) > 1, 30, "the servers' processes")
            process.send_signal(number)
            _, said = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 0, said
    assert "Traceback" not in said  # Qt may have a word about the screen
    wait_gone(data)


def find_imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def may_import(path: Path, name: str) -> bool:
    """Whether the layers of the demo allow it."""
    words = path.relative_to(PACKAGE).with_suffix("").parts
    top = ".".join(name.split(".")[:2])
    if words[0] == "application":
        return top not in HTTP
    if words[0] == "windows":
        return name.partition(".")[0] != "degu" or name.startswith("degu.pairing.MAX_")
    if words[0] == "workers":
        return not name.startswith("demo_app.windows")
    if name.partition(".")[0] in QT:
        return False
    if words[0] == "__main__":
        return True
    above = ("demo_app.windows", "demo_app.workers", "demo_app.application")
    return not name.startswith(above) and not (words[0] in STORES and top in HTTP)


def test_the_layers_of_the_demo_are_kept():
    """HTTP and stores without Qt, stores and windows without HTTP."""
    faults = [
        f"{path.name} imports {name}"
        for path in PACKAGE.rglob("*.py")
        for name in find_imports(path)
        if not may_import(path, name)
    ]
    assert faults == []
    assert not may_import(PACKAGE / "share.py", "PySide6.QtCore")
    assert not may_import(PACKAGE / "meter.py", "degu.client.Client")
    assert not may_import(PACKAGE / "windows" / "plot.py", "degu.client.Client")


def test_files_can_be_read_over_coffee():
    """None is longer than 260 lines, and most are far shorter."""
    lengths = {
        path: len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")
    }
    assert max(lengths.values()) <= 260
    assert sorted(lengths.values())[len(lengths) // 2] <= 200

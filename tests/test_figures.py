"""`doc/figures.py`: what it counts in made-up sources, and that it finds its own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "doc"))
figures = pytest.importorskip("figures", reason="the sources of the pages are not here")
sys.path.remove(str(ROOT / "doc"))

SOURCE = '''"""A module.

It has two lines of text.
"""

import os  # which is code, and has a comment

# Why it is so.
LIMIT = 3
"""Of something."""


def double(x):
    """Double it."""
    y = x + x

    return y


def promise():
    """Say nothing else."""
'''


def test_lines_are_of_code_or_of_comments():
    """Docstrings of attributes are comments, and blank lines are neither."""
    lines = figures.count_lines([SOURCE])
    assert lines.code == 6
    assert lines.comments == 4 + 1 + 1 + 1 + 2 - 1 + 1
    assert lines.total == SOURCE.count("\n")
    assert figures.count_lines([SOURCE, SOURCE]).code == 12


def test_a_function_is_as_long_as_its_body():
    """From the first to the last line, the docstring not counted."""
    assert figures.function_lengths([SOURCE]) == [3, 0]


def test_imports_are_what_an_import_runs():
    """Not those of functions or for type checkers; a package is not its modules."""
    sources = {
        "p": "def f():\n  import p.a",
        "p.a": "from p import b\nif TYPE_CHECKING:\n  import p.c\nelse:\n  import p.d",
        "p.b": "try:\n  from p.c import x\nexcept ImportError:\n  import p.d",
        "p.c": "import os",
        "p.d": "class D:\n  import p",
    }
    assert figures.module_imports(sources) == {
        "p": set(),
        "p.a": {"p.b", "p.d"},
        "p.b": {"p.c", "p.d"},
        "p.c": set(),
        "p.d": {"p"},
    }


def test_layers_and_cycles_are_counted():
    """A chain has a layer for each module, a cycle is found whole."""
    chain = {"a": {"b", "c"}, "b": {"c"}, "c": set()}
    assert figures.find_cycles(chain) == []
    assert figures.count_layers(chain) == 3
    circle = {"a": {"b"}, "b": {"c", "d"}, "c": {"a"}, "d": set(), "e": {"a"}}
    assert figures.find_cycles(circle) == [{"a", "b", "c"}]


def test_the_script_prints_both_tables():
    """No cycle, no function longer than a screen, three files a request."""
    done = subprocess.run(
        [sys.executable, ROOT / "doc" / "figures.py"],
        capture_output=True,
        encoding="utf-8",
        check=True,
        timeout=60,
    )
    shape, server, client = re.findall(
        r"\* - \*\*Degu.*((?:\n     - .*)+)", done.stdout
    )
    cells = [cell.strip(" -") for cell in shape.strip().splitlines()]
    assert cells[4] == "0"
    assert int(cells[5].split()[0]) <= 60
    for way in (server, client):
        calls, files, _ = (cell.strip(" -") for cell in way.strip().splitlines())
        assert 0 < int(calls) <= 25
        assert files == "3"

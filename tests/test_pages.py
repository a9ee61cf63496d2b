"""The pages that say what is accepted and bounded, held against the code."""

from __future__ import annotations

import json
import re
import statistics
from codeop import compile_command
from collections.abc import Iterator
from doctest import DocTestParser
from pathlib import Path
from typing import Any

import pytest

from degu import limits, wire
from degu.limits import (
    CLIENT_OPTIONS,
    EMBED_OPTIONS,
    SERVER_OPTIONS,
    SSL_CLIENT_OPTIONS,
)
from tests import corpus

DOC = Path(__file__).parent.parent / "doc"
CONFORMANCE = (DOC / "reference/conformance.rst").read_text(encoding="utf-8")
LIMITS = (DOC / "reference/limits.rst").read_text(encoding="utf-8")
PAGES = [DOC.parent / "README.rst", *sorted(DOC.rglob("*.rst"))]


def find_names(marker: str) -> set[str]:
    """The literals between two comments of the page."""
    text = CONFORMANCE.split(f".. {marker}-begin")[1].split(f".. {marker}-end")[0]
    return set(re.findall("``([^`]+)``", text))


def test_page_names_each_list_field_and_each_forbidden_trailer():
    """Both lists are those of the code, no more and no less."""
    assert find_names("list-fields") == wire.LIST_HEADERS
    assert find_names("trailers") == wire.FORBIDDEN_TRAILERS


def test_page_names_each_status_of_the_corpus():
    """No case is refused in a way that the tables do not show."""
    shown = set(map(int, re.findall(r"^     - ([0-9]{3})\b", CONFORMANCE, re.M)))
    shown.add(414)  # shares a row with 400
    assert shown - {408} == corpus.STATUSES


def test_page_names_each_constant_of_the_limits():
    """Each constant is on the page, which takes its value and reason from the code."""
    constants = {name for name in vars(limits) if re.fullmatch("[A-Z][A-Z_]+", name)}
    constants -= {name for name in constants if name.endswith("_OPTIONS")}
    assert set(re.findall(r"^\.\. autodata:: (\w+)$", LIMITS, re.M)) == constants
    assert len(constants) > 30


def find_rows(number: int = 1) -> dict[str, list[str]]:
    """A table of options: name to cells."""
    table = LIMITS.split(".. list-table::")[number].split("\n\n>>>")[0]
    rows = re.findall(r"   \* - ``(\w+)``\n((?:     -.*\n?)+)", table)
    return {name: re.findall(r"- ?(.*)", cells) for name, cells in rows}


def test_page_names_each_option_with_its_default():
    """The table has each option of servers and clients, and nobody else's."""
    rows = find_rows()
    known: dict[str, Any] = {**SSL_CLIENT_OPTIONS, **SERVER_OPTIONS}
    assert set(rows) == set(known)
    for name, (default, *_) in rows.items():
        assert default.split(",")[0] == str(known[name].default), name
    client = CLIENT_OPTIONS["timeout"].default
    assert rows["timeout"][0] == f"{limits.TIMEOUT}, client {client}"


def test_page_names_each_option_of_embedded_servers():
    """The second table, with what is accepted in the words of the errors."""
    options = {
        name: [str(option.default), option.expected]
        for name, option in EMBED_OPTIONS.items()
    }
    assert find_rows(2) == options


@pytest.mark.parametrize("name", sorted({**SSL_CLIENT_OPTIONS, **SERVER_OPTIONS}))
def test_page_says_who_takes_an_option(name: str):
    """The columns for servers and clients are those of the code."""
    _, server, client, _ = find_rows()[name]
    assert (server == "yes") == (name in SERVER_OPTIONS)
    assert (client == "yes") == (name in CLIENT_OPTIONS)
    assert (client != "") == (name in SSL_CLIENT_OPTIONS)


def find_stuck(text: str) -> Iterator[str]:
    """Examples that an interpreter's prompt does not take as they stand.

    At a prompt a blank line ends a block, within a class as well, and without one the
    next statement is an error. Where examples end, the reader presses Enter.
    """
    examples = DocTestParser().get_examples(text)
    starts = {example.lineno for example in examples}
    for example in examples:
        lines = example.source.splitlines()
        codes = [compile_command("\n".join(lines[: n + 1])) for n in range(len(lines))]
        if example.want or example.lineno + len(lines) not in starts:
            codes[-1] = codes[-1] or compile_command(example.source)
        if any(codes[:-1]) or not codes[-1]:
            yield example.source


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples_can_be_pasted(page: Path):
    """Line by line, into the prompt of any Python."""
    assert list(find_stuck(page.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "text",
    [
        ">>> class A:\n...     a = 1\n...\n...     b = 2\n",
        ">>> def f():\n...     return 1\n>>> f()\n1\n",
    ],
)
def test_examples_that_stick_are_found(text: str):
    """A blank line inside of a class, and none between a function and its call."""
    assert list(find_stuck(text))
    assert not list(find_stuck(">>> def f():\n...     return 1\n...\n>>> f()\n1\n"))


def test_the_readme_gives_the_figures_of_the_last_measurement():
    """Each ratio, but for what two runs on a busy machine may differ."""
    results = json.loads((DOC.parent / "bench/results/results.json").read_text())
    rows = [
        (
            row["name"].removesuffix(" wsgi"),
            statistics.median(row["samples"]) / row["base"],
        )
        for table in results["tables"]
        if table["key"] in ("servers", "clients")
        for row in table["rows"]
    ]
    readme = PAGES[0].read_text(encoding="utf-8")
    told = re.findall(r"(\S+)(?: takes)?\s([\d.]+)\s+times", readme)
    assert len(told) == readme.count("times") == 6
    for name, ratio in told:
        assert float(ratio) == pytest.approx(dict(rows)[name], rel=0.25), name

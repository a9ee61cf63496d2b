"""The pages about testing: every example runs, and is in its page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

DOC = Path(__file__).parents[2] / "doc"
EXAMPLES = DOC / "examples"
PAGES = {
    "coming-from-pytest-httpserver": "coming_from_pytest_httpserver",
    "coverage-of-the-server": "coverage_of_the_server",
    "doctests-and-unittest": "doctests_and_unittest",
    "find-a-leak": "find_a_leak",
    "mutual-tls": "mutual_tls",
    "share-a-server-between-workers": "share_a_server",
    "simulate-failures": "simulate_failures",
    "test-my-app": "test_my_app",
    "test-my-client": "test_my_client",
}
APART = ("share_a_server", "coverage_of_the_server")


def run(inner, *args):
    process = inner.spawn("-q", "-W", "error", f"--rootdir={EXAMPLES}", *map(str, args))
    code = process.wait(120)
    output = inner.read_output()
    assert code == 0, output
    inner.wait_until_clean()
    return output


def test_the_examples_pass(inner):
    """Those that need no options, in one run, their doctests too."""
    names = [name for name in PAGES.values() if name not in APART]
    paths = [EXAMPLES / f"test_howto_{name}.py" for name in names]
    output = run(inner, "-c", "/dev/null", "--doctest-modules", *paths)
    assert "passed" in output


def test_the_unittest_example_needs_no_pytest(inner):
    """It runs by itself."""
    inner.args.clear()
    path = EXAMPLES / "test_howto_doctests_and_unittest.py"
    process = inner.spawn(python=(str(path),))
    assert process.wait(60) == 0, inner.read_output()
    assert "Ran 2 tests" in inner.read_output()


def test_a_server_is_shared_as_the_page_says(inner):
    """With two workers and the ini file of the page."""
    output = run(inner, "-n", "2", "-c", EXAMPLES / "share_a_server.ini", EXAMPLES)
    assert "4 passed" in output


@pytest.mark.parametrize("workers", [[], ["-n", "2"]])
def test_the_coverage_of_the_server_is_measured(inner, workers):
    """All of the app, by what the page says to set up."""
    pytest.importorskip("pytest_cov")
    output = run(
        inner,
        *("-p", "pytest_cov", "--cov=howto_coverage_app", "--cov-report=term-missing"),
        f"--cov-config={EXAMPLES / 'coverage_of_the_server.coveragerc'}",
        *("-c", EXAMPLES / "coverage_of_the_server.ini", EXAMPLES, *workers),
    )
    assert re.search(r"howto_coverage_app\S*\s+4\s+0\s+2\s+0\s+100%", output), output


def test_without_the_setting_the_server_is_not_covered(inner):
    """What the page is there for."""
    pytest.importorskip("pytest_cov")
    output = run(
        inner,
        *("-p", "pytest_cov", "--cov=howto_coverage_app", "--cov-branch"),
        "--cov-config=/dev/null",
        *("-c", EXAMPLES / "coverage_of_the_server.ini", EXAMPLES),
    )
    assert "howto_coverage_app" in output
    assert not re.search("howto_coverage_app.*100%", output)


@pytest.mark.parametrize(("page", "example"), PAGES.items())
def test_every_part_of_an_example_is_in_its_page(page, example):
    """And what a page includes is there."""
    text = (DOC / "howto" / f"{page}.rst").read_text()
    source = (EXAMPLES / f"test_howto_{example}.py").read_text()
    assert f"test_howto_{example}.py" in text
    marks = re.findall(r"# \[(\w+)\]", source)
    assert re.findall(r":start-after: # \[(\w+)\]", text) == marks
    assert all(f"# [/{mark}]" in source for mark in marks)
    assert len(text.splitlines()) <= 120

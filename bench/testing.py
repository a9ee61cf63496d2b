"""What a server for each test costs: Degu's fixtures beside the peers'.

    python -m bench.testing            # or: python bench/testing.py 50

Each suite has so many tests (default 200), and each of these starts a server, makes
one request, and stops the server. The time is that of the whole run of pytest, less
that of a run with empty tests. Peers that are not installed are left out
(pytest-httpserver, pytest-localserver).
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]

HEAD = """
import http.client
import pytest
from urllib.parse import urlsplit

def fetch(url):
    connection = http.client.HTTPConnection(urlsplit(url).netloc)
    connection.request("GET", "/")
    body = connection.getresponse().read()
    connection.close()
    return body

def app(request):
    return 200, "OK", {}, b"hello"

@pytest.fixture
def fresh_httpserver():
    from pytest_httpserver import HTTPServer
    with HTTPServer() as server:
        yield server

number = pytest.mark.parametrize("number", range(COUNT))
"""

EMPTY = """
@number
def test_it(number):
    pass
"""

DEGU = """
@number
def test_it(temp_server, number):
    assert fetch(temp_server(app).url) == b"hello"
"""

DEGU_CHECKED = DEGU.replace("@number", "@number\n@pytest.mark.degu_leaks")

DEGU_TLS = """
@number
def test_it(temp_ssl_server, number):
    client = temp_ssl_server(app).client()
    assert client.get("/").body.read() == b"hello"
    client.close()
"""

HTTPSERVER = """
@number
def test_it(fresh_httpserver, number):
    fresh_httpserver.expect_request("/").respond_with_data("hello")
    assert fetch(fresh_httpserver.url_for("/")) == b"hello"
"""

LOCALSERVER = """
@number
def test_it(httpserver, number):
    httpserver.serve_content("hello")
    assert fetch(httpserver.url) == b"hello"
"""

DEGU_PLUGIN = ("degu.testing.plugin",)

SUITES = (
    ("Degu", DEGU, DEGU_PLUGIN, 1),
    ("Degu, with a leak check", DEGU_CHECKED, DEGU_PLUGIN, 1),
    ("Degu, TLS with client certificates", DEGU_TLS, DEGU_PLUGIN, 1),
    ("pytest-httpserver", HTTPSERVER, ("pytest_httpserver.pytest_plugin",), 1),
    # Half a second for each is too long to wait for 200 of them.
    ("pytest-localserver", LOCALSERVER, ("pytest_localserver.plugin",), 10),
)


def measure(source: str, plugins: tuple[str, ...], count: int) -> float:
    """Seconds that a run takes."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    with tempfile.TemporaryDirectory(prefix="degu-bench-") as folder:
        path = Path(folder) / "test_it.py"
        path.write_text(f"COUNT = {count}\n{HEAD}{source}", encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        for plugin in plugins:
            command += ["-p", plugin]
        begin = time.perf_counter()
        subprocess.run(
            [*command, folder], env=env, cwd=folder, check=True, capture_output=True
        )
        return time.perf_counter() - begin


def is_installed(plugins: tuple[str, ...]) -> bool:
    """Whether the plugins of a suite are here."""
    tops = [plugin.partition(".")[0] for plugin in plugins]
    return all(top == "degu" or importlib.util.find_spec(top) for top in tops)


def main(args: list[str]) -> None:
    """Measure and print a table."""
    count = int(args[0]) if args else 200
    print(f"{'a server a test':36} {'ms a test':>9} {f'{count} tests':>10}")
    for name, source, plugins, divisor in SUITES:
        if not is_installed(plugins):
            continue
        number = max(1, count // divisor)
        seconds = measure(source, plugins, number) - measure(EMPTY, plugins, number)
        each = seconds / number
        print(f"{name:36} {each * 1000:9.1f} {each * count:8.2f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

"""What httpx's tests find in place of their own conftest: Degu's server.

Only the tests that ask for the fixture ``server`` are run. The answers are those that
the tests expect at each path.
"""

from __future__ import annotations

import json
import os
import time
import types

import httpx
import pytest

TEXT = {"content-type": "text/plain"}
JSON = {"content-type": "application/json"}
BINARY = {"content-type": "application/octet-stream"}
TRANSCRIPT = "compares a transcript with uvicorn's own header lines in it"
KNOWN_FAILURES = {
    "test_main.py::test_get": TRANSCRIPT,
    "test_main.py::test_json": TRANSCRIPT,
    "test_main.py::test_binary": TRANSCRIPT,
    "test_main.py::test_redirects": TRANSCRIPT,
    "test_main.py::test_follow_redirects": TRANSCRIPT,
    "test_main.py::test_post": TRANSCRIPT,
    "test_main.py::test_verbose": TRANSCRIPT,
    "test_main.py::test_auth": TRANSCRIPT,
    "test_main.py::test_download": "of a deprecation in click, with any server",
    "test_utils.py::test_logging_request": "expects the port 8000",
    "test_utils.py::test_logging_redirect_chain": "expects the port 8000",
    "test_client.py::test_build_post_request": (
        "expects the app to see content-length: 0, which is no body to Degu"
    ),
    "test_timeouts.py::test_write_timeout[trio]": (
        "leaves a generator to the garbage collector, which the leak check calls"
    ),
}
"""The tests that fail with Degu's server, and why."""

PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


def answer(request):
    """Answer by the first component of the path."""
    path = request["path"]
    kind = path[0] if path else ""
    if kind.startswith("status"):
        return int(path[1]), "-", TEXT, give_text(int(path[1]))
    if kind.startswith("echo_body"):
        return 200, "OK", TEXT, request["body"]
    if kind.startswith("echo_binary"):
        return 200, "OK", BINARY, request["body"]
    if kind.startswith("echo_headers"):
        headers = {k.capitalize(): str(v) for k, v in request["headers"].items()}
        return 200, "OK", JSON, json.dumps(headers).encode()
    if kind.startswith("redirect_301"):
        return 301, "Moved Permanently", {"location": "/"}, None
    if kind.startswith("json"):
        return 200, "OK", JSON, b'{"Hello": "world!"}'
    if kind.startswith("slow_response"):
        time.sleep(1.0)
    return 200, "OK", TEXT, b"Hello, world!"


def give_text(status):
    return None if status in (204, 304) else b"Hello, world!"


def app(request):
    """Answer HEAD like GET, but for the body."""
    status, reason, headers, body = answer(request)
    if request["method"] == "HEAD" and isinstance(body, bytes):
        return status, reason, {**headers, "content-length": len(body)}, None
    return status, reason, headers, body


@pytest.fixture(scope="session")
def server(session_temp_server):
    """What the tests know of their server: its URL, and its host and port."""
    temp = session_temp_server(app)
    host, port = temp.address
    config = types.SimpleNamespace(host=host, port=port)
    return types.SimpleNamespace(url=httpx.URL(temp.url), config=config)


@pytest.fixture(scope="session")
def cert_pem_file(temp_pki):
    """Any authority's certificate."""
    return temp_pki.client_sslconfig["ca_file"]


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    """Keep the proxies of this machine out of it."""
    for name in list(os.environ):
        if name.lower() in PROXY_VARIABLES:
            monkeypatch.delenv(name)


def pytest_collection_modifyitems(config, items):
    """Leave out what needs no server, and mark what is known to fail."""
    others = [one for one in items if "server" not in one.fixturenames]
    items[:] = [one for one in items if "server" in one.fixturenames]
    config.hook.pytest_deselected(items=others)
    for item in items:
        for name, reason in KNOWN_FAILURES.items():
            if item.nodeid.endswith(f"/{name}"):
                item.add_marker(pytest.mark.xfail(reason=reason))

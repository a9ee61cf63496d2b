"""`degu.testing.plugin`: each fixture, marker and option, in runs of pytest inside."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[2]

APP = """
import os, socket, threading, time, unittest
import pytest

def app(request):
    if request["uri"] == "/raise":
        raise ValueError("no such luck")
    if request["uri"] == "/exit":
        os._exit(3)
    if request["uri"] == "/leak":
        app.kept = socket.socket()
    return 200, "OK", {}, b"hello"

def get(server, uri="/"):
    client = server.client()
    try:
        body = client.get(uri).body
        return b"" if body is None else body.read()
    finally:
        client.close()
"""


@pytest.fixture
def write(inner):
    """Write a test module that begins with an app and a way to ask it."""
    return lambda source, **files: inner.write(APP + source, **files)


# --- The fixtures -------------------------------------------------------------------


def test_every_fixture_does_its_job(inner, write):
    """Servers, TLS, proxies, services, faults and expectations, in one run."""
    write("""
import socketserver
from degu.testing import assert_rejected

def build(text):
    return lambda request: (200, "OK", {}, text)

def build_service():
    return socketserver.TCPServer(("127.0.0.1", 0), socketserver.StreamRequestHandler)

def test_server(temp_server):
    assert get(temp_server(app)) == b"hello"
    assert get(temp_server(build, b"built")) == b"built"

def test_ssl(temp_ssl_server, temp_pki):
    server = temp_ssl_server(app)
    assert get(server) == b"hello"
    assert_rejected(server.client(temp_pki.anonymous_client_sslconfig))
    assert "/pytest-of-" in temp_pki.path

def test_proxy(temp_server, temp_proxy):
    assert get(temp_proxy(temp_server(app), prefix="/x")) == b"hello"

def test_service(temp_service):
    assert temp_service(build_service).address[1]

def test_fault(temp_server):
    server = temp_server.faulty("reset", after=100)
    with socket.create_connection(server.address) as sock:
        sock.sendall(b"GET / HTTP/1.1\\r\\n\\r\\n")
        with pytest.raises(ConnectionResetError):
            while sock.recv(1000):
                pass

def test_expectation(temp_server):
    server = temp_server()
    server.expect("GET", "/x").answer(200, "here")
    assert get(server, "/x") == b"here"
    server.assert_all_met()

pids = []

@pytest.mark.parametrize("number", [1, 2])
def test_session(session_temp_server, session_temp_ssl_server, number):
    if number == 1:
        session_temp_ssl_server(app)
        session_temp_server(app)
    server = session_temp_server.servers[0]
    assert get(server) == b"hello"
    assert get(session_temp_ssl_server.servers[0]) == b"hello"
    pids.append(server.pid)
    assert set(pids) == {server.pid}
""")
    result = inner.run("-W", "error", "-q")
    result.assert_outcomes(passed=8)
    inner.wait_until_clean()


def test_small_fixtures_are_there_to_be_overridden(inner, write):
    """Where servers listen and what options they get, for a whole suite."""
    write("""
def test_it(temp_server, temp_pki):
    server = temp_server(app)
    assert server.address[0] == "::1"
    assert server.options == {"timeout": 7.0}
    assert temp_server.grace == 0.25
    assert get(server) == b"hello"
    assert temp_pki == "mine"
""")
    inner.pytester.makeconftest("""
import pytest

@pytest.fixture(scope="session")
def degu_address():
    return ("::1", 0, 0, 0)

@pytest.fixture(scope="session")
def degu_options():
    return {"timeout": 7.0}

@pytest.fixture(scope="session")
def temp_pki():
    return "mine"
""")
    inner.pytester.makeini("[pytest]\ndegu_grace = 0.25\n")
    inner.run("-q").assert_outcomes(passed=1)


def test_a_bad_number_in_the_ini_file_is_told(inner, write):
    """As an error of usage, with the name of the option."""
    write("def test_it(temp_server):\n    pass")
    inner.pytester.makeini("[pytest]\ndegu_grace = soon\n")
    result = inner.run("-q")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*degu_grace: expected seconds, got 'soon'*"])


def test_it_works_in_unittest_and_doctest(inner):
    """In a TestCase by ``with``, in a doctest by getfixture."""
    inner.write(
        '''
import unittest
from degu.testing import TempServer

def app(request):
    """Answer.

    >>> server = getfixture("temp_server")(app)
    >>> client = server.client()
    >>> client.get("/").body.read()
    b'hello'
    >>> client.close()
    """
    return 200, "OK", {}, b"hello"

class Tests(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = cls.enterClassContext(TempServer(("127.0.0.1", 0), None, app))

    def test_it(self):
        client = self.server.client()
        self.addCleanup(client.close)
        self.assertEqual(client.get("/").body.read(), b"hello")
'''
    )
    inner.run("-q", "--doctest-modules", "--degu-leaks").assert_outcomes(passed=2)
    inner.wait_until_clean()


def test_a_server_that_died_fails_its_test(inner, write):
    """Even where the test itself saw nothing wrong."""
    write("""
def test_it(temp_server):
    server = temp_server(app)
    with pytest.raises(ConnectionError):
        get(server, "/exit")
""")
    result = inner.run("-q")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(
        ["*DiedError*ended before it was told to: exit code 3", "*GET /exit from*"]
    )


# --- Reports ------------------------------------------------------------------------


def test_a_failed_test_shows_what_its_servers_did(inner, write):
    """Traceback, requests, sockets and state; not those of other tests."""
    write("""
@pytest.fixture(scope="session")
def quiet(session_temp_server):
    return session_temp_server(app)

def test_good(temp_server, quiet):
    get(temp_server(app), "/good")
    get(quiet, "/quiet")

def test_bad(temp_server, quiet, request):
    server = temp_server(app)
    connection = server.client().connect()
    request.addfinalizer(connection.close)
    connection.get("/idle").body.read()
    assert get(server, "/raise") == b"hello"
""")
    result = inner.run("-q", "-rA")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            "*Captured log call*",
            "*degu.server*the app failed",
            "ValueError: no such luck",
            "*degu: <TempServer*",
            "process * runs",
            "open sockets:",
            "  ipv4 tcp socket * (established)",
            "requests:",
            "  GET /idle from 127.0.0.1:* -> 200",
            "  GET /raise from 127.0.0.1:* -> ValueError: no such luck",
        ]
    )
    output = result.stdout.str()
    assert output.count("degu: <TempServer") == 1
    assert "/good" not in output
    assert "/quiet" not in output


def test_a_failed_setup_shows_its_servers_too(inner, write):
    """And a server that does not start shows the traceback from its process."""
    write("""
def build(number):
    return 1 / number

@pytest.fixture
def server(temp_server):
    server = temp_server(app)
    get(server, "/seen")
    assert 0

def test_setup(server):
    pass

def test_start(temp_server):
    temp_server(build, 0)
""")
    result = inner.run("-q")
    result.assert_outcomes(errors=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            "*degu: <TempServer*",
            "  GET /seen from * -> 200",
            "*in build*",
            "*return 1 / number*",
            "*ZeroDivisionError: division by zero",
        ]
    )


# --- Leaks --------------------------------------------------------------------------

LEAKY = """
kept = []

@pytest.fixture(scope="session", autouse=True)
def close_at_last():
    yield
    for one in kept:
        getattr(one, "close", getattr(one, "set", None))()

def leave():
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    kept.append(sock)
"""


def test_leaks_fail_the_tests_that_ask_for_the_check(inner, write):
    """By fixture or by marker; wherever the fixture stands among the others."""
    write(
        LEAKY
        + """
def test_unchecked():
    leave()

def test_fixture(temp_server, leak_check):
    get(temp_server(app))
    leave()

@pytest.mark.degu_leaks
def test_marker(temp_server):
    leave()

@pytest.mark.degu_leaks(allow=["ipv4 tcp socket*"], grace=0.1)
def test_allowed():
    leave()

@pytest.mark.degu_leaks(exclude=["sockets"])
def test_excluded():
    leave()

@pytest.mark.degu_leaks
class Test:
    def test_clean(self, temp_ssl_server, temp_server):
        get(temp_server(app))
        get(temp_ssl_server(app))

    @pytest.mark.degu_leaks(False)
    def test_off(self):
        leave()

def test_part(leak_check):
    with pytest.raises(AssertionError), leak_check(grace=0.1):
        leave()
    kept.pop().close()
"""
    )
    inner.pytester.makeini("[pytest]\ndegu_leaks_grace = 0.3\n")
    result = inner.run("-q", "-W", "error", "--strict-markers")
    result.assert_outcomes(passed=8, errors=2)
    result.stdout.fnmatch_lines(
        [
            "*ERROR at teardown of test_fixture*",
            "UnclosedSocketError: 1 socket left open:",
            "  ipv4 tcp socket*",
            "*created at *test_it.py:* in leave, called from*in test_fixture*",
            "*ERROR at teardown of test_marker*",
        ]
    )
    assert "def check_leaks" not in result.stdout.str()


@pytest.mark.parametrize("how", ["option", "ini"])
def test_leaks_can_be_checked_in_a_whole_suite(inner, write, how):
    """With what may stay; what lives for longer than a test is none of its leaks."""
    write(
        LEAKY
        + """
@pytest.fixture(scope="module")
def wide(session_temp_server):
    leave()
    return session_temp_server(app)

def test_wide(wide):
    get(wide)

def test_bad(wide):
    leave()

def test_allowed(tmp_path):
    open("allowed.txt", "w").close()
    kept.append(open("allowed.txt"))

def test_excluded():
    event = threading.Event()
    thread = threading.Thread(target=event.wait, daemon=True)
    thread.start()
    kept.append(event)

def test_in_the_server(wide):
    get(wide, "/leak")

class Tests(unittest.TestCase):
    def test_unittest(self):
        leave()
"""
    )
    switch = "degu_leaks = true" if how == "ini" else ""
    inner.pytester.makeini(f"""[pytest]
{switch}
degu_leaks_exclude = threads
degu_leaks_allow =
    */allowed.txt*
degu_leaks_grace = 0.3
""")
    result = inner.run("-q", *(["--degu-leaks"] if how == "option" else []))
    result.assert_outcomes(passed=6, errors=3)
    result.stdout.fnmatch_lines(
        [
            "*ERROR at teardown of test_bad*",
            "*ERROR at teardown of test_in_the_server*",
            "UnclosedSocketError*",
            "*[[]process *",
            "*ERROR at teardown of Tests.test_unittest*",
        ]
    )


def test_without_the_option_nothing_is_checked(inner, write):
    """A leaking suite passes as it always did."""
    write(LEAKY + "def test_it():\n    leave()\n")
    inner.run("-q").assert_outcomes(passed=1)


# --- Shared servers, and nothing for nothing ----------------------------------------

SHARED = """
import os
import pytest

@pytest.mark.parametrize("number", range(6))
def test_it(shared_temp_server, number):
    server = shared_temp_server("api")
    client = server.client()
    pid = client.get(f"/{number}").body.read().decode()
    client.close()
    server.assert_requested("GET", f"/{number}", times=1)
    with open("pids", "a") as file:
        file.write(f"{pid} {os.environ.get('PYTEST_XDIST_WORKER', 'main')}\\n")

def test_unknown(shared_temp_server):
    with pytest.raises(LookupError, match="no shared server 'web'"):
        shared_temp_server("web")
"""

SHARED_APP = """
import os

def app(request):
    return 200, "OK", {}, str(os.getpid()).encode()

def build():
    return app
"""


@pytest.mark.parametrize("args", [[], ["-n", "2", "--dist", "loadscope"]])
def test_a_server_is_shared_by_all_workers(inner, args):
    """It is one process, whoever asks; and it ends with the run."""
    # One group each, so that both workers get some of it.
    inner.write(SHARED, shared_app=SHARED_APP)
    if args:
        (inner.path / "test_more.py").write_text(SHARED.replace("range(6)", "[7]"))
    inner.pytester.makeini(
        "[pytest]\npythonpath = .\ndegu_shared_servers =\n  api = shared_app:build()\n"
    )
    process = inner.spawn("-q", *args)
    assert process.wait(60) == 0, inner.read_output()
    lines = (inner.path / "pids").read_text().split("\n")[:-1]
    assert len(lines) == (7 if args else 6)
    assert len({line.split()[0] for line in lines}) == 1
    workers = {line.split()[1] for line in lines}
    assert workers == ({"gw0", "gw1"} if args else {"main"})
    inner.wait_until_clean()


def test_a_bad_plan_of_shared_servers_is_told(inner):
    """As an error of usage."""
    inner.write(SHARED)
    inner.pytester.makeini("[pytest]\ndegu_shared_servers = api\n")
    result = inner.run("-q", "-x")
    result.stdout.fnmatch_lines(["*degu_shared_servers: expected 'name = module*"])


def test_a_run_that_does_not_use_it_pays_nothing(inner):
    """Of degu only the plugin itself is imported, and nothing like psutil."""
    inner.write("""
import sys

def test_it():
    loaded = {name for name in sys.modules if name.split(".")[0] == "degu"}
    assert loaded <= {"degu", "degu.testing", "degu.testing.plugin"}
    assert not {"psutil", "trustme", "multiprocessing"} & set(sys.modules)
""")
    process = inner.spawn("-q")
    assert process.wait(60) == 0, inner.read_output()


def test_importing_the_plugin_imports_pytest_alone():
    """Beside the package itself, which imports nothing."""
    code = (
        "import pytest, sys; before = set(sys.modules); import degu.testing.plugin;"
        "print(*sorted(set(sys.modules) - before))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert result.stdout.split() == ["degu", "degu.testing", "degu.testing.plugin"]


def test_every_option_begins_with_its_name(inner):
    """Options, ini options, markers and overridable fixtures are told apart easily."""
    inner.write("")
    text = inner.run("--help").stdout.str()
    section = text.split("servers for tests:")[1].split("\n\n")[0]
    assert "--degu-leaks" in section
    assert all(word.startswith("--degu-") for word in section.split() if "--" in word)
    for name in ("degu_leaks", "degu_leaks_allow", "degu_grace", "degu_shared_servers"):
        assert name in text
    markers = inner.run("--markers").stdout.str()
    assert "@pytest.mark.degu_leaks(enabled=True" in markers

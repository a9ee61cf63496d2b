"""However a run of pytest ends, nothing of it is left; checked from outside."""

from __future__ import annotations

import json
import os
import signal
import sys
import time

import psutil
import pytest

from tests.conftest import TIMEOUT_FACTOR, wait_asleep

pytest_plugins = ["pytester"]

pytestmark = pytest.mark.skipif(os.name != "posix", reason="ends runs by signals")

SUITE = """
import json, os, signal, subprocess, sys, time
import pytest

def app(request):
    if request["uri"] == "/sleep":
        time.sleep(60)
    if request["uri"] == "/child":
        subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
    return 200, "OK", {}, b"hello"

def tell(name, *servers):
    facts = [[s.address, getattr(s, "pid", 0)] for s in servers]
    with open(name + ".part", "w") as file:
        json.dump({"pid": os.getpid(), "servers": facts}, file)
    os.rename(name + ".part", name + ".told")

def start(name, temp_server, temp_ssl_server, session_temp_server, tmp_path):
    # A short name, as those of Unix sockets have to be.
    path = os.path.join(os.environ["TMPDIR"], name + ".sock")
    servers = [
        temp_server(app),
        temp_server(app, address=path),
        temp_ssl_server(app),
        session_temp_server(app),
        temp_server.proxy(temp_server.servers[0]),
        temp_server.faulty("silent"),
    ]
    client = servers[0].client()
    client.get("/child").body.read()
    tell(name, *servers)
    return servers, client
"""

FIXTURES = "temp_server, temp_ssl_server, session_temp_server, tmp_path"


def make_test(name, body):
    return f"""
def test_{name}({FIXTURES}):
    servers, client = start("{name}", {FIXTURES})
    {body}
"""


def read_told(inner, name, process=None, seconds=30):
    """What a test told of its servers, as soon as it did."""
    path = inner.path / f"{name}.told"
    deadline = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > deadline or (process and process.poll() is not None):
            pytest.fail(f"{name} told nothing:\n{inner.read_output()}")
        time.sleep(0.005)
    return json.loads(path.read_text())


def check_gone(inner, *names):
    """Neither a process nor a port nor a file of those tests is left."""
    inner.wait_until_clean()
    for name in names:
        told = read_told(inner, name)
        for address, _ in told["servers"]:
            if isinstance(address, str):
                assert not os.path.exists(address)
            elif listeners := find_listeners(address[1]):
                # The port may be a stranger's already.
                assert told["pid"] not in listeners


def find_listeners(port):
    found = psutil.net_connections("tcp")
    return [
        one.pid for one in found if one.status == "LISTEN" and one.laddr.port == port
    ]


@pytest.mark.parametrize("args", [[], ["-n", "2"]])
def test_passed_failed_and_erroring_tests_leave_nothing(inner, args):
    """With and without workers."""
    inner.write(
        SUITE
        + make_test("passed", "client.close()")
        + make_test("failed", "assert 0")
        + make_test("skipped", "pytest.skip()")
        + f"""
@pytest.fixture
def broken({FIXTURES}):
    start("broken", {FIXTURES})
    raise ValueError

def test_broken(broken):
    pass

@pytest.fixture
def late({FIXTURES}):
    yield start("late", {FIXTURES})
    raise ValueError

def test_late(late):
    pass
"""
    )
    process = inner.spawn("-q", *args)
    assert process.wait(60) == 1
    output = inner.read_output()
    assert "1 failed, 2 passed, 1 skipped, 2 errors" in output
    check_gone(inner, "passed", "failed", "skipped", "broken", "late")


def test_a_run_that_stops_at_the_first_failure_leaves_nothing(inner):
    """What other workers are doing meanwhile is ended as well."""
    inner.write(
        SUITE
        + make_test("first", "assert 0")
        + make_test("second", "time.sleep(0.2)")
        + make_test("third", "assert 0")
    )
    process = inner.spawn("-q", "-x", "-n", "2")
    assert process.wait(60) in (1, 2), inner.read_output()
    check_gone(inner, "first")


def test_a_test_that_times_out_leaves_nothing(inner):
    """Although pytest-timeout ends the whole run, at once."""
    pytest.importorskip("pytest_timeout")
    inner.write(SUITE + make_test("stuck", "client.get('/sleep')"))
    seconds = f"--timeout={2 * TIMEOUT_FACTOR}"  # long enough to get stuck
    process = inner.spawn(
        "-q", "-p", "pytest_timeout", seconds, "--timeout-method=thread"
    )
    assert process.wait(60) == 1
    assert "Timeout" in inner.read_output()
    check_gone(inner, "stuck")


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_a_run_that_is_ended_by_a_signal_leaves_nothing(inner, number):
    """Ctrl-C lets pytest tidy up; the others do not even let it know."""
    inner.write(SUITE + make_test("stuck", "client.get('/sleep')"))
    process = inner.spawn("-q")
    read_told(inner, "stuck", process)
    wait_asleep(process.pid)
    process.send_signal(getattr(signal, number))
    code = process.wait(30)
    assert code == (2 if number == "SIGINT" else -getattr(signal, number))
    check_gone(inner, "stuck")


@pytest.mark.parametrize("number", ["SIGINT", "SIGKILL"])
def test_workers_whose_controller_is_ended_leave_nothing(inner, number):
    """With -n 2, whichever way the first process goes."""
    inner.write(
        SUITE
        + make_test("one", "client.get('/sleep')")
        + make_test("two", "client.get('/sleep')"),
        shared_app="def app(request):\n    return 200, 'OK', {}, None",
    )
    inner.pytester.makeini(
        "[pytest]\npythonpath = .\ndegu_shared_servers = api = shared_app:app\n"
    )
    process = inner.spawn("-q", "-n", "2")
    read_told(inner, "one", process)
    read_told(inner, "two", process)
    process.send_signal(getattr(signal, number))
    process.wait(30)
    # A worker that lost its controller goes when its test is over, or by force.
    inner.wait_until_clean(seconds=20)


def test_a_worker_that_is_killed_leaves_nothing(inner):
    """The run goes on with another worker, and the server is gone at once."""
    inner.write(SUITE + make_test("one", "os.kill(os.getpid(), signal.SIGKILL)"))
    process = inner.spawn("-q", "-n", "1")
    assert process.wait(60) == 1
    assert "crashed" in inner.read_output()
    check_gone(inner, "one")


def test_an_interrupted_test_in_a_debugger_or_script_leaves_nothing(inner):
    """A plain script that uses a TempServer and is killed leaves nothing either."""
    (inner.path / "script.py").write_text(
        SUITE
        + """
from degu.testing import TempServer
server = TempServer(("127.0.0.1", 0), None, app)
tell("script", server)
time.sleep(60)
"""
    )
    inner.args.clear()
    process = inner.spawn(python=("script.py",))
    read_told(inner, "script", process)
    process.kill()
    process.wait(10)
    check_gone(inner, "script")


@pytest.mark.skipif(sys.platform != "linux", reason="counts by /proc")
def test_the_check_from_outside_sees_what_is_left(inner):
    """A run that leaves a process and a file is found out."""
    inner.write("""
import os, subprocess, sys, tempfile

def test_it():
    tempfile.mkdtemp(prefix="left-")
    subprocess.Popen(
        [sys.executable, "-S", "-c", "import time; time.sleep(60)"],
        start_new_session=True,
    )
""")
    process = inner.spawn("-q", "-W", "ignore")
    assert process.wait(60) == 0, inner.read_output()
    assert len(inner.list_processes()) == 1
    assert inner.list_files()[0].startswith("left-")
    with pytest.raises(pytest.fail.Exception, match="left behind"):
        inner.wait_until_clean(seconds=0.1)

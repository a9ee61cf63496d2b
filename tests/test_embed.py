"""degu.embed: starting tells the truth, stopping is bounded, everybody is told."""

from __future__ import annotations

import functools
import http.client
import json
import logging
import multiprocessing
import multiprocessing.connection
import os
import select
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

import degu
from degu import (
    EmbeddedServer,
    EmbeddedService,
    EmbeddedSSLServer,
    start_server,
    start_sslserver,
)
from degu.address import connect, listen
from degu.errors import DiedError, StartError, StartTimeoutError
from tests import embed_apps
from tests.conftest import ROOT, TIMEOUT_FACTOR, poll, run_program
from tests.embed_apps import (
    LOOPBACK,
    START_METHODS,
    app,
    body_of,
    is_running,
    request,
)

needs_abstract = pytest.mark.skipif(
    sys.platform != "linux", reason="abstract names are Linux only"
)


@pytest.fixture(params=START_METHODS)
def start_method(request, monkeypatch):
    """Every start method in turn."""
    monkeypatch.setattr(EmbeddedService, "start_method", request.param)
    return request.param


def run_python(code, *args, **options):
    """Run a program in a process of its own; return its output."""
    return run_program(
        sys.executable, *args, *(["-c", code] if code else []), **options
    )


# --- the package ------------------------------------------------------------------


def test_importing_degu_imports_nothing_else():
    """Not even from the standard library."""
    code = (
        "import sys; before = set(sys.modules); import degu; "
        "print(sorted(set(sys.modules) - before))"
    )
    assert run_python(code) == "['degu']\n"


def test_a_parent_never_imports_the_server():
    """Nor TLS, after its server has answered a request under any start method."""
    code = (
        "import sys, degu\n"
        "from tests.embed_apps import app, body_of\n"
        f"for method in {START_METHODS}:\n"
        "    degu.EmbeddedServer.start_method = method\n"
        "    with degu.EmbeddedServer(degu.IPv6_LOOPBACK, None, app) as server:\n"
        "        assert body_of(server.address, '/pid') == str(server.pid)\n"
        "print({'degu.server', 'degu.tls', 'ssl'} & set(sys.modules))"
    )
    assert run_python(code) == "set()\n"


def test_the_package_shows_its_lazy_names():
    """And refuses others like any module."""
    assert set(degu.__all__) <= set(dir(degu))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        getattr(degu, "nonsense")  # noqa: B009


# --- start ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        degu.IPv6_LOOPBACK,
        degu.IPv4_LOOPBACK,
        "path",
        pytest.param(b"", marks=needs_abstract),
    ],
    ids=["IPv6", "IPv4", "Unix", "abstract"],
)
def test_a_server_answers_at_every_kind_of_address(address, start_method, tmp_path):
    """The address is the bound one, and the process another."""
    address = str(tmp_path / "sock") if address == "path" else address
    with EmbeddedServer(address, None, app) as server:
        facts = json.loads(body_of(server.address, "/facts"))
        assert facts["pid"] == server.pid == server.process.pid != os.getpid()
        assert type(server.address) is type(address)
    if isinstance(address, str):
        assert not os.path.exists(address)


def test_a_server_keeps_what_it_was_given():
    """The arguments can be read again, the options without any defaults."""
    args = (1, "two")
    server = EmbeddedServer(LOOPBACK, embed_apps.build_args_app, *args, timeout=7.0)
    with server:
        assert server.build_func is embed_apps.build_args_app
        assert server.build_args == args
        assert server.options == {"timeout": 7.0}
        assert body_of(server.address) == repr(args)
        assert server.url == f"http://[::1]:{server.address[1]}/"
        assert isinstance(server.process, multiprocessing.Process)
        assert repr(server) == f"<EmbeddedServer {server.address!r}, pid {server.pid}>"
    assert repr(server).endswith(", ended>")


def test_build_func_may_be_a_name(start_method):
    """'module:attribute' is looked up in the server's process."""
    with EmbeddedServer(LOOPBACK, "tests.embed_apps:build_args_app", 3) as server:
        assert body_of(server.address) == "(3,)"
    with EmbeddedServer(LOOPBACK, None, "tests.embed_apps:app") as server:
        assert body_of(server.address, "/pid") == str(server.pid)


def test_start_server_returns_a_process_and_an_address():
    """The function form, as the oldest snippets use it."""
    process, address = start_server(LOOPBACK, None, app)
    assert body_of(address, "/pid") == str(process.pid)
    process.terminate()
    process.join()
    assert process.exitcode == -signal.SIGTERM
    assert not process.is_alive()
    with pytest.raises(ConnectionRefusedError):
        connect(address, 5)


def test_a_listening_socket_is_an_address_too(start_method):
    """It goes to the server's process by any start method."""
    with listen(LOOPBACK) as sock, EmbeddedServer(sock, None, app) as server:
        assert server.address == sock.getsockname()
        assert body_of(server.address, "/pid") == str(server.pid)


def test_the_servers_process_is_a_quiet_one():
    """A session of its own, deaf to Ctrl-C, and ended by SIGTERM."""
    before = signal.signal(signal.SIGTERM, lambda *_args: None)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        server = EmbeddedServer(LOOPBACK, None, app)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGTERM, before)
    facts = json.loads(body_of(server.address, "/facts"))
    assert facts["session"] == server.pid != os.getsid(0)
    assert facts["sigint"]
    assert facts["sigterm"]
    assert facts["name"] == server.process.name
    server.terminate()
    assert server.process.exitcode == -signal.SIGTERM


def test_a_server_may_use_multiprocessing_itself():
    """Its process is no daemon in its own eyes."""
    with EmbeddedServer(LOOPBACK, None, app) as server:
        assert body_of(server.address, "/pool") == "3"


# --- a start that fails -----------------------------------------------------------


def test_the_exception_of_build_func_comes_home(start_method):
    """Same type, same words, and the traceback of there as its cause."""
    with pytest.raises(ValueError, match=r"^no luck$") as caught:
        EmbeddedServer(LOOPBACK, embed_apps.raise_error)
    cause = str(caught.value.__cause__)
    assert "in raise_error" in cause
    assert "ValueError: no luck" in cause


@pytest.mark.parametrize(
    ("build", "error", "match"),
    [
        (embed_apps.raise_unpicklable, StartError, "UnpicklableError: odd"),
        (embed_apps.call_exit, DiedError, "exit code 3"),
        (embed_apps.kill_itself, DiedError, "SIGKILL"),
        (embed_apps.say_pid, TypeError, "app: expected a callable"),
        (embed_apps.app, TypeError, "address, None, app.* missing 1 required"),
        ("tests.embed_apps:nowhere", AttributeError, "nowhere"),
        ("tests.nowhere:build", ModuleNotFoundError, "nowhere"),
    ],
)
def test_a_start_that_fails_says_why_and_leaves_nothing(
    build, error, match, start_method
):
    """An exception within the time-out, and no process."""
    with pytest.raises(error, match=match):
        EmbeddedServer(LOOPBACK, build)
    assert multiprocessing.active_children() == []


def test_the_exit_code_of_a_start_that_died_is_known():
    """As the exception's attribute, negative for a signal."""
    with pytest.raises(DiedError) as caught:
        EmbeddedServer(LOOPBACK, embed_apps.call_exit)
    assert caught.value.exitcode == 3
    with pytest.raises(DiedError) as caught:
        EmbeddedServer(LOOPBACK, embed_apps.kill_itself)
    assert caught.value.exitcode == -signal.SIGKILL


def test_a_start_that_hangs_ends_at_the_time_out():
    """And the process is killed."""
    began = time.monotonic()
    with pytest.raises(StartTimeoutError, match=r"0\.3 seconds \(start_timeout\)"):
        EmbeddedServer(LOOPBACK, embed_apps.sleep_for_ever, start_timeout=0.3)
    assert 0.3 <= time.monotonic() - began < 3 * TIMEOUT_FACTOR
    assert multiprocessing.active_children() == []


def test_an_address_in_use_is_an_oserror(tmp_path):
    """With the address in its words; a Unix socket in use is not taken away."""
    for address in (LOOPBACK, str(tmp_path / "sock")):
        with EmbeddedServer(address, None, app) as server:
            with pytest.raises(OSError, match="in use") as caught:
                EmbeddedServer(server.address, None, app)
            assert repr(server.address) in str(caught.value)
            assert body_of(server.address, "/pid") == str(server.pid)


@pytest.mark.parametrize(
    ("args", "options", "error", "match"),
    [
        ((LOOPBACK, None), {}, TypeError, "None takes one argument after it, the app"),
        ((LOOPBACK, None, app, app), {}, TypeError, "got 2"),
        ((LOOPBACK, None, 17), {}, TypeError, "app: expected a callable, got 17"),
        ((LOOPBACK, 17), {}, TypeError, "build_func: expected a callable, got 17"),
        ((LOOPBACK, "app"), {}, ValueError, "'module:attribute', got 'app'"),
        ((("::1", 0), None, app), {}, ValueError, "a 2-tuple is never IPv6"),
        ((17, None, app), {}, TypeError, "address: expected a 4-tuple"),
        ((LOOPBACK, None, app), {"start_timeout": 0}, ValueError, "start_timeout"),
        ((LOOPBACK, None, app), {"start_timeout": "1"}, TypeError, "start_timeout"),
        ((LOOPBACK, None, app), {"restart": "always"}, ValueError, "'on-failure'"),
        ((LOOPBACK, None, app), {"log": None}, TypeError, "log: expected True or Fal"),
        ((LOOPBACK, None, app), {"bogus": 1}, TypeError, "bogus"),
    ],
)
@pytest.mark.parametrize("start", [EmbeddedServer, start_server])
def test_a_bad_argument_is_named(start, args, options, error, match):
    """What was expected and what came, at once."""
    with pytest.raises(error, match=match):
        start(*args, **options)


def test_a_context_is_no_sslconfig():
    """It could not be sent to another process; a dict can."""
    starts: list[Any] = [EmbeddedSSLServer, start_sslserver]
    for start in starts:
        with pytest.raises(TypeError, match="sslconfig: expected a dict"):
            start(object(), LOOPBACK, None, app)


def test_a_wrong_start_method_is_named(monkeypatch):
    """With those that there are."""
    monkeypatch.setattr(EmbeddedServer, "start_method", "spoon")
    with pytest.raises(ValueError, match=r"spawn.*got 'spoon'"):
        EmbeddedServer(LOOPBACK, None, app)


# --- start methods ----------------------------------------------------------------

SCRIPT = """
{imports}
degu.EmbeddedServer.start_method = {method!r}

def app(request):
    return (200, 'OK', {{}}, b'of the script')

def proxy(address):
    return lambda request: (200, 'OK', {{}}, body_of(address).encode() + b' by proxy')

first = degu.EmbeddedServer(('::1', 0, 0, 0), None, app)
{more}
print(body_of(first.address))
first.stop()
"""

IMPORTS = "import degu\nfrom tests.embed_apps import body_of"


@pytest.mark.parametrize("method", [None, *START_METHODS])
def test_a_script_without_a_main_guard_works(method, tmp_path):
    """Also where its apps have to be imported from it again."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(imports=IMPORTS, method=method, more=""))
    assert run_python(None, str(script)) == "of the script\n"


@pytest.mark.parametrize("method", [None, *START_METHODS])
def test_a_module_run_as_a_script_works(method, tmp_path):
    """``python -m name`` has another way to be imported again."""
    module = tmp_path / "degu_test_script.py"
    more = f"import sys; sys.path[:0] = [{str(tmp_path)!r}]\n{IMPORTS}"
    module.write_text(SCRIPT.format(imports=more, method=method, more=""))
    code = (
        f"import runpy, sys; sys.path[:0] = [{str(tmp_path)!r}]; "
        "runpy.run_module('degu_test_script', run_name='__main__', alter_sys=True)"
    )
    assert run_python(code) == "of the script\n"


def test_a_second_server_of_a_script_without_a_guard(tmp_path):
    """One that is defined above the first start can be sent as well."""
    more = (
        "second = degu.EmbeddedServer(('::1', 0, 0, 0), proxy, first.address)\n"
        "print(body_of(second.address))\n"
        "second.stop()"
    )
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(imports=IMPORTS, method="spawn", more=more))
    assert run_python(None, str(script)) == "of the script by proxy\nof the script\n"


def test_a_script_is_imported_again_only_where_that_is_needed(tmp_path):
    """A main module full of GUI toolkits costs nothing in the server's process."""
    script = tmp_path / "script.py"
    script.write_text(
        "import degu, sys\n"
        "from tests.embed_apps import app, body_of\n"
        "degu.EmbeddedServer.start_method = 'spawn'\n"
        "print('run as', __name__)\n"
        "with degu.EmbeddedServer(('::1', 0, 0, 0), None, app) as server:\n"
        "    assert body_of(server.address, '/pid') == str(server.pid)\n"
    )
    assert run_python(None, str(script)) == "run as __main__\n"


def test_what_a_console_defines_works_as_long_as_there_is_one_thread():
    """Nothing of ``python -c`` could be imported again, so it has to be forked."""
    code = SCRIPT.format(imports=IMPORTS, method=None, more="")
    assert run_python(code) == "of the script\n"


def test_what_cannot_be_sent_is_named(monkeypatch):
    """With the reason for the start method, and three ways out."""
    monkeypatch.setattr(EmbeddedServer, "start_method", "spawn")

    def local(request):
        return (200, "OK", {}, None)

    with pytest.raises(StartError) as caught:
        EmbeddedServer(LOOPBACK, None, local)
    text = str(caught.value)
    assert text.startswith("build_args[0]: <function ")
    assert "'spawn': as start_method says" in text
    assert "at the top level of a module" in text
    assert "'module:attribute'" in text
    assert "start_method = 'fork'" in text
    assert multiprocessing.active_children() == []
    # The control: a fork needs no pickle.
    monkeypatch.setattr(EmbeddedServer, "start_method", "fork")
    EmbeddedServer(LOOPBACK, None, local).stop()


def test_what_a_console_defines_is_named_where_it_cannot_be_sent():
    """It can be pickled, but nobody could load it."""
    code = SCRIPT.format(imports=IMPORTS, method="forkserver", more="").replace(
        "first =", "try: first ="
    )
    code = code.partition("\nprint")[0] + "\nexcept degu.errors.StartError as exc:\n"
    assert "build_args[0]: <function app at" in run_python(
        code.replace("\n\nexcept", "\nexcept") + "    print(exc)"
    )


def test_the_start_method_depends_on_the_threads():
    """One thread: fork. More: a fork server, and no fork of a threaded process."""
    code = (
        "import threading, degu, warnings\n"
        "from tests.embed_apps import app, body_of\n"
        "warnings.simplefilter('error')\n"
        "def show():\n"
        "    with degu.EmbeddedServer(degu.IPv6_LOOPBACK, None, app) as server:\n"
        "        print(type(server.process)._start_method)\n"
        "        assert body_of(server.address, '/pid') == str(server.pid)\n"
        "show()\n"
        # The thread that reads for the first server does not count.
        "with degu.EmbeddedServer(degu.IPv6_LOOPBACK, None, app):\n"
        "    assert threading.active_count() == 2\n"
        "    show()\n"
        "event = threading.Event()\n"
        "thread = threading.Thread(target=event.wait)\n"
        "thread.start()\n"
        "show()\n"
        "degu.EmbeddedServer.start_method = 'fork'\n"
        "show()\n"
        "event.set(); thread.join()\n"
    )
    assert run_python(code).split() == ["fork", "fork", "forkserver", "fork"]


def test_degus_own_thread_is_gone_before_a_fork():
    """Also when it is the one that saw the last server's end."""
    code = (
        "import degu\n"
        "from tests.embed_apps import app, body_of\n"
        "for how in ('kill', 'terminate') * 5:\n"
        "    server = degu.EmbeddedServer(degu.IPv6_LOOPBACK, None, app)\n"
        "    assert type(server.process)._start_method == 'fork'\n"
        "    server.on_exit(lambda code: None)\n"
        "    getattr(server.process, how)()\n"
        "    server.wait()\n"
        "print('fine')\n"
    )
    assert run_python(code) == "fine\n"


@pytest.mark.parametrize("default", START_METHODS)
def test_the_default_of_multiprocessing_has_no_say(default):
    """An app that can't be pickled works whatever it is."""
    code = (
        "import multiprocessing, degu\n"
        "from tests.embed_apps import body_of\n"
        f"multiprocessing.set_start_method({default!r})\n"
        "app = lambda request: (200, 'OK', {}, b'fine')\n"
        "with degu.EmbeddedServer(degu.IPv6_LOOPBACK, None, app) as server:\n"
        "    print(body_of(server.address))"
    )
    assert run_python(code) == "fine\n"


# --- stop -------------------------------------------------------------------------


def test_stop_is_gentle(start_method, tmp_path):
    """Its atexit runs in the server's process, and it ends with 0."""
    note = tmp_path / "note"
    server = EmbeddedServer(LOOPBACK, embed_apps.build_atexit_app, str(note))
    assert server.stop() == "stopped"
    assert note.read_text() == "atexit"
    assert server.process.exitcode == 0
    assert server.stop() == "stopped"
    server.terminate()


def test_terminate_is_not(tmp_path):
    """The control: SIGTERM, at once, as often as one likes."""
    note = tmp_path / "note"
    server = EmbeddedServer(LOOPBACK, embed_apps.build_atexit_app, str(note))
    for _ in range(3):
        server.terminate()
        assert server.process.exitcode == -signal.SIGTERM
    assert not note.exists()
    assert server.stop() == "terminated"


def test_what_the_parent_registered_with_atexit_is_the_parents(tmp_path):
    """A fork inherits it, and must not run it."""
    code = (
        "import atexit, degu\n"
        "from tests.embed_apps import app\n"
        "atexit.register(print, 'the parent ends')\n"
        "degu.EmbeddedServer(degu.IPv6_LOOPBACK, None, app).stop()\n"
        "print('stopped')\n"
    )
    assert run_python(code) == "stopped\nthe parent ends\n"


def test_a_request_in_flight_is_answered_in_full():
    """Ten of them, during a stop with a grace period."""
    server = EmbeddedServer(LOOPBACK, None, app)
    address, answers = server.address, []
    threads = [
        threading.Thread(target=lambda: answers.append(body_of(address, "/sleep")))
        for _ in range(10)
    ]
    socks = [connect(address, 20) for _ in range(10)]
    for sock in socks:
        sock.sendall(b"GET /sleep HTTP/1.1\r\nHost: localhost\r\n\r\n")
    for thread in threads:
        thread.start()
    time.sleep(0.15)
    assert server.stop(grace=20) == "stopped"
    with pytest.raises(ConnectionRefusedError):
        connect(address, 5)
    for sock in socks:
        with sock:
            answer = b"".join(iter(functools.partial(sock.recv, 65536), b""))
        assert answer.endswith(b"slept " * 1000)
    for thread in threads:
        thread.join()
    assert answers == ["slept " * 1000] * 10


def test_a_handler_that_never_returns_ends_at_the_grace_period(tmp_path):
    """It is cut off, and even then atexit runs."""
    note = tmp_path / "note"
    server = EmbeddedServer(LOOPBACK, embed_apps.build_atexit_app, str(note))
    with connect(server.address, 20) as sock:
        sock.sendall(b"GET /hang HTTP/1.1\r\nHost: localhost\r\n\r\n")
        time.sleep(0.05)
        began = time.monotonic()
        assert server.stop(grace=0.3) == "cut"
        assert 0.3 <= time.monotonic() - began < 0.3 + TIMEOUT_FACTOR
        assert sock.recv(1000) == b""
    assert note.read_text() == "atexit"


def test_a_process_that_does_not_react_is_terminated():
    """One whose interpreter is held by a thread can't even hear of it."""
    server = EmbeddedServer(LOOPBACK, None, app)
    with connect(server.address, 20) as sock:
        sock.sendall(b"GET /hold HTTP/1.1\r\nHost: localhost\r\n\r\n")
        time.sleep(0.2)
        assert server.stop(grace=0.1) == "terminated"
    assert server.process.exitcode == -signal.SIGTERM


def test_a_process_that_defies_sigterm_is_killed(monkeypatch):
    """After a while that is bounded too."""
    monkeypatch.setattr("degu.parent.KILL_SECONDS", 0.2)
    server = EmbeddedServer(LOOPBACK, embed_apps.defy_sigterm)
    server.terminate()
    assert server.process.exitcode == -signal.SIGKILL
    assert server.stop() == "killed"


def test_a_stopped_process_is_killed(monkeypatch):
    """SIGSTOP: neither the pipe nor SIGTERM reach it."""
    monkeypatch.setattr("degu.parent.KILL_SECONDS", 0.2)
    server = EmbeddedServer(LOOPBACK, None, app)
    os.kill(server.pid, signal.SIGSTOP)
    assert server.stop(grace=0.1) == "killed"


@pytest.mark.parametrize(
    ("grace", "error"),
    [(-1, ValueError), (float("nan"), ValueError), ("1", TypeError), (True, TypeError)],
)
def test_a_bad_grace_is_refused(grace, error):
    """And nothing is stopped by it."""
    with EmbeddedServer(LOOPBACK, None, app) as server:
        with pytest.raises(error, match="grace: expected"):
            server.stop(grace)
        assert server.is_alive()


def test_with_stops():
    """Gently; on Ctrl-C at once."""
    with EmbeddedServer(LOOPBACK, None, app) as server:
        assert server.is_alive()
    assert server.process.exitcode == 0
    server = EmbeddedServer(LOOPBACK, None, app)
    with pytest.raises(KeyboardInterrupt), server:
        raise KeyboardInterrupt
    assert server.process.exitcode == -signal.SIGTERM


def test_the_coverage_of_a_servers_process_is_complete(tmp_path):
    """After stop(), for what runs in no other process."""
    (tmp_path / "covered.py").write_text(
        "def app(request):\n"
        "    text = 'covered'\n"
        "    return (200, 'OK', {}, text.encode())\n"
    )
    (tmp_path / "program.py").write_text(
        "import covered, degu, sys\n"
        "from tests.embed_apps import body_of\n"
        "degu.EmbeddedServer.start_method = sys.argv[1]\n"
        "with degu.EmbeddedServer(('::1', 0, 0, 0), None, covered.app) as server:\n"
        "    assert body_of(server.address) == 'covered'\n"
    )
    (tmp_path / ".coveragerc").write_text(
        "[run]\nparallel = true\nconcurrency = thread,multiprocessing\n"
    )
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    options = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": path}}
    coverage = [sys.executable, "-m", "coverage"]
    for method in START_METHODS:
        for command in (
            [*coverage, "run", "--include=covered.py", "program.py", method],
            [*coverage, "combine", "-q"],
            [*coverage, "json", "-q"],
        ):
            done = subprocess.run(command, capture_output=True, check=False, **options)
            assert done.returncode == 0, (done.stdout, done.stderr)
        report = json.loads((tmp_path / "coverage.json").read_text())
        assert report["files"]["covered.py"]["missing_lines"] == [], method


# --- watching ---------------------------------------------------------------------


@pytest.mark.parametrize("log", [True, False])
def test_the_end_of_a_server_is_told(start_method, log):
    """By a callback, by the sentinel, by wait() and by is_alive()."""
    server = EmbeddedServer(LOOPBACK, None, app, log=log)
    told: list[int | None] = []
    event = threading.Event()
    server.on_exit(told.append)
    server.on_exit(lambda _code: event.set())
    assert server.wait(0) is None
    assert multiprocessing.connection.wait([server.sentinel], 0) == []
    os.kill(server.pid, signal.SIGKILL)
    assert event.wait(20)
    assert select.select([server.sentinel], [], [], 0)[0]
    assert told == [-signal.SIGKILL]
    assert server.wait() == -signal.SIGKILL
    assert not server.is_alive()
    server.on_exit(told.append)
    assert told == [-signal.SIGKILL] * 2
    assert server.stop() == "exited"


def test_a_dead_server_has_no_address():
    """Unless it was told to end: then it is where it was."""
    server = EmbeddedServer(LOOPBACK, None, app)
    address = server.address
    os.kill(server.pid, signal.SIGKILL)
    server.wait()
    with pytest.raises(DiedError, match="has ended: SIGKILL") as caught:
        server.address  # noqa: B018
    assert caught.value.exitcode == -signal.SIGKILL
    with EmbeddedServer(address, None, app) as server:
        pass
    assert server.address == address


def test_a_callback_that_fails_is_logged(caplog):
    """And the next one is called."""
    told: list[int | None] = []
    with EmbeddedServer(LOOPBACK, None, app) as server:
        server.on_exit(lambda code: 1 // 0)
        server.on_exit(told.append)
    assert told == [0]
    assert "ZeroDivisionError" in caplog.text


def test_a_callback_may_start_the_next_server(tmp_path):
    """From Degu's own thread, with another start method."""
    server = EmbeddedServer(LOOPBACK, None, app)
    address, servers = server.address, []
    server.on_exit(lambda code: servers.append(EmbeddedServer(address, None, app)))
    server.process.kill()
    poll(lambda: servers, 20)
    with servers[0] as server:
        assert body_of(address, "/pid") == str(server.pid)


# --- restarts ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["IPv6", "Unix"])
def test_a_server_that_fails_comes_back_at_its_address(kind, tmp_path, start_method):
    """Clients that come meanwhile wait, or may try again."""
    address = str(tmp_path / "sock") if kind == "Unix" else LOOPBACK
    with EmbeddedServer(address, None, app, restart="on-failure") as server:
        address, pids = server.address, {body_of(server.address, "/pid")}
        for path in ("/die", "/exit"):
            assert request(address, path) == b""
            pids.add(body_of(address, "/pid"))
        assert len(pids) == 3
        assert server.is_alive()
        assert server.address == address
    assert server.process.exitcode == 0
    assert not os.path.exists(str(address))


def test_without_the_option_nothing_comes_back():
    """The control."""
    server = EmbeddedServer(LOOPBACK, None, app)
    assert request(server.address, "/exit") == b""
    assert server.wait(20) == 7


def test_a_restarted_server_can_be_terminated_and_killed():
    """Its address is free at once, and no process is left."""
    for how in ("terminate", "kill"):
        server = EmbeddedServer(LOOPBACK, None, app, restart="on-failure")
        address, pid = server.address, int(body_of(server.address, "/pid"))
        assert pid != server.pid
        getattr(server.process, how)()
        server.wait()
        assert_gone(pid)
        EmbeddedServer(address, None, app).terminate()


def assert_gone(pid):
    """The process has ended, or does so soon."""
    poll(lambda: not is_running(pid), 2, "the server's process gone")


def test_a_server_that_cannot_start_is_not_started_again(tmp_path):
    """The first start tells the truth; later ones are tried again and logged."""
    with pytest.raises(ValueError, match="no luck"):
        EmbeddedServer(LOOPBACK, embed_apps.raise_error, restart="on-failure")
    with pytest.raises(DiedError, match="SIGKILL"):
        EmbeddedServer(LOOPBACK, embed_apps.kill_itself, restart="on-failure")


def test_restarts_that_fail_are_logged(tmp_path, caplog):
    """Each with its error, after growing pauses; stop() ends that."""
    once = str(tmp_path / "once")
    with EmbeddedServer(
        LOOPBACK, embed_apps.build_once_app, once, restart="on-failure"
    ) as server:
        assert request(server.address, "/die") == b""
        poll(lambda: "did not start again" in caplog.text, 20)
        poll(lambda: "again in 0.10 s" in caplog.text, 20)
        assert "FileExistsError" in caplog.text
        assert "ended with SIGKILL" in caplog.text
        assert server.stop() == "stopped"


# --- logs -------------------------------------------------------------------------


def test_log_records_come_home(start_method, caplog):
    """With the child's name, and whatever they carry."""
    caplog.set_level(logging.INFO, "tests.child")
    with EmbeddedServer(LOOPBACK, None, app) as server:
        assert body_of(server.address, "/log") == "logged"
        poll(lambda: "hello home" in caplog.text, 20)
    (record,) = [r for r in caplog.records if r.name == "tests.child"]
    assert record.levelno == logging.INFO
    assert record.processName == server.process.name
    assert record.process == server.pid
    assert record.answer == 42
    assert record.odd.startswith("<object object")


def test_log_records_stay_away_if_asked_to(caplog):
    """The opt-out, and no thread for them."""
    threads = threading.active_count()
    with EmbeddedServer(LOOPBACK, None, app, log=False) as server:
        assert body_of(server.address, "/log-much") == "logged"
        assert threading.active_count() == threads
    assert caplog.records == []


def test_a_traceback_comes_home(caplog):
    """Of a handler, of a thread, of the server itself."""
    with EmbeddedServer(LOOPBACK, None, app) as server:
        assert b" 500 " in request(server.address, "/fail")
        poll(lambda: "ValueError: a handler failed" in caplog.text, 20)
        caplog.clear()
        assert body_of(server.address, "/fail-in-thread") == "failed"
        poll(lambda: "ValueError: a handler failed" in caplog.text, 20)
        assert "unhandled exception in thread unlucky" in caplog.text
    service = EmbeddedService(embed_apps.Failing)
    assert service.wait(20) == 1
    assert "ValueError: cannot serve" in caplog.text


def test_long_log_records_are_shortened(caplog):
    """The middle is left out, and said so."""
    with EmbeddedServer(LOOPBACK, None, app) as server:
        for _ in range(5):
            assert body_of(server.address, "/log-much") == "logged"
        poll(lambda: caplog.text.count("characters left out") == 5, 20)


def test_records_of_the_last_moment_arrive(caplog):
    """What is logged just before the end is handled before stop() returns."""
    caplog.set_level(logging.INFO)
    for _ in range(5):
        server = EmbeddedServer(LOOPBACK, None, app)
        assert body_of(server.address, "/log") == "logged"
        server.stop()
    assert caplog.text.count("hello home") == 5


def test_a_handler_of_log_records_that_blocks_does_not_block_a_stop():
    """Only Degu's own thread waits for it."""
    entered, leave = threading.Event(), threading.Event()

    class Blocking(logging.Handler):
        def emit(self, record):
            entered.set()
            leave.wait(20)

    handler = Blocking()
    logging.getLogger("tests.child").addHandler(handler)
    try:
        server = EmbeddedServer(LOOPBACK, None, app)
        assert body_of(server.address, "/log-much") == "logged"
        assert entered.wait(20)
        assert server.stop() == "stopped"
        assert not leave.is_set()
    finally:
        leave.set()
        logging.getLogger("tests.child").removeHandler(handler)


def test_a_handler_of_log_records_that_fails_is_survived(capsys, caplog):
    """Its traceback is printed, the next record is handled."""

    class Failing(logging.Handler):
        def emit(self, record):
            raise RuntimeError("the handler fails")

    handler = Failing()
    logging.getLogger("tests.child").addHandler(handler)
    try:
        with EmbeddedServer(LOOPBACK, None, app) as server:
            assert body_of(server.address, "/log-much") == "logged"
            assert b" 500 " in request(server.address, "/fail")
            poll(lambda: "ValueError: a handler failed" in caplog.text, 20)
    finally:
        logging.getLogger("tests.child").removeHandler(handler)
    assert "RuntimeError: the handler fails" in capsys.readouterr().err


# --- any server -------------------------------------------------------------------


class ThreadingUnixDatagramServer(
    socketserver.ThreadingMixIn, socketserver.UnixDatagramServer
):
    """The one that the standard library does not name before 3.12."""


STREAMS = [
    socketserver.TCPServer,
    socketserver.ThreadingTCPServer,
    socketserver.ForkingTCPServer,
    socketserver.UnixStreamServer,
    socketserver.ThreadingUnixStreamServer,
]

DATAGRAMS = [
    socketserver.UDPServer,
    socketserver.ThreadingUDPServer,
    socketserver.ForkingUDPServer,
    socketserver.UnixDatagramServer,
    ThreadingUnixDatagramServer,
]


def place(server_class, tmp_path):
    """An address for a server of that class."""
    unix = server_class.address_family == socket.AF_UNIX
    return str(tmp_path / "sock") if unix else ("127.0.0.1", 0)


@pytest.mark.parametrize("server_class", STREAMS)
def test_a_stream_server_of_the_standard_library(server_class, tmp_path):
    """Echo; a request in flight is answered; nothing is left."""
    address = place(server_class, tmp_path)
    service = EmbeddedService(server_class, address, embed_apps.EchoHandler)
    with connect(service.address, 20) as sock:
        sock.sendall(b"quick\n")
        assert sock.recv(100) == b"quick\n"
    with connect(service.address, 20) as sock:
        sock.sendall(b"slow\n")
        time.sleep(0.1)
        assert service.stop() == "stopped"
        assert sock.recv(100) == b"slow\n"
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError, match="cannot connect"):
        connect(service.address, 5)


@pytest.mark.parametrize("server_class", DATAGRAMS)
def test_a_datagram_server_of_the_standard_library(server_class, tmp_path):
    """Echo; nothing is left."""
    address = place(server_class, tmp_path)
    service = EmbeddedService(server_class, address, embed_apps.EchoDatagramHandler)
    with socket.socket(server_class.address_family, socket.SOCK_DGRAM) as sock:
        sock.bind(mine(sock, tmp_path))
        sock.settimeout(20)
        sock.sendto(b"datagram", service.address)
        assert sock.recv(100) == b"datagram"
    assert service.stop() == "stopped"
    assert [path.name for path in tmp_path.iterdir()] in ([], ["mine"])


def mine(sock, tmp_path):
    """Where a client that wants an answer binds."""
    return str(tmp_path / "mine") if sock.family == socket.AF_UNIX else ("127.0.0.1", 0)


@pytest.mark.parametrize("name", ["HTTPServer", "ThreadingHTTPServer"])
def test_an_http_server_of_the_standard_library(name, caplog):
    """Its log comes home too."""
    caplog.set_level(logging.INFO)
    build = embed_apps.build_http_server
    with EmbeddedService(build, name, ("127.0.0.1", 0)) as service:
        host, port = service.address
        client = http.client.HTTPConnection(host, port, timeout=20)
        client.request("GET", "/")
        assert client.getresponse().read() == b"hello"
        client.close()
        poll(lambda: '"GET / HTTP/1.1" 200' in caplog.text, 20)


def test_a_server_without_shutdown_is_terminated():
    """At once: there is nothing to wait for."""
    service = EmbeddedService(embed_apps.Endless)
    assert service.address == "nowhere"
    began = time.monotonic()
    assert service.stop(grace=30) == "terminated"
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (dict, r"a server with serve_forever\(\), got dict"),
        (embed_apps.Addressless, "address, server_address or getsockname"),
    ],
)
def test_what_is_no_server_is_refused(build, match):
    """The message says what is missing."""
    with pytest.raises(TypeError, match=match):
        EmbeddedService(build)


def test_a_service_knows_its_options():
    """And no others."""
    with pytest.raises(TypeError, match=r"unknown option 'timeout'.*start_timeout"):
        EmbeddedService(embed_apps.Endless, timeout=3)


def test_a_service_is_started_again_where_it_was():
    """As far as it binds the same address again."""
    with listen(("127.0.0.1", 0)) as sock:
        address = sock.getsockname()
    with EmbeddedService(
        build_reusing_server, address, restart="on-failure"
    ) as service:
        assert service.address == address
        for _ in range(2):
            with connect(address, 20) as sock:
                sock.sendall(b"die\n")
                assert sock.recv(100) == b""
            poll(lambda: echoes(address), 20, "back again")


def test_a_service_that_comes_back_elsewhere_is_ended(caplog):
    """Clients never meet a new address."""
    service = EmbeddedService(
        build_reusing_server, ("127.0.0.1", 0), restart="on-failure"
    )
    with connect(service.address, 20) as sock:
        sock.sendall(b"die\n")
        assert sock.recv(100) == b""
    service.wait(20)
    poll(lambda: "instead of" in caplog.text, 20)


class DyingHandler(embed_apps.EchoHandler):
    """An echo that may end its process."""

    def handle(self):
        line = self.rfile.readline()
        if line == b"die\n":
            os._exit(9)
        self.wfile.write(line)


class ReusingServer(socketserver.TCPServer):
    """A TCPServer that can be bound again at once."""

    allow_reuse_address = True


def build_reusing_server(address):
    return ReusingServer(address, DyingHandler)


def echoes(address):
    """Whether an echo server is there."""
    try:
        with connect(address, 20) as sock:
            sock.sendall(b"hello\n")
            return sock.recv(100) == b"hello\n"
    except OSError:
        return False

"""degu.embed: nothing outlives its parent, nothing is left, nothing grows.

`DEGU_TEST_EMBED_KILLS` and `DEGU_TEST_EMBED_CYCLES` say how many parents are killed at
random moments and how many servers are started and stopped (12 and 20).
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import pty
import random
import select
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
import uuid
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import psutil
import pytest

from degu import EmbeddedServer, parent
from degu.address import connect
from degu.guard import GUARD_SECONDS
from tests.conftest import TIMEOUT_FACTOR, poll
from tests.embed_apps import (
    LOOPBACK,
    START_METHODS,
    app,
    body_of,
    build_nested_app,
    build_threaded_nested_app,
    is_running,
    request,
)

KILLS = int(os.environ.get("DEGU_TEST_EMBED_KILLS", "12"))
CYCLES = int(os.environ.get("DEGU_TEST_EMBED_CYCLES", "20"))

ROOT = Path(__file__).parents[1]

WAYS = ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "_exit", "exit", "error", "crash")

pytestmark = pytest.mark.skipif(
    not hasattr(os, "pidfd_open"), reason="the promises of Linux"
)


class Parent:
    """A process that embeds a server, and everything that descends from it.

    All of them carry a mark in their environment, so that they are found wherever they
    are re-parented to.
    """

    def __init__(self, method="fork", build="build_app", address=LOOPBACK, **plan):
        self.mark = uuid.uuid4().hex
        plan = {"method": method, "build": build, "address": address, **plan}
        self.popen: Any = subprocess.Popen(
            [sys.executable, "-m", "tests.embed_apps", json.dumps(plan)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "DEGU_TEST_MARK": self.mark},
            start_new_session=True,
        )
        self.address = address
        self.pid = None
        self.forked = None

    def __enter__(self):
        return self

    def __exit__(self, *_exc):
        for process in [*self.find(), self.popen.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.popen.communicate()

    def ready(self):
        """Wait until the server is up."""
        report = json.loads(self.popen.stdout.readline())
        self.pid, self.forked = report["pid"], report.get("forked")
        address = report["address"]
        self.address = tuple(address) if isinstance(address, list) else address
        return self

    def end(self, how):
        """Have the parent end, from outside or by itself."""
        if how.startswith("SIG"):
            self.popen.send_signal(getattr(signal, how))
        else:
            self.popen.stdin.write(how.encode() + b"\n")
            self.popen.stdin.flush()

    def find(self):
        """The pids of all processes with the mark, but not of zombies."""
        mark = f"DEGU_TEST_MARK={self.mark}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and mark in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
        return found

    def await_processes(self, count):
        """Wait until that many descend from the parent, itself included."""
        poll(lambda: len(self.find()) >= count, 20, f"{count} processes")

    def assert_all_gone(self, seconds=1.0):
        """Everything has ended, nothing is bound any more."""
        poll(lambda: not self.find(), seconds, "all processes gone")
        if self.address[1:2] != (0,):
            # The environment of a process goes a little before its sockets.
            poll(lambda: refuses(self.address), seconds, "nothing bound")
        if isinstance(self.address, str):
            assert not os.path.exists(self.address)


def refuses(address):
    """Whether nobody listens there."""
    try:
        connect(address, 5).close()
    except OSError:
        return True
    return False


def seconds_until_gone(pid, act):
    """Call `act`; return how long the process takes to end after that."""
    pidfd = os.pidfd_open(pid)
    try:
        began = time.monotonic()
        act()
        assert select.select([pidfd], [], [], 20 * TIMEOUT_FACTOR)[0], "still alive"
        return time.monotonic() - began
    finally:
        os.close(pidfd)


# --- the parent ends --------------------------------------------------------------


@pytest.mark.parametrize("how", [*WAYS, "exec"])
def test_a_server_ends_with_its_parent(how):
    """Whatever ends the parent, the server and its guard end too."""
    with Parent() as parent:
        parent.ready()
        assert body_of(parent.address, "/pid") == str(parent.pid)
        assert seconds_until_gone(parent.pid, lambda: parent.end(how)) < 2
        if how == "exec":
            # The parent itself lives on as another program.
            assert parent.popen.poll() is None
            parent.end("SIGKILL")
        parent.popen.wait()
        parent.assert_all_gone()


@pytest.mark.parametrize("method", START_METHODS)
def test_a_server_ends_with_its_parent_whatever_the_start_method(method):
    """SIGKILL leaves nothing under any start method."""
    with Parent(method) as parent:
        parent.ready()
        assert seconds_until_gone(parent.pid, lambda: parent.end("SIGKILL")) < 1
        parent.assert_all_gone()


def test_the_control_a_plain_child_survives_its_parent():
    """The same death leaves a child that nobody guards, so the tests can fail."""
    code = (
        "import multiprocessing, time\n"
        "p = multiprocessing.get_context('fork').Process(target=time.sleep,"
        " args=(600,), daemon=True)\n"
        "p.start(); print(p.pid, flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code]
    popen: Any = subprocess.Popen(command, stdout=subprocess.PIPE)
    with popen:
        pid = int(popen.stdout.readline())
        popen.kill()
        popen.wait()
    assert psutil.pid_exists(pid)
    os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("path", ["/pid", "/busy", "/hold"])
def test_a_server_ends_within_a_tenth_of_a_second(path):
    """Idle, with 50 busy threads, and with a thread that never lets others run."""
    with Parent() as parent:
        parent.ready()
        with connect(parent.address, 20) as sock:
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            if path == "/pid":
                assert sock.recv(1000)
            else:
                cpu = psutil.Process(parent.pid).cpu_times
                before = cpu().user
                poll(lambda: cpu().user > before + 0.1, what="computing")
            elapsed = seconds_until_gone(parent.pid, lambda: parent.end("SIGKILL"))
        parent.assert_all_gone()
        assert elapsed < 0.1 * TIMEOUT_FACTOR


def test_inherited_descriptors_do_not_keep_a_server_alive():
    """A process that the parent forked holds its end of every pipe, in vain."""
    with Parent(fork=True) as parent:
        parent.ready()
        assert seconds_until_gone(parent.pid, lambda: parent.end("SIGKILL")) < 1
        assert psutil.pid_exists(parent.forked)
        os.kill(parent.forked, signal.SIGKILL)
        parent.assert_all_gone()


def test_a_server_survives_the_thread_that_started_it():
    """What ends a server is its parent's end, not that of a thread."""
    with Parent(thread=True) as parent:
        parent.ready()
        for _ in range(20):
            assert body_of(parent.address, "/pid") == str(parent.pid)
            time.sleep(0.005)
        assert seconds_until_gone(parent.pid, lambda: parent.end("SIGKILL")) < 1
        parent.assert_all_gone()


def test_a_server_of_the_first_process_lives_and_ends():
    """PID 1 of a container is a parent like any other, and reaps what it gets."""
    command = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("no right to make a PID namespace")
    code = (
        "import os, time, degu\n"
        "from tests.embed_apps import app, body_of\n"
        "assert os.getpid() == 1\n"
        "for stop in ('stop', 'terminate', 'kill'):\n"
        "    s = degu.EmbeddedServer(degu.IPv6_LOOPBACK, None, app)\n"
        "    assert body_of(s.address, '/pid') == str(s.pid)\n"
        "    time.sleep(0.1)\n"
        "    assert s.is_alive()\n"
        "    s.process.kill() if stop == 'kill' else getattr(s, stop)()\n"
        "    s.wait()\n"
        "pids = [n for n in os.listdir('/proc') if n.isdigit()]\n"
        "assert pids == ['1'], pids\n"
        "print('fine')"
    )
    done = subprocess.run(
        [*command, sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("fine\n", "")


def test_a_closed_terminal_ends_the_parent_and_the_server():
    """SIGHUP ends the parent; the server, in a session of its own, follows."""
    ours, theirs = pty.openpty()
    code = (
        "import sys, degu\n"
        "from tests.embed_apps import app\n"
        "s = degu.EmbeddedServer(degu.IPv6_LOOPBACK, None, app)\n"
        "print(s.pid, flush=True); sys.stdin.read()"
    )
    popen: Any = subprocess.Popen(
        ["setsid", "--ctty", sys.executable, "-c", code],
        cwd=ROOT,
        stdin=theirs,
        stdout=subprocess.PIPE,
    )
    os.close(theirs)
    with popen:
        pid = int(popen.stdout.readline())
        assert seconds_until_gone(pid, lambda: os.close(ours)) < 5


def test_ctrl_c_is_the_parents_business():
    """SIGINT to the terminal's whole group: the server says nothing, and is stopped."""
    with Parent() as parent:
        parent.ready()
        os.killpg(parent.popen.pid, signal.SIGINT)
        _, errors = parent.popen.communicate()
        assert errors.count(b"Traceback") == 1
        assert errors.rstrip().endswith(b"KeyboardInterrupt")
        parent.assert_all_gone()


def test_a_stop_bears_that_the_reader_hangs_up_meanwhile(monkeypatch):
    """The thread that reads log records sees the end of the pipe first, say."""
    server = EmbeddedServer(LOOPBACK, None, app)
    core = server._core

    def wait_late(objects, timeout=None):
        if threading.current_thread() is threading.main_thread():
            core.hang_up()
        return wait(objects, timeout)

    monkeypatch.setattr(parent, "wait", wait_late)
    assert server.stop() == "exited"
    assert not server.is_alive()


def test_the_end_of_the_interpreter_is_silent():
    """A parent that just ends leaves nothing, neither processes nor words."""
    with Parent(warnings=True) as parent:
        parent.ready()
        parent.end("exit")
        assert parent.popen.wait() == 0
        assert parent.popen.stderr.read() == b""
        parent.assert_all_gone()


def test_ctrl_c_during_a_start_leaves_nothing():
    """KeyboardInterrupt comes out of the constructor, and the process is gone."""
    for method in START_METHODS:
        with Parent(method, build="sleep_for_ever") as parent:
            parent.await_processes(3)
            time.sleep(0.2)
            os.killpg(parent.popen.pid, signal.SIGINT)
            _, errors = parent.popen.communicate()
            assert errors.count(b"Traceback") == 1, (method, errors)
            assert errors.rstrip().endswith(b"KeyboardInterrupt")
            parent.assert_all_gone()


@pytest.mark.parametrize("build", [build_nested_app, build_threaded_nested_app])
@pytest.mark.parametrize("how", ["stop", "terminate", "SIGKILL"])
def test_an_embedded_server_may_embed_another(how, build, monkeypatch):
    """Which ends with it, however it ends."""
    # A fork server of ours is none of the inner server's.
    monkeypatch.setattr(EmbeddedServer, "start_method", "forkserver")
    EmbeddedServer(LOOPBACK, None, app).stop()
    monkeypatch.setattr(EmbeddedServer, "start_method", None)
    server = EmbeddedServer(LOOPBACK, build)
    inner = int(body_of(server.address))
    assert is_running(inner)
    assert inner != server.pid
    if how == "SIGKILL":
        os.kill(server.pid, signal.SIGKILL)
        server.wait()
    else:
        getattr(server, how)()
    poll(lambda: not is_running(inner), 2, "the inner server gone")


@pytest.mark.parametrize("how", ["kill", "stop", "terminate"])
def test_the_servers_own_children_end_with_it(how):
    """Those in its session, and those that left it."""
    server = EmbeddedServer(LOOPBACK, None, app)
    pids = [int(word) for word in body_of(server.address, "/grandchildren").split()]
    getattr(server.process if how == "kill" else server, how)()
    server.wait()
    poll(lambda: not any(is_running(pid) for pid in pids), 2, "grandchildren gone")


@pytest.mark.skipif(sys.platform != "linux", reason="the guard is Linux's")
@pytest.mark.parametrize("how", ["SIGSTOP", "SIGKILL"])
def test_a_server_without_its_guard_ends_all_by_itself(how):
    """Where there is one it leaves that to the guard: two would kill each other."""
    with Parent() as parent:
        parent.ready()
        assert len(body_of(parent.address, "/grandchildren").split()) == 2
        [guard] = [pid for pid in parent.find() if read_name(pid) == "degu-guard"]
        os.kill(guard, getattr(signal, how))
        began = time.monotonic()
        parent.end("SIGKILL")
        if how == "SIGSTOP":
            time.sleep(GUARD_SECONDS / 3)  # nothing is to have happened in it
            assert len(parent.find()) == 4 or time.monotonic() - began > GUARD_SECONDS
        parent.assert_all_gone(GUARD_SECONDS + 1)


def read_name(pid):
    return Path(f"/proc/{pid}/comm").read_text().strip()


def test_the_servers_own_children_end_with_the_parent():
    """Also when nobody is left to clear up but the guard."""
    with Parent() as parent:
        parent.ready()
        assert len(body_of(parent.address, "/grandchildren").split()) == 2
        parent.end("SIGKILL")
        parent.assert_all_gone()


def test_parents_killed_at_random_leave_nothing(tmp_path):
    """During start, idle or in a request; any way, any method: all gone in a second."""
    # A fixed seed, another one for every number of kills.
    rng = random.Random(KILLS)
    for number in range(KILLS):
        method = START_METHODS[number % 3]
        moment = ("start", "idle", "request")[number // 3 % 3]
        how = rng.choice(WAYS if moment != "start" else WAYS[:4])
        options: dict[str, Any] = {"restart": "on-failure"} if number % 5 == 4 else {}
        options |= {"workers": 2} if number % 4 == 3 else {}
        address = rng.choice([LOOPBACK, str(tmp_path / f"{number}.sock")])
        with Parent(method, address=address, options=options) as parent:
            kill_parent(parent, moment, how, rng)
            parent.popen.wait()
            parent.assert_all_gone()
    assert list(tmp_path.iterdir()) == []


def kill_parent(parent, moment, how, rng):
    """Have `parent` end at a moment of its life."""
    if moment == "start":
        time.sleep(rng.uniform(0.0, 0.4))
        parent.end(how)
        return
    parent.ready()
    if moment == "idle":
        parent.end(how)
        return
    with connect(parent.address, 20) as sock:
        sock.sendall(b"GET /sleep HTTP/1.1\r\nHost: localhost\r\n\r\n")
        time.sleep(rng.uniform(0.0, 0.1))
        parent.end(how)


# --- start and stop, again and again ----------------------------------------------


def measure_self():
    """Descriptors, threads and children of this process."""
    gc.collect()
    me = psutil.Process()
    children = [c for c in me.children(recursive=True) if is_running(c.pid)]
    return me.num_fds(), me.num_threads(), len(children)


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize("method", START_METHODS)
def test_nothing_grows_however_often_a_server_starts(method, log, monkeypatch):
    """Descriptors, threads, children and memory are as before."""
    monkeypatch.setattr(EmbeddedServer, "start_method", method)
    cycles = max(3, CYCLES // 6)
    starts, stops = [], []

    def cycle():
        began = time.perf_counter()
        server = EmbeddedServer(LOOPBACK, None, app, log=log)
        started = time.perf_counter()
        assert server.stop() == "stopped"
        starts.append(started - began)
        stops.append(time.perf_counter() - started)

    cycle()
    before, memory = measure_self(), psutil.Process().memory_info().rss
    for _ in range(cycles):
        cycle()
    assert measure_self() == before
    assert psutil.Process().memory_info().rss - memory < 4_000_000
    print(
        f"\n{method}, log={log}, {cycles} cycles: "
        f"start {statistics.median(starts) * 1000:.1f} ms, "
        f"stop {statistics.median(stops) * 1000:.1f} ms (medians)"
    )


def test_many_servers_at_once_share_one_thread():
    """Watching needs one thread, and none when the last server has ended."""
    before = threading.active_count()
    servers = [EmbeddedServer(LOOPBACK, None, app) for _ in range(5)]
    assert threading.active_count() == before + 1
    for server in servers:
        assert request(server.address).startswith(b"HTTP/1.1 200 ")
        server.stop()
    assert threading.active_count() == before


def test_servers_that_come_and_go_disturb_nobody(caplog):
    """Starting, stopping and dying in threads, while another one is listened to."""
    caplog.set_level("INFO", "tests.child")
    with EmbeddedServer(LOOPBACK, None, app) as steady:

        def come_and_go(how):
            for _ in range(4):
                server = EmbeddedServer(LOOPBACK, None, app)
                getattr(server.process if how == "kill" else server, how)()
                assert server.wait() is not None

        threads = [
            threading.Thread(target=come_and_go, args=(how,))
            for how in ("stop", "terminate", "kill")
        ]
        for thread in threads:
            thread.start()
        for _ in range(20):
            assert body_of(steady.address, "/log") == "logged"
        for thread in threads:
            thread.join()
        poll(lambda: caplog.text.count("hello home") == 20, 20)


def test_a_garbage_collected_server_ends():
    """Without a reference there is no server."""
    server = EmbeddedServer(LOOPBACK, None, app)
    process, address = server.process, server.address
    del server
    gc.collect()
    assert not process.is_alive()
    assert process.exitcode == -signal.SIGTERM
    with pytest.raises(ConnectionRefusedError):
        connect(address, 5)


def test_the_garbage_collector_waits_for_no_lock():
    """It may have stopped the very thread that the holder of the lock waits for."""
    server = EmbeddedServer(LOOPBACK, None, app)
    pid, held, done = server.pid, threading.Event(), threading.Event()

    def hold():
        with parent.reader.lock:
            held.set()
            done.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    del server
    gc.collect()
    poll(lambda: not is_running(pid), 5, "the server gone")
    assert thread.is_alive()
    done.set()
    thread.join()
    # The next start clears up.
    EmbeddedServer(LOOPBACK, None, app).stop()
    assert pid not in {child.pid for child in psutil.Process().children()}


def test_a_port_is_free_as_soon_as_a_server_has_ended():
    """The next server gets the same one, every time."""
    server = EmbeddedServer(LOOPBACK, None, app)
    for how in ("stop", "terminate") * 3:
        getattr(server, how)()
        with pytest.raises(ConnectionRefusedError):
            connect(server.address, 5)
        server = EmbeddedServer(server.address, None, app)
    server.terminate()


def test_servers_start_in_many_threads_at_once():
    """Starting is safe from threads, and picks a method that is."""
    servers, errors = [], []

    def start():
        try:
            servers.append(EmbeddedServer(LOOPBACK, None, app))
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len({server.address for server in servers}) == 4
    for server in servers:
        server.stop()


def test_a_fork_of_the_parent_is_no_parent():
    """Its copy of the object ends nothing, not even at its own exit."""
    server = EmbeddedServer(LOOPBACK, None, app)
    pid = os.fork()
    if pid == 0:
        try:
            server.terminate()
            del server
            gc.collect()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert server.is_alive()
    assert body_of(server.address, "/pid") == str(server.pid)
    server.stop()


@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET6])
def test_idle_connections_do_not_hold_up_a_stop(family, tmp_path):
    """Fifty of them: a stop is as quick as with none."""
    address = str(tmp_path / "s") if family == socket.AF_UNIX else LOOPBACK
    server = EmbeddedServer(address, None, app)
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            sock = stack.enter_context(connect(server.address, 20))
            sock.sendall(b"GET /pid HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert sock.recv(1000)
        began = time.monotonic()
        assert server.stop() == "stopped"
        assert time.monotonic() - began < 0.5 * TIMEOUT_FACTOR

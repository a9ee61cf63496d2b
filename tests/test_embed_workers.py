"""degu.embed with `workers`: processes that share an address, and one end for all."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

import degu
from degu import EmbeddedServer, EmbeddedService, EmbeddedSSLServer, start_server
from degu.address import connect, identify_socket, listen
from degu.client import SSLClient
from degu.errors import DiedError
from degu.limits import MAX_WORKERS
from degu.testing import TempServer
from tests import embed_apps
from tests.conftest import TIMEOUT_FACTOR, poll
from tests.embed_apps import LOOPBACK, START_METHODS, app, is_running, request
from tests.test_embed import needs_abstract
from tests.test_embed_lifecycle import Parent, measure_self, seconds_until_gone
from tests.transports import shared_pki

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork()")

needs_pidfd = pytest.mark.skipif(
    not hasattr(os, "pidfd_open"), reason="the promises of Linux"
)


@pytest.fixture(params=START_METHODS)
def start_method(request, monkeypatch):
    """Every start method in turn."""
    monkeypatch.setattr(EmbeddedService, "start_method", request.param)
    return request.param


def ask(sock, path="/pid"):
    """GET `path` on a kept connection; return the body as text."""
    send(sock, path)
    return receive(sock)


def send(sock, path):
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())


def receive(sock):
    """One whole answer; what was there at the end of the connection if that came."""
    data = b""
    while b"\r\n\r\n" not in data and (piece := sock.recv(65536)):
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split()[0])
    while len(body) < length:
        body += sock.recv(65536)
    return body.decode()


def find_workers(address, count=2):
    """The pids of all workers."""
    pids = set()

    def look():
        with contextlib.ExitStack() as stack:
            # Kept ones are shared out; one after the other could all go to one.
            for _ in range(count):
                sock = stack.enter_context(connect(address, 20))
                pids.add(int(ask(sock)))
        return len(pids) >= count

    poll(look, 20, f"answers of {count} workers")
    assert len(pids) == count
    return pids


def one_each(stack, address, pids):
    """A kept connection to each worker: pid to socket."""
    socks: dict[int, Any] = {}

    def look():
        sock = stack.enter_context(connect(address, 20))
        socks.setdefault(int(ask(sock)), sock)
        return socks.keys() == pids

    poll(look, 20, "a connection to each worker")
    return socks


def assert_gone(*pids):
    """The processes have ended, or do so soon."""
    poll(lambda: not any(map(is_running, pids)), 2, f"{pids} gone")


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
def test_requests_are_answered_by_different_processes(address, start_method, tmp_path):
    """At one address; none of them is the one that watches over them."""
    address = str(tmp_path / "sock") if address == "path" else address
    with EmbeddedServer(address, None, app, workers=2) as server:
        pids = find_workers(server.address)
        assert not pids & {os.getpid(), server.pid}
        assert server.process.pid == server.pid
        assert server.options == {"workers": 2}
    assert server.process.exitcode == 0
    assert_gone(server.pid, *pids)
    assert list(tmp_path.iterdir()) == []


def test_one_worker_is_a_server_as_ever():
    """The control: no process more than without the option."""
    with EmbeddedServer(LOOPBACK, None, app, workers=1) as server:
        assert find_workers(server.address, 1) == {server.pid}
    code = (
        "import sys, degu\n"
        "from tests.embed_apps import app\n"
        "degu.EmbeddedServer(degu.IPv6_LOOPBACK, None, app, workers=1).stop()\n"
        "print({'degu.supervisor', 'degu.sharing', 'mmap'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code]
    assert subprocess.check_output(command, cwd=ROOT, text=True) == "set()\n"


def test_workers_speak_tls(start_method):
    """Each of them has a context of its own."""
    pki = shared_pki()
    with EmbeddedSSLServer(
        pki.server_sslconfig, LOOPBACK, None, app, workers=2
    ) as server:
        client = SSLClient(pki.client_sslconfig, server.address)
        pids = set()

        def look():
            with client.connect() as one, client.connect() as two:
                for conn in (one, two):
                    body = conn.get("/pid").body
                    assert body is not None
                    pids.add(int(body.read()))
            return len(pids) == 2

        poll(look, 20, "both workers")
        client.close()


def test_the_function_form_takes_workers(start_method):
    """`process.terminate()` ends all."""
    process, address = start_server(LOOPBACK, None, app, workers=3)
    pids = find_workers(address, 3)
    process.terminate()
    process.join()
    assert process.exitcode == -signal.SIGTERM
    assert_gone(*pids)


def test_a_listening_socket_is_shared_too(start_method):
    """One that was made here, and stays open here."""
    with listen(LOOPBACK) as sock:
        with EmbeddedServer(sock, None, app, workers=2) as server:
            assert server.address == sock.getsockname()
            find_workers(server.address)
        assert sock.fileno() > 0


def test_a_temporary_server_takes_workers():
    """If it need not record: several processes count each for itself."""
    with TempServer(LOOPBACK, None, app, workers=2, record=False) as server:
        find_workers(server.address)
    with pytest.raises(ValueError, match=r"workers: .*record=False.*, got 2"):
        TempServer(LOOPBACK, None, app, workers=2)


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (0, ValueError),
        (-1, ValueError),
        (MAX_WORKERS + 1, ValueError),
        (1.5, ValueError),
        (True, TypeError),
        ("x", TypeError),
        (None, TypeError),
    ],
)
@pytest.mark.parametrize("start", [EmbeddedServer, start_server, TempServer])
def test_a_bad_number_of_workers_is_refused(start, value, error):
    """What was expected and what came."""
    before = find_ours()
    with pytest.raises(error) as caught:
        start(LOOPBACK, None, app, workers=value)
    assert str(caught.value) == f"workers: expected an int from 1 to 64, got {value!r}"
    assert find_ours() <= before


def test_a_service_has_no_workers():
    """It makes its own socket, of which there can be one."""
    with pytest.raises(TypeError, match="unknown option 'workers'"):
        EmbeddedService(embed_apps.Endless, workers=2)


@pytest.mark.parametrize("option", ["backlog", "socket_mode", "timeout"])
def test_bad_options_are_named_as_ever(option):
    """Also those that the socket needs before there is a worker."""
    with pytest.raises(TypeError, match=f"{option}: expected "):
        EmbeddedServer(LOOPBACK, None, app, workers=2, **{option: "x"})


def test_an_address_in_use_is_an_oserror(tmp_path):
    """And the server that uses it is not disturbed."""
    for address in (LOOPBACK, str(tmp_path / "sock")):
        with EmbeddedServer(address, None, app, workers=2) as server:
            with pytest.raises(OSError, match="in use"):
                EmbeddedServer(server.address, None, app, workers=2)
            find_workers(server.address)


# --- a start that fails -----------------------------------------------------------


def test_a_build_that_fails_in_one_worker_fails_the_start(start_method, tmp_path):
    """With its exception and traceback; the worker that is well ends too."""
    path = str(tmp_path / "once")
    EmbeddedServer(LOOPBACK, None, app).stop()  # with it the helpers of the method
    before = find_ours()
    with pytest.raises(FileExistsError) as caught:
        EmbeddedServer(LOOPBACK, embed_apps.build_once_app, path, workers=2)
    assert "in build_once_app" in str(caught.value.__cause__)
    poll(lambda: find_ours() <= before, 2, "no process left")
    # The control: one worker can be built.
    os.unlink(path)
    EmbeddedServer(LOOPBACK, embed_apps.build_once_app, path, workers=1).stop()


def find_ours():
    """What descends from us and runs."""
    every = psutil.Process().children(recursive=True)
    return {one.pid for one in every if is_running(one.pid)}


@pytest.mark.parametrize(
    ("build", "match"),
    [(embed_apps.call_exit, "exit code 3"), (embed_apps.kill_itself, "SIGKILL")],
)
def test_a_worker_that_dies_silently_fails_the_start(build, match, start_method):
    """At once, with what it ended with."""
    began = time.monotonic()
    with pytest.raises(DiedError, match=match):
        EmbeddedServer(LOOPBACK, build, workers=2)
    assert time.monotonic() - began < 5 * TIMEOUT_FACTOR


# --- connections ------------------------------------------------------------------


@pytest.mark.parametrize("workers", [2, 3])
def test_kept_connections_are_shared_out(workers, tmp_path):
    """None gets more than its part; one or two more on a busy machine."""
    for address in (LOOPBACK, str(tmp_path / "sock")):
        options = {"workers": workers, "log": False}
        with (
            EmbeddedServer(address, None, app, **options) as server,
            contextlib.ExitStack() as stack,
        ):
            counts: dict[str, int] = {}
            for _ in range(24):
                pid = ask(stack.enter_context(connect(server.address, 20)))
                counts[pid] = counts.get(pid, 0) + 1
            assert len(counts) == workers
            assert max(counts.values()) <= 24 // workers + 2


def test_a_worker_that_hangs_does_not_keep_connections_from_the_others():
    """Those with more connections wait a moment for it, not longer."""
    with (
        EmbeddedServer(LOOPBACK, None, app, workers=2) as server,
        contextlib.ExitStack() as stack,
    ):
        stuck, other = one_each(
            stack, server.address, find_workers(server.address)
        ).items()
        os.kill(stuck[0], signal.SIGSTOP)
        began = time.monotonic()
        for _ in range(10):
            sock = stack.enter_context(connect(server.address, 20))
            assert ask(sock) == str(other[0])
        assert time.monotonic() - began < 2 * TIMEOUT_FACTOR
        os.kill(stuck[0], signal.SIGCONT)
        # The control: as it reacts again, it gets what it has less of.
        assert ask(stack.enter_context(connect(server.address, 20))) == str(stuck[0])


# --- the end of one ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "code"), [("/die", -signal.SIGKILL), ("/exit", 7)], ids=["killed", "exit"]
)
def test_the_end_of_one_worker_is_the_end_of_all(path, code, start_method, tmp_path):
    """And told as the crash that it is."""
    address = str(tmp_path / "sock")
    server = EmbeddedServer(address, None, app, workers=2)
    pids = find_workers(address)
    told: list[int | None] = []
    server.on_exit(told.append)
    assert request(address, path) == b""
    assert server.wait(20) == code
    poll(lambda: told == [code], 5, "on_exit")
    with pytest.raises(DiedError) as caught:
        server.address  # noqa: B018
    assert caught.value.exitcode == code
    assert_gone(*pids)
    assert not os.path.exists(address)


def test_a_worker_that_fails_is_replaced_if_that_is_wished_for(
    start_method, tmp_path, caplog
):
    """The others go on, the socket file stays the same one, the log knows."""
    address = str(tmp_path / "sock")
    options = {"workers": 2, "restart": "on-failure"}
    with (
        EmbeddedServer(address, None, app, **options) as server,
        contextlib.ExitStack() as stack,
    ):
        file = identify_socket(address)
        socks = one_each(stack, address, find_workers(address))
        dying, staying = socks
        for path in ("/die", "/exit"):
            send(socks[dying], path)
            assert socks[dying].recv(100) == b""
            assert_gone(dying)
            assert ask(socks[staying]) == str(staying)
            find_new = functools.partial(look_for_two, address, dying, staying)
            dying = poll(find_new, 20, "a new worker").pop()
            socks.update(one_each(stack, address, {dying, staying}))
            assert identify_socket(address) == file
        assert server.is_alive()
    assert "worker" in caplog.text
    assert "ended with SIGKILL" in caplog.text
    assert "ended with exit code 7" in caplog.text
    assert server.process.exitcode == 0
    assert not os.path.exists(address)


def test_the_file_of_a_given_socket_is_its_makers(start_method, tmp_path):
    """No worker's end removes it, since there are others; nor does the server's."""
    address = str(tmp_path / "sock")
    options = {"workers": 2, "restart": "on-failure"}
    with listen(address) as sock:
        with EmbeddedServer(sock, None, app, **options) as server:
            for _ in range(2):
                victim = find_workers(server.address).pop()
                os.kill(victim, signal.SIGKILL)
                assert_gone(victim)
                # Its guard, a child of it, clears up after it.
                poll(lambda: len(list_guards(server.pid)) <= 2, 5, "the guard gone")
        assert os.path.exists(address)
    # The control: the file of an address is gone with the server.
    other = str(tmp_path / "other")
    EmbeddedServer(other, None, app, **options).stop()
    assert not os.path.exists(other)


def list_guards(pid):
    """The guards below a process."""
    every = psutil.Process(pid).children(recursive=True)
    return [one for one in every if describe(one).startswith("degu-guard")]


def describe(process):
    with contextlib.suppress(psutil.Error):
        return process.name()
    return ""


def look_for_two(address, *known):
    """The pids of new workers."""
    with connect(address, 20) as one, connect(address, 20) as two:
        return {int(ask(one)), int(ask(two))} - set(known)


@needs_pidfd
@pytest.mark.parametrize("path", ["/pid", "/hold", "/busy", "/grandchildren"])
def test_workers_end_with_the_process_that_watches_over_them(path, tmp_path):
    """SIGKILL to that one from outside; even one that does not let go of its lock."""
    address = str(tmp_path / "sock")
    server = EmbeddedServer(address, None, app, workers=2)
    pids = find_workers(address)
    with connect(address, 20) as sock:
        send(sock, path)
        if path == "/grandchildren":
            receive(sock)
        every = [one.pid for one in psutil.Process(server.pid).children(recursive=True)]
        assert pids < set(every)
        os.kill(server.pid, signal.SIGKILL)
        assert server.wait(20) == -signal.SIGKILL
        poll(lambda: not any(map(is_running, every)), 2, "all gone")
    assert not os.path.exists(address)


@needs_pidfd
@pytest.mark.parametrize("how", ["SIGKILL", "exit", "error", "exec"])
@pytest.mark.parametrize("method", START_METHODS)
def test_workers_end_with_the_parent(method, how, tmp_path):
    """However that ends, and nothing is left."""
    address = str(tmp_path / "sock")
    with Parent(method, address=address, options={"workers": 2}) as parent:
        parent.ready()
        pids = find_workers(address)
        assert seconds_until_gone(pids.pop(), lambda: parent.end(how)) < 2
        if how == "exec":
            parent.end("SIGKILL")
        parent.popen.wait()
        parent.assert_all_gone()


@needs_pidfd
@pytest.mark.parametrize("fork", [False, True])
def test_workers_end_with_the_parent_whatever_they_do(fork):
    """One holds the interpreter's lock, one has children; and pipes are inherited."""
    options = {"workers": 2}
    with Parent(options=options, fork=fork) as parent, contextlib.ExitStack() as stack:
        parent.ready()
        pids = find_workers(parent.address)
        one, two = one_each(stack, parent.address, pids).values()
        ask(one, "/grandchildren")
        send(two, "/hold")
        assert seconds_until_gone(parent.pid, lambda: parent.end("SIGKILL")) < 1
        if fork:
            assert psutil.pid_exists(parent.forked)
            os.kill(parent.forked, signal.SIGKILL)
        parent.assert_all_gone()


@needs_pidfd
def test_the_first_process_reaps_workers_too():
    """PID 1 of a container is left no zombie."""
    command = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("no right to make a PID namespace")
    code = (
        "import os, degu\n"
        "from tests.embed_apps import app, body_of\n"
        "for stop in ('stop', 'terminate', 'kill'):\n"
        "    s = degu.EmbeddedServer(degu.IPv6_LOOPBACK, None, app, workers=2)\n"
        "    assert body_of(s.address, '/pid') != str(s.pid)\n"
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


# --- the end of all ---------------------------------------------------------------


def test_stop_waits_for_the_requests_of_every_worker():
    """All are answered in full, with connections refused meanwhile."""
    server = EmbeddedServer(LOOPBACK, None, app, workers=2)
    address, pids = server.address, find_workers(server.address)
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(connect(address, 20)) for _ in range(10)]
        assert {int(ask(sock)) for sock in socks} == pids
        for sock in socks:
            send(sock, "/sleep")
        assert server.stop(grace=20) == "stopped"
        assert [receive(sock) for sock in socks] == ["slept " * 1000] * 10
    with pytest.raises(ConnectionRefusedError):
        connect(address, 5)
    assert server.process.exitcode == 0
    assert_gone(*pids)


def test_what_hangs_in_one_worker_is_cut_off():
    """At the end of the grace period, and what is answered in the other is not."""
    server = EmbeddedServer(LOOPBACK, None, app, workers=2)
    with contextlib.ExitStack() as stack:
        pids = find_workers(server.address)
        one, two = one_each(stack, server.address, pids).values()
        send(one, "/hang")
        send(two, "/sleep")
        began = time.monotonic()
        assert server.stop(grace=1.0) == "cut"
        assert 1.0 <= time.monotonic() - began < 1.0 + 2 * TIMEOUT_FACTOR
        assert receive(two) == "slept " * 1000
        assert one.recv(100) == b""


def test_a_worker_that_does_not_react_is_terminated_with_the_others():
    """`stop()` never takes longer than with one."""
    server = EmbeddedServer(LOOPBACK, None, app, workers=2)
    pids = find_workers(server.address)
    os.kill(min(pids), signal.SIGSTOP)
    assert server.stop(grace=0.1) == "terminated"
    assert server.process.exitcode == -signal.SIGTERM
    assert_gone(*pids)


def test_stop_ends_the_pauses_of_restarts():
    """A group in which nobody runs has nothing to wait for."""
    options = {"workers": 2, "restart": "on-failure"}
    server = EmbeddedServer(LOOPBACK, None, app, **options)
    for _ in range(3):
        for pid in find_workers(server.address):
            os.kill(pid, signal.SIGKILL)
            assert_gone(pid)
    assert server.stop() in ("stopped", "cut")


@pytest.mark.parametrize("how", ["terminate", "kill"])
def test_terminate_ends_all_at_once(how, tmp_path):
    """Requests in flight or not; also what the workers started."""
    address = str(tmp_path / "sock")
    server = EmbeddedServer(address, None, app, workers=2)
    with contextlib.ExitStack() as stack:
        pids = find_workers(address)
        one, two = one_each(stack, address, pids).values()
        started = [int(word) for word in ask(one, "/grandchildren").split()]
        send(two, "/hang")
        began = time.monotonic()
        getattr(server.process, how)()
        assert server.wait(20) == -getattr(signal, f"SIG{how[:4].upper()}")
        assert time.monotonic() - began < 1 * TIMEOUT_FACTOR
        assert_gone(*pids, *started)
    assert not os.path.exists(address)


def test_records_of_all_workers_come_home(caplog):
    """Each with the number of its process."""
    caplog.set_level("INFO", "tests.child")
    with (
        EmbeddedServer(LOOPBACK, None, app, workers=2) as server,
        contextlib.ExitStack() as stack,
    ):
        pids = find_workers(server.address)
        for sock in one_each(stack, server.address, pids).values():
            assert ask(sock, "/log") == "logged"
    records = [one for one in caplog.records if one.name == "tests.child"]
    assert {one.process for one in records} == pids


@pytest.mark.parametrize("method", START_METHODS)
def test_nothing_grows_however_often_workers_start(method, monkeypatch):
    """Descriptors, threads and children are as before."""
    monkeypatch.setattr(EmbeddedServer, "start_method", method)

    def cycle():
        assert EmbeddedServer(LOOPBACK, None, app, workers=2).stop() == "stopped"

    cycle()
    before = measure_self()
    for _ in range(20 if method == "fork" else 4):
        cycle()
    assert measure_self() == before


@needs_pidfd
def test_a_supervisor_does_not_grow_with_restarts():
    """Its descriptors are as many as before when a worker was replaced ten times."""
    options = {"workers": 2, "restart": "on-failure"}
    with EmbeddedServer(LOOPBACK, None, app, **options) as server:
        process = psutil.Process(server.pid)
        pids, before = find_workers(server.address), process.num_fds()
        for _ in range(3):
            os.kill(pids.pop(), signal.SIGKILL)
            poll(lambda: len(list_workers(process)) == 2, 20, "two workers")
            pids = list_workers(process)
        find_workers(server.address)
        assert process.num_fds() == before


def list_workers(process):
    """The children of a supervisor that run."""
    return {one.pid for one in process.children() if is_running(one.pid)}

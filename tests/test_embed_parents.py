"""degu.embed in programs that are not as programs usually are.

Signals blocked or ignored, standard descriptors closed, forks that end, handlers that
raise at any moment, no threads to be had.
"""

from __future__ import annotations

import os
import sys
import threading

import pytest

from degu import EmbeddedServer, parent
from tests.conftest import run_program
from tests.embed_apps import LOOPBACK, START_METHODS, app, request

pytestmark = pytest.mark.skipif(
    not hasattr(os, "pidfd_open"), reason="the promises of Linux"
)

BEGIN = """
import os, signal, sys, threading, time
import degu
from tests.embed_apps import LOOPBACK, app, request
degu.EmbeddedServer.start_method = {method!r}
"""


def run(code: str, method: str = "fork", shell: str = 'exec "$@"') -> str:
    """What a program of its own prints, which has nothing to complain of.

    `shell` starts it: a line that knows its command as its arguments.
    """
    words = [sys.executable, "-c", BEGIN.format(method=method) + code]
    return run_program("sh", "-c", shell, "sh", *words).strip()


@pytest.fixture(params=START_METHODS)
def method(request: pytest.FixtureRequest) -> str:
    """Each way to start a process."""
    name: str = request.param
    return name


# --- signals ---------------------------------------------------------------------


BLOCKED = """
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
server = degu.EmbeddedServer(LOOPBACK, None, app)
request(server.address)
print(server.stop(), server.process.exitcode)
left = degu.EmbeddedServer(LOOPBACK, None, app)
"""


def test_blocked_signals_hold_up_nothing(method):
    """A fork server that inherits the mask would never hear of an end."""
    assert run(BLOCKED, method) == "stopped 0"


MASK = """
from multiprocessing.forkserver import _forkserver
degu.EmbeddedServer(LOOPBACK, None, app).stop()
status = open(f"/proc/{_forkserver._forkserver_pid}/status").read()
[blocked] = [line.split()[1] for line in status.splitlines() if "SigBlk" in line]
for number in (signal.SIGINT, signal.SIGCHLD):
    print(bool(int(blocked, 16) & 1 << number - 1))
"""


def test_a_fork_server_is_born_deaf_to_ctrl_c_alone():
    """It would die of it before it can ignore it, and the start with it."""
    assert run(MASK, "forkserver").split() == ["True", "False"]


STOPPED = """
from multiprocessing.forkserver import _forkserver
server = degu.EmbeddedServer(LOOPBACK, None, app)
os.kill(_forkserver._forkserver_pid, signal.SIGSTOP)
try:
    print(server.stop(), server.process.exitcode)
finally:
    os.kill(_forkserver._forkserver_pid, signal.SIGCONT)
"""


def test_a_fork_server_that_says_nothing_holds_up_nothing():
    """It alone knows the exit code; nobody waits for longer than `REPORT_SECONDS`."""
    assert run(STOPPED, "forkserver") == "stopped None"


IGNORED = """
if {ignored}:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
options = {{"workers": 2, "restart": "on-failure"}}
with degu.EmbeddedServer(LOOPBACK, None, app, **options) as server:
    name = f"/proc/{{server.pid}}/task/{{server.pid}}/children"
    def pids():
        return [int(word) for word in open(name).read().split()]
    before = pids()
    os.kill(before[-1], signal.SIGKILL)
    deadline = time.monotonic() + 20
    while (len(pids()) < len(before) or pids() == before) and server.is_alive():
        assert time.monotonic() < deadline, (before, pids())
        time.sleep(0.01)
    request(server.address)
    print(server.is_alive())
"""


@pytest.mark.parametrize("ignored", [True, False])
def test_a_server_is_started_again_where_sigchld_is_ignored(ignored):
    """And, the control, where it is not."""
    quiet = "import logging\nlogging.disable()\n"
    assert run(quiet + IGNORED.format(ignored=ignored)) == "True"


INTERRUPTED = """
import gc, random
from degu import parent

class Timeout(BaseException):
    pass

def raise_timeout(*_):
    raise Timeout

signal.signal(signal.SIGALRM, raise_timeout)
random.seed(3)
raised = 0
for _ in range(150):
    server = None
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.0003 + random.random() * 0.02)
            server = degu.EmbeddedServer(LOOPBACK, None, app)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except Timeout:
        raised += 1
    if server is not None:
        server.stop()
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])
    deadline = time.monotonic() + 10
    while running := [core for core in parent.alive if core.is_alive()]:
        assert time.monotonic() < deadline, running
        gc.collect()  # where it is raised as the constructor returns
        time.sleep(0.001)
print(raised > 0)
"""


def test_a_handler_that_raises_while_a_server_starts_leaves_nothing(method):
    """Whenever it does, no server is left that nobody has, and no signal blocked."""
    assert run(INTERRUPTED, method) == "True"


def test_signals_that_come_in_the_midst_are_handled_afterwards():
    """The handlers are back by then, in whatever order, and all that came is told."""
    code = """
from degu.parent import defer_signals
told = []
def note(number, frame):
    told.append(number)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
signal.signal(signal.SIGINT, note)
signal.signal(signal.SIGALRM, note)
try:
    with defer_signals():
        signal.raise_signal(signal.SIGALRM)
        signal.raise_signal(signal.SIGINT)
        print(told)
except KeyboardInterrupt:
    print([int(number) for number in told])
print(signal.getsignal(signal.SIGINT) is signal.getsignal(signal.SIGALRM) is note)
"""
    assert run(code).splitlines() == ["[]", "[14, 2]", "True"]


# --- forks, descriptors, scripts -------------------------------------------------


FORKED = """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # that a thread is there
server = degu.EmbeddedServer(LOOPBACK, None, app)
pid = os.fork()
if pid == 0:
    print(repr(server).split(", ")[-1])
    for act in (server.process.terminate, server.process.kill, server.is_alive):
        try:
            act()
        except RuntimeError as error:
            print(error)
    sys.exit(0)
os.waitpid(pid, 0)
print(request(server.address)[:12].decode(), server.wait(0.2), server.stop())
"""


def test_a_fork_that_ends_does_not_end_the_server(method):
    """Multiprocessing would terminate it; and nobody else's methods reach it."""
    refused = ["a server belongs to the process that started it"] * 3
    assert run(FORKED, method).splitlines() == [
        "of the process that started it>",
        *refused,
        "HTTP/1.1 200 None stopped",
    ]


CLOSED = """
server = degu.EmbeddedServer(LOOPBACK, None, app, workers={workers})
request(server.address)
told = server.stop()
os.write(20, told.encode())
"""


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("closed", ["", "<&- >&- 2>&-", ">&- 2>&-", "<&- >&-"])
def test_a_program_without_standard_streams_has_servers(method, workers, closed):
    """As those of daemons. The first is the control."""
    shell = f'exec 9>&1; "$@" {closed}'
    code = "os.dup2(9, 20)\nos.close(9)\n" + CLOSED.format(workers=workers)
    assert run(code, method, shell) == "stopped"


SCRIPT = """
import threading, time
import degu

def app(request):
    return 200, "OK", {}, b"hello"

def work():
    while hasattr(__import__("__main__"), "__file__"):
        time.sleep(0.01)
    for method in ("forkserver", "spawn"):
        degu.EmbeddedServer.start_method = method
        # Since 3.12 no thread starts any more then, such as one that hears its log.
        server = degu.EmbeddedServer(degu.IPv6_LOOPBACK, None, app, log=False)
        print(server.stop())

if __name__ == "__main__":
    threading.Thread(target=work).start()
"""


def test_a_thread_that_outlasts_the_script_may_start_servers(tmp_path):
    """The interpreter takes the script's file name away when it has run."""
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    assert run_program(sys.executable, str(path)).split() == ["stopped", "stopped"]


POOL = """
import multiprocessing
def work(_):
    server = degu.EmbeddedServer(LOOPBACK, None, app)
    request(server.address)
    return server.stop(), multiprocessing.current_process().daemon
with multiprocessing.get_context("fork").Pool(1) as pool:
    print(*pool.map(work, [1])[0])
"""


def test_a_daemonic_process_may_have_servers(method):
    """Multiprocessing forbids it children, lest they be left; and stays as it was."""
    assert run(POOL, method) == "stopped True"


# --- no threads to be had --------------------------------------------------------


def refuse_threads(monkeypatch, name=None, after="degu-watch"):
    """Have no thread start of that name, or else none after one of another name."""
    real = threading.Thread.start
    seen = []

    def start(self):
        if self.name == name or (name is None and after in seen):
            raise RuntimeError("can't start new thread")
        seen.append(self.name)
        real(self)

    monkeypatch.setattr(threading.Thread, "start", start)


def test_a_start_without_a_thread_for_its_news_leaves_nothing(monkeypatch):
    """The parent's thread is the last thing that can fail."""
    refuse_threads(monkeypatch, "degu-embed")
    with pytest.raises(RuntimeError, match="can't start new thread"):
        EmbeddedServer(LOOPBACK, None, app)
    assert not parent.alive
    monkeypatch.undo()
    with EmbeddedServer(LOOPBACK, None, app) as server:
        assert request(server.address).startswith(b"HTTP/1.1 200 ")


def test_a_server_without_a_thread_to_watch_says_so(monkeypatch):
    """Its process raises that, and the parent has it with its traceback."""
    refuse_threads(monkeypatch, "degu-watch")
    monkeypatch.setattr(EmbeddedServer, "start_method", "fork")
    with pytest.raises(RuntimeError, match="can't start new thread") as info:
        EmbeddedServer(LOOPBACK, None, app)
    assert "degu/child.py" in str(info.value.__cause__)


def test_a_server_without_a_thread_to_stop_is_stopped(monkeypatch):
    """By the one that heard of it; it has no thread for connections, either."""
    refuse_threads(monkeypatch, after="degu-watch")
    monkeypatch.setattr(EmbeddedServer, "start_method", "fork")
    server = EmbeddedServer(LOOPBACK, None, app)
    assert server.stop() == "stopped"
    assert server.process.exitcode == 0

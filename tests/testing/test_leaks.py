"""`degu.testing.leaks`: every planted leak is found and named, clean code never is."""

from __future__ import annotations

import contextlib
import copy
import gc
import logging
import mmap
import multiprocessing
import os
import pickle
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest

from degu.testing import leaks
from degu.testing.leaks import (
    KINDS,
    Leak,
    LeakError,
    Memory,
    Snapshot,
    assert_no_orphans,
    assert_terminates,
    check_leaks,
    check_memory,
)
from degu.testing.leaks import probe as probes
from degu.testing.leaks.errors import build_error
from degu.testing.leaks.memory import is_growth
from degu.testing.leaks.probe import MARK, ProcProbe, PsutilProbe
from degu.testing.leaks.processes import descends
from degu.testing.leaks.snapshot import Found, find_new
from degu.testing.leaks.tracker import tracker

GRACE = 0.15
RUNS = int(os.environ.get("DEGU_TEST_LEAK_RUNS", "200"))
METHODS = multiprocessing.get_all_start_methods()
SLEEPER = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
posix = pytest.mark.skipif(os.name != "posix", reason="needs Unix sockets")


@pytest.fixture
def cleanup():
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture(params=["proc", "psutil"])
def probe(request, monkeypatch):
    """Each test with both ways to look at a process."""
    if request.param == "psutil":
        monkeypatch.setattr(probes, "system", PsutilProbe())
    elif sys.platform != "linux":
        pytest.skip("reads /proc")
    return request.param


@contextlib.contextmanager
def leaving(error, match=None, **options):
    """The body leaves something behind, and the check says so."""
    options = {"grace": GRACE, **options}
    with pytest.raises(error, match=match) as caught, check_leaks(**options):
        yield caught


def end(process):
    with contextlib.suppress(psutil.Error):
        psutil.Process(process if isinstance(process, int) else process.pid).kill()
    if hasattr(process, "wait"):
        process.wait()


def run_apart(code, *args):
    """Run `code` in an interpreter of its own; give what it prints."""
    command = [sys.executable, "-c", code, *args]
    result = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


# --- The heuristics, with invented measurements -------------------------------------


def test_nothing_is_new_between_equal_snapshots():
    """Two equal measurements differ in nothing."""
    shot = Snapshot(
        frozenset({1}), {1: {3: "/a", 4: "socket:[9]"}}, {1: frozenset({7})}
    )
    assert find_new(shot, copy.deepcopy(shot)) == []


def test_everything_new_is_found_with_its_kind():
    """Each kind of new thing comes out once, under its kind."""
    before = Snapshot(frozenset({1}), {1: {}}, {1: frozenset({7})})
    after = Snapshot(
        frozenset({1, 2}),
        {1: {3: "/a", 4: "socket:[9]"}},
        {1: frozenset({7, 8})},
        frozenset({"/s"}),
        frozenset({"/t"}),
    )
    found = find_new(before, after)
    assert found == [
        Found("processes", 2),
        Found("files", 1, 3, "/a"),
        Found("sockets", 1, 4, "socket:[9]"),
        Found("threads", 1, 8),
        Found("socket_files", 0, 0, "/s"),
        Found("temporary_files", 0, 0, "/t"),
    ]
    assert {one.kind for one in found} == set(KINDS)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({3: "/a"}, {4: "/a"}, []),
        ({3: "/a"}, {3: "/a", 4: "/a"}, [4]),
        ({3: "/a", 4: "/a"}, {3: "/a"}, []),
        ({3: "socket:[1]"}, {3: "socket:[2]"}, [3]),
        ({3: "socket:[1]"}, {3: "socket:[1]", 5: "socket:[1]"}, [5]),
        ({3: "/a"}, {3: "/a (deleted)"}, []),
        ({3: "/gone/1"}, {3: "/gone/2"}, []),
        ({3: os.devnull}, {3: "/other"}, [3]),
        ({3: "pipe:[1]"}, {3: "/other"}, [3]),
    ],
)
def test_descriptors_are_counted_by_what_they_are_open_on(before, after, expected):
    """A file opened again or renamed is not new; a second one on it is."""
    found = find_new(
        Snapshot(descriptors={1: before}), Snapshot(descriptors={1: after})
    )
    assert [one.number for one in found] == expected


def test_a_process_measured_only_once_has_nothing_new():
    """What was not measured before can't be compared."""
    after = Snapshot(descriptors={5: {3: "/a"}}, threads={5: frozenset({5})})
    assert find_new(Snapshot(), after) == []


@pytest.mark.parametrize(
    ("blocks", "size", "expected"),
    [
        (0, 0, False),
        (49, 4096, False),
        (50, 0, True),
        (-500, -4096, False),
        (0, 16383, False),
        (0, 16384, True),
    ],
)
def test_growth_is_half_an_object_or_four_pages(blocks, size, expected):
    """The bounds of a round of 100 calls, to the unit."""
    before = Memory(1000, 50_000_000)
    after = Memory(1000 + blocks, 50_000_000 + size)
    assert is_growth(before, after, 100, 128.0) is expected


def test_the_tolerance_is_per_call():
    """A bound in bytes a call that is over four pages a round is what counts."""
    assert not is_growth(Memory(0, 0), Memory(0, 99_999), 100, 1000.0)
    assert is_growth(Memory(0, 0), Memory(0, 100_000), 100, 1000.0)


class FamilyProbe:
    """A probe with an invented family: child to parent."""

    def __init__(self, parents):
        self.parents = parents

    def find_parent(self, pid):
        return (self.parents[pid], False) if pid in self.parents else None


def test_the_line_of_parents_decides_who_descends(monkeypatch):
    """Children and grandchildren descend; siblings, strangers and loops do not."""
    family = {5: 4, 4: 3, 3: 1, 6: 3, 7: 8, 8: 7}
    monkeypatch.setattr(probes, "system", FamilyProbe(family))
    assert descends(5, [3])
    assert descends(4, [3])
    assert not descends(6, [4])
    assert not descends(7, [3])
    assert not descends(99, [3])


def test_a_message_counts_and_lists():
    """One and several culprits, with the place, the process and the stack."""
    one = Leak("files", os.getpid(), "/a, descriptor 3", "x.py:1 in f")
    other = Leak("files", 1, "/b, descriptor 4", stack="at\nat")
    assert str(leaks.UnclosedFileError([one])) == (
        "1 file left open:\n  /a, descriptor 3\n      created at x.py:1 in f"
    )
    assert str(leaks.UnclosedFileError([one, other])) == (
        "2 files left open:\n  /a, descriptor 3\n      created at x.py:1 in f\n"
        "  /b, descriptor 4 [process 1]\n      at\n      at"
    )


def test_several_kinds_make_one_composed_error():
    """The composed error is no subclass and holds one error per kind."""
    found = [Leak("sockets", 1, "s"), Leak("files", 1, "f"), Leak("sockets", 1, "t")]
    error = build_error(found)
    assert type(error) is LeakError
    kinds = [leaks.UnclosedFileError, leaks.UnclosedSocketError]
    assert [type(one) for one in error.errors] == kinds
    assert str(error) == "\n".join(map(str, error.errors))
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)
    assert [type(one) for one in again.errors] == kinds


# --- Leaks planted in this process --------------------------------------------------


def plant_listener(cleanup):
    sock = cleanup.enter_context(socket.create_server(("127.0.0.1", 0)))
    return f"127.0.0.1:{sock.getsockname()[1]}"


def plant_connected(cleanup):
    sock = cleanup.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    sock.connect(("127.0.0.1", 9))
    return "to 127.0.0.1:9"


def plant_file(cleanup, tmp_path):
    cleanup.enter_context((tmp_path / "leaked.txt").open("w"))
    return "leaked.txt"


def plant_thread(cleanup):
    event = threading.Event()
    thread = threading.Thread(target=event.wait, name="a leaked thread")
    thread.start()
    cleanup.callback(thread.join)
    cleanup.callback(event.set)
    return "'a leaked thread'"


def plant_child(cleanup):
    process = subprocess.Popen(SLEEPER)
    cleanup.callback(end, process)
    return f"process {process.pid}"


def plant_temporary_folder(cleanup):
    folder = tempfile.mkdtemp()
    cleanup.callback(shutil.rmtree, folder)
    return folder


def plant_temporary_file(cleanup):
    path = os.path.join(tempfile.gettempdir(), f"degu-leak-{os.getpid()}")
    with open(path, "w"):
        cleanup.callback(os.unlink, path)
    return path


def plant_socket_file(cleanup, tmp_path):
    path = str(tmp_path / "leaked.socket")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
    return path


PLANTS = {
    plant_listener: leaks.UnclosedSocketError,
    plant_connected: leaks.UnclosedSocketError,
    plant_file: leaks.UnclosedFileError,
    plant_thread: leaks.UnjoinedThreadError,
    plant_child: leaks.UnreapedProcessError,
    plant_temporary_folder: leaks.LeftTemporaryError,
    plant_temporary_file: leaks.LeftTemporaryError,
    plant_socket_file: leaks.LeftSocketFileError,
}


def plant_one(plant, cleanup, tmp_path):
    wanted = plant.__code__.co_varnames[: plant.__code__.co_argcount]
    return plant(*([cleanup, tmp_path][: len(wanted)]))


@posix
@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__[6:])
def test_a_planted_leak_is_found_and_named(plant, cleanup, tmp_path, probe):
    """Each kind raises its own error, which names the culprit and its place."""
    with leaving(PLANTS[plant]) as caught:
        what = plant_one(plant, cleanup, tmp_path)
    (leak,) = caught.value.leaks
    assert what in leak.what
    # Python 3.11 has no audit event for the start of a thread.
    if sys.version_info >= (3, 12) or plant is not plant_thread:
        assert "test_leaks.py:" in leak.where
        assert f"in {plant.__name__}" in leak.where
    cleanup.close()
    with check_leaks(grace=GRACE):
        pass


@posix
@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__[6:])
def test_what_is_cleaned_up_is_no_leak(plant, tmp_path, probe):
    """The control: the same things, ended in time."""
    with check_leaks(), contextlib.ExitStack() as cleanup:
        path = plant_one(plant, cleanup, tmp_path)
        if plant is plant_socket_file:
            os.unlink(path)


def test_a_socket_shows_its_state(cleanup):
    """A listener, a connection and an unbound socket are told apart."""
    with leaving(leaks.UnclosedSocketError) as caught:
        listener = cleanup.enter_context(socket.create_server(("127.0.0.1", 0)))
        address = listener.getsockname()
        cleanup.enter_context(socket.create_connection(address))
        cleanup.enter_context(listener.accept()[0])
        cleanup.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    text = "\n".join(leak.what for leak in caught.value.leaks)
    assert text.count("(listen)") == 1
    assert text.count("(established)") == 2
    assert text.count("ipv4 udp socket, descriptor") == 1


def test_a_leaked_thread_shows_its_stack(cleanup):
    """The stack tells in which call the thread sits."""
    with leaving(leaks.UnjoinedThreadError) as caught:
        event = threading.Event()

        def sit_here():
            event.wait()

        thread = threading.Thread(target=sit_here, daemon=True)
        thread.start()
    event.set()
    thread.join()
    (leak,) = caught.value.leaks
    assert "sit_here" in leak.stack
    assert "(daemon)" in leak.what
    assert "sit_here" in str(caught.value)


def test_a_second_descriptor_on_the_same_socket_is_a_leak(cleanup):
    """A duplicate counts, although its socket was there before."""
    with (
        socket.create_server(("127.0.0.1", 0)) as sock,
        pytest.raises(leaks.UnclosedSocketError),
        check_leaks(grace=GRACE),
    ):
        cleanup.enter_context(sock.dup())


@posix
def test_a_leaked_pipe_is_a_file(cleanup):
    """Both ends of a pipe are listed."""
    with leaving(leaks.UnclosedFileError, "2 files") as caught:
        for descriptor in os.pipe():
            cleanup.callback(os.close, descriptor)
    if sys.platform == "linux":
        assert all("pipe:" in leak.what for leak in caught.value.leaks)


@posix
def test_a_grandchild_is_found_while_its_parent_lives(cleanup):
    """The recursion: child and grandchild are two leaks."""
    with leaving(leaks.UnreapedProcessError, "2 processes") as caught:
        code = "import subprocess, sys; subprocess.run(sys.argv[1:])"
        child = subprocess.Popen([sys.executable, "-c", code, *SLEEPER])
        cleanup.callback(end, child)
        wait_until(lambda: psutil.Process(child.pid).children())
        grandchild = psutil.Process(child.pid).children()[0].pid
        cleanup.callback(end, grandchild)
    assert {leak.pid for leak in caught.value.leaks} == {child.pid, grandchild}
    assert f"(child of {child.pid})" in str(caught.value)


def leave_grandchild():
    """Start a process that starts another, ends, and leaves it behind."""
    code = (
        "import subprocess, sys\n"
        "null = subprocess.DEVNULL\n"
        "p = subprocess.Popen(sys.argv[1:], stdout=null, stderr=null)\n"
        "p.returncode = 0\n"
        "print(p.pid)"
    )
    return int(run_apart(code, *SLEEPER))


@posix
def test_a_grandchild_is_found_after_its_parent_ended(cleanup, probe):
    """The mark in the environment tells whose an adopted process is."""
    with leaving(leaks.UnreapedProcessError) as caught:
        pid = leave_grandchild()
        cleanup.callback(end, pid)
    assert [leak.pid for leak in caught.value.leaks] == [pid]


@on_linux
def test_a_forked_grandchild_is_found_after_its_parent_ended(cleanup):
    """The journal tells it, where no exec ever renewed the environment."""
    with leaving(leaks.UnreapedProcessError) as caught:
        read, write = os.pipe()
        if (child := os.fork()) == 0:
            if os.fork() == 0:
                os.write(write, str(os.getpid()).encode())
                time.sleep(60)
            os._exit(0)
        os.waitpid(child, 0)
        pid = int(os.read(read, 20))
        cleanup.callback(end, pid)
        os.close(read)
        os.close(write)
    assert [leak.pid for leak in caught.value.leaks] == [pid]


@posix
def test_a_stranger_is_not_ours(cleanup, monkeypatch):
    """A process that is neither descendant nor marked belongs to somebody else."""
    with check_leaks(grace=GRACE):
        monkeypatch.delenv(MARK)
        cleanup.callback(end, leave_grandchild())
        monkeypatch.undo()


@on_linux
def test_a_zombie_is_a_leak_until_somebody_waits(cleanup):
    """A child that ended and was not waited for is said to be that."""
    with leaving(leaks.UnreapedProcessError, "zombie"):
        process = subprocess.Popen([sys.executable, "-S", "-c", ""])
        cleanup.callback(process.wait)


def test_an_error_of_the_body_goes_on_its_way(cleanup):
    """A failing test fails with its own error, and the next check still works."""
    with leaving(ZeroDivisionError):
        plant_listener(cleanup)
        raise ZeroDivisionError
    with check_leaks(grace=GRACE):
        pass


def test_two_kinds_are_composed(cleanup, tmp_path):
    """A file and a socket come as one error with both."""
    with leaving(LeakError) as caught:
        plant_listener(cleanup)
        plant_file(cleanup, tmp_path)
    assert type(caught.value) is LeakError
    assert "1 file left open" in str(caught.value)
    assert "1 socket left open" in str(caught.value)


def test_kinds_are_chosen_by_only_and_exclude(cleanup):
    """What is not looked at is not found; what is, is."""
    with check_leaks(only=["files"], grace=GRACE):
        plant_listener(cleanup)
    with check_leaks(exclude=["sockets"], grace=GRACE):
        plant_listener(cleanup)
    with leaving(leaks.UnclosedSocketError, only=["sockets"]):
        plant_listener(cleanup)


def test_an_unknown_kind_names_the_known_ones():
    """A slip of the pen is told with the choices."""
    with (
        pytest.raises(ValueError, match=r"'socket'; known: processes, files, sockets"),
        check_leaks(only=["socket"]),  # type: ignore[list-item]
    ):
        pass


def test_something_that_is_no_process_is_refused():
    """`processes` takes pids and objects that have one."""
    with (
        pytest.raises(TypeError, match="expected a pid"),
        check_leaks(processes=["1"]),
    ):
        pass


def test_allowed_things_may_stay(cleanup):
    """A pattern permits what it matches and nothing else."""
    with check_leaks(allow=["* tcp socket * (listen)*"], grace=GRACE):
        plant_listener(cleanup)
    with leaving(leaks.UnclosedSocketError, allow=["* udp *"]):
        plant_listener(cleanup)


def test_what_ends_within_the_grace_is_no_leak():
    """A thread that takes a moment to end is waited for; one that does not, found."""
    with check_leaks(grace=5.0):
        threading.Timer(0.2, print, args=[""]).start()
    timer = threading.Timer(30, print)
    begin = time.monotonic()
    with leaving(leaks.UnjoinedThreadError, grace=0.2):
        timer.start()
    assert time.monotonic() - begin < 5
    timer.cancel()
    timer.join()


def test_checks_nest(cleanup):
    """An inner and an outer check both see what is inside both."""
    with (
        pytest.raises(leaks.UnclosedSocketError, match="plant_listener"),
        check_leaks(grace=GRACE),
        pytest.raises(leaks.UnclosedSocketError, match="plant_listener"),
        check_leaks(grace=GRACE),
    ):
        plant_listener(cleanup)


class Cycle:
    """Holds a temporary folder, and itself."""

    def __init__(self):
        self.me = self
        self.folder = tempfile.mkdtemp()

    def __del__(self):
        os.rmdir(self.folder)


def test_garbage_is_collected_before_anything_is_called_a_leak():
    """What only waits for the next collection goes in time, whenever that is."""
    gc.disable()
    try:
        with check_leaks():
            Cycle()
    finally:
        gc.enable()


# --- What may stay ------------------------------------------------------------------


def test_a_log_file_stays_open(tmp_path):
    """A living handler's file is no leak; without the handler it is."""
    handler = None
    try:
        with check_leaks(grace=GRACE):
            handler = logging.FileHandler(tmp_path / "x.log")
            handler.emit(logging.makeLogRecord({"msg": "x"}))
    finally:
        if handler is not None:
            handler.close()


def test_files_of_the_test_runner_stay(tmp_path_factory, request):
    """The runner's own temporary folders, and captures begun inside the check."""
    with check_leaks(grace=GRACE):
        tmp_path_factory.mktemp("kept")
        request.getfixturevalue("tmp_path")
        request.getfixturevalue("capfd")


def test_devices_and_coverage_data_stay(tmp_path, cleanup):
    """A random device or coverage's database that opens lazily is no leak."""
    with check_leaks(grace=GRACE):
        cleanup.callback(os.close, os.open(os.devnull, os.O_RDONLY))
        cleanup.enter_context((tmp_path / ".coverage.host.1.x").open("w"))


@pytest.mark.parametrize("method", METHODS)
def test_the_helpers_of_multiprocessing_stay(method):
    """A first use that starts a fork server and a resource tracker is clean."""
    code = (
        "import multiprocessing, sys\n"
        "from degu.testing.leaks import check_leaks\n"
        "with check_leaks():\n"
        "    context = multiprocessing.get_context(sys.argv[1])\n"
        "    process = context.Process(target=print, args=['child'])\n"
        "    process.start()\n"
        "    process.join()\n"
        "    lock = context.Lock()\n"
        "print('clean', process.exitcode)\n"
    )
    assert run_apart(code, method).splitlines() == ["child", "clean 0"]


@pytest.mark.parametrize("method", METHODS)
def test_a_process_behind_a_helper_does_not_stay(method, cleanup):
    """The fork server's child looks like the fork server, and is a leak."""
    context = multiprocessing.get_context(method)
    with leaving(leaks.UnreapedProcessError) as caught:
        process = context.Process(target=time.sleep, args=[60], name="left-over")
        process.start()
        cleanup.callback(process.join)
        cleanup.callback(process.kill)
    (leak,) = caught.value.leaks
    assert leak.pid == process.pid
    assert "left-over" in leak.what


# --- Leaks in a server process ------------------------------------------------------


def leak_on_command(conn, journal):
    """A server process: plant what it is told to, answer, live on."""
    leaks.follow(journal)
    plants = {plant.__name__: plant for plant in [*PLANTS, *MORE_PLANTS]}
    with contextlib.ExitStack() as cleanup, tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        conn.send(None)
        while (name := conn.recv()) is not None:
            conn.send(plant_one(plants[name], cleanup, Path(folder)))
        cleanup.close()
        os.chdir("/")


def plant_nothing(cleanup):
    """Use a socket, a thread, a child and a temporary folder; leave nothing."""
    with contextlib.ExitStack() as inner:
        plant_listener(inner)
        plant_thread(inner)
        plant_temporary_folder(inner)
        plant_child(inner)
    return ""


def plant_echo(cleanup):
    return "x" * 1000


def plant_memory(cleanup):
    # Fresh from the system: a forked process inherits free memory, to use up first.
    memory = mmap.mmap(-1, 20_480)
    memory.write(b"x" * 20_480)
    cleanup.callback(memory.close)


MORE_PLANTS = [plant_nothing, plant_echo, plant_memory]


@pytest.fixture(params=METHODS, scope="module")
def server(request):
    """A server process, by each start method, and the pipe to it."""
    context = multiprocessing.get_context(request.param)
    ours, theirs = context.Pipe()
    args = (theirs, leaks.journal())
    process = context.Process(target=leak_on_command, args=args)
    process.start()
    theirs.close()
    ours.recv()
    yield process, ours
    ours.send(None)
    process.join(10)
    ours.close()
    assert process.exitcode == 0


@posix
@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__[6:])
def test_a_leak_in_a_server_process_is_found_and_named(plant, server):
    """Each kind again, with the number of the process that has it."""
    process, conn = server
    with leaving(PLANTS[plant], processes=[process]) as caught:
        conn.send(plant.__name__)
        what = conn.recv()
    (leak,) = caught.value.leaks
    if plant is not plant_thread or sys.version_info >= (3, 14):
        assert what.strip("'")[:15] in leak.what
    if plant is plant_child:
        assert f"(child of {process.pid})" in leak.what
    else:
        assert leak.pid == process.pid
        assert f"[process {process.pid}]" in str(caught.value)
    if PLANTS[plant] in (leaks.LeftTemporaryError, leaks.LeftSocketFileError):
        assert plant.__name__ in leak.where


@posix
def test_a_server_process_that_cleans_up_is_clean(server):
    """The control: the same work, with nothing left."""
    process, conn = server
    for _ in range(3):
        with check_leaks(processes=[process]):
            conn.send("plant_nothing")
            conn.recv()


def test_a_server_process_that_ended_has_no_leaks():
    """What ends during the check has nothing open any more."""
    with check_leaks(grace=GRACE):
        process = subprocess.Popen(SLEEPER)
        try:
            with check_leaks(grace=GRACE, processes=[process]):
                end(process)
        finally:
            end(process)


# --- Clean runs ---------------------------------------------------------------------


def serve_one(listener):
    connection, _ = listener.accept()
    with connection, tempfile.TemporaryFile() as fp:
        fp.write(connection.recv(10))
        connection.sendall(b"answer")


def live_a_test(run):
    """A server thread, a client, a temporary folder, and now and then a child."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve_one, args=[listener])
        thread.start()
        with socket.create_connection(listener.getsockname()) as client:
            client.sendall(b"question")
            assert client.recv(10) == b"answer"
        thread.join()
    with tempfile.TemporaryDirectory() as folder, open(f"{folder}/x", "w") as fp:
        fp.write("x")
    if run % 10 == 0:
        subprocess.run([sys.executable, "-S", "-c", ""], check=True)


@pytest.mark.timeout(600)
def test_clean_runs_never_trip():
    """Not one false positive over many runs (DEGU_TEST_LEAK_RUNS)."""
    for run in range(RUNS):
        with check_leaks():
            live_a_test(run)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("method", METHODS)
def test_clean_runs_with_a_child_never_trip(method):
    """Nor with a child process in each run, by each start method."""
    context = multiprocessing.get_context(method)
    # The other methods import this module, and with it pytest, in every child.
    for run in range(RUNS // (10 if method == "fork" else 50)):
        with check_leaks():
            process = context.Process(target=live_a_test, args=[run + 1])
            process.start()
            process.join()
            assert process.exitcode == 0


# --- Terminating --------------------------------------------------------------------


def wait_until(condition, within=10.0):
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.001)


def start_quick():
    return subprocess.Popen([sys.executable, "-S", "-c", "raise SystemExit(3)"])


def test_every_sort_of_process_terminates():
    """A Popen and a multiprocessing process give their status, a pid None."""
    assert assert_terminates(start_quick()) == 3
    process = multiprocessing.get_context("spawn").Process(target=os._exit, args=[4])
    process.start()
    assert assert_terminates(process) == 4
    process.close()


@posix
@pytest.mark.parametrize("wrap", [int, psutil.Process])
def test_a_zombie_has_terminated(wrap, cleanup):
    """A pid or a psutil process whose parent did not wait yet."""
    process = start_quick()
    cleanup.callback(process.wait)
    assert assert_terminates(wrap(process.pid)) is None


@pytest.mark.parametrize(
    "wrap", [lambda p: p, lambda p: p.pid, lambda p: psutil.Process(p.pid)]
)
def test_a_process_that_stays_is_described(wrap, cleanup):
    """The failure comes in time and names the process and its command line."""
    process = subprocess.Popen(SLEEPER)
    cleanup.callback(end, process)
    begin = time.monotonic()
    with pytest.raises(leaks.NotTerminatedError, match=r"within 0\.1 s") as caught:
        assert_terminates(wrap(process), within=0.1)
    assert time.monotonic() - begin < 5
    assert caught.value.pid == process.pid
    assert "time.sleep(60)" in str(caught.value)


def test_a_pid_that_never_was_has_terminated():
    """An ended and reaped process is simply gone."""
    process = start_quick()
    process.wait()
    assert assert_terminates(process.pid, within=0.1) is None


def test_what_is_no_process_can_not_terminate():
    """The error shows what came."""
    with pytest.raises(TypeError, match="expected a pid or an object with one"):
        assert_terminates("1")


@posix
def test_orphans_are_found():
    """A process that outlives its parent is named; when it is gone all is well."""
    leaks.start_tracking()
    assert_no_orphans()
    pid = leave_grandchild()
    try:
        with pytest.raises(leaks.OrphanError, match=f"process {pid}"):
            assert_no_orphans(grace=GRACE)
    finally:
        end(pid)
    assert_no_orphans()


def test_a_child_is_no_orphan(cleanup):
    """What still has its parent is not orphaned, only running."""
    cleanup.callback(end, subprocess.Popen(SLEEPER))
    assert_no_orphans(grace=GRACE)


# --- Memory -------------------------------------------------------------------------


def test_a_function_that_keeps_objects_is_found():
    """One object kept a call, with the line that made it."""
    kept = []

    def keep_object():
        kept.append(build_object())

    with pytest.raises(leaks.GrowingMemoryError, match="keep_object: ") as caught:
        check_memory(keep_object, 50)
    assert "test_leaks.py" in str(caught.value.leaks[0].where)


def build_object():
    return bytearray(100)


def test_a_function_that_keeps_nothing_passes():
    """The control: the same allocation, given back; a cache that fills up once."""
    cache: dict[int, bytearray] = {}
    check_memory(build_object, 50)
    check_memory(lambda: cache.setdefault(len(cache) % 40, build_object()), 50)


def test_memory_of_another_process_is_measured(server):
    """A server that answers passes; one that keeps 20 kB a request is found."""
    process, conn = server

    def ask(name):
        conn.send(name)
        conn.recv()

    check_memory(lambda: ask("plant_echo"), process=process)
    with pytest.raises(leaks.GrowingMemoryError) as caught:
        check_memory(lambda: ask("plant_memory"), process=process)
    assert caught.value.leaks[0].pid == process.pid


def test_the_repetitions_are_checked():
    """At least one call is needed to measure anything."""
    with pytest.raises(ValueError, match="at least 1, got repetitions=0"):
        check_memory(print, 0)


# --- The extra ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "use",
    [
        lambda: check_leaks().__enter__(),
        lambda: assert_terminates(1),
        assert_no_orphans,
        lambda: check_memory(print),
        leaks.journal,
    ],
)
def test_without_psutil_the_extra_is_named(use, monkeypatch):
    """The first use, not the import, says what to install."""
    monkeypatch.setitem(sys.modules, "psutil", None)
    with pytest.raises(ImportError, match=r"degu\[testing\]"):
        use()


def test_importing_the_module_imports_no_psutil():
    """Nor pytest: the import is for everybody."""
    code = (
        "import sys, degu.testing.leaks\n"
        "print([name for name in ('psutil', 'pytest') if name in sys.modules])"
    )
    assert run_apart(code) == "[]"


@on_linux
def test_a_journal_is_not_written_into_another_file(tmp_path):
    """A child that closed every descriptor and reuses the number writes nothing."""
    path = tmp_path / "victim"
    leaks.start_tracking()
    descriptor = tracker.journal.descriptor
    assert descriptor is not None
    if (pid := os.fork()) == 0:
        with contextlib.suppress(BaseException):
            victim = os.open(path, os.O_CREAT | os.O_WRONLY)
            os.dup2(victim, descriptor)
            os.mkdir(os.path.join(tempfile.gettempdir(), f"degu-x-{os.getpid()}"))
            os.rmdir(os.path.join(tempfile.gettempdir(), f"degu-x-{os.getpid()}"))
        os._exit(0)
    os.waitpid(pid, 0)
    assert path.read_bytes() == b""


@on_linux
def test_both_probes_see_the_same(cleanup, tmp_path):
    """Both probes agree on pids, parents, threads and files."""
    proc, other = ProcProbe(), PsutilProbe()
    path = cleanup.enter_context((tmp_path / "x").open("w")).name
    pid = os.getpid()
    assert pid in proc.list_pids() & other.list_pids()
    assert proc.find_parent(pid) == other.find_parent(pid) == (os.getppid(), False)
    assert proc.list_threads(pid) == other.list_threads(pid)
    assert path in proc.list_descriptors(pid).values()
    assert path in other.list_descriptors(pid).values()
    for probe in (proc, other):
        gone = start_quick()
        gone.wait()
        assert probe.find_parent(gone.pid) is None
        assert not probe.list_descriptors(gone.pid)
        assert not probe.list_threads(gone.pid)
        assert not probe.has_mark(gone.pid, "x")

"""`degu.testing.tape`: what one process writes, another reads, and nothing is left."""

from __future__ import annotations

import errno
import gc
import logging
import multiprocessing
import os
import pickle
import sys
import threading
from typing import Any

import pytest

from degu.client import Client
from degu.server import Server
from degu.testing.leaks import check_leaks
from degu.testing.recorder import Link, Recorder, TapeHandler
from degu.testing.tape import Tape, close_others

METHODS = multiprocessing.get_all_start_methods()


@pytest.fixture
def tape():
    tape = Tape()
    yield tape
    tape.close()


def write_events(tape, count):
    for number in range(count):
        tape.append("event", number)


def test_what_was_written_is_read_once(tape):
    """Events come in order, with their values, and not again."""
    tape.append("a", 1, b"\0")
    tape.append("b", {"x": None})
    assert tape.has_more()
    assert tape.read() == [("a", 1, b"\0"), ("b", {"x": None})]
    assert tape.read() == []
    assert not tape.has_more()


def test_each_reader_has_a_place_of_its_own(tape):
    """A tape that was opened by its name begins at the beginning."""
    tape.append("a")
    tape.read()
    other = pickle.loads(pickle.dumps(tape))
    other.append("b")
    assert other.read() == [("a",), ("b",)]
    assert tape.read() == [("b",)]
    other.close()


@pytest.mark.parametrize("method", METHODS)
def test_a_child_writes_and_its_parent_reads(tape, method):
    """The tape travels by every start method, and outlives the child."""
    context = multiprocessing.get_context(method)
    child = context.Process(target=write_events, args=(tape, 3))
    child.start()
    child.join(30)
    assert child.exitcode == 0
    assert tape.read() == [("event", 0), ("event", 1), ("event", 2)]


def test_many_writers_do_not_get_in_each_others_way(tape):
    """Every event of four threads arrives whole."""
    threads = [
        threading.Thread(target=write_events, args=(tape, 200)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(tape.read()) == sorted([("event", n) for n in range(200)] * 4)


def test_half_an_event_waits_for_the_other_half(tape):
    """A reader that comes too early reads what is complete."""
    data = pickle.dumps(("whole",))
    frame = len(data).to_bytes(4, "big") + data
    os.write(tape._number, frame + frame[:7])
    assert tape.read() == [("whole",)]
    os.write(tape._number, frame[7:])
    assert tape.read() == [("whole",)]


def test_a_closed_tape_is_silent(tape):
    """Late writers and readers are no error, as a server may outlive its test."""
    tape.append("a")
    tape.close()
    tape.append("b")
    assert tape.closed
    assert tape.read() == []
    tape.close()


def test_a_tape_leaves_nothing_behind():
    """Neither a descriptor nor a file, closed or forgotten."""
    with check_leaks(grace=0.2):
        Tape().close()
        Tape()
        gc.collect()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it has a name")
def test_an_unnamed_tape_can_not_be_opened_once_it_is_closed():
    """Whoever is too late is told so."""
    tape = Tape()
    tape.close()
    with pytest.raises(OSError, match="No such file"):
        Tape(tape.name)


def test_others_are_closed(tape):
    """A forked server lets go of what belongs to its siblings."""
    other = Tape()
    everything = [one for one in [tape, other] if not one.closed]
    assert everything == [tape, other]
    pid = os.fork()
    if pid == 0:
        close_others(tape)
        os._exit(0 if other.closed and not tape.closed else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert not other.closed
    other.close()


@pytest.fixture
def full_tape(tape):
    """A tape on a disk without any room."""
    full = os.open("/dev/full", os.O_RDWR)
    os.dup2(full, tape._number)
    os.close(full)
    return tape


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="there is /dev/full")


@on_linux
def test_what_can_not_be_written_is_told(full_tape, capsys, monkeypatch):
    """An order that is lost is an error, a note that is lost is only told."""
    with pytest.raises(OSError, match="No space left"):
        full_tape.append("want", 1)
    full_tape.note("request", 1)
    error = capsys.readouterr().err
    assert error.startswith("--- Tape error ---\nTraceback")
    assert error.endswith("No space left on device\nLost event: request\n")
    monkeypatch.setattr(logging, "raiseExceptions", False)
    full_tape.note("request", 1)
    assert capsys.readouterr().err == ""


@on_linux
def test_a_server_without_room_for_its_tape_loses_no_request(full_tape, capsys):
    """Every request is answered, and each event that got lost is told."""

    def app(request: Any) -> Any:
        body = request["body"]
        return 200, "OK", {}, None if body is None else body.read()

    orders = Tape()
    recorder = Recorder(app, Link(full_tape, orders))
    with Server(("127.0.0.1", 0), recorder).running() as server:
        client = Client(server.address)
        echo: Any = client.post("/", {}, b"hello").body
        assert echo.read() == b"hello"
        assert client.get("/").status == 200
        client.close()
    orders.close()
    error = capsys.readouterr().err
    assert error.count("No space left") == 5
    for event in ("request", "body", "answered"):
        assert f"Lost event: {event}" in error


@on_linux
def test_a_log_record_without_room_is_told_as_handlers_do(full_tape, capsys):
    """By `logging.Handler.handleError`; the logger that it came from goes on."""
    logger = logging.Logger("lone")
    logger.addHandler(TapeHandler(full_tape))
    logger.warning("it is %s", "late")
    error = capsys.readouterr().err
    assert error.startswith("--- Logging error ---")
    assert "No space left" in error


@on_linux
def test_half_an_event_does_not_hide_those_that_follow(tape):
    """What found room for its beginning alone is taken back."""
    pid = os.fork()
    if pid == 0:
        import resource

        tape.append("before")
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            tape.append("big", b"x" * 2000)
        except OSError as error:
            tape.append("lost", error.errno)
        os._exit(0)
    os.waitpid(pid, 0)
    assert tape.read() == [("before",), ("lost", errno.ENOSPC)]
    tape.append("after")
    assert tape.read() == [("after",)]

"""How to find a leak: the example of the page of that name."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from degu.testing import LeakError, assert_terminates, check_leaks, check_memory


# [whole]
@pytest.mark.degu_leaks
def test_it_cleans_up(temp_server):
    client = temp_server(lambda request: (200, "OK", {}, b"hello")).client()
    assert client.get("/").body.read() == b"hello"
    client.close()
    # [/whole]


# [part]
def test_a_part_of_a_test():
    with pytest.raises(LeakError) as caught, check_leaks(grace=0.1):
        file = open(__file__)  # noqa: SIM115
    file.close()
    assert "in test_a_part_of_a_test" in str(caught.value)  # where it was opened
    # [/part]


class Cache:
    """An app that keeps what it should not."""

    def __init__(self):
        self.kept = []

    def __call__(self, request):
        if request["uri"] == "/file":
            self.kept.append(open(__file__))  # noqa: SIM115
        if request["uri"] == "/memory":
            self.kept.append(b"x" * 200_000)
        return 200, "OK", {}, None


# [server]
def test_what_the_server_keeps_open(temp_server):
    server = temp_server(build=Cache)
    with server.client().connect() as connection:
        connection.get("/")
        with server.check_leaks():
            connection.get("/")
        with (
            pytest.raises(LeakError, match="test_howto_find_a_leak"),
            server.check_leaks(grace=0.1),
        ):
            connection.get("/file")
            # [/server]


# [memory]
def test_memory_that_only_grows(temp_server):
    server = temp_server(build=Cache)
    with server.client().connect() as connection:
        check_memory(lambda: connection.get("/"), process=server)
        with pytest.raises(LeakError, match="bytes"):
            check_memory(lambda: connection.get("/memory"), 20, process=server)
            # [/memory]


# [allow]
@pytest.mark.degu_leaks(allow=["'heartbeat'*"], exclude=["temporary_files"])
def test_a_thread_that_may_stay():
    stop = threading.Event()
    threading.Thread(target=stop.wait, name="heartbeat", daemon=True).start()
    test_a_thread_that_may_stay.stop = stop
    # [/allow]


def test_that_thread_ends():
    test_a_thread_that_may_stay.stop.set()


# [process]
def test_a_process_ends_when_it_is_told_to():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1)
    process.stdin.close()
    assert assert_terminates(process, within=10) is not None
    # [/process]

"""How to simulate failures: the example of the page of that name."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request

import pytest

from degu.testing import FaultyClient


def fetch(url, timeout=5.0):
    """The client to be tested."""
    with urllib.request.urlopen(url, timeout=timeout) as response:
        return response.read()


# [reset]
def test_a_connection_that_is_reset_halfway(temp_server):
    server = temp_server.faulty("reset", after=100)
    with pytest.raises((ConnectionResetError, http.client.IncompleteRead)):
        fetch(server.url)
        # [/reset]


# [table]
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("refuse", {}),
        ("close", {"after": 0}),
        ("close", {"after": 500}),
        ("wrong_length", {"difference": 5}),
        ("bad_chunk", {"flaw": "size"}),
        ("bad_status", {}),
        ("garbage", {}),
        ("redirect_loop", {}),
    ],
)
def test_whatever_fails_is_one_of_two_errors(temp_server, kind, options):
    server = temp_server.faulty(kind, **options)
    with pytest.raises((OSError, http.client.HTTPException)) as caught:
        fetch(server.url)
    getattr(caught.value, "close", lambda: None)()
    # [/table]


# [slow]
def test_a_server_that_never_answers_costs_half_a_second(temp_server):
    server = temp_server.faulty("silent")
    begin = time.monotonic()
    with pytest.raises(TimeoutError):
        fetch(server.url, timeout=0.5)
    assert time.monotonic() - begin < 2
    # [/slow]


# [busy]
def test_busy_twice_then_well(temp_server):
    server = temp_server.faulty("busy", times=2)
    for _ in range(2):
        with pytest.raises(urllib.error.HTTPError, match="503") as caught:
            fetch(server.url)
        caught.value.close()
    assert len(fetch(server.url)) == 1000
    # [/busy]


# [record]
def test_what_happened_is_recorded(temp_server):
    server = temp_server.faulty("close", after=100)
    with pytest.raises(http.client.HTTPException):
        fetch(server.url)
    (connection,) = server.connections
    assert connection.received.startswith(b"GET / HTTP/1.1\r\n")
    assert connection.sent_size == 100
    # [/record]


# [client]
def test_my_server_puts_up_with_no_slow_client(temp_server):
    server = temp_server(lambda request: (200, "OK", {}, None), head_timeout=0.3)
    with FaultyClient("drip_head", server.address, interval=0.05) as client:
        assert client.wait(5), "the server put up with it"
    assert client.connections[0].received.startswith(b"HTTP/1.1 408 ")
    # [/client]

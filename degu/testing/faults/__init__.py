"""Servers and clients that fail in a chosen way, for the tests of others' code.

    with FaultyServer("reset", after=100) as server:
        call_my_client(server.url)

    with FaultyClient("drip_head", server.address, interval=0.1) as client:
        assert client.wait(5), "the server put up with it"

`SERVER_FAULTS` and `CLIENT_FAULTS` are the tables of the kinds, with what each
does and its options. The machinery is raw sockets and threads: what arrives is
exactly what the kind says, whatever a library would have made of it.

Below, one noun each: a `wire` is a connection with its record, a `fault` a row of the
tables, `server_faults` and `client_faults` are those rows, `messages` what several of
them break, and the `player` is what `server` and `client` share.
"""

from __future__ import annotations

from degu.testing.faults.client import FaultyClient
from degu.testing.faults.fault import CLIENT_FAULTS, SERVER_FAULTS, Fault
from degu.testing.faults.messages import ANSWER
from degu.testing.faults.player import STOP_SECONDS
from degu.testing.faults.server import FaultyServer
from degu.testing.faults.wire import RECORDED_SIZE, Connection, Wire

__all__ = [
    "ANSWER",
    "CLIENT_FAULTS",
    "RECORDED_SIZE",
    "SERVER_FAULTS",
    "STOP_SECONDS",
    "Connection",
    "Fault",
    "FaultyClient",
    "FaultyServer",
    "Wire",
]

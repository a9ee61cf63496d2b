"""degu.sharing: who has more connections lets others go first, for a moment."""

from __future__ import annotations

import select
import threading
import time

import pytest

from degu.address import connect, listen
from degu.sharing import YIELD_SECONDS, SharedListener, SharingServer, make_shares
from tests.conftest import TIMEOUT_FACTOR, poll
from tests.embed_apps import LOOPBACK, app


@pytest.mark.parametrize(
    ("counts", "ahead"),
    [
        ([1, 0], [True, False]),
        ([1, 1], [False, False]),
        ([0, 0, 5], [False, False, True]),
        ([3, None], [False, False]),
        ([3, None, 2], [True, False, False]),
    ],
)
def test_who_has_more_than_another_is_ahead(counts, ahead):
    """One that is not there does not count."""
    shares = make_shares(len(counts))
    for share, count in zip(shares, counts, strict=True):
        if count is not None:
            share.note(count)
    assert [share.is_ahead() for share in shares] == ahead


def test_who_is_ahead_leaves_a_connection_to_another():
    """But takes it in the end; who is not takes it at once."""
    mine, other = make_shares(2)
    with SharedListener(listen(LOOPBACK), mine) as sock:
        client = connect(sock.getsockname(), 5)
        mine.note(0)
        other.note(0)
        began = time.monotonic()
        assert sock.wait_turn()
        assert time.monotonic() - began < YIELD_SECONDS * TIMEOUT_FACTOR
        mine.note(1)
        began = time.monotonic()
        assert sock.wait_turn()
        assert time.monotonic() - began >= YIELD_SECONDS
        # The control: here another one takes it.
        thread = threading.Thread(target=lambda: sock.accept()[0].close())
        thread.start()
        thread.join()
        assert not sock.wait_turn()
        client.close()


def test_what_is_counted_are_the_connections_that_are_there():
    """Not those that went before they were accepted."""
    share, _ = make_shares(2)
    sock = SharedListener(listen(LOOPBACK), share)
    server = SharingServer(sock, app)
    for _ in range(3):
        connect(server.address, 5).close()
    with server.running():
        poll(lambda: not select.select([sock], [], [], 0)[0], 5, "all accepted")
        poll(lambda: share.loads[0] == 0, 5, "none counted")
        with connect(server.address, 5), connect(server.address, 5):
            poll(lambda: share.loads[0] == 2, 5, "two counted")
        poll(lambda: share.loads[0] == 0, 5, "none left")

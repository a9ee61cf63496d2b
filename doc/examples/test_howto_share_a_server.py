"""How to share a server between workers: the example of the page of that name.

pytest -n 2 -c doc/examples/share_a_server.ini
"""

from __future__ import annotations

import os

import pytest


# [app]
def app(request):
    return 200, "OK", {}, str(os.getpid()).encode()


def build_app():
    return app  # and whatever takes its time, once for the whole run
    # [/app]


# [test]
@pytest.fixture(scope="session")
def api(shared_temp_server):
    return shared_temp_server("api")


@pytest.mark.parametrize("number", range(4))
def test_every_worker_asks_the_same_server(api, number):
    client = api.client()
    assert int(client.get(f"/{number}").body.read()) != os.getpid()
    client.close()
    api.assert_requested("GET", f"/{number}", times=1)
    # [/test]

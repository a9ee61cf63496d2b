"""How to test my REST client: the example of the page of that name."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request

import pytest

from degu.testing import UnmetError


class Users:
    """The client to be tested: it speaks HTTP by whatever library you like."""

    def __init__(self, url):
        self.url = url.rstrip("/")

    def _ask(self, method, path, value=None):
        data = None if value is None else json.dumps(value).encode()
        headers = {"Content-Type": "application/json", "X-Api-Key": "k3y"}
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=5) as response:
            return json.load(response)

    def get(self, number):
        for pause in (0.01, 0.02, 0.04):
            try:
                return self._ask("GET", f"/users/{number}")
            except urllib.error.HTTPError as error:
                error.close()
                if error.code != 503:
                    raise
            time.sleep(pause)
        raise TimeoutError("the service is busy")

    def create(self, name):
        return self._ask("POST", "/users?notify=yes&lang=en", {"name": name})["id"]


# [answers]
def test_a_user_is_read(temp_server):
    server = temp_server()
    server.expect("GET", "/users/7").answer(200, json={"id": 7, "name": "Ada"})

    assert Users(server.url).get(7)["name"] == "Ada"

    server.assert_all_met()
    # [/answers]


# [request]
def test_what_is_sent_to_create_a_user(temp_server):
    server = temp_server()
    server.expect(
        "POST",
        "/users",
        query={"notify": "yes", "lang": "en"},  # in any order
        headers={"x-api-key": "k3y", "cookie": None},  # None: there is none
        json={"name": "Ada"},
    ).answer(201, json={"id": 7})

    assert Users(server.url).create("Ada") == 7

    server.assert_all_met()
    (request,) = server.requests
    assert request.headers["content-type"] == "application/json"
    assert request.body == b'{"name": "Ada"}'
    assert request.status == 201
    # [/request]


# [retries]
def test_it_tries_again_while_the_service_is_busy(temp_server):
    server = temp_server()
    server.expect("GET", "/users/7").answer(503).answer(503).answer(200, json={"id": 7})

    assert Users(server.url).get(7) == {"id": 7}

    server.assert_all_met()


def test_it_gives_up_after_three_times(temp_server):
    server = temp_server()
    server.stub("GET", "/users/7").answer(503)

    with pytest.raises(TimeoutError, match="busy"):
        Users(server.url).get(7)

    server.assert_requested("GET", "/users/7", times=3)
    # [/retries]


# [order]
def test_a_user_is_created_before_it_is_read(temp_server):
    server = temp_server()
    server.expect("POST", "/users", ordered=True).answer(201, json={"id": 7})
    server.expect("GET", "/users/7", ordered=True).answer(200, json={"id": 7})

    users = Users(server.url)
    assert users.get(users.create("Ada")) == {"id": 7}

    server.assert_all_met()
    # [/order]


def test_a_miss_is_explained(temp_server):
    server = temp_server()
    server.expect("POST", "/users", json={"name": "Ada", "admin": False})

    with pytest.raises(urllib.error.HTTPError) as caught:
        Users(server.url).create("Ada")
    caught.value.close()

    with pytest.raises(UnmetError) as unmet:
        server.assert_all_met()
    lines = str(unmet.value).splitlines()
    assert lines[0] == "expected, and did not come: POST /users"
    assert '    -     "admin": false,' in lines

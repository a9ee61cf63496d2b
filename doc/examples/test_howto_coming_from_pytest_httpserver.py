"""Coming from pytest-httpserver: the example of the page of that name."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request

import pytest

from degu.testing import UnmetError


def fetch(url, data=None, headers=None):
    request = urllib.request.Request(url, data, headers or {})
    with urllib.request.urlopen(request, timeout=5) as response:
        return response.read()


# [fixture]
@pytest.fixture
def httpserver(temp_server):
    return temp_server()


# [/fixture]


# [json]
def test_expect_request_respond_with_json(httpserver):
    httpserver.stub("GET", "/foobar").answer(200, json={"foo": "bar"})

    assert json.loads(fetch(httpserver.url + "foobar")) == {"foo": "bar"}
    # [/json]


def test_expect_oneshot_request(httpserver):
    httpserver.expect("GET", "/once").answer(200, "one")
    httpserver.stub("GET", "/once").answer(404)

    assert fetch(httpserver.url + "once") == b"one"
    with pytest.raises(urllib.error.HTTPError, match="404") as caught:
        fetch(httpserver.url + "once")
    caught.value.close()


def test_matchers(httpserver):
    httpserver.expect(
        "POST",
        re.compile(r"/items/\d+"),
        query={"a": "1"},
        headers={"content-type": "application/json"},
        json={"x": [1]},
    ).answer(200, "yes")

    headers = {"Content-Type": "application/json"}
    url = httpserver.url + "items/42?a=1"
    assert fetch(url, b'{"x": [1]}', headers) == b"yes"
    httpserver.assert_all_met()


# [handler]
def echo(request):
    return 200, "OK", {}, request["body"]


def test_respond_with_handler(httpserver):
    httpserver.stub("POST", "/echo").answer_with(echo)

    assert fetch(httpserver.url + "echo", b"hello") == b"hello"
    # [/handler]


# [check]
def test_check_assertions(httpserver):
    with pytest.raises(urllib.error.HTTPError, match="500") as caught:
        fetch(httpserver.url + "nowhere")
    caught.value.close()

    with pytest.raises(UnmetError, match="GET /nowhere"):
        httpserver.assert_all_met()
        # [/check]


# [log]
def test_assert_request_made_and_the_log(httpserver):
    httpserver.stub("GET", "/a").answer(200, "x")
    fetch(httpserver.url + "a")
    fetch(httpserver.url + "a")

    httpserver.assert_requested("GET", "/a", times=2)
    assert [request.path for request in httpserver.requests] == ["/a", "/a"]
    # [/log]

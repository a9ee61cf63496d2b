"""`degu.testing.expect`: what matches, what does not, and how that is explained."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from degu.testing.expect import (
    Answer,
    Anything,
    RecordedRequest,
    build_answer,
    build_wanted,
    explain_miss,
    explain_unmet,
    find_nearest,
    matches,
    matches_head,
    measure_miss,
)


def make_request(method="GET", uri="/", headers=None, body=b""):
    return RecordedRequest(method, uri, headers or {}, body=body, body_size=len(body))


def want(method="GET", path="/", **fields):
    return build_wanted(0, method, path, **fields)


NUMBER: Any = 1
JSON = b'{"b": [1, 2], "a": null}'
FORM = b"b=2&a=1&a=3&empty="

MATCHES: list = [
    (want(), make_request()),
    (want(None, None), make_request("PUT", "/any/thing?x")),
    (want("GET", "/a"), make_request(uri="/a?b=1")),
    (want(re.compile("GET|HEAD")), make_request("HEAD")),
    (want(path=re.compile(r"/users/\d+")), make_request(uri="/users/42")),
    (want(path="/a?b=1"), make_request(uri="/a?b=1")),
    (want(query="b=1&a=2"), make_request(uri="/?b=1&a=2")),
    (want(query={"a": 1, "b": ["x", "y"]}), make_request(uri="/?b=x&a=1&b=y")),
    (want(query=[("a", "1"), ("b", "2")]), make_request(uri="/?b=2&a=1")),
    (want(query={}), make_request(uri="/")),
    (want(headers={"X-A": "1"}), make_request(headers={"x-a": "1", "x-b": "2"})),
    (want(headers={"x-a": re.compile("a.")}), make_request(headers={"x-a": "ab"})),
    (want(headers={"x-a": None}), make_request(headers={"x-b": "ab"})),
    (want(headers={"content-length": 3}), make_request(headers={"content-length": 3})),
    (want(body=b"\xff\0"), make_request(body=b"\xff\0")),
    (want(body="héllo"), make_request(body="héllo".encode())),
    (want(body=re.compile("h.*o")), make_request(body=b"hello")),
    (want(body=re.compile(b"h.*o")), make_request(body=b"hello")),
    (want(body=b""), make_request()),
    (want(json={"a": None, "b": [1, 2]}), make_request(body=JSON)),
    (want(json=None), make_request(body=b"null")),
    (want(form={"a": [1, 3], "b": 2, "empty": ""}), make_request(body=FORM)),
]

MISSES: list = [
    (want("GET"), make_request("POST")),
    (want(path="/a"), make_request(uri="/a/")),
    (want(path=re.compile("/a")), make_request(uri="/ab")),
    (want(path="/a?b=1"), make_request(uri="/a?b=2")),
    (want(path="/a?b=1"), make_request(uri="/a")),
    (want(query="a=2&b=1"), make_request(uri="/?b=1&a=2")),
    (want(query={"a": 1}), make_request(uri="/?a=1&a=1")),
    (want(query={}), make_request(uri="/?a=1")),
    (want(headers={"x-a": "1"}), make_request()),
    (want(headers={"x-a": re.compile("a")}), make_request()),
    (want(headers={"x-a": None}), make_request(headers={"x-a": "1"})),
    (want(body=b"a"), make_request(body=b"b")),
    (want(body="a"), make_request(body=b"\xff")),
    (want(json={"a": 1}), make_request(body=b'{"a": 2}')),
    (want(json={"a": 1}), make_request(body=b"no json")),
    (want(json=None), make_request()),
    (want(form={"a": 1}), make_request(body=b"a=1&a=1")),
]


@pytest.mark.parametrize(("wanted", "request_"), MATCHES)
def test_what_is_wanted_matches(wanted, request_):
    """Each way to say what should come, met."""
    assert matches(wanted, request_)
    assert measure_miss(wanted, request_) == 0


@pytest.mark.parametrize(("wanted", "request_"), MISSES)
def test_what_differs_in_one_thing_does_not_match(wanted, request_):
    """Each way again, missed by one thing; the explanation shows both sides."""
    assert not matches(wanted, request_)
    assert measure_miss(wanted, request_) > 0
    lines = explain_miss(wanted, request_).splitlines()
    assert [line for line in lines if line.startswith(("- ", "+ "))]


def test_a_long_body_is_explained_by_what_differs():
    """Of thousands of lines a few are shown, and that does not take for ever."""
    items = [f"value {number}" for number in range(5000)]
    wanted = want(json=items)
    items = [*items[:2500], "other", *items[2501:]]
    request = make_request(body=json.dumps(items).encode())
    lines = explain_miss(wanted, request).splitlines()
    assert len(lines) < 20
    assert [line.split() for line in lines if line[0] in "+-"] == [
        ["-", '"value', '2500",'],
        ["+", '"other",'],
    ]


def test_the_body_is_not_looked_at_with_the_head():
    """The head alone can match while the body is still to come."""
    wanted = want(json={"a": 1})
    assert wanted.is_about_body
    assert matches_head(wanted, make_request(body=b"no json"))
    assert not want(headers={"a": "b"}).is_about_body


def test_a_miss_is_a_diff_of_what_was_compared():
    """What agrees is shown once, and what nobody asked about is not shown."""
    wanted = want(
        "POST",
        re.compile("/users/.*"),
        headers={"content-type": "application/json"},
        json={"name": "ada", "age": 36},
    )
    request = make_request(
        "POST",
        "/users/1",
        {"content-type": "application/json", "x-other": "1"},
        b'{"name": "bob", "age": 36}',
    )
    assert explain_miss(wanted, request).splitlines() == [
        "  POST /users/1",
        "  header content-type: application/json",
        "  json:",
        "    {",
        '      "age": 36,',
        '-     "name": "ada"',
        '+     "name": "bob"',
        "    }",
    ]


def test_the_nearest_is_the_one_with_the_right_path():
    """A wrong body is nearer than another path, and a similar path than another."""
    wanted = want("POST", "/users", json={"a": 1})
    far = make_request("POST", "/zzz", body=b'{"a": 1}')
    typo = make_request("POST", "/user", body=b'{"a": 1}')
    near = make_request("POST", "/users", body=b'{"a": 2}')
    assert find_nearest(wanted, [far, typo]) == typo
    assert find_nearest(wanted, [far, typo, near]) == near
    assert find_nearest(wanted, []) is None


def test_an_unmet_expectation_is_explained():
    """Without any candidate, with one, and with one that came at the wrong time."""
    nothing = explain_unmet(want("PUT", "/a"), 1, [])
    assert nothing == (
        "expected, and did not come: PUT /a\n"
        "  and nothing else came that was not expected"
    )
    near = explain_unmet(want("PUT", "/a", times=3), 2, [make_request("PUT", "/b")])
    assert near.splitlines() == [
        "expected 2 more: PUT /a",
        "  nearest of 1 that met nothing:",
        "    - PUT /a",
        "    + PUT /b",
    ]
    early = explain_unmet(want(ordered=True), 1, [make_request()])
    assert "out of order" in early


def test_the_answers_follow_each_other():
    """The last stays, and none is an empty 200."""
    assert want().answer_for(3) == Answer()
    wanted = want(answers=(Answer(503), Answer(200)), times=1)
    assert wanted.count == 2
    assert [wanted.answer_for(use).status for use in range(4)] == [503, 200, 200, 200]
    assert want(times=None).count == 0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: want(times=0), "times: expected at least 1"),
        (lambda: want(times="2"), "times: expected an int"),
        (lambda: want(times=True), "times: expected an int"),
        (lambda: want(1), "method: expected a str"),
        (lambda: want(path=b"/"), "path: expected a str"),
        (lambda: want(path="/?a=1", query="b"), "got both"),
        (lambda: build_answer(200, None, {}, b"", {}, 0), "got both"),
        (lambda: build_answer(200, None, {}, NUMBER, Anything, 0), "body: expected b"),
        (lambda: build_answer(200, None, {}, None, Anything, -1), "delay: expected"),
    ],
)
def test_what_makes_no_sense_is_refused(build, message):
    """At once, where it was written, and not in the server."""
    with pytest.raises((TypeError, ValueError), match=message):
        build()


def test_an_answer_is_made_complete():
    """JSON brings its type, a status its reason, a text its encoding."""
    answer = build_answer(404, None, {"X-A": "1"}, None, {"é": 1}, 0.5)
    assert answer.headers == {"x-a": "1", "content-type": "application/json"}
    assert (answer.status, answer.reason, answer.delay) == (404, "Not Found", 0.5)
    assert build_answer(299, None, {}, "é", Anything, 0).reason == "-"
    assert build_answer(200, "Fine", {}, "é", Anything, 0).body == "é".encode()


def test_a_recorded_request_shows_itself_in_a_line():
    """What came, from where, and what became of it."""
    request = RecordedRequest("GET", "/a?b", {}, ("::1", 5, 0, 0), body=b"{}")
    assert (request.path, request.query, request.json()) == ("/a", "b", {})
    assert make_request().query is None
    assert str(request) == "GET /a?b from [::1]:5 -> no answer"
    request.status, request.body_size = 200, 2
    assert str(request) == "GET /a?b from [::1]:5, 2 bytes -> 200"
    request.peer, request.error = "", "ValueError: x"
    assert str(request).endswith("from a Unix socket, 2 bytes -> ValueError: x")
    assert make_request(body=b"\xff").text() == "\ufffd"

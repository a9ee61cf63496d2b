"""degu.rgi: routing by `shift_path`, and an app that checks both of its sides."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from degu.base import ChunkedInput, ChunkedOutput, FileOutput, Input, Output
from degu.client import Client
from degu.errors import AppError
from degu.rgi import Validator, shift_path
from degu.server import Server

MISSING = object()


def make_request(**changes: Any) -> Any:
    """A request as a server makes it, with some keys changed or taken out."""
    request: dict[str, Any] = {
        "method": "GET",
        "uri": "/foo/bar?k=v",
        "script": ["foo"],
        "path": ["bar"],
        "query": "k=v",
        "headers": {"host": "localhost", "accept": "*/*"},
        "body": None,
        "client": ("127.0.0.1", 1234),
        "server": ("127.0.0.1", 80),
        "scheme": "http",
        "session": {},
        "credentials": None,
        "ssl_cipher": None,
        "ssl_peercert": None,
        **changes,
    }
    return {name: value for name, value in request.items() if value is not MISSING}


def make_post(body: Any, **headers: Any) -> Any:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return make_request(method="POST", headers=fields, body=body)


def sized() -> Input:
    return Input(io.BytesIO(b"hello"), 5)


def chunked() -> ChunkedInput:
    return ChunkedInput(io.BytesIO(b"0\r\n\r\n"))


def answer(response: Any) -> Validator:
    return Validator(lambda request: response)


OK: Any = (200, "OK", {}, None)


def test_shift_path_moves_one_component_from_path_to_script():
    """What is returned is consumed; the whole uri can still be made."""
    request = make_request(script=[], path=["foo", "bar", ""])
    assert shift_path(request) == "foo"
    assert (request["script"], request["path"]) == (["foo"], ["bar", ""])
    assert shift_path(request) == "bar"
    assert shift_path(request) == ""
    assert (request["script"], request["path"]) == (["foo", "bar", ""], [])


def test_shift_path_of_an_empty_path_is_an_index_error():
    """Nothing is left, and nothing is changed."""
    request = make_request(script=["foo"], path=[])
    with pytest.raises(IndexError):
        shift_path(request)
    assert (request["script"], request["path"]) == (["foo"], [])


@pytest.mark.parametrize("app", [None, 5, "app", (200, "OK", {}, None)])
def test_a_validator_needs_a_callable(app: Any):
    """The error names the argument and shows what came."""
    with pytest.raises(TypeError, match="app: expected a callable, got"):
        Validator(app)


def test_a_validator_passes_what_is_right():
    """The response is that of the app; nothing is changed."""
    request = make_request()
    before = dict(request)
    assert answer(OK)(request) is OK
    assert request == before


@pytest.mark.parametrize(
    "request_",
    [
        make_request(),
        make_request(uri="/foo", script=[], path=["foo"], query=None),
        make_request(method="OPTIONS", uri="*", script=[], path=[], query=None),
        make_request(client="", server="/run/x.sock", credentials=(1, 2, 3)),
        make_request(client=None, server=b"\0abstract"),
        make_request(ssl_cipher=("A", "TLSv1.3", 256), ssl_peercert={"subject": ()}),
        make_post(sized(), content_length=5),
        make_post(chunked(), transfer_encoding="chunked"),
    ],
)
def test_a_validator_takes_every_good_request(request_: Any):
    """No key may have a value that a server does send."""
    assert answer(OK)(request_) == OK


@pytest.mark.parametrize(
    ("request_", "match"),
    [
        ([], "request: expected dict"),
        *(
            (make_request(**{key: MISSING}), f"the key '{key}'")
            for key in make_request()
        ),
        (make_request(method=b"GET"), r"request\['method'\]: expected str"),
        (make_request(path="bar"), r"request\['path'\]: expected list"),
        (make_request(path=["bar", 5]), "component: expected str"),
        (make_request(path=["b/ar"], uri="/foo/b/ar?k=v"), "a slash in 'b/ar'"),
        (make_request(query=None), "uri: script, path and query make '/foo/bar'"),
        (make_request(scheme="ftp"), "scheme: expected http or https"),
        (make_request(headers=[]), r"request\['headers'\]: expected dict"),
        (make_request(headers={"Host": "x"}), "lower-case"),
        (make_request(headers={"x": "a\r\nb"}), "visible ASCII"),
        (make_request(body=b"hello"), r"request\['body'\]: expected Input"),
        (make_post(sized()), "body: the headers frame None"),
        (make_post(None, content_length=5), "body: the headers frame 5"),
        (make_post(sized(), content_length=4), "body: the headers frame 4"),
        (make_post(chunked(), content_length=5), "body: the headers frame 5"),
        (make_post(sized(), transfer_encoding="chunked"), "frame 'chunked'"),
        (make_request(body=sized(), headers={"content-length": 5}), "no body with GET"),
    ],
)
def test_a_validator_refuses_a_bad_request_and_blames_the_server(request_, match):
    """Every key is checked by type and against the others."""
    with pytest.raises(AppError, match=f"^server: .*{match}"):
        answer(OK)(request_)


def test_a_validator_refuses_a_body_that_was_read():
    """A request comes with its body unread."""
    body = sized()
    body.read()
    with pytest.raises(AppError, match=r"^server: body: expected an unread one"):
        answer(OK)(make_post(body, content_length=5))


@pytest.mark.parametrize(
    ("response", "match"),
    [
        (None, "response: expected tuple"),
        ([200, "OK", {}, None], "response: expected tuple"),
        ((200, "OK", {}), "got 3 items"),
        ((200, "OK", {}, None, None), "got 5 items"),
        ((True, "OK", {}, None), "status: expected an int"),
        (("200", "OK", {}, None), "status: expected an int"),
        ((99, "OK", {}, None), "status: expected an int"),
        ((600, "OK", {}, None), "status: expected an int"),
        ((200, b"OK", {}, None), "reason: "),
        ((200, " OK", {}, None), "reason: "),
        ((200, "OK\r\nx: y", {}, None), "reason: "),
        ((200, "OK", None, None), "headers: expected dict"),
        ((200, "OK", {"X": "y"}, None), "lower-case"),
        ((200, "OK", {"x": 5}, None), "x: expected a str"),
        ((200, "OK", {"x": "a\r\nb: c"}, None), "x: expected a str"),
        ((200, "OK", {"x": " a"}, None), "x: expected a str"),
        ((200, "OK", {"x": "\u00e9"}, None), "x: expected a str"),
        ((200, "OK", {"content-length": 5}, None), "headers: they frame"),
        ((200, "OK", {"content-length": 9}, b"hello"), "headers: they frame"),
        ((200, "OK", {"content-length": "5"}, b"hello"), "headers: they frame"),
        ((200, "OK", {"transfer-encoding": "chunked"}, b"hello"), "headers: "),
        ((200, "OK", {}, "text"), "body: expected None, bytes"),
        ((200, "OK", {}, [b"hello"]), "body: expected None, bytes"),
        ((204, "No Content", {}, b"hello"), "headers: "),
        ((304, "Not Modified", {}, b"hello"), "body: expected none"),
    ],
)
def test_a_validator_refuses_a_bad_response_and_blames_the_app(response, match: str):
    """Each breach is an error that names the part of the response."""
    with pytest.raises(AppError, match=f"^app: .*{match}"):
        answer(response)(make_request())


def test_a_validator_refuses_a_body_that_was_sent():
    """An output body serves one response."""
    body = Output([b"hello"], 5)
    validator = answer((200, "OK", {}, body))
    assert validator(make_request())[3] is body
    list(body)
    with pytest.raises(AppError, match=r"^app: body: expected an unsent one"):
        validator(make_request())


def test_a_validator_takes_every_kind_of_body(tmp_path: Path):
    """D18: bodies that are made of iterators are in order, typed headers too."""
    path = tmp_path / "file"
    path.write_bytes(b"hello")
    bodies = [
        None,
        b"hello",
        bytearray(b"hello"),
        memoryview(b"hello"),
        Output(iter([b"hello"]), 5),
        ChunkedOutput(piece for piece in [b"hello"]),
        ChunkedOutput([("k=v", b"hello")]),
        FileOutput(open(path, "rb")),  # noqa: SIM115
        sized(),
        chunked(),
    ]
    for body in bodies:
        headers = {"content-range": "bytes 0-4/11", "set-cookie": ["a=b", "c=d"]}
        response = (206, "Partial Content", headers, body)
        assert answer(response)(make_request()) is response
        if isinstance(body, FileOutput):
            body.fp.close()


def test_an_app_may_route_but_change_nothing_else():
    """Shifting the path is in order, dropping or changing is not."""

    def shifts(request: Any) -> Any:
        shift_path(request)
        return OK

    def pops(request: Any) -> Any:
        request["path"].pop()
        return OK

    def renames(request: Any) -> Any:
        request["uri"] = "/other"
        return OK

    def adds(request: Any) -> Any:
        request["headers"]["x"] = "y"
        return OK

    assert Validator(shifts)(make_request()) == OK
    for app, match in ((pops, "script, path"), (renames, "uri"), (adds, "headers")):
        with pytest.raises(AppError, match=f"^app: .*{match}"):
            Validator(app)(make_request())


def test_the_own_error_of_an_app_passes_through():
    """What an app raises is not the validator's to change."""

    def app(request: Any) -> Any:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        Validator(app)(make_request())


class Greets:
    """An app with an `on_connect` that answers what it was told to."""

    def __init__(self, word: Any) -> None:
        self.word = word

    def __call__(self, request: Any) -> Any:
        return OK

    def on_connect(self, session: Any, sock: Any) -> Any:
        return self.word


def test_on_connect_is_checked_where_the_app_has_one():
    """It is there only for an app that has it, and has to answer with a bool."""
    assert not hasattr(answer(OK), "on_connect")
    with Server(("127.0.0.1", 0), answer(OK)).running() as server:
        sock = server.sock
        for word in (True, False):
            assert Validator(Greets(word)).on_connect({}, sock) is word
        with pytest.raises(
            AppError, match=r"^app: on_connect: expected bool, got 'yes'"
        ):
            Validator(Greets("yes")).on_connect({}, sock)
        with pytest.raises(AppError, match=r"^server: session: expected dict"):
            Validator(Greets(True)).on_connect(None, sock)
        with pytest.raises(AppError, match=r"^server: sock: expected a socket"):
            Validator(Greets(True)).on_connect({}, None)
    bad = Greets(True)
    bad.on_connect = 5  # type: ignore[method-assign, assignment]
    with pytest.raises(TypeError, match=r"app\.on_connect: expected a callable, got 5"):
        Validator(bad)


def test_a_validator_serves_between_a_server_and_an_app():
    """A real exchange passes on both sides; a bad response is a 500 to the peer."""
    seen = []

    def app(request: Any) -> Any:
        seen.append(shift_path(request))
        body = request["body"].read() if request["body"] else None
        return 200, "OK", {} if request["path"] else {"Bad": "name"}, body

    with Server(("127.0.0.1", 0), Validator(app)).running() as server:
        client: Any = Client(server.address)
        assert client.get("/a/b").status == 200
        assert client.post("/a/b", None, b"hello").body.read() == b"hello"
        assert client.get("/a").status == 500
        client.close()
    assert seen == ["a", "a", "a"]

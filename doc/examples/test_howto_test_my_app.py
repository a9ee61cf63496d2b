"""How to test my app: the example of the page of that name."""

from __future__ import annotations

import json
import socket

import pytest

from degu.errors import DiedError
from degu.testing import TempServer, check_memory


# [app]
class Notes:
    """The app to be tested; in real life it has a module of its own."""

    def __init__(self, limit):
        self.limit = limit
        self.notes = []

    def __call__(self, request):
        if request["method"] == "GET":
            return 200, "OK", {"content-type": "application/json"}, self.dump()
        if len(self.notes) >= self.limit:
            return 507, "Insufficient Storage", {}, None
        self.notes.append(request["body"].read().decode())
        return 201, "Created", {"location": f"/{len(self.notes)}"}, None

    def dump(self):
        return json.dumps(self.notes).encode()
        # [/app]


# [function]
@pytest.fixture
def client(temp_server):
    client = temp_server(Notes, 2).client()  # Notes(2) is called in the new process
    yield client
    client.close()


def test_notes_are_kept(client):
    assert client.post("/", {}, b"milk").status == 201
    response = client.get("/")
    assert response.headers["content-type"] == "application/json"
    assert json.loads(response.body.read()) == ["milk"]


def test_there_is_a_limit(client):
    statuses = [client.post("/", {}, b"x").status for _ in range(3)]
    assert statuses == [201, 201, 507]
    # [/function]


# [session]
@pytest.fixture(scope="session")
def notes(session_temp_server):
    return session_temp_server(Notes, 1000)


@pytest.mark.parametrize("text", ["a", "ü", "x" * 100_000])
def test_any_text_is_a_note(notes, text):
    with notes.client().connect() as connection:
        connection.post("/", {}, text.encode())
        assert text in json.loads(connection.get("/").body.read())
        # [/session]


# [raw]
def test_a_request_without_host_is_refused(notes):
    with socket.create_connection(notes.address) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert sock.recv(1000).startswith(b"HTTP/1.1 400 Bad Request\r\n")
        # [/raw]


# [plain]
def test_without_any_fixture():
    with TempServer(("127.0.0.1", 0), Notes, 2) as server:
        client = server.client()
        assert client.get("/").body.read() == b"[]"
        client.close()
        # [/plain]


# [memory]
def test_memory_does_not_grow(temp_server):
    server = temp_server(Notes, 10)
    with server.client().connect() as connection:
        check_memory(lambda: connection.get("/").body.read(), process=server)
        # [/memory]


def crash(request):
    import os

    os._exit(3)


def test_a_server_that_died_is_noticed(temp_server):
    server = temp_server(crash)
    client = server.client()
    with pytest.raises(ConnectionError):
        client.get("/")
    client.close()
    assert server.wait(5) == 3
    with pytest.raises(DiedError, match="exit code 3"):
        _ = server.address
    server.terminate()  # says that this test knows

"""`degu.files`: what can be reached, ranges, conditions, listings and uploads."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import os
import pickle
import resource
import socket
import subprocess
import threading
import time
from contextlib import suppress
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

import degu.files
from degu import EmbeddedServer
from degu.base import FileOutput, Input, Output
from degu.client import Client, SSLClient
from degu.files import PART_SUFFIX, FilesApp, format_size, guess_type
from degu.rgi import Validator
from degu.server import Server, SSLServer
from degu.testing import TempPKI

DATA = bytes(range(256)) * 40
LOCALHOST = ("127.0.0.1", 0)
DAY = 86400


@pytest.fixture
def folder(tmp_path):
    """A folder with a few files, beside a file that is nobody's business."""
    (tmp_path / "secret.txt").write_bytes(b"secret")
    root = tmp_path / "root"
    (root / "sub" / "deep").mkdir(parents=True)
    (root / "data.bin").write_bytes(DATA)
    (root / "empty").write_bytes(b"")
    (root / "page.html").write_text("<p>page")
    (root / "sub" / "note.txt").write_text("note")
    (root / ".hidden").write_text("hidden")
    (root / ".git").mkdir()
    (root / ".git" / "config").write_text("config")
    old = time.time() - DAY
    for path in root.rglob("*"):
        os.utime(path, (old, old))
    return root


@pytest.fixture
def serve():
    """Serve an app, checked by the Validator, and give a client of it."""
    running = []

    def start(app, **options):
        context = Server(LOCALHOST, Validator(app), **options).running()
        server = context.__enter__()
        client = Client(server.address)
        running.append((context, client))
        return client

    yield start
    for context, client in running:
        client.close()
        context.__exit__(None, None, None)


@pytest.fixture
def client(serve, folder):
    """A client of a plain FilesApp."""
    return serve(FilesApp(folder))


@pytest.fixture
def uploads(serve, folder):
    """A client of a FilesApp that takes uploads."""
    return serve(FilesApp(folder, writable=True))


def fetch(client, uri, **headers):
    """Status, headers and all of the body."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    response = client.get(uri, named)
    body = b"" if response.body is None else response.body.read()
    return response.status, response.headers, body


def parts(folder, least=0):
    """What unfinished uploads have left behind, of at least so many bytes."""
    names = []
    for path in folder.rglob(f"*{PART_SUFFIX}"):
        with suppress(FileNotFoundError):  # gone between being found and being asked
            names += [path.name] * (path.stat().st_size >= least)
    return names


# --- reading


def test_a_file_comes_with_its_type_length_date_and_tag(client, folder):
    """A GET gives the bytes and all that a cache needs to know of them."""
    status, headers, body = fetch(client, "/data.bin")
    assert (status, body) == (200, DATA)
    assert headers["content-type"] == "application/octet-stream"
    assert headers["content-length"] == len(DATA)
    assert headers["accept-ranges"] == "bytes"
    assert headers["etag"].startswith('"')
    modified = int((folder / "data.bin").stat().st_mtime)
    assert headers["last-modified"] == formatdate(modified, usegmt=True)


def test_head_says_the_same_without_the_bytes(client):
    """HEAD has the headers of GET, and no body."""
    headers = fetch(client, "/data.bin")[1]
    response = client.head("/data.bin")
    assert response == (200, "OK", headers, None)
    assert client.head("/empty").headers["content-length"] == 0


def test_an_empty_file_is_no_body(client):
    """A file of no bytes is answered as such."""
    assert fetch(client, "/empty")[::2] == (200, b"")


def test_on_a_plain_socket_the_kernel_copies(client, monkeypatch):
    """A file goes out by sendfile; a control shows that not every body does."""
    calls = []
    sendfile = os.sendfile

    def spy(*args):
        calls.append(args)
        return sendfile(*args)

    monkeypatch.setattr(os, "sendfile", spy)
    assert fetch(client, "/data.bin", range="bytes=10-19")[2] == DATA[10:20]
    assert calls
    calls.clear()
    assert fetch(client, "/")[0] == 200
    assert not calls


def test_over_tls_the_same_bytes_come(folder):
    """Where the kernel can't copy, the app's answer is the same."""
    with TempPKI() as pki:
        server = SSLServer(pki.server_sslconfig, LOCALHOST, Validator(FilesApp(folder)))
        with server.running():
            client = SSLClient(pki.client_sslconfig, server.address)
            assert fetch(client, "/data.bin")[2] == DATA
            status, headers, body = fetch(client, "/data.bin", range="bytes=-3")
            assert (status, body) == (206, DATA[-3:])
            assert headers["content-range"] == "bytes 10237-10239/10240"
            client.close()


@pytest.mark.parametrize(
    "uri",
    [
        "/missing",
        "/data.bin/",
        "/data.bin/x",
        "//data.bin",
        "/sub//note.txt",
        "/sub%2Fnote.txt",
        "/%00",
        "/data.bin%00.html",
        "/" + "n" * 300,
        "/.hidden",
        "/%2Ehidden",
        "/.git/config",
        "/.git/",
        "/etc/passwd",
        "/%5Cdata.bin",
        "/%ff",
        "/sub/..%00/",
    ],
)
def test_what_is_no_name_here_is_not_found(client, uri):
    """Missing, hidden, doubly separated and encoded names are all a plain 404."""
    assert fetch(client, uri)[::2] == (404, b"")
    assert fetch(client, "/data.bin")[0] == 200


@pytest.mark.parametrize(
    "uri",
    [
        "/../secret.txt",
        "/sub/../../secret.txt",
        "/%2e%2e/secret.txt",
        "/..%2fsecret.txt",
        "/sub/..%2f..%2fsecret.txt",
        "/..%5csecret.txt",
        "/.%2e/secret.txt",
    ],
)
def test_dots_lead_nowhere(client, uri, folder):
    """The server refuses dot segments; the app by itself does not know them either."""
    with socket.create_connection(client.address) as sock:
        sock.sendall(f"GET {uri} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
        assert sock.recv(100).startswith(b"HTTP/1.1 400 ")
    for hidden in (False, True):
        response = FilesApp(folder, hidden=hidden)(make_request(uri))
        assert response[0] == 404


def make_request(uri: str, method: str = "GET", **headers: Any) -> Any:
    """A request as a server would make it, without the server's checks."""
    return {
        "method": method,
        "uri": uri,
        "script": [],
        "path": uri[1:].split("/") if uri != "/" else [],
        "query": None,
        "headers": {"host": "localhost", **headers},
        "body": None,
    }


def test_hidden_files_are_shown_when_asked_for(serve, folder):
    """With `hidden` names with a dot are served and listed."""
    client = serve(FilesApp(folder, hidden=True))
    assert fetch(client, "/.git/config")[::2] == (200, b"config")
    assert b".hidden" in fetch(client, "/")[2]


def test_symbolic_links_are_not_followed(client, folder):
    """Neither a file nor a folder is reached through a link, and none is listed."""
    (folder / "link.txt").symlink_to(folder.parent / "secret.txt")
    (folder / "inside.txt").symlink_to("data.bin")
    (folder / "up").symlink_to(folder.parent)
    (folder / "loop").symlink_to("loop")
    for uri in ("/link.txt", "/inside.txt", "/up/", "/up/secret.txt", "/up", "/loop"):
        assert fetch(client, uri)[0] == 404, uri
    names = {
        e["name"] for e in json.loads(fetch(client, "/", accept="application/json")[2])
    }
    assert names == {"data.bin", "empty", "page.html", "sub"}


def test_a_race_between_folder_and_link_leads_nowhere(client, folder):
    """A folder that is swapped for a link all the time never gives what is outside."""
    outside = folder.parent / "outside"
    outside.mkdir()
    (outside / "note.txt").write_text("secret")
    (folder / "trap").symlink_to(outside)
    stop = threading.Event()

    def swap():
        while not stop.is_set():
            os.rename(folder / "sub", folder / "aside")
            os.rename(folder / "trap", folder / "sub")
            os.rename(folder / "sub", folder / "trap")
            os.rename(folder / "aside", folder / "sub")

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        seen = {fetch(client, "/sub/note.txt")[::2] for _ in range(300)}
    finally:
        stop.set()
        thread.join()
    assert seen <= {(200, b"note"), (404, b"")}
    assert fetch(client, "/sub/note.txt")[2] == b"note"


def test_only_files_and_folders_are_served(client, folder):
    """A FIFO does not hold the server, a socket and a device are not there."""
    os.mkfifo(folder / "fifo")
    with socket.socket(socket.AF_UNIX) as sock:
        here = os.open(folder, os.O_RDONLY)
        sock.bind(f"/proc/self/fd/{here}/sock")
        os.close(here)
        assert fetch(client, "/fifo")[0] == 404
        assert fetch(client, "/sock")[0] == 404
    names = [e["name"] for e in json.loads(list_json(client, "/"))]
    assert "fifo" not in names
    assert "sock" not in names


def list_json(client, uri):
    return fetch(client, uri, accept="application/json")[2]


def test_other_methods_are_refused(client, uploads):
    """POST and DELETE are a 405 that says what is allowed; so is PUT, read-only."""
    response = client.delete("/data.bin")
    assert response[:3] == (405, "Method Not Allowed", {"allow": "GET, HEAD"})
    assert client.put("/new", {}, b"x").status == 405
    assert uploads.post("/data.bin", {}, b"x").headers["allow"] == "GET, HEAD, PUT"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.html", "text/html; charset=utf-8"),
        ("a.CSS", "text/css; charset=utf-8"),
        ("a.js", "text/javascript; charset=utf-8"),
        ("a.json", "application/json"),
        ("a.mp4", "video/mp4"),
        ("a.wav", "audio/wav"),
        ("a.webm", "video/webm"),
        ("a.webp", "image/webp"),
        ("a.wasm", "application/wasm"),
        ("a.pdf", "application/pdf"),
        ("a.txt", "text/plain; charset=utf-8"),
        ("a.tar.gz", "application/gzip"),
        ("a.tgz", "application/gzip"),
        ("a.html.bz2", "application/octet-stream"),
        ("html", "application/octet-stream"),
        (".html", "application/octet-stream"),
        ("data:text/html,x", "application/octet-stream"),
        ("noidea.xyzzy", "application/octet-stream"),
    ],
)
def test_the_type_is_the_names(name, kind):
    """The end of a name decides on the type, the same on every system."""
    assert guess_type(name) == kind


def test_the_app_can_be_pickled(folder):
    """So that it can be given to a server in a process of its own."""
    app = pickle.loads(pickle.dumps(FilesApp(folder, hidden=True)))
    response = app(make_request("/.hidden"))
    assert response[0] == 200
    response[3].fp.close()


def test_a_folder_that_is_none_is_an_error_at_once(tmp_path):
    """A wrong path is told to whoever makes the app."""
    with pytest.raises(FileNotFoundError):
        FilesApp(tmp_path / "missing")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        FilesApp(tmp_path / "file")


def test_without_openat_it_says_so(folder, monkeypatch):
    """On a system that can't keep the promise the app is not made."""
    monkeypatch.setattr(os, "supports_dir_fd", set())
    with pytest.raises(OSError, match="openat"):
        FilesApp(folder)


def test_no_descriptor_is_left_open(serve, folder, wait_until):
    """After a thousand requests of all kinds only the folder's own is open."""
    client = serve(FilesApp(folder, writable=True))
    uris = ("/data.bin", "/missing", "/sub", "/sub/", "/", "/.x", "/sub/note.txt/x")

    def ask():
        for uri in uris:
            fetch(client, uri)
            client.head(uri)
            fetch(client, uri, range="bytes=99999-")
            fetch(client, uri, if_none_match="*")
            fetch(client, uri, if_match='"x"')
        client.put("/sub/new.txt", {}, b"new")
        client.put("/sub/new.txt", {"if-match": '"x"'}, b"new")

    ask()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        ask()
    # The server's side of a connection may take a moment to close.
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before)


# --- listings


def test_a_listing_is_html_for_people(client, folder):
    """Names are links that lead to the files, whatever is in them."""
    for name in ("a b&c<d>.txt", "q\"uote'.txt", "50%.txt", "c:olon", "ünï.txt", "#?"):
        (folder / "sub" / name).write_text(name)
    status, headers, body = fetch(client, "/sub/")
    assert status == 200
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert headers["vary"] == "accept"
    text = body.decode()
    assert "<d>" not in text
    assert "ünï.txt</a>" in text
    links = [part.partition('"')[0] for part in text.split('<a href="')[1:]]
    assert links.pop(0) == "../"
    assert links[0] == "./deep/"
    for link in links[1:]:
        status, _, body = fetch(client, "/sub/" + link.removeprefix("./"))
        assert status == 200
        assert body.decode() in {p.name for p in (folder / "sub").iterdir()} | {"note"}


def test_a_listing_is_json_for_programs(client, folder):
    """The same as values: name, link, type, size and time."""
    listing = json.loads(list_json(client, "/"))
    assert [e["name"] for e in listing] == ["sub", "data.bin", "empty", "page.html"]
    modified = int((folder / "data.bin").stat().st_mtime)
    assert listing[0]["type"] == "folder"
    assert listing[0]["size"] is None
    assert listing[1] == {
        "name": "data.bin",
        "href": "./data.bin",
        "type": "file",
        "size": len(DATA),
        "modified": modified,
    }


def test_a_name_that_is_no_text_can_be_followed_all_the_same(client, folder):
    """A name of other bytes than UTF-8 is shown as well as can be, and linked."""
    with open(os.fsencode(folder) + b"/bad\xff.txt", "wb") as file:
        file.write(b"bad")
    [entry] = [e for e in json.loads(list_json(client, "/")) if "bad" in e["name"]]
    assert entry["name"] == "bad\ufffd.txt"
    assert fetch(client, entry["href"][1:])[2] == b"bad"
    assert "bad\ufffd.txt" in fetch(client, "/")[2].decode()


def test_head_of_a_listing_has_its_length(client):
    """HEAD answers what GET would, for a folder too."""
    length = fetch(client, "/")[1]["content-length"]
    response = client.head("/")
    assert (response.headers["content-length"], response.body) == (length, None)


def test_a_folder_without_its_slash_is_elsewhere(client, serve, folder):
    """The links of a page are right only below the folder's own URL."""
    status, headers, _ = fetch(client, "/sub?x=1")
    assert (status, headers["location"]) == (308, "./sub/?x=1")
    (folder / "c:olon").mkdir()
    assert fetch(client, "/c:olon")[1]["location"] == "./c%3Aolon/"
    from degu.apps import RouterApp

    routed = serve(RouterApp({"files": FilesApp(folder)}))
    assert fetch(routed, "/files")[1]["location"] == "./files/"
    assert fetch(routed, "/files/sub/note.txt")[2] == b"note"
    assert b'"./data.bin"' in fetch(routed, "/files/")[2]


def test_an_index_takes_the_place_of_the_listing(client, serve, folder):
    """index.html is served for its folder; without listings nothing else is."""
    (folder / "sub" / "index.html").write_text("index")
    status, headers, body = fetch(client, "/sub/")
    assert (status, body) == (200, b"index")
    assert headers["content-type"] == "text/html; charset=utf-8"
    bare = serve(FilesApp(folder, listing=False))
    assert fetch(bare, "/")[0] == 404
    assert fetch(bare, "/sub/")[2] == b"index"


def test_a_listing_leaves_out_what_is_not_complete(serve, folder):
    """Parts of uploads are shown to nobody, not even among the hidden."""
    part = f".x.0123{PART_SUFFIX}"
    (folder / part).write_text("part")
    client = serve(FilesApp(folder, hidden=True))
    assert part not in list_json(client, "/").decode()
    assert fetch(client, f"/{part}")[0] == 404


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (None, ""),
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (1 << 20, "1.0 MiB"),
        (5 << 40, "5.0 TiB"),
        (1 << 60, "1048576.0 TiB"),
    ],
)
def test_sizes_are_for_people(size, text):
    """A size is shown in the unit that fits."""
    assert format_size(size) == text


# --- ranges


@pytest.mark.parametrize(
    ("value", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-9", 0, 10),
        ("bytes=10239-10239", 10239, 10240),
        ("bytes=100-", 100, 10240),
        ("bytes=0-", 0, 10240),
        ("bytes=-1", 10239, 10240),
        ("bytes=-99999", 0, 10240),
        ("bytes=10000-99999", 10000, 10240),
        ("Bytes=5-6", 5, 7),
    ],
)
def test_one_range_is_a_206(client, value, start, stop):
    """Single, open and suffix ranges give exactly their bytes."""
    status, headers, body = fetch(client, "/data.bin", range=value)
    assert (status, body) == (206, DATA[start:stop])
    assert headers["content-range"] == f"bytes {start}-{stop - 1}/10240"
    assert headers["content-length"] == stop - start


@pytest.mark.parametrize(
    "value",
    ["bytes=10240-", "bytes=10240-10250", "bytes=-0", "bytes=0-1,5-6", "bytes=0-0, -1"],
)
def test_a_range_outside_or_several_are_a_416(client, value):
    """Nothing to give is said together with the size; so is more than one range."""
    status, headers, body = fetch(client, "/data.bin", range=value)
    assert (status, body) == (416, b"")
    assert headers["content-range"] == "bytes */10240"


@pytest.mark.parametrize(
    "value",
    ["bytes", "bytes=", "bytes=-", "bytes=5-4", "bytes=a-b", "lines=1-2", "bytes=1 2-3",
     "bytes=+1-2", "bytes=0x1-2", "bytes=1-2;x", "bytes=" + "9" * 20 + "-"],
)  # fmt: skip
def test_what_is_no_range_is_ignored(client, value):
    """RFC 9110 §14.2: then the whole file is the answer."""
    status, headers, body = fetch(client, "/data.bin", range=value)
    assert (status, body) == (200, DATA)
    assert "content-range" not in headers


def test_a_range_of_nothing(client):
    """Of an empty file no byte can be had; a suffix of it is all of it."""
    assert fetch(client, "/empty", range="bytes=0-")[0] == 416
    assert fetch(client, "/empty", range="bytes=-5")[::2] == (200, b"")


def test_a_range_is_only_for_get(client):
    """RFC 9110 §14.2: HEAD has the length of the whole."""
    response = client.head("/data.bin", {"range": "bytes=0-1"})
    assert (response.status, response.headers["content-length"]) == (200, 10240)


def test_if_range_decides_between_part_and_whole(client, folder):
    """The part only where the file is still the one that was begun."""
    headers = fetch(client, "/data.bin")[1]
    some = {"range": "bytes=0-1"}

    def ask(validator):
        return fetch(client, "/data.bin", if_range=validator, **some)[0]

    assert ask(headers["etag"]) == 206
    assert ask(headers["last-modified"]) == 206
    assert ask('"other"') == 200
    assert ask("W/" + headers["etag"]) == 200
    assert ask(formatdate(0, usegmt=True)) == 200
    assert ask("garbage") == 200
    soon = time.time() + 60
    os.utime(folder / "data.bin", (soon, soon))
    headers = fetch(client, "/data.bin")[1]
    # Until that second is over the file may change again, and keep its date.
    assert ask(headers["last-modified"]) == 200
    assert ask(headers["etag"]) == 206


# --- conditions


def test_conditional_requests_follow_the_order_of_rfc_9110(client):
    """Each of the four conditions, met and not, and which one counts (§13.2.2)."""
    headers = fetch(client, "/data.bin")[1]
    etag, date = headers["etag"], headers["last-modified"]
    early = formatdate(0, usegmt=True)
    late = formatdate(time.time() + DAY, usegmt=True)
    for fields, status in (
        ({"if_none_match": etag}, 304),
        ({"if_none_match": f'"x", W/{etag}'}, 304),
        ({"if_none_match": "*"}, 304),
        ({"if_none_match": '"x"'}, 200),
        ({"if_modified_since": date}, 304),
        ({"if_modified_since": late}, 304),
        ({"if_modified_since": early}, 200),
        ({"if_modified_since": "yesterday"}, 200),
        ({"if_none_match": '"x"', "if_modified_since": late}, 200),
        ({"if_match": etag}, 200),
        ({"if_match": "*"}, 200),
        ({"if_match": f"W/{etag}"}, 412),
        ({"if_match": '"x"'}, 412),
        ({"if_unmodified_since": date}, 200),
        ({"if_unmodified_since": early}, 412),
        ({"if_unmodified_since": "yesterday"}, 200),
        ({"if_match": etag, "if_unmodified_since": early}, 200),
        ({"if_match": etag, "if_none_match": etag}, 304),
        ({"if_match": '"x"', "if_none_match": etag}, 412),
        ({"if_none_match": etag, "range": "bytes=0-1"}, 304),
    ):
        assert fetch(client, "/data.bin", **fields)[0] == status, fields


def test_a_304_has_the_tag_and_no_body(client):
    """What the client has is good: only the validators come again."""
    etag = fetch(client, "/data.bin")[1]["etag"]
    response = client.get("/data.bin", {"if-none-match": etag})
    assert (response.status, response.body) == (304, None)
    assert response.headers["etag"] == etag
    assert client.get("/data.bin").body.read() == DATA


def test_the_tag_changes_with_the_file(client, folder):
    """Another content, time or file under the same name is another tag."""
    tags = {fetch(client, "/data.bin")[1]["etag"]}
    (folder / "data.bin").write_bytes(DATA + b"x")
    tags.add(fetch(client, "/data.bin")[1]["etag"])
    os.utime(folder / "data.bin", (1, 1))
    tags.add(fetch(client, "/data.bin")[1]["etag"])
    (folder / "new").write_bytes(DATA + b"x")
    os.utime(folder / "new", (1, 1))
    os.rename(folder / "new", folder / "data.bin")
    tags.add(fetch(client, "/data.bin")[1]["etag"])
    assert len(tags) == 4


# --- uploads


def test_put_makes_and_replaces_a_file(uploads, folder):
    """201 for a new file, 204 for an old one, and folders on the way."""
    response = uploads.put("/new/folder/file.txt", {}, b"first")
    assert (response.status, response.body) == (201, None)
    assert fetch(uploads, "/new/folder/file.txt")[1]["etag"] == response.headers["etag"]
    assert uploads.put("/new/folder/file.txt", {}, b"second").status == 204
    assert (folder / "new/folder/file.txt").read_bytes() == b"second"
    assert uploads.put("/nothing").status == 201
    assert (folder / "nothing").read_bytes() == b""
    assert not parts(folder)


def test_an_upload_without_a_length_is_taken_too(uploads, folder):
    """A chunked body is as good as any."""
    from degu.base import ChunkedOutput

    body = ChunkedOutput([b"one ", b"two"])
    assert uploads.put("/chunked", {}, body).status == 201
    assert (folder / "chunked").read_bytes() == b"one two"


@pytest.mark.parametrize("uri", ["/", "/sub", "/sub/", "/data.bin/x", "/" + "n" * 300])
def test_what_cannot_be_a_file_is_a_conflict(uploads, folder, uri):
    """A folder is not replaced, and a file is no folder."""
    assert uploads.put(uri, {}, b"x").status == 409
    assert (folder / "sub/note.txt").read_bytes() == b"note"
    assert not parts(folder)


@pytest.mark.parametrize("uri", ["/.hidden", "/a//b", "/a%2Fb", f"/.x{PART_SUFFIX}"])
def test_names_that_are_not_served_are_not_written(uploads, folder, uri):
    """What can't be read can't be written either."""
    assert uploads.put(uri, {}, b"x").status == 404
    assert (folder / ".hidden").read_text() == "hidden"


def test_an_upload_does_not_follow_links(uploads, folder):
    """A link is replaced, what it points to is left alone."""
    secret = folder.parent / "secret.txt"
    (folder / "link").symlink_to(secret)
    (folder / "up").symlink_to(folder.parent)
    assert uploads.put("/link", {}, b"x").status == 204
    assert uploads.put("/up/secret.txt", {}, b"x").status == 409
    assert secret.read_bytes() == b"secret"
    assert not (folder / "link").is_symlink()


def test_readers_see_the_old_file_or_the_new(uploads, folder):
    """A file is replaced in one step, also for who is just reading it."""
    old, new = b"o" * 1_000_000, b"n" * 1_000_000
    (folder / "big").write_bytes(old)
    reader = Client(uploads.address)
    stop = threading.Event()
    seen = set()

    def read():
        while not stop.is_set():
            seen.add(fetch(reader, "/big")[2])
        reader.close()

    thread = threading.Thread(target=read)
    thread.start()
    for _ in range(20):
        assert uploads.put("/big", {}, new).status == 204
        assert uploads.put("/big", {}, old).status == 204
    stop.set()
    thread.join()
    assert seen <= {old, new}


def test_conditions_keep_an_upload_from_overwriting(uploads, folder):
    """If-Match and its sisters: only the state that the client knows is replaced."""
    etag = fetch(uploads, "/data.bin")[1]["etag"]
    date = fetch(uploads, "/data.bin")[1]["last-modified"]
    early = formatdate(0, usegmt=True)
    for headers, uri in (
        ({"if-match": '"x"'}, "/data.bin"),
        ({"if-match": "*"}, "/new"),
        ({"if-none-match": "*"}, "/data.bin"),
        ({"if-none-match": etag}, "/data.bin"),
        ({"if-unmodified-since": early}, "/data.bin"),
        ({"if-unmodified-since": date}, "/new"),
    ):
        assert uploads.put(uri, headers, b"x").status == 412, headers
    assert (folder / "data.bin").read_bytes() == DATA
    assert not (folder / "new").exists()
    assert uploads.put("/new", {"if-none-match": "*"}, b"x").status == 201
    assert uploads.put("/data.bin", {"if-unmodified-since": date}, b"1").status == 204
    etag = fetch(uploads, "/data.bin")[1]["etag"]
    response = uploads.put("/data.bin", {"if-match": etag}, b"2")
    assert response.status == 204
    assert uploads.put("/data.bin", {"if-match": etag}, b"3").status == 412
    assert not parts(folder)


def test_of_two_uploads_for_one_state_only_one_wins(serve, folder, wait_until):
    """The condition is looked at again when the file gets its name."""
    app = FilesApp(folder, writable=True)
    client = serve(app)
    etag = fetch(client, "/data.bin")[1]["etag"]
    slow = client.connect()
    gate = threading.Event()

    def drip():
        yield b"a"
        gate.wait(10)
        yield b"b"

    result = []
    headers = {"if-match": etag}
    thread = threading.Thread(
        target=lambda: result.append(
            slow.put("/data.bin", headers, Output(drip(), 2)).status
        )
    )
    thread.start()
    wait_until(lambda: parts(folder), what="the slow upload has begun")
    assert client.put("/data.bin", headers, b"quick").status == 204
    gate.set()
    thread.join()
    slow.close()
    assert result == [412]
    assert (folder / "data.bin").read_bytes() == b"quick"
    assert not parts(folder)


def repr_digest(data: bytes) -> str:
    """The field of RFC 9530 for these bytes."""
    return f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"


def test_a_digest_is_checked_before_the_file_appears(uploads, folder):
    """What does not have the stated SHA-256 is a 422 and leaves nothing."""
    good = {"repr-digest": f"md5=:xx:, {repr_digest(b'data')}"}
    assert uploads.put("/good", good, b"data").status == 201
    assert uploads.put("/bad", good, b"Data").status == 422
    assert uploads.put("/odd", {"repr-digest": "sha-256=:x:"}, b"data").status == 400
    assert uploads.put("/other", {"repr-digest": "md5=:xx:"}, b"data").status == 201
    assert not (folder / "bad").exists()
    assert not (folder / "odd").exists()
    assert not parts(folder)


def test_an_upload_goes_on_where_it_stopped(uploads, folder):
    """Parts with content-range: the offset is told, and the file appears at the end."""
    digest = {"repr-digest": repr_digest(DATA)}

    def send(start, stop):
        span = {"content-range": f"bytes {start}-{stop - 1}/{len(DATA)}", **digest}
        return uploads.put("/up.bin", span, DATA[start:stop])

    assert "upload-offset" not in uploads.head("/up.bin", digest).headers
    response = send(0, 1000)
    assert (response.status, response.headers["upload-offset"]) == (202, "1000")
    response = uploads.head("/up.bin", digest)
    assert (response.status, response.headers["upload-offset"]) == (404, "1000")
    gap = uploads.put("/new.bin", {"content-range": "bytes 5-6/7"}, b"zz")
    assert (gap.status, len(parts(folder))) == (409, 1)  # of /up.bin, and no empty one
    gap = send(2000, 3000)
    assert (gap.status, gap.headers["upload-offset"]) == (409, "1000")
    assert send(1000, 3000).status == 202
    assert fetch(uploads, "/up.bin")[0] == 404
    assert "up.bin" not in list_json(uploads, "/").decode()
    assert send(3000, len(DATA)).status == 201
    assert fetch(uploads, "/up.bin")[2] == DATA
    assert not parts(folder)


def test_an_upload_to_a_file_that_is_there_can_be_resumed_too(uploads, folder):
    """HEAD tells the offset beside what there is now."""
    span = {"content-range": "bytes 0-1/4"}
    assert uploads.put("/data.bin", span, b"ab").status == 202
    response = uploads.head("/data.bin")
    assert response.headers["upload-offset"] == "2"
    assert response.headers["content-length"] == len(DATA)
    assert (
        uploads.put("/data.bin", {"content-range": "bytes 2-3/4"}, b"cd").status == 204
    )
    assert (folder / "data.bin").read_bytes() == b"abcd"
    assert "upload-offset" not in uploads.head("/data.bin").headers


def test_an_upload_from_the_start_begins_anew(uploads, folder):
    """What somebody left behind is not mixed with another content."""
    assert uploads.put("/x", {"content-range": "bytes 0-5/9"}, b"stale!").status == 202
    assert uploads.put("/x", {"content-range": "bytes 0-1/4"}, b"ab").status == 202
    assert uploads.put("/x", {"content-range": "bytes 2-3/4"}, b"cd").status == 201
    assert (folder / "x").read_bytes() == b"abcd"


@pytest.mark.parametrize(
    "value",
    ["bytes 0-3/5", "bytes 0-4/4", "bytes 4-3/5", "bytes 0-4/*", "bytes */5",
     "bytes=0-4/5", "bytes 0-4/5 ", "lines 0-4/5"],
)  # fmt: skip
def test_a_content_range_that_contradicts_itself_is_refused(uploads, folder, value):
    """A range that is not the body's is a 400; the right one is taken."""
    headers = {"content-range": value.strip()}
    expected = 201 if value == "bytes 0-4/5 " else 400
    assert uploads.put("/x", headers, b"12345").status == expected
    assert not parts(folder)


def test_a_part_is_for_one_writer_at_a_time(uploads, folder, wait_until):
    """A second upload of the same part is a 409 while the first one goes on."""
    gate = threading.Event()
    slow = uploads.connect()
    result = []

    def drip():
        yield b"a"
        gate.wait(10)
        yield b"b"

    def send():
        headers = {"content-range": "bytes 0-1/4"}
        result.append(slow.put("/x", headers, Output(drip(), 2)).status)

    thread = threading.Thread(target=send)
    thread.start()
    # It is locked only after it was made.
    wait_until(lambda: parts(folder, 1), what="the slow upload has begun")
    assert uploads.put("/x", {"content-range": "bytes 0-1/4"}, b"zz").status == 409
    gate.set()
    thread.join()
    slow.close()
    assert result == [202]
    assert uploads.put("/x", {"content-range": "bytes 2-3/4"}, b"cd").status == 201
    assert (folder / "x").read_bytes() == b"abcd"


@pytest.mark.parametrize("resumable", [False, True])
def test_a_client_that_goes_away_leaves_at_most_a_part(
    uploads, folder, wait_until, resumable
):
    """Without content-range nothing stays; with it what came can be gone on with."""
    span = "content-range: bytes 0-999/1000\r\n" if resumable else ""
    with socket.create_connection(uploads.address) as sock:
        sock.sendall(
            f"PUT /x HTTP/1.1\r\nhost: localhost\r\n{span}content-length: 1000\r\n\r\n"
            "half".encode()
        )
        wait_until(lambda: parts(folder), what="the upload has begun")
    if not resumable:
        wait_until(lambda: not parts(folder), what="the part is gone")
        return

    def offset():
        return uploads.head("/x").headers.get("upload-offset") == "4"

    wait_until(offset, what="the part is known")
    rest = b"x" * 996

    def resume():
        headers = {"content-range": "bytes 4-999/1000"}
        return uploads.put("/x", headers, rest).status == 201

    wait_until(resume, what="the part is free again")
    assert (folder / "x").read_bytes() == b"half" + rest


def build_small_files_app(folder: str) -> FilesApp:
    """An app in a process that can't write files of more than 1000 bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    return FilesApp(folder, writable=True)


def test_a_full_disk_is_a_507(folder):
    """Where no more can be written the client is told, and no part stays."""
    with EmbeddedServer(LOCALHOST, build_small_files_app, str(folder)) as server:
        client = Client(server.address)
        assert client.put("/big", {}, b"x" * 100_000).status == 507
        assert not parts(folder)
        assert client.put("/small", {}, b"x" * 1000).status == 201
        span = {"content-range": "bytes 0-4999/5000"}
        assert client.put("/big", span, b"x" * 5000).status == 507
        assert client.head("/big").headers["upload-offset"] == "1000"
        client.close()


def test_a_full_device_is_a_507(uploads, folder, monkeypatch):
    """ENOSPC itself, by the device that is always full."""
    real = os.open

    def full(path, flags, *args, **kwargs):
        if str(path).endswith(PART_SUFFIX):
            return real("/dev/full", os.O_RDWR)
        return real(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", full)
    monkeypatch.setattr(degu.files._Upload, "_is_still", lambda *_: True)
    assert uploads.put("/x", {}, b"data").status == 507


def test_a_read_only_folder_is_a_403(uploads, folder):
    """Where the system forbids it the client is told so."""
    (folder / "sub").chmod(0o500)
    if os.getuid() == 0:  # root may write there all the same
        subprocess.run(["chattr", "+i", folder / "sub"], check=False)
    try:
        try:
            (folder / "sub" / "probe").touch()
        except OSError:
            pass
        else:
            pytest.skip("this user may write anywhere")
        assert uploads.put("/sub/x", {}, b"x").status == 403
    finally:
        if os.getuid() == 0:
            subprocess.run(["chattr", "-i", folder / "sub"], check=False)
        (folder / "sub").chmod(0o700)


def test_a_long_name_of_many_bytes_can_be_uploaded(uploads, folder):
    """The name of the part is cut by bytes, so that it is never the longer one."""
    name = "\N{PILE OF POO}" * 60
    from urllib.parse import quote

    assert uploads.put(f"/{quote(name)}", {}, b"x").status == 201
    assert (folder / name).read_bytes() == b"x"


def test_a_body_over_the_cap_leaves_nothing(serve, folder):
    """413 for a chunked body over the server's cap, and no part of it."""
    from degu.base import ChunkedOutput

    client = serve(FilesApp(folder, writable=True), max_body_size=10)
    body = ChunkedOutput([b"12345678", b"90123"])
    assert client.put("/x", {}, body).status == 413
    assert not parts(folder)
    assert not (folder / "x").exists()
    assert client.put("/x", {}, b"1234567890").status == 201


def test_a_continue_is_asked_for_only_where_the_body_is_wanted(uploads):
    """Expect: 100-continue saves sending what a condition refuses."""
    for headers, first in (
        ("if-match: *\r\n", b"HTTP/1.1 412 "),
        ("", b"HTTP/1.1 100 "),
    ):
        with socket.create_connection(uploads.address) as sock:
            sock.sendall(
                b"PUT /never HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\n"
                b"content-length: 1000\r\n" + headers.encode() + b"\r\n"
            )
            assert sock.recv(13) == first


# --- other people's clients

BIG = 64 * 1024 * 1024


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    """A server with one large file, and what its digest is."""
    root = tmp_path_factory.mktemp("big")
    block = os.urandom(1 << 20)
    digest = hashlib.sha256()
    with open(root / "big.bin", "wb") as file:
        for index in range(BIG >> 20):
            piece = block[index:] + block[:index]
            file.write(piece)
            digest.update(piece)
    server = Server(LOCALHOST, Validator(FilesApp(root)))
    with server.running():
        url = f"http://127.0.0.1:{server.address[1]}/big.bin"
        yield url, digest.hexdigest()
    (root / "big.bin").unlink()


def file_digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def begin_download(url: str, path: Path, size: int) -> None:
    """The first `size` bytes of a download that broke off."""
    host, _, port = url.split("/")[2].partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    connection.request("GET", "/big.bin")
    path.write_bytes(connection.getresponse().read(size))
    connection.close()


@pytest.mark.parametrize(
    "command",
    [
        ["curl", "-sS", "-C", "-", "-o", "big.bin"],
        ["wget", "-q", "-c", "-O", "big.bin"],
    ],
    ids=["curl", "wget"],
)
def test_a_broken_download_is_resumed(big, tmp_path, command):
    """Curl -C - and wget -c fetch the rest, and the whole has the right digest."""
    url, digest = big
    begin_download(url, tmp_path / "big.bin", 20_000_003)
    subprocess.run([*command, url], cwd=tmp_path, check=True, timeout=50)
    assert file_digest(tmp_path / "big.bin") == digest


def test_a_download_is_split(big, tmp_path):
    """aria2c -x4 fetches four ranges at once, and the whole has the right digest."""
    url, digest = big
    subprocess.run(
        ["aria2c", "-q", "-x4", "-s4", "--file-allocation=none", url],
        cwd=tmp_path,
        check=True,
        timeout=50,
    )
    assert file_digest(tmp_path / "big.bin") == digest


def test_curl_uploads_and_resumes(uploads, folder, tmp_path):
    """Curl -T with content-range sends the rest of a file that was cut off."""
    source = tmp_path / "source"
    source.write_bytes(DATA)
    url = f"http://127.0.0.1:{uploads.address[1]}/up.bin"
    begun = {"content-range": f"bytes 0-999/{len(DATA)}"}
    assert uploads.put("/up.bin", begun, DATA[:1000]).status == 202
    subprocess.run(
        ["curl", "-sS", "--fail", "-C", "1000", "-T", source, url],
        check=True,
        timeout=50,
    )
    assert (folder / "up.bin").read_bytes() == DATA


def test_a_file_that_shrinks_while_it_is_sent_breaks_off(serve, folder, caplog):
    """The client is never told that half a file is the whole."""
    from degu.errors import UnderFlowError

    def app(request):
        body = FileOutput((folder / "data.bin").open("rb", 0), len(DATA) + 5)
        return 200, "OK", {}, body

    client = serve(app)
    body = client.get("/").body
    assert isinstance(body, Input)
    with pytest.raises(UnderFlowError):
        body.read()

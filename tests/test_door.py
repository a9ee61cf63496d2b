"""degu.door: what a web page may not reach through its user's browser."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from degu.door import MAX_ADMITTED, Door
from degu.errors import DeguError, ForbiddenOriginError, MisdirectedError
from degu.limits import SERVER_OPTIONS, check_options
from degu.server import Server
from tests.transports import exchange


def make_door(scheme: str = "http", **options: Any) -> Door:
    return Door(scheme, check_options(options, SERVER_OPTIONS))


def check(door: Door, **headers: Any) -> str:
    """The name of the error, or 'in'."""
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        door.check(fields)
    except DeguError as error:
        return type(error).__name__
    return "in"


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1:8080",
        "192.168.7.9:1",
        "[::1]",
        "[::1]:8080",
        "[fe80::1]",
        "localhost",
        "LocalHost:8080",
        "app.localhost",
        "a.b.localhost:80",
    ],
)
def test_an_address_or_localhost_is_let_in(host: str):
    """No owner of a name can point these at somebody else's machine."""
    assert check(make_door(), host=host) == "in"


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "evil-localhost",
        "xlocalhost",
        "127.0.0.1.nip.io:8080",
        "1.2.3",
        "1.2.3.256",
        "1.2.3.4.5",
        "0x7f.1.1.1",
        "2130706433",
        "localhost.",
    ],
)
def test_any_other_name_is_a_stranger(host: str):
    """DNS rebinding: a foreign name that leads here is refused (421)."""
    door = make_door()
    assert check(door, host=host) == "MisdirectedError"
    assert host not in door.admitted
    assert check(make_door(allowed_hosts="*"), host=host) == "in"


def test_allowed_hosts_opens_the_door_by_name():
    """A name lets in every port, a name with a port only that; case is ignored."""
    door = make_door(allowed_hosts=["Degu.Example", "other.example:8080"])
    assert check(door, host="degu.example") == "in"
    assert check(door, host="DEGU.EXAMPLE:1234") == "in"
    assert check(door, host="other.example:8080") == "in"
    assert check(door, host="other.example:8081") == "MisdirectedError"
    assert check(door, host="sub.degu.example") == "MisdirectedError"
    assert check(door, host="evil.example") == "MisdirectedError"


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_own_origin_is_let_in_and_no_other(scheme: str):
    """Scheme, host and port have to be those of the request itself."""
    door = make_door(scheme)
    other = "https" if scheme == "http" else "http"
    host = "127.0.0.1:8080"
    assert check(door, host=host, origin=f"{scheme}://127.0.0.1:8080") == "in"
    for origin in (
        f"{other}://127.0.0.1:8080",
        f"{scheme}://127.0.0.1:8081",
        f"{scheme}://127.0.0.1",
        f"{scheme}://localhost:8080",
        f"{scheme}://evil.example",
        f"{scheme}://127.0.0.1:8080.evil.example",
        "null",
        "",
        "file://",
    ):
        assert check(door, host=host, origin=origin) == "ForbiddenOriginError"


def test_allowed_origins_opens_the_door_by_name():
    """Only the named origin, with its scheme and port; '*' lets in all."""
    door = make_door(allowed_origins=["https://App.Example:8443"])
    host = "localhost:1"
    assert check(door, host=host, origin="https://app.example:8443") == "in"
    for origin in ("https://app.example", "http://app.example:8443", "null"):
        assert check(door, host=host, origin=origin) == "ForbiddenOriginError"
    door = make_door(allowed_origins="*")
    assert check(door, host=host, origin="https://evil.example") == "in"
    assert check(door, host=host, sec_fetch_site="cross-site") == "in"
    assert check(door, host="evil.example") == "MisdirectedError"


@pytest.mark.parametrize("site", ["cross-site", "same-site", "CROSS-SITE", "new", ""])
def test_fetch_metadata_of_another_site_is_refused(site: str):
    """An image or a link sends no Origin, but says whence it comes."""
    door = make_door()
    host = "localhost:8080"
    assert check(door, host=host, sec_fetch_site=site) == "ForbiddenOriginError"
    # From a page of ours to another site, which sent the browser on to us.
    back = {"sec_fetch_site": site, "referer": f"http://{host}/page"}
    assert check(door, host=host, **back) == "ForbiddenOriginError"
    evil = {"sec_fetch_site": site, "referer": "https://evil.example/page"}
    assert check(door, host=host, **evil) == "ForbiddenOriginError"


def test_fetch_metadata_of_a_friend_is_let_in():
    """The own page, the address bar, and a page of an allowed origin by its Referer."""
    door = make_door(allowed_origins=["https://friend.example"])
    host = "localhost:8080"
    assert check(door, host=host, sec_fetch_site="same-origin") == "in"
    assert check(door, host=host, sec_fetch_site="none") == "in"
    friend = {"sec_fetch_site": "cross-site", "referer": "https://friend.example/a?b"}
    assert check(door, host=host, **friend) == "in"
    friend["referer"] = "https://friend.example.evil.example/"
    assert check(door, host=host, **friend) == "ForbiddenOriginError"


def test_a_foreign_origin_is_refused_whatever_its_fetch_metadata_says():
    """Both have to be in order."""
    door = make_door()
    for site in ("same-origin", "none", "cross-site"):
        headers = {"origin": "https://evil.example", "sec_fetch_site": site}
        assert check(door, host="localhost", **headers) == "ForbiddenOriginError"


def test_what_was_admitted_is_remembered_up_to_a_bound():
    """Invented ports can't fill the memory, and are still let in."""
    door = make_door()
    for port in range(1, MAX_ADMITTED * 3):
        assert check(door, host=f"localhost:{port}") == "in"
    assert len(door.admitted) == MAX_ADMITTED
    assert check(door, host="evil.example") == "MisdirectedError"


def test_the_errors_carry_their_status():
    """421 for a Host, 403 for an Origin (RFC 9110 §15.5.4, §15.5.20)."""
    assert MisdirectedError.status == 421
    assert ForbiddenOriginError.status == 403


# --- through a server ------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[Server]:
    """A server with a friend, that counts how often its app was reached."""

    def app(request: dict[str, Any]) -> Any:
        reached.append(request["uri"])
        return 200, "OK", {}, None

    reached: list[str] = []
    options = {
        "allowed_hosts": ["degu.example"],
        "allowed_origins": ["https://friend.example"],
    }
    server = Server(("127.0.0.1", 0), app, **options)
    server.reached = reached  # type: ignore[attr-defined]
    with server.running():
        yield server


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ("Host: localhost", 200),
        ("Host: degu.example:99", 200),
        ("Host: evil.example", 421),
        ("Host: 127.0.0.1\r\nOrigin: http://127.0.0.1", 200),
        ("Host: 127.0.0.1\r\nOrigin: https://friend.example", 200),
        ("Host: 127.0.0.1\r\nOrigin: https://evil.example", 403),
        ("Host: 127.0.0.1\r\nOrigin: null", 403),
        ("Host: 127.0.0.1\r\nSec-Fetch-Site: cross-site", 403),
        ("Host: 127.0.0.1\r\nSec-Fetch-Site: same-origin", 200),
        ("Host: 127.0.0.1\r\nSec-Fetch-Site: none", 200),
        (
            "Host: 127.0.0.1\r\nSec-Fetch-Site: cross-site\r\n"
            "Referer: https://friend.example/page",
            200,
        ),
        ("Host: evil.example\r\nOrigin: http://evil.example", 421),
    ],
)
def test_a_stranger_never_reaches_the_app(server: Any, fields: str, status: int):
    """The door stands before the app, also once a Host was admitted before."""
    for _ in range(2):
        answer = exchange(server, f"GET /x HTTP/1.1\r\n{fields}\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert len(server.reached) == (2 if status == 200 else 0)


def test_a_form_of_another_site_is_refused_before_its_body_is_read(server: Any):
    """A simple POST needs no preflight; it is refused by its head alone."""
    answer = exchange(
        server,
        b"POST /x HTTP/1.1\r\nHost: localhost\r\nOrigin: https://evil.example\r\n"
        b"Content-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello",
    )
    assert answer.startswith(b"HTTP/1.1 403 Forbidden\r\n")
    assert answer.count(b"HTTP/1.1") == 1
    assert server.reached == []

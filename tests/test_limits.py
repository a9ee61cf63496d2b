"""degu.limits: options are checked by name, type and range."""

from __future__ import annotations

from typing import Any

import pytest

from degu import limits
from degu.client import Client, SSLClient
from degu.limits import CLIENT_OPTIONS, SERVER_OPTIONS, SSL_CLIENT_OPTIONS
from degu.server import Server, SSLServer
from tests.transports import shared_pki


def app(request: Any) -> Any:
    return 200, "OK", {}, None


GOOD: list[tuple[str, Any]] = [
    ("max_connections", 1),
    ("max_connections_per_address", None),
    ("max_connections_per_address", 1),
    ("max_requests", 1),
    ("max_body_size", 0),
    ("max_body_size", 2**40),
    ("timeout", 1),
    ("timeout", 0.5),
    ("head_timeout", 0.5),
    ("handshake_timeout", 0.5),
    ("min_rate", 0),
    ("min_rate", 0.5),
    ("methods", ["GET"]),
    ("methods", {"GET", "REPORT"}),
    ("methods", None),
    ("allowed_hosts", ()),
    ("allowed_hosts", ["example.org"]),
    ("allowed_hosts", "*"),
    ("allowed_origins", ["https://example.org"]),
    ("allowed_origins", "*"),
    ("backlog", 1),
    ("socket_mode", 0o660),
]

BAD: list[tuple[str, Any]] = [
    ("max_connections", 0),
    ("max_connections", -1),
    ("max_connections", None),
    ("max_connections", True),
    ("max_connections", 1.5),
    ("max_connections", "5"),
    ("max_connections_per_address", 0),
    ("max_connections_per_address", "5"),
    ("max_requests", 0),
    ("max_body_size", -1),
    ("max_body_size", "5"),
    ("timeout", 0),
    ("timeout", -1),
    ("timeout", None),
    ("timeout", True),
    ("timeout", "5"),
    ("timeout", float("nan")),
    ("timeout", float("inf")),
    ("head_timeout", 0),
    ("handshake_timeout", 0),
    ("min_rate", -1),
    ("min_rate", float("nan")),
    ("methods", "GET"),
    ("methods", "*"),
    ("methods", []),
    ("methods", [5]),
    ("allowed_hosts", "example.org"),
    ("allowed_hosts", [5]),
    ("allowed_hosts", [""]),
    ("allowed_hosts", None),
    ("allowed_origins", "https://example.org"),
    ("backlog", 0),
    ("socket_mode", -1),
    ("socket_mode", 0o1777),
    ("socket_mode", "0600"),
]


@pytest.mark.parametrize(("name", "value"), GOOD)
def test_a_good_option_is_taken(name: str, value: Any):
    """What is documented is accepted, and the rest keeps its default."""
    options = limits.check_options({name: value}, SERVER_OPTIONS)
    assert options[name] == value
    assert options.keys() == SERVER_OPTIONS.keys()
    for other, option in SERVER_OPTIONS.items():
        assert other == name or options[other] == option.default


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_option_is_refused_by_its_name(name: str, value: Any):
    """D20: the error is real, names the option, says what was expected and came."""
    with pytest.raises((TypeError, ValueError)) as caught:
        Server(("127.0.0.1", 0), app, **{name: value})
    message = str(caught.value)
    assert message.startswith(f"{name}: expected ")
    assert message.endswith(f"got {value!r}")


@pytest.mark.parametrize(
    "make",
    [
        lambda **options: Server(("::1", 0, 0, 0), app, **options),
        lambda **options: SSLServer(
            shared_pki().server_sslconfig, ("::1", 0, 0, 0), app, **options
        ),
        lambda **options: Client(("::1", 1, 0, 0), **options),
        lambda **options: SSLClient(
            shared_pki().client_sslconfig, ("::1", 1, 0, 0), **options
        ),
    ],
    ids=["Server", "SSLServer", "Client", "SSLClient"],
)
def test_an_unknown_option_is_refused_and_the_known_ones_named(make):
    """A typing error is a `TypeError` that lists what there is."""
    with pytest.raises(TypeError, match=r"unknown option 'time_out'.*timeout"):
        make(time_out=5)
    made = make(timeout=5)
    assert made.options["timeout"] == 5
    if hasattr(made, "close"):
        made.close()


@pytest.mark.parametrize(
    ("name", "value"),
    [("timeout", 0), ("host", 5), ("host", ""), ("max_body_size", -1)],
)
def test_a_bad_option_of_a_client_is_refused(name: str, value: Any):
    """D20: clients check theirs as servers do."""
    with pytest.raises((TypeError, ValueError), match=f"{name}: expected "):
        Client(("::1", 1, 0, 0), **{name: value})


def test_the_defaults_are_accepted():
    """No default would be refused if it were given."""
    for known in (SERVER_OPTIONS, CLIENT_OPTIONS, SSL_CLIENT_OPTIONS):
        defaults = {name: option.default for name, option in known.items()}
        assert limits.check_options(defaults, known) == defaults
        assert limits.check_options({}, known) == defaults


def test_the_given_options_are_not_changed():
    """The caller's dict is the caller's."""
    given = {"timeout": 5}
    limits.check_options(given, SERVER_OPTIONS)
    assert given == {"timeout": 5}

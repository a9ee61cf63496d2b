"""Every limit and timeout of Degu: its unit, its value and why it has that value.

Nothing here is a protocol rule; the grammar lives in :mod:`degu.wire`. Where a
limit can be set, the option of a server or client is named beside it. What a
peer is answered when it goes over a limit is said by the error that is raised
(see :mod:`degu.errors`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from degu.errors import shown

MAX_HEAD_SIZE = 32 * 1024
"""Bytes of a head with its final empty line; over it: 431.

Browsers and proxies stay under 16 KiB (nginx takes 8 KiB a line, Apache 8190
bytes, Node 16 KiB in all); twice that leaves room for cookies."""

MAX_TARGET_SIZE = 8 * 1024
"""Bytes of a request-target; over it: 414. RFC 9112 §3 recommends at least 8000."""

MAX_HEADER_COUNT = 100
"""Fields of a head or a trailer section; over it: 431. Apache's figure; a browser
sends about 20."""

MAX_TRAILERS_SIZE = 8 * 1024
"""Bytes of a trailer section; over it: 431. Trailers carry digests and timings."""

MAX_CONTENT_LENGTH_DIGITS = 16
"""Decimal digits of a Content-Length; over it: 400. Ten petabytes, below 2**63."""

MAX_CHUNK_LINE_SIZE = 4 * 1024
"""Bytes of a chunk's first line with extension and CRLF; over it: 400."""

MAX_CHUNK_SIZE = 16 * 1024 * 1024
"""Bytes of one chunk's data; over it: 413. A chunk may have to be held in memory."""

MAX_READ_SIZE = 16 * 1024 * 1024
"""Bytes that `read()` without a size returns at most; over it: 413. What is larger
should be streamed: iterate, `read(size)`, `readinto(buffer)` or `write_to(file)`."""

MAX_BODY_SIZE = 10**MAX_CONTENT_LENGTH_DIGITS - 1
"""Bytes of a whole body; over it: 413 (option `max_body_size`). The default is all
that a Content-Length can say, since bodies are streamed and the app decides."""

MAX_INTERIM_RESPONSES = 16
"""1xx responses that a client skips before one final response; more is a flood."""

MAX_CONNECTIONS = 100
"""Connections served at once, a thread each; over it: 503 (option `max_connections`).
An embedded server has a few peers; each thread costs memory and switching."""

MAX_CONNECTIONS_PER_ADDRESS: int | None = None
"""Connections served at once from one IP address; over it: 503 (option
`max_connections_per_address`). None: only the total counts, since on loopback
all peers share one address."""

MAX_REQUESTS = 1_000_000
"""Requests served on one connection before it is closed (option `max_requests`).
It bounds what any fault that grows with a connection's age can cost."""

MAX_REFUSALS = 8
"""Connections over the limit that are being told so (503) at once; further ones
are closed without an answer, so that a flood costs no threads."""

EVICTION_AGE = 0.25
"""Seconds that a connection without a completed request keeps its place for sure.
After that a full server gives it to a newcomer, if it has not sent its first head or
is slower than `min_rate`: slow peers can't starve others, and a flood of newcomers
can't push out one that is just sending its head."""

EVICTION_SILENCE = 0.75
"""Seconds of silence after which a connection without a completed request is a slow one
to a full server, however much it sent or took before."""

GRACE_AGE = 0.02
"""Seconds that a server which stops still waits for the first byte of a connection it
just accepted."""

BACKLOG = 1024
"""Connections the kernel queues until they are accepted (option `backlog`)."""

SOCKET_MODE = 0o600
"""Permission bits of a Unix socket file (option `socket_mode`): its owner only."""

TIMEOUT = 30.0
"""Seconds a server waits for a next request, for progress of a body, or for a peer
to take what is sent (option `timeout`)."""

CLIENT_TIMEOUT = 60.0
"""Seconds a client waits to connect, for a response to begin, or for progress of a
body (option `timeout`). Twice the server's: the server gives up first and says so."""

HEAD_TIMEOUT = 10.0
"""Seconds from the first byte of a head to its last, and from the accept of a
connection to its first byte (option `head_timeout`). Over it: 408. It is a total, so
a byte a second does not hold a thread."""

HANDSHAKE_TIMEOUT = 10.0
"""Seconds for a whole TLS handshake (option `handshake_timeout`)."""

MIN_RATE = 1024
"""Bytes a second a peer has to keep up on average while it is being waited for,
once `timeout` is used up (option `min_rate`, 0 for none). A drip can stretch a
body by no more than its size divided by this."""

LINGER_TIMEOUT = 2.0
"""Seconds that a closed connection still reads and drops what the peer sends, so
that the last answer is not lost to a reset (RFC 9112 §9.6)."""

ACCEPT_BACKOFF = 0.05
"""Seconds the accept loop rests after an error such as EMFILE before it tries again."""

RECEIVE_SIZE = 8 * 1024
"""Bytes asked for where a head is expected: one call takes a whole usual request,
and a thousand idle connections do not hold large buffers."""

COPY_SIZE = 256 * 1024
"""Bytes moved at once where a body is copied: large enough to make the cost of the
calls small, small enough to stay in the processor's cache."""

JOIN_SIZE = 64 * 1024
"""A body of at most so many bytes is joined to its head, to leave in one call."""

# Embedded servers (`degu.embed`)

START_TIMEOUT = 10.0
"""Seconds an embedded server has to report its address (option `start_timeout`)."""

MAX_WORKERS = 64
"""Processes of one embedded server (option `workers`). Each costs memory, and more of
them than processors add nothing; over it, somebody mistook the number's meaning."""

# Forms (`degu.forms`), each an option of `read_form`

MAX_FORM_PARTS = 1000
"""Fields and files of one form (option `max_parts`); over it: 413, in a query 414.
Large forms have dozens; Django and Werkzeug draw the line here too."""

MAX_FORM_FIELD_SIZE = 1024 * 1024
"""Bytes of one field's value (option `max_field_size`); over it: 413, in a query 414.
A long text fits; what is larger is a file."""

MAX_FORM_FIELDS_SIZE = 2 * 1024 * 1024
"""Bytes of all fields together (option `max_fields_size`); over it: 413, in a query
414. They are held in memory."""

MAX_FORM_FILE_SIZE = 128 * 1024 * 1024
"""Bytes of one uploaded file (option `max_file_size`); over it: 413."""

MAX_FORM_SIZE = 256 * 1024 * 1024
"""Bytes of a whole form (option `max_form_size`); over it: 413. Uploads wait in the
temporary folder, which is often memory."""

MAX_PART_HEADERS = 8
"""Fields in the head of one part (option `max_part_headers`); over it: 413. Browsers
send two."""

MAX_PART_HEADER_SIZE = 4 * 1024
"""Bytes of one field of a part's head (option `max_part_header_size`); over it: 413.
Room for a name and a file name."""

MAX_BOUNDARY_SIZE = 70
"""Characters of a multipart boundary (RFC 2046 §5.1.1); over it: 400."""

FORM_SPOOL_SIZE = 1024 * 1024
"""Bytes of uploads held in memory before they go to a temporary file (option
`spool_size`)."""


# --- options -----------------------------------------------------------------


class Option(NamedTuple):
    """One option: its default, what is accepted, and that in words."""

    default: Any
    accepts: Callable[[Any], bool]
    expected: str


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _seconds(value: Any) -> bool:
    return _number(value) and 0 < value <= 86400 * 365


def _names(value: Any) -> bool:
    return value == "*" or (
        isinstance(value, list | tuple | set | frozenset)
        and all(isinstance(name, str) and name for name in value)
    )


_COUNT = "an int from 1"
_SECONDS = "a number of seconds above 0"

SERVER_OPTIONS: Mapping[str, Option] = {
    "max_connections": Option(MAX_CONNECTIONS, _count, _COUNT),
    "max_connections_per_address": Option(
        MAX_CONNECTIONS_PER_ADDRESS,
        lambda value: value is None or _count(value),
        _COUNT + " or None",
    ),
    "max_requests": Option(MAX_REQUESTS, _count, _COUNT),
    "max_body_size": Option(
        MAX_BODY_SIZE,
        lambda value: type(value) is int and value >= 0,
        "an int of bytes from 0",
    ),
    "timeout": Option(TIMEOUT, _seconds, _SECONDS),
    "head_timeout": Option(HEAD_TIMEOUT, _seconds, _SECONDS),
    "handshake_timeout": Option(HANDSHAKE_TIMEOUT, _seconds, _SECONDS),
    "min_rate": Option(
        MIN_RATE,
        lambda value: _number(value) and value >= 0,
        "a number of bytes a second from 0",
    ),
    "methods": Option(
        None,
        lambda value: value is None or (_names(value) and value != "*" and value),
        "a collection of method names",
    ),
    "allowed_hosts": Option(
        (), _names, "a collection of host names, or '*' for any host"
    ),
    "allowed_origins": Option(
        (), _names, "a collection of origins ('https://name:8443'), or '*' for any"
    ),
    "backlog": Option(BACKLOG, _count, _COUNT),
    "socket_mode": Option(
        SOCKET_MODE,
        lambda value: type(value) is int and 0 <= value <= 0o777,
        "the permission bits of a Unix socket file, such as 0o600",
    ),
}
"""The options of `Server` and `SSLServer`."""

CLIENT_OPTIONS: Mapping[str, Option] = {
    "timeout": Option(CLIENT_TIMEOUT, _seconds, _SECONDS),
    "head_timeout": SERVER_OPTIONS["head_timeout"],
    "min_rate": SERVER_OPTIONS["min_rate"],
    "max_body_size": SERVER_OPTIONS["max_body_size"],
    "host": Option(
        None,
        lambda value: value is None or (isinstance(value, str) and bool(value)),
        "the text of a Host field, or None",
    ),
}
"""The options of `Client`."""

SSL_CLIENT_OPTIONS: Mapping[str, Option] = {
    **CLIENT_OPTIONS,
    "handshake_timeout": SERVER_OPTIONS["handshake_timeout"],
    "server_hostname": Option(
        None,
        lambda value: value is None or (isinstance(value, str) and bool(value)),
        "the name that the server's certificate has to carry, or None",
    ),
}
"""The options of `SSLClient`."""

EMBED_OPTIONS: Mapping[str, Option] = {
    "start_timeout": Option(START_TIMEOUT, _seconds, _SECONDS),
    "restart": Option(
        None,
        lambda value: value is None or value == "on-failure",
        "None or 'on-failure'",
    ),
    "log": Option(True, lambda value: isinstance(value, bool), "True or False"),
    "workers": Option(
        1,
        lambda value: _count(value) and value <= MAX_WORKERS,
        f"an int from 1 to {MAX_WORKERS}",
    ),
}
"""What `EmbeddedServer` takes beside the options of `Server`."""


def check_options(
    options: Mapping[str, Any], known: Mapping[str, Option]
) -> dict[str, Any]:
    """The `options` completed with the defaults of the `known` ones.

    Raises `TypeError` for a name that is not known, `ValueError` for a value that
    is not accepted (`TypeError` where its type is not the default's).
    """
    for name, value in options.items():
        option = known.get(name)
        if option is None:
            raise TypeError(
                f"unknown option {name!r}; the options are {', '.join(sorted(known))}"
            )
        if not option.accepts(value):
            wrong = (
                ValueError if _number(value) and _number(option.default) else TypeError
            )
            raise wrong(f"{name}: expected {option.expected}, got {shown(value)}")
    return {name: option.default for name, option in known.items()} | dict(options)

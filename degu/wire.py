"""Bytes on the wire <-> Python values: the grammar of RFC 9112, decided once.

Pure functions, no I/O. Each ``parse_x`` stands beside its inverse ``format_x``, and
both obey the same tables: what is refused on the way in can't be sent either.
A *head* here is everything before the empty line that ends it: whoever reads or
writes a head deals with that ``CRLF CRLF``.

What is parsed raises a :class:`~degu.errors.ProtocolError` (the peer broke a rule);
what is formatted raises an :class:`~degu.errors.AppError` (the caller did).

Strategy: a head is decoded once as latin-1, which loses nothing, and every region
is matched against its own class of ASCII characters, so that nothing outside of
ASCII ever counts as a digit or a letter. Lines that were seen before are
remembered (`_Memory`), because peers repeat themselves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from degu.errors import (
    AppError,
    ContentTooLargeError,
    ExpectationError,
    HeadTooLargeError,
    MisdirectedError,
    ParseError,
    ProtocolError,
    TargetTooLongError,
    UnsupportedError,
    VersionError,
    shown,
)
from degu.limits import (
    MAX_CHUNK_LINE_SIZE,
    MAX_CHUNK_SIZE,
    MAX_CONTENT_LENGTH_DIGITS,
    MAX_HEAD_SIZE,
    MAX_HEADER_COUNT,
    MAX_TARGET_SIZE,
    MAX_TRAILERS_SIZE,
)

__all__ = [
    "BODILESS_METHODS",
    "CHUNKED",
    "FORBIDDEN_TRAILERS",
    "LIST_HEADERS",
    "METHODS",
    "UNTIL_CLOSE",
    "Headers",
    "body_framing",
    "build_request",
    "build_response",
    "check_partial_head",
    "check_status",
    "format_chunk_head",
    "format_headers",
    "format_request",
    "format_response",
    "format_trailers",
    "frame_headers",
    "parse_chunk_head",
    "parse_headers",
    "parse_host",
    "parse_request",
    "parse_response",
    "parse_target",
    "parse_trailers",
    "says_close",
]

Headers = dict[str, Any]
"""Lower-case names to values: `str`, but `content-length` an `int`, and a repeated
`set-cookie` a `list` of `str`."""

METHODS: Final = frozenset({"GET", "HEAD", "PUT", "POST", "DELETE", "PATCH", "OPTIONS"})
"""The methods that a server accepts unless it is told otherwise."""

BODILESS_METHODS: Final = frozenset({"GET", "HEAD", "DELETE"})
"""Methods whose requests carry no body: RFC 9110 §9.3 gives one no meaning there, and
a peer that ignores it would take it for the next request."""

CONTENT_METHODS: Final = frozenset({"POST", "PUT", "PATCH"})
"""Methods that say ``content-length: 0`` where they have no body (RFC 9110 §8.6)."""

LIST_HEADERS: Final = frozenset(
    [
        "accept",
        "accept-charset",
        "accept-encoding",
        "accept-language",
        "accept-ranges",
        "access-control-allow-headers",
        "access-control-allow-methods",
        "access-control-expose-headers",
        "access-control-request-headers",
        "allow",
        "alt-svc",
        "cache-control",
        "connection",
        "content-encoding",
        "content-language",
        "content-security-policy",
        "forwarded",
        "if-match",
        "if-none-match",
        "keep-alive",
        "link",
        "permissions-policy",
        "pragma",
        "prefer",
        "preference-applied",
        "proxy-authenticate",
        "server-timing",
        "te",
        "trailer",
        "upgrade",
        "vary",
        "via",
        "warning",
        "www-authenticate",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-proto",
    ]
)
"""Fields that may be repeated; their values are joined by a comma (RFC 9110 §5.3)."""

FORBIDDEN_TRAILERS: Final = frozenset(
    [
        "age",
        "authorization",
        "cache-control",
        "connection",
        "content-encoding",
        "content-length",
        "content-range",
        "content-type",
        "cookie",
        "date",
        "expect",
        "expires",
        "host",
        "if-match",
        "if-modified-since",
        "if-none-match",
        "if-range",
        "if-unmodified-since",
        "keep-alive",
        "location",
        "max-forwards",
        "origin",
        "pragma",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "range",
        "retry-after",
        "set-cookie",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "vary",
        "warning",
        "www-authenticate",
    ]
)
"""Fields for framing, routing, authentication and control, which must not come after
the body they would change (RFC 9110 §6.5.1)."""

MAX_REQUEST_LINE_SIZE: Final = MAX_TARGET_SIZE + 64  # with method, version and CRLF

CHUNKED: Final = "chunked"
UNTIL_CLOSE: Final = "until close"


def _lazy(pattern: str | bytes, how: str = "fullmatch") -> Callable[..., Any]:
    """A method of a pattern that is compiled at its first use.

    All of them take two milliseconds, half the time an embedded server needs to
    start, and where the compiled twin works most are never used.
    """
    method: Any = None

    def match(*args: Any) -> Any:
        nonlocal method
        if method is None:
            method = getattr(re.compile(pattern), how)
        return method(*args)

    return match


_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_PATH_CHARS = r"0-9A-Za-z\-._~!$&'()*+,;=:@/|\[\]^"
_QUERY_CHARS = _PATH_CHARS + r"?{}`\\"

# Only single classes are possessive here: possessive groups, as in "(?:...)*+", match
# too much in early CPython 3.11. What a group repeats begins differently each time,
# so that there is nothing to try again.
_match_token = _lazy(_TOKEN)
_match_version = _lazy(r"HTTP/[0-9]\.[0-9]")
_match_target = _lazy(
    rf"(/(?:[{_PATH_CHARS}]++|%[0-9A-Fa-f]{{2}})*)"
    rf"(?:\?((?:[{_QUERY_CHARS}]++|%[0-9A-Fa-f]{{2}})*))?"
)
_match_absolute = _lazy(r"([A-Za-z][A-Za-z0-9+.\-]*+)://([^/?#]*+)(.*+)")
# A segment counts as a dot segment also where decoding %2F, %5C or a backslash
# would make it one: an app that decodes must not be led out of its tree.
_find_dot_segment = _lazy(
    r"(?i:(?:/|%2f|%5c)(?:\.|%2e){1,2}(?:/|%2f|%5c|\Z))", "search"
)
_match_host = _lazy(
    r"(?P<name>(?=.{1,253}(?::|\Z))[A-Za-z0-9_\-]++(?:\.[A-Za-z0-9_\-]++)*\.?"
    r"|\[[0-9A-Fa-f:.]{2,45}\])(?::(?P<port>[0-9]{1,5}))?"
)
_match_group = _lazy(r"[0-9a-f]{1,4}")
_match_ipv4 = _lazy(
    r"(?:(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])(?:\.(?!\Z)|\Z)){4}"
)
_match_field = _lazy(rf"({_TOKEN}):([\t -~]*+)")
_match_name = _lazy(r"[!#$%&'*+\-.^_`|~0-9a-z]++")
_match_value = _lazy(r"(?:[!-~](?:[\t -~]*[!-~])?)?")
_match_length = _lazy(rf"0|[1-9][0-9]{{0,{MAX_CONTENT_LENGTH_DIGITS - 1}}}")
_match_status_line = _lazy(r"HTTP/1\.([01]) ([1-5][0-9][0-9]) ([\t -~]*+)")
_match_reason = _match_value
_match_chunk_head = _lazy(r"([0-9A-Fa-f]{1,8})(?:;(.*+))?")
_QUOTED = r'"(?:[\t !#-\[\]-~]|\\[\t -~])*"'
_EXTENSION = rf"[\t ]*+{_TOKEN}[\t ]*+(?:=[\t ]*+(?:{_TOKEN}|{_QUOTED}))?"
_match_extension = _lazy(rf"{_EXTENSION}(?:[\t ]*+;{_EXTENSION})*")
_find_illegal = _lazy(rb"[^\t\r\n -~]|(?<!\r)\n|\r(?!\n|\Z)", "search")


class _Memory(dict[Any, Any]):
    """What was parsed or formatted before; emptied when full, so it stays small."""

    SIZE = 512  # entries
    LENGTH = 256  # characters of a text that is worth remembering

    def keep(self, key: Any, text: str, value: Any) -> None:
        if len(text) <= self.LENGTH:
            if len(self) >= self.SIZE:
                self.clear()
            self[key] = value


_NOTHING: Final[Mapping[str, Any]] = {}

_request_lines = _Memory()
_fields = _Memory()
_field_lines = _Memory()
_hosts = _Memory()
_status_lines = _Memory()
_status_texts = _Memory()


# --- request heads -----------------------------------------------------------


def parse_request(
    head: bytes,
    methods: Collection[str] = METHODS,
    scheme: str = "http",
    environ: Mapping[str, Any] = _NOTHING,
) -> dict[str, Any]:
    """Parse the head of a request (RFC 9112 §3, §5).

    Returns a new `dict` with what is in `environ`, ``method``, ``uri``, ``script``
    (empty `list`), ``path`` (`list` of `str`), ``query`` (`str` or None) and
    ``headers``. One empty line before the request-line is skipped (RFC 9112 §2.2).

    Raises `ParseError` (400), `TargetTooLongError` (414), `ExpectationError`
    (417), `MisdirectedError` (421), `HeadTooLargeError` (431),
    `UnsupportedError` (501) or `VersionError` (505).
    """
    try:
        return _parse_request(head, methods, scheme, environ)
    except ProtocolError:
        # So that the same is refused first as of a head that comes byte by byte.
        check_partial_head(head + b"\r\n", 0, request=True)
        raise


def _parse_request(
    head: bytes, methods: Collection[str], scheme: str, environ: Mapping[str, Any]
) -> dict[str, Any]:
    lines = head.decode("latin-1").split("\r\n")
    if not lines[0] and len(lines) > 1:
        del lines[0]
    line = lines[0]
    parsed = _request_lines.get(line)
    if parsed is None:
        parsed = _parse_request_line(line, methods)
        _request_lines.keep(line, line, parsed)
    method, uri, path, query, authority = parsed
    if method not in methods:
        raise _unknown_method(method, methods)
    headers = _parse_lines(lines, 1)
    # Inline, as nearly every request is to a host that was seen before.
    if authority or headers.get("host") not in _hosts or "expect" in headers:
        _check_request_headers(headers, authority, scheme)
    return {
        **environ,
        "method": method,
        "uri": uri,
        "script": [],
        "path": list(path),
        "query": query,
        "headers": headers,
    }


def format_request(method: str, uri: str, headers: Mapping[str, Any]) -> bytes:
    """Format the head of a request; the inverse of :func:`parse_request`.

    `uri` is in origin-form, or ``*`` for OPTIONS. Raises `AppError`.
    """
    if type(method) is not str or not _match_token(method) or method == "CONNECT":
        raise AppError(f"method: expected a token such as 'GET', got {shown(method)}")
    if type(uri) is not str:
        raise AppError(f"uri: expected a str, got {shown(uri)}")
    line = f"{method} {uri} HTTP/1.1"
    if line not in _request_lines:
        try:
            _request_lines.keep(line, line, _parse_request_line(line, (method,)))
        except (ParseError, TargetTooLongError) as error:
            raise AppError(f"uri: {error}") from None
    # Also of a line that is known: it may have come in, with an absolute target.
    if uri[0] not in "/*":
        raise AppError(f"uri: expected a path from '/', got {shown(uri)}")
    return _join_head(line.encode("ascii"), headers)


def _join_head(line: bytes, headers: Mapping[str, Any]) -> bytes:
    head = b"".join([line, *_format_lines(headers)])
    if len(head) > MAX_HEAD_SIZE - 4:
        raise AppError(
            f"headers: expected a head of at most {MAX_HEAD_SIZE} bytes, "
            f"got {len(head) + 4}"
        )
    return head


def _unknown_method(method: str, methods: Collection[str]) -> UnsupportedError:
    return UnsupportedError(f"expected one of {sorted(methods)}, got {shown(method)}")


def _parse_request_line(
    line: str, methods: Collection[str]
) -> tuple[str, str, tuple[str, ...], str | None, tuple[str, str] | None]:
    if len(line) > MAX_REQUEST_LINE_SIZE - 2:
        raise TargetTooLongError(
            f"expected a target of at most {MAX_TARGET_SIZE} bytes, "
            f"got a request-line of {len(line)}"
        )
    parts = line.split(" ")
    if len(parts) != 3:
        raise ParseError(f"expected 'METHOD TARGET HTTP/1.1', got {shown(line)}")
    method, target, version = parts
    if version != "HTTP/1.1":
        if _match_version(version):
            raise VersionError(f"expected HTTP/1.1, got {shown(version)}")
        raise ParseError(f"expected the version HTTP/1.1, got {shown(version)}")
    if not _match_token(method):
        raise ParseError(f"expected a method token, got {shown(method)}")
    if method not in methods:  # its target may be of another form (CONNECT)
        raise _unknown_method(method, methods)
    authority = None
    uri = target
    if target[:1] != "/" and (absolute := _match_absolute(target)):
        authority = (absolute[1].lower(), absolute[2].lower())
        uri = absolute[3] if absolute[3][:1] == "/" else "/" + absolute[3]
    if uri == "*" and method == "OPTIONS":
        return method, uri, (), None, None
    path, query = parse_target(uri)
    return method, uri, tuple(path), query, authority


def parse_target(uri: str) -> tuple[list[str], str | None]:
    """Split a request-target in origin-form into path and query (RFC 9112 §3.2.1).

    Percent-encoding stays as it came: ``/`` is ``[]``, ``/foo/`` is ``['foo', '']``.
    The query is None where there is no ``?``. Beyond RFC 3986, the characters
    that browsers leave as they are pass: ``|[]^``, in a query also ``{}`` and
    the backtick and backslash. Raises `ParseError` (also for a dot segment,
    plain or encoded) or `TargetTooLongError`. Inverse: `degu.base.build_uri`.
    """
    if len(uri) > MAX_TARGET_SIZE:
        raise TargetTooLongError(
            f"expected a target of at most {MAX_TARGET_SIZE} bytes, got {len(uri)}"
        )
    match = _match_target(uri)
    if match is None:
        raise ParseError(f"expected a path and query by RFC 3986, got {shown(uri)}")
    path, query = match.groups()
    if ("." in path or "%" in path) and _find_dot_segment(path):
        raise ParseError(f"expected a path without dot segments, got {shown(uri)}")
    return ([] if path == "/" else path[1:].split("/")), query


def parse_host(value: str) -> tuple[str, int | None]:
    """Parse the value of Host: lower-case name (IPv6 in brackets) and port (or None).

    RFC 9110 §7.2; stricter than `uri-host`: no zone, no percent-encoding, no
    empty name, no empty port. Raises `ParseError`.
    """
    match = _match_host(value)
    if match is not None:
        name = match["name"].lower()
        port = None if match["port"] is None else int(match["port"])
        if (port is None or port <= 65535) and (name[0] != "[" or _is_ipv6(name[1:-1])):
            return name, port
    raise ParseError(f"expected a Host such as 'name:8080', got {shown(value)}")


def _is_ipv6(text: str) -> bool:
    """Whether lower-case `text` is an IPv6 address without a zone (RFC 3986 §3.2.2)."""
    head, gap, tail = text.partition("::")
    groups = [group for part in (head, tail) if part for group in part.split(":")]
    size = len(groups)
    if groups and "." in groups[-1] and _match_ipv4(groups[-1]):
        size += 1
        groups.pop()
    return all(map(_match_group, groups)) and (size <= 7 if gap else size == 8)


def _check_request_headers(
    headers: Headers, authority: tuple[str, str] | None, scheme: str
) -> None:
    host = headers.get("host")
    if host is None:
        raise ParseError("expected a Host field, got none")
    if host not in _hosts:
        _hosts.keep(host, host, parse_host(host))
    if authority is not None:
        if authority[0] != scheme:
            raise MisdirectedError(f"expected {scheme}, got {shown(authority[0])}")
        if authority[1] != host.lower():
            raise ParseError(
                f"expected the target's authority to be the Host {shown(host)}, "
                f"got {shown(authority[1])}"
            )
    if "expect" in headers and headers["expect"].lower() != "100-continue":
        raise ExpectationError(
            f"expected '100-continue', got {shown(headers['expect'])}"
        )


# --- response heads ----------------------------------------------------------


def parse_response(head: bytes) -> tuple[int, str, Headers]:
    """Parse the head of a response (RFC 9112 §4, §5) into status, reason, headers.

    HTTP/1.0 is taken too, as many servers answer with it: the headers then say
    ``connection: close``, as HTTP/1.1 would. Raises a `ProtocolError`.
    """
    try:
        return _parse_response(head)
    except ProtocolError:
        check_partial_head(head + b"\r\n", 0, request=False)
        raise


def _parse_response(head: bytes) -> tuple[int, str, Headers]:
    lines = head.decode("latin-1").split("\r\n")
    line = lines[0]
    parsed = _status_lines.get(line)
    if parsed is None:
        match = _match_status_line(line)
        if match is None:
            version = line[:8]
            if _match_version(version) and version not in ("HTTP/1.1", "HTTP/1.0"):
                raise VersionError(f"expected HTTP/1.1, got {shown(version)}")
            raise ParseError(f"expected 'HTTP/1.1 200 OK', got {shown(line)}")
        parsed = (int(match[2]), match[3].strip(" \t"), match[1])
        _status_lines.keep(line, line, parsed)
    status, reason, minor = parsed
    headers = _parse_lines(lines, 1)
    if minor == "0":
        if "transfer-encoding" in headers:
            raise ParseError("expected no transfer-encoding in HTTP/1.0, got 'chunked'")
        headers["connection"] = "close"
    return status, reason, headers


def format_response(status: int, reason: str, headers: Mapping[str, Any]) -> bytes:
    """Format the head of a response; the inverse of :func:`parse_response`.

    `reason` is a `str` without surrounding blanks, empty where another server left
    it out (RFC 9112 §4). Raises `AppError`.
    """
    line = None
    if type(status) is int and type(reason) is str:
        line = _status_texts.get((status, reason))
    if line is None:
        line = _format_status_line(status, reason)
    return _join_head(line, headers)


def _format_status_line(status: int, reason: str) -> bytes:
    check_status(status)
    if not isinstance(reason, str) or not _match_reason(reason):
        raise AppError(
            "reason: expected a str of visible ASCII without surrounding blanks, "
            f"got {shown(reason)}"
        )
    line = b"HTTP/1.1 %d %b" % (status, reason.encode("ascii"))
    _status_texts.keep((status, reason), reason, line)
    return line


def check_status(status: Any) -> None:
    """Raise `AppError` unless `status` is an `int` (not `bool`) from 100 to 599."""
    if not isinstance(status, int) or not 100 <= status <= 599:
        raise AppError(f"status: expected an int from 100 to 599, got {shown(status)}")


# --- header sections ---------------------------------------------------------


def parse_headers(block: bytes) -> Headers:
    """Parse a header section: field lines with CRLF between them (RFC 9112 §5).

    Names become lower-case, OWS around values goes. A repeated field is refused
    unless it is one of `LIST_HEADERS` (joined by a comma), ``cookie`` (by a
    semicolon) or ``set-cookie`` (a `list`). Raises `ParseError`, `HeadTooLargeError` or
    `UnsupportedError`.
    """
    return _parse_lines(block.decode("latin-1").split("\r\n"), 0) if block else {}


def format_headers(headers: Mapping[str, Any]) -> bytes:
    """Format a header section; the inverse of :func:`parse_headers`."""
    return b"".join(_format_lines(headers))[2:]


def _parse_lines(lines: list[str], start: int) -> Headers:
    if len(lines) - start > MAX_HEADER_COUNT:
        raise HeadTooLargeError(
            f"expected at most {MAX_HEADER_COUNT} fields, got {len(lines) - start}"
        )
    headers: Headers = {}
    for index in range(start, len(lines)):
        line = lines[index]
        field = _fields.get(line)
        if field is None:
            field = _parse_field(line)
            _fields.keep(line, line, field)
        name, value = field
        if name in headers:
            value = _repeated(name, headers[name], value)
        headers[name] = value
    return headers


def _parse_field(line: str) -> tuple[str, str | int]:
    match = _match_field(line)
    if match is None:
        raise ParseError(f"expected a field line 'name: value', got {shown(line)}")
    name, value = match[1].lower(), match[2].strip(" \t")
    if name == "content-length":
        if not _match_length(value):
            raise ParseError(
                f"content-length: expected a decimal number of at most "
                f"{MAX_CONTENT_LENGTH_DIGITS} digits, got {shown(value)}"
            )
        return name, int(value)
    if name == "transfer-encoding":
        _check_coding(value)
        return name, CHUNKED
    return name, value


def _check_coding(value: str) -> None:
    """Raise unless `value` is `chunked` alone, in any case (RFC 9112 §6.1, §7)."""
    *before, last = [coding.strip(" \t").lower() for coding in value.split(",")]
    if last != CHUNKED or CHUNKED in before:
        # Without it, and only once, at the end the body's length is unknown (§6.3).
        raise ParseError(f"transfer-encoding: expected 'chunked', got {shown(value)}")
    if before:
        raise UnsupportedError(
            f"transfer-encoding: expected 'chunked' alone, got {shown(value)}"
        )


def _repeated(name: str, before: Any, value: Any) -> Any:
    if name == "set-cookie":
        return [*before, value] if isinstance(before, list) else [before, value]
    if name == "cookie" or name in LIST_HEADERS:
        between = "; " if name == "cookie" else ", "
        return f"{before}{between}{value}" if before and value else before or value
    raise ParseError(f"expected the field {name!r} once, got it again")


def _format_lines(headers: Mapping[str, Any]) -> list[bytes]:
    """The field lines, each with the CRLF that goes *before* it."""
    # The exact type first: a look at an abstract one takes longer than a field.
    if type(headers) is not dict and not isinstance(headers, Mapping):
        raise AppError(f"headers: expected a dict, got {shown(headers)}")
    count = len(headers)
    if "set-cookie" in headers and isinstance(headers["set-cookie"], list | tuple):
        count += len(headers["set-cookie"]) - 1
    if count > MAX_HEADER_COUNT:
        raise AppError(
            f"headers: expected at most {MAX_HEADER_COUNT} fields, got {count}"
        )
    lines = []
    for name, value in headers.items():
        line = _field_lines.get((name, value)) if type(value) is str else None
        lines.append(_format_field(name, value) if line is None else line)
    return lines


def _format_field(name: str, value: Any) -> bytes:
    if not isinstance(name, str) or not _match_name(name):
        raise AppError(f"headers: expected a lower-case field name, got {shown(name)}")
    if name == "set-cookie" and isinstance(value, list | tuple):
        return b"".join(_format_field(name, one) for one in value)
    if name == "content-length":
        if type(value) is not int or not _match_length(str(value)):
            raise AppError(
                f"headers: content-length: expected an int from 0, got {shown(value)}"
            )
        return b"\r\ncontent-length: %d" % value
    if name == "transfer-encoding" and value != CHUNKED:
        raise AppError(
            f"headers: transfer-encoding: expected 'chunked', got {shown(value)}"
        )
    if not isinstance(value, str) or not _match_value(value):
        raise AppError(
            f"headers: {name}: expected a str of visible ASCII without "
            f"surrounding blanks, got {shown(value)}"
        )
    # Joined and not formatted: a subclass of str may format as something else.
    line = "".join(("\r\n", name, ": ", value)).encode("ascii")
    if type(name) is type(value) is str:
        _field_lines.keep((name, value), value, line)
    return line


# --- framing -----------------------------------------------------------------


def body_framing(
    headers: Mapping[str, Any], method: str, status: int | None = None
) -> int | str | None:
    """How a message's body is framed (RFC 9112 §6.3): the one place that decides.

    `status` is None for a request; `method` is always the request's. Returns None
    (no body), a length in bytes (`int` > 0), `CHUNKED` or `UNTIL_CLOSE`.
    Raises `ParseError` where the head contradicts itself.
    """
    length = headers.get("content-length")
    if "transfer-encoding" in headers:
        if length is not None:
            raise ParseError("expected content-length or transfer-encoding, got both")
        framing: int | str | None = CHUNKED
    elif length is not None:
        framing = length or None
    else:
        framing = None if status is None else UNTIL_CLOSE
    if status is None:
        if framing is not None and method in BODILESS_METHODS:
            raise ParseError(f"expected no body with {method}, got {framing!r}")
        return framing
    if method == "HEAD" or status == 304:
        return None
    if status < 200 or status == 204:
        if framing not in (None, UNTIL_CLOSE):
            raise ParseError(f"expected no body with status {status}, got {framing!r}")
        return None
    return framing


def frame_headers(
    headers: Mapping[str, Any],
    framing: int | str | None,
    method: str,
    status: int | None = None,
) -> Mapping[str, Any]:
    """`headers` with the field that says `framing`; the inverse of `body_framing`.

    `framing` is a length in bytes, `CHUNKED` or None; a length of zero is no body.
    `headers` are never changed in place. Raises `AppError` where they contradict
    the body, the method or the status.
    """
    if framing == CHUNKED:
        if "transfer-encoding" not in headers:
            headers = {**headers, "transfer-encoding": CHUNKED}
    elif "content-length" not in headers:
        if framing or _says_zero(method, status):
            headers = {**headers, "content-length": framing or 0}
    elif (
        status is not None
        and (status < 200 or status == 204)
        and headers["content-length"] == 0
    ):  # RFC 9110 §8.6: not even a zero
        headers = {k: v for k, v in headers.items() if k != "content-length"}
    try:
        found = body_framing(headers, method, status)
    except ParseError as error:
        raise AppError(f"headers: {error}") from None
    if found != (framing or None):
        if found is None:
            expected = f"expected none (method {method}, status {status})"
            size = "one in chunks" if framing == CHUNKED else f"{framing} bytes"
            raise AppError(f"body: {expected}, got {size}")
        raise AppError(
            f"headers: they frame a body of {found}, the body has {framing or 0}"
        )
    return headers


def _says_zero(method: str, status: int | None) -> bool:
    """Whether a message without a body says so with a length (RFC 9110 §8.6)."""
    if status is None:
        return method in CONTENT_METHODS
    return method != "HEAD" and status >= 200 and status not in (204, 304)


# --- whole messages ----------------------------------------------------------


def build_request(
    method: str,
    uri: str,
    headers: Mapping[str, Any],
    body: bytes | bytearray | None,
    host: str,
) -> bytes:
    """A whole request with all of its body: framed, formatted and joined.

    ``host`` and ``content-length`` are added where they are missing. Raises
    `AppError`.
    """
    if "host" not in headers:
        headers = {"host": host, **headers}
    headers = frame_headers(headers, len(body) if body else None, method)
    head = format_request(method, uri, headers)
    return b"".join((head, b"\r\n\r\n", body or b""))


def build_response(
    status: int,
    reason: str,
    headers: Mapping[str, Any],
    body: bytes | bytearray | None,
    method: str,
) -> bytes:
    """A whole response with all of its body: framed, formatted and joined.

    ``content-length`` is added where it is missing. Raises `AppError`.
    """
    headers = frame_headers(headers, len(body) if body else None, method, status)
    head = format_response(status, reason, headers)
    return b"".join((head, b"\r\n\r\n", body or b""))


def says_close(headers: Mapping[str, Any]) -> bool:
    """Whether a `connection` field makes this the last message (RFC 9112 §9.6)."""
    options = headers["connection"].lower().split(",")
    return any(option.strip(" \t") == "close" for option in options)


# --- chunks and trailers -----------------------------------------------------


def parse_chunk_head(line: bytes) -> tuple[int, str | None]:
    """Parse a chunk's first line, without its CRLF (RFC 9112 §7.1).

    Returns the size in bytes and the text after the first ``;``, or None. A size has
    one to eight digits, and no sign or blank; blanks within the extension pass.
    Raises `ParseError` or
    `ContentTooLargeError`.
    """
    match = _match_chunk_head(line.decode("latin-1"))
    if match is None:
        raise ParseError(f"expected a chunk size in hexadecimal, got {shown(line)}")
    size, extension = int(match[1], 16), match[2]
    if extension is not None and not _match_extension(extension):
        raise ParseError(f"expected a chunk extension name=value, got {shown(line)}")
    if size > MAX_CHUNK_SIZE:
        raise ContentTooLargeError(
            f"expected a chunk of at most {MAX_CHUNK_SIZE} bytes, got {size}"
        )
    return size, extension


def format_chunk_head(size: int, extension: str | None = None) -> bytes:
    """Format a chunk's first line; the inverse of :func:`parse_chunk_head`."""
    if type(size) is not int or not 0 <= size <= MAX_CHUNK_SIZE:
        raise AppError(
            f"expected a chunk of at most {MAX_CHUNK_SIZE} bytes, got {shown(size)}"
        )
    if extension is None:
        return b"%x" % size
    if not isinstance(extension, str) or not _match_extension(extension):
        raise AppError(f"expected a chunk extension name=value, got {shown(extension)}")
    line = b"%x;%b" % (size, extension.encode("ascii"))
    if len(line) + 2 > MAX_CHUNK_LINE_SIZE:
        raise AppError(
            f"expected a chunk's line of at most {MAX_CHUNK_LINE_SIZE} bytes, "
            f"got {len(line) + 2}"
        )
    return line


def parse_trailers(block: bytes) -> Headers:
    """Parse a trailer section: field lines with CRLF between them (RFC 9112 §7.1.2)."""
    if len(block) > MAX_TRAILERS_SIZE:
        raise HeadTooLargeError(
            f"expected trailers of at most {MAX_TRAILERS_SIZE} bytes, got {len(block)}"
        )
    trailers = parse_headers(block)
    for name in trailers:
        if name in FORBIDDEN_TRAILERS:
            raise ParseError(f"expected a field that may be a trailer, got {name!r}")
    return trailers


def format_trailers(trailers: Mapping[str, Any]) -> bytes:
    """Format a trailer section; the inverse of :func:`parse_trailers`."""
    block = format_headers(trailers)
    for name in trailers:
        if name in FORBIDDEN_TRAILERS:
            raise AppError(f"expected a field that may be a trailer, got {name!r}")
    if len(block) > MAX_TRAILERS_SIZE:
        raise AppError(
            f"expected trailers of at most {MAX_TRAILERS_SIZE} bytes, got {len(block)}"
        )
    return block


# --- heads that are still coming ---------------------------------------------


def check_partial_head(data: bytes | bytearray, start: int, *, request: bool) -> None:
    """Refuse the beginning of a head that no further byte could make valid.

    So bare LF line ends, a TLS hello or an endless line are answered at once, and
    not when a deadline ends. The first `start` bytes were checked before. Raises
    `ParseError`, `TargetTooLongError` or `HeadTooLargeError`.

    Of two faults the one that comes first in the bytes counts, so that the verdict
    is the same for each way in which they can arrive.
    """
    end = MAX_HEAD_SIZE
    longest = MAX_REQUEST_LINE_SIZE
    endless = request and len(data) > longest and data.find(b"\r\n", 0, longest) < 0
    if endless:
        end = longest
    found = _find_illegal(data, max(0, start - 1), end)
    if found is not None:
        raise ParseError(
            "expected ASCII lines ending with CRLF, "
            f"got {shown(bytes(data[found.start() : found.start() + 100]))}"
        )
    if endless:
        raise TargetTooLongError(
            f"expected a target of at most {MAX_TARGET_SIZE} bytes, got more"
        )
    if len(data) >= MAX_HEAD_SIZE:
        raise HeadTooLargeError(
            f"expected a head of at most {MAX_HEAD_SIZE} bytes, got more"
        )

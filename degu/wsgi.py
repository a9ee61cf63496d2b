"""A WSGI app on Degu, and a Degu app on any WSGI server (PEP 3333).

`from_wsgi` embeds what was written for Flask, Django, Bottle or any other framework;
`to_wsgi` is the way out when an app outgrows one machine. Both stream both ways.
"""

from __future__ import annotations

import io
import logging
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, unquote_to_bytes

from degu.base import (
    Body,
    ChunkedInput,
    ChunkedOutput,
    FileOutput,
    Input,
    Output,
    complete_headers,
    wire,
)
from degu.door import Door
from degu.errors import AppError, ParseError, ProtocolError, shown
from degu.limits import COPY_SIZE, SERVER_OPTIONS, check_options
from degu.rgi import App, Request, ResponseTuple

__all__ = ["from_wsgi", "to_wsgi"]

WSGIApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

SPOOL_SIZE = 1024 * 1024
"""Bytes of what an app says by ``write()`` that are kept in memory."""

NOT_THE_APPS = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Fields of the connection, which are the server's own (PEP 3333)."""

_match_status = re.compile(r"([1-5][0-9][0-9])(?: (.*))?").fullmatch

log = logging.getLogger(__name__)


# --- a WSGI app on Degu ------------------------------------------------------


class from_wsgi:
    """A Degu app that runs the WSGI app `app`.

    `environ` is added to each request's environ: a mapping, or a function that is
    given the RGI request and returns one (``REMOTE_USER`` comes from here, as Degu
    knows no users). The request itself is ``environ['degu.request']``.

    Over TLS there are ``HTTPS`` and mod_ssl's ``SSL_PROTOCOL``, ``SSL_CIPHER``,
    ``SSL_CLIENT_VERIFY``, ``SSL_CLIENT_S_DN``, ``SSL_CLIENT_S_DN_CN``,
    ``SSL_CLIENT_I_DN``, ``SSL_CLIENT_M_SERIAL``, ``SSL_CLIENT_V_START`` and
    ``SSL_CLIENT_V_END``. Header names with an underscore are dropped, as they would
    be taken for others.

    What is given to the ``write()`` of old apps is kept until the app returns.

    A chunked body has no ``CONTENT_LENGTH``; ``wsgi.input_terminated`` says that it may
    be read to its end. Frameworks that do not know this take it for empty (Django,
    Bottle): with `spool` such a body is received into a temporary file first, and its
    length told.
    """

    def __init__(
        self,
        app: WSGIApp,
        environ: Mapping[str, Any] | Callable[[Request], Mapping[str, Any]] = {},  # noqa: B006
        *,
        spool: bool = False,
    ) -> None:
        if not callable(app):
            raise TypeError(f"app: expected a WSGI app (a callable), got {shown(app)}")
        self.app = app
        self.environ = environ
        self.spool = spool

    def __repr__(self) -> str:
        return f"from_wsgi({self.app!r})"

    def __call__(self, request: Request) -> ResponseTuple:
        """Run the WSGI app for one request."""
        environ = build_environ(request)
        more = self.environ
        environ.update(more(request) if callable(more) else more)
        call = _Call(request["method"])
        if self.spool and isinstance(request["body"], ChunkedInput):
            call.spool(request["body"], environ)
        result = None
        try:
            result = self.app(environ, call.start_response)
            return call.respond(result)
        except BaseException:
            call.close()
            _close(result)
            raise


def build_environ(request: Request) -> dict[str, Any]:
    """The WSGI environ of an RGI request (PEP 3333, "environ Variables")."""
    scheme = request["scheme"]
    host, port = _split_server(request)
    environ: dict[str, Any] = {
        "REQUEST_METHOD": request["method"],
        "SCRIPT_NAME": _decode(request["script"]),
        "PATH_INFO": _decode_path(request),
        "QUERY_STRING": request["query"] or "",
        "REQUEST_URI": request["uri"],
        "SERVER_NAME": host,
        "SERVER_PORT": port,
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_SOFTWARE": "Degu",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scheme,
        "wsgi.input": io.BufferedReader(_InputFile(request["body"]), COPY_SIZE),
        "wsgi.input_terminated": True,
        "wsgi.errors": _ErrorLog(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        "wsgi.file_wrapper": _FileWrapper,
        "degu.request": request,
    }
    client = request["client"]
    environ["REMOTE_ADDR"] = str(client[0]) if isinstance(client, tuple) else ""
    if isinstance(client, tuple):
        environ["REMOTE_PORT"] = str(client[1])
    if scheme == "https":
        environ["HTTPS"] = "on"
        environ.update(_build_ssl_variables(request))
    environ.update(_build_header_variables(request["headers"]))
    return environ


def _decode(path: list[str]) -> str:
    """Components as WSGI wants them: percent-decoded, each byte one character."""
    joined = "".join(f"/{component}" for component in path)
    return unquote_to_bytes(joined).decode("latin-1")


def _decode_path(request: Request) -> str:
    if request["uri"] == "*":
        return ""
    if not request["path"] and not request["script"]:
        return "/"
    return _decode(request["path"])


def _split_server(request: Request) -> tuple[str, str]:
    server = request["server"]
    if isinstance(server, tuple):
        return str(server[0]), str(server[1])
    name, port = wire.parse_host(request["headers"]["host"])
    return name, str(port or (443 if request["scheme"] == "https" else 80))


def _build_header_variables(headers: Mapping[str, Any]) -> dict[str, str]:
    variables = {}
    for name, value in headers.items():
        if name in ("content-type", "content-length"):
            variables[name.upper().replace("-", "_")] = str(value)
        elif "_" not in name and name not in ("proxy", "transfer-encoding"):
            # HTTP_PROXY is what some programs take their own proxy from, and the
            # transfer coding is off already.
            variables["HTTP_" + name.upper().replace("-", "_")] = str(value)
    return variables


_ATTRIBUTES = {
    "commonName": "CN",
    "countryName": "C",
    "domainComponent": "DC",
    "localityName": "L",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "stateOrProvinceName": "ST",
}


def _build_ssl_variables(request: Request) -> dict[str, str]:
    variables = {"SSL_CLIENT_VERIFY": "NONE"}
    cipher, cert = request["ssl_cipher"], request["ssl_peercert"]
    if cipher is not None:
        variables["SSL_CIPHER"], variables["SSL_PROTOCOL"] = cipher[0], cipher[1]
        variables["SSL_CIPHER_USEKEYSIZE"] = str(cipher[2])
    if not cert:
        return variables
    variables |= {
        "SSL_CLIENT_VERIFY": "SUCCESS",
        "SSL_CLIENT_S_DN": _format_name(cert.get("subject", ())),
        "SSL_CLIENT_I_DN": _format_name(cert.get("issuer", ())),
        "SSL_CLIENT_M_SERIAL": cert.get("serialNumber", ""),
        "SSL_CLIENT_V_START": cert.get("notBefore", ""),
        "SSL_CLIENT_V_END": cert.get("notAfter", ""),
    }
    for name, value in _flatten(cert.get("subject", ())):
        if name in _ATTRIBUTES:
            variables[f"SSL_CLIENT_S_DN_{_ATTRIBUTES[name]}"] = _to_latin(value)
    return variables


def _flatten(name: Any) -> Iterator[tuple[str, str]]:
    for part in name:
        yield from part


def _format_name(name: Any) -> str:
    """A distinguished name as text, the most specific part first (RFC 4514)."""
    parts = [
        f"{_ATTRIBUTES.get(key, key)}={_escape(value)}" for key, value in _flatten(name)
    ]
    return _to_latin(",".join(reversed(parts)))


def _escape(value: str) -> str:
    return re.sub(r'([,+"\\<>;=#])', r"\\\1", value)


def _to_latin(text: str) -> str:
    """Text as WSGI has it: UTF-8, each byte one character."""
    return text.encode("utf-8").decode("latin-1")


class _InputFile(io.RawIOBase):
    """The body of a request as a raw file, for `io.BufferedReader` to complete."""

    def __init__(self, body: Input | ChunkedInput | None) -> None:
        super().__init__()
        self._body = body

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._body is None or self._body.closed:
            return 0
        return self._body.readinto(buffer)


class _ErrorLog(io.TextIOBase):
    """``wsgi.errors`` as records of `logging`, since there may be no stderr."""

    def __init__(self) -> None:
        super().__init__()
        self._rest = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            log.error("%s", line)
        return len(text)

    def flush(self) -> None:
        if self._rest:
            log.error("%s", self._rest)
            self._rest = ""


class _FileWrapper:
    """``wsgi.file_wrapper``: a file that the kernel may send.

    It is its own iterator, so that who iterates it can also close it.
    """

    def __init__(self, file: Any, block_size: int = COPY_SIZE) -> None:
        self.file = file
        self.block_size = block_size
        for name in ("close", "seekable", "seek", "tell"):
            if hasattr(file, name):
                setattr(self, name, getattr(file, name))

    def __iter__(self) -> _FileWrapper:
        return self

    def __next__(self) -> bytes:
        data: bytes = self.file.read(self.block_size)
        if data:
            return data
        raise StopIteration


class _Call:
    """One call of a WSGI app, from ``start_response`` to its last byte."""

    def __init__(self, method: str) -> None:
        self.method = method
        self.head: tuple[int, str, dict[str, Any]] | None = None
        self.sent = False
        self.written: Any = None
        self.spooled: Any = None

    def spool(self, body: ChunkedInput, environ: dict[str, Any]) -> None:
        """Receive the whole body, so that its length can be told."""
        self.spooled = tempfile.SpooledTemporaryFile(SPOOL_SIZE)  # noqa: SIM115
        environ["CONTENT_LENGTH"] = str(body.write_to(self.spooled))
        self.spooled.seek(0)
        environ["wsgi.input"] = self.spooled

    def close(self) -> None:
        """Remove the temporary files."""
        for file in (self.written, self.spooled):
            if file is not None:
                file.close()

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], None]:
        """What the app calls with its status and headers."""
        if exc_info is not None:
            try:
                if self.sent:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # else it would hold on to its own frame
        elif self.head is not None:
            raise AppError("start_response: called again without exc_info")
        self.head = (*parse_status(status), parse_wsgi_headers(headers))
        return self.write

    def write(self, data: bytes) -> None:
        """What old apps send their body with."""
        _check_bytes(data)
        if self.written is None:
            self.written = tempfile.SpooledTemporaryFile(SPOOL_SIZE)  # noqa: SIM115
        self.written.write(data)

    def respond(self, result: Iterable[bytes]) -> ResponseTuple:
        """The response, as soon as its first byte is known."""
        wrapped = result if isinstance(result, _FileWrapper) else None
        pieces = _Pieces(self, result)
        if wrapped is None:
            pieces.find_first()
        if self.head is None:
            raise AppError("app: expected a call of start_response before any bytes")
        status, reason, headers = self.head
        wire.format_response(status, reason, headers)  # raises here, not in the server
        self.sent = True
        length = headers.get("content-length")
        if self.method == "HEAD" or status in (204, 304):
            pieces.close()
            return status, reason, headers, None
        if wrapped is not None:
            if (output := _open_wrapped(wrapped.file, length)) is not None:
                pieces.closed = True  # that is up to the output now
                self.close()
                return status, reason, headers, output
            pieces.find_first()
        if length is not None and not (length == 0 and pieces.empty):
            return status, reason, headers, Output(pieces, length)
        if pieces.empty:
            pieces.close()
            return status, reason, headers, None
        if isinstance(result, list | tuple) and len(result) == 1:
            body = pieces.first
            pieces.close()
            return status, reason, headers, body
        return status, reason, headers, ChunkedOutput(pieces)


class _Pieces:
    """What a WSGI app yields, without empty pieces; closed whatever happens."""

    def __init__(self, call: _Call, result: Iterable[bytes]) -> None:
        self.closed = False
        self._call = call
        self._result = result
        self._ready: list[bytes] = []
        self._left = iter(result)

    @property
    def empty(self) -> bool:
        """Whether there is nothing at all."""
        return not self._ready and self._call.written is None

    @property
    def first(self) -> bytes:
        """The first piece, which may be the only one."""
        return b"".join(self)

    def find_first(self) -> None:
        """Run the app up to its first byte, before which it may change its head."""
        for data in self._left:
            _check_bytes(data)
            if data:
                self._ready.append(data)
                return

    def __iter__(self) -> Iterator[bytes]:
        try:
            written, self._call.written = self._call.written, None
            if written is not None:
                with written:
                    written.seek(0)
                    while data := written.read(COPY_SIZE):
                        yield data
            yield from self._ready
            for data in self._left:
                _check_bytes(data)
                if data:
                    yield data
        finally:
            self.close()

    def close(self) -> None:
        """Tell the app that this is over (PEP 3333: once, also after an error)."""
        if not self.closed:
            self.closed = True
            self._call.close()
            _close(self._result)

    def __del__(self) -> None:
        self.close()


def _close(result: Any) -> None:
    close = getattr(result, "close", None)
    if close is not None:
        close()


def _check_bytes(data: Any) -> None:
    if not isinstance(data, bytes):
        raise AppError(f"app: expected bytes, got {shown(data)}")


def _open_wrapped(file: Any, length: int | None) -> FileOutput | None:
    """A body that the kernel can send, where `file` is one of the system's."""
    try:
        file.fileno()
        output = FileOutput(file)
    except (AttributeError, OSError, TypeError, ValueError):
        return None
    if length is not None:
        output.content_length = length
    return output


def parse_status(status: str) -> tuple[int, str]:
    """``'404 Not Found'`` as status and reason. Raises `AppError`."""
    match = _match_status(status) if isinstance(status, str) else None
    if match is None:
        raise AppError(f"status: expected a str such as '200 OK', got {shown(status)}")
    return int(match[1]), (match[2] or "").strip() or "-"


def parse_wsgi_headers(headers: list[tuple[str, str]]) -> dict[str, Any]:
    """A WSGI app's list of headers as a `dict`; ``set-cookie`` may come repeatedly.

    Raises `AppError` where another field does that is no list, and for a length that
    is no number.
    """
    result: dict[str, Any] = {}
    for name, value in headers:
        if not isinstance(name, str) or not isinstance(value, str | int):
            raise AppError(
                f"headers: expected pairs of str, got {shown((name, value))}"
            )
        name, text = name.lower(), str(value).strip(" \t")
        if name in NOT_THE_APPS:
            continue
        if name == "content-length":
            if not (text.isdecimal() and text.isascii()):
                raise AppError(f"content-length: expected digits, got {shown(text)}")
            result[name] = int(text)
        elif name not in result:
            result[name] = text
        elif name == "set-cookie":
            before = result[name]
            before = before if isinstance(before, list) else [before]
            result[name] = [*before, text]
        elif name in wire.LIST_HEADERS:
            result[name] = f"{result[name]}, {text}"
        else:
            raise AppError(f"headers: expected {name!r} once, got it again")
    return result


# --- a Degu app on a WSGI server ---------------------------------------------


class to_wsgi:
    """A WSGI app that runs the Degu app `app`.

    The request is checked by the same rules as by Degu's own server, and refused with
    the same statuses. The `options` are a server's that concern the requests:
    `allowed_hosts`, `allowed_origins` and `methods` (see :mod:`degu.limits`). Behind
    a public name `allowed_hosts` has to say it.

    ``session`` is new for each request, as WSGI knows no connections; ``ssl_cipher``,
    ``ssl_peercert`` and ``credentials`` are None. Chunk extensions and trailers have no
    place in WSGI.

    Raises `TypeError` for an app with ``on_connect``: nobody would call it.
    """

    def __init__(self, app: App, **options: Any) -> None:
        if not callable(app):
            raise TypeError(f"app: expected a callable, got {shown(app)}")
        if getattr(app, "on_connect", None) is not None:
            raise TypeError(
                "app: expected one without on_connect, which no WSGI server calls, "
                f"got {shown(app)}"
            )
        self.app = app
        known = ("allowed_hosts", "allowed_origins", "methods")
        self.options = check_options(
            options, {name: SERVER_OPTIONS[name] for name in known}
        )
        self.methods = frozenset(self.options["methods"] or wire.METHODS)
        self.doors = {s: Door(s, self.options) for s in ("http", "https")}

    def __repr__(self) -> str:
        return f"to_wsgi({self.app!r})"

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """Run the app for one request."""
        try:
            request = self.build_request(environ)
        except ProtocolError as error:
            return _refuse(error, start_response)
        try:
            status, reason, headers, body = self.app(request)
        except ProtocolError as error:
            if request["body"] is None or error is not request["body"].error:
                raise
            return _refuse(error, start_response)
        wire.check_status(status)
        method = request["method"]
        headers = complete_headers(headers, body, method, status)
        wire.format_response(status, reason, headers)
        fields = [
            (name, str(one))
            for name, value in headers.items()
            for one in (value if isinstance(value, list | tuple) else [value])
            if name not in NOT_THE_APPS
        ]
        start_response(f"{status} {reason}", fields)
        return _iterate(body)

    def build_request(self, environ: Mapping[str, Any]) -> Request:
        """The RGI request of a WSGI environ. Raises a `ProtocolError`."""
        scheme = environ["wsgi.url_scheme"]
        method = environ["REQUEST_METHOD"]
        lines = [f"{method} {_find_uri(environ)} HTTP/1.1"]
        for key, value in environ.items():
            if key.startswith("HTTP_") and value:
                if "\r" in value or "\n" in value:
                    raise ParseError(f"expected a header in a line, got {shown(value)}")
                lines.append(f"{key[5:].lower().replace('_', '-')}: {value}")
        for key in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            if environ.get(key):
                lines.append(f"{key.lower().replace('_', '-')}: {environ[key]}")
        head = "\r\n".join(lines).encode("latin-1")
        parsed = wire.parse_request(head, self.methods, scheme)
        self.doors[scheme].check(parsed["headers"])
        routed = [one for one in environ.get("SCRIPT_NAME", "").split("/") if one]
        path = parsed["path"]
        parsed["script"], parsed["path"] = path[: len(routed)], path[len(routed) :]
        request: Request = {
            **parsed,  # type: ignore[typeddict-item]
            "body": _make_body(environ, parsed["headers"], method),
            "client": _find_address(environ, "REMOTE_ADDR", "REMOTE_PORT"),
            "server": _find_address(environ, "SERVER_NAME", "SERVER_PORT"),
            "scheme": scheme,
            "session": {},
            "credentials": None,
            "ssl_cipher": None,
            "ssl_peercert": None,
        }
        return request


def _find_uri(environ: Mapping[str, Any]) -> str:
    """The request-target as it came, or what comes closest to it."""
    script, path = environ.get("SCRIPT_NAME", ""), environ.get("PATH_INFO", "")
    for key in ("REQUEST_URI", "RAW_URI"):
        uri = environ.get(key)
        # Some servers leave out what they have routed by.
        if isinstance(uri, str) and uri and (not script or uri.startswith(script)):
            return uri
    uri = quote((script + path).encode("latin-1"), safe="/!$&'()*+,;=:@-._~") or "/"
    query = environ.get("QUERY_STRING")
    return f"{uri}?{query}" if query else uri


def _make_body(
    environ: Mapping[str, Any], headers: dict[str, Any], method: str
) -> Input | ChunkedInput | None:
    framing = wire.body_framing(headers, method)
    file = environ["wsgi.input"]
    if framing is None:
        if headers.get("content-length") == 0:
            del headers["content-length"]
        return None
    if framing is wire.CHUNKED:
        return ChunkedInput(io.BufferedReader(_Rechunked(file)))
    assert isinstance(framing, int)
    return Input(io.BufferedReader(_Raw(file), COPY_SIZE), framing)


class _Raw(io.RawIOBase):
    """``wsgi.input`` as a raw file; it need only have ``read(size)``."""

    def __init__(self, file: Any) -> None:
        super().__init__()
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class _Rechunked(io.RawIOBase):
    """``wsgi.input`` in the chunked coding again that the server has taken off."""

    def __init__(self, file: Any) -> None:
        super().__init__()
        self._file = file
        self._ready = b""
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._ready and not self._ended:
            data = self._file.read(COPY_SIZE)
            self._ended = not data
            self._ready = b"%x\r\n%b\r\n" % (len(data), data)
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size


def _find_address(environ: Mapping[str, Any], host_key: str, port_key: str) -> Any:
    host, port = environ.get(host_key) or "", str(environ.get(port_key) or "0")
    if not host or not port.isdecimal():
        return host
    if ":" in host:
        return (host, int(port), 0, 0)
    return (host, int(port))


def _refuse(
    error: ProtocolError, start_response: Callable[..., Any]
) -> Iterable[bytes]:
    start_response(f"{error.status} {error.reason}", [("content-length", "0")])
    return []


def _iterate(body: Body) -> Iterable[bytes]:
    """The bytes of any body that an app may return."""
    if body is None:
        return []
    if isinstance(body, bytes | bytearray | memoryview):
        return [bytes(body)]
    return _iterate_output(body)


def _iterate_output(body: Any) -> Iterator[bytes]:
    for item in body:
        data = item[1] if isinstance(item, tuple) else item
        if data:
            yield bytes(data)

"""Ready-made apps: a reverse proxy, a router, an inspector, a request log.

Each is a callable by the RGI, so they can be put inside one another.
`FilesApp`, which serves a folder, fills a file of its own: :mod:`degu.files`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from html import escape
from time import monotonic
from typing import Any

from degu.address import Address, format_host
from degu.base import (
    FileOutput,
    build_uri,
    make_output_from_input,
    wire,
)
from degu.client import Client
from degu.errors import (
    DeguError,
    ProtocolError,
    UnconsumedBodyError,
    shown,
)
from degu.files import FilesApp
from degu.rgi import App, Request, ResponseTuple, accepts, shift_path

__all__ = [
    "AllowedMethods",
    "FilesApp",
    "InspectApp",
    "MethodsApp",
    "ProxyApp",
    "RequestLogger",
    "RouterApp",
]

HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Fields that are for one connection and not passed on (RFC 9110 §7.6.1)."""

NOT_UPSTREAM = HOP_BY_HOP | {"expect", "host", "origin"}
"""Fields of a request that a proxy answers or writes itself."""


# --- reverse proxy -----------------------------------------------------------


class ProxyApp:
    """A reverse proxy (gateway, RFC 9110 §3.7) to another HTTP server.

    `upstream` is a `degu.client.Client` (or `SSLClient`), or an address. `prefix` is
    put before the path, `name` is how ``Via`` calls this proxy. Bodies are streamed
    both ways. An upstream that can't be reached or breaks HTTP is answered by 502,
    one that is too slow by 504.
    """

    def __init__(
        self, upstream: Client | Address, *, prefix: str = "", name: str = "degu"
    ) -> None:
        if not isinstance(upstream, Client):
            upstream = Client(upstream)
        if prefix:
            wire.parse_target(prefix)
        self.client = upstream
        self.prefix = prefix.rstrip("/")
        self.name = name

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.client!r})"

    def __call__(self, request: Request) -> ResponseTuple:
        """Pass the request on and the response back."""
        try:
            response = self._ask(request)
        except (DeguError, OSError) as error:
            body = request["body"]
            if body is not None and body.error is not None:
                raise  # it is the client of this proxy that broke off
            if isinstance(error, TimeoutError):
                return 504, "Gateway Timeout", {}, None
            if isinstance(error, OSError | ProtocolError):
                return 502, "Bad Gateway", {}, None
            raise
        headers = strip_hop_by_hop(response.headers)
        headers["via"] = self._via(headers)
        body_out = make_output_from_input(response.body)
        return response.status, response.reason or "-", headers, body_out

    def _ask(self, request: Request) -> Any:
        method = request["method"]
        uri = self.prefix + build_uri(request["path"], request["query"])
        if request["uri"] == "*":
            uri = "*"
        headers = self._headers(request)
        body = make_output_from_input(request["body"])
        try:
            return self.client.request(method, uri, headers, body)
        except UnconsumedBodyError:
            # The client of the last response went away before it was read.
            self.client.close()
            return self.client.request(method, uri, headers, body)

    def _headers(self, request: Request) -> dict[str, Any]:
        came = request["headers"]
        headers = strip_hop_by_hop(came)
        for name in list(headers):
            # What a browser says of its page was judged here, at the first door.
            if name in NOT_UPSTREAM or name.startswith("sec-fetch-"):
                del headers[name]
        if "origin" in came:
            own = f"{request['scheme']}://{came['host']}".lower()
            same = came["origin"].lower() == own
            origin = f"{self.client.scheme}://{self.client.host}"
            headers["origin"] = origin if same else came["origin"]
        headers["via"] = self._via(headers)
        headers["forwarded"] = _join(headers.get("forwarded"), _forwarded(request))
        return headers

    def _via(self, headers: Mapping[str, Any]) -> str:
        return _join(headers.get("via"), f"1.1 {self.name}")


def strip_hop_by_hop(headers: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `headers` without what concerns one connection (RFC 9110 §7.6.1)."""
    named = headers.get("connection", "").lower().split(",")
    drop = HOP_BY_HOP.union(name.strip(" \t") for name in named) - {"content-length"}
    return {name: value for name, value in headers.items() if name not in drop}


def _forwarded(request: Request) -> str:
    """One element of ``Forwarded`` (RFC 7239 §4); Unix peers are unknown."""
    peer = request["client"]
    node = '"' + format_host(peer) + '"' if isinstance(peer, tuple) else "unknown"
    host = request["headers"]["host"]
    return f'for={node};host="{host}";proto={request["scheme"]}'


def _join(before: str | None, value: str) -> str:
    return f"{before}, {value}" if before else value


# --- routing -----------------------------------------------------------------


class RouterApp:
    """Choose an app by the components of the path.

    `routes` are nested dicts: a `str` key stands for one component (as it came,
    percent-encoded), ``''`` for a trailing slash, None for a path that ends here. The
    app found gets the rest in ``request['path']``; what was consumed goes to
    ``request['script']``. No route is a 404.

    >>> from degu.apps import MethodsApp, RouterApp
    >>> def notes(request):
    ...     return (200, 'OK', {}, b'notes')
    >>> app = RouterApp({'api': {'notes': MethodsApp(GET=notes)}})
    """

    def __init__(self, routes: Mapping[str | None, Any]) -> None:
        _check_routes(routes, "routes")
        self.routes = routes

    def __call__(self, request: Request) -> ResponseTuple:
        """Route by shifting the path."""
        node: Any = self.routes
        while isinstance(node, Mapping):
            path = request["path"]
            node = node.get(path[0] if path else None)
            if path and node is not None:
                shift_path(request)
        if node is None:
            return 404, "Not Found", {}, None
        response: ResponseTuple = node(request)
        return response


def _check_routes(routes: Any, where: str) -> None:
    if not isinstance(routes, Mapping):
        raise TypeError(f"{where}: expected a dict, got {shown(routes)}")
    for key, value in routes.items():
        if key is not None and (not isinstance(key, str) or "/" in key):
            raise TypeError(
                f"{where}: expected one path component or None, got {shown(key)}"
            )
        if isinstance(value, Mapping):
            _check_routes(value, f"{where}[{key!r}]")
        elif not callable(value):
            raise TypeError(
                f"{where}[{key!r}]: expected an app or a dict, got {shown(value)}"
            )


class MethodsApp:
    """Choose an app by the method: ``MethodsApp(GET=read, PUT=write)``.

    Another method is a 405 with ``Allow``. HEAD is answered by the app for GET, if it
    has none of its own; its body is dropped and its length kept.
    """

    def __init__(self, **apps: App) -> None:
        for method, app in apps.items():
            if not callable(app):
                raise TypeError(f"{method}: expected a callable, got {shown(app)}")
        self.apps = apps
        names = [*apps, *(["HEAD"] if "GET" in apps and "HEAD" not in apps else [])]
        self.allow = ", ".join(sorted(names))

    def __call__(self, request: Request) -> ResponseTuple:
        """Call the app for the request's method."""
        app = self.apps.get(request["method"])
        if app is not None:
            return app(request)
        if request["method"] == "HEAD" and "GET" in self.apps:
            return answer_head(self.apps["GET"], request)
        return _not_allowed(self.allow)


class AllowedMethods:
    """Let only some methods through to an app; others are a 405 with ``Allow``."""

    def __init__(self, app: App, *methods: str) -> None:
        if not callable(app):
            raise TypeError(f"app: expected a callable, got {shown(app)}")
        self.app = app
        self.methods = frozenset(methods)
        self.allow = ", ".join(sorted(methods))

    def __call__(self, request: Request) -> ResponseTuple:
        """Call the app if the request's method is one of those."""
        if request["method"] in self.methods:
            return self.app(request)
        return _not_allowed(self.allow)


def _not_allowed(allow: str) -> ResponseTuple:
    return 405, "Method Not Allowed", {"allow": allow}, None


def answer_head(app: App, request: Request) -> ResponseTuple:
    """Answer HEAD by what `app` answers to GET, without the body (RFC 9110 §9.3.2)."""
    get: Any = {**request, "method": "GET"}
    status, reason, headers, body = app(get)
    length = getattr(body, "content_length", None)
    if isinstance(body, bytes | bytearray):
        length = len(body)
    if isinstance(body, FileOutput):
        body.fp.close()
    if length and "content-length" not in headers:
        headers = {**headers, "content-length": length}
    return status, reason, headers, None


# --- looking at requests -----------------------------------------------------


class RequestLogger:
    """Log each request of an app in one line, through `logging` (level INFO)."""

    def __init__(self, app: App, logger: logging.Logger | None = None) -> None:
        self.app = app
        self.log = logger or logging.getLogger("degu.requests")

    def __call__(self, request: Request) -> ResponseTuple:
        """Call the app and log what it was asked and what it answered."""
        started = monotonic()
        line = (request["client"], request["method"], request["uri"])
        try:
            response = self.app(request)
        except Exception:
            self.log.info("%s %s %s -> exception", *line)
            raise
        millis = (monotonic() - started) * 1000
        self.log.info("%s %s %s -> %d in %.1f ms", *line, response[0], millis)
        return response


class InspectApp:
    """Answer with all that is known of a request, as text, HTML or JSON.

    ``Accept`` chooses. Form fields and uploads are shown too (extra ``forms`` for
    multipart). The same text is logged (level INFO).
    """

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self.log = logger or logging.getLogger("degu.inspect")

    def __call__(self, request: Request) -> ResponseTuple:
        """Describe the request."""
        facts = inspect_request(request)
        text = format_inspection(facts)
        self.log.info("%s", text)
        kind = accepts(request, "text/plain", "text/html", "application/json")
        if kind == "application/json":
            data = json.dumps(facts, indent=2, default=str)
        elif kind == "text/html":
            data = f"<!DOCTYPE html><title>Request</title><pre>{escape(text)}</pre>"
        else:
            data = text
        headers = {"content-type": f"{kind}; charset=utf-8"}
        body = data.encode()
        if request["method"] == "HEAD":
            return 200, "OK", {**headers, "content-length": len(body)}, None
        return 200, "OK", headers, body


def inspect_request(request: Request) -> dict[str, Any]:
    """The facts of a request, JSON-able; its body is read."""
    from degu.forms import read_form

    facts: dict[str, Any] = {
        "client": request["client"],
        "server": request["server"],
        "request": f"{request['method']} {request['uri']} HTTP/1.1",
        "headers": dict(request["headers"]),
    }
    if request["ssl_cipher"] is not None:
        facts["cipher"] = request["ssl_cipher"]
        facts["certificate"] = request["ssl_peercert"]
    if request["credentials"] is not None:
        facts["credentials"] = request["credentials"]
    kind = request["headers"].get("content-type", "").partition(";")[0].lower()
    if request["body"] is None or kind in FORM_TYPES:
        with read_form(request) as form:
            facts["form"] = {name: [_show(v) for v in form[name]] for name in form}
    else:
        size = 0
        for piece in request["body"]:
            size += len(piece)
        facts["body"] = f"{size} bytes"
    return facts


FORM_TYPES = ("application/x-www-form-urlencoded", "multipart/form-data")


def _show(value: Any) -> str:
    """A field as it is; of an uploaded file the beginning of its text."""
    if isinstance(value, str):
        return value
    data: bytes = value.file.read(4096)
    return data.decode("utf-8", "replace")


def format_inspection(facts: Mapping[str, Any]) -> str:
    """`inspect_request`'s facts as lines of text."""
    lines = [
        f"Client address: {facts['client']!r}",
        f"Server address: {facts['server']!r}",
        f"Request: {facts['request']}",
        "Headers:",
        *(f"    {name}: {value!r}" for name, value in facts["headers"].items()),
    ]
    for key in ("cipher", "certificate", "credentials", "body"):
        if key in facts:
            lines.append(f"{key.capitalize()}: {facts[key]!r}")
    if facts.get("form"):
        lines.append("Form:")
        lines.extend(f"    {name} {values!r}" for name, values in facts["form"].items())
    return "\n".join(lines) + "\n"

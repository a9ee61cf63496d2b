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
    ChunkedInput,
    Input,
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
from degu.forms import FORM_TYPE, MULTIPART_TYPE, Upload, read_form
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


class _Wrapper:
    """An app around another: whom to speak with stays the inner app's decision."""

    def __init__(self, app: App) -> None:
        _check_app("app", app)
        self.app = app
        for hook in ("on_connect", "on_refused"):
            if hasattr(app, hook):
                setattr(self, hook, getattr(app, hook))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.app!r})"


def _check_app(name: str, app: Any) -> None:
    if not callable(app):
        raise TypeError(f"{name}: expected an app (a callable), got {shown(app)}")


# --- reverse proxy -----------------------------------------------------------


class ProxyApp:
    """A reverse proxy (gateway, RFC 9110 §3.7) to another HTTP server.

    `upstream` is a `degu.client.Client` (or `SSLClient`), or an address. `prefix` is
    put before the path, `name` is how ``Via`` calls this proxy. Bodies are streamed
    both ways. An upstream that can't be reached or breaks HTTP is answered by 502,
    one that is too slow by 504.

    The upstream sees its own Host; what the client said is in ``Forwarded`` (RFC 7239)
    and ``X-Forwarded-For``, ``-Host`` and ``-Proto``. A ``location`` in its answer that
    points to itself is turned into one that points here.
    """

    def __init__(
        self, upstream: Client | Address, *, prefix: str = "", name: str = "degu"
    ) -> None:
        if not isinstance(upstream, Client):
            upstream = Client(upstream)
        if prefix and wire.parse_target(prefix)[1] is not None:
            raise ValueError(f"prefix: expected a path, got {shown(prefix)}")
        wire.format_headers({"via": f"1.1 {name}"})
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
        if "location" in headers:
            headers["location"] = self._relocate(request, headers["location"])
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
            headers["origin"] = self._origin if same else came["origin"]
        headers["via"] = self._via(headers)
        headers["forwarded"] = _join(headers.get("forwarded"), _forwarded(request))
        peer = request["client"]
        node = peer[0] if isinstance(peer, tuple) else "unknown"
        headers["x-forwarded-for"] = _join(headers.get("x-forwarded-for"), node)
        headers["x-forwarded-host"] = came["host"]
        headers["x-forwarded-proto"] = request["scheme"]
        return headers

    @property
    def _origin(self) -> str:
        return f"{self.client.scheme}://{self.client.host}"

    def _via(self, headers: Mapping[str, Any]) -> str:
        return _join(headers.get("via"), f"1.1 {self.name}")

    def _relocate(self, request: Request, location: str) -> str:
        """Where the client finds what the upstream calls `location`."""
        rest = location.removeprefix(self._origin)
        if rest[:1] != "/" or rest[:2] == "//":
            return location  # elsewhere, or relative to what was asked for
        inside = rest.removeprefix(self.prefix)
        if inside[:1] not in ("/", "?", "") or not rest.startswith(self.prefix):
            return location
        here = build_uri(request["script"], None).rstrip("/")
        return here + (inside if inside[:1] == "/" else f"/{inside}")


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
        else:
            _check_app(f"{where}[{key!r}]", value)


class MethodsApp:
    """Choose an app by the method: ``MethodsApp(GET=read, PUT=write)``.

    Another method is a 405 with ``Allow``. HEAD is answered by the app for GET, if it
    has none of its own; its body is dropped and its length kept.
    """

    def __init__(self, **apps: App) -> None:
        for method, app in apps.items():
            _check_method(method)
            _check_app(method, app)
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


class AllowedMethods(_Wrapper):
    """Let only some methods through to an app; others are a 405 with ``Allow``."""

    def __init__(self, app: App, *methods: str) -> None:
        super().__init__(app)
        for method in methods:
            _check_method(method)
        self.methods = frozenset(methods)
        self.allow = ", ".join(sorted(methods))

    def __call__(self, request: Request) -> ResponseTuple:
        """Call the app if the request's method is one of those."""
        if request["method"] in self.methods:
            return self.app(request)
        return _not_allowed(self.allow)


def _check_method(method: Any) -> None:
    if not isinstance(method, str) or not method.isupper() or not method.isascii():
        raise ValueError(f"expected a method in upper case, got {shown(method)}")


def _not_allowed(allow: str) -> ResponseTuple:
    return 405, "Method Not Allowed", {"allow": allow}, None


def answer_head(app: App, request: Request) -> ResponseTuple:
    """Answer HEAD by what `app` answers to GET, without the body (RFC 9110 §9.3.2)."""
    get: Any = {**request, "method": "GET"}
    status, reason, headers, body = app(get)
    if isinstance(body, memoryview):
        length: int | None = body.nbytes
    elif isinstance(body, bytes | bytearray):
        length = len(body)
    else:
        length = getattr(body, "content_length", None)
    # A file, or the generator behind an Output, is of no more use.
    for name in ("fp", "source"):
        unused: Any = getattr(body, name, None)
        if hasattr(unused, "close"):
            unused.close()
    if length is not None and "content-length" not in headers:
        headers = {**headers, "content-length": length}
    return status, reason, headers, None


# --- looking at requests -----------------------------------------------------


class RequestLogger(_Wrapper):
    """Log each request of an app in one line, through `logging` (level INFO).

    Who is refused by the TLS handshake gets a line as well (level WARNING).
    """

    def __init__(self, app: App, logger: logging.Logger | None = None) -> None:
        super().__init__(app)
        self.log = logger or logging.getLogger("degu.requests")
        self.on_refused = self._log_refused

    def __call__(self, request: Request) -> ResponseTuple:
        """Call the app and log what it was asked and what it answered."""
        started = monotonic()
        line = (_show_peer(request["client"]), request["method"], request["uri"])
        try:
            response = self.app(request)
        except Exception as error:
            self.log.info("%s %s %s -> %s", *line, type(error).__name__)
            raise
        millis = (monotonic() - started) * 1000
        self.log.info("%s %s %s -> %d in %.1f ms", *line, response[0], millis)
        return response

    def _log_refused(self, address: Any, error: DeguError) -> None:
        self.log.warning("%s refused: %s", _show_peer(address), error)
        if hasattr(self.app, "on_refused"):
            self.app.on_refused(address, error)


def _show_peer(address: Any) -> str:
    return format_host(address) if isinstance(address, tuple) else "unix"


class InspectApp:
    """Answer with all that is known of a request, as text, HTML or JSON.

    ``Accept`` chooses. Form fields and uploads are shown too (extra ``forms`` for
    multipart). The same text is logged (level INFO). The page of HTML has a form and
    an upload to try.
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
            data = json.dumps(facts, indent=2, default=repr) + "\n"
        elif kind == "text/html":
            data = _PAGE.format(text=escape(text))
        else:
            data = text
        headers = {"content-type": f"{kind}; charset=utf-8", "vary": "accept"}
        body = data.encode("utf-8", "replace")
        if request["method"] == "HEAD":
            return 200, "OK", {**headers, "content-length": len(body)}, None
        return 200, "OK", headers, body


SHOWN_SIZE = 4096
"""Bytes of a body or an uploaded file that `InspectApp` shows."""


def inspect_request(request: Request) -> dict[str, Any]:
    """The facts of a request, JSON-able; its body is read.

    Raises what `degu.forms.read_form` raises for the form in a body.
    """
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
    if kind.strip() in (FORM_TYPE, MULTIPART_TYPE) or request["body"] is None:
        facts.update(_inspect_form(request))
    else:
        facts.update(_inspect_body(request["body"]))
    return facts


def _inspect_form(request: Request) -> dict[str, Any]:
    try:
        with read_form(request) as form:
            return {"form": {name: [_show(v) for v in form[name]] for name in form}}
    except ProtocolError as error:
        if request["body"] is not None:
            raise  # the server answers it
        return {"problem": str(error)}


def _show(value: str | Upload) -> str:
    """A field as it is; of an uploaded file the beginning of its text."""
    if isinstance(value, str):
        return value
    return value.file.read(SHOWN_SIZE).decode("utf-8", "replace")


def _inspect_body(body: Input | ChunkedInput) -> dict[str, Any]:
    size, first = 0, b""
    for piece in body:
        size += len(piece)
        first += piece[: SHOWN_SIZE - len(first)]
    return {"size": size, "body": first.decode("utf-8", "replace")}


def format_inspection(facts: Mapping[str, Any]) -> str:
    """`inspect_request`'s facts as lines of text."""
    lines = [
        f"Client address: {facts['client']!r}",
        f"Server address: {facts['server']!r}",
        f"Request: {facts['request']}",
        "Headers:",
        *(f"    {name}: {value!r}" for name, value in facts["headers"].items()),
    ]
    for key in ("cipher", "certificate", "credentials", "problem", "size", "body"):
        if key in facts:
            lines.append(f"{key.capitalize()}: {facts[key]!r}")
    if facts.get("form"):
        lines.append("Form:")
        for name, values in facts["form"].items():
            # A name is the peer's: a line end in it must not look like ours.
            shown_name = name if name.isprintable() else repr(name)
            lines.append(f"    {shown_name} {values!r}")
    return "\n".join(lines) + "\n"


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Request</title>
<meta name="viewport" content="width=device-width">
<style>
:root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }}
body {{ max-width: 50rem; margin: 2rem auto; padding: 0 1rem; }}
pre {{ overflow: auto; padding: 1rem; background: #8882; border-radius: .5rem; }}
fieldset {{ margin: 1rem 0; border: 1px solid #8886; border-radius: .5rem; }}
</style></head><body><h1>Request</h1>
<pre>{text}</pre>
<form method="POST" action="?hi=john%20doe"><fieldset><legend>A form</legend>
<p>User: <input name="user" size="20" value="James &amp; Nancy Kirk">
<p>User2: <input name="user2" size="20">
<p>Vote: <label><input type="radio" checked name="vote" value="Y">Yes</label>
<label><input type="radio" name="vote" value="N">No</label>
<p>Pets: <label><input type="checkbox" checked name="pets" value="dog">Dog</label>
<label><input type="checkbox" checked name="pets" value="cat">Cat</label>
<label><input type="checkbox" name="pets" value="iguana">Iguana</label>
<p>Comments: <textarea name="comments"></textarea>
<p><input type="submit" value="OK"></fieldset></form>
<form method="POST" enctype="multipart/form-data"><fieldset>
<legend>An upload</legend>
<p>File: <input type="file" name="myfile">
<p><input type="submit" value="OK"></fieldset></form>
</body></html>
"""

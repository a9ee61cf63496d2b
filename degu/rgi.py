"""The interface between a server and an app, typed, and an app that checks it.

    app(request) -> (status, reason, headers, body)

The `request` is a plain `dict` (`Request`), new for each request; what comes back is
what a client receives. `Validator` wraps an app and explains each breach of the
interface, by either side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypedDict

from degu.base import (
    Body,
    ChunkedInput,
    ChunkedOutput,
    FileOutput,
    Input,
    Output,
    build_uri,
    complete_headers,
    wire,
)
from degu.errors import AppError, DeguError, shown

__all__ = ["App", "Request", "ResponseTuple", "Validator", "accepts", "shift_path"]


class Request(TypedDict):
    """What an app is called with.

    `path` holds the components still to be routed, as they came (percent-encoded),
    `script` those that were consumed; `query` is None where there was no ``?``.
    `session` is one `dict` a connection, for the app's own use.
    """

    method: str
    uri: str
    script: list[str]
    path: list[str]
    query: str | None
    headers: dict[str, Any]
    body: Input | ChunkedInput | None
    client: Any
    server: Any
    scheme: str
    session: dict[str, Any]
    credentials: tuple[int, int, int] | None
    ssl_cipher: tuple[str, str, int] | None
    ssl_peercert: dict[str, Any] | None


ResponseTuple = tuple[int, str, Mapping[str, Any], Body]
"""Status 100 to 599, reason, headers with lower-case names, body."""

App = Callable[[Any], ResponseTuple]


def shift_path(request: Request) -> str:
    """Move the first component of ``path`` to the end of ``script`` and return it.

    Raises `IndexError` where no component is left.
    """
    name = request["path"].pop(0)
    request["script"].append(name)
    return name


def accepts(request: Request, *kinds: str) -> str:
    """The media type among `kinds` that the request's ``Accept`` likes best.

    RFC 9110 §12.5.1, with quality values; the first of `kinds` where nothing fits,
    and where several are equal.
    """
    best, best_quality = kinds[0], 0.0
    for kind in kinds:
        quality = _quality(request["headers"].get("accept", "*/*"), kind)
        if quality > best_quality:
            best, best_quality = kind, quality
    return best


def _quality(accept: str, kind: str) -> float:
    """The quality of `kind`; the most specific range counts."""
    found = (-1, 0.0)
    for item in accept.split(","):
        pattern, *parameters = [part.strip() for part in item.lower().split(";")]
        exact = (kind, kind.partition("/")[0] + "/*", "*/*")
        if pattern not in exact:
            continue
        quality = 1.0
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name.strip() == "q":
                try:
                    quality = min(1.0, max(0.0, float(value)))
                except ValueError:
                    quality = 0.0
        found = max(found, (2 - exact.index(pattern), quality))
    return found[1]


_KEYS: Mapping[str, tuple[type, ...]] = {
    "method": (str,),
    "uri": (str,),
    "script": (list,),
    "path": (list,),
    "query": (str, type(None)),
    "headers": (dict,),
    "body": (Input, ChunkedInput, type(None)),
    "client": (tuple, str, bytes, type(None)),
    "server": (tuple, str, bytes, type(None)),
    "scheme": (str,),
    "session": (dict,),
    "credentials": (tuple, type(None)),
    "ssl_cipher": (tuple, type(None)),
    "ssl_peercert": (dict, type(None)),
}


class Validator:
    """Middleware that checks a server and an app against each other.

    Each breach raises `AppError`, which begins with the side that broke the rule
    (``server:`` or ``app:``) and names the key. Put it around an app in its tests;
    it changes nothing and costs a few microseconds.
    """

    def __init__(self, app: App) -> None:
        if not callable(app):
            raise TypeError(f"app: expected a callable, got {shown(app)}")
        on_connect = getattr(app, "on_connect", None)
        if on_connect is not None and not callable(on_connect):
            raise TypeError(
                f"app.on_connect: expected a callable, got {shown(on_connect)}"
            )
        self.app = app
        if on_connect is not None:
            self.on_connect = self._on_connect
        if hasattr(app, "on_refused"):
            self.on_refused = app.on_refused

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.app!r})"

    def _on_connect(self, session: Any, sock: Any) -> bool:
        _expect("server", "session", session, dict)
        if not hasattr(sock, "getpeername"):
            raise AppError(f"server: sock: expected a socket, got {shown(sock)}")
        answer = self.app.on_connect(session, sock)  # type: ignore[attr-defined]
        _expect("app", "on_connect", answer, bool)
        return bool(answer)

    def __call__(self, request: Any) -> ResponseTuple:
        """Check the request, call the app, check what it did and returned."""
        _check_request(request)
        headers = dict(request["headers"])
        uri = request["uri"]
        response = self.app(request)
        _check_after(request, uri, headers)
        _check_response(response, request["method"])
        return response


def _expect(side: str, what: str, value: Any, *types: type) -> None:
    if not isinstance(value, types):
        names = " or ".join("None" if t is type(None) else t.__name__ for t in types)
        raise AppError(f"{side}: {what}: expected {names}, got {shown(value)}")


def _check_request(request: Any) -> None:
    _expect("server", "request", request, dict)
    for key, types in _KEYS.items():
        if key not in request:
            raise AppError(f"server: request: expected the key {key!r}, got none")
        _expect("server", f"request[{key!r}]", request[key], *types)
    for name in ("script", "path"):
        for component in request[name]:
            _expect("server", f"request[{name!r}] component", component, str)
            if "/" in component:
                raise AppError(f"server: {name}: a slash in {shown(component)}")
    if request["scheme"] not in ("http", "https"):
        raise AppError(
            f"server: scheme: expected http or https, got {shown(request['scheme'])}"
        )
    _check_uri(request, request["uri"])
    _check_request_body(request)


def _check_uri(request: Any, uri: str) -> None:
    whole = build_uri([*request["script"], *request["path"]], request["query"])
    if uri not in (whole, "*"):
        raise AppError(
            f"server: uri: script, path and query make {shown(whole)}, not {shown(uri)}"
        )


def _check_request_body(request: Any) -> None:
    try:
        wire.format_headers(request["headers"])
        framing = wire.body_framing(request["headers"], request["method"])
    except DeguError as error:
        raise AppError(f"server: request['headers']: {error}") from None
    body = request["body"]
    actual = None
    if body is not None:
        actual = wire.CHUNKED if body.chunked else body.content_length
        if body.closed:
            raise AppError(f"server: body: expected an unread one, got {body!r}")
    if framing != actual:
        raise AppError(f"server: body: the headers frame {framing!r}, got {body!r}")


def _check_after(request: Any, uri: str, headers: dict[str, Any]) -> None:
    """An app may route, but not change what came."""
    if request.get("uri") != uri:
        raise AppError(
            f"app: request['uri'] was changed to {shown(request.get('uri'))}"
        )
    if request.get("headers") != headers:
        raise AppError("app: request['headers'] was changed, copy it instead")
    whole = build_uri([*request["script"], *request["path"]], request["query"])
    if uri not in (whole, "*"):
        raise AppError(
            f"app: script, path and query now make {shown(whole)}, not {shown(uri)}; "
            "route with shift_path(request)"
        )


def _check_response(response: Any, method: str) -> None:
    _expect("app", "response", response, tuple)
    if len(response) != 4:
        raise AppError(
            f"app: response: expected (status, reason, headers, body), "
            f"got {len(response)} items"
        )
    status, reason, headers, body = response
    _expect("app", "headers", headers, dict)
    if isinstance(body, Output | ChunkedOutput | FileOutput) and body.closed:
        raise AppError(f"app: body: expected an unsent one, got {body!r}")
    try:
        wire.check_status(status)
        wire.format_response(
            status, reason, complete_headers(headers, body, method, status)
        )
    except DeguError as error:
        raise AppError(f"app: {error}") from None

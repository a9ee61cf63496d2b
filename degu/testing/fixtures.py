"""The factories behind the fixtures; they work without pytest, too.

with ServerFactory() as temp_server:
    server = temp_server(app)
    ...                         # every server made is stopped at the end
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Self

from degu.errors import DiedError
from degu.testing import report
from degu.testing.faults import FaultyServer
from degu.testing.servers import (
    SharedServer,
    TempServer,
    TempService,
    TempSSLServer,
    build_proxy,
    find_upstream,
)

if TYPE_CHECKING:
    from degu.testing.pki import TempPKI

__all__ = ["SSLServerFactory", "ServerFactory"]

GRACE_SECONDS = 1.0
"""How long requests in flight may take when the server is stopped after its test."""

LOOPBACK = ("127.0.0.1", 0)


class _Factory:
    """Makes servers, and stops them all in the end.

    `address` is the one of servers that are given none, or a callable that makes a
    new one for each; `grace` is in seconds; `options` are for every server.
    """

    def __init__(
        self,
        address: Any = LOOPBACK,
        *,
        grace: float = GRACE_SECONDS,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.default_address = address
        self.grace = grace
        self.options = dict(options or {})
        self.servers: list[Any] = []
        """Every server so far, the oldest first."""

    def _pick_address(self, address: Any) -> Any:
        if address is not None:
            return address
        default = self.default_address
        return default() if callable(default) else default

    def _keep(self, server: Any) -> Any:
        self.servers.append(server)
        return server

    def _keep_faulty(self, kind: str, address: Any, options: Any) -> FaultyServer:
        server = FaultyServer(kind, address=self._pick_address(address), **options)
        report.enter(server)
        self._keep(server)
        return server.start()

    def close(self) -> None:
        """Stop every server, the newest first.

        Raises `DiedError` for one that ended without being told to (unless the test
        knows that, and called `stop` or `terminate` afterwards), and what the stopping
        raised; all are stopped before.
        """
        errors: list[Exception] = []
        while self.servers:
            try:
                self._stop(self.servers.pop())
            except Exception as error:
                errors.append(error)
        if len(errors) > 1:
            raise ExceptionGroup("servers did not stop", errors)
        if errors:
            raise errors[0]

    def _stop(self, server: Any) -> None:
        if isinstance(server, FaultyServer):
            server.stop()
            return
        was_known = server.ended
        server.stop(self.grace)
        if server.died and not was_known:
            raise DiedError(
                f"{server!r} ended before it was told to: {server.died}",
                server.process.exitcode,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_args: object) -> None:
        self.close()


class ServerFactory(_Factory):
    """Makes `TempServer`s; the fixture ``temp_server``."""

    def __call__(
        self,
        app_or_build: Any = None,
        *build_args: Any,
        address: Any = None,
        build: Callable[..., Any] | str | None = None,
        **options: Any,
    ) -> TempServer:
        """Start a server with an app, or with what builds one.

        One positional argument is the app (or ``'module:attribute'``); with more
        the first builds the app of the others. A build function without arguments
        goes to `build`. Without anything there are only expectations. `options`
        are those of `TempServer`.
        """
        args = order_args(app_or_build, build, build_args)
        address = self._pick_address(address)
        server = TempServer(address, *args, **{**self.options, **options})
        self._keep(server)
        return server

    def faulty(self, kind: str, *, address: Any = None, **options: Any) -> FaultyServer:
        """Start a server that fails in the way `kind` says (`SERVER_FAULTS`)."""
        return self._keep_faulty(kind, address, options)

    def proxy(
        self,
        upstream: Any,
        *,
        sslconfig: dict[str, Any] | None = None,
        host: str | None = None,
        prefix: str = "",
        address: Any = None,
        **options: Any,
    ) -> TempServer:
        """Start a reverse proxy in front of a server, or of an address.

        `sslconfig` is how to reach an `upstream` with TLS (that of a
        `TempSSLServer` is known), `host` the name to call it by, `prefix` goes
        before every path.
        """
        there, sslconfig = find_upstream(upstream, sslconfig)
        args = (there, sslconfig, host, prefix)
        return self(build_proxy, *args, address=address, **options)

    def service(
        self, build_func: Callable[..., Any] | str, *build_args: Any, **options: Any
    ) -> TempService:
        """Start any server that ``build_func(*build_args)`` makes."""
        server = TempService(build_func, *build_args, **options)
        self._keep(server)
        return server


class SSLServerFactory(_Factory):
    """Makes `TempSSLServer`s; the fixture ``temp_ssl_server``.

    `pki` is a `TempPKI`, or a callable that gives one.
    """

    def __init__(self, pki: TempPKI, address: Any = LOOPBACK, **kwargs: Any) -> None:
        super().__init__(address, **kwargs)
        self.pki = pki

    def __call__(
        self,
        app_or_build: Any = None,
        *build_args: Any,
        address: Any = None,
        build: Callable[..., Any] | str | None = None,
        sslconfig: dict[str, Any] | None = None,
        **options: Any,
    ) -> TempSSLServer:
        """Start a server with TLS; see `ServerFactory`.

        It asks for a client certificate of the `TempPKI`, unless there is an
        `sslconfig` that says something else; its `client()` has one.
        """
        args = order_args(app_or_build, build, build_args)
        address = self._pick_address(address)
        options = {**self.options, **options}
        server = TempSSLServer(sslconfig or self.pki, address, *args, **options)
        server.pki = self.pki
        self._keep(server)
        return server

    def faulty(
        self,
        kind: str,
        *,
        address: Any = None,
        sslconfig: dict[str, Any] | None = None,
        **options: Any,
    ) -> FaultyServer:
        """Start a server that fails in the way `kind` says, inside of TLS."""
        from degu.tls import build_server_sslctx

        sslctx = build_server_sslctx(sslconfig or self.pki.server_sslconfig)
        return self._keep_faulty(kind, address, {**options, "sslctx": sslctx})


def order_args(
    app_or_build: Any, build: Any, build_args: tuple[Any, ...]
) -> tuple[Any, ...]:
    """`build_func` and its arguments in the order of `TempServer`."""
    if build is not None:
        if app_or_build is not None:
            raise TypeError("expected an app or `build`, got both")
        return (build,)
    if app_or_build is None:
        return (None, *build_args) if build_args else ()
    return (app_or_build, *build_args) if build_args else (None, app_or_build)


# --- A server for all workers of a run ----------------------------------------------


class SharedServers:
    """The servers that every worker of a test run shares; kept where it began.

    `plan` has a target for each name: ``'module:app'``, or ``'module:build()'`` to
    call what builds it.
    """

    def __init__(self, plan: Mapping[str, str]) -> None:
        self.plan = dict(plan)
        self.servers: dict[str, TempServer] = {}

    def start(self) -> Mapping[str, tuple[Any, Any]]:
        """Start those that are not; give what `connect` takes in another process."""
        for name in self.plan:
            self.get(name)
        return {
            name: (server.address, server._update())
            for name, server in self.servers.items()
        }

    def get(self, name: str) -> TempServer:
        """The server of that name, started when it is first wanted."""
        if name not in self.plan:
            known = ", ".join(self.plan) or "none"
            raise LookupError(
                f"no shared server {name!r} in degu_shared_servers: {known}"
            )
        if name not in self.servers:
            target = self.plan[name]
            build = target.removesuffix("()")
            args = (None, target) if build == target else (build,)
            self.servers[name] = TempServer(LOOPBACK, *args)
        return self.servers[name]

    def stop(self) -> None:
        """Stop all of them."""
        with contextlib.ExitStack() as stack:
            for server in self.servers.values():
                stack.callback(server.stop, GRACE_SECONDS)


def parse_plan(lines: list[str]) -> dict[str, str]:
    """The ini option degu_shared_servers: ``name = module:app`` on each line."""
    plan = {}
    for line in lines:
        name, equals, target = line.partition("=")
        if not equals or ":" not in target:
            raise ValueError(
                f"degu_shared_servers: expected 'name = module:attribute', got {line!r}"
            )
        plan[name.strip()] = target.strip()
    return plan


def describe_shared(servers: Mapping[str, tuple[Any, Any]]) -> dict[str, list[Any]]:
    """What a worker needs, in types that travel to it."""
    return {
        name: [address, link.requests.name, link.orders.name]
        for name, (address, link) in servers.items()
    }


def connect(described: list[Any]) -> SharedServer:
    """In a worker: the server that `describe_shared` described."""
    from degu.testing.recorder import Link
    from degu.testing.tape import Tape

    address, requests, orders = described
    if isinstance(address, list):
        address = tuple(address)
    return SharedServer(address, Link(Tape(requests), Tape(orders)))

"""What the commands that serve have in common: their options, and one server's life."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from degu.cli.addresses import parse_bind
from degu.cli.command import DONE, CommandError
from degu.cli.console import say
from degu.cli.tls import add_server_tls, build_server_sslconfig

if TYPE_CHECKING:
    import argparse

DEFAULT_PORT = 8000
GRACE = 5.0
"""Seconds that requests in flight have when a server is told to stop."""


def add_server_options(parser: Any) -> None:
    """Add what a server is told by its command line."""
    group = parser.add_argument_group("where to listen, and for whom")
    group.add_argument(
        "--bind",
        type=parse_bind,
        metavar="ADDRESS",
        help="[::1]:8000, 127.0.0.1:8000, *:8000 (every interface), 8000 (this host), "
        "/path or unix:path (a Unix socket), @name (an abstract one); port 0 takes "
        f"a free port (default: [::1]:{DEFAULT_PORT}, this host only)",
    )
    group.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a host name that the server is known by, besides localhost and IP "
        "addresses, or '*' for any; may be repeated",
    )
    group.add_argument(
        "--allowed-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="an origin, as https://example.org, whose web pages may send requests, "
        "or '*' for any; may be repeated",
    )
    add_server_tls(group)
    group = parser.add_argument_group("what is said meanwhile")
    group.add_argument(
        "-q", "--quiet", action="store_true", help="log no requests, only troubles"
    )
    group.add_argument(
        "-v", "--verbose", action="store_true", help="log connections too"
    )


def serve(args: argparse.Namespace, app: Any) -> int:
    """Serve `app` from this process until a signal."""
    from degu.apps import RequestLogger
    from degu.server import Server, SSLServer

    app = RequestLogger(app)
    sslconfig = build_server_sslconfig(args)
    options = build_options(args)

    def make(address: Any) -> Any:
        if sslconfig is None:
            return Server(address, app, **options)
        return SSLServer(sslconfig, address, app, **options)

    server = bind(args, make)
    set_up_logging(args)
    with ended_by_signal():
        announce(server.scheme, server.address)
        server.serve_forever()  # a Ctrl-C ends it without an exception
    say("degu: stopping")
    try:
        server.shutdown(GRACE)
    finally:
        server.close()
    return DONE


def bind(args: argparse.Namespace, make: Callable[[Any], Any]) -> Any:
    """What `make` makes of the address that was asked for, or of the default one."""
    if args.bind is not None:
        return make(args.bind)
    try:
        return make(("::1", DEFAULT_PORT, 0, 0))
    except OSError as error:
        import errno

        if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            return make(("127.0.0.1", DEFAULT_PORT))  # a host without IPv6
        if error.errno == errno.EADDRINUSE:
            raise CommandError(
                f"port {DEFAULT_PORT} is in use; choose another one, as --bind 8001, "
                "or let one be chosen, with --bind 0"
            ) from error
        raise


def build_options(args: argparse.Namespace) -> dict[str, Any]:
    """The server's options, without its TLS."""

    def names(given: list[str]) -> list[str] | str:
        return "*" if "*" in given else given

    return {
        "allowed_hosts": names(args.allowed_host),
        "allowed_origins": names(args.allowed_origin),
    }


def announce(scheme: str, address: Any) -> None:
    """Print the URL of a server, by which this host reaches it."""
    from degu.address import format_url

    everywhere = isinstance(address, tuple) and address[0] in ("::", "0.0.0.0")
    if everywhere:
        host = "::1" if address[0] == "::" else "127.0.0.1"
        address = (host, *address[1:])
    print(format_url(scheme, address), flush=True)
    where = " on every interface" if everywhere else ""
    say(f"degu: serving{where}, Ctrl-C stops it")


def set_up_logging(args: argparse.Namespace) -> None:
    """Log to standard error as much as was asked for."""
    level = logging.INFO if args.verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", force=True)
    quiet = args.quiet and not args.verbose
    logging.getLogger("degu.requests").setLevel(level if quiet else logging.INFO)


@contextlib.contextmanager
def ended_by_signal() -> Iterator[None]:
    """Let SIGTERM end a server as Ctrl-C does; only the main thread can."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

"""``degu proxy``: another server."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from degu.cli.addresses import Target, parse_url
from degu.cli.client import add_timeout, make_client
from degu.cli.command import Command, CommandError
from degu.cli.server import add_server_options, serve
from degu.cli.tls import add_client_tls

if TYPE_CHECKING:
    import argparse


def add_options(parser: Any) -> None:
    """Add what ``degu proxy`` takes."""
    parser.add_argument("to", metavar="URL", type=parse_url)
    group = parser.add_argument_group("TLS to the other server")
    add_client_tls(group, "whom to trust", "upstream-")
    add_timeout(group, "the other server", "upstream-")
    add_server_options(parser)


def run_proxy(args: argparse.Namespace) -> int:
    """``degu proxy``."""
    from degu.apps import ProxyApp

    target: Target = args.to
    client = make_client(
        target,
        target.addresses[-1] if len(target.addresses) == 1 else _reach(target),
        args.upstream_timeout,
        ca=args.upstream_ca,
        cert=args.upstream_cert,
        key=args.upstream_key,
    )
    path, _, query = target.uri.partition("?")
    if query:
        raise CommandError("expected a URL without a query to pass requests on to")
    return serve(args, ProxyApp(client, prefix=path if path != "/" else ""))


def _reach(target: Target) -> Any:
    """Which address of a name is connected to; the last one where none is there."""
    from degu.client import Client

    for address in target.addresses:
        with contextlib.suppress(OSError), Client(address, timeout=5.0).connect():
            return address
    return target.addresses[-1]


COMMAND = Command(
    "proxy",
    "Pass requests on to another server.\n\n"
    "A path in the URL is put before that of each request. What can't be reached\n"
    "is answered by 502, what does not answer in time by 504.",
    "  degu proxy http://127.0.0.1:5000/\n"
    "  degu proxy http+unix://%2Frun%2Fmy.sock/ --bind '*:8080'\n"
    "  degu proxy https://device.example/v1 --upstream-ca ca.pem",
    add_options,
    run_proxy,
)

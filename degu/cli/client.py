"""What the commands that send requests have in common."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from typing import Any

from degu import __version__
from degu.cli.addresses import Target, parse_url
from degu.cli.command import OTHER_STATUS, CommandError
from degu.cli.console import say
from degu.cli.tls import add_client_tls, build_sslconfig
from degu.errors import TLSError

FILE_HELP = "a path; - (the default) is standard input or output"


def add_transfer(parser: Any) -> None:
    """Add both ends of a download or an upload, and what goes along."""
    parser.add_argument("url", metavar="URL", type=parse_url)
    parser.add_argument("file", metavar="FILE", nargs="?", default="-", help=FILE_HELP)
    group = parser.add_argument_group("TLS")
    add_client_tls(group, "whom to trust (default: the system's CAs)")
    parser.add_argument(
        "-H",
        "--header",
        action="append",
        default=[],
        type=_parse_header,
        metavar="'NAME: VALUE'",
        help="a header to send; may be repeated",
    )
    add_timeout(parser, "the server")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bar")


def _parse_header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name:
        raise argparse.ArgumentTypeError(f"expected 'name: value', got {text!r}")
    return name.strip().lower(), value.strip()


def add_timeout(parser: Any, who: str, prefix: str = "") -> None:
    """Add the option of how long to wait for `who`."""
    parser.add_argument(
        f"--{prefix}timeout",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help=f"how long {who} may be silent (default: 60)",
    )


def make_client(
    target: Target,
    address: Any,
    timeout: float,
    *,
    ca: str | None,
    cert: str | None,
    key: str | None,
) -> Any:
    """A client of one of the addresses of a URL. Raises `CommandError`."""
    from degu.client import Client, SSLClient

    if not target.tls:
        if ca or cert or key:
            raise CommandError("certificates are for https:// URLs")
        return Client(address, timeout=timeout)
    return SSLClient(build_sslconfig(ca, cert, key), address, timeout=timeout)


@contextlib.contextmanager
def connect(args: argparse.Namespace) -> Iterator[Any]:
    """A function that sends one request, on a connection of its own."""
    target: Target = args.url
    tls = {"ca": args.ca, "cert": args.cert, "key": args.key}
    clients = [
        make_client(target, address, args.timeout, **tls)
        for address in target.addresses
    ]
    with contextlib.ExitStack() as stack:

        def ask(
            method: str, uri: str, headers: dict[str, str], body: Any = None
        ) -> Any:
            connection = stack.enter_context(_connect_first(clients))
            agent = {"user-agent": f"degu/{__version__}", "accept": "*/*"}
            headers = {**agent, **dict(args.header), **headers}
            return connection.request(method, uri, headers, body)

        yield ask


def _connect_first(clients: list[Any]) -> Any:
    for client in clients[:-1]:
        try:
            return client.connect()
        except TLSError:
            raise  # somebody is there
        except OSError:
            continue
    return clients[-1].connect()


def tell_status(response: Any) -> int:
    """Say which status came instead of success; the exit code."""
    where = response.headers.get("location")
    say(f"degu: {response.status} {response.reason}{f': {where}' if where else ''}")
    return OTHER_STATUS

"""The certificates that a command line names, and the sslconfig that they make."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from degu.cli.command import CommandError

if TYPE_CHECKING:
    import argparse


def add_client_tls(group: Any, whom: str, prefix: str = "") -> None:
    """Add the options of the side that connects; `prefix` goes before their names."""
    group.add_argument(f"--{prefix}ca", metavar="FILE", help=whom)
    group.add_argument(f"--{prefix}cert", metavar="FILE", help="certificate to show")
    group.add_argument(f"--{prefix}key", metavar="FILE", help="its private key")


def add_server_tls(group: Any) -> None:
    """Add the options of the side that listens."""
    group.add_argument("--cert", metavar="FILE", help="serve over TLS: certificate")
    group.add_argument("--key", metavar="FILE", help="its private key")
    group.add_argument(
        "--ca", metavar="FILE", help="whose client certificates are required"
    )
    group.add_argument(
        "--allow-unauthenticated-clients",
        action="store_true",
        help="TLS without client certificates: let everybody in",
    )


def build_server_sslconfig(args: argparse.Namespace) -> dict[str, Any] | None:
    """A server's sslconfig, None for one without TLS. Raises `CommandError`."""
    if args.cert is None:
        if args.key or args.ca or args.allow_unauthenticated_clients:
            raise CommandError(
                "--key, --ca and the like need a --cert to serve over TLS"
            )
        return None
    if args.ca is None and not args.allow_unauthenticated_clients:
        raise CommandError(
            "--cert needs --ca, to check clients with, or "
            "--allow-unauthenticated-clients, to let in everybody"
        )
    config = build_sslconfig(args.ca, args.cert, args.key)
    if args.allow_unauthenticated_clients:
        config["allow_unauthenticated_clients"] = True
    return config


def build_sslconfig(
    ca: str | None, cert: str | None, key: str | None
) -> dict[str, Any]:
    """The files that were named, wherever the program goes."""
    files = {"ca_file": ca, "cert_file": cert, "key_file": key}
    return {name: os.path.abspath(path) for name, path in files.items() if path}

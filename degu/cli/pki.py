"""``degu pki``: a CA, and certificates for devices."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from degu.cli.command import DONE, Command, expect_open
from degu.cli.console import say

if TYPE_CHECKING:
    import argparse


def add_options(parser: Any) -> None:
    """Add what ``degu pki`` takes."""
    parser.add_argument("folder", metavar="FOLDER")
    parser.add_argument("name", metavar="NAME", nargs="?")
    parser.add_argument("hosts", metavar="HOST", nargs="*")
    parser.add_argument(
        "--days", type=int, default=825, help="how long NAME is valid (default: 825)"
    )


def run_pki(args: argparse.Namespace) -> int:
    """``degu pki``: prints the sslconfig to use, as JSON."""
    import json

    from degu.pki import make_ca, make_certificate

    output = expect_open(sys.stdout, "output")
    folder = os.path.abspath(args.folder)
    ca_file, made = make_ca(folder)
    if made:
        say(f"degu: made a CA: {ca_file}")
    if args.name is None:
        config: dict[str, Any] = {"ca_file": ca_file}
    else:
        config = make_certificate(folder, args.name, args.hosts, days=args.days)
        say(f"degu: made a certificate: {config['cert_file']}")
    print(json.dumps(config, indent=2), file=output)
    return DONE


COMMAND = Command(
    "pki",
    "Make a CA, and certificates for devices.\n\n"
    "FOLDER gets ca.pem and ca-key.pem, if they are not there, and NAME.pem and\n"
    "NAME-key.pem: a certificate for a server at the HOSTs (names or addresses;\n"
    "default: localhost) that is a client's as well. Keep ca-key.pem off the\n"
    "devices: whoever has it can make more. Needs the extra 'peers'.",
    "  degu pki ~/pki\n"
    "  degu pki ~/pki desk desk.local 192.168.1.5\n"
    "  degu pki ~/pki phone\n"
    "  degu files --cert ~/pki/desk.pem --key ~/pki/desk-key.pem --ca ~/pki/ca.pem",
    add_options,
    run_pki,
)

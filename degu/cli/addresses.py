"""Addresses and URLs, as they are written on a command line."""

from __future__ import annotations

import argparse
import os
import re
from typing import Any, NamedTuple
from urllib.parse import quote, unquote_to_bytes, urlsplit

_PATH_SAFE = "/%:@!$&'()*+,;=~|[]^-._"


def parse_bind(text: str) -> Any:
    """An address to listen on, as it is written on a command line.

    ``8000`` is this host only (IPv6), ``[::1]:8000``, ``127.0.0.1:8000``, ``*:8000``
    every interface, ``/run/my.sock`` or ``unix:my.sock`` a Unix socket, ``@name`` an
    abstract one (Linux). Raises `ArgumentTypeError`.
    """
    from degu.address import check_address

    try:
        address = _parse_bind(text)
        check_address(address)
    except (ValueError, TypeError) as error:
        raise argparse.ArgumentTypeError(
            f"expected [::1]:8000, 127.0.0.1:8000, *:8000, 8000, /path or @name, "
            f"got {text!r} ({error})"
        ) from None
    return address


def _parse_bind(text: str) -> Any:
    if text.startswith("@"):
        return b"\0" + os.fsencode(text[1:])
    if text.startswith("unix:") or "/" in text:
        return os.path.abspath(text.removeprefix("unix:"))
    host, colon, port = text.rpartition(":")
    if not (port.isdecimal() and port.isascii()):
        raise ValueError("no port")
    if not colon or host == "[::1]":
        return ("::1", int(port), 0, 0)
    if host in ("*", "[::]"):
        return ("::", int(port), 0, 0)
    if host.startswith("[") and host.endswith("]"):
        return (host[1:-1], int(port), 0, 0)
    return (host, int(port))


class Target(NamedTuple):
    """Where a URL points to: whether over TLS, the addresses to try, and what there."""

    tls: bool
    addresses: list[Any]
    uri: str


def parse_url(text: str) -> Target:
    """A URL of a server: http or https, or either with ``+unix`` and a quoted path.

    A name is looked for as IPv6 first. Raises `ArgumentTypeError`.
    """
    try:
        url = urlsplit(text)
        scheme, _, family = url.scheme.partition("+")
        if scheme not in ("http", "https") or family not in ("", "unix"):
            raise ValueError("not http:// or https://")
        if url.username is not None or not url.netloc:
            raise ValueError("no plain host")
        path = quote(url.path or "/", safe=_PATH_SAFE)
        query = quote(url.query, safe=_PATH_SAFE + "?") if url.query else None
        uri = path if query is None else f"{path}?{query}"
        if family == "unix":
            return Target(scheme == "https", [_unix(url.netloc)], uri)
        port = url.port or (443 if scheme == "https" else 80)
        host = url.hostname or ""
        ipv6, ipv4 = (host, port, 0, 0), (host, port)
        if ":" in host:
            return Target(scheme == "https", [ipv6], uri)
        if re.fullmatch(r"[0-9.]+", host):
            return Target(scheme == "https", [ipv4], uri)
        return Target(scheme == "https", [ipv6, ipv4], uri)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"expected a URL such as http://localhost:8000/path, got {text!r} ({error})"
        ) from None


def _unix(netloc: str) -> Any:
    name = unquote_to_bytes(netloc)
    return name if name.startswith(b"\0") else os.fsdecode(name)

"""The browser door: which requests a web page may not have sent.

A browser sends a request to a server on this machine for any page of any site. Such
a page must not reach an embedded server: neither under a name that its owner points
at 127.0.0.1 (DNS rebinding: the Host is then foreign), nor by a cross-site fetch, form
or image (the Origin or the Fetch metadata is then foreign).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from degu.base import wire
from degu.errors import ForbiddenOriginError, MisdirectedError, shown

__all__ = ["Door"]

MAX_ADMITTED = 64
"""Host values remembered as admitted, so that invented ports can't fill the memory."""


class Door:
    """Who may speak to a server through a browser (DNS rebinding, foreign pages).

    A request passes if its Host is an IP literal, ``localhost`` or one of
    `allowed_hosts`, and, where a browser says for which page it was sent, that page
    is of the server's own origin or one of `allowed_origins`.
    """

    def __init__(self, scheme: str, options: Mapping[str, Any]) -> None:
        self.scheme = scheme
        self.hosts = _lower(options["allowed_hosts"])
        self.origins = _lower(options["allowed_origins"])
        self.admitted: set[str] = set()

    def check(self, headers: Mapping[str, Any]) -> None:
        """Raise `MisdirectedError` or `ForbiddenOriginError` for a stranger."""
        host = headers["host"]
        if host not in self.admitted:
            self._check_host(host)
            if len(self.admitted) < MAX_ADMITTED:
                self.admitted.add(host)
        if "origin" in headers or "sec-fetch-site" in headers:
            self._check_origin(headers, host)

    def _check_host(self, host: str) -> None:
        name, _ = wire.parse_host(host)
        if (
            self.hosts == "*"
            or name in self.hosts
            or host.lower() in self.hosts
            or name == "localhost"
            or name.endswith(".localhost")
            or name[0] == "["
            or _is_ipv4(name)
        ):
            return
        raise MisdirectedError(
            f"expected an IP address, localhost or one of allowed_hosts, got {name!r}"
        )

    def _check_origin(self, headers: Mapping[str, Any], host: str) -> None:
        if self.origins == "*":
            return
        origin = headers.get("origin")
        if origin is None:
            if headers.get("sec-fetch-site") in ("same-origin", "none", None):
                return
            # An image or a link has no Origin; its Referer names the page. One of our
            # own may have been sent on here by another site, so that is no proof.
            origin = "/".join(headers.get("referer", "null").split("/", 3)[:3])
        elif origin.lower() == f"{self.scheme}://{host.lower()}":
            return
        if origin.lower() not in self.origins:
            raise ForbiddenOriginError(
                f"expected this origin or one of allowed_origins, got {shown(origin)}"
            )


def _lower(names: Collection[str] | str) -> Collection[str]:
    return names if isinstance(names, str) else frozenset(map(str.lower, names))


_is_ipv4 = re.compile(
    r"(?:(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])(?:\.(?!\Z)|\Z)){4}"
).fullmatch

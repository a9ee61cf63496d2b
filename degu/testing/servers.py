"""Servers for tests: each in its own process, on a port of its own, gone afterwards."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from degu.address import Address
from degu.client import Client, SSLClient
from degu.embed import EmbeddedServer, EmbeddedSSLServer

if TYPE_CHECKING:
    from degu.testing.pki import TempPKI

__all__ = ["TempSSLServer", "TempServer"]

# Apps of tests are often local functions, which only a fork can take along; and the
# threads of a test runner wait for input, they hold no lock that a child could need.
_START_METHOD = "fork" if sys.platform == "linux" else None


class TempServer(EmbeddedServer):
    """A `degu.EmbeddedServer` for a test, with a client made to measure.

    ``TempServer(address, build_func, *build_args, **options)``, where `build_func` may
    be None: then the next argument is the app itself. It is stopped by
    ``terminate()``, at the end of a ``with``, or when it is garbage collected.
    """

    start_method = _START_METHOD

    def client(self, **options: Any) -> Client:
        """A new `degu.client.Client` of this server; `options` are the client's."""
        return Client(self.address, **options)


class TempSSLServer(EmbeddedSSLServer):
    """A `degu.EmbeddedSSLServer` for a test, with a client that it accepts.

    The first argument is a `TempPKI`, whose server certificate is used and whose
    client certificates are required, or an sslconfig dict.
    """

    start_method = _START_METHOD

    def __init__(
        self,
        pki: TempPKI | dict[str, Any],
        address: Address,
        build_func: Any,
        *build_args: Any,
        **options: Any,
    ) -> None:
        self.pki = None if isinstance(pki, Mapping) else pki
        sslconfig: Any = pki if isinstance(pki, Mapping) else pki.server_sslconfig
        super().__init__(sslconfig, address, build_func, *build_args, **options)

    def client(self, sslctx: Any = None, **options: Any) -> SSLClient:
        """A new `degu.client.SSLClient` of this server.

        `sslctx` is an `ssl.SSLContext` or an sslconfig dict, by default the client's
        one of the `TempPKI`. Raises `ValueError` where there is neither.
        """
        if sslctx is None:
            if self.pki is None:
                raise ValueError("sslctx: expected one, as this server has no TempPKI")
            sslctx = self.pki.client_sslconfig
        return SSLClient(sslctx, self.address, **options)

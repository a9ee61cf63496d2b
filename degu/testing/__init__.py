"""Throw-away servers for tests, and proof that they left nothing behind.

The names are handed out when they are first used, so that importing this package
needs neither pytest nor psutil nor trustme (the extra ``degu[testing]``).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from degu.testing.pki import TempPKI as TempPKI
    from degu.testing.servers import TempServer as TempServer
    from degu.testing.servers import TempSSLServer as TempSSLServer

_HOMES = {
    "TempPKI": "degu.testing.pki",
    "TempSSLServer": "degu.testing.servers",
    "TempServer": "degu.testing.servers",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)

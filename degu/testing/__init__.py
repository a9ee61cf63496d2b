"""Throw-away servers for tests, and proof that they left nothing behind.

The names are handed out when they are first used, so that importing this package
needs neither pytest nor psutil nor trustme (the extra ``degu[testing]``).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from degu.testing.expect import RecordedRequest as RecordedRequest
    from degu.testing.expect import UnmetError as UnmetError
    from degu.testing.faults import FaultyClient as FaultyClient
    from degu.testing.faults import FaultyServer as FaultyServer
    from degu.testing.leaks import LeakError as LeakError
    from degu.testing.leaks import assert_no_orphans as assert_no_orphans
    from degu.testing.leaks import assert_terminates as assert_terminates
    from degu.testing.leaks import check_leaks as check_leaks
    from degu.testing.leaks import check_memory as check_memory
    from degu.testing.pki import TempPKI as TempPKI
    from degu.testing.pki import assert_rejected as assert_rejected
    from degu.testing.servers import TempServer as TempServer
    from degu.testing.servers import TempService as TempService
    from degu.testing.servers import TempSSLServer as TempSSLServer

_HOMES = {
    "FaultyClient": "degu.testing.faults",
    "FaultyServer": "degu.testing.faults",
    "LeakError": "degu.testing.leaks",
    "RecordedRequest": "degu.testing.expect",
    "TempPKI": "degu.testing.pki",
    "TempSSLServer": "degu.testing.servers",
    "TempServer": "degu.testing.servers",
    "TempService": "degu.testing.servers",
    "UnmetError": "degu.testing.expect",
    "assert_no_orphans": "degu.testing.leaks",
    "assert_rejected": "degu.testing.pki",
    "assert_terminates": "degu.testing.leaks",
    "check_leaks": "degu.testing.leaks",
    "check_memory": "degu.testing.leaks",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)

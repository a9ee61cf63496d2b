"""`TempServer` and its companions under their older name; see :mod:`degu.testing`."""

from __future__ import annotations

from degu.testing import TempPKI, TempServer, TempSSLServer

__all__ = ["TempPKI", "TempSSLServer", "TempServer"]

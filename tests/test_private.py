"""degu.private: files for one user, and the lock on their directory."""

from __future__ import annotations

import pytest

from degu import private
from degu.errors import PeerFileError
from tests.devices import (
    a_device_anna,  # noqa: F401
    a_device_ben,  # noqa: F401
)


def test_a_stuck_process_is_not_waited_for_for_ever(anna, ben, monkeypatch):
    """The lock of somebody else is an error after its time, not a hang."""
    monkeypatch.setattr(private, "LOCK_TIMEOUT", 0.05)
    with (
        private.locked(anna.store.directory),
        pytest.raises(PeerFileError, match=r"expected it to be free within 0\.05 s"),
    ):
        anna.store.add(ben.me)

    anna.store.add(ben.me)

"""The pages' examples run in an empty folder, so that what they write is no litter."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Be somewhere else than in the checkout."""
    monkeypatch.chdir(tmp_path)

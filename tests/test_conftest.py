"""The waiting that the other tests rely on."""

from __future__ import annotations

import pytest


def test_wait_until_returns_the_first_true_value(wait_until):
    """Waiting ends as soon as the condition holds, with the condition's value."""
    values = iter([0, "", None, "there"])
    assert wait_until(lambda: next(values)) == "there"


def test_wait_until_fails_at_its_deadline_and_says_what_did_not_happen(wait_until):
    """A condition that never holds is a failure that names it, not a hang."""
    with pytest.raises(pytest.fail.Exception, match=r"the door: not within .* None"):
        wait_until(lambda: None, 0.01, what="the door")


def test_a_deadline_passes(deadline, wait_until):
    """The time left falls to 0 and stays there."""
    soon = deadline(0.02)
    assert 0 < soon.left <= soon.seconds
    wait_until(lambda: soon.passed)
    assert soon.left == 0.0

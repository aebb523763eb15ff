"""A run that stops between registration and promotion is finished by the next one."""

from typing import Any

import pytest


@pytest.mark.slow
def test_a_policy_that_has_become_automatic_promotes_what_is_registered(
    small: Any, first_run: dict[str, Any]
) -> None:
    """As after a crash between the two: a registered version, and no promotion on record."""
    name = ("--set", "name=later")
    manual = small.json("run", "recipes/small.yaml", *name, "--set", "promotion.policy=manual")
    assert manual["exit_code"] == 0, manual["stderr"][-3000:]
    assert manual["model_version"]["aliases"] == ["challenger"]
    automatic = small.json("run", "recipes/small.yaml", *name)
    assert automatic["outcome"] == "registered", automatic["reason"]
    assert automatic["model_version"]["uri"] == manual["model_version"]["uri"]
    assert automatic["model_version"]["aliases"] == ["challenger", "champion"]
    assert automatic["stages"]["training"]["reused"] is True
    again = small.json("run", "recipes/small.yaml", *name)
    assert again["outcome"] == "skipped"

"""Promotion: the policy decides, the alias moves under a lock, and the record says who, when and why."""

import threading
from pathlib import Path

import pytest

from tasks.errors import StageFailed
from tasks.home import Home
from tasks.promotion.settings import PromotionSettings
from tasks.promotion.work import champion_version, decide, promote
from tasks.registry import aliased
from tasks.tracking import Tracker


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    """One registry for the module; each test registers a model of its own."""
    return Tracker(Home(tmp_path_factory.mktemp("registry").resolve()))


def register(tracker: Tracker, name: str, versions: int) -> None:
    """Versions without content: promotion only moves names."""
    tracker.client.create_registered_model(name)
    for _ in range(versions):
        tracker.client.create_model_version(name, source="mlflow-artifacts:/nowhere")


@pytest.mark.parametrize(
    ("policy", "comparable", "outcome", "moves"),
    [
        ("manual", True, "registered", False),
        ("approval", True, "awaiting_approval", False),
        ("automatic", True, "registered", True),
        ("manual", False, "awaiting_approval", False),
        ("approval", False, "awaiting_approval", False),
        ("automatic", False, "awaiting_approval", False),
    ],
)
def test_the_policy_decides_unless_the_champion_could_not_be_compared(
    policy: str, comparable: bool, outcome: str, moves: bool
) -> None:
    settings = PromotionSettings.model_validate({"policy": policy})
    decision = decide(settings, comparable=comparable)
    assert (decision.outcome, decision.promote) == (outcome, moves)


def test_promotion_moves_champion_keeps_previous_and_says_who_when_and_why(
    tracker: Tracker,
) -> None:
    register(tracker, "moves", 2)
    assert champion_version(tracker, "moves") is None
    assert promote(tracker, "moves", "1", reason="first").aliases == ["champion"]
    second = promote(tracker, "moves", "2", reason="better", actor="ada")
    assert second.aliases == ["champion"]
    assert champion_version(tracker, "moves") == "2"
    previous = aliased(tracker, "moves", "previous")
    assert previous is not None
    assert previous.version in (1, "1")
    tags = tracker.client.get_model_version("moves", "2").tags
    assert tags["loraline.promoted_by"] == "ada"
    assert tags["loraline.promotion_reason"] == "better"
    assert tags["loraline.promoted_from"] == "1"
    assert tags["loraline.promoted_at"].startswith("20")


def test_promoting_the_champion_again_changes_nothing(tracker: Tracker) -> None:
    register(tracker, "again", 2)
    promote(tracker, "again", "1", reason="first")
    promote(tracker, "again", "2", reason="second")
    promote(tracker, "again", "2", reason="third")
    previous = aliased(tracker, "again", "previous")
    assert previous is not None
    assert str(previous.version) == "1"
    tags = tracker.client.get_model_version("again", "2").tags
    assert tags["loraline.promotion_reason"] == "second"


def test_a_version_judged_against_a_champion_of_yesterday_is_not_promoted(tracker: Tracker) -> None:
    register(tracker, "stale", 3)
    promote(tracker, "stale", "1", reason="first", instead_of=None)
    promote(tracker, "stale", "2", reason="second", instead_of="1")
    with pytest.raises(StageFailed, match=r"judged against version 1, .* now version 2"):
        promote(tracker, "stale", "3", reason="third", instead_of="1")
    with pytest.raises(StageFailed, match="judged against no champion"):
        promote(tracker, "stale", "3", reason="third", instead_of=None)
    assert champion_version(tracker, "stale") == "2"
    assert "loraline.promoted_at" not in tracker.client.get_model_version("stale", "3").tags


def test_of_two_promoters_at_once_one_wins_and_the_other_is_told(tracker: Tracker) -> None:
    register(tracker, "race", 3)
    promote(tracker, "race", "1", reason="first")
    start, told = threading.Barrier(2), []

    def run(version: str) -> None:
        start.wait()
        try:
            promote(tracker, "race", version, reason="race", instead_of="1")
        except StageFailed as error:
            told.append((version, str(error)))

    threads = [threading.Thread(target=run, args=(version,)) for version in ("2", "3")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 1
    loser = told[0][0]
    assert champion_version(tracker, "race") == {"2": "3", "3": "2"}[loser]


def test_a_version_that_does_not_exist_is_not_promoted(tracker: Tracker) -> None:
    register(tracker, "absent", 1)
    with pytest.raises(StageFailed, match="version 9 of 'absent'"):
        promote(tracker, "absent", "9", reason="typo")
    assert champion_version(tracker, "absent") is None


def test_a_home_without_models_has_no_champion(tracker: Tracker, tmp_path: Path) -> None:
    assert champion_version(tracker, "never-registered") is None


def test_without_a_gate_nobody_says_that_it_was_passed() -> None:
    for policy in ("automatic", "approval", "manual"):
        reason = decide(PromotionSettings(policy=policy), gated=False).reason
        assert "passed" not in reason
        assert reason.startswith("There is no gate")

"""Pruning: what nothing needs goes, with its run; what somebody may need stays, and why is said."""

from typing import Any

import pytest

from tasks.errors import UserError
from tasks.promotion.promoting import promote, roll_back
from tasks.promotion.pruning import plan, prune
from tasks.tracking import Tracker


def versions(tracker: Tracker, name: str) -> list[str]:
    found = tracker.client.search_model_versions(f"name = '{name}'")
    return sorted((str(v.version) for v in found), key=int)


@pytest.fixture
def ten(own_tracker: Tracker) -> list[str]:
    """Ten versions of `a`, each with a run of its own, the last two with one between them."""
    client = own_tracker.client
    experiment = own_tracker.experiment_id("a")
    client.create_registered_model("a")
    runs: list[str] = []
    for number in range(1, 11):
        if number < 10:
            runs.append(str(client.create_run(experiment).info.run_id))
        else:
            runs.append(runs[-1])
        client.create_model_version(
            "a",
            source="mlflow-artifacts:/nowhere",
            run_id=runs[-1],
            tags={
                "loraline.gate": "passed",
                **({"loraline.started_from": "models:/a/3"} if number == 9 else {}),
            },
        )
    return runs


def test_pruning_keeps_aliases_rollbacks_starts_and_the_newest(
    own_tracker: Tracker, ten: list[str], loads: Any, nobody: Any
) -> None:
    for number in ("1", "5", "6"):
        promote(own_tracker, "a", number, reason="x", force=True, verify=loads, notices=nobody)
    roll_back(own_tracker, "a", reason="x", verify=loads, notices=nobody)
    own_tracker.client.set_registered_model_alias("a", "canary", "2")
    planned = plan(own_tracker, "a", keep=2)
    reasons = {kept.version: kept.why for kept in planned.stay}
    assert reasons == {
        "1": "alias previous",
        "2": "alias canary",
        "3": "version 9 started from it",
        "5": "alias champion",
        "6": "a rollback may need it (entry 4 of the log)",
        "9": "one of the newest 2",
        "10": "one of the newest 2",
    }
    assert list(planned.go) == ["4", "7", "8"]
    # A plan is only a plan.
    assert len(versions(own_tracker, "a")) == 10
    assert prune(own_tracker, "a", keep=2, notices=nobody) == planned
    assert versions(own_tracker, "a") == ["1", "2", "3", "5", "6", "9", "10"]
    stages = [own_tracker.client.get_run(run).info.lifecycle_stage for run in ten]
    assert [n for n, stage in enumerate(stages, start=1) if stage == "deleted"] == [4, 7, 8]
    assert list(prune(own_tracker, "a", keep=2, notices=nobody).go) == []
    # The way back is still there.
    roll_back(own_tracker, "a", reason="x", verify=loads, notices=nobody)


def test_a_run_of_a_version_that_stays_is_never_deleted(
    own_tracker: Tracker, ten: list[str], nobody: Any
) -> None:
    # Versions 9 and 10 come from one run.
    prune(own_tracker, "a", keep=1, notices=nobody)
    assert versions(own_tracker, "a") == ["10"]
    assert own_tracker.client.get_run(ten[-1]).info.lifecycle_stage == "active"


def test_an_alias_that_was_set_after_the_plan_saves_its_version(
    own_tracker: Tracker, ten: list[str], nobody: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.promotion import pruning

    real = pruning.plan

    def late(*arguments: Any, **how: Any) -> Any:
        planned = real(*arguments, **how)
        own_tracker.client.set_registered_model_alias("a", "canary", "4")
        return planned

    monkeypatch.setattr(pruning, "plan", late)
    prune(own_tracker, "a", keep=3, notices=nobody)
    assert versions(own_tracker, "a") == ["3", "4", "8", "9", "10"]
    assert own_tracker.client.get_run(ten[3]).info.lifecycle_stage == "active"


def test_a_pruning_that_was_killed_is_completed_by_the_next(
    own_tracker: Tracker, ten: list[str], nobody: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:

        def killed(*_: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(own_tracker.client, "delete_model_version", killed)
        with pytest.raises(KeyboardInterrupt):
            prune(own_tracker, "a", keep=2, notices=nobody)
    assert len(versions(own_tracker, "a")) == 10
    prune(own_tracker, "a", keep=2, notices=nobody)
    assert versions(own_tracker, "a") == ["3", "9", "10"]


def test_the_newest_version_always_stays(own_tracker: Tracker, ten: list[str]) -> None:
    with pytest.raises(UserError, match="at least the newest"):
        plan(own_tracker, "a", keep=0)
    with pytest.raises(UserError, match="has no versions"):
        plan(own_tracker, "nobody", keep=1)

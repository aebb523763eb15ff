"""A promotion in MLflow's own pages is seen, verified and written down; nothing is undone silently."""

import logging
import re
from typing import Any

import pytest

from tasks.errors import ServerAway, StageFailed, WorkerFailed
from tasks.promotion.audit import audit
from tasks.promotion.notices import event_name
from tasks.promotion.promoting import promote, roll_back
from tasks.promotion.reconciling import PASSES_BETWEEN, PATIENCE, reconcile
from tasks.tracking import Tracker


def snapshot(tracker: Tracker) -> list[Any]:
    """Everything that a pass could write in the registry and the log."""
    models = tracker.client.search_registered_models()
    experiments = [e.experiment_id for e in tracker.client.search_experiments()]
    runs = tracker.client.search_runs(experiments)
    versions = [
        (v.name, v.version, sorted(v.tags.items()), v.last_updated_timestamp)
        for m in models
        for v in tracker.client.search_model_versions(f"name = '{m.name}'")
    ]
    return [
        sorted((m.name, sorted(m.aliases.items()), sorted(m.tags.items())) for m in models),
        sorted(r.info.run_id for r in runs),
        sorted(versions),
    ]


def test_a_champion_set_by_hand_is_verified_and_written_down_once(
    own_tracker: Tracker, register: Any, loads: Any, nobody: Any, aliases: Any
) -> None:
    register(own_tracker, "a", 2)
    promote(own_tracker, "a", "1", reason="first", verify=loads, notices=nobody)
    asked: list[str] = []

    def verify(uri: str) -> str:
        asked.append(uri)
        return f"{uri} loads"

    reconcile(own_tracker, verify=verify, notices=nobody)
    assert asked == []
    own_tracker.client.set_registered_model_alias("a", "champion", "2")
    (seen,) = reconcile(own_tracker, verify=verify, notices=nobody)
    entry = seen.entry
    assert entry is not None
    assert (entry.kind, entry.champion_from, entry.champion_to) == ("observed", "1", "2")
    assert (entry.verified, entry.verification) == (True, "models:/a/2 loads")
    assert entry.actor.startswith("unknown")
    assert entry.not_before is not None
    assert entry.not_before <= entry.at
    assert seen.alert is None
    # The way back is the champion that the person replaced.
    assert aliases(own_tracker, "a") == {"champion": "2", "previous": "1"}
    before = snapshot(own_tracker)
    assert reconcile(own_tracker, verify=verify, notices=nobody)[0].entry is None
    assert snapshot(own_tracker) == before
    assert asked == ["models:/a/2"]
    assert audit(own_tracker, "a").problems == []
    roll_back(own_tracker, "a", reason="no", verify=loads, notices=nobody)
    assert aliases(own_tracker, "a") == {"champion": "1"}


def test_a_previous_that_a_person_set_stays_as_set(
    own_tracker: Tracker, register: Any, loads: Any, nobody: Any, aliases: Any
) -> None:
    register(own_tracker, "a", 4)
    for version in ("1", "2"):
        promote(own_tracker, "a", version, reason="x", verify=loads, notices=nobody)
    own_tracker.client.set_registered_model_alias("a", "champion", "4")
    own_tracker.client.set_registered_model_alias("a", "previous", "3")
    reconcile(own_tracker, verify=loads, notices=nobody)
    assert aliases(own_tracker, "a") == {"champion": "4", "previous": "3"}


def test_a_champion_that_does_not_load_raises_an_alert_with_the_way_back_and_stays(
    own_tracker: Tracker,
    register: Any,
    loads: Any,
    nobody: Any,
    aliases: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    register(own_tracker, "a", 2)
    promote(own_tracker, "a", "1", reason="first", verify=loads, notices=nobody)
    own_tracker.client.set_registered_model_alias("a", "champion", "2")

    def damaged(uri: str) -> str:
        raise StageFailed(f"{uri} is damaged")

    with caplog.at_level(logging.WARNING):
        (seen,) = reconcile(own_tracker, verify=damaged, notices=nobody)
    assert seen.alert is not None
    assert "models:/a/2 is damaged" in seen.alert
    assert "loraline rollback a" in seen.alert
    assert "(to version 1)" in seen.alert
    assert seen.alert in caplog.text
    assert seen.entry is not None
    assert seen.entry.verified is False
    # Nothing was undone.
    assert aliases(own_tracker, "a") == {"champion": "2", "previous": "1"}
    before = snapshot(own_tracker)
    for _ in range(2 * PASSES_BETWEEN):
        (again,) = reconcile(own_tracker, verify=damaged, notices=nobody)
        assert again.entry is None
        # Told once; that it stands is no news.
        assert again.alert is None
        assert again.standing == seen.alert
    assert snapshot(own_tracker) == before


def test_a_champion_that_was_taken_away_raises_an_alert(
    own_tracker: Tracker, register: Any, loads: Any, nobody: Any, aliases: Any
) -> None:
    register(own_tracker, "a", 2)
    for version in ("1", "2"):
        promote(own_tracker, "a", version, reason="x", verify=loads, notices=nobody)
    # MLflow takes the aliases of a deleted version with it.
    own_tracker.client.delete_model_version("a", "2")
    (seen,) = reconcile(own_tracker, verify=loads, notices=nobody)
    assert seen.alert is not None
    assert "has no champion" in seen.alert
    assert audit(own_tracker, "a").problems == []
    roll_back(own_tracker, "a", reason="back", verify=loads, notices=nobody)
    assert aliases(own_tracker, "a")["champion"] == "1"


def test_a_champion_from_before_the_log_is_its_first_entry(
    own_tracker: Tracker, register: Any, loads: Any, nobody: Any
) -> None:
    register(own_tracker, "a", 1)
    own_tracker.client.set_registered_model_alias("a", "champion", "1")
    (seen,) = reconcile(own_tracker, verify=loads, notices=nobody)
    assert seen.entry is not None
    assert (seen.entry.number, seen.entry.reason) == (1, "It was champion before the log began.")


def test_what_a_rollback_saw_without_looking_is_verified_by_the_next_pass(
    own_tracker: Tracker, register: Any, loads: Any, nobody: Any
) -> None:
    register(own_tracker, "a", 2)
    promote(own_tracker, "a", "1", reason="first", verify=loads, notices=nobody)
    own_tracker.client.set_registered_model_alias("a", "champion", "2")

    def damaged(uri: str) -> str:
        raise StageFailed(f"{uri} is damaged")

    with pytest.raises(StageFailed, match="cannot go back"):
        roll_back(own_tracker, "a", reason="no", verify=damaged, notices=nobody)
    (seen,) = reconcile(own_tracker, verify=loads, notices=nobody)
    assert seen.entry is not None
    assert (seen.entry.champion_to, seen.entry.verified) == ("2", True)
    assert reconcile(own_tracker, verify=loads, notices=nobody)[0].entry is None
    assert audit(own_tracker, "a").problems == []


def test_models_of_others_in_the_same_registry_are_left_alone(
    own_tracker: Tracker, loads: Any, nobody: Any
) -> None:
    own_tracker.client.create_registered_model("theirs")
    own_tracker.client.create_model_version("theirs", source="mlflow-artifacts:/nowhere")
    own_tracker.client.set_registered_model_alias("theirs", "champion", "1")
    before = snapshot(own_tracker)
    assert reconcile(own_tracker, verify=loads, notices=nobody) == []
    assert snapshot(own_tracker) == before


def test_a_version_that_loads_later_is_found_to_load_and_the_alert_ends(
    own_tracker: Tracker, register: Any, loads: Any, nobody: Any
) -> None:
    register(own_tracker, "a", 2)
    promote(own_tracker, "a", "1", reason="first", verify=loads, notices=nobody)
    own_tracker.client.set_registered_model_alias("a", "champion", "2")

    def damaged(uri: str) -> str:
        raise StageFailed(f"{uri} is damaged")

    assert reconcile(own_tracker, verify=damaged, notices=nobody)[0].alert is not None
    seen = [
        reconcile(own_tracker, verify=loads, notices=nobody)[0] for _ in range(PASSES_BETWEEN + 1)
    ]
    (entry,) = [it.entry for it in seen if it.entry is not None]
    assert (entry.kind, entry.verified, entry.champion_to) == ("observed", True, "2")
    assert [it.alert for it in seen] == [None] * len(seen)
    assert seen[0].standing is not None
    assert seen[-1].standing is None
    assert audit(own_tracker, "a").problems == []
    # The same state, come again, is news again.
    own_tracker.client.set_registered_model_alias("a", "champion", "1")
    reconcile(own_tracker, verify=loads, notices=nobody)
    own_tracker.client.set_registered_model_alias("a", "champion", "2")
    assert reconcile(own_tracker, verify=damaged, notices=nobody)[0].alert is not None


@pytest.mark.parametrize("said", ["is damaged", "[Errno 12] Cannot allocate memory"])
def test_promoting_a_champion_that_did_not_load_looks_at_it_again(
    own_tracker: Tracker, register: Any, loads: Any, nobody: Any, said: str
) -> None:
    register(own_tracker, "a", 1)
    own_tracker.client.set_registered_model_alias("a", "champion", "1")

    def damaged(uri: str) -> str:
        raise StageFailed(f"{uri}: {said}")

    reconcile(own_tracker, verify=damaged, notices=nobody)
    with pytest.raises(StageFailed, match=re.escape(said)):
        promote(own_tracker, "a", "1", reason="again", verify=damaged, notices=nobody)
    promote(own_tracker, "a", "1", reason="again", verify=loads, notices=nobody)
    assert audit(own_tracker, "a").entries[-1].verified is True
    (seen,) = reconcile(own_tracker, verify=loads, notices=nobody)
    assert (seen.entry, seen.alert, seen.standing) == (None, None, None)


def died(uri: str) -> str:
    death = WorkerFailed("verification stopped with exit code -9")
    raise StageFailed(f"{uri} does not load: {death}") from death


def without_memory(uri: str) -> str:
    raise StageFailed(f"{uri} does not load: [Errno 12] Cannot allocate memory")


def away(uri: str) -> str:
    raise ServerAway(f"MLflow did not answer for {uri}")


@pytest.mark.parametrize("fails", [died, without_memory, away])
def test_a_look_that_the_machine_broke_off_is_no_verdict(
    own_tracker: Tracker, register: Any, loads: Any, nobody: Any, fails: Any
) -> None:
    register(own_tracker, "a", 2)
    promote(own_tracker, "a", "1", reason="first", verify=loads, notices=nobody)
    own_tracker.client.set_registered_model_alias("a", "champion", "2")
    (seen,) = reconcile(own_tracker, verify=fails, notices=nobody)
    assert seen.alert is None
    assert seen.entry is not None
    assert seen.entry.verified is None
    assert seen.entry.verification.startswith("Nobody could look")
    # One that never comes to an end is told in the end, once, and still is no verdict.
    passes = [
        reconcile(own_tracker, verify=fails, notices=nobody)[0]
        for _ in range(PATIENCE * PASSES_BETWEEN)
    ]
    (alert,) = [it.alert for it in passes if it.alert is not None]
    assert "ended without a verdict" in alert
    assert len(audit(own_tracker, "a").entries) == 2
    for _ in range(PASSES_BETWEEN):
        reconcile(own_tracker, verify=loads, notices=nobody)
    assert audit(own_tracker, "a").entries[-1].verified is True


def test_a_worker_s_own_words_are_a_verdict(
    own_tracker: Tracker, register: Any, loads: Any, nobody: Any
) -> None:
    register(own_tracker, "a", 1)
    own_tracker.client.set_registered_model_alias("a", "champion", "1")

    def refuses(uri: str) -> str:
        raise StageFailed(f"{uri}: another base") from WorkerFailed("stopped with exit code 1")

    (seen,) = reconcile(own_tracker, verify=refuses, notices=nobody)
    assert seen.entry is not None
    assert seen.entry.verified is False
    assert seen.alert is not None


def test_a_version_that_the_gate_refused_is_written_down_as_such_and_warned_of(
    own_tracker: Tracker, register: Any, loads: Any, nobody: Any
) -> None:
    register(own_tracker, "a", 2)
    promote(own_tracker, "a", "1", reason="first", verify=loads, notices=nobody)
    own_tracker.client.set_model_version_tag("a", "2", "loraline.gate", "refused")
    own_tracker.client.set_model_version_tag("a", "2", "loraline.judged_against", "1")
    own_tracker.client.set_registered_model_alias("a", "champion", "2")
    (seen,) = reconcile(own_tracker, verify=loads, notices=nobody)
    assert seen.entry is not None
    assert (seen.entry.gate, seen.entry.judged_against) == ("refused", "1")
    assert event_name(seen.entry) == "loraline.alert"
    assert seen.alert is not None
    assert "the gate had refused it" in seen.alert
    assert "(to version 1)" in seen.alert
    (again,) = reconcile(own_tracker, verify=loads, notices=nobody)
    assert (again.entry, again.alert, again.standing) == (None, None, seen.alert)


def test_a_damaged_log_is_told_once_and_stops_no_other_model(
    own_tracker: Tracker, register: Any, loads: Any, nobody: Any
) -> None:
    for name in ("a", "b"):
        register(own_tracker, name, 1)
        promote(own_tracker, name, "1", reason="first", verify=loads, notices=nobody)
    own_tracker.client.set_registered_model_tag("a", "loraline.promotion.head", "{}")
    first = {it.name: it for it in reconcile(own_tracker, verify=loads, notices=nobody)}
    assert "loraline audit a" in str(first["a"].alert)
    assert (first["b"].alert, first["b"].standing) == (None, None)
    again = {it.name: it for it in reconcile(own_tracker, verify=loads, notices=nobody)}
    assert (again["a"].alert, again["a"].standing) == (None, first["a"].alert)

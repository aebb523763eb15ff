"""Going back restores what was, and the log tells when somebody tampered with it."""

import argparse
import json
from typing import Any

import pytest

from tasks.errors import StageFailed, UserError
from tasks.promotion import log
from tasks.promotion.accepting import accept
from tasks.promotion.audit import audit
from tasks.promotion.entry import canonical
from tasks.promotion.promoting import promote, roll_back
from tasks.store import digest
from tasks.tracking import Tracker


@pytest.fixture
def three(tracker: Tracker, register: Any, loads: Any, nobody: Any, request: Any) -> str:
    """A model whose versions 1, 2 and 3 were promoted one after the other."""
    name = request.node.name.replace("[", "-").replace("]", "")[-60:]
    register(tracker, name, 3)
    for version in ("1", "2", "3"):
        promote(tracker, name, version, reason=f"it is {version}", verify=loads, notices=nobody)
    return name


def runs_of(tracker: Tracker, name: str) -> list[Any]:
    return log.read_log(tracker, name)


def test_a_rollback_restores_exactly_and_a_second_one_goes_one_step_further(
    tracker: Tracker, three: str, loads: Any, nobody: Any, aliases: Any
) -> None:
    moved = roll_back(tracker, three, reason="worse", verify=loads, notices=nobody)
    assert moved.version.version == "2"
    assert aliases(tracker, three) == {"champion": "2", "previous": "1"}
    roll_back(tracker, three, reason="worse, too", verify=loads, notices=nobody)
    assert aliases(tracker, three) == {"champion": "1"}
    with pytest.raises(UserError, match="no version to go back to"):
        roll_back(tracker, three, reason="once more", verify=loads, notices=nobody)
    found = audit(tracker, three)
    assert [it.kind for it in found.entries] == ["promotion"] * 3 + ["rollback"] * 2
    assert found.problems == []


def test_a_rollback_moves_nothing_when_the_version_before_does_not_load(
    tracker: Tracker, three: str, nobody: Any, aliases: Any
) -> None:
    before = aliases(tracker, three)

    def damaged(uri: str) -> str:
        raise StageFailed(f"{uri} is damaged")

    with pytest.raises(
        StageFailed, match=rf"cannot go back to version 2, .*models:/{three}/2 is damaged"
    ):
        roll_back(tracker, three, reason="worse", verify=damaged, notices=nobody)
    assert aliases(tracker, three) == before
    assert len(audit(tracker, three).entries) == 3


def test_a_rollback_during_which_somebody_promotes_is_told(
    tracker: Tracker, three: str, loads: Any, nobody: Any, aliases: Any
) -> None:
    def meanwhile(uri: str) -> str:
        promote(tracker, three, "1", reason="at once", force=True, verify=loads, notices=nobody)
        return uri

    with pytest.raises(StageFailed, match="Somebody else was faster"):
        roll_back(tracker, three, reason="worse", verify=meanwhile, notices=nobody)
    assert aliases(tracker, three) == {"champion": "1", "previous": "3"}


def test_after_a_move_by_hand_the_way_back_is_the_champion_before_it(
    tracker: Tracker, three: str, loads: Any, nobody: Any, aliases: Any
) -> None:
    tracker.client.set_registered_model_alias(three, "champion", "1")
    roll_back(tracker, three, reason="not that one", verify=loads, notices=nobody)
    assert aliases(tracker, three)["champion"] == "3"
    assert [it.kind for it in audit(tracker, three).entries][-2:] == ["observed", "rollback"]


def test_a_champion_that_was_taken_away_comes_back(
    tracker: Tracker, three: str, loads: Any, nobody: Any, aliases: Any
) -> None:
    tracker.client.delete_registered_model_alias(three, "champion")
    tracker.client.delete_registered_model_alias(three, "previous")
    roll_back(tracker, three, reason="who did that", verify=loads, notices=nobody)
    assert aliases(tracker, three)["champion"] == "3"
    assert audit(tracker, three).problems == []


def test_an_altered_entry_is_named(tracker: Tracker, three: str) -> None:
    run = runs_of(tracker, three)[1]
    value = {**json.loads(run.entry.text), "reason": "because Bob said so"}
    tracker.client.set_tag(run.run_id, log.ENTRY_TAG, canonical(value))
    found = audit(tracker, three)
    assert found.problems[0].number == 2
    assert "it was altered" in found.problems[0].told
    assert run.run_id in found.problems[0].told


def test_an_entry_altered_together_with_its_hash_is_named_by_its_successor(
    tracker: Tracker, three: str
) -> None:
    run = runs_of(tracker, three)[1]
    value = {**json.loads(run.entry.text), "actor": "mallory"}
    tracker.client.set_tag(run.run_id, log.ENTRY_TAG, canonical(value))
    tracker.client.set_tag(run.run_id, log.HASH_TAG, digest(value))
    found = audit(tracker, three)
    assert [it.number for it in found.problems] == [2]
    assert "entry 3 is bound to" in found.problems[0].told


def test_the_newest_entry_altered_together_with_its_hash_is_named_by_the_model(
    tracker: Tracker, three: str
) -> None:
    run = runs_of(tracker, three)[2]
    value = {**json.loads(run.entry.text), "actor": "mallory"}
    tracker.client.set_tag(run.run_id, log.ENTRY_TAG, canonical(value))
    tracker.client.set_tag(run.run_id, log.HASH_TAG, digest(value))
    found = audit(tracker, three)
    assert [it.number for it in found.problems] == [3]
    assert "the registered model knows it as" in found.problems[0].told


def test_a_deleted_entry_is_named_and_can_be_restored(tracker: Tracker, three: str) -> None:
    run = runs_of(tracker, three)[1]
    tracker.client.delete_run(run.run_id)
    found = audit(tracker, three)
    assert [it.number for it in found.problems] == [2]
    assert f"mlflow runs restore --run-id {run.run_id}" in found.problems[0].told
    tracker.client.restore_run(run.run_id)
    assert audit(tracker, three).problems == []


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_missing_entry_is_named(tracker: Tracker, three: str, number: int) -> None:
    run = runs_of(tracker, three)[number - 1]
    # As `mlflow gc` leaves it: no trace.
    tracker.client.delete_tag(run.run_id, log.ENTRY_TAG)
    tracker.client.delete_tag(run.run_id, log.HASH_TAG)
    found = audit(tracker, three)
    assert found.problems[0].number == number
    assert "missing" in found.problems[0].told


def test_an_entry_that_was_added_by_hand_is_named(tracker: Tracker, three: str) -> None:
    last = runs_of(tracker, three)[2].entry
    forged = last.model_copy(
        update={"number": 4, "before": last.hash, "champion_from": "3", "champion_to": "1"}
    )
    log.close(tracker, log.append(tracker, forged))
    assert [it.number for it in audit(tracker, three).problems] == [4]


def twin_of(tracker: Tracker, name: str, number: int, *, sorts: str) -> str:
    """A copy of the entry that was never carried out, as a lost answer leaves it; returns its run's id."""
    run = runs_of(tracker, name)[number - 1]
    # Ids are drawn, so the order is too: again until it is the wanted one.
    while True:
        twin = log.append(tracker, run.entry)
        if (twin.run_id > run.run_id) == (sorts == "after"):
            return twin.run_id
        tracker.client.delete_tag(twin.run_id, log.ENTRY_TAG)
        tracker.client.delete_tag(twin.run_id, log.HASH_TAG)


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("sorts", ["before", "after"])
def test_an_entry_whose_answer_was_lost_once_stops_nothing(
    tracker: Tracker, three: str, loads: Any, nobody: Any, aliases: Any, sorts: str, number: int
) -> None:
    twin_of(tracker, three, number, sorts=sorts)
    found = audit(tracker, three)
    assert (found.problems, found.notes) == ([], [])
    assert [it.number for it in found.entries] == [1, 2, 3]
    roll_back(tracker, three, reason="worse", verify=loads, notices=nobody)
    assert aliases(tracker, three) == {"champion": "2", "previous": "1"}
    found = audit(tracker, three)
    assert found.problems == []
    assert [it.number for it in found.entries] == [1, 2, 3, 4]


def test_of_two_copies_that_are_both_begun_one_is_completed(
    tracker: Tracker, three: str, loads: Any, nobody: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = log.append

    def killed(tracker: Tracker, entry: Any) -> Any:
        append(tracker, entry)
        append(tracker, entry)
        raise KeyboardInterrupt

    with monkeypatch.context() as during:
        during.setattr(log, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            roll_back(tracker, three, reason="worse", verify=loads, notices=nobody)
    found = audit(tracker, three)
    assert found.problems == []
    assert "Entry 4 was begun" in found.notes[0]
    with pytest.raises(StageFailed, match="is version 2 now"):
        promote(tracker, three, "1", reason="x", force=True, verify=loads, notices=nobody)
    found = audit(tracker, three)
    assert (found.problems, found.notes) == ([], [])
    assert [it.number for it in found.entries] == [1, 2, 3, 4]


@pytest.mark.parametrize("sorts", ["before", "after"])
def test_a_copy_hides_no_change_of_the_entry_that_was_carried_out(
    tracker: Tracker, three: str, loads: Any, nobody: Any, sorts: str
) -> None:
    twin_of(tracker, three, 3, sorts=sorts)
    carried_out = next(it for it in runs_of(tracker, three) if it.number == 3 and it.done)
    value = {**json.loads(carried_out.entry.text), "actor": "mallory"}
    tracker.client.set_tag(carried_out.run_id, log.ENTRY_TAG, canonical(value))
    tracker.client.set_tag(carried_out.run_id, log.HASH_TAG, digest(value))
    assert audit(tracker, three).problems != []
    with pytest.raises(StageFailed, match="--accept"):
        roll_back(tracker, three, reason="night", verify=loads, notices=nobody)


@pytest.mark.parametrize("sorts", ["before", "after"])
def test_a_copy_does_not_stand_in_for_a_deleted_entry(
    tracker: Tracker, three: str, sorts: str
) -> None:
    twin_of(tracker, three, 2, sorts=sorts)
    run = next(it for it in runs_of(tracker, three) if it.number == 2)
    assert run.done
    tracker.client.delete_run(run.run_id)
    assert f"restore --run-id {run.run_id}" in audit(tracker, three).problems[0].told


@pytest.mark.parametrize("sorts", ["before", "after"])
def test_a_copy_that_was_carried_out_or_altered_is_named(
    tracker: Tracker, three: str, sorts: str
) -> None:
    twin = twin_of(tracker, three, 2, sorts=sorts)
    tracker.client.set_tag(twin, log.HASH_TAG, "0" * 64)
    assert audit(tracker, three).problems != []
    tracker.client.set_tag(twin, log.HASH_TAG, runs_of(tracker, three)[1].content_hash)
    assert audit(tracker, three).problems == []
    tracker.client.set_terminated(twin, status="FINISHED")
    assert "two entries of this number" in audit(tracker, three).problems[0].told


def test_a_log_that_was_accepted_with_a_copy_in_it_stays_accepted(
    tracker: Tracker, three: str, loads: Any, nobody: Any
) -> None:
    run_id = twin_of(tracker, three, 3, sorts="after")
    alter_newest(tracker, three)
    accept(tracker, three, reason="no backup", notices=nobody)
    assert audit(tracker, three).problems == []
    # Of the whole: it may not change, the copy neither.
    tracker.client.delete_tag(run_id, log.ENTRY_TAG)
    assert audit(tracker, three).problems != []


def test_nothing_is_written_behind_a_damaged_end(
    tracker: Tracker, three: str, loads: Any, nobody: Any, aliases: Any
) -> None:
    run = runs_of(tracker, three)[2]
    tracker.client.set_tag(run.run_id, log.ENTRY_TAG, "{")
    before = aliases(tracker, three)
    with pytest.raises(StageFailed, match=rf"cannot be read .*{run.run_id}"):
        roll_back(tracker, three, reason="x", verify=loads, notices=nobody)
    assert aliases(tracker, three) == before
    assert audit(tracker, three).problems[0].number == 3


def alter_newest(tracker: Tracker, name: str) -> None:
    run = runs_of(tracker, name)[-1]
    value = {**json.loads(run.entry.text), "actor": "mallory"}
    tracker.client.set_tag(run.run_id, log.ENTRY_TAG, canonical(value))
    tracker.client.set_tag(run.run_id, log.HASH_TAG, digest(value))


def alter_text_of_newest(tracker: Tracker, name: str) -> None:
    run = runs_of(tracker, name)[-1]
    value = {**json.loads(run.entry.text), "actor": "mallory"}
    tracker.client.set_tag(run.run_id, log.ENTRY_TAG, canonical(value))


def rename_experiment(tracker: Tracker, name: str) -> None:
    found = tracker.client.get_experiment_by_name(log.experiment_name(name))
    assert found is not None
    tracker.client.rename_experiment(found.experiment_id, f"{name} old")


def remove_newest(tracker: Tracker, name: str) -> None:
    # As `mlflow gc` leaves it.
    run = runs_of(tracker, name)[-1]
    tracker.client.delete_tag(run.run_id, log.ENTRY_TAG)
    tracker.client.delete_tag(run.run_id, log.HASH_TAG)


def forget_head(tracker: Tracker, name: str) -> None:
    tracker.client.delete_registered_model_tag(name, log.HEAD_TAG)


DAMAGES = [alter_newest, alter_text_of_newest, rename_experiment, remove_newest, forget_head]


@pytest.mark.parametrize("damage", DAMAGES)
def test_no_promotion_hides_a_damage_and_an_accepted_one_stays_on_record(
    tracker: Tracker, three: str, loads: Any, nobody: Any, aliases: Any, damage: Any
) -> None:
    damage(tracker, three)
    problems = audit(tracker, three).problems
    assert problems != []
    before = aliases(tracker, three)
    for move in (
        lambda: promote(
            tracker, three, "1", reason="night", force=True, verify=loads, notices=nobody
        ),
        lambda: roll_back(tracker, three, reason="night", verify=loads, notices=nobody),
    ):
        with pytest.raises(StageFailed, match=rf"loraline audit {three}` names .* --accept"):
            move()
    assert aliases(tracker, three) == before
    # The very same is wrong as before.
    assert audit(tracker, three).problems == problems
    entry = accept(tracker, three, reason="no backup", actor="ada", notices=nobody)
    assert entry.number == 4
    assert problems[0].told in entry.verification
    assert aliases(tracker, three) == before
    found = audit(tracker, three)
    assert found.problems == []
    assert "ada accepted it" in found.notes[0]
    assert problems[0].told in found.notes[0]
    promote(tracker, three, "1", reason="on with it", force=True, verify=loads, notices=nobody)
    found = audit(tracker, three)
    assert found.problems == []
    assert found.entries[-1].champion_to == "1"
    assert "ada accepted it" in found.notes[0]
    with pytest.raises(UserError, match="nothing to accept"):
        accept(tracker, three, reason="again", notices=nobody)


def test_what_was_accepted_may_not_change_any_more(
    tracker: Tracker, three: str, nobody: Any
) -> None:
    alter_newest(tracker, three)
    accept(tracker, three, reason="no backup", notices=nobody)
    run = runs_of(tracker, three)[0]
    value = {**json.loads(run.entry.text), "actor": "mallory"}
    tracker.client.set_tag(run.run_id, log.ENTRY_TAG, canonical(value))
    tracker.client.set_tag(run.run_id, log.HASH_TAG, digest(value))
    assert audit(tracker, three).problems[0].number == 1


def test_a_damage_can_only_be_accepted_with_a_reason(
    tracker: Tracker, three: str, nobody: Any
) -> None:
    alter_newest(tracker, three)
    with pytest.raises(UserError, match="reason"):
        accept(tracker, three, reason=" ", notices=nobody)


def test_the_command_accepts_a_damage_and_then_finds_nothing_wrong(
    own_tracker: Tracker,
    register: Any,
    loads: Any,
    nobody: Any,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from flows.commands import audit as command

    monkeypatch.setenv("LORALINE_HOME", str(own_tracker.home.root))
    monkeypatch.chdir(own_tracker.home.root)
    register(own_tracker, "a", 1)
    promote(own_tracker, "a", "1", reason="first", verify=loads, notices=nobody)
    forget_head(own_tracker, "a")
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    assert command.run(parser.parse_args(["a"])) == 1
    with pytest.raises(UserError, match="reason"):
        command.run(parser.parse_args(["a", "--accept"]))
    with pytest.raises(UserError, match="--accept"):
        command.run(parser.parse_args(["a", "--reason", "why"]))
    capfd.readouterr()
    accepting = parser.parse_args(["a", "--accept", "--reason", "lost in a move", "--json"])
    assert command.run(accepting) == 0
    answer = json.loads(capfd.readouterr().out)
    assert [it["kind"] for it in answer["entries"]] == ["promotion", "accepted"]
    assert "lost in a move" in answer["notes"][0]


def test_an_entry_from_before_a_field_was_added_keeps_its_hash(
    tracker: Tracker, three: str, loads: Any, nobody: Any
) -> None:
    run = runs_of(tracker, three)[-1]
    old = json.loads(run.entry.text)
    assert "accepts" not in old
    # ASCII, as entries were written once: the hash is the same.
    tracker.client.set_tag(run.run_id, log.ENTRY_TAG, json.dumps(old, sort_keys=True))
    roll_back(tracker, three, reason="zurück", verify=loads, notices=nobody)
    assert audit(tracker, three).problems == []


def test_a_move_by_hand_is_a_note_and_no_broken_chain(tracker: Tracker, three: str) -> None:
    tracker.client.set_registered_model_alias(three, "champion", "1")
    found = audit(tracker, three)
    assert found.problems == []
    assert "names version 1, the log version 3" in found.notes[0]

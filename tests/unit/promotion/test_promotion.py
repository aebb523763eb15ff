"""Promotion: the policy decides, the alias moves under a lock, and the log says who, when and why."""

import json
import re
import threading
from typing import Any

import pytest
from pydantic import ValidationError

from tasks.errors import GateRefused, StageFailed, UserError
from tasks.promotion.approval import Answer, carry_out_answer
from tasks.promotion.audit import audit
from tasks.promotion.entry import LONGEST_NAME, LONGEST_REASON
from tasks.promotion.promoting import promote
from tasks.promotion.settings import PromotionSettings
from tasks.promotion.verdict import verdict_of
from tasks.promotion.work import champion_version, decide, note_judgement
from tasks.registry import version_of
from tasks.tracking import Tracker


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


def test_without_a_gate_nobody_says_that_it_was_passed() -> None:
    for policy in ("automatic", "approval", "manual"):
        reason = decide(PromotionSettings(policy=policy), gated=False).reason
        assert "passed" not in reason
        assert reason.startswith("There is no gate")


def test_promotion_moves_champion_keeps_previous_and_says_who_when_and_why(
    tracker: Tracker, register: Any, loads: Any, nobody: Any, aliases: Any
) -> None:
    register(tracker, "moves", 2)
    assert champion_version(tracker, "moves") is None
    first = promote(tracker, "moves", "1", reason="first", verify=loads, notices=nobody)
    assert first.version.aliases == ["champion"]
    second = promote(
        tracker, "moves", "2", reason=" better \n", actor="ada", verify=loads, notices=nobody
    )
    assert second.version.aliases == ["champion"]
    assert aliases(tracker, "moves") == {"champion": "2", "previous": "1"}
    tags = tracker.client.get_model_version("moves", "2").tags
    assert tags["loraline.promoted_by"] == "ada"
    assert tags["loraline.promotion_reason"] == "better"
    assert tags["loraline.promoted_from"] == "1"
    assert tags["loraline.promoted_at"].startswith("20")
    entry = second.entry
    assert entry is not None
    assert entry.before == (first.entry and first.entry.hash)
    assert (entry.gate, entry.forced, entry.verified) == ("passed", False, True)
    assert entry.verification == "models:/moves/2 loads"
    assert entry.metrics == {"rougeL": 0.4, "loss": 1.5}
    found = audit(tracker, "moves")
    assert ([it.number for it in found.entries], found.problems, found.notes) == ([1, 2], [], [])


def test_the_log_is_readable_in_mlflow_s_own_table(
    tracker: Tracker, register: Any, loads: Any, nobody: Any
) -> None:
    register(tracker, "pages", 1)
    promote(tracker, "pages", "1", reason="first", actor="ada", verify=loads, notices=nobody)
    experiment = tracker.client.get_experiment_by_name("pages/promotions")
    assert experiment is not None
    (run,) = tracker.client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "#1 promotion: version 1"
    assert run.info.status == "FINISHED"
    params = run.data.params
    assert (params["champion"], params["by"], params["reason"]) == ("1", "ada", "first")
    assert "by ada: first" in run.data.tags["mlflow.note.content"]


def test_promoting_the_champion_again_changes_nothing(
    tracker: Tracker, register: Any, loads: Any, nobody: Any, aliases: Any
) -> None:
    register(tracker, "again", 2)
    promote(tracker, "again", "1", reason="first", verify=loads, notices=nobody)
    promote(tracker, "again", "2", reason="second", verify=loads, notices=nobody)
    third = promote(tracker, "again", "2", reason="third", verify=loads, notices=nobody)
    assert third.entry is None
    assert aliases(tracker, "again") == {"champion": "2", "previous": "1"}
    tags = tracker.client.get_model_version("again", "2").tags
    assert tags["loraline.promotion_reason"] == "second"
    assert len(audit(tracker, "again").entries) == 2


def test_a_version_that_the_gate_refused_needs_force_and_the_log_says_so(
    tracker: Tracker, register: Any, loads: Any, nobody: Any
) -> None:
    verdict = {"passed": False, "rules": [{"metric": "rougeL", "passed": False, "why": "too low"}]}
    register(
        tracker,
        "refused",
        1,
        loraline__gate="refused",
        loraline__gate_verdict=json.dumps(verdict),
    )
    with pytest.raises(GateRefused, match=r"(?s)refused by the gate.*rougeL: too low.*--force"):
        promote(tracker, "refused", "1", reason="I like it", verify=loads, notices=nobody)
    assert champion_version(tracker, "refused") is None
    assert audit(tracker, "refused").entries == []
    moved = promote(
        tracker, "refused", "1", reason="it is needed", force=True, verify=loads, notices=nobody
    )
    assert moved.entry is not None
    assert (moved.entry.forced, moved.entry.gate) == (True, "refused")


def test_a_version_without_a_verdict_needs_force(tracker: Tracker, loads: Any, nobody: Any) -> None:
    tracker.client.create_registered_model("unjudged")
    tracker.client.create_model_version("unjudged", source="mlflow-artifacts:/nowhere")
    with pytest.raises(GateRefused, match="bears no verdict"):
        promote(tracker, "unjudged", "1", reason="why not", verify=loads, notices=nobody)


def test_force_is_not_recorded_where_it_was_not_needed(
    tracker: Tracker, register: Any, loads: Any, nobody: Any
) -> None:
    register(tracker, "needless", 1)
    moved = promote(tracker, "needless", "1", reason="x", force=True, verify=loads, notices=nobody)
    assert moved.entry is not None
    assert not moved.entry.forced


def test_a_version_that_does_not_load_is_not_promoted_by_force_either(
    tracker: Tracker, register: Any, nobody: Any
) -> None:
    register(tracker, "broken", 1)

    def damaged(uri: str) -> str:
        raise StageFailed(f"{uri} is damaged")

    with pytest.raises(StageFailed, match="models:/broken/1 is damaged"):
        promote(tracker, "broken", "1", reason="x", force=True, verify=damaged, notices=nobody)
    assert champion_version(tracker, "broken") is None
    assert audit(tracker, "broken").entries == []


@pytest.mark.parametrize("reason", ["", " \n "])
def test_a_promotion_needs_a_reason(tracker: Tracker, reason: str, loads: Any, nobody: Any) -> None:
    with pytest.raises(UserError, match="--reason"):
        promote(tracker, "x", "1", reason=reason, verify=loads, notices=nobody)


def test_a_version_judged_against_a_champion_of_yesterday_is_not_promoted(
    tracker: Tracker, register: Any, loads: Any, nobody: Any
) -> None:
    register(tracker, "stale", 3)

    def go(version: str, **how: Any) -> Any:
        return promote(tracker, "stale", version, reason="x", verify=loads, notices=nobody, **how)

    go("1", instead_of=None)
    go("2", instead_of="1")
    with pytest.raises(StageFailed, match=r"judged against version 1, .* now version 2"):
        go("3", instead_of="1")
    with pytest.raises(StageFailed, match="judged against no champion"):
        go("3", instead_of=None)
    # What the run noted holds for a person's command, too.
    note_judgement(tracker, version_of(tracker, "stale", "3"), "1")
    with pytest.raises(StageFailed, match=r"judged against version 1, .* now version 2"):
        go("3")
    assert champion_version(tracker, "stale") == "2"
    assert "loraline.promoted_at" not in tracker.client.get_model_version("stale", "3").tags
    forced = go("3", force=True)
    assert forced.entry.forced
    assert forced.entry.judged_against == "1"


def test_of_two_promoters_at_once_one_wins_and_the_other_is_told(
    tracker: Tracker, register: Any, loads: Any, nobody: Any
) -> None:
    register(tracker, "race", 3, loraline__judged_against="1")
    promote(tracker, "race", "1", reason="first", force=True, verify=loads, notices=nobody)
    told: list[tuple[str, str]] = []
    both = threading.Barrier(2, timeout=60)

    def run(version: str) -> None:
        def meet(uri: str) -> str:
            # Both have read the same champion by now.
            both.wait()
            return uri

        try:
            promote(tracker, "race", version, reason="race", verify=meet, notices=nobody)
        except StageFailed as error:
            told.append((version, str(error)))

    threads = [threading.Thread(target=run, args=(version,)) for version in ("2", "3")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 1
    loser, words = told[0]
    winner = {"2": "3", "3": "2"}[loser]
    assert champion_version(tracker, "race") == winner
    assert "Somebody else was faster" in words
    assert f"is version {winner} now" in words
    assert [it.champion_to for it in audit(tracker, "race").entries] == ["1", winner]


def test_a_version_that_does_not_exist_is_not_promoted(
    tracker: Tracker, register: Any, loads: Any, nobody: Any
) -> None:
    register(tracker, "absent", 1)
    with pytest.raises(UserError, match="models:/absent/9 is not in the registry"):
        promote(tracker, "absent", "9", reason="typo", verify=loads, notices=nobody)
    assert champion_version(tracker, "absent") is None


def test_a_home_without_models_has_no_champion(tracker: Tracker) -> None:
    assert champion_version(tracker, "never-registered") is None


def test_a_champion_that_was_set_by_hand_is_written_down_before_the_next_promotion(
    tracker: Tracker, register: Any, loads: Any, nobody: Any, aliases: Any
) -> None:
    register(tracker, "hand", 3)
    promote(tracker, "hand", "1", reason="first", verify=loads, notices=nobody)
    tracker.client.set_registered_model_alias("hand", "champion", "2")
    promote(tracker, "hand", "3", reason="third", verify=loads, notices=nobody)
    found = audit(tracker, "hand")
    assert [(it.kind, it.champion_from, it.champion_to) for it in found.entries] == [
        ("promotion", None, "1"),
        ("observed", "1", "2"),
        ("promotion", "2", "3"),
    ]
    assert found.problems == []
    assert aliases(tracker, "hand") == {"champion": "3", "previous": "2"}


def test_the_verdict_s_table_shows_rules_numbers_and_reasons() -> None:
    rules = [
        {
            "metric": "rougeL",
            "against": "champion",
            "value": 0.41,
            "reference": 0.4,
            "gain": 0.01,
            "low": -0.01,
            "high": 0.03,
            "passed": False,
            "why": "not above 0 | really",
        }
    ]
    table = verdict_of(
        "a",
        "7",
        {
            "loraline.gate": "refused",
            "loraline.gate_verdict": json.dumps({"passed": False, "rules": rules}),
            "loraline.judged_against": "5",
            "loraline.metrics": '{"base": {"rougeL": 0.1}, "champion": null, "challenger": {"rougeL": 0.41}}',
        },
    ).table()
    assert "judged against version 5" in table
    assert (
        "| rougeL against champion | **failed** |  | 0.410 | 0.400 | +0.010 | -0.010 to +0.030 |"
        in table
    )
    assert "- rougeL against champion: not above 0 &#124; really" in table
    assert "| rougeL | 0.1 | 0.41 |" in table
    own = {"rule": "rougeL: gain over champion > 0", "metric": "rougeL", "passed": True, "why": ""}
    verdict = verdict_of(
        "a", "7", {"loraline.gate": "passed", "loraline.gate_verdict": json.dumps({"rules": [own]})}
    )
    assert "| rougeL\\: gain over champion &gt; 0 |" in verdict.table()


def test_no_text_of_a_row_or_a_metric_is_markup_in_the_verdict_s_table() -> None:
    label = "source=<img src=x onerror=alert(1)> ![x](http://evil.example/p.png)"
    rules = [{"rule": f"rougeL in {label}", "passed": True, "why": f"the weakest, {label}: fine"}]
    rules.append({"metric": "rougeL", "slice": label, "passed": False, "why": ""})
    table = verdict_of(
        "a",
        "7",
        {
            "loraline.gate": "passed",
            "loraline.gate_verdict": json.dumps({"passed": True, "rules": rules}),
            "loraline.metrics": json.dumps({"challenger": {label: 0.4}}),
        },
    ).table()
    assert "<img" not in table
    assert not re.search(r"(?<!\\)[\[\]]", table)
    # A reason stands below the table, behind its rule's name.
    assert table.count("&lt;img") == 5


def test_a_version_without_a_word_on_its_champion_does_not_replace_one(
    tracker: Tracker, register: Any, loads: Any, nobody: Any
) -> None:
    register(tracker, "unnoted", 2)
    tracker.client.delete_model_version_tag("unnoted", "1", "loraline.judged_against")
    tracker.client.delete_model_version_tag("unnoted", "2", "loraline.judged_against")
    # There is none that it could have been judged against.
    promote(tracker, "unnoted", "1", reason="first", verify=loads, notices=nobody)
    with pytest.raises(StageFailed, match="not recorded which champion version 2"):
        promote(tracker, "unnoted", "2", reason="second", verify=loads, notices=nobody)
    answer = Answer("promote", "fine", "ada")
    settled = carry_out_answer(
        tracker, "unnoted", "2", answer, verify=loads, notices=nobody, flow_run=None
    )
    assert settled.outcome == "Refused"
    assert champion_version(tracker, "unnoted") == "1"


@pytest.mark.parametrize("letter", ["я", "語", "x"])
def test_a_reason_is_as_long_in_every_language(
    tracker: Tracker, register: Any, loads: Any, nobody: Any, letter: str
) -> None:
    name = f"long-{ord(letter)}"
    register(tracker, name, 1)
    reason = letter * LONGEST_REASON
    promote(tracker, name, "1", reason=reason, verify=loads, notices=nobody)
    (entry,) = audit(tracker, name).entries
    assert entry.reason == reason
    assert audit(tracker, name).problems == []


def test_a_reason_holds_nothing_that_a_terminal_would_obey(
    tracker: Tracker, register: Any, loads: Any, nobody: Any
) -> None:
    register(tracker, "escape", 1)
    promote(tracker, "escape", "1", reason="a\x1b[2Jb\udc80", verify=loads, notices=nobody)
    assert audit(tracker, "escape").entries[0].reason == "a [2Jb"


def test_an_answer_that_cannot_be_carried_out_is_kept_on_the_version(
    tracker: Tracker, register: Any, loads: Any, nobody: Any
) -> None:
    register(tracker, "kept", 1)
    answer = Answer("promote", "x" * (LONGEST_REASON + 1), "ada")
    with pytest.raises(UserError, match="1,501 characters"):
        carry_out_answer(tracker, "kept", "1", answer, verify=loads, notices=nobody, flow_run=None)
    record = json.loads(tracker.client.get_model_version("kept", "1").tags["loraline.approval"])
    assert (record["outcome"], record["by"]) == ("approved, and not promoted", "ada")


def test_the_form_takes_no_answer_that_the_log_would_not() -> None:
    from flows.approve import Approval

    Approval(decision="promote", reason="x" * LONGEST_REASON, name="ada")
    for reason, name in (("x" * (LONGEST_REASON + 1), "ada"), ("x", "a" * (LONGEST_NAME + 1))):
        with pytest.raises(ValidationError, match="at most"):
            Approval(decision="promote", reason=reason, name=name)

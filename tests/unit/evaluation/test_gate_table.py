"""The verdict that a person reads: in Markdown, in the terminal, and from older reports."""

import io
from typing import Any

import numpy as np
from rich.console import Console

from flows.summary import print_summary
from tasks.artifacts import Outcome
from tasks.evaluation.gate import judge
from tasks.evaluation.gate_evidence import Evidence, RowSet
from tasks.evaluation.gate_settings import GateRule
from tasks.evaluation.gate_table import SLICES_SHOWN, gate_lines, gate_markdown


def scores(values: Any) -> Any:
    return {"rougeL": np.column_stack([values, np.ones(len(values))])}


def verdict(*rules: GateRule, slices: dict[str, list[str]] | None = None) -> Any:
    noise = np.random.default_rng(0).normal(size=(2, 80))
    rows = RowSet(
        {
            "base": scores(0.2 + 0.05 * noise[0]),
            "champion": scores(0.3 + 0.05 * noise[0]),
            "challenger": scores(0.35 + 0.05 * noise[1]),
        },
        slices or {"source": ["a|b"] * 40 + ["<web>"] * 30 + ["rare"] * 10},
    )
    return judge(rules, Evidence(rows, {"rougeL": 1}))


RULES = (
    GateRule(metric="rougeL", min_gain=0.0),
    GateRule(metric="rougeL", min=0.9),
    GateRule(metric="rougeL", slice="*", max_drop=0.02),
)


def test_each_rule_has_its_numbers_its_interval_its_verdict_and_its_reason() -> None:
    first, second, *_ = gate_lines(verdict(*RULES))
    assert first.rule == "rougeL: gain over the champion above 0"
    assert (first.rows, first.adapter, first.reference) == ("80", "0.346", "0.306 (champion)")
    assert first.gain == "+0.040"
    low, high = first.interval.split(" to ")
    assert 0 < float(low) < float(first.gain) < float(high)
    assert first.verdict == "passed"
    assert "95 % interval" in first.why
    assert second.verdict == "failed"
    assert "below the least allowed, 0.9" in second.why
    assert second.reference == second.gain == second.interval == ""


def test_slices_stand_below_their_rule_and_those_with_too_few_rows_too() -> None:
    lines = gate_lines(verdict(*RULES))[2:]
    assert lines[0].rule == "rougeL: drop against the champion at most 0.02, in every slice"
    assert sorted(line.rule for line in lines[1:]) == [
        "  source=<web>",
        "  source=a|b",
        "  source=rare",
    ]
    assert (lines[-1].verdict, lines[-1].rows, lines[-1].why) == (
        "not judged",
        "10",
        "too few rows",
    )


def test_many_slices_are_counted_and_failed_ones_are_never_hidden_behind_good_ones() -> None:
    labels = [f"s{n % 20}" for n in range(80)]
    found = verdict(
        GateRule(metric="rougeL", slice="*", max_drop=0.0, min_rows=1), slices={"s": labels}
    )
    entry = found["rules"][0]
    failed = [one["slice"] for one in entry["slices"] if not one["passed"]]
    assert 0 < len(failed) < SLICES_SHOWN
    lines = gate_lines(found)
    assert [line.rule.strip() for line in lines if line.passed is False][1:] == sorted(
        failed,
        key=lambda name: next(one["gain"] for one in entry["slices"] if one["slice"] == name),
    )
    assert lines[-1].rule == "  8 more slices"


def test_the_markdown_table_has_one_line_each_and_no_label_breaks_it() -> None:
    text = gate_markdown(verdict(*RULES))
    shown, _, reasons = text.partition("\n\n")
    lines = shown.splitlines()
    judged = gate_lines(verdict(*RULES))
    assert len(lines) == 2 + len(judged)
    assert {line.count("|") for line in lines} == {8}
    # A reason is a sentence, and stands below: in the table it would push the verdict off the page.
    assert len(reasons.splitlines()) == sum(bool(line.why) for line in judged) > 0
    assert "**failed**" in text
    assert "&lt;web&gt;" in text
    assert "a&#124;b" in text


def test_a_verdict_of_an_older_report_is_shown_as_far_as_it_goes() -> None:
    old = {
        "passed": False,
        "rules": [
            {"metric": "chrf", "passed": False, "why": "0.1 is below 0.2", "min": 0.2, "value": 0.1}
        ],
    }
    (line,) = gate_lines(old)
    assert (line.rule, line.adapter, line.verdict) == ("chrf", "0.100", "failed")
    assert gate_lines({"passed": True}) == []


def test_the_terminal_shows_the_table_and_the_reasons_of_what_failed() -> None:
    gate = verdict(*RULES)
    console = Console(file=io.StringIO(), width=150)
    print_summary(Outcome(outcome="refused", reason="the gate", gate=gate), console)
    text = str(console.file.getvalue())  # type: ignore[attr-defined]
    assert "Gate: refused" in text
    for line in gate_lines(gate):
        assert line.rule.strip() in text
        assert line.interval in text
    assert "✗ rougeL: at least 0.9: 0.3459" in text

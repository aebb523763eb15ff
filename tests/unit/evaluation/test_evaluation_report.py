"""What people read: escaping, the choice of samples, the sentences."""

from typing import Any

import pytest

from tasks.evaluation.answerers import FIRST_SENTENCE, NAME, first_sentence, trivial_answers
from tasks.evaluation.report import report, summary
from tasks.markdown import cell, code_block
from tasks.samples import Sample


def facts(**changed: Any) -> dict[str, Any]:
    values = {"rougeL": 0.2, "chrf": 0.3, "loss": 3.0, "mean_length": 12.0}
    found = {"mean": 0.1, "low": 0.05, "high": 0.15}
    worse = {"mean": -0.1, "low": -0.2, "high": -0.01}
    unclear = {"mean": 0.0, "low": -0.1, "high": 0.1}
    return {
        "rows": 5,
        "pairs": 0,
        "bootstrap_samples": 1000,
        "metrics": {"base": values, "champion": None, "challenger": values},
        "differences": {
            "base": {"rougeL": found, "chrf": unclear, "loss": worse, "mean_length": found},
            "champion": None,
        },
        "answerers": {
            FIRST_SENTENCE: {"rows": 5, "metrics": values, "differences": {"rougeL": found}},
            NAME: {
                "rows": 4,
                "metrics": values,
                "differences": {"rougeL": worse, "chrf": unclear},
            },
        },
        "not_finite": [],
        "same_answers": {"base": 0},
        "gate": None,
        "seen_by_champion": 0,
        "answers": {
            "max_new_tokens": 64,
            "batch_size": 16,
            "dtype": "float32",
            "device": "cpu",
            "quantization": "none",
            "bad_answers": 0,
            "shortened_rows": 0,
        },
        **changed,
    }


def test_the_report_says_in_which_metrics_the_adapter_is_better() -> None:
    text = report(facts(), [])
    assert "Against the base the adapter is better in rougeL, loss and worse in no metric." in text
    assert "“base, first sentence” it wins in rougeL." in text
    assert "“name as words” it loses in rougeL and shows no clear difference in chrf." in text
    assert "| loss (lower is better) | 3.000 | 3.000 | -0.100 (-0.200 to -0.010) better |" in text
    assert "| mean_length | 12.000 | 12.000 | +0.100 (+0.050 to +0.150) |" in text
    assert "Base and adapter answered the same 5 test rows" in text
    assert "champion" not in text


def test_slices_the_general_set_and_empty_answers_stand_in_the_report() -> None:
    worse = {"mean": -0.1, "low": -0.2, "high": -0.01}
    measured = facts()
    text = report(
        facts(
            directions={"rougeL": 1, "custom/edits": -1},
            differences={"base": {"custom/edits": worse}, "champion": None},
            metrics={**measured["metrics"], "challenger": {"custom/edits": 0.5}},
            empty_answers={"base": 2, "challenger": 0},
            notes=["ROUGE was counted by rouge-score <b>"],
            missing_verdicts=3,
            slices={
                "source": {
                    "a|b.py": {"rows": 4, "differences": {"base": {"rougeL": worse}}},
                    "c.py": {"rows": 9, "differences": {"base": {"rougeL": worse}}},
                }
            },
            suites={
                "retention": {
                    "rows": 7,
                    "metrics": measured["metrics"],
                    "differences": {"base": {"rougeL": worse}, "champion": None},
                    "empty_answers": {"challenger": 1},
                    "notes": [],
                }
            },
            answers={**measured["answers"], "lm_eval": {"base": {"arc_easy": {"acc": 0.5}}}},
        ),
        [],
    )
    assert "Empty answers, which score 0: base 2." in text
    assert "Empty answers, which score 0: adapter 1." in text
    assert "The judge gave no usable verdict on 3 rows" in text
    assert "ROUGE was counted by rouge-score &lt;b&gt;" in text
    # A metric of the user's own of which less is better.
    assert "Against the base the adapter is better in custom/edits" in text
    assert "| custom/edits (lower is better) |" in text
    assert text.index("| c.py | 9 | -0.100 (-0.200 to -0.010) worse |") < text.index(
        "| a&#124;b.py |"
    )
    assert "The same on 7 rows of the frozen general set `retention`:" in text
    assert r"| arc\_easy | acc | 0.500 |" in text


def test_the_report_names_a_refusal_and_what_could_not_be_computed() -> None:
    gate = {
        "passed": False,
        "rules": [{"metric": "loss", "max": 1.0, "passed": False, "why": "3 is above 1"}],
    }
    text = summary(facts(gate=gate, not_finite=["base.loss"], same_answers={"base": 5}), [])
    assert "The gate refuses it: 1 of 1 rules fail." in text
    assert "| loss | **failed** |" in text
    assert "- loss: 3 is above 1" in text
    assert "Not a finite number, and left out: base.loss" in text
    assert "equals the base's, character by character" in text


def test_model_text_cannot_break_the_tables() -> None:
    nasty = "a | b\n# <script>alert(1)</script> [x](http://y) `code` *bold*"
    text = cell(nasty, 500)
    assert "\n" not in text
    assert "|" not in text
    assert "<" not in text
    assert r"\[x\](http\:" in text
    assert "↵" in text
    assert cell(" \n", 10) == "*(empty)*"
    assert cell("x" * 50, 10) == "x" * 10 + " …"


def test_a_prompt_cannot_leave_its_code_block() -> None:
    block = code_block("before\n````\nafter", 100)
    assert block.startswith("`````text\n")
    assert block.endswith("\n`````")


def test_without_samples_no_text_of_the_data_is_in_the_report() -> None:
    sample = Sample(
        kind="gain",
        id="r0",
        prompt="the prompt",
        reference="secret",
        label=None,
        answers={"base": "secret"},
        scores={"base": 0.1},
        gain=None,
    )
    assert "secret" in report(facts(), [sample])
    assert "Sample answers" not in report(facts(), [])


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("Open a file. Then close it.", "Open a file."),
        ("Use x.y for this! And more", "Use x.y for this!"),
        ("One line\nanother.", "One line"),
        ("\n  Leading. Rest", "Leading."),
        ("no end", "no end"),
        ("", ""),
        (".", "."),
    ],
)
def test_the_first_sentence(text: str, first: str) -> None:
    assert first_sentence(text) == first


def test_names_are_answers_only_where_there_are_labels() -> None:
    assert set(trivial_answers(["a", "b"], [None, None])) == {FIRST_SENTENCE}
    assert trivial_answers(["a", "b"], [None, "x y"])[NAME] == [None, "x y"]

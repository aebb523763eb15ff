"""Preference accuracy: for each model the share of held-out pairs whose better answer it finds likelier."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tasks.artifacts import Adapter, Tokens
from tasks.base import Base
from tasks.errors import UserError
from tasks.evaluation import score_worker, work, worker
from tasks.evaluation.job import AnswerJob, AnswerResult, ScoreJob, ScoreResult
from tasks.evaluation.settings import PREFERENCE_METRICS, EvaluationSettings

Evaluate = Callable[[list[dict[str, Any]]], tuple[AnswerResult, ScoreResult]]


@pytest.fixture
def rows(chat_tokens: Tokens, tiny_base: Path) -> list[dict[str, Any]]:
    """The nine test rows, each with the next one's answer as its worse one."""
    given = pq.read_table(chat_tokens.path / "test.parquet").to_pylist()
    answers = [row["input_ids"][row["prompt_length"] :] for row in given]
    return [
        row | {"rejected_ids": answer, "desirable": None}
        for row, answer in zip(given, answers[1:] + answers[:1], strict=True)
    ]


@pytest.fixture
def evaluated(
    tmp_path: Path, tiny: Base, challenger: Adapter, champion: Adapter, stops: list[int]
) -> Evaluate:
    def run(rows: list[dict[str, Any]]) -> tuple[AnswerResult, ScoreResult]:
        fields = pa.Table.from_pylist(rows).schema
        for name, kind in (("rejected_ids", pa.list_(pa.int32())), ("desirable", pa.bool_())):
            if (at := fields.get_field_index(name)) >= 0:
                fields = fields.set(at, pa.field(name, kind))
        table = pa.Table.from_pylist(rows, fields)
        pq.write_table(table, tmp_path / "test.parquet")
        job = AnswerJob(
            base=tiny.path,
            adapters={"champion": champion.folder, "challenger": challenger.folder},
            tokenizer=challenger.folder / "tokenizer.json",
            rows=tmp_path / "test.parquet",
            stop_tokens=stops,
            max_new_tokens=4,
            batch_size=4,
            dtype="auto",
            quantization="none",
            predictions=tmp_path / "predictions.parquet",
            result=tmp_path / "answers.json",
        )
        worker.answer(job)
        score_worker.score(
            ScoreJob(
                predictions=job.predictions,
                models=["base", "champion", "challenger"],
                bootstrap_samples=200,
                confidences=[0.9],
                scores=tmp_path / "scores.parquet",
                result=tmp_path / "scores.json",
            )
        )
        return (
            AnswerResult.model_validate_json(job.result.read_text()),
            ScoreResult.model_validate_json((tmp_path / "scores.json").read_text()),
        )

    return run


def test_each_models_accuracy_is_that_of_its_own_log_probabilities(
    evaluated: Evaluate, rows: list[dict[str, Any]], tiny: Base, challenger: Adapter
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    _, scores = evaluated(rows)
    base = AutoModelForCausalLM.from_pretrained(tiny.path, dtype=torch.float32).eval()

    def shares(model: Any) -> dict[str, float]:
        whole = per_token = 0
        for row in rows:
            prompt = row["input_ids"][: row["prompt_length"]]
            logps = []
            for answer in (row["input_ids"][row["prompt_length"] :], row["rejected_ids"]):
                with torch.no_grad():
                    logits = model(input_ids=torch.tensor([prompt + answer])).logits[0]
                chosen = logits.log_softmax(-1)[len(prompt) - 1 : -1]
                own = chosen[torch.arange(len(answer)), torch.tensor(answer)]
                logps.append((float(own.sum()), float(own.mean())))
            whole += logps[0][0] > logps[1][0]
            per_token += logps[0][1] > logps[1][1]
        names = PREFERENCE_METRICS
        return dict(zip(names, (whole / len(rows), per_token / len(rows)), strict=True))

    for model, expected in (
        ("base", shares(base)),
        ("challenger", shares(PeftModel.from_pretrained(base, str(challenger.folder)).eval())),
    ):
        assert {name: scores.metrics[model][name] for name in PREFERENCE_METRICS} == expected
    assert scores.pairs == len(rows)
    for model in ("base", "champion"):
        for name in PREFERENCE_METRICS:
            assert "0.9" in scores.intervals[model][name]
            assert scores.differences[model][name].mean == pytest.approx(
                scores.metrics["challenger"][name] - scores.metrics[model][name]
            )


def test_bad_answers_measure_nothing_and_rows_that_are_no_pair_leave_the_accuracy_alone(
    evaluated: Evaluate, rows: list[dict[str, Any]]
) -> None:
    _, pairs_alone = evaluated(rows[:5])
    judged = [
        rows[5] | {"rejected_ids": None, "desirable": True},
        rows[6] | {"rejected_ids": None, "desirable": False},
    ]
    answers, scores = evaluated(rows[:5] + judged)
    assert (answers.rows, answers.bad_answers, scores.rows, scores.pairs) == (6, 1, 6, 5)
    for model, values in scores.metrics.items():
        for name in PREFERENCE_METRICS:
            assert values[name] == pairs_alone.metrics[model][name]
    assert scores.metrics["base"]["loss"] != pairs_alone.metrics["base"]["loss"]


def test_rows_without_a_pair_have_no_preference_accuracy(
    evaluated: Evaluate, rows: list[dict[str, Any]]
) -> None:
    _, scores = evaluated([row | {"rejected_ids": None, "desirable": True} for row in rows[:3]])
    assert scores.pairs == 0
    assert not set(PREFERENCE_METRICS) & set(scores.metrics["challenger"])


def test_bad_answers_alone_are_refused_in_words(
    evaluated: Evaluate, rows: list[dict[str, Any]]
) -> None:
    with pytest.raises(UserError, match="None of the 2 test rows holds a good answer"):
        evaluated([row | {"rejected_ids": None, "desirable": False} for row in rows[:2]])


def test_the_gate_and_the_report_speak_of_it(
    evaluated: Evaluate, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    bad = rows[8] | {"rejected_ids": None, "desirable": False}
    answers, scores = evaluated([*rows[:8], bad])
    settings = EvaluationSettings.model_validate(
        {
            "sample_answers": 0,
            "gate": [
                {"metric": "preference_accuracy", "min": 0.0},
                {"metric": "preference_accuracy", "against": "base", "min_gain": 1.0},
            ],
        }
    )
    work.write_output(tmp_path, settings, answers, scores)
    facts = json.loads((tmp_path / "metrics.json").read_text())
    assert [rule["passed"] for rule in facts["gate"]["rules"]] == [True, False]
    report = (tmp_path / "report.md").read_text()
    assert "| preference_accuracy | " in report
    assert "the share of the 8 pairs" in report
    assert "1 more test rows hold answers that were judged bad" in report

"""The gate on real adapters of a tiny model, through the whole evaluation: which of them may replace the champion."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tasks.artifacts import Adapter, Tokens
from tasks.base import Base
from tasks.evaluation import score_worker, scoring, worker
from tasks.evaluation.job import AnswerJob, AnswerResult, Model, ScoreJob, ScoreResult
from tasks.evaluation.settings import EvaluationSettings

Train = Callable[..., Path]
Judge = Callable[..., dict[str, Any]]

RULE = {"metric": "loss", "against": "champion", "min_gain": 0.0, "min_rows": 9}


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, chat_tokens: Tokens) -> Train:
    """Train an adapter on some of the test rows themselves: the surest way to a better one."""
    table = pq.read_table(chat_tokens.path / "test.parquet").to_pylist()

    def trained(steps: int, rows: Sequence[int] = range(9), start: Path | None = None) -> Path:
        import torch
        from peft import LoraConfig, PeftModel, get_peft_model
        from transformers import AutoModelForCausalLM

        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
        if start is None:
            model: Any = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear"))
        else:
            model = PeftModel.from_pretrained(base, str(start), is_trainable=True)
        optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=5e-3)
        for _ in range(steps):
            for row in rows:
                ids = torch.tensor([table[row]["input_ids"]])
                labels = torch.tensor([table[row]["labels"]])
                model(input_ids=ids, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        folder = tmp_path_factory.mktemp("trained")
        model.save_pretrained(str(folder))
        for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
            shutil.copy(tiny_base / name, folder / name)
        return folder

    return trained


@pytest.fixture(scope="module")
def incumbent(train: Train) -> Path:
    return train(8)


@pytest.fixture
def judged(tmp_path: Path, tiny: Base, chat_tokens: Tokens, stops: list[int]) -> Judge:
    """The verdict on a challenger, from the files that the evaluation writes."""

    def run(challenger: Path, champion: Path | None, *rules: dict[str, Any]) -> dict[str, Any]:
        folder = tmp_path / f"judged-{challenger.name}"
        folder.mkdir()
        adapters: dict[Model, Path] = {"challenger": challenger}
        if champion is not None:
            adapters = {"champion": champion, **adapters}
        job = AnswerJob(
            base=tiny.path,
            adapters=adapters,
            tokenizer=challenger / "tokenizer.json",
            rows=chat_tokens.path / "test.parquet",
            stop_tokens=stops,
            max_new_tokens=4,
            batch_size=9,
            dtype="auto",
            quantization="none",
            predictions=folder / scoring.TEST,
            result=folder / "answers.json",
        )
        worker.answer(job)
        answers = AnswerResult.model_validate_json(job.result.read_text(encoding="utf-8"))
        models: list[Model] = ["base", *adapters]
        if answers.champion_problem is not None:
            models.remove("champion")
        score_worker.score(
            ScoreJob(
                predictions=job.predictions,
                models=models,
                bootstrap_samples=200,
                confidences=[],
                scores=scoring.scores_path(folder, scoring.TEST),
                result=folder / "scores.json",
            )
        )
        scores = ScoreResult.model_validate_json((folder / "scores.json").read_text())
        settings = EvaluationSettings.model_validate({"gate": list(rules)})
        scoring.write_output(folder, settings, answers, scores)
        facts = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        gate: dict[str, Any] = facts["gate"]
        report = (folder / "report.md").read_text(encoding="utf-8")
        return gate | {"report": report, "metrics": facts["metrics"]}

    return run


def test_a_truly_better_adapter_replaces_the_champion(
    judged: Judge, train: Train, incumbent: Path
) -> None:
    for test in ("bootstrap", "permutation"):
        found = judged(train(40, start=incumbent), incumbent, RULE | {"test": test})
        assert found["passed"], found["rules"]
        assert found["rules"][0]["gain"] > 0.1


def test_a_bad_adapter_does_not(judged: Judge, challenger: Adapter, incumbent: Path) -> None:
    found = judged(challenger.folder, incumbent, RULE)
    assert not found["passed"]
    assert found["rules"][0]["gain"] < 0
    assert found["rules"][0]["high"] < 0


def test_an_equal_adapter_keeps_the_champion_whatever_is_tolerated(
    judged: Judge, incumbent: Path, tmp_path: Path
) -> None:
    twin = Path(shutil.copytree(incumbent, tmp_path / "twin"))
    found = judged(twin, incumbent, RULE | {"min_gain": -1.0}, {"metric": "stop_rate", "min": 0.0})
    assert [rule["passed"] for rule in found["rules"]] == [True, True, False]
    assert not found["passed"]
    assert found["rules"][0]["gain"] == 0
    assert "a tie keeps the champion" in found["rules"][-1]["why"]
    assert "a tie keeps the champion" in found["report"]


def test_one_that_is_better_by_one_row_alone_is_noise(
    judged: Judge, train: Train, incumbent: Path
) -> None:
    found = judged(train(60, rows=[3], start=incumbent), incumbent, RULE)
    rule = found["rules"][0]
    assert rule["gain"] > 0, "on the mean it is better"
    assert not found["passed"]
    assert rule["low"] < 0 < rule["high"]


def test_a_champion_that_does_not_fit_refuses_and_spoils_nobody_elses_numbers(
    judged: Judge, train: Train, incumbent: Path, tmp_path: Path
) -> None:
    odd = Path(shutil.copytree(incumbent, tmp_path / "odd"))
    settings = json.loads((odd / "adapter_config.json").read_text(encoding="utf-8"))
    (odd / "adapter_config.json").write_text(json.dumps(settings | {"r": 2}), encoding="utf-8")
    better = train(40, start=incumbent)
    found = judged(better, odd, RULE, {"metric": "loss", "max": 100.0})
    assert [rule["passed"] for rule in found["rules"]] == [False, True, False]
    assert not found["passed"]
    for rule in (found["rules"][0], found["rules"][-1]):
        assert "The champion adapter" in rule["why"]
        assert "does not fit the base model" in rule["why"]
    assert "it could not be scored" in found["report"]
    shutil.rmtree(tmp_path / f"judged-{better.name}")
    alone = judged(better, None, RULE)
    assert alone["passed"]
    assert alone["rules"][0]["judged_against"] == "base"
    assert found["metrics"] == alone["metrics"]


def test_a_truncated_champion_refuses_too(judged: Judge, incumbent: Path, tmp_path: Path) -> None:
    torn = Path(shutil.copytree(incumbent, tmp_path / "torn"))
    weights = torn / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    found = judged(incumbent, torn, {"metric": "loss", "max": 100.0})
    assert not found["passed"]
    assert "does not fit the base model" in found["rules"][-1]["why"]

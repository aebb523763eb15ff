"""A run to report on: answers of three models, scored by the real scorer, beside the other stages' files."""

import json
import math
import random
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.artifacts import Outcome, StageTiming
from tasks.evaluation import score_worker, scoring
from tasks.evaluation.job import AnswerResult, Model, ScoreJob, ScoreResult
from tasks.evaluation.settings import EvaluationSettings
from tasks.report.run import MadeFrom, ReportedRun

MODELS: list[Model] = ["base", "champion", "challenger"]
NASTY = "<script>alert(1)</script>\"'><img src=http://127.0.0.1:9/x.png onerror=alert(2)>"
WORDS = "return the parsed value of each header as one string and close file when done else raise".split()  # noqa: SIM905
SETTINGS = {
    "sample_answers": 20,
    "bootstrap_samples": 300,
    "slices": ["length", "source"],
    "retention": "general.jsonl",
    "gate_correction": "holm",
    "gate": [
        {"metric": "rougeL", "against": "champion", "min_gain": 0.0, "confidence": 0.95},
        {"metric": "loss", "against": "champion", "min_gain": -0.01},
        {"metric": "stop_rate", "min": 0.95},
        {"metric": "rougeL", "slice": "*", "max_drop": 0.02, "min_rows": 10},
        {"suite": "retention", "against": "base", "max_drop": 0.02},
    ],
}


def answered(rows: int, seed: int, skill: dict[Model, float]) -> list[dict[str, Any]]:
    """Predictions of `rows` rows; a model of skill 1 repeats the reference."""
    dice = random.Random(seed)
    found = []
    for n in range(rows):
        words = dice.choices(WORDS, k=dice.randint(6, 24))
        reference = " ".join(words).capitalize() + "."
        row: dict[str, Any] = {
            "id": f"email/parser.py:{n}",
            "prompt": f"<|user|>\nWrite the docstring of function number {n}.\n\ndef f{n}(message, policy):\n"
            "    ...<|end|>\n<|assistant|>\n",
            "reference": reference,
            "label": f"f{n}" if n % 3 else None,
            "prompt_tokens": 40 + n * 3,
            "trained_tokens": len(words) + 2,
        }
        for model, how in skill.items():
            worse = 0.35 if model == "challenger" and n % 4 == 3 else 0.0
            kept = [w if dice.random() < how - worse else dice.choice(WORDS) for w in words]
            row |= {
                f"{model}_answer": " ".join(kept),
                f"{model}_stopped": dice.random() < 0.9 + how / 10,
                f"{model}_tokens": len(kept) + 1,
                f"{model}_nll": (2.4 - how) * row["trained_tokens"] + dice.random(),
                f"{model}_correct": int(how * row["trained_tokens"]),
            }
        found.append(row)
    return found


def evaluation_folder(
    folder: Path,
    rows: list[dict[str, Any]],
    *,
    settings: dict[str, Any],
    models: list[Model],
    sources: list[str] | None = None,
    retention: list[dict[str, Any]] | None = None,
    lm_eval: dict[str, Any] | None = None,
) -> Path:
    """An evaluation's output, as the stage itself writes it."""
    folder.mkdir(parents=True)
    chosen = EvaluationSettings.model_validate(settings)
    slices = None
    if sources is not None:
        slices = folder / "slices.parquet"
        lengths = [
            "1-128 tokens" if row["prompt_tokens"] <= 128 else "129-512 tokens" for row in rows
        ]
        pq.write_table(pa.table({"length": lengths, "source": sources}), slices)
    scores: dict[str, ScoreResult] = {}
    for name, some in (("predictions.parquet", rows), ("retention.parquet", retention)):
        if some is None:
            continue
        pq.write_table(pa.Table.from_pylist(some), folder / name)
        job = ScoreJob(
            predictions=folder / name,
            models=models,
            bootstrap_samples=chosen.bootstrap_samples,
            confidences=[0.95],
            scores=scoring.scores_path(folder, name),
            result=folder / f"{name}.json",
            slices=slices if name == "predictions.parquet" else None,
        )
        score_worker.score(job)
        scores[name] = ScoreResult.model_validate_json(job.result.read_text(encoding="utf-8"))
    answers = AnswerResult(
        rows=len(rows),
        device="cuda",
        dtype="bfloat16",
        quantization="none",
        batch_size=16,
        max_new_tokens=64,
        stop_tokens=[7],
        shortened_rows=0,
        seconds={model: 31.0 + n for n, model in enumerate(models)},
        generated_tokens={model: 2400 + n for n, model in enumerate(models)},
        ended_with={},
        versions={"torch": "2.13.0"},
        prompts_sha256="ab" * 32,
        lm_eval=lm_eval,
    )
    scoring.write_output(
        folder,
        chosen,
        answers,
        scores["predictions.parquet"],
        retention=scores.get("retention.parquet"),
    )
    return folder


@pytest.fixture(scope="session")
def full_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`evaluation`, `training`, `dataset`, `tokenization` of a run with everything."""
    root = tmp_path_factory.mktemp("run")
    rows = answered(96, 1, {"base": 0.25, "champion": 0.55, "challenger": 0.75})
    evaluation_folder(
        root / "evaluation",
        rows,
        settings=SETTINGS,
        models=MODELS,
        sources=[
            ("email/parser.py", "asyncio/streams.py", "json/decoder.py")[n % 3] for n in range(96)
        ],
        retention=answered(40, 2, {"base": 0.6, "champion": 0.58, "challenger": 0.55}),
        lm_eval={m: {"arc_easy": {"acc": 0.5 + n / 100}} for n, m in enumerate(MODELS)},
    )
    for stage in ("training", "dataset", "tokenization"):
        (root / stage).mkdir()
    dice = random.Random(3)
    history = [
        {
            "step": step,
            "loss": 0.9 + 3.2 * math.exp(-step / 60) + dice.gauss(0, 0.05),
            "learning_rate": 2e-4 * min(step / 20, (300 - step) / 280),
            "grad_norm": 1.0,
            **({"eval_loss": 1.0 + 3.1 * math.exp(-step / 60)} if step % 50 == 0 else {}),
        }
        for step in range(1, 300)
    ]
    (root / "training" / "history.jsonl").write_text(
        "".join(json.dumps(entry) + "\n" for entry in history)
    )
    result = {
        "adapter_sha256": "cd" * 32,
        "trainable_parameters": 4_456_448,
        "total_parameters": 3_821_079_552,
        "device": "NVIDIA H200",
        "steps": 299,
        "resumed_from_step": None,
        "first_loss": history[0]["loss"],
        "final_loss": history[-1]["loss"],
        "tokens": 8_400_000,
        "seconds": 1510.0,
        "tokens_per_second": 5562.9,
        "peak_memory_bytes": 21_474_836_480,
        "versions": {"torch": "2.13.0", "peft": "0.21.2"},
    }
    (root / "training" / "result.json").write_text(json.dumps(result))
    card = {
        "digest": "ef" * 32,
        "rows": {"train": 4120, "test": 96},
        "holdout_rows": 0,
        "read": 4500,
        "dropped": {"exact duplicate": 200, "too short": 84},
        "warnings": ["54 of 238 rows (23%) are one group ('email.parser')."],
        "characters": {
            side: {p: {"median": 380, "p95": 650, "max": 900} for p in ("prompt", "answer")}
            for side in ("train", "test")
        },
        "sources": [{"name": "email", "kind": "python_source", "rows": 2000}],
    }
    (root / "dataset" / "card.json").write_text(json.dumps(card))
    tokens = {
        "tokens": {"train": 812_000, "test": 19_000},
        "trained_tokens": {"train": 201_000, "test": 4_700},
    }
    (root / "tokenization" / "card.json").write_text(json.dumps(tokens))
    return root


def reported(root: Path, **changed: Any) -> ReportedRun:
    """The run whose folders lie in `root`."""
    stages = {
        "dataset": StageTiming(fingerprint="a", reused=True, seconds=0.1),
        "tokenization": StageTiming(fingerprint="b", reused=False, seconds=8.2),
        "training": StageTiming(fingerprint="c", reused=False, seconds=1544.0),
        "evaluation": StageTiming(fingerprint="d", reused=False, seconds=131.0),
    }
    outcome = Outcome(
        outcome="refused",
        reason="The gate refused the adapter.",
        prefect_flow_run_id="0f7b6c1e-0c1f-4b8a-9d5e-2f1f4a3b5c6d",
        stages=stages,
    )
    values: dict[str, Any] = {
        "name": "docstrings",
        "written": datetime(2026, 11, 21, 3, 4, tzinfo=UTC),
        "outcome": outcome,
        "made_from": MadeFrom(
            base="microsoft/Phi-3-mini-4k-instruct",
            base_sha256="12" * 32,
            recipe="docstrings.yaml",
            recipe_text="name: docstrings\nbase: microsoft/Phi-3-mini-4k-instruct\n",
            recipe_digest="34" * 32,
            dataset_digest="ef" * 32,
            git_commit="a65874e0c2a9f0d9b8f1a3f1c0e5d7b6a4c3e2f1",
            mlflow_run_id="5c1d2e3f",
            mlflow_url="http://127.0.0.1:5000/#/experiments/1/runs/5c1d2e3f",
            prefect_url="http://127.0.0.1:4200/runs/flow-run/0f7b6c1e",
        ),
        "evaluation": root / "evaluation",
        "training": root / "training",
        "dataset": root / "dataset",
        "tokenization": root / "tokenization",
        "champion": "7",
        "new_rows_share": 0.12,
    }
    return ReportedRun(**{**values, **changed})


@pytest.fixture
def full_run(full_folders: Path) -> ReportedRun:
    """A run with a champion, a gate, slices and a general set."""
    return reported(full_folders)


@pytest.fixture
def changed_metrics(full_folders: Path, tmp_path: Path) -> Callable[..., ReportedRun]:
    """The full run with other values in `metrics.json`."""

    def changed(**values: Any) -> ReportedRun:
        shutil.copytree(full_folders, tmp_path / "changed")
        path = tmp_path / "changed" / "evaluation" / "metrics.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))
        return reported(tmp_path / "changed")

    return changed

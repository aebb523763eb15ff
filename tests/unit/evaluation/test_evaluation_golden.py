"""The numbers and the report are part of the fingerprint's promise: they change only with OUTPUT_VERSION."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.evaluation import score_worker, work
from tasks.evaluation.job import AnswerResult, ScoreJob, ScoreResult
from tasks.evaluation.settings import EvaluationSettings

EXPECTED_VERSION = 5
EXPECTED_SHA256 = {
    "metrics.json": "f25bcfcd12a5fa3be716a51e177c366a3f1be1c85096717b6853cd55dffbb0dc",
    "scores": "d551c6eb5ea0fa67e2f24109b1067397905c0e0835d2a26bdc15eafeb0d0d8b9",
    "report.md": "5fa9a9ed2f3281115adf7d1e2342d8d980c3eb3e7d56e43642a1e7b21fbe8607",
    "summary.md": "294028651b375285662f06d575e5afae0a6cec3d3a35e59a3e963027c9b0792c",
}
ANSWERS = [
    ("Return the sum.", "Return it. And the sum of all.", "Return the sum."),
    ("Öffne die Datei.", "", "Öffne eine Datei."),
    ("Close the file | now.", "def close(", "Close the file."),
    ("A queue of items, first in, first out.", "A stack\nof items", "A queue of items."),
    ("Whether it is open.", "Whether it is open.", "."),
]


def test_the_same_answers_give_the_same_numbers_until_the_output_version_is_raised(
    tmp_path: Path,
) -> None:
    rows: list[dict[str, Any]] = [
        {
            "id": f"row-{n}",
            "prompt": f"<|user|>\nquestion {n}<|end|>\n<|assistant|>\n",
            "reference": reference,
            "label": None if n == 1 else f"name {n}",
            "trained_tokens": 5 + n,
            "base_answer": base,
            "base_stopped": n == 1,
            "base_tokens": len(base),
            "base_nll": 20.0 + n,
            "base_correct": n,
            "challenger_answer": challenger,
            "challenger_stopped": n != 3,
            "challenger_tokens": len(challenger),
            "challenger_nll": 7.5 - n,
            "challenger_correct": 4 + n,
        }
        for n, (reference, base, challenger) in enumerate(ANSWERS)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "predictions.parquet")
    job = ScoreJob(
        predictions=tmp_path / "predictions.parquet",
        models=["base", "challenger"],
        bootstrap_samples=500,
        confidences=[0.9],
        scores=tmp_path / "scores.parquet",
        result=tmp_path / "scores.json",
    )
    score_worker.score(job)
    answers = AnswerResult(
        rows=len(rows),
        device="cpu",
        dtype="float32",
        quantization="none",
        batch_size=4,
        max_new_tokens=16,
        stop_tokens=[7, 9],
        shortened_rows=1,
        seconds={"base": 1.0, "challenger": 2.0},
        generated_tokens={"base": 3, "challenger": 4},
        ended_with={"base": {"<|end|>": 1}, "challenger": {"<|end|>": 3, "<|endoftext|>": 1}},
        versions={},
    )
    settings = EvaluationSettings.model_validate(
        {
            "sample_answers": 4,
            "gate": [
                {"metric": "rougeL", "against": "champion", "min_gain": 0, "confidence": 0.9},
                {"metric": "stop_rate", "min": 0.9},
            ],
        }
    )
    scores = ScoreResult.model_validate_json(job.result.read_text(encoding="utf-8"))
    work.write_output(tmp_path, settings, answers, scores)

    facts = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    # Not these: they name the library and the source that computed the numbers.
    del facts["versions"], facts["metric_modules"]
    table = pq.read_table(tmp_path / "scores.parquet").to_pylist()
    actual = {
        "metrics.json": _sha256(json.dumps(_rounded(facts), sort_keys=True)),
        "scores": _sha256(json.dumps(_rounded(table), sort_keys=True)),
        "report.md": _sha256((tmp_path / "report.md").read_text(encoding="utf-8")),
        "summary.md": _sha256((tmp_path / "summary.md").read_text(encoding="utf-8")),
    }
    assert (work.OUTPUT_VERSION, actual) == (EXPECTED_VERSION, EXPECTED_SHA256), (
        "The evaluation's output has other values. If that is meant, raise OUTPUT_VERSION in "
        "tasks/evaluation/work.py, so that no stored output of the old kind is reused, and copy the "
        "new values to this test."
    )


def _rounded(value: Any) -> Any:
    # The last bits of a sum depend on the CPU.
    if isinstance(value, float):
        return round(value, 9)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

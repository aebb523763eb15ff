"""The same inputs give what they gave before, or `OUTPUT_VERSION` was raised."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.training import work, worker
from tasks.training.job import TrainingJob

GOLDEN = Path(__file__).parent / "golden_training.json"


def test_what_a_training_gives_changes_only_with_the_output_version(
    make_job: Callable[..., TrainingJob], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses to a thousandth: another CPU adds in another order. To renew the file after raising
    OUTPUT_VERSION, delete it and run this test twice."""
    monkeypatch.setattr(worker, "_stop_on_sigterm", worker.threading.Event)
    job = make_job(tmp_path / "working", peft={"lora_dropout": 0.0})
    worker.train(job)
    history = [json.loads(x) for x in (job.output / "history.jsonl").read_text().splitlines()]
    now = {
        "output_version": work.OUTPUT_VERSION,
        "files": sorted(
            p.relative_to(job.output).as_posix() for p in job.output.rglob("*") if p.is_file()
        ),
        "learning_rates": [round(entry["learning_rate"], 8) for entry in history],
        "losses": [round(entry["loss"], 4) for entry in history],
    }
    if not GOLDEN.exists():
        GOLDEN.write_text(json.dumps(now, indent=1) + "\n")
        pytest.fail(f"{GOLDEN.name} was missing and is written now; commit it.")
    before = json.loads(GOLDEN.read_text())
    assert now["output_version"] == before["output_version"], "renew the golden file"
    assert now["files"] == before["files"]
    assert now["learning_rates"] == pytest.approx(before["learning_rates"])
    assert now["losses"] == pytest.approx(before["losses"], abs=1e-3)

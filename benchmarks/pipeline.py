"""Where the quickstart's wall time goes, stage by stage, and what a second run costs."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import Result, main, ratio

ROOT = Path(__file__).resolve().parent.parent
QUICK = (
    "dataset.sources=[{type: python_source, package: asyncio}, {type: python_source, package: json}]",
    "dataset.split.test=0.1",
    "training.training_config.max_steps=4",
    "evaluation.max_new_tokens=16",
    "evaluation.gate=[]",
)


def run(home: Path, overrides: tuple[str, ...]) -> tuple[float, dict[str, Any]]:
    command = [sys.executable, "-m", "flows.cli", "run", "recipes/quickstart.yaml", "--json"]
    for override in overrides:
        command += ["--set", override]
    started = time.monotonic()
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "LORALINE_HOME": str(home)},
        stdout=subprocess.PIPE,
        check=False,
    )
    seconds = time.monotonic() - started
    outcome = json.loads(done.stdout)
    if done.returncode != 0:
        raise SystemExit(f"the run ended with {outcome['outcome']}: {outcome['reason']}")
    return seconds, outcome


def measure(quick: bool) -> Result:
    """The first run is the reference, the runs after it are the product: nothing is done twice."""
    result = Result("pipeline", ("prefect", "mlflow", "torch", "transformers", "peft", "trl"))
    overrides = QUICK if quick else ()
    with tempfile.TemporaryDirectory() as folder:
        first, outcome = run(Path(folder), overrides)
        again = [run(Path(folder), overrides) for _ in range(1 if quick else 3)]
    for stage, timing in outcome["stages"].items():
        result.values[f"{stage}_seconds"] = timing["seconds"]
    result.values["rest_seconds"] = first - sum(s["seconds"] for s in outcome["stages"].values())
    result.values["first_run_seconds"] = first
    result.values["unchanged_run_seconds"] = min(seconds for seconds, _ in again)
    result.ratios["first_vs_unchanged"] = ratio([first] * len(again), [s for s, _ in again])
    result.equal = all(
        o["outcome"] == "skipped" and o["model_version"] == outcome["model_version"]
        for _, o in again
    )
    return result


if __name__ == "__main__":
    main(measure, __doc__ or "")

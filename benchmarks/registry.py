"""What the registry costs on SQLite: registering an adapter, promoting it, going back, and a version's size.

Loading the version in a fresh process is real and done, and timed apart: it is the start of a Python with
torch, and belongs to no registry.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import Result, main
from pipeline import QUICK, ROOT, run

from tasks.artifacts import Adapter, Dataset, Report, Tokens
from tasks.base import resolve_base
from tasks.files import file_sha256
from tasks.home import Home
from tasks.promotion.promoting import promote, roll_back
from tasks.recipe import load_recipe
from tasks.registration import work
from tasks.registration.provenance import Provenance
from tasks.registration.settings import RegistrationSettings
from tasks.registry import version_files
from tasks.store import Store
from tasks.tracking import Tracker

RECIPE = ROOT / "recipes" / "quickstart.yaml"


def measure(quick: bool) -> Result:
    """Register one small trained adapter under several names, then promote versions and go back."""
    result = Result("registry", ("mlflow", "sqlalchemy"))
    times: dict[str, list[float]] = {
        "register": [],
        "verification": [],
        "promote": [],
        "roll_back": [],
    }
    _time_verification(times["verification"])
    with tempfile.TemporaryDirectory() as folder:
        _, outcome = run(Path(folder), QUICK)
        home = Home(Path(folder))
        os.environ |= home.environment()
        tracker, store = Tracker(home), Store.of(home)
        made = _made(outcome, home, store)
        for number in range(2 if quick else 7):
            before = sum(times["verification"])
            spent = _timed(
                lambda name=f"adapter-{number}": work.register_adapter(
                    store,
                    RegistrationSettings(),
                    tracker=tracker,
                    name=name,
                    made=replace(made, run_id=tracker.open_run(name, name, tags={}, params={})),
                )
            )
            times["register"].append(spent - (sum(times["verification"]) - before))
        _promotions(tracker, times, 2 if quick else 7)
        version = tracker.client.get_model_version("adapter-0", "1")
        files = version_files(tracker, version, home).folder.parent
        adapter = made.adapter.folder / "adapter_model.safetensors"
        size = sum(file.stat().st_size for file in files.rglob("*") if file.is_file())
        result.values["version_mb_beyond_adapter"] = (size - adapter.stat().st_size) / 1e6
    for name, seconds in times.items():
        result.values[f"{name}_seconds"] = statistics.median(seconds)
    return result


def _promotions(tracker: Tracker, times: dict[str, list[float]], rounds: int) -> None:
    """A second champion and back, again and again."""
    for _ in range(2):
        tracker.client.create_model_version(
            "adapter-0", source="mlflow-artifacts:/none", tags={"loraline.gate": "passed"}
        )
    how: dict[str, Any] = {"reason": "benchmark", "verify": lambda uri: f"{uri} loads"}
    promote(tracker, "adapter-0", "2", **how)
    for _ in range(rounds):
        times["promote"].append(_timed(lambda: promote(tracker, "adapter-0", "3", **how)))
        times["roll_back"].append(_timed(lambda: roll_back(tracker, "adapter-0", **how)))


def _made(outcome: dict[str, Any], home: Home, store: Store) -> Provenance:
    def stage(name: str) -> dict[str, Any]:
        key = outcome["stages"][name]["fingerprint"]
        return {"path": store.path(name, key), "fingerprint": key, "reused": True, "seconds": 0.0}

    counts = {"train": 0, "test": 0}
    weights = stage("training")["path"] / "adapter" / "adapter_model.safetensors"
    recipe = load_recipe(RECIPE)
    return Provenance(
        dataset=Dataset(**stage("dataset"), digest="0" * 64, rows=counts),
        tokens=Tokens(**stage("tokenization"), rows=counts, tokens=counts, trained_tokens=counts),
        adapter=Adapter(
            **stage("training"),
            sha256=file_sha256(weights),
            trainable_parameters=outcome["trainable_parameters"],
        ),
        report=Report(
            **stage("evaluation"),
            metrics=outcome["metrics"],
            differences=outcome["differences"],
            gate=None,
        ),
        base=resolve_base(recipe.base, RECIPE, home),
        recipe_path=RECIPE,
        recipe_text=RECIPE.read_text(encoding="utf-8"),
        recipe_digest="0" * 64,
        run_id="",
        prefect_flow_run_id=None,
    )


def _time_verification(seconds: list[float]) -> None:
    verify = work.verify_version

    def timed(*arguments: Any, **how: Any) -> Any:
        started = time.monotonic()
        found = verify(*arguments, **how)
        seconds.append(time.monotonic() - started)
        return found

    work.verify_version = timed


def _timed(call: Callable[[], object]) -> float:
    started = time.monotonic()
    call()
    return time.monotonic() - started


if __name__ == "__main__":
    main(measure, __doc__ or "")

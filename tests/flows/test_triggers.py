"""What starts a retraining besides the clock and a person: new data, and an event from elsewhere; the cause is kept."""

import json
import os
import random
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.running_stack import Stack, running_stack, until

ROOT = Path(__file__).resolve().parents[2]
WORDS = [
    "parcel",
    "invoice",
    "refund",
    "courier",
    "warehouse",
    "label",
    "weight",
    "customs",
    "broker",
    "pallet",
    "driver",
    "route",
    "depot",
    "signature",
    "damage",
    "claim",
    "receipt",
    "tariff",
    "scanner",
    "conveyor",
    "address",
    "postcode",
    "delay",
    "weather",
    "holiday",
    "contract",
    "discount",
    "voucher",
    "account",
    "password",
    "login",
    "mobile",
    "printer",
    "barcode",
    "fragile",
    "insurance",
]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def stack(small: Any) -> Iterator[Stack]:
    with running_stack(small) as found:
        yield found


def rows(path: Path, numbers: range) -> None:
    """Rows that no cleaning takes for copies of each other."""
    with path.open("a", encoding="utf-8") as file:
        for number in numbers:
            words = random.Random(number).choices(WORDS, k=24)
            row = {"prompt": " ".join(words[:8]) + "?", "completion": " ".join(words[8:]) + "."}
            file.write(json.dumps(row) + "\n")


def started_for(stack: Stack, recipe: Path) -> list[dict[str, Any]]:
    """The runs that an automation started for the recipe."""
    deployments = {"deployments": {"name": {"any_": ["retrain"]}}}
    found = stack.api.ask("POST", "/flow_runs/filter", {**deployments, "sort": "START_TIME_ASC"})
    return [
        run
        for run in found
        if run["parameters"].get("recipe") == str(recipe)
        and (run.get("created_by") or {}).get("type") == "AUTOMATION"
    ]


def looked(stack: Stack, recipe: Path) -> dict[str, Any]:
    state = stack.end_of(stack.start("watch-data", {"recipe": str(recipe)}), 180)
    assert state["type"] == "COMPLETED", state
    return state


def test_enough_new_rows_start_a_run_that_records_why(stack: Stack) -> None:
    data = stack.cli.folder / "recipes" / "tickets.jsonl"
    rows(data, range(60))
    text = (stack.cli.folder / "recipes" / "small.yaml").read_text()
    start, end = text.index("  sources:"), text.index("  split:")
    source = "  sources:\n    - type: jsonl\n      path: tickets.jsonl\n"
    recipe: Path = stack.cli.folder / "recipes" / "tickets.yaml"
    recipe.write_text(
        (text[:start] + source + text[end:]).replace("name: small", "name: tickets")
        + "schedule: {after_new_rows: 20}\n"
    )
    # Nothing was ever trained: all sixty are new.
    assert "60 rows, 60 of them new" in looked(stack, recipe)["message"]
    (first,) = until(lambda: started_for(stack, recipe), 120)
    assert stack.end_of(first["id"])["type"] == "COMPLETED"
    # As many as before: no run. A few: no run. Enough: one, however often anybody looks.
    looked(stack, recipe)
    rows(data, range(60, 70))
    assert "No training is due" in looked(stack, recipe)["message"]
    rows(data, range(70, 90))
    looked(stack, recipe)
    looked(stack, recipe)
    until(lambda: len(started_for(stack, recipe)) > 1, 120)
    (second,) = [run for run in started_for(stack, recipe) if run["id"] != first["id"]]
    assert "30 of 90 rows are new" in second["parameters"]["reason"]
    assert stack.end_of(second["id"])["type"] == "COMPLETED"
    assert stack.run(second["id"])["name"].endswith(" · new data")
    client = stack.tracker.client
    experiment = client.get_experiment_by_name("tickets")
    assert experiment is not None
    reasons = {
        run.data.tags["loraline.prefect_flow_run_id"]: run.data.tags["loraline.reason"]
        for run in client.search_runs([experiment.experiment_id])
    }
    assert reasons[second["id"]] == second["parameters"]["reason"]
    assert len(started_for(stack, recipe)) == 2


def test_the_documented_curl_line_starts_a_run_with_its_reason(stack: Stack) -> None:
    page = (ROOT / "deployments" / "README.md").read_text()
    (line,) = re.findall(r"```bash\n(curl .*?)```", page, re.DOTALL)
    recipe = stack.write_recipe("rated", seed="name: rated\nseed: 11")
    subprocess.run(
        [
            "bash",
            "-ec",
            line.replace("/srv/recipes/support.yaml", str(recipe)).replace("-X", "-fX"),
        ],
        env={**os.environ, "PREFECT_API_URL": stack.api.url},
        check=True,
        timeout=60,
    )
    (run,) = until(lambda: started_for(stack, recipe), 120)
    assert run["parameters"]["reason"] == "answers rated below 4 for a day"
    assert stack.end_of(run["id"])["type"] == "COMPLETED"
    assert stack.run(run["id"])["name"].endswith(" · answers rated below 4 for a day")

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

from tests.hub import A, B, Hub, Repository, running_hub
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
def hub() -> Iterator[Hub]:
    with running_hub() as found:
        yield found


@pytest.fixture(scope="module")
def stack(small: Any, hub: Hub) -> Iterator[Stack]:
    """One that asks the stand-in for the Hub."""
    with running_stack(small, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="0") as found:
        yield found


def rows(numbers: range) -> str:
    """Lines of JSON that no cleaning takes for copies of each other."""
    lines = []
    for number in numbers:
        words = random.Random(number).choices(WORDS, k=24)
        row = {"prompt": " ".join(words[:8]) + "?", "completion": " ".join(words[8:]) + "."}
        lines.append(json.dumps(row) + "\n")
    return "".join(lines)


def write_recipe(
    stack: Stack, name: str, schedule: str, *, source: str = "", base: str = ""
) -> Path:
    """`small.yaml` with a schedule under another name, on another source or another base."""
    text = (stack.cli.folder / "recipes" / "small.yaml").read_text()
    if source:
        start, end = text.index("  sources:"), text.index("  split:")
        text = f"{text[:start]}  sources:\n    - {source}\n{text[end:]}"
    if base:
        text = re.sub(r"^base: .*$", f"base: {base}", text, flags=re.MULTILINE)
    recipe: Path = stack.cli.folder / "recipes" / f"{name}.yaml"
    recipe.write_text(text.replace("name: small", f"name: {name}") + f"schedule: {schedule}\n")
    return recipe


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
    data.write_text(rows(range(60)))
    recipe = write_recipe(
        stack, "tickets", "{after_new_rows: 20}", source="{type: jsonl, path: tickets.jsonl}"
    )
    # Nothing was ever trained: all sixty are new.
    assert "60 rows, 60 of them new" in looked(stack, recipe)["message"]
    (first,) = until(lambda: started_for(stack, recipe), 120)
    assert stack.end_of(first["id"])["type"] == "COMPLETED"
    # As many as before: no run. A few: no run. Enough: one, however often anybody looks.
    looked(stack, recipe)
    data.write_text(rows(range(70)))
    assert "No training is due" in looked(stack, recipe)["message"]
    data.write_text(rows(range(90)))
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


def test_a_new_commit_of_a_dataset_on_the_hub_starts_a_run(stack: Stack, hub: Hub) -> None:
    chats = hub.datasets["team/chats"] = Repository(
        {
            A: {"train.jsonl": rows(range(60)).encode()},
            B: {"train.jsonl": rows(range(100)).encode()},
        }
    )
    source = "{type: huggingface, id: team/chats}"
    recipe = write_recipe(stack, "chats", "{after_new_rows: 40}", source=source)
    first = stack.end_of(stack.start("retrain", {"recipe": str(recipe)}))
    assert first["type"] == "COMPLETED", first
    assert "60 rows, 0 of them new" in looked(stack, recipe)["message"]
    chats.branches["main"] = B
    looked(stack, recipe)
    (run,) = until(lambda: started_for(stack, recipe), 120)
    assert run["parameters"]["reason"] == "data: 40 of 100 rows are new (asked for: 40)"
    assert stack.end_of(run["id"])["name"] == "Completed"


def test_a_moved_lock_of_the_base_starts_a_run_on_the_new_commit(
    stack: Stack, hub: Hub, starter: Path
) -> None:
    files = {path.name: path.read_bytes() for path in starter.iterdir()}
    weights = bytearray(files["model.safetensors"])
    # The last bit of a number's significand: as good a base, and another one.
    weights[-2] ^= 1
    moved = {**files, "model.safetensors": bytes(weights)}
    base = hub.models["team/base"] = Repository({A: files, B: moved})
    recipe = write_recipe(stack, "pinned", "{after_days: 30}", base="team/base")
    first = stack.end_of(stack.start("retrain", {"recipe": str(recipe)}))
    assert first["type"] == "COMPLETED", first
    # The branch alone changes nothing: the lock holds.
    base.branches["main"] = B
    assert "No training is due" in looked(stack, recipe)["message"]
    done = stack.cli("lock", str(recipe), "--update", **stack.environment)
    assert f"is commit {B} (was {A})" in done.stdout, done.stderr
    looked(stack, recipe)
    (run,) = until(lambda: started_for(stack, recipe), 120)
    assert run["parameters"]["reason"] == f"base: the base's lock moved to commit {B[:12]}"
    assert stack.end_of(run["id"])["name"] == "Completed"
    assert stack.run(run["id"])["name"].endswith(" · new base")
    # Once is enough.
    looked(stack, recipe)
    assert len(started_for(stack, recipe)) == 1
    made = stack.tracker.client.search_model_versions("name = 'pinned'")
    assert len({version.tags["loraline.base_sha256"] for version in made}) == 2


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

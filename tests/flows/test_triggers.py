"""What starts a retraining besides the clock and a person: new data, and an event from elsewhere; the cause is kept."""

import json
import os
import random
import re
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from tests.hub import A, B, Hub, Repository, running_hub
from tests.loopback import serving
from tests.running_stack import Stack, running_stack, until
from tests.unit.conftest import s3_stand_in

__all__ = ["s3_stand_in"]

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
def stack(small: Any, hub: Hub, s3_stand_in: str) -> Iterator[Stack]:
    """One that asks the stand-ins for the Hub and for a store that speaks S3."""
    environment = {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "AWS_ENDPOINT_URL": s3_stand_in,
        "AWS_ACCESS_KEY_ID": "loraline-test",
        "AWS_SECRET_ACCESS_KEY": "loraline-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with running_stack(small, **environment) as found:
        yield found


Add = Callable[[range], object]
"""Brings rows by their numbers."""


def growing_file(stack: Stack) -> tuple[str, Add]:
    """A source, and what makes it grow."""
    path = stack.cli.folder / "recipes" / "tickets.jsonl"

    def add(numbers: range) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.write(rows(numbers))

    return "{type: jsonl, path: tickets.jsonl}", add


def growing_prefix(stack: Stack) -> tuple[str, Add]:
    import boto3

    keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    bucket = boto3.resource(
        "s3",
        endpoint_url=stack.more["AWS_ENDPOINT_URL"],
        region_name=stack.more["AWS_DEFAULT_REGION"],
        **{name.lower(): stack.more[name] for name in keys},
    ).Bucket("watched")
    bucket.create()

    def add(numbers: range) -> None:
        key = f"tickets/{numbers.start:03}.jsonl"
        bucket.put_object(Key=key, Body=rows(numbers).encode())

    return "{type: jsonl, path: s3://watched/tickets}", add


def growing_table(stack: Stack) -> tuple[str, Add]:
    path = stack.cli.folder / "recipes" / "tickets.sqlite"

    def add(numbers: range) -> None:
        with sqlite3.connect(path) as database:
            database.execute(
                "CREATE TABLE IF NOT EXISTS tickets "
                "(id INTEGER PRIMARY KEY, prompt TEXT, completion TEXT)"
            )
            database.executemany(
                "INSERT INTO tickets (prompt, completion) VALUES (:prompt, :completion)",
                [json.loads(line) for line in rows(numbers).splitlines()],
            )

    query = "SELECT id, prompt, completion FROM tickets"
    return f"{{type: sql, database: tickets.sqlite, query: '{query}', watermark: id}}", add


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


@pytest.mark.parametrize(
    ("name", "grown"),
    [("file", growing_file), ("prefix", growing_prefix), ("table", growing_table)],
    ids=["files", "s3", "sql"],
)
def test_enough_new_rows_start_a_run_that_records_why(
    stack: Stack, name: str, grown: Callable[[Stack], tuple[str, Add]]
) -> None:
    source, add = grown(stack)
    add(range(60))
    recipe = write_recipe(stack, f"{name}-tickets", "{after_new_rows: 20}", source=source)
    # Nothing was ever trained: all sixty are new.
    assert "60 rows, 60 of them new" in looked(stack, recipe)["message"]
    (first,) = until(lambda: started_for(stack, recipe), 120)
    assert stack.end_of(first["id"])["type"] == "COMPLETED"
    # As many as before: no run. A few: no run. Enough: one, however often anybody looks.
    looked(stack, recipe)
    add(range(60, 70))
    assert "No training is due" in looked(stack, recipe)["message"]
    add(range(70, 90))
    looked(stack, recipe)
    looked(stack, recipe)
    until(lambda: len(started_for(stack, recipe)) > 1, 120)
    (second,) = [run for run in started_for(stack, recipe) if run["id"] != first["id"]]
    assert "30 of 90 rows are new" in second["parameters"]["reason"]
    assert stack.end_of(second["id"])["type"] == "COMPLETED"
    assert stack.run(second["id"])["name"].endswith(" · new data")
    client = stack.tracker.client
    experiment = client.get_experiment_by_name(f"{name}-tickets")
    assert experiment is not None
    reasons = {
        run.data.tags["loraline.prefect_flow_run_id"]: run.data.tags["loraline.reason"]
        for run in client.search_runs([experiment.experiment_id])
    }
    assert reasons[second["id"]] == second["parameters"]["reason"]
    assert len(started_for(stack, recipe)) == 2


def test_one_new_row_starts_a_run_once_the_last_training_is_old_enough(stack: Stack) -> None:
    data = stack.cli.folder / "recipes" / "aging.jsonl"
    data.write_text(rows(range(60)))
    source = "{type: jsonl, path: aging.jsonl}"
    # About a minute and a half.
    recipe = write_recipe(stack, "aging", "{after_days: 0.001}", source=source)
    first = stack.end_of(stack.start("retrain", {"recipe": str(recipe)}))
    assert first["type"] == "COMPLETED", first
    time.sleep(90)
    # Old alone is no cause.
    assert "No training is due" in looked(stack, recipe)["message"]
    data.write_text(rows(range(61)))
    looked(stack, recipe)
    looked(stack, recipe)
    (run,) = until(lambda: started_for(stack, recipe), 120)
    assert run["parameters"]["reason"] == (
        "data: the data changed (1 new rows), and the last training is 0.0 days old"
    )
    assert stack.end_of(run["id"])["type"] == "COMPLETED"
    assert stack.run(run["id"])["name"].endswith(" · new data")
    assert len(started_for(stack, recipe)) == 1


@contextmanager
def held_file(data: bytes) -> Iterator[tuple[str, threading.Event, threading.Event]]:
    """Its address; set once somebody reads it; and what lets more than a byte a second of it go."""
    asked, released = threading.Event(), threading.Event()

    class Slow(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            asked.set()
            sent = 0
            while not released.wait(1):
                self.wfile.write(data[sent : sent + 1])
                sent += 1
            self.wfile.write(data[sent:])

        def log_message(self, *_: object) -> None:
            pass

    with serving(Slow) as url:
        yield f"{url}/held.jsonl", asked, released


def test_a_look_keeps_its_slot_when_prefects_server_is_killed_and_gives_it_to_the_next(
    stack: Stack,
) -> None:
    with held_file(rows(range(60)).encode()) as (url, asked, released):
        source = f"{{type: jsonl, path: '{url}'}}"
        recipe = write_recipe(stack, "held", "{after_new_rows: 1000}", source=source)
        first = stack.start("watch-data", {"recipe": str(recipe)})
        assert asked.wait(180)
        lease = stack.run(first)["state"]["state_details"]["deployment_concurrency_lease_id"]
        assert lease
        second = stack.start("watch-data", {"recipe": str(recipe)})
        stack.kill_part("prefect")
        until(lambda: stack.status()["healthy"], 300)
        # What the run's process asks for each few minutes; one that is refused is ended.
        renewal = {"lease_duration": 300}
        stack.api.ask("POST", f"/v2/concurrency_limits/leases/{lease}/renew", renewal)
        until(lambda: stack.run(second)["state"]["name"] == "AwaitingConcurrencySlot", 120)
        assert stack.state(first) == "RUNNING"
        released.set()
        ends = [stack.end_of(run, 300) for run in (first, second)]
    assert [end["type"] for end in ends] == ["COMPLETED", "COMPLETED"], ends
    assert all("60 rows, 60 of them new" in end["message"] for end in ends)
    assert stack.run(first)["end_time"] <= stack.run(second)["start_time"]


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

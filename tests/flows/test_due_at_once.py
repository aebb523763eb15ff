"""Ten adapters, five nights without the machine, and one slot: each is trained once, one after the other."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from tests.running_stack import ENDED, Stack, running_stack, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]
NAMES = [f"adapter-{number}" for number in range(10)]
NIGHTS = 5


@pytest.fixture(scope="module")
def stack(small: Any) -> Iterator[Stack]:
    text = (small.folder / "recipes" / "small.yaml").read_text()
    # None falls due while the test runs, at whatever hour that is.
    first = datetime.now(UTC).hour + 3
    for number, name in enumerate(NAMES):
        # Another seed is another training: none is taken from another adapter's.
        schedule = f'schedule: {{cron: "0 {(first + number) % 24} * * *"}}\n'
        recipe = text.replace("name: small", f"name: {name}\nseed: {100 + number}") + schedule
        (small.folder / "recipes" / f"{name}.yaml").write_text(recipe)
    with running_stack(small) as found:
        yield found


def missed(stack: Stack) -> list[dict[str, Any]]:
    """The runs of the nights that are over."""
    found = stack.api.ask(
        "POST",
        "/flow_runs/filter",
        {
            "deployments": {"name": {"any_": ["retrain"]}},
            "flow_runs": {"expected_start_time": {"before_": datetime.now(UTC).isoformat()}},
            "sort": "EXPECTED_START_TIME_ASC",
            "limit": 200,
        },
    )
    return [run for run in found if run["auto_scheduled"]]


def test_what_was_due_while_nobody_was_there_is_done_once_for_each(stack: Stack) -> None:
    stack.stop_part("worker")
    (deployment,) = stack.api.ask(
        "POST", "/deployments/filter", {"deployments": {"name": {"any_": ["retrain"]}}}
    )
    now = datetime.now(UTC)
    # As Prefect's scheduler wrote them in advance, before the machine went.
    body = {
        "start_time": (now - timedelta(days=NIGHTS)).isoformat(),
        "end_time": now.isoformat(),
        "min_runs": NIGHTS,
        "max_runs": NIGHTS,
    }
    stack.api.ask("POST", f"/deployments/{deployment['id']}/schedule", body)
    assert len(missed(stack)) == NIGHTS * len(NAMES)
    stack.cli("down")
    stack.told.clear()

    stack.up()

    def done() -> list[dict[str, Any]]:
        runs = missed(stack)
        return runs if all(run["state_type"] in ENDED for run in runs) else []

    runs = until(done, 1800)
    assert {run["state_type"] for run in runs} == {"COMPLETED"}
    trained = [run for run in runs if run["state_name"] != "Skipped"]
    assert len(trained) == len(NAMES)
    newest = {run["parameters"]["recipe"]: run["id"] for run in runs}
    assert {run["parameters"]["recipe"]: run["id"] for run in trained} == newest
    begun = sorted(runs, key=lambda run: str(run["start_time"]))
    for first, second in pairwise(begun):
        assert first["end_time"] <= second["start_time"], (first["name"], second["name"])
    for name in NAMES:
        assert len(stack.tracker.client.search_model_versions(f"name = '{name}'")) == 1
    alerts = [it["data"] for it in stack.told if it["type"] == "loraline.alert"]
    assert not alerts

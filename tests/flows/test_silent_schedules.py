"""A schedule on a real server whose retraining succeeds no longer: the watchdog's look tells of it, once."""

import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from flows.stack.aside import Aside
from flows.stack.silence import Silence
from flows.watchdog import checks
from tasks.retention.ledger import entries
from tests.running_stack import Stack
from tests.webhook import webhook

LATER = timedelta(hours=8)
"""Two periods of an hour, and what a run may be late and take."""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def test_a_schedule_that_brought_nothing_for_two_periods_is_told_of_once(
    tmp_path: Path, fresh: Any, loraline: Any, standing_server: Any
) -> None:
    (tmp_path / "recipes").mkdir()
    recipe = tmp_path / "recipes" / "hourly.yaml"
    text = (fresh.folder / "recipes" / "small.yaml").read_text()
    schedule = 'schedule: {cron: "0 * * * *", timezone: UTC}\n'
    recipe.write_text(text.replace("name: small", "name: hourly") + schedule)
    server, cli = standing_server(tmp_path), loraline(tmp_path)
    page = Stack(cli, ("--prefect-port", str(urlsplit(server.url).port)), webhook="")
    assert cli.json("deploy", PREFECT_API_URL=server.url)["problems"] == []
    (deployment,) = page.api.ask(
        "POST", "/deployments/filter", {"deployments": {"name": {"any_": ["retrain"]}}}
    )
    start = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    body = {"start_time": start, "min_runs": 1, "max_runs": 1}
    page.api.ask("POST", f"/deployments/{deployment['id']}/schedule", body)
    due = min(page.api.flow_runs({}), key=lambda run: str(run["expected_start_time"]))
    assert due["created_by"]["display_value"] == "hourly"

    def state_after(run: str) -> str:
        said, _ = server.execute(cli, run).communicate(timeout=600)
        return f"{page.end_of(run, 60)['type']} {said[-3000:]}"

    assert state_after(due["id"]).startswith("COMPLETED")
    recipe.write_text(recipe.read_text().replace("package: json", "package: gone_since"))
    failed = page.start("retrain", {"recipe": str(recipe)})
    assert state_after(failed).startswith("FAILED")

    with webhook() as (url, told):
        environ = {"PREFECT_API_URL": server.url, "LORALINE_WEBHOOKS": url}

        def silences() -> list[dict[str, Any]]:
            """What was told of after two looks of a watchdog that has watched for long."""
            (aside,) = (it.look for it in checks(server.home, environ) if it.name == "silence")
            assert isinstance(aside, Aside)
            look = aside.look
            assert isinstance(look, Silence)
            look.state = server.home
            look.started -= LATER
            look()
            look()
            look.alerts.deliver()
            return [it["data"] for it in told if it["data"]["kind"] == "no-success"]

        # The last success is minutes old, and then hours.
        assert silences() == []
        grow_older(server.home)
        (silence,) = silences()
        assert silence["name"] == "hourly"
        assert "No retraining of hourly succeeded since" in silence["text"]
        assert silences() == [silence]


def grow_older(home: Any) -> None:
    """All that ended or was changed, in Prefect's database and in the home, did so `LATER` ago."""
    aged = {
        "flow_run": ("expected_start_time", "start_time", "end_time"),
        "deployment_schedule": ("created", "updated"),
    }
    with closing(sqlite3.connect(home.root / "prefect" / "prefect.db", timeout=60)) as database:
        for table, columns in aged.items():
            new = ", ".join(
                f"{it} = strftime('%Y-%m-%d %H:%M:%f', {it}, '-{LATER.total_seconds()} seconds')"
                for it in columns
            )
            where = "end_time IS NOT NULL" if table == "flow_run" else "TRUE"
            assert database.execute(f"UPDATE {table} SET {new} WHERE {where}").rowcount
        database.commit()
    for path, entry in entries(home)["hourly"]:
        path.write_text(
            entry.model_copy(update={"started": entry.started - LATER}).model_dump_json()
        )

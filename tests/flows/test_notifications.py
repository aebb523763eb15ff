"""Alerts and promotions reach people through Prefect's notification blocks, by automations that deploying makes."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.notifying import VARIABLE, blocks_of
from flows.stack.alerts import Alert, Alerts
from tasks.errors import UserError
from tasks.promotion.entry import Entry
from tasks.promotion.notices import notices_of
from tests.webhook import webhook

ROOT = Path(__file__).resolve().parents[2]


def test_the_variable_names_blocks_by_type_and_name() -> None:
    assert blocks_of({}) is None
    assert blocks_of({VARIABLE: ""}) == []
    assert blocks_of({VARIABLE: "slack-webhook/ops, custom-webhook/pager slack-webhook/ops"}) == [
        "slack-webhook/ops",
        "custom-webhook/pager",
    ]
    for wrong in ("ops", "slack-webhook/", "a/b/c", "https://hooks.example/x"):
        with pytest.raises(UserError, match="type/name"):
            blocks_of({VARIABLE: wrong})


@pytest.fixture
def received() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A receiver's address, and what it was sent."""
    with webhook() as found:
        yield found


def until(what: Callable[[], Any], seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.3)
    return found


@pytest.mark.slow
def test_deploying_makes_an_automation_a_block_and_each_event_is_sent_once(
    tmp_path: Path,
    loraline: Any,
    standing_server: Any,
    received: tuple[str, list[dict[str, Any]]],
) -> None:
    address, sent = received
    server, cli = standing_server(tmp_path), loraline(tmp_path)
    (tmp_path / "recipes").mkdir()
    environment = {"PREFECT_API_URL": server.url}

    def deploy(notify: str | None) -> tuple[list[str], list[str]]:
        named = {} if notify is None else {VARIABLE: notify}
        done = cli.json("deploy", **environment, **named)
        changed = [line for line in done["changed"] if "loraline-notify" in line]
        assert done["exit_code"] == (2 if done["problems"] else 0), done["stderr"]
        return changed, done["problems"]

    # A block that nobody has made: everything else is deployed, and the way out is told.
    changed, problems = deploy("custom-webhook/pager")
    assert changed == []
    assert "this server has none" in problems[0]
    script = (
        "import sys\n"
        "from prefect.blocks.notifications import CustomWebhookNotificationBlock\n"
        "from prefect.blocks.system import Secret\n"
        "CustomWebhookNotificationBlock(name='pager', url=sys.argv[1], "
        "json_data={'subject': '{{subject}}', 'body': '{{body}}'}).save('pager')\n"
        "Secret(value='x').save('no-notification')\n"
    )
    made = subprocess.run(
        [sys.executable, "-c", script, address],
        env={**cli.environment(**environment), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert made.returncode == 0, made.stderr
    changed, problems = deploy("custom-webhook/pager, secret/no-notification")
    assert changed == [
        "automation loraline-notify-custom-webhook-pager: created, alerts go to custom-webhook/pager"
    ]
    assert "sends no notifications" in problems[0]
    # Neither a second time nor a shell without the variable changes anything.
    assert deploy("custom-webhook/pager") == ([], [])
    assert deploy(None) == ([], [])

    notices = notices_of(server.home, prefect_api=server.url, environ={})
    alerts = Alerts(tmp_path / "alerts.json", notices)
    # The server reads automations anew at intervals.
    until(lambda: _is_heard(alerts, sent))
    sent.clear()
    alerts.tell(
        Alert("failed", "run-1", "small", "The retraining small · nightly failed: no rows.")
    )
    notices.put(_promotion())
    alerts.deliver()
    until(lambda: len(sent) >= 2)
    # What is delivered twice bears the same id, and is sent on once.
    notices.put(_promotion())
    notices.deliver()
    time.sleep(5)
    assert sorted(it["subject"] for it in sent) == ["small: failed", "small: promotion"]
    bodies = {it["subject"]: it["body"] for it in sent}
    assert bodies["small: failed"] == "The retraining small · nightly failed: no rows."
    assert "The champion of small is now version 7, before 5 (ada)." in bodies["small: promotion"]
    assert "answers shorter" in bodies["small: promotion"]

    # Named no longer, nothing goes there.
    assert deploy("")[0] == [
        f"automation loraline-notify-custom-webhook-pager: deleted, {VARIABLE} names its block no longer"
    ]


def _is_heard(alerts: Alerts, sent: list[dict[str, Any]]) -> bool:
    alerts.tell(Alert("failed", f"probe {time.monotonic()}", "probe", "Is anybody there?"))
    alerts.deliver()
    time.sleep(2)
    return bool(sent)


def _promotion() -> Entry:
    return Entry(
        number=3,
        before=None,
        id="3f6f2f6e-2f0f-4a8e-9d57-5b8a2f0c1c11",
        kind="promotion",
        name="small",
        champion_from="5",
        champion_to="7",
        previous_from=None,
        previous_to="5",
        actor="ada",
        reason="answers shorter",
        at="2026-11-21T02:14:00+00:00",
        verification="It loads.",
    )

"""Alerts and promotions reach people through Prefect's notification blocks, by automations that deploying makes."""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args
from uuid import NAMESPACE_URL, uuid5

import pytest

from flows.notifying import EVENTS, VARIABLE, blocks_of
from flows.stack.alerts import EVENT, Alert, Alerts, Kind
from tasks.errors import UserError
from tasks.promotion import entry as log
from tasks.promotion.entry import TOLD, Entry
from tasks.promotion.notices import event_name, notices_of
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


def test_the_page_explains_every_alert_and_no_other() -> None:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    table = page.split("### What the alerts mean")[1].split("| `kind` |")[1].split("\n\n")[0]
    explained = re.findall(r"^\| `([\w-]+)` \|", table, re.MULTILINE)
    # A promotion log's entry is an alert where nobody is champion any more.
    entries = [it for it in TOLD if event_name(_entry(it, champion_to=None)) == EVENT]
    assert sorted(explained) == sorted([*get_args(Kind), *entries])


def test_every_kind_of_the_promotion_log_is_told_but_what_never_came_about() -> None:
    page = (ROOT / "docs" / "promotion.md").read_text(encoding="utf-8")
    (types,) = re.findall(r"^Types: (.*?);", page, re.MULTILINE)
    assert set(get_args(log.Kind)) - set(TOLD) == {"withdrawn"}
    assert sorted(re.findall(r"`([\w.]+)`", types)) == sorted(EVENTS)
    assert {event_name(_entry(it)) for it in TOLD} < set(EVENTS)


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

    def of_small() -> list[dict[str, Any]]:
        return [it for it in sent if it["subject"].startswith("small: ")]

    for kind in get_args(Kind):
        # Runs' ends share an identity: each kind is about another run.
        alerts.tell(Alert(kind, f"run {kind}", "small", f"What is {kind} · nightly: no rows."))
    for kind in TOLD:
        notices.put(_entry(kind))
    alerts.deliver()
    kinds = sorted([*get_args(Kind), *TOLD])
    # Of the probes, one or two may still be under way.
    until(lambda: len(of_small()) >= len(kinds))
    # What is delivered twice bears the same id, and is sent on once.
    notices.put(_entry("promotion"))
    notices.deliver()
    time.sleep(5)
    bodies = {it["subject"].removeprefix("small: "): it["body"] for it in of_small()}
    assert sorted(it["subject"] for it in of_small()) == [f"small: {kind}" for kind in kinds]
    for kind in get_args(Kind):
        assert bodies[kind] == f"What is {kind} · nightly: no rows."
    for kind in TOLD:
        assert "answers shorter" in bodies[kind]
        assert "(ada)" in bodies[kind] or "by ada" in bodies[kind]
    assert "The champion of small is now version 7, before 5 (ada)." in bodies["promotion"]
    assert "The promotion log of small is damaged, and goes on" in bodies["accepted"]

    # Named no longer, nothing goes there.
    assert deploy("")[0] == [
        f"automation loraline-notify-custom-webhook-pager: deleted, {VARIABLE} names its block no longer"
    ]


def _is_heard(alerts: Alerts, sent: list[dict[str, Any]]) -> bool:
    alerts.tell(Alert("failed", f"probe {time.monotonic()}", "probe", "Is anybody there?"))
    alerts.deliver()
    time.sleep(2)
    return bool(sent)


def _entry(kind: log.Kind, champion_to: str | None = "7") -> Entry:
    return Entry(
        number=3 + TOLD.index(kind),
        before=None,
        id=str(uuid5(NAMESPACE_URL, kind)),
        kind=kind,
        name="small",
        champion_from="5",
        champion_to=champion_to,
        previous_from=None,
        previous_to="5",
        actor="ada",
        reason="answers shorter",
        at="2026-11-21T02:14:00+00:00",
        verification="It loads.",
    )

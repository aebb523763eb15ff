"""The watchdog's rounds: a stranger that says nothing does not keep it waiting, and it does not stand still."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from flows.stack import abandoned, supervisor
from flows.stack.alerts import Alert, Alerts
from flows.stack.api import PrefectApi
from flows.stack.aside import LONG_SECONDS, Aside
from flows.stack.leftovers import STACK
from flows.stack.part_process import count_start
from flows.stack.restarts import PARTS
from flows.stack.round_limit import EXIT_CODE
from flows.stack.settings import StackSettings, folder, write_settings
from flows.stack.silence import Silence
from flows.stack.successes import NOTHING_DUE
from flows.watchdog import Check, checks
from tasks import run_lease
from tasks.errors import StageFailed
from tasks.home import Home
from tasks.promotion import delivery
from tasks.promotion.notices import notices_of


@pytest.fixture(autouse=True)
def _no_supervisor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "infos", lambda _: None)


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that accepts and never answers."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(50)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    listening.close()


def take_turns(state: Home, environ: dict[str, str]) -> float:
    """One round of all checks of the watchdog; how many seconds it took."""
    all_checks = checks(state, environ)
    began = time.monotonic()
    for check in all_checks:
        check.take_turn(0.0)
    took = time.monotonic() - began
    wait_for_those_aside(all_checks)
    return took


def wait_for_those_aside(all_checks: list[Check]) -> None:
    for check in all_checks:
        if isinstance(check.look, Aside) and check.look._thread is not None:
            check.look._thread.join(60)


def test_a_silent_webhook_keeps_no_check_waiting(
    prefect: Any, state: Home, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "TIMEOUT_SECONDS", 3.0)
    environ = {"PREFECT_API_URL": prefect.url, "LORALINE_WEBHOOKS": f"{silent}/hook"}
    notices = notices_of(state, prefect_api=None, environ=environ)
    for n in range(4):
        Alerts(state.root / "a.json", notices).tell(Alert("failed", str(n), "x", "x"))
    began = time.monotonic()
    assert take_turns(state, environ) < 2
    # One attempt, however many notices wait.
    assert 2.5 < time.monotonic() - began < 10
    assert len(list((state.root / "outbox").glob("[0-9]*.json"))) == 4


def test_an_mlflow_that_hangs_keeps_no_check_waiting(
    prefect: Any, state: Home, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**abandoned.CLIENT, "MLFLOW_HTTP_REQUEST_TIMEOUT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", silent)
    state.locks.mkdir(parents=True)
    run_lease.take(state, "0" * 32).release()
    assert take_turns(state, {"PREFECT_API_URL": prefect.url}) < 2
    # Nobody has closed it: the next look tries again.
    assert list(run_lease.abandoned(state)) == ["0" * 32]
    # What the watchdog itself waits: two attempts, and a pause.
    assert 2 * abandoned.ANSWER_SECONDS + 5 < 30
    assert abandoned.CLIENT["MLFLOW_HTTP_REQUEST_TIMEOUT"] == str(abandoned.ANSWER_SECONDS)


def test_three_months_of_runs_that_are_read_keep_no_check_waiting(
    prefect: Any, state: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Silence, "__call__", lambda _: time.sleep(3))
    assert take_turns(state, {"PREFECT_API_URL": prefect.url}) < 2


def test_a_hundred_schedules_whose_looks_are_deleted_keep_no_check_waiting(
    prefect: Any, state: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefect.deployments.append({"id": "looks", "name": "watch-data"})
    long_ago = (datetime.now(UTC) - timedelta(days=2)).isoformat()
    for number in range(100):
        run = prefect.add(
            "COMPLETED",
            deployment_id="looks",
            created_by={"type": "SCHEDULE", "id": str(number)},
            end_time=long_ago,
            expected_start_time=long_ago,
        )
        run["state"]["name"] = NOTHING_DUE
    answer = prefect.answer

    def slowly(path: str, body: Any) -> Any:
        time.sleep(0.03)
        return answer(path, body)

    monkeypatch.setattr(prefect, "answer", slowly)
    assert take_turns(state, {"PREFECT_API_URL": prefect.url}) < 3
    # One question for the last success of each, one for its last look.
    assert len(prefect.asked) > 200


def test_a_watchdog_that_begins_before_prefect_tells_nothing_and_then_works(
    prefect: Any, state: Home, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a reboot: the runs of before are dead, and their servers are starting."""
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    monkeypatch.setenv(STACK, str(state.root))
    write_settings(state, StackSettings(project=state.root, prefect_port=port, mlflow_port=port))
    for part in PARTS:
        count_start(state, part)
    state.locks.mkdir(parents=True)
    run_lease.take(state, "0" * 32).release()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    for name, value in abandoned.CLIENT.items():
        monkeypatch.setenv(name, value)
    environ = {"PREFECT_API_URL": f"http://127.0.0.1:{port}/api", STACK: str(state.root)}
    all_checks = checks(state, environ)
    since = (folder(state) / "alerts.json").read_text()
    for now in (0.0, 1000.0):
        for check in all_checks:
            check.take_turn(now)
        wait_for_those_aside(all_checks)
    assert not list((state.root / "outbox").glob("[0-9]*.json"))
    assert not [it for it in caplog.records if it.exc_info]
    failing = {it.name for it in all_checks if "does not answer" in it.failing}
    assert {"reaper", "crashes", "silence", "old runs", "plans"} <= failing
    assert not {"restarts", "hangs", "delivery"} & failing
    # What nobody has answered changes nothing of what is remembered.
    assert (folder(state) / "alerts.json").read_text() == since
    run = prefect.add("CRASHED")
    run["end_time"] = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
    for check in all_checks:
        if isinstance(getattr(check.look, "api", None), PrefectApi):
            check.look.api = prefect.api  # type: ignore[attr-defined]
    crashes = next(it for it in all_checks if it.name == "crashes")
    crashes.take_turn(2000.0)
    assert len(list((state.root / "outbox").glob("[0-9]*.json"))) == 1


def test_the_watchdog_waits_for_no_other_part(state: Home) -> None:
    """The real process, as the supervisor starts it: no server answers, and none ever will."""
    write_settings(state, StackSettings(project=state.root, prefect_port=1, mlflow_port=2))
    beat = folder(state) / "watchdog.json"
    marks = {**state.environment(), STACK: str(state.root), "PYTHONPATH": "."}
    watchdog = subprocess.Popen(
        [sys.executable, "-P", "-m", "flows.stack.part_process", "watchdog"],
        env={**os.environ, **marks},
        cwd=Path(__file__).resolve().parents[3],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # With its parent it ends its group.
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 60
        while not beat.exists() and watchdog.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        assert beat.exists()
        assert watchdog.poll() is None
    finally:
        watchdog.kill()
        said, _ = watchdog.communicate()
    assert "Traceback" not in said


def test_a_receiver_that_is_away_is_asked_once_a_round_and_the_other_gets_everything(
    prefect: Any, state: Home, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "TIMEOUT_SECONDS", 3.0)
    notices = notices_of(
        state, prefect_api=prefect.url, environ={"LORALINE_WEBHOOKS": f"{silent}/hook"}
    )
    alerts = Alerts(state.root / "a.json", notices)
    for n in range(5):
        alerts.tell(Alert("failed", str(n), "x", "x"))
    began = time.monotonic()
    assert alerts.deliver() == 5
    # One attempt, and not five.
    assert time.monotonic() - began < 10
    assert len(prefect.events) == 5


def test_what_is_told_during_a_delivery_is_delivered_by_the_next(
    state: Home, prefect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = notices_of(state, prefect_api="http://127.0.0.1:9/api", environ={})
    alerts = Alerts(state.root / "a.json", away, clock=lambda: 0.0)
    alerts.tell(Alert("failed", "one", "x", "x"))
    rounds: list[int] = []
    deliver = type(away).deliver

    def meanwhile(self: Any, **more: Any) -> int:
        rounds.append(len(rounds))
        if len(rounds) == 1:
            alerts.tell(Alert("failed", "two", "x", "x"))
        return deliver(self, **more)

    monkeypatch.setattr(type(away), "deliver", meanwhile)
    for _ in range(4):
        alerts.deliver()
    assert len(rounds) == 2


def test_a_look_aside_is_one_at_a_time_and_its_error_is_raised_until_it_works() -> None:
    gate, clock, looks, is_away = threading.Event(), [0.0], 0, True

    def look() -> None:
        nonlocal looks
        looks += 1
        gate.wait(30)
        if is_away:
            raise StageFailed("MLflow does not answer")

    aside = Aside(look, clock=lambda: clock[0])

    def ended() -> None:
        gate.set()
        assert aside._thread is not None
        aside._thread.join(30)
        gate.clear()

    aside()
    aside()
    assert looks == 1
    clock[0] = LONG_SECONDS + 1
    with pytest.raises(StageFailed, match="under way since"):
        aside()
    ended()
    depths = set()
    for _ in range(3):
        with pytest.raises(StageFailed, match="does not answer") as found:
            aside()
        depths.add(len(found.traceback))
    assert looks == 2
    # For months the same error: its trace must not grow.
    assert len(depths) == 1
    is_away = False
    ended()
    aside()
    assert looks == 3
    ended()


def test_a_round_that_stands_still_ends_the_process_and_says_where(tmp_path: Path) -> None:
    script = (
        "import logging, sys, time; from pathlib import Path\n"
        "from flows.stack.round_limit import RoundLimit\n"
        "from flows.watchdog import Check, watch\n"
        "logging.basicConfig()\n"
        "def stuck():\n    time.sleep(600)\n"
        "quick = Check('quick', 0, lambda: time.sleep(0.3))\n"
        "watch([quick], Path(sys.argv[1]), rounds=3, sleep=lambda _: time.sleep(0.5),\n"
        "      limit=RoundLimit(1.0))\n"
        "print('three rounds', flush=True)\n"
        "watch([quick, Check('stuck one', 0, stuck)], Path(sys.argv[1]), limit=RoundLimit(1.0))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "stack" / "beat")],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ},
    )
    assert done.returncode == EXIT_CODE, done.stderr
    # Rounds that end are no standstill, however many there are.
    assert done.stdout == "three rounds\n"
    assert "the check stuck one" in done.stderr
    assert "in stuck" in done.stderr


def test_a_receiver_that_answers_nonsense_stops_nothing(state: Home) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

        threading.Thread(target=answer, daemon=True).start()
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/hook"
        notices = notices_of(state, prefect_api=None, environ={"LORALINE_WEBHOOKS": address})
        alerts = Alerts(state.root / "a.json", notices)
        alerts.tell(Alert("failed", "one", "x", "x"))
        assert alerts.deliver() == 1
    (kept,) = (state.root / "outbox").glob("[0-9]*.json")
    assert json.loads(kept.read_text())["entry"]["name"] == "x"

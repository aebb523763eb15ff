"""A machine whose host name changes while its stack runs, as DHCP and cloud-init set it late."""

import json
import os
from typing import Any

import psutil
import pytest

from flows.stack import starting, supervisor
from flows.stack.alerts import Alerts
from flows.stack.hangs import PATIENCE_SECONDS
from flows.stack.leftovers import STACK
from flows.stack.part_process import count_start
from flows.stack.parts import POOLS, Part, parts
from flows.stack.reaper import RUNNING_SECONDS
from flows.stack.settings import StackSettings, folder, read_settings
from flows.stack.starting import bring_up
from flows.stack.state import StackState, _ailment
from flows.watchdog import checks
from tasks.home import Home


def called(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    system, _, *more = os.uname()
    monkeypatch.setattr(os, "uname", lambda: os.uname_result((system, name, *more)))


def up(state: Home, **asked: Any) -> StackSettings:
    """What `loraline up` keeps for those who ask later."""
    wanted = StackSettings(project=state.root.parent, database="sqlite", **asked)
    bring_up(state, wanted, lambda _: None)
    found = read_settings(state)
    assert found is not None
    return found


def workers(settings: StackSettings) -> list[Part]:
    return [part for part in parts(settings) if part.name in POOLS]


@pytest.fixture
def settings(state: Home, prefect: Any, monkeypatch: pytest.MonkeyPatch) -> StackSettings:
    """Of a stack that was started before its machine got its name, and whose workers live."""
    for name in ("migrate", "refuse_in_use"):
        monkeypatch.setattr(starting, name, lambda *_: None)
    healthy = StackState(running=True, healthy=True, home=str(state.root))
    monkeypatch.setattr(starting, "_start", lambda *_: healthy)
    called(monkeypatch, "localhost")
    found = up(state, prefect_port=int(prefect.url.rpartition(":")[2].removesuffix("/api")))
    for part in workers(found):
        count_start(state, part.name)
        prefect.workers.append({"name": part.arguments[-1], "status": "ONLINE"})
    called(monkeypatch, "gpu-7")
    return found


def check(name: str, state: Home, environ: dict[str, str], **seams: Any) -> Any:
    """A check as a watchdog has it that was started again after the change."""
    found: Any = next(it.look for it in checks(state, environ) if it.name == name)
    for attribute, value in seams.items():
        setattr(found, attribute, value)
    return found


def look_at(look: Any, *moments: float) -> None:
    for now in moments:
        look.clock = lambda now=now: now
        look()


def test_its_workers_are_neither_silent_nor_unwell(
    prefect: Any, state: Home, alerts: Alerts, settings: StackSettings
) -> None:
    assert [_ailment(part, settings, state, {}) for part in workers(settings)] == ["", ""]
    environ = {"PREFECT_API_URL": prefect.url, STACK: str(state.root)}
    look = check("silent workers", state, environ, alerts=alerts, running=lambda _: set(POOLS))
    look_at(look, 0.0, PATIENCE_SECONDS)
    alerts.deliver()
    assert prefect.events == []


def test_its_workers_are_not_taken_for_another_machines(
    prefect: Any, state: Home, settings: StackSettings
) -> None:
    run = prefect.add("RUNNING")
    environ = {"PREFECT_API_URL": prefect.url, STACK: str(state.root)}
    look = check("reaper", state, environ, living=dict)
    look_at(look, 0.0, RUNNING_SECONDS)
    assert run["state"]["type"] == "CRASHED"


def test_in_a_container_the_workers_bear_its_own_name_whatever_a_stack_left_in_the_folder(
    prefect: Any, state: Home, settings: StackSettings
) -> None:
    prefect.workers[:] = [{"name": f"gpu-7-{part}", "status": "ONLINE"} for part in POOLS]
    run = prefect.add("RUNNING")
    look = check("reaper", state, {"PREFECT_API_URL": prefect.url}, living=dict)
    look_at(look, 0.0, RUNNING_SECONDS)
    assert run["state"]["type"] == "CRASHED"


def test_the_next_start_takes_the_new_name_and_asking_twice_does_not(
    state: Home, settings: StackSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"prefect_port": settings.prefect_port}
    with monkeypatch.context() as running:
        running.setattr(supervisor, "find", lambda _: psutil.Process())
        running.setattr(starting, "_ready", lambda *_: None)
        assert up(state, **asked) == settings
    assert {part.arguments[-1] for part in workers(up(state, **asked))} == {
        "gpu-7-worker",
        "gpu-7-registry-worker",
    }


def test_settings_from_before_the_name_was_kept_are_read(
    state: Home, settings: StackSettings
) -> None:
    path = folder(state) / "settings.json"
    kept = json.loads(path.read_text())
    kept.pop("machine", None)
    path.write_text(json.dumps(kept))
    found = read_settings(state)
    assert found is not None
    assert workers(found)[0].arguments[-1] == "gpu-7-worker"

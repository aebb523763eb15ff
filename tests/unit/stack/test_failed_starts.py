"""A stack that cannot start tells somebody: once for a whole row of failed starts, whoever tries again and again."""

import errno
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from flows.cli import main
from flows.stack import failed_starts, memory, starting, supervisor
from flows.stack.alerts import Alerts
from flows.stack.exposure import NO_RESTART
from flows.stack.failed_starts import MOST_REASONS, attended, forget, tell_failure
from flows.stack.settings import StackSettings, folder, read_settings, write_settings
from flows.stack.state import StackState
from tasks import files
from tasks.errors import StageFailed, UserError
from tasks.home import Home
from tasks.promotion import notices
from tasks.promotion.delivery import Target, TargetFailed, webhook_target
from tasks.promotion.notices import notices_of
from tests.loopback import free_port
from tests.webhook import webhook

AWAY = "http://127.0.0.1:9/away"
Told = list[dict[str, Any]]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[Told]:
    """What the one receiver was sent that the environment names."""
    with webhook() as (url, sent):
        monkeypatch.setenv("LORALINE_WEBHOOKS", url)
        yield sent


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """The home of a stack that was started before; its MLflow has a port that nobody else has."""
    home = Home((tmp_path / "home").resolve())
    monkeypatch.setenv("LORALINE_HOME", str(home.root))
    runtime = tmp_path / "runtime"
    runtime.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    home.prepare()
    (tmp_path / "project").mkdir()
    ports = (free_port(), free_port())
    settings = StackSettings(
        project=tmp_path / "project", prefect_port=ports[0], mlflow_port=ports[1]
    )
    write_settings(home, settings)
    return home


@pytest.fixture
def taken(state: Home) -> Iterator[int]:
    """The stack's port for MLflow, where somebody else listens now."""
    settings = read_settings(state)
    assert settings is not None
    with socket.socket() as other:
        other.bind(("127.0.0.1", settings.mlflow_port))
        other.listen()
        yield settings.mlflow_port


def started(*more: str) -> int:
    """What the unit does, and systemd again after ten seconds."""
    return main(["up", "--foreground", *more])


def texts(told: Told) -> list[str]:
    return [it["data"]["text"] for it in told]


def waiting(state: Home) -> list[list[str]]:
    found = sorted((state.root / "outbox").glob("[0-9]*.json"))
    return [json.loads(path.read_text())["waiting"] for path in found]


def full(monkeypatch: pytest.MonkeyPatch, *folders: Path) -> None:
    """A disk on which these folders are, and that takes nothing any more."""
    write = files.write_json

    def refused(path: Path, value: Any) -> None:
        if any(path.is_relative_to(it) for it in folders):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, value)

    for module in (notices, memory):
        monkeypatch.setattr(module, "write_json", refused)


def test_a_whole_row_of_failed_starts_is_told_once_with_the_reason_and_the_way_out(
    state: Home, taken: int, told: Told
) -> None:
    assert [started() for _ in range(4)] == [2] * 4
    (text,) = texts(told)
    assert (
        f"The stack of {state.root} on {os.uname().nodename} does not start: Port {taken}" in text
    )
    assert f"process {os.getpid()} listens there" in text
    assert "--mlflow-port" in text
    assert told[0]["type"] == "loraline.alert"
    assert (told[0]["data"]["kind"], told[0]["data"]["name"]) == ("start-failed", "stack")
    # The blocks of Prefect send it when Prefect is back.
    assert waiting(state) == [["prefect"]]


def test_the_blocks_of_prefect_have_it_when_the_stack_is_back(
    state: Home, taken: int, told: Told, prefect: Any
) -> None:
    started()
    watchdog = notices_of(state, prefect_api=prefect.url, environ=dict(os.environ))
    assert Alerts(folder(state) / "alerts.json", watchdog).deliver() == 0
    assert [it["payload"]["kind"] for it in prefect.events] == ["start-failed"]
    assert len(told) == 1


def test_another_reason_is_told_and_the_first_one_not_again(
    state: Home, taken: int, told: Told, tmp_path: Path
) -> None:
    started()
    (tmp_path / "project").rmdir()
    assert started() == 2
    (tmp_path / "project").mkdir()
    started()
    port, project = texts(told)
    assert "Port" in port
    assert "no folder any more" in project
    assert "loraline up --project DIR" in project


def test_what_differs_in_each_attempt_is_no_other_reason(state: Home, told: Told) -> None:
    for number in range(3):
        log = f"MLflow server does not start. Last lines:\n  {number} died\nFull log: /x.log"
        with_pid = f"Port 5000 of 127.0.0.1 cannot be used: process {number} listens there."
        draft = OSError(errno.EROFS, "Read-only file system", f"/x/stack/settings.{number}.tmp")
        for error in (StageFailed(log), UserError(with_pid), draft):
            tell_failure(state, error)
    assert len(told) == 3
    tell_failure(
        state, UserError("Port 4200 of 127.0.0.1 cannot be used: process 9 listens there.")
    )
    assert len(told) == 4
    # Whatever a text holds that nobody thought of: it is no flood.
    for word in map(chr, range(ord("a"), ord("z"))):
        tell_failure(state, StageFailed(f"It failed with {word}"))
    assert len(told) == MOST_REASONS


def test_the_end_of_a_long_reason_is_told_too(state: Home, told: Told) -> None:
    tell_failure(state, StageFailed("It fails. Last lines:\n" + "x" * 9999 + "\nFull log: /a.log"))
    (text,) = texts(told)
    assert "It fails." in text
    assert "Full log: /a.log" in text
    assert len(text) < 2500


def test_after_a_start_that_succeeded_the_same_reason_is_told_again(
    state: Home, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = read_settings(state)
    assert settings is not None
    monkeypatch.setattr(starting, "apply", lambda *_: [])
    healthy = StackState(running=True, healthy=True, home="", supervisor_pid=os.getpid())
    failed = StageFailed("MLflow server does not start")
    tell_failure(state, failed)
    starting._deployed(state, settings, healthy, lambda _: None)
    for _ in range(2):
        tell_failure(state, failed)
    assert len(told) == 2
    assert len(waiting(state)) == 2


def test_a_person_at_a_terminal_reads_the_error_and_gets_no_alert(
    state: Home, taken: int, told: Told
) -> None:
    assert main(["up"]) == 2
    assert not told
    assert not (state.root / "outbox").exists()


def test_a_person_who_waits_for_what_the_unit_starts_gets_no_alert(
    state: Home, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = read_settings(state)
    assert settings is not None
    failed = StageFailed("MLflow server does not start")
    attempts = []

    def attempt() -> None:
        attempts.append(len(told))
        tell_failure(state, failed)

    unit = SimpleNamespace(name="x", start=attempt, stop=attempt, is_active=lambda: False)
    monkeypatch.setattr(supervisor, "find", lambda _: None)
    with pytest.raises(StageFailed, match="did not start the stack"):
        starting._started_by(unit, state, settings, lambda _: None)  # type: ignore[arg-type]
    assert attempts == [0, 0]
    assert not told
    tell_failure(state, failed)
    assert len(told) == 1


def test_a_start_that_another_command_is_in_the_way_of_is_told_by_that_one(
    state: Home, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    with starting._alone(state):
        tell_failure(state, UserError("Another `loraline up` or `loraline down` is at work"))
    with attended(state):
        tell_failure(state, StageFailed("It fails"))
    monkeypatch.setattr(supervisor, "find", lambda _: psutil.Process())
    tell_failure(state, UserError("The stack is already running, with other settings"))
    assert not told


def test_a_start_that_is_stopped_on_purpose_has_not_failed(
    state: Home, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bring_up(*_: Any) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(starting, "bring_up", bring_up)
    assert started() == 130
    assert not told


@pytest.mark.parametrize("error", [StageFailed("It fails"), ValueError("a bug")])
def test_exit_codes_are_what_they_were_and_every_error_is_told(
    state: Home, told: Told, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def bring_up(*_: Any) -> None:
        raise error

    monkeypatch.setattr(starting, "bring_up", bring_up)
    assert started() == 1
    assert str(error) in texts(told)[0]


def test_a_start_that_systemd_does_not_repeat_is_told_as_well(
    state: Home, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_SERVER_API_AUTH_STRING", raising=False)
    assert started("--host", "0.0.0.0") == NO_RESTART
    assert "ssh -L" in texts(told)[0]


@pytest.mark.parametrize(("attempts", "count"), [(3, 1), (99, 0)])
def test_where_no_later_start_tells_it_a_receiver_that_is_away_is_waited_for(
    state: Home, told: Told, monkeypatch: pytest.MonkeyPatch, attempts: int, count: int
) -> None:
    monkeypatch.delenv("PREFECT_SERVER_API_AUTH_STRING", raising=False)
    send, tried = Target.send, []

    def after_some(self: Target, notice: Any) -> None:
        tried.append(notice)
        if len(tried) < attempts:
            raise TargetFailed("the network is not up yet")
        send(self, notice)

    monkeypatch.setattr(Target, "send", after_some)
    monkeypatch.setattr(failed_starts, "INSISTING_SECONDS", [0.0] * 9)
    assert started("--host", "0.0.0.0") == NO_RESTART
    assert len(told) == count
    # What the last attempt does not deliver waits for the next start.
    assert len(tried) == (3 if count else 10)


def test_a_webhook_that_only_the_file_of_the_stack_names_is_told(
    state: Home, taken: int, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = os.environ["LORALINE_WEBHOOKS"]
    monkeypatch.delenv("LORALINE_WEBHOOKS")
    (folder(state) / "environment").write_text(f"LORALINE_WEBHOOKS={address}\n")
    started()
    assert len(told) == 1


def test_a_receiver_that_is_away_at_first_has_it_by_a_later_start_and_the_other_once(
    state: Home, taken: int, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As before the network is there: nothing else of the stack lives that would deliver it."""
    here = os.environ["LORALINE_WEBHOOKS"]
    with webhook() as (late, told_late):
        monkeypatch.setattr(notices, "webhook_target", away(late))
        monkeypatch.setenv("LORALINE_WEBHOOKS", f"{here} {late}")
        started()
        started()
        assert (len(told), len(told_late)) == (1, 0)
        monkeypatch.undo()
        monkeypatch.setenv("LORALINE_HOME", str(state.root))
        monkeypatch.setenv("LORALINE_WEBHOOKS", f"{here} {late}")
        started()
        started()
        assert (len(told), len(told_late)) == (1, 1)


def away(url: str) -> Callable[[str, str], Target]:
    """Makes receivers, of which this one cannot be reached, by the name that it has."""

    def made(address: str, secret: str) -> Target:
        found = webhook_target(address, secret)
        return replace(found, url=AWAY) if address == url else found

    return made


def test_a_full_disk_makes_no_flood_of_it(
    state: Home, taken: int, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = os.environ["LORALINE_WEBHOOKS"]
    monkeypatch.setenv("LORALINE_WEBHOOKS", f"{here} {AWAY}")
    full(monkeypatch, state.root)
    for _ in range(4):
        started()
    assert len(told) == 1
    forget(state)
    started()
    assert len(told) == 2


def test_where_nothing_can_be_remembered_nothing_is_told_every_ten_seconds(
    state: Home,
    taken: int,
    told: Told,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    full(monkeypatch, state.root, tmp_path / "runtime")
    assert started() == 2
    assert not told
    assert "Nobody could be told" in caplog.text


@pytest.mark.parametrize("damage", ["", "{", "[1]", '{"since": 1}'])
def test_a_damaged_memory_keeps_nothing_from_being_told(
    state: Home, told: Told, damage: str
) -> None:
    (folder(state) / "failed-start.json").write_text(damage)
    tell_failure(state, StageFailed("It fails"))
    assert len(told) == 1


def test_the_memory_of_somebody_else_is_not_believed(
    state: Home, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = StageFailed("It fails")
    tell_failure(state, error)
    monkeypatch.setattr("os.getuid", lambda: os.geteuid() + 1)
    assert failed_starts.read_row(state).told == []

"""What keeps a stack from starting is told with the way out; what a killed one left is ended."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from filelock import FileLock

from flows.cli import main
from flows.server_lock import ServerLock
from flows.stack import leftovers
from flows.stack.settings import StackSettings, write_settings
from flows.stack.starting import bring_down, bring_up
from flows.stack.state import stack_state
from tasks.errors import UserError
from tasks.home import Home
from tasks.stack import Server, read_stack, running, write_stack


def quiet(_: str) -> None:
    """Nobody is told."""


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    home = Home((tmp_path / "home").resolve())
    monkeypatch.setenv("LORALINE_HOME", str(home.root))
    home.prepare()
    return home


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def settings(tmp_path: Path) -> StackSettings:
    return StackSettings(project=tmp_path, prefect_port=free_port(), mlflow_port=free_port())


def test_a_port_in_use_is_told_with_who_listens(state: Home, settings: StackSettings) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", settings.mlflow_port))
        other.listen()
        with pytest.raises(UserError, match="--mlflow-port") as refused:
            bring_up(state, settings, quiet)
    assert f"process {os.getpid()}" in str(refused.value)
    assert not state.stack_file.exists()


def test_one_port_for_both_servers_is_refused(state: Home, tmp_path: Path) -> None:
    port = free_port()
    with pytest.raises(UserError, match="choose two ports"):
        bring_up(state, StackSettings(project=tmp_path, prefect_port=port, mlflow_port=port), quiet)


def test_a_run_that_has_the_database_is_named(state: Home, settings: StackSettings) -> None:
    lock = ServerLock(state)
    assert lock.acquire("loraline run recipes/a.yaml")
    try:
        with pytest.raises(UserError, match=r"loraline run recipes/a\.yaml"):
            bring_up(state, settings, quiet)
    finally:
        lock.release()


def test_two_commands_at_once_do_not_start_two_stacks(
    state: Home, settings: StackSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        FileLock(state.locks / "stack.lock"),
        pytest.raises(UserError, match="loraline status"),
    ):
        bring_up(state, settings, quiet)


def test_processes_of_a_killed_stack_are_found_in_their_own_sessions_and_ended(
    state: Home,
) -> None:
    write_stack(state, {"prefect": Server("http://127.0.0.1:9/api", 2**22 + 1, supervised=True)})
    orphans = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env={**os.environ, leftovers.STACK: stack},
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        for stack, script in (
            (str(state.root), "print(1, flush=True); import time; time.sleep(600)"),
            # Deaf to SIGTERM.
            (
                str(state.root),
                "import signal; signal.signal(15, signal.SIG_IGN); print(1, flush=True); "
                "import time; time.sleep(600)",
            ),
            ("/another/home", "print(1, flush=True); import time; time.sleep(600)"),
        )
    ]
    try:
        for orphan in orphans:
            assert orphan.stdout is not None
            orphan.stdout.readline()
        assert {p.pid for p in leftovers.processes(state)} == {p.pid for p in orphans[:2]}
        assert leftovers.end(leftovers.processes(state), grace_seconds=1) == 2
        assert orphans[2].poll() is None
        assert bring_down(state, quiet) is False
        assert not state.stack_file.exists()
    finally:
        for orphan in orphans:
            orphan.kill()
            orphan.communicate()


def test_status_of_no_stack_says_what_to_do_and_ends_with_one(
    state: Home, settings: StackSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", "--json"]) == 1
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert told["running"] is told["healthy"] is False
    assert "loraline up" in told["message"]
    write_settings(state, settings)
    write_stack(state, {"prefect": Server("http://127.0.0.1:9/api", 2**22 + 1, supervised=True)})
    assert "was killed" in stack_state(state, {}).message


def test_down_without_a_stack_is_no_mistake(
    state: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["down"]) == 0
    assert "No stack" in capsys.readouterr().out


def test_an_open_address_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LORALINE_HOME", str(tmp_path / "none"))
    monkeypatch.delenv("PREFECT_SERVER_API_AUTH_STRING", raising=False)
    assert main(["up", "--host", "0.0.0.0"]) == 2
    assert "ssh -L" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_the_settings_of_the_last_stack_are_kept_unless_options_change_them(
    state: Home, settings: StackSettings
) -> None:
    import argparse

    from flows.commands.up import add_arguments, wanted_settings

    write_settings(state, settings)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert wanted_settings(parser.parse_args([]), state) == settings
    changed = wanted_settings(parser.parse_args(["--trainings", "2"]), state)
    assert changed == settings.model_copy(update={"trainings": 2})
    with pytest.raises(UserError, match="--prefect-port"):
        wanted_settings(parser.parse_args(["--prefect-port", "70000"]), state)


def test_a_client_stays_with_a_supervised_server_that_is_being_restarted(
    state: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.stack.RESTART_SECONDS", 1.0)
    url = f"http://127.0.0.1:{free_port()}/api"
    for supervised in (True, False):
        server = Server(url, psutil.Process().pid, supervised)
        write_stack(state, {"prefect": server})
        assert read_stack(state)["prefect"] == server
        assert running(state, "prefect") == (server if supervised else None)

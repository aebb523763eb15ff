"""What keeps a stack from starting is told with the way out; what a killed one left is ended."""

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
from filelock import FileLock

from flows.cli import main
from flows.server_lock import ServerLock
from flows.stack import leftovers
from flows.stack.configuration import socket_file
from flows.stack.settings import StackSettings, folder, write_settings
from flows.stack.starting import bring_down, bring_up
from flows.stack.state import stack_state
from tasks.errors import StageFailed, UserError
from tasks.home import Home
from tasks.stack import Server, read_stack, running, start_ticks, write_stack
from tests.loopback import free_port


def quiet(_: str) -> None:
    """Nobody is told."""


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    home = Home((tmp_path / "home").resolve())
    monkeypatch.setenv("LORALINE_HOME", str(home.root))
    home.prepare()
    return home


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


def test_a_port_of_another_stack_is_told_with_what_ends_that(
    state: Home, settings: StackSettings
) -> None:
    script = (
        "import socket, sys, time; it = socket.socket(); it.bind(('127.0.0.1', int(sys.argv[1]))); "
        "it.listen(); print(1, flush=True); time.sleep(600)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(settings.prefect_port)],
        env={**os.environ, leftovers.STACK: "/srv/other one/.loraline"},
        stdout=subprocess.PIPE,
    )
    try:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(UserError) as refused:
            bring_up(state, settings, quiet)
    finally:
        other.kill()
        other.communicate()
    assert "loraline down --home '/srv/other one/.loraline'" in str(refused.value)


@pytest.mark.parametrize(
    ("error", "way_out"),
    [
        (OSError(errno.EACCES, "Permission denied"), "--mlflow-port"),
        (OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address"), "--host"),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "--host"),
    ],
    ids=["privileged", "not-ours", "no-such-name"],
)
def test_an_address_that_cannot_be_used_is_told_with_the_way_out_that_helps(
    state: Home,
    settings: StackSettings,
    monkeypatch: pytest.MonkeyPatch,
    error: OSError,
    way_out: str,
) -> None:
    class Refused(socket.socket):
        def bind(self, address: Any) -> None:
            if address[1] == settings.mlflow_port:
                raise error
            super().bind(address)

    monkeypatch.setattr("flows.stack.in_use.socket.socket", Refused)
    with pytest.raises(UserError, match=way_out) as refused:
        bring_up(state, settings, quiet)
    # Nobody listens there, so there is nothing to stop.
    assert "Stop what" not in str(refused.value)


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


def test_down_without_a_stack_is_no_mistake_and_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LORALINE_HOME", str(tmp_path / "none"))
    assert main(["down"]) == 0
    assert "No stack" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("command", ["status", "down"])
def test_who_asks_in_another_folder_is_told_where_the_stack_is(
    state: Home, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    # As the supervisor's command line and environment look.
    script = "print(1, flush=True); import time; time.sleep(600)"
    other = subprocess.Popen(
        [sys.executable, "-c", script, "supervisor.supervisord"],
        env={**os.environ, leftovers.STACK: "/srv/other one/.loraline"},
        stdout=subprocess.PIPE,
    )
    try:
        assert other.stdout is not None
        other.stdout.readline()
        main([command])
    finally:
        other.kill()
        other.communicate()
    assert "--home '/srv/other one/.loraline'" in capsys.readouterr().out


def test_a_stack_whose_folder_was_deleted_is_told_and_can_be_stopped(
    state: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    script = "print(1, flush=True); import time; time.sleep(600)"
    orphan = subprocess.Popen(
        [sys.executable, "-c", script, "supervisor.supervisord"],
        env={**os.environ, leftovers.STACK: str(state.root)},
        stdout=subprocess.PIPE,
    )
    try:
        assert orphan.stdout is not None
        orphan.stdout.readline()
        shutil.rmtree(state.root)
        assert main(["status"]) == 1
        assert "was the folder deleted?" in capsys.readouterr().out
        assert main(["down"]) == 0
        assert orphan.poll() is not None
    finally:
        orphan.kill()
        orphan.communicate()


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

    settings = settings.model_copy(update={"database": "sqlite"})
    write_settings(state, settings)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert wanted_settings(parser.parse_args([]), state) == settings
    changed = wanted_settings(parser.parse_args(["--trainings", "2"]), state)
    assert changed == settings.model_copy(update={"trainings": 2})
    with pytest.raises(UserError, match="--prefect-port"):
        wanted_settings(parser.parse_args(["--prefect-port", "70000"]), state)
    write_settings(state, settings.model_copy(update={"project": settings.project / "moved"}))
    with pytest.raises(UserError, match=r"moved, where the stack .* --project DIR"):
        wanted_settings(parser.parse_args([]), state)
    # They also say where the data is: defaults in their stead could be an empty stack.
    (state.root / "stack" / "settings.json").write_text("{")
    with pytest.raises(UserError, match="delete the file"):
        wanted_settings(parser.parse_args([]), state)


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


def test_after_a_reboot_another_process_is_not_taken_for_the_supervisor(
    state: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its id is given again; who took it for the supervisor would wait for servers that nobody starts."""
    monkeypatch.setattr("tasks.stack.RESTART_SECONDS", 1.0)
    url = f"http://127.0.0.1:{free_port()}/api"
    ticks = start_ticks(os.getpid())
    assert ticks is not None
    assert start_ticks(2**22 + 1) is None
    for started, found in ((ticks, True), (ticks - 1, False), (None, True)):
        server = Server(url, os.getpid(), True, started)
        write_stack(state, {"prefect": server})
        assert read_stack(state)["prefect"] == server
        assert (running(state, "prefect") is not None) is found


@pytest.mark.enable_socket
def test_what_a_power_cut_left_is_in_nobodys_way_and_a_strangers_process_is_left_alone(
    state: Home, settings: StackSettings
) -> None:
    """A pid file whose number is another process's by now, a socket that nobody answers, a `stack.json`."""
    from flows.stack import supervisor

    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        folder(state).mkdir(parents=True)
        pid_file = folder(state) / "supervisord.pid"
        pid_file.write_text(f"{stranger.pid}\n")
        with socket.socket(socket.AF_UNIX) as gone:
            gone.bind(str(socket_file(state)))
        write_settings(state, settings)
        write_stack(state, {"prefect": Server("http://127.0.0.1:9/api", stranger.pid, True, 1)})
        assert stack_state(state, dict(os.environ)).running is False
        supervisor.start(state, [])
        found = supervisor.find(state)
        assert found is not None
        assert int(pid_file.read_text()) == found.pid
        assert supervisor.stop(state, []) == 0
        assert not pid_file.exists()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()
        bring_down(state, quiet)


@pytest.mark.parametrize("ended_by", ["down", "kill"])
def test_in_the_foreground_down_is_no_failure_and_a_killed_supervisor_is_one(
    state: Home, monkeypatch: pytest.MonkeyPatch, ended_by: str
) -> None:
    """A service manager starts again what failed, and must not start what a person stopped."""
    from flows.commands import up
    from flows.stack import supervisor

    script = "import time; time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", script])
    monkeypatch.setattr(
        supervisor,
        "find",
        lambda _: psutil.Process(process.pid) if process.poll() is None else None,
    )
    write_stack(state, {"prefect": Server("http://127.0.0.1:9/api", process.pid, True)})
    ends = bring_down if ended_by == "down" else lambda *_: process.kill()
    later = threading.Timer(1.0, ends, (state, quiet))
    later.start()
    try:
        if ended_by == "down":
            assert up._stay(state, None, lambda: None) == 0
        else:
            with pytest.raises(StageFailed, match="ended by itself"):
                up._stay(state, None, lambda: None)
            assert not state.stack_file.exists()
    finally:
        later.join()
        process.kill()
        process.wait()


@pytest.mark.parametrize("told", ["while it tells", "later"])
@pytest.mark.parametrize("before", [psutil.Process(), psutil.Process(1), None])
def test_who_stays_at_a_stack_that_ran_before_ends_without_it(
    state: Home, monkeypatch: pytest.MonkeyPatch, before: psutil.Process | None, told: str
) -> None:
    """A unit of a user whose services end with the login finds the stack that `up` has started by hand."""
    from flows.commands import up
    from flows.stack import supervisor

    def ends(*_: float) -> None:
        raise KeyboardInterrupt

    ended: list[Home] = []
    monkeypatch.setattr(supervisor, "find", lambda _: psutil.Process())
    monkeypatch.setattr("time.sleep", ends)
    monkeypatch.setattr("flows.stack.starting.bring_down", lambda home, *_: ended.append(home))
    assert up._stay(state, before, ends if told == "while it tells" else lambda: None) == 0
    # Not the one that was just ending when this command began.
    assert ended == ([] if before == psutil.Process() else [state])


@pytest.mark.long
def test_a_stack_that_is_told_to_end_waits_for_the_command_that_is_at_work_on_it(
    state: Home,
) -> None:
    """Whatever a unit leaves, systemd kills at once: no checkpoint, and a crash of its runs."""
    from flows.commands import up

    def ends() -> None:
        raise KeyboardInterrupt

    # As while another `up` deploys.
    busy = FileLock(state.locks / "stack.lock", thread_local=False)
    busy.acquire()
    # Longer than a person waits, who can ask again.
    later = threading.Timer(7.0, busy.release)
    later.start()
    try:
        assert up._stay(state, None, ends) == 0
        assert not busy.is_locked
    finally:
        later.join()


@pytest.mark.enable_socket
def test_a_supervisor_that_does_not_answer_is_told_and_not_waited_for(
    state: Home, settings: StackSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.stack import supervisor

    monkeypatch.setattr(supervisor, "START_SECONDS", 1.0)
    monkeypatch.setattr(supervisor, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(supervisor, "find", lambda _: psutil.Process())
    write_settings(state, settings)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(socket_file(state)))
        silent.listen(64)
        with pytest.raises(StageFailed, match="lives and does not answer"):
            bring_up(state, settings, quiet)
    # Where the path is too long for one it lies elsewhere.
    socket_file(state).unlink()


def test_a_second_up_names_the_servers_of_a_stack_whose_first_one_was_killed(
    state: Home, settings: StackSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.stack import starting, supervisor
    from flows.stack.state import StackState

    me = psutil.Process()
    monkeypatch.setattr(supervisor, "find", lambda _: me)
    healthy = StackState(running=True, healthy=True, home=str(state.root), supervisor_pid=me.pid)
    monkeypatch.setattr(starting, "stack_state", lambda *_: healthy)
    monkeypatch.setattr(starting, "apply", lambda *_: [])
    write_settings(state, settings)
    bring_up(state, settings, quiet)
    named = read_stack(state)
    assert named["prefect"] == Server(
        settings.prefect_api, me.pid, supervised=True, started=start_ticks(me.pid)
    )
    assert named["mlflow"].url == settings.mlflow_url

"""A stack comes back on the database that has its data, or not at all: on the other one it would look empty."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from flows.cli import main
from flows.stack import starting
from flows.stack.exposure import NO_RESTART
from flows.stack.settings import POSTGRES, StackSettings, folder, read_settings, write_settings
from flows.stack.state import StackState
from tasks.errors import UserError
from tasks.home import Home
from tasks.tracking import tracking_uri

ADDRESS = "postgresql://me:geheim@db.example:6432"


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    home = Home((tmp_path / "home").resolve())
    monkeypatch.setenv("LORALINE_HOME", str(home.root))
    for name in (POSTGRES, "MLFLOW_TRACKING_URI"):
        # Set first, so that what a test leaves is taken back.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return home


def had(state: Home, database: str) -> None:
    """As after a `loraline up` on that database."""
    settings = StackSettings.model_validate({"project": state.root.parent, "database": database})
    write_settings(state, settings)


@pytest.mark.parametrize(("arguments", "code"), [((), 2), (("--foreground",), NO_RESTART)])
def test_a_stack_on_postgresql_does_not_come_back_on_empty_sqlite(
    state: Home, arguments: tuple[str, ...], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    had(state, "postgresql")
    assert main(["up", *arguments]) == code
    told = capsys.readouterr().err
    assert "is PostgreSQL, and LORALINE_POSTGRES is not set" in told
    assert str(folder(state) / "environment") in told
    assert "loraline up --database sqlite" in told
    assert not list(state.root.rglob("*.db"))


def test_a_stack_on_sqlite_does_not_come_back_on_empty_postgresql(
    state: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(POSTGRES, ADDRESS)
    had(state, "sqlite")
    assert main(["up"]) == 2
    told = capsys.readouterr().err
    assert "loraline up --database postgresql" in told
    assert "geheim" not in told
    # Runs without a stack left data, too, and so did a stack from before this was remembered.
    (folder(state) / "settings.json").unlink()
    state.mlflow.mkdir(parents=True)
    (state.mlflow / "mlflow.db").touch()
    assert main(["up"]) == 2
    assert "is SQLite, and LORALINE_POSTGRES is set" in capsys.readouterr().err


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[StackSettings]:
    """What was started, where nothing really is."""
    found: list[StackSettings] = []

    def start(home: Home, settings: StackSettings, *_: object) -> StackState:
        found.append(settings)
        return StackState(running=True, healthy=True, home=str(home.root))

    monkeypatch.setattr(starting, "_start", start)
    for name in ("migrate", "refuse_in_use"):
        monkeypatch.setattr(starting, name, lambda *_: None)
    monkeypatch.setattr(starting, "ready_databases", lambda _: [])
    monkeypatch.setattr(starting, "only_stack", lambda *_: nullcontext())
    return found


def test_the_database_is_remembered_without_its_address(
    state: Home, started: list[StackSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(POSTGRES, ADDRESS)
    assert main(["up"]) == 0
    kept = (folder(state) / "settings.json").read_text()
    assert json.loads(kept)["database"] == "postgresql"
    assert "geheim" not in kept
    assert "me" not in json.loads(kept)["database_server"]
    assert started == [read_settings(state)]


def test_another_database_is_begun_anew_when_it_is_asked_for(
    state: Home,
    started: list[StackSettings],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    had(state, "postgresql")
    assert main(["up", "--database", "sqlite"]) == 0
    assert main(["up"]) == 0
    assert [it.database for it in started] == ["sqlite", "sqlite"]
    monkeypatch.setenv(POSTGRES, ADDRESS)
    assert main(["up", "--database", "postgresql"]) == 0
    assert started[-1].database == "postgresql"
    capsys.readouterr()
    # It must be possible to move the server; only nobody should wonder.
    monkeypatch.setenv(POSTGRES, ADDRESS.replace("db.example", "new.example"))
    assert main(["up"]) == 0
    assert "is at new.example:6432, and was at db.example:6432" in capsys.readouterr().err


def test_the_file_of_the_stack_brings_it_back_from_a_shell_that_has_nothing(
    state: Home, started: list[StackSettings]
) -> None:
    had(state, "postgresql")
    (folder(state) / "environment").write_text(f"{POSTGRES}={ADDRESS}\n")
    assert main(["up"]) == 0
    assert started[0].database == "postgresql"


def test_a_part_does_not_begin_on_another_database_than_its_stack(state: Home) -> None:
    had(state, "postgresql")
    # It ends itself and its group when its standard input closes.
    reader, writer = os.pipe()
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "flows.stack.part_process", "mlflow"],
            stdin=reader,
            capture_output=True,
            text=True,
            timeout=120,
            start_new_session=True,
            cwd=Path(__file__).resolve().parents[3],
        )
    finally:
        os.close(reader)
        os.close(writer)
    assert done.returncode == 1, done.stderr
    assert "LORALINE_POSTGRES is not set" in done.stderr
    assert not list(state.root.rglob("*.db"))


@pytest.mark.parametrize("command", ["gc", "versions", "ui"])
def test_nobody_takes_the_folders_sqlite_for_a_stack_on_postgresql_that_is_down(
    state: Home,
    command: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    had(state, "postgresql")
    assert main([command, *(["support"] if command == "versions" else [])]) == 2
    told = capsys.readouterr().err
    assert "keeps its data in PostgreSQL" in told
    assert "loraline up" in told
    assert not (state.mlflow / "mlflow.db").exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example.org")
    assert tracking_uri(state) == "http://mlflow.example.org"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    had(state, "sqlite")
    assert tracking_uri(state).startswith("sqlite:")


def test_a_unit_that_would_start_on_another_database_is_not_installed(
    state: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.stack import boot

    monkeypatch.setattr(boot, "systemd_environment", dict)
    monkeypatch.setattr("flows.stack.systemd.systemctl", lambda *_: None)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    # This shell's address is not the unit's.
    monkeypatch.setenv(POSTGRES, ADDRESS)
    settings = StackSettings(project=tmp_path, database="postgresql")
    with pytest.raises(UserError, match="Nothing was installed"):
        boot.install(state, settings)
    assert not boot.unit_path(state).exists()
    (folder(state) / "environment").write_text(f"{POSTGRES}={ADDRESS}\n")
    boot.install(state, settings)
    assert "geheim" not in boot.unit_path(state).read_text()

"""What a stack is started with: who may reach it, where its data lies, what the supervisor is told."""

import os
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from filelock import FileLock

from flows.commands.down import run as down
from flows.stack import leftovers, starting, supervisor
from flows.stack.boot import _starts_this_installation, unit, unit_path
from flows.stack.configuration import configuration, socket_file, write_configuration
from flows.stack.databases import databases, write_ahead
from flows.stack.exposure import MLFLOW_PASSWORDS, NO_RESTART, PREFECT_PASSWORD, refuse_open
from flows.stack.own_names import HOSTS, ORIGINS, allowed_names
from flows.stack.parts import part_environment, parts, prefect_server_settings
from flows.stack.settings import StackSettings, folder, has_settings, read_settings, write_settings
from flows.stack.state import StackState
from tasks.errors import StageFailed, UserError
from tasks.home import Home


@pytest.fixture
def state(tmp_path: Path) -> Home:
    return Home((tmp_path / "a home with spaces").resolve())


@pytest.fixture
def settings(tmp_path: Path) -> StackSettings:
    return StackSettings(project=tmp_path)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.1.2.3"])
def test_loopback_needs_no_password(host: str) -> None:
    refuse_open(host, {})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "gpu-box"])
def test_another_address_without_passwords_is_refused_with_what_is_missing(host: str) -> None:
    with pytest.raises(UserError) as refused:
        refuse_open(host, {PREFECT_PASSWORD: "admin:pw"})
    for name in MLFLOW_PASSWORDS:
        assert name in str(refused.value)
    assert f"Not set: {PREFECT_PASSWORD}" not in str(refused.value)


def test_a_prefect_password_without_its_user_is_refused() -> None:
    with pytest.raises(UserError, match="user:password"):
        refuse_open("0.0.0.0", {PREFECT_PASSWORD: "pw", **dict.fromkeys(MLFLOW_PASSWORDS, "x")})


def test_with_passwords_mlflow_is_started_with_its_authentication(tmp_path: Path) -> None:
    closed, opened = (
        next(p for p in parts(StackSettings(project=tmp_path, host=host)) if p.name == "mlflow")
        for host in ("127.0.0.1", "0.0.0.0")
    )
    assert "--app-name" not in closed.arguments
    assert opened.arguments[opened.arguments.index("--app-name") + 1] == "basic-auth"


def answered(host: str, name: str, environ: dict[str, str]) -> bool:
    """Whether MLflow's own checks let a browser read and change something under this name and port."""
    from mlflow.server.security_utils import is_allowed_host_header, should_block_cors_request

    given = allowed_names(StackSettings(project=Path(), host=host), environ)
    hosts, origins = (given[variable].split(",") for variable in (HOSTS, ORIGINS))
    return is_allowed_host_header(hosts, name) and not should_block_cors_request(
        f"http://{name}", "POST", origins
    )


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "0.0.0.0", "192.168.1.7", "Gpu-Box"])
def test_mlflow_is_asked_by_its_workers_and_through_a_tunnel_and_under_no_strange_name(
    host: str, tmp_path: Path
) -> None:
    address = StackSettings(project=tmp_path, host=host).mlflow_url.removeprefix("http://").lower()
    for environ in ({}, {HOSTS: "mlflow.example.com", ORIGINS: "http://mlflow.example.com"}):
        for name in (address, "localhost:5000", "127.0.0.1:8000", "[::1]:8000"):
            assert answered(host, name, environ), name
        assert answered(host, "mlflow.example.com", environ) == bool(environ)
        for name in ("example.com:5000", "10.example.com:5000", "127.0.0.1.example.com:5000"):
            assert not answered(host, name, environ), name


def test_the_machines_own_names_are_answered_only_where_others_can_reach_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(nodename="Gpu-Box"))
    assert answered("0.0.0.0", "gpu-box:5000", {})
    assert not answered("127.0.0.1", "gpu-box:5000", {})


def test_sqlite_is_the_default_and_lies_in_the_home(state: Home) -> None:
    found = databases(state, {})
    assert found.prefect == f"sqlite+aiosqlite:///{state.prefect / 'prefect.db'}"
    assert found.mlflow == f"sqlite:///{state.mlflow / 'mlflow.db'}"
    assert found.lock == found.server == ""


def test_one_setting_gives_both_postgresql_addresses(state: Home) -> None:
    url = "postgresql://me:p%40ss@db.example:6432?sslmode=require"
    found = databases(state, {"LORALINE_POSTGRES": url})
    assert (
        found.prefect
        == "postgresql+asyncpg://me:p%40ss@db.example:6432/loraline_prefect?ssl=require"
    )
    assert (
        found.mlflow
        == "postgresql+psycopg://me:p%40ss@db.example:6432/loraline_mlflow?sslmode=require"
    )
    assert found.lock == "postgresql://me:p%40ss@db.example:6432/loraline_mlflow?sslmode=require"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://a:geheim@b?sslmode=require&options=-c%20geheim", "the parameter options"),
        ("postgresql://a:geheim@b?require_auth=scram-sha-256", "the parameter require_auth"),
        ("postgresql://a:geheim@b?sslrootcert=ca.pem", "Write the whole path"),
        ("mysql://a:geheim@b", "no address of a PostgreSQL server"),
        ("postgresql:///", "no address of a PostgreSQL server"),
        ("postgresql://a:geheim@b/things", "Leave '/things' away"),
        ("postgresql://a:geheim@b:5/things", "at b:5, names a database"),
        ("postgresql://a:Zk9/geheim@b:5432", "Percent-encode"),
        ("postgresql://a:12/geheim@b:5432", "Percent-encode"),
        ("postgresql://a:pa@geheim@b", "Percent-encode"),
        ("postgresql://a:1?x=geheim@b", "Percent-encode"),
        ("postgresql://a:x[geheim]@b", "Percent-encode"),
        ("postgresql://a:100%geheim@b", "Percent-encode"),
        ("postgresql://a:my geheim@b", "Percent-encode"),
        ("postgresql://b/prod?password=geheim", "Leave '/prod' away"),
        ("postgresql://a:geheim@b:1,c:2", "no single host and port"),
        ("postgresql://a:geheim@b:99999", "no single host and port"),
        ("geheim", "no address of a PostgreSQL server"),
    ],
)
def test_an_unfit_postgresql_setting_is_refused_without_its_password(
    state: Home, url: str, words: str
) -> None:
    with pytest.raises(UserError, match=words) as refused:
        databases(state, {"LORALINE_POSTGRES": url})
    assert "geheim" not in str(refused.value)


def test_a_sqlite_file_remembers_its_write_ahead_log(tmp_path: Path) -> None:
    import sqlite3

    file = tmp_path / "some.db"
    write_ahead(file)
    with sqlite3.connect(file) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_the_prefect_server_keeps_leases_on_disk_and_tells_nobody(
    state: Home, settings: StackSettings
) -> None:
    part = next(p for p in parts(settings) if p.name == "prefect")
    environment = part_environment(part, state, settings, databases(state, {}), {})
    assert environment["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"].endswith(".filesystem")
    assert environment["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert "flow_runs" in environment["PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED"]


def test_prefect_takes_every_setting_that_its_server_is_given(state: Home, tmp_path: Path) -> None:
    # It ignores names that it does not know, as after an upgrade that renamed one.
    given = prefect_server_settings(databases(state, {}))
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "config", "view", "--hide-sources", "--show-secrets"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, **given, "PREFECT_PROFILES_PATH": str(tmp_path / "profiles.toml")},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    for name in given:
        assert f"{name}=" in done.stdout


def test_prefect_keeps_events_for_three_days_and_runs_for_ninety(
    state: Home, tmp_path: Path
) -> None:
    given = prefect_server_settings(databases(state, {}))
    told = (
        "from prefect.settings import get_current_settings; server = get_current_settings().server; "
        "print(server.events.retention_period.days, server.services.db_vacuum.retention_period.days)"
    )
    done = subprocess.run(
        [sys.executable, "-c", told],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, **given, "PREFECT_PROFILES_PATH": str(tmp_path / "profiles.toml")},
        timeout=120,
    )
    assert done.stdout.split() == ["3", "90"], done.stderr


def test_a_flow_has_the_stacks_addresses_and_none_of_the_servers_secrets(
    state: Home, settings: StackSettings
) -> None:
    environ = {
        "LORALINE_POSTGRES": "postgresql://me:geheim@db",
        "MLFLOW_AUTH_ADMIN_PASSWORD": "geheim",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "geheim",
        "MLFLOW_TRACKING_URI": "http://elsewhere",
        "PREFECT_API_URL": "http://elsewhere/api",
        "HF_HOME": "/models",
    }
    part = next(p for p in parts(settings) if p.name == "worker")
    environment = part_environment(part, state, settings, databases(state, {}), environ)
    assert environment["PREFECT_API_URL"] == "http://127.0.0.1:4200/api"
    assert environment["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:5000"
    assert environment["HF_HOME"] == "/models"
    assert "geheim" not in "".join(environment.values())


def test_the_supervisor_understands_its_configuration(
    state: Home, settings: StackSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from supervisor.options import ServerOptions

    state.root.mkdir(parents=True)
    state.logs.mkdir()
    path = write_configuration(state, parts(settings), socket_file(state))
    monkeypatch.chdir(state.root)
    options = ServerOptions()
    # It tells on standard error and exits when a line is wrong.
    options.realize(["-c", str(path), "--nodaemon"], doc="")
    programs = {group.name: group.process_configs[0] for group in options.process_group_configs}
    assert set(programs) == {"prefect", "mlflow", "worker", "registry-worker", "watchdog"}
    for name, program in programs.items():
        assert program.stdout_logfile == str(state.logs / f"{name}.log")
        assert 0 < program.stdout_logfile_maxbytes * (program.stdout_logfile_backups + 1) < 2**27
        assert program.autorestart is not False
        assert program.environment["LORALINE_PART"] == name
        assert program.killasgroup
    # The highest priority ends first: what ends on purpose must not be taken for dead.
    assert max(programs, key=lambda name: programs[name].priority) == "watchdog"


def test_a_stack_that_a_flow_starts_does_not_belong_to_its_run(state: Home) -> None:
    environment = supervisor.environment(state, {"PREFECT__FLOW_RUN_ID": "x", "PATH": "/bin"})
    assert leftovers.FLOW_RUN not in environment
    assert environment["PATH"] == "/bin"
    assert environment[leftovers.STACK] == str(state.root)


@pytest.mark.parametrize("name", ["a;b", "100%", 'a"b', "team #2"])
def test_a_path_that_the_configuration_cannot_hold_is_refused(
    tmp_path: Path, settings: StackSettings, name: str
) -> None:
    with pytest.raises(UserError, match="cannot hold"):
        configuration(Home(tmp_path / name), parts(settings), tmp_path / "socket")


def test_the_socket_lies_in_the_home_unless_its_path_is_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert socket_file(Home(Path("/srv/lora"))) == Path("/srv/lora/stack/supervisor.sock")
    monkeypatch.setattr("flows.stack.configuration.SHORT_FOLDER", tmp_path)
    deep = Home(tmp_path / ("long" * 60))
    socket = socket_file(deep)
    assert len(socket.name) < 30
    assert socket != socket_file(Home(deep.root / "other"))
    assert socket.parent.stat().st_mode & 0o777 == 0o700
    socket.parent.chmod(0o777)
    with pytest.raises(UserError, match="mode 700"):
        socket_file(deep)


def test_settings_are_read_as_they_were_written_and_damage_is_told(
    state: Home, settings: StackSettings
) -> None:
    assert read_settings(state) is None
    assert not has_settings(state)
    write_settings(state, settings)
    assert has_settings(state)
    assert read_settings(state) == settings
    (folder(state) / "settings.json").write_text("{")
    with pytest.raises(UserError, match="loraline down"):
        read_settings(state)


def test_the_unit_is_one_that_systemd_accepts_and_holds_no_secret(
    tmp_path: Path, settings: StackSettings
) -> None:
    home = Home(tmp_path / "home with 100% $pace")
    environ = {"PATH": "/bin:/opt/$x", "LORALINE_POSTGRES": "postgresql://a:geheim@b"}
    text = unit(home, settings, environ)
    assert "geheim" not in text
    assert "Restart=on-failure" in text
    assert f"RestartPreventExitStatus={NO_RESTART}" in text.splitlines()
    assert '"up" "--foreground" "--existing"' in text
    # In a command `$` begins a variable, in an environment it is a sign like any other.
    assert "100%% $$pace" in text
    assert 'Environment="PATH=/bin:/opt/$x"' in text
    assert "WantedBy=default.target" in text
    verify = Path("/usr/bin/systemd-analyze")
    if not verify.exists():
        pytest.skip("no systemd-analyze here to verify the unit with")
    file = tmp_path / "loraline.service"
    file.write_text(text)
    done = subprocess.run(
        [str(verify), "--user", "verify", str(file)],
        capture_output=True,
        text=True,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
        timeout=60,
    )
    complaints = [line for line in done.stderr.splitlines() if "loraline.service" in line]
    assert not complaints, done.stderr
    assert done.returncode == 0, done.stderr


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `systemctl` of one user: what it was asked goes into the file `asked`, its environment is in `given`,
    what it refuses in `fails`, how its units are in `state`.
    """
    folder = tmp_path / "systemd"
    folder.mkdir()
    (folder / "given").write_text("LANG=C.UTF-8\n")
    (folder / "state").write_text("active\n")
    program = folder / "systemctl"
    program.write_text(
        f'#!/bin/sh\necho "$*" >> "{folder}/asked"\n'
        f'if grep -qsx -e "$2" "{folder}/fails"; then echo "no bus" >&2; exit 1; fi\n'
        f'case "$2" in show-environment) cat "{folder}/given";; is-active) cat "{folder}/state";; esac\n'
    )
    program.chmod(0o755)
    (folder / "linger").write_text("yes\n")
    login = folder / "loginctl"
    login.write_text(f'#!/bin/sh\ncat "{folder}/linger"\n')
    login.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return folder


def at_boot(state: Home, *arguments: str) -> int:
    return up(state, "--at-boot", *arguments)


def up(state: Home, *arguments: str) -> int:
    """`loraline up` as the command line calls it."""
    from flows.commands.up import add_arguments, run

    parser = ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args(["--project", str(state.root.parent), *arguments]))


def test_a_unit_that_would_be_open_is_not_installed_and_told_where_passwords_go(
    state: Home, systemd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORALINE_HOME", str(state.root))
    # This shell's passwords are not the unit's.
    for name in MLFLOW_PASSWORDS:
        monkeypatch.setenv(name, "of-this-shell")
    monkeypatch.setenv(PREFECT_PASSWORD, "admin:of-this-shell")
    with pytest.raises(UserError, match="Nothing was installed") as refused:
        at_boot(state, "--host", "0.0.0.0")
    secrets = folder(state) / "environment"
    assert str(secrets) in str(refused.value)
    for name in (PREFECT_PASSWORD, *MLFLOW_PASSWORDS):
        assert name in str(refused.value).partition("Set ")[0]
    assert not (tmp_path / "config").exists()
    assert "enable" not in (systemd / "asked").read_text()
    # Left for the passwords, and closed to others.
    assert secrets.stat().st_mode & 0o777 == 0o600

    secrets.write_text(
        f"# {PREFECT_PASSWORD}=nobody:reads-this\n{PREFECT_PASSWORD}='admin:pw'\n"
        + "".join(f'{name}="a secret"\n' for name in MLFLOW_PASSWORDS[:-1])
    )
    with pytest.raises(UserError, match=rf"Not set: {MLFLOW_PASSWORDS[-1]}\."):
        at_boot(state, "--host", "0.0.0.0")
    (systemd / "given").write_text(f"LANG=C.UTF-8\n{MLFLOW_PASSWORDS[-1]}=from-environment.d\n")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    assert at_boot(state, "--host", "0.0.0.0") == 0
    assert (systemd / "asked").read_text().splitlines()[-1] == "--user enable loraline.service"


def test_each_home_has_a_unit_and_what_up_is_told_later_holds_at_the_next_boot(
    systemd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (Home(tmp_path / name / "state") for name in ("a", "a b"))
    for home, port in ((first, "4300"), (second, "4301"), (first, "4302")):
        monkeypatch.setenv("LORALINE_HOME", str(home.root))
        home.root.mkdir(parents=True, exist_ok=True)
        assert at_boot(home, "--prefect-port", port) == 0
    units = tmp_path / "config" / "systemd" / "user"
    texts = {path.name: path.read_text() for path in units.iterdir()}
    assert len(texts) == 2
    assert f'"{first.root}"' in texts.pop("loraline.service")
    ((name, text),) = texts.items()
    assert f'"{second.root}"' in text
    enabled = (systemd / "asked").read_text().splitlines()
    assert [line.split()[-1] for line in enabled if "enable" in line.split()] == [
        "loraline.service",
        name,
        "loraline.service",
    ]

    # The unit names no port: the settings that `up` reads have it.
    assert "430" not in text
    settings = read_settings(first)
    assert settings is not None
    assert settings.prefect_port == 4302
    monkeypatch.setattr("flows.stack.supervisor.find", lambda _: object())
    monkeypatch.setenv("LORALINE_HOME", str(first.root))
    with pytest.raises(UserError, match="prefect_port is 4302 and not 4303"):
        at_boot(first, "--prefect-port", "4303")


@pytest.fixture
def unit_of(state: Home, systemd: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """What systemd is asked after the unit of the home was installed. Its stack lives once it was started."""
    monkeypatch.setenv("LORALINE_HOME", str(state.root))
    for name in ("HF_TOKEN", "LORALINE_WEBHOOK_SECRET", PREFECT_PASSWORD):
        # Set first, so that what a test leaves is taken back.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    state.root.mkdir(parents=True)
    assert at_boot(state) == 0
    asked = systemd / "asked"
    asked.unlink()
    alive = StackState(running=True, healthy=True, home="", supervisor_pid=os.getpid())

    def find(_: Home) -> psutil.Process | None:
        there = asked.exists() and "restart" in asked.read_text()
        return psutil.Process() if there else None

    monkeypatch.setattr(supervisor, "find", find)
    for name in ("migrate", "refuse_in_use"):
        monkeypatch.setattr(starting, name, lambda *_: None)
    monkeypatch.setattr(starting, "_wait_until_healthy", lambda *_: alive)
    monkeypatch.setattr(starting, "apply", lambda *_: [])
    return lambda: asked.read_text().splitlines()


def test_where_there_is_a_unit_up_starts_that_with_its_own_environment(
    state: Home,
    unit_of: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (folder(state) / "environment").write_text("LORALINE_WEBHOOK_SECRET=rotated\n")
    monkeypatch.setenv("LORALINE_WEBHOOK_SECRET", "before")
    monkeypatch.setenv("HF_TOKEN", "of this shell")
    assert up(state, "--trainings", "2") == 0
    assert "--user restart loraline.service" in unit_of()
    kept = read_settings(state)
    assert kept is not None
    assert kept.trainings == 2
    told = capsys.readouterr().err
    assert "Starting loraline.service" in told
    for name in ("HF_TOKEN", "LORALINE_WEBHOOK_SECRET"):
        assert f"{name} is set in this shell: write it into " in told
    # What this process asks the servers with.
    assert os.environ["LORALINE_WEBHOOK_SECRET"] == "rotated"


@pytest.mark.parametrize(
    ("refused", "told"),
    [
        ("show-environment", "does not watch this stack"),
        ("is-enabled", ""),
        ("linger", "sudo loginctl enable-linger"),
    ],
)
def test_without_an_answer_of_systemd_or_with_a_unit_that_was_taken_back_up_starts_it_itself(
    state: Home,
    systemd: Path,
    unit_of: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    refused: str,
    told: str,
) -> None:
    (systemd / "fails").write_text(f"{refused}\n")
    if refused == "linger":
        (systemd / "linger").write_text("no\n")
    started: list[Home] = []
    alive = StackState(running=True, healthy=True, home="")
    monkeypatch.setattr(starting, "_start", lambda home, *_: started.append(home) or alive)
    assert up(state) == 0
    assert started == [state]
    assert not any("restart" in line for line in unit_of())
    said = capsys.readouterr().err
    assert told in said
    assert ("loraline.service" in said) == bool(told)


def test_a_unit_of_another_installation_is_not_started_on_databases_of_this_one(
    state: Home, unit_of: Callable[[], list[str]]
) -> None:
    path = unit_path(state)
    text = path.read_text()
    path.write_text(text.replace(sys.executable, "/opt/old/bin/python"))
    with pytest.raises(UserError, match=r"another installation.*`loraline up --at-boot` from this"):
        up(state)
    assert not any("restart" in line for line in unit_of())
    assert not list(state.logs.glob("*migration*"))
    # The same one by another of its interpreter's names, and by another command before it.
    other = Path(sys.executable).with_name("python9")
    path.write_text(text.replace('="' + sys.executable, f'=/usr/bin/nice "{other}'))
    assert up(state) == 0


def test_an_installation_is_known_whatever_its_folder_is_called(
    state: Home, settings: StackSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", '/opt/a $b%c "d"/bin/python')
    assert _starts_this_installation(unit(state, settings, {}))
    monkeypatch.setattr(sys, "executable", "/opt/a/bin/python")
    assert not _starts_this_installation('ExecStart="/opt/b/bin/python" "-P"')


def test_who_finds_the_stack_that_the_unit_started_hears_that_it_ends_with_the_login(
    state: Home,
    systemd: Path,
    unit_of: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (systemd / "linger").write_text("no\n")
    monkeypatch.setattr(supervisor, "find", lambda _: psutil.Process())
    assert up(state) == 0
    told = capsys.readouterr().err
    assert "loraline.service started this stack, and ends with your last login" in told
    assert "sudo loginctl enable-linger" in told
    assert not any("restart" in line for line in unit_of())


def test_a_unit_that_does_not_stay_is_stopped_and_says_why_elsewhere(
    state: Home,
    systemd: Path,
    unit_of: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (systemd / "fails").write_text("is-active\n")
    monkeypatch.setattr(supervisor, "find", lambda _: None)
    with pytest.raises(StageFailed, match=r"journalctl --user --unit loraline\.service"):
        up(state)
    assert unit_of()[-1] == "--user stop loraline.service"


def test_a_unit_that_could_not_start_for_lack_of_passwords_is_not_tried(
    state: Home, unit_of: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (PREFECT_PASSWORD, *MLFLOW_PASSWORDS):
        monkeypatch.setenv(name, "a:secret")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    with pytest.raises(UserError, match="Nothing was started"):
        up(state, "--host", "0.0.0.0")
    assert not any("restart" in line for line in unit_of())


@pytest.mark.parametrize(
    ("how", "stopped"),
    [("activating", True), ("active", True), ("inactive", False), ("failed", False)],
)
def test_down_ends_a_unit_that_would_start_the_stack_again_also_where_its_folder_is_away(
    state: Home,
    systemd: Path,
    unit_of: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    how: str,
    stopped: bool,
) -> None:
    (systemd / "state").write_text(f"{how}\n")
    monkeypatch.setattr(supervisor, "find", lambda _: None)
    away = state.root.rename(state.root.with_name("away"))
    assert down(Namespace(json=False)) == 0
    assert ("--user stop loraline.service" in unit_of()) == stopped
    assert ("is stopped" if stopped else "No stack") in capsys.readouterr().out
    # Nor does the unit itself, were it started, make another one in its place.
    with pytest.raises(UserError, match=r"its disk not mounted, or the folder away"):
        up(state, "--foreground", "--existing")
    assert not state.root.exists()
    away.rename(state.root)
    monkeypatch.setattr("flows.commands.up._stay", lambda *_: 0)
    monkeypatch.setattr(
        starting, "_start", lambda *_: StackState(running=True, healthy=True, home="")
    )
    assert up(state, "--foreground", "--existing") == 0


def test_down_leaves_a_unit_alone_on_whose_stack_another_command_is_at_work(
    state: Home, unit_of: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped now, the unit could not end its stack in order, and systemd would kill it."""
    monkeypatch.setattr(supervisor, "find", lambda _: psutil.Process())
    assert up(state) == 0
    before = unit_of()
    with FileLock(state.locks / "stack.lock"), pytest.raises(UserError, match="is at work on"):
        down(Namespace(json=False))
    assert unit_of() == before


@pytest.mark.parametrize("healthy", [True, False])
def test_down_ends_a_unit_whose_start_does_not_get_well_and_one_that_waits_for_its_next(
    state: Home,
    systemd: Path,
    unit_of: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    healthy: bool,
) -> None:
    (systemd / "state").write_text("activating\n")
    monkeypatch.setattr(supervisor, "find", lambda _: psutil.Process())
    assert up(state) == 0
    if not healthy:
        # So named is a stack once all its parts were.
        state.stack_file.unlink()
    asked_by_then: list[str] = []
    monkeypatch.setattr(supervisor, "stop", lambda *_: asked_by_then.extend(unit_of()) or 0)
    assert down(Namespace(json=False)) == 0
    stop = "--user stop loraline.service"
    assert stop in unit_of()
    assert (stop in asked_by_then) != healthy


@pytest.mark.parametrize("earlier", [True, False])
def test_a_unit_of_an_earlier_version_is_told(
    state: Home, unit_of: Callable[[], list[str]], capsys: pytest.CaptureFixture[str], earlier: bool
) -> None:
    path = unit_path(state)
    if earlier:
        path.write_text(path.read_text().replace(' "--existing"', ""))
    assert up(state) == 0
    assert any("restart" in line for line in unit_of())
    assert ("of an earlier version: `loraline up --at-boot`" in capsys.readouterr().err) == earlier


def test_down_says_that_a_unit_which_it_cannot_ask_may_start_the_stack_again(
    systemd: Path, unit_of: Callable[[], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    (systemd / "fails").write_text("show-environment\n")
    assert down(Namespace(json=False)) == 0
    assert (
        "loraline.service was not stopped, and may start the stack again" in capsys.readouterr().err
    )
    assert not any("stop" in line for line in unit_of())


@pytest.mark.parametrize("arguments", [(), ("--foreground",)])
def test_a_stack_that_runs_without_its_unit_is_told_and_so_is_what_it_has_not_read(
    state: Home,
    systemd: Path,
    unit_of: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
) -> None:
    (systemd / "fails").write_text("is-active\n")
    monkeypatch.setattr(supervisor, "find", lambda _: psutil.Process())
    monkeypatch.setattr("flows.commands.up._stay", lambda *_: 0)
    assert up(state, *arguments) == 0
    told = capsys.readouterr().err
    assert "already running: what was changed in its environment" in told
    assert "`loraline down`" in told
    assert ("loraline.service did not start this stack" in told) == (not arguments)


def test_a_unit_whose_passwords_are_gone_is_not_started_again_and_again(tmp_path: Path) -> None:
    bare = {name: value for name, value in os.environ.items() if "PASSWORD" not in name}
    bare.pop(PREFECT_PASSWORD, None)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "flows.cli", "up", "--foreground", "--host", "0.0.0.0"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**bare, "LORALINE_HOME": str(tmp_path / "state")},
        timeout=120,
    )
    assert done.returncode == NO_RESTART, done.stderr
    assert "Not set: " in done.stderr
    assert not (tmp_path / "state").exists()


def test_without_systemd_the_way_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.stack.boot import systemd_environment

    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match=r"no systemctl here.*@reboot"):
        systemd_environment()

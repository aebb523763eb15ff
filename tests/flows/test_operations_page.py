"""Every command of `docs/operations.md` is one that works: the page is read, and what it says is typed."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from flows.stack import leftovers
from flows.stack.settings import read_settings
from tests.running_stack import Stack, running_stack

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
PROGRAMS = (
    *("loraline", "pg_dump", "pg_restore", "psql", "tar", "pip", "ssh", "export", "curl"),
    *("systemctl", "journalctl", "sudo", "git", "make", "mlflow"),
)
STORY = [
    "loraline up",
    "loraline status",
    "loraline deploy",
    "loraline deploy recipes/support.yaml",
    "loraline schedules",
    "loraline run recipes/support.yaml",
    "loraline gc",
    "loraline gc --keep-runs 1",
    "loraline gc --yes",
    "loraline prune NAME",
    "loraline doctor",
    "loraline down",
    "(umask 077; tar -czf loraline-backup.tgz .loraline)",
    "loraline up",
    "loraline status",
    "loraline down",
    "# move the folder away",
    "tar -xzf loraline-backup.tgz",
    "loraline up",
    "loraline status",
    "loraline schedules",
    "loraline down",
]
"""What an operator types, in this order, in a folder with one scheduled recipe."""
POSTGRES = re.findall(r"^(?:pg_dump|pg_restore|psql) .*$", PAGE, re.MULTILINE)
"""That test types whatever stands there."""
(CURL,) = re.findall(r"^curl .*$", PAGE, re.MULTILINE)
ELSEWHERE = {
    CURL: "test_with_passwords_both_servers_may_listen_to_others_and_ask_them",
    "loraline up --at-boot": "test_the_unit_is_written_enabled_and_one_that_systemd_accepts",
    "loraline rollback NAME --reason 'what is wrong'": (
        "test_a_person_promotes_goes_back_and_the_log_says_so"
    ),
    "loraline up --foreground": "test_in_the_foreground_it_stays_until_it_is_told_to_end",
    "pip install 'mlflow[auth]'": "test_with_passwords_both_servers_may_listen_to_others_and_ask_them",
    "export LORALINE_POSTGRES=postgresql://user:password@host:5432": (
        "test_a_whole_stack_keeps_its_data_in_postgresql_also_when_the_password_is_rotated"
    ),
    **dict.fromkeys(
        ("export PGHOST=host PGPORT=5432 PGUSER=user", "umask 077", *POSTGRES),
        "test_the_documented_backup_of_both_databases_can_be_put_back",
    ),
    # A mention in a sentence, without its argument.
    "loraline run": "test_everything_passes_with_the_network_unreachable",
    "loraline ui": "test_cli_servers",
    "loraline predict": "test_prediction",
    "CUDA_VISIBLE_DEVICES= loraline predict ...": (
        "test_predicting_on_the_command_line_has_a_turn_on_the_gpu_that_it_may_see"
    ),
    **dict.fromkeys(
        ("loraline up --database postgresql", "loraline up --database sqlite"),
        "test_another_database_is_begun_anew_when_it_is_asked_for",
    ),
    "mlflow runs restore --run-id ID": (
        "test_what_was_deleted_today_can_be_restored_whatever_its_age_and_what_was_long_ago_is_gone"
    ),
    **dict.fromkeys(
        ("systemctl --user start loraline.service", "systemctl --user restart loraline.service"),
        "test_what_the_user_stops_stays_so_until_it_is_started",
    ),
    "systemctl --user disable --now loraline.service": (
        "test_a_unit_that_was_disabled_starts_nothing_with_the_machine"
    ),
    "loraline versions": "test_with_passwords_both_servers_may_listen_to_others_and_ask_them",
    "ssh -L 4200:127.0.0.1:4200 -L 5000:127.0.0.1:5000 the-machine": (
        "test_the_tunnel_is_one_to_both_servers_and_to_nothing_else"
    ),
    "journalctl --user --unit loraline.service --lines 50": (
        "test_the_journal_is_asked_for_the_unit_in_words_that_it_knows"
    ),
    "sudo loginctl enable-linger USER": "test_lingering_is_a_thing_that_can_be_enabled",
    **dict.fromkeys(
        ("git pull", "make install"),
        "test_a_clone_is_brought_up_to_date_and_installed_as_the_page_says",
    ),
}
"""Command -> the test that runs it."""
slow = pytest.mark.slow


def commands(page: str) -> set[str]:
    """The lines of its shell blocks, and what stands between the words of its sentences."""
    blocks = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    lines = {line.strip() for block in blocks for line in block.splitlines() if line.strip()}
    words = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
    # One may span two lines, and begin with variables.
    spans = {" ".join(span.split()) for span in re.findall(r"`([^`]+)`", words)}
    typed = re.compile(rf"([A-Z_]+=\S* )*({'|'.join(PROGRAMS)}).* ")
    return lines | {span for span in spans if typed.match(span)}


def test_every_command_of_the_page_is_run_by_a_test() -> None:
    found = commands(PAGE)
    assert {"loraline up", "CUDA_VISIBLE_DEVICES= loraline predict ..."} <= found
    unknown = found - {*STORY, *ELSEWHERE}
    assert not unknown, "commands that no test runs; add them to STORY"
    gone = {it for it in (*STORY, *ELSEWHERE) if not it.startswith("#")} - found
    assert not gone, "commands that the page no longer names"
    files = list((ROOT / "tests").rglob("test_*.py"))
    tests = "\n".join(path.read_text(encoding="utf-8") for path in files)
    there = {path.stem for path in files} | set(re.findall(r"def (test_\w+)\(", tests))
    assert not set(ELSEWHERE.values()) - there, "tests that are gone"


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PATH with `loraline`, and with a systemctl that notes what it is asked."""
    folder = tmp_path_factory.mktemp("bin")
    scripts = {
        "loraline": f'#!/bin/sh\nexec {sys.executable} -P -m flows.cli "$@"\n',
        "systemctl": f'#!/bin/sh\necho "$@" >> {folder}/asked\n',
    }
    for name, text in scripts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def stack(small: Any) -> Iterator[Stack]:
    """A stack whose ports are remembered: what is typed below needs no options for them."""
    schedule = re.search(r"```yaml\n(schedule:\n.*?)```", PAGE, re.DOTALL)
    assert schedule is not None
    text = (small.folder / "recipes" / "small.yaml").read_text()
    recipe = small.folder / "recipes" / "support.yaml"
    recipe.write_text(text.replace("name: small", "name: support") + schedule[1])
    with running_stack(small) as found:
        small("down")
        environment = found.home.root / "stack" / "environment"
        environment.write_text("LORALINE_WEBHOOK_SECRET='kept in a file'\n")
        environment.chmod(0o600)
        yield found


def typed(stack: Stack, shell: Path, command: str, **more: str) -> subprocess.CompletedProcess[str]:
    path = f"{shell}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-c", command],
        cwd=stack.cli.folder,
        env=stack.cli.environment(PATH=path, **stack.environment, **more),
        capture_output=True,
        text=True,
        timeout=540,
        stdin=subprocess.DEVNULL,
    )


@slow
@pytest.mark.timeout(1800)
def test_what_the_page_says_works_as_it_stands_there(stack: Stack, shell: Path) -> None:
    for number, command in enumerate(STORY):
        if command.startswith("#"):
            shutil.move(stack.home.root, stack.cli.folder / "moved-away")
            continue
        done = typed(stack, shell, command.replace("NAME", "support"))
        said = f"{number}. {command}\n{done.stdout}\n{done.stderr[-3000:]}"
        assert done.returncode == 0, said
        if command == "loraline schedules":
            assert "support" in done.stdout, said
        if command == "loraline up":
            # No shell has it.
            mine = [it.environ() for it in leftovers.processes(stack.home)]
            assert any(it.get("LORALINE_WEBHOOK_SECRET") == "kept in a file" for it in mine)
    assert not leftovers.processes(stack.home)
    assert not (stack.cli.folder / "user-home" / ".prefect").exists()


@slow
def test_the_unit_is_written_enabled_and_one_that_systemd_accepts(
    stack: Stack, shell: Path
) -> None:
    done = typed(stack, shell, "loraline up --at-boot")
    assert done.returncode == 0, done.stderr
    unit = stack.cli.folder / "user-home" / ".config" / "systemd" / "user" / "loraline.service"
    assert str(unit) in done.stdout
    asked = (shell / "asked").read_text().splitlines()
    assert asked[-2:] == ["--user daemon-reload", "--user enable loraline.service"]
    secrets = stack.home.root / "stack" / "environment"
    assert secrets.stat().st_mode & 0o777 == 0o600
    text = unit.read_text()
    assert f"EnvironmentFile=-{secrets}" in text
    # What it starts is this program; the home remembers the options of the stack that was here before.
    (start,) = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    assert re.findall(r'"([^"]*)"', start)[:5] == [
        *(sys.executable, "-P", "-m", "flows.cli", "up"),
    ]
    assert f'"{stack.home.root}"' in start
    kept = read_settings(stack.home)
    assert kept is not None
    assert str(kept.prefect_port) == stack.ports[1]
    verify = shutil.which("systemd-analyze")
    if verify is None:
        pytest.skip("no systemd-analyze here to verify the unit with")
    done = subprocess.run(
        [verify, "--user", "verify", str(unit)],
        capture_output=True,
        text=True,
        env={**os.environ, "XDG_RUNTIME_DIR": str(shell)},
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "loraline.service" not in done.stderr


def own_network() -> str:
    """Why a program cannot be given a network of its own here; empty when it can."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return "needs unshare and ip"
    if subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode:
        return "needs the right to make a network namespace"
    return ""


SECURED = f"""
set -e
ip link set lo up
status() {{ curl -s -o /dev/null -w '%{{http_code}}' "$@"; }}
loraline up --host 0.0.0.0
loraline status
test "$(status -X POST http://127.0.0.1:4200/api/flows/filter)" = 401
test "$(status http://127.0.0.1:5000/api/2.0/mlflow/experiments/search?max_results=1)" = 401
test "$(status -H 'Host: mlflow.example.com' http://127.0.0.1:5000/api/2.0/mlflow/experiments/search?max_results=1)" = 401
test "$(status -H 'Host: other.example.com' http://127.0.0.1:5000/)" = 403
# The worker's run logs in to both.
export PREFECT_API_URL=http://127.0.0.1:4200/api PREFECT_API_AUTH_STRING=$PREFECT_SERVER_API_AUTH_STRING
python -m prefect deployment run retrain/retrain --watch --param "recipe=$PWD/recipes/secured.yaml"
unset PREFECT_API_URL PREFECT_API_AUTH_STRING
loraline versions secured
# A new password for each.
mlflow_api=http://127.0.0.1:5000/api/2.0/mlflow/experiments/search?max_results=1
{CURL}
loraline down
before=$MLFLOW_TRACKING_PASSWORD
export MLFLOW_TRACKING_PASSWORD=geheim-rotated-mlflow PREFECT_SERVER_API_AUTH_STRING=operator:geheim-rotated
loraline up
test "$(status --user "admin:$before" $mlflow_api)" = 401
test "$(status --user "admin:$MLFLOW_TRACKING_PASSWORD" $mlflow_api)" = 200
test "$(status --user operator:geheim-prefect -X POST http://127.0.0.1:4200/api/flows/filter)" = 401
loraline status
loraline versions secured
loraline down
"""


@slow
@pytest.mark.skipif(bool(own_network()), reason=own_network() or "it can")
@pytest.mark.skipif(find_spec("flask_wtf") is None, reason="needs pip install 'mlflow[auth]'")
@pytest.mark.timeout(900)
def test_with_passwords_both_servers_may_listen_to_others_and_ask_them(
    small: Any, shell: Path, tmp_path: Path
) -> None:
    """In a network of its own, where nobody else is; with the variables that the page names, and no other."""
    section = PAGE[PAGE.index("### Who can reach it") : PAGE.index("### Where the data lies")]
    named = set(re.findall(r"`((?:PREFECT|MLFLOW)_[A-Z_]+)`", section))
    values = {name: f"geheim-{name.lower()}" for name in named}
    values["PREFECT_SERVER_API_AUTH_STRING"] = "operator:geheim-prefect"
    values["MLFLOW_TRACKING_USERNAME"] = "admin"
    values["MLFLOW_TRACKING_PASSWORD"] = values["MLFLOW_AUTH_ADMIN_PASSWORD"]
    values["MLFLOW_SERVER_ALLOWED_HOSTS"] = "mlflow.example.com"
    values["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"] = "https://mlflow.example.com"
    (tmp_path / "new-password.json").write_text(
        json.dumps(
            {
                "username": "admin",
                "current_password": values["MLFLOW_AUTH_ADMIN_PASSWORD"],
                "password": "geheim-rotated-mlflow",
            }
        )
    )
    (tmp_path / "recipes").mkdir()
    text = (small.folder / "recipes" / "small.yaml").read_text()
    recipe = tmp_path / "recipes" / "secured.yaml"
    recipe.write_text(text.replace("name: small", "name: secured"))
    home = tmp_path / "home"
    done = subprocess.run(
        ["unshare", "-rn", "bash", "-c", SECURED],
        cwd=tmp_path,
        env={
            **small.environment(),
            **values,
            "PATH": os.pathsep.join(
                (str(shell), str(Path(sys.executable).parent), os.environ["PATH"])
            ),
            "HOME": str(tmp_path / "user-home"),
            "LORALINE_HOME": str(home),
            "PREFECT_PROFILES_PATH": str(tmp_path / "profiles.toml"),
        },
        capture_output=True,
        text=True,
        timeout=800,
        stdin=subprocess.DEVNULL,
    )
    said = f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert done.returncode == 0, said
    logs = [path for path in home.rglob("*.log") if path.is_file()]
    assert logs
    for path in logs:
        assert "geheim-" not in path.read_text(errors="replace"), path

"""`loraline` itself: quick help, exit codes, no tracebacks."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.cli import COMMANDS, main
from tasks.artifacts import Outcome

HEAVY = {"torch", "transformers", "prefect", "mlflow", "pydantic", "rich", "yaml", "datasets"}


def loraline(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "flows.cli", *arguments],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


def test_help_answers_in_half_a_second() -> None:
    seconds = []
    for _ in range(5):
        began = time.monotonic()
        assert loraline("--help").returncode == 0
        seconds.append(time.monotonic() - began)
    # The quickest of five: others may be using the machine.
    assert min(seconds) < 0.5


def test_help_imports_nothing_heavy() -> None:
    code = "import flows.cli, sys; flows.cli.build_parser(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert not HEAVY & set(done.stdout.split())


def test_help_names_every_command_and_the_exit_codes() -> None:
    text = loraline("--help").stdout
    for name in COMMANDS:
        assert f"\n    {name} " in text
    for code in ("0", "1", "2", "3", "130"):
        assert f"\n  {code}  " in text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    assert "--home" in capsys.readouterr().out


def test_version_is_the_installed_one(capsys: pytest.CaptureFixture[str]) -> None:
    from importlib.metadata import version

    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"loraline {version('loraline')}\n"


@pytest.mark.parametrize(
    "arguments", [["no-such-command"], ["run"], ["run", "a.yaml", "--nonsense"]]
)
def test_a_wrong_command_line_is_exit_code_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["run", "--json"], "the following arguments are required: RECIPE"),
        (
            ["run", "a.yaml", "--json", "--forse"],
            "unrecognized arguments: --forse. Did you mean `--force`?",
        ),
        (["--json", "run", "a.yaml"], "unrecognized arguments: --json"),
        (["runn", "--json"], "Did you mean `run`?"),
    ],
)
def test_a_wrong_command_line_of_a_program_is_one_object_like_a_failed_run(
    arguments: list[str], reason: str
) -> None:
    done = loraline(*arguments)
    assert done.returncode == 2
    answer = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert (answer["outcome"], answer["model_version"]) == ("failed", None)
    assert set(answer) == set(Outcome.model_fields) - {"started_from"}
    assert reason in answer["reason"]
    assert answer["reason"] in done.stderr
    assert done.stderr.startswith("usage: ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "--json"],
        ["check", "a.yaml", "--json", "--rows", "many"],
        ["doctor", "--json", "more"],
        ["versions", "no-such-model", "--json"],
        ["verify", "models:/no-such-model/1", "--json"],
    ],
)
def test_every_command_that_prints_an_object_prints_one_for_a_failure(arguments: list[str]) -> None:
    done = loraline(*arguments)
    assert done.returncode == 2
    answer = json.loads(done.stdout)
    assert answer["ok"] is False
    assert answer["error"] in done.stderr


def test_without_json_a_wrong_command_line_prints_nothing_on_standard_output() -> None:
    done = loraline("run", "--nonsense")
    assert (done.returncode, done.stdout) == (2, "")


def test_a_users_mistake_shows_a_message_and_no_traceback(tmp_path: Path) -> None:
    done = loraline("check", str(tmp_path / "absent.yaml"))
    assert done.returncode == 2
    assert "absent.yaml" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_debug_shows_the_traceback_of_a_mistake_too(tmp_path: Path) -> None:
    done = loraline("check", str(tmp_path / "absent.yaml"), "--debug")
    assert done.returncode == 2
    assert "Traceback" in done.stderr


def test_what_nobody_foresaw_is_one_paragraph_and_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: object) -> int:
        raise RuntimeError("the moon is full")

    monkeypatch.setattr("flows.commands.doctor.run", broken)
    assert main(["doctor"]) == 1
    text = capsys.readouterr().err
    assert "RuntimeError: the moon is full" in text
    assert "Traceback" not in text
    path = next(line for line in text.splitlines() if "traceback is in" in line).split(" in ")[1]
    assert "the moon is full" in Path(path).read_text(encoding="utf-8")
    assert "test_command_line.py" in Path(path).read_text(encoding="utf-8")


def test_ctrl_c_is_exit_code_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("flows.commands.doctor.run", interrupted)
    assert main(["doctor"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_home_is_set_before_the_command_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from tasks.home import home

    seen: list[Path] = []

    def note(_: object) -> int:
        seen.append(home().root)
        return 0

    monkeypatch.setenv("LORALINE_HOME", "unused")
    monkeypatch.setattr("flows.commands.doctor.run", note)
    assert main(["doctor", "--home", str(tmp_path / "elsewhere")]) == 0
    assert seen == [tmp_path / "elsewhere"]

"""What a person sees while a run goes on, and when it has ended."""

import io
import logging
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flows.display import LiveDisplay, PlainDisplay, logging_to, run_display
from flows.program import program
from flows.run_state import RunState, step_text
from flows.summary import metric_table, next_commands, number, print_summary
from tasks.artifacts import Outcome
from tasks.durations import duration

STEP = {
    "event": "step",
    "stage": "training",
    "step": 1200,
    "total_steps": 4000,
    "loss": 2.3141,
    "tokens_per_second": 8410.4,
    "eta_seconds": 185,
}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (7440, "2 h 04 min"),
    ],
)
def test_durations_carry_their_unit(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_step_names_loss_speed_and_time_left() -> None:
    assert step_text(STEP) == "step 1,200 of 4,000, loss 2.314, 8,410 tokens/s, 3 min 05 s left"


def test_a_step_leaves_out_what_is_unknown() -> None:
    assert step_text({"event": "step", "stage": "training", "step": 3, "loss": None}) == "step 3"


def test_stages_go_from_waiting_to_their_end() -> None:
    state = RunState()
    assert [stage.state for stage in state.stages.values()] == ["waiting"] * 5
    state.take({"event": "stage", "stage": "dataset", "state": "reused", "seconds": 0.2})
    state.take({"event": "stage", "stage": "training", "state": "started"})
    state.take(STEP)
    assert state.stages["dataset"].state == "reused"
    assert state.stages["dataset"].seconds == 0.2
    assert state.stages["training"].fraction == 0.3
    state.fail_running()
    assert state.stages["training"].state == "failed"
    assert state.stages["evaluation"].state == "waiting"


def test_events_about_no_stage_are_ignored() -> None:
    assert RunState().take({"event": "outcome", "outcome": {}}) is None


def test_plain_lines_come_every_ten_seconds_at_most(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr("flows.display.time.monotonic", lambda: now[0])
    display = PlainDisplay("loraline run a")
    display.take({"event": "stage", "stage": "training", "state": "started"})
    for step in range(1, 41):
        now[0] += 1.0
        display.take({**STEP, "step": step, "total_steps": 40})
    display.take({"event": "stage", "stage": "training", "state": "done", "seconds": 40.2})
    lines = capsys.readouterr().err.splitlines()
    steps = [line for line in lines if ": step " in line]
    # Seconds 1, 11, 21, 31, and the last step.
    assert [line.split("step ")[1].split(" of")[0] for line in steps] == [
        "1",
        "11",
        "21",
        "31",
        "40",
    ]
    assert lines[0] == "[00:00] loraline run a"
    assert lines[-1] == "[00:40] training: done (40 s)"


def test_without_a_terminal_the_display_is_plain() -> None:
    with run_display("title") as display:
        assert isinstance(display, PlainDisplay)


def test_the_live_table_shows_state_progress_and_time() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    display = LiveDisplay("loraline run a", console)
    display.take({"event": "stage", "stage": "dataset", "state": "reused", "seconds": 0.2})
    display.take({"event": "stage", "stage": "training", "state": "started"})
    display.take(STEP)
    console.print(display)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for part in ("loraline run a", "reused", "0.2 s", "step 1,200 of 4,000", "loss 2.314", "━"):
        assert part in text
    for stage in ("dataset", "tokenization", "training", "evaluation", "registration"):
        assert stage in text


def test_warnings_are_shown_once_and_everything_is_in_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A run sets logging up before prefect is imported; another test may have imported it already.
    for name in ("root", "prefect", "prefect.flow_runs"):
        monkeypatch.setattr(logging.getLogger(name), "handlers", [])
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    path = tmp_path / "run.log"
    log = logging.getLogger("tasks.somewhere")
    with run_display("title") as display, logging_to(str(path), display):
        log.info("only in the file")
        log.warning("rows were dropped")
        log.warning("rows were dropped")
        logging.getLogger("prefect.flow_runs").error("Encountered exception during execution")
    shown = capsys.readouterr().err
    assert shown.count("rows were dropped") == 1
    assert "only in the file" not in shown
    assert "Encountered" not in shown
    written = path.read_text(encoding="utf-8")
    assert written.count("rows were dropped") == 2
    assert "only in the file" in written
    assert "Encountered" in written


def outcome(**changes: Any) -> Outcome:
    fields: dict[str, Any] = {
        "outcome": "registered",
        "reason": "version 3 passed the gate",
        "mlflow_run_id": "run-1",
        "model_version": {
            "name": "docs",
            "version": "3",
            "uri": "models:/docs/3",
            "aliases": ["challenger", "champion"],
        },
        "metrics": {
            "base": {"loss": 3.5, "rougeL": 0.1},
            "champion": None,
            "challenger": {"loss": 2.25, "rougeL": 0.25},
        },
        "differences": {
            "base": {
                "loss": {"mean": -1.25, "low": -1.3, "high": -1.2},
                "rougeL": {"mean": 0.15, "low": -0.01, "high": 0.2},
            },
            "champion": None,
        },
        "gate": {
            "passed": True,
            "rules": [{"metric": "rougeL", "passed": True, "why": "0.15 > 0"}],
        },
        "trainable_parameters": 25165824,
        "report": "/state/report.md",
    }
    return Outcome.model_validate(fields | changes)


def printed(result: Outcome) -> str:
    console = Console(file=io.StringIO(), width=120)
    print_summary(result, console)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def test_the_summary_says_what_happened_and_what_to_do_next() -> None:
    text = printed(outcome())
    for part in (
        "Registered: version 3 passed the gate",
        "docs 3 (aliases: challenger, champion)",
        "25,165,824 parameters",
        "/state/report.md",
        "-1.250 [-1.300, -1.200]",
        "+0.150 [-0.010, +0.200]",
        "Gate: passed",
        "loraline versions docs",
        'loraline predict models:/docs@champion --prompt "..."',
        "loraline ui",
    ):
        assert part in text


def test_without_the_alias_the_next_command_names_the_version() -> None:
    version = {"name": "docs", "version": "4", "uri": "models:/docs/4", "aliases": ["challenger"]}
    assert f'{program()} predict models:/docs/4 --prompt "..."' in next_commands(
        outcome(model_version=version)
    )


def test_the_preparation_of_rows_is_shown_with_its_speed() -> None:
    event = {"event": "prepared", "stage": "dataset", "done": 12000, "rows_per_second": 24100.4}
    stage = RunState().take(event)
    assert stage is not None
    assert stage.detail == "12,000 rows, 24,100 rows/s"
    stage = RunState().take({**event, "total": 48000, "eta_seconds": 3})
    assert stage is not None
    assert stage.detail == "12,000 of 48,000 rows, 24,100 rows/s, 3.0 s left"
    assert stage.fraction == 0.25
    stage = RunState().take({**event, "step": "near duplicates"})
    assert stage is not None
    assert stage.detail == "near duplicates: 12,000 rows, 24,100 rows/s"


def test_the_measuring_of_losses_is_shown_with_its_progress() -> None:
    state = RunState()
    event = {"event": "measured", "stage": "evaluation", "model": "base", "done": 64, "total": 200}
    stage = state.take(event)
    assert stage is not None
    assert stage.detail == "base: loss of 64 of 200 rows"
    assert stage.fraction == 0.32


def test_a_refusal_shows_the_rules_that_failed() -> None:
    gate = {
        "passed": False,
        "rules": [{"metric": "chrf", "passed": False, "why": "0.1 is below 0.2"}],
    }
    text = printed(outcome(outcome="refused", reason="the gate", gate=gate, model_version=None))
    assert "Refused by the gate" in text
    assert "✗ chrf: 0.1 is below 0.2" in text
    assert "Next" not in text


def test_only_intervals_without_zero_are_coloured_and_loss_is_better_when_lower() -> None:
    column = metric_table(outcome()).columns[-1]
    loss, rouge = list(column.cells)
    assert str(getattr(loss, "style", "")) == "green"
    assert str(getattr(rouge, "style", "")) == ""


def test_numbers_keep_three_decimals_where_they_matter() -> None:
    assert [number(v) for v in (0.12345, 12.345, 1234.5, None)] == ["0.123", "12.3", "1,234", "-"]

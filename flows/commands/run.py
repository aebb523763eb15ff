"""`loraline run`: run a recipe from data to a registered version, with its progress on the screen."""

import argparse
import datetime
import json
import os
import shlex
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from flows import run_leases
from flows.failures import Failure, explain
from flows.program import program
from flows.signals import stop_signals
from tasks.artifacts import Outcome
from tasks.errors import Interrupted, LoralineError
from tasks.home import Home, home
from tasks.preflight import check_recipe
from tasks.progress import Event, listening
from tasks.tracking import refuse_unreachable

if TYPE_CHECKING:
    from flows.connection import Connection

EXIT_CODES = {"registered": 0, "skipped": 0, "awaiting_approval": 0, "failed": 1, "refused": 3}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe file, such as recipes/a.yaml")
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="override a value of the recipe, such as training.peft_config.r=8; may be repeated",
    )
    parser.add_argument(
        "--force", action="store_true", help="run every stage again, even when nothing has changed"
    )
    parser.add_argument(
        "--json", action="store_true", help="print exactly one JSON object on standard output"
    )


def run(args: argparse.Namespace) -> int:
    """Run the recipe; the exit code says how it ended."""
    from flows.streams import own_standard_output

    with own_standard_output() as answer:
        attempt = Attempt(args)
        try:
            with stop_signals(_stopping, lambda: _answer_at_once(args, attempt, answer)):
                outcome = attempt.run()
            code = EXIT_CODES[outcome.outcome]
        except BaseException as error:
            # Prefect ends a cancelled flow with an exception of its own that is no Exception.
            failure = explain(error)
            outcome, code = attempt.failed(failure), failure.exit_code
        if args.json:
            _write(outcome, answer)
        elif outcome.outcome != "failed":
            _print_summary(outcome, answer)
        if outcome.outcome == "failed":
            _print_failure(args, Failure(outcome.reason, code, attempt.trace), attempt.log)
    return code


@dataclass
class Attempt:
    """One run of the pipeline, and what is known of it when it fails half way."""

    args: argparse.Namespace
    trace: str = ""
    log: Path | None = None
    """Where every log line of the run is, once there is such a file."""
    _known: dict[str, Any] = field(default_factory=dict)

    def run(self) -> Outcome:
        """Run the flow. Raises whatever it raises."""
        path = Path(self.args.recipe)
        # Before anything is started or written: whatever is wrong is told at once.
        recipe = check_recipe(path, tuple(self.args.overrides)).recipe
        state = home()
        state.prepare()
        refuse_unreachable(state)
        return self._flow(state, path, recipe.name)

    def failed(self, failure: Failure) -> Outcome:
        """The outcome of a run that raised."""
        self.trace = failure.trace
        return Outcome.model_validate(
            {**self._known, "outcome": "failed", "reason": failure.message}
        )

    def _flow(self, state: Home, path: Path, name: str) -> Outcome:
        from flows.connection import prefect_connection
        from flows.display import logging_to, run_display

        now = f"{datetime.datetime.now():%Y%m%d-%H%M%S}"
        self.log = state.logs / f"run-{now}-{os.getpid()}.log"
        # MLflow's own console handler would print over the display; the root logger gets its lines.
        os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")
        with (
            run_display(f"loraline run {name}") as display,
            logging_to(str(self.log), display),
            listening(display.take),
            listening(self._note),
            prefect_connection(state, again(self.args), display.say, _import_flow) as server,
            _looked_after(state, server, display.say),
        ):
            from flows.heartbeats import without_heartbeats
            from flows.retrain import retrain

            with without_heartbeats(), run_leases.leased():
                result = retrain(
                    recipe=str(path), overrides=list(self.args.overrides), force=self.args.force
                )
        return Outcome.model_validate(result)

    def _note(self, event: Event) -> None:
        """Keep the outcome as far as the flow has got, for the answer of a run that fails later."""
        if event["event"] == "outcome":
            self._known = event["outcome"]


def again(args: argparse.Namespace) -> str:
    """The command line that goes on where this run stopped: complete stages are reused."""
    words = [program(), "run", args.recipe]
    for override in args.overrides:
        words += ["--set", override]
    if args.force:
        words += ["--force"]
    if args.home:
        words += ["--home", args.home]
    return shlex.join(words)


def _write(outcome: Outcome, answer: TextIO) -> None:
    answer.write(json.dumps(outcome.model_dump(mode="json")) + "\n")
    answer.flush()


def _answer_at_once(args: argparse.Namespace, attempt: Attempt, answer: TextIO) -> None:
    # A second Ctrl-C: programs that read standard output get their object all the same.
    run_leases.note_stopped()
    if args.json:
        _write(attempt.failed(explain(KeyboardInterrupt())), answer)


def _stopping() -> None:
    sys.stderr.write(
        "\nStopping; a training writes a checkpoint first. Ctrl-C again stops at once.\n"
    )


def _looked_after(
    state: Home, server: "Connection", say: Callable[[str], None]
) -> AbstractContextManager[None]:
    """What a worker and a watchdog do for the runs of a deployment."""
    from flows.cancelled_elsewhere import heeding_cancellation
    from flows.stack.abandoned import Abandoned
    from flows.stack.api import PrefectApi

    if server.kind != "embedded":
        return heeding_cancellation(run_leases.held, say)
    # Nobody else is a client of it, who could cancel. What was killed before has no end yet, and would be
    # told months later as news by a stack that is begun then.
    with suppress(LoralineError):
        Abandoned(PrefectApi.of(os.environ, server.url), state).end_flow_runs()
    return nullcontext()


def _import_flow() -> None:
    # While the server starts: Prefect's import takes as long as some stages.
    import flows.retrain  # noqa: F401


def _print_summary(outcome: Outcome, answer: TextIO) -> None:
    from rich.console import Console

    from flows.summary import print_summary

    terminal = answer.isatty()
    print_summary(outcome, Console(file=answer, width=None if terminal else 120))


def _print_failure(args: argparse.Namespace, failure: Failure, log: Path | None) -> None:
    failure.print()
    if log is not None and log.exists():
        sys.stderr.write(f"Log of this run: {log}\n")
    if failure.exit_code == Interrupted.exit_code:
        sys.stderr.write(f"What is complete is kept. Go on with:\n  {again(args)}\n")

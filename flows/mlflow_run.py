"""The one MLflow run of a pipeline run: opened when there is something to write, live while it trains, closed."""

import json
import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from flows.bridging import bridged_run
from flows.run_facts import RunFacts
from flows.stage_arguments import StageArguments
from tasks.artifacts import Artifact, Dataset, Report, Stage
from tasks.errors import Interrupted, Killed, Preempted
from tasks.progress import Event, listening
from tasks.system_metrics import SystemMetrics

if TYPE_CHECKING:
    from tasks.metric_writer import MetricWriter

_log = logging.getLogger(__name__)
_LIVE_METRICS = ("loss", "learning_rate", "grad_norm", "tokens_per_second")
_SECTIONS = {"dataset", "tokenization", "evaluation", "registration", "promotion"}


class MlflowRun:
    """Opened at the first thing to write: a run that finds nothing to do opens none.

    Leaving the block with an error closes it as FAILED, an interruption as KILLED.
    """

    def __init__(
        self,
        facts: RunFacts,
        arguments: StageArguments,
        *,
        name: Callable[[], str],
        opened: Callable[[str], None],
    ) -> None:
        """`name` gives the run's name as far as it is known; `opened` is told the id."""
        self._facts = facts
        self._arguments = arguments
        self._name = name
        self._opened = opened
        self._id: str | None = None
        self._writer: MetricWriter | None = None
        self._machine: SystemMetrics | None = None
        self._listening = listening(self._hear)
        self._sent_steps: set[int] = set()
        self._no_live_metrics = False

    def __enter__(self) -> Self:
        """Listen to what the stages announce."""
        self._listening.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Send the metrics that wait, and give the run its final status."""
        self._listening.__exit__(kind, error, trace)
        if self._id is None:
            return
        # Ctrl-C, SIGTERM and Prefect's cancellation are not errors of the run.
        stopped = isinstance(error, Interrupted | Killed | Preempted) or not isinstance(
            error, Exception
        )
        status: Literal["FINISHED", "KILLED", "FAILED"] = (
            "FINISHED" if error is None else "KILLED" if stopped else "FAILED"
        )
        # A good run must not begin anew for its last words: it would find that nothing is left to do.
        ask = bridged_run if error is None else _once
        try:
            try:
                if self._machine is not None:
                    self._machine.stop()
                if self._writer is not None:
                    ask(self._writer.close, doing="send the last metrics to MLflow")
            finally:
                close = partial(self._facts.tracker.close_run, self._id, status)
                ask(close, doing="close its run in MLflow")
        except Exception:
            # The first error is the one that a person must read.
            if error is None:
                raise

    @property
    def id(self) -> str:
        """The run's id; the first call opens it."""
        if self._id is None:
            facts, recipe = self._facts, self._facts.recipe
            start = self._arguments.beginning.start
            tags = {
                "loraline.recipe": facts.recipe_path.name,
                "loraline.recipe_digest": facts.recipe_digest,
                "loraline.base_sha256": facts.base.weights_sha256,
                "loraline.prefect_flow_run_id": facts.prefect.id or "",
                "loraline.prefect_attempt": facts.prefect.attempt,
                "loraline.prefect_url": facts.prefect.url or "",
                "loraline.cause": facts.prefect.cause,
                "loraline.reason": facts.prefect.reason,
            }
            self._id = facts.tracker.open_run(
                facts.experiment,
                self._name(),
                tags={key: str(value) for key, value in tags.items() if value},
                params={
                    "seed": recipe.seed,
                    "base": {**recipe.base.model_dump(mode="json"), "model": facts.base.shown},
                    "training": {
                        **recipe.training.content(facts.base.path),
                        **recipe.training.beginning,
                        **({} if start is None else {"started_from": start.record}),
                    },
                    **recipe.model_dump(mode="json", include=_SECTIONS),
                },
            )
            self._opened(self._id)
        return self._id

    @property
    def is_open(self) -> bool:
        """Whether anything was written."""
        return self._id is not None

    def rename(self) -> None:
        """Give the run the name that is known by now; one that MLflow does not take costs a warning."""
        if self._id is None:
            return
        try:
            self._facts.tracker.rename_run(self._id, self._name())
        except Exception as error:
            _log.warning("The MLflow run keeps the name that it has: %s", error)

    def judged_before(self, report: Report) -> str | None:
        """The MLflow run that holds this very report, when nothing was done in this run."""
        if not report.reused or self._id is not None:
            return None
        return self._facts.tracker.find_run(
            self._facts.experiment, {"loraline.fingerprint.evaluation": report.fingerprint}
        )

    def write(
        self,
        outputs: Mapping[Stage, Artifact],
        drift: Mapping[str, Any] | None,
        page: Callable[[], Path | None],
    ) -> None:
        """Write data, metrics, summaries, report and predictions; may be called again after an outage.

        `page` makes the run's HTML report, which tells of this run.
        """
        run_id, tracker = self.id, self._facts.tracker
        dataset, report = outputs["dataset"], outputs["evaluation"]
        assert isinstance(dataset, Dataset)
        assert isinstance(report, Report)
        tracker.log_dataset(
            run_id,
            name=self._facts.recipe.name,
            digest=dataset.digest,
            source=", ".join(source.type for source in self._facts.recipe.dataset.sources),
            counts=dataset.rows,
            context="training",
        )
        tracker.log_metrics(run_id, report.metrics["challenger"] or {})
        for model in ("base", "champion"):
            values = report.metrics[model] or {}
            tracker.log_metrics(run_id, {f"{model}.{name}": v for name, v in values.items()})
        tracker.log_text(run_id, self._facts.recipe_text, f"recipe/{self._facts.recipe_path.name}")
        tracker.describe_run(run_id, self._description(dataset, report))
        training = outputs["training"].path
        self.send_missing_steps(training / "history.jsonl")
        found = page()
        tracker.log_files(
            run_id,
            [
                (report.document, "report"),
                *([] if found is None else [(found, "report")]),
                (training / "loss.png", "report"),
                (dataset.path / "card.html", "dataset"),
                (dataset.path / "card.json", "dataset"),
                (outputs["tokenization"].path / "tokens.html", "tokenization"),
                *((it.path / "summary.md", f"summaries/{stage}") for stage, it in outputs.items()),
            ],
        )
        if drift is not None:
            tracker.log_metrics(run_id, {f"drift.{k}": v for k, v in drift["distances"].items()})
            tracker.log_metrics(run_id, {"drift.new_rows_share": drift["new_rows_share"]})
            tracker.log_text(run_id, drift["summary"], "summaries/drift/summary.md")
        tracker.set_tags(
            run_id,
            {f"loraline.fingerprint.{stage}": it.fingerprint for stage, it in outputs.items()},
        )
        if self._facts.recipe.evaluation.sample_answers:
            tracker.log_table(run_id, report.path / "predictions.parquet", "predictions")

    def write_page(self, page: Path) -> None:
        """Replace the HTML report. Raises: StageFailed when MLflow does not take it."""
        self._facts.tracker.log_files(self.id, [(page, "report")])

    def send_missing_steps(self, history: Path) -> None:
        """Send the steps that the run lacks: those before a resume, or during an outage."""
        with history.open(encoding="utf-8") as lines:
            for event in map(json.loads, lines):
                if event["step"] not in self._sent_steps:
                    self._facts.tracker.log_metrics(self.id, _live(event), event["step"])

    def _description(self, dataset: Dataset, report: Report) -> str:
        """The text of the run's page."""
        gate = report.gate
        verdict = "has none" if gate is None else "passed" if gate["passed"] else "refused"
        lines = [
            f"Adapter `{self._facts.recipe.name}` on {dataset.rows['train']:,} training rows, "
            f"evaluated on {dataset.rows['test']:,}. Gate: {verdict}."
        ]
        if self._facts.prefect.url:
            lines.append(f"[Flow run in Prefect]({self._facts.prefect.url})")
        return "\n\n".join(lines)

    def _hear(self, event: Event) -> None:
        kind = event["event"]
        if (
            event.get("stage") != "training"
            or kind not in ("note", "step")
            or self._no_live_metrics
        ):
            return
        if self._writer is None:
            # Something is really trained: only then are there such events. The first comes before the
            # worker starts, so that a slow MLflow never keeps the worker's output waiting.
            try:
                self._writer = self._facts.tracker.metric_writer(self.id)
                self._machine = SystemMetrics(self._writer.add)
            except Exception as error:
                self._no_live_metrics = True
                _log.warning("No live metrics, they are sent at the end: %s", error)
                return
        if kind == "step":
            self._sent_steps.add(event["step"])
            self._writer.add(_live(event), event["step"])


def _once(attempt: Callable[[], None], *, doing: str) -> None:
    """As `bridged_run`, without a second attempt."""
    attempt()


def _live(event: Event) -> dict[str, float]:
    return {f"train.{name}": event[name] for name in _LIVE_METRICS if event.get(name) is not None}

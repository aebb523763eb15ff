"""What one run of the pipeline is: its recipe, its one MLflow run, and the outcome it comes to."""

import json
import logging
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from tasks.artifacts import (
    Adapter,
    Artifact,
    Dataset,
    Outcome,
    Report,
    Stage,
    StageTiming,
    Tokens,
    Version,
)
from tasks.base import resolve_base
from tasks.errors import Interrupted, Preempted
from tasks.evaluation.task import evaluation_content, find_report
from tasks.home import home
from tasks.methods import ROWS
from tasks.outage import bridged
from tasks.preflight import check_recipe
from tasks.progress import Event, announce, listening
from tasks.recipe import recipe_digest
from tasks.registration.provenance import Provenance
from tasks.registration.task import find_registered, recipe_commit, registration_key
from tasks.registry import EARLIER_ROWS
from tasks.report.page import write_report
from tasks.report.run import MadeFrom, ReportedRun
from tasks.seen import together
from tasks.start import (
    BASE,
    CHAMPION,
    FROM_BASE,
    Beginning,
    Start,
    asked_for,
    named_start,
    refuse_own_alias,
    start_at_champion,
)
from tasks.store import Store
from tasks.tracking import Tracker, refuse_unreachable

if TYPE_CHECKING:
    from tasks.metric_writer import MetricWriter
    from tasks.promotion.work import Decision
    from tasks.registry import Champion

_Output = TypeVar("_Output", bound=Artifact)
_STAGE_OF: dict[type[Artifact], Stage] = {
    Dataset: "dataset",
    Tokens: "tokenization",
    Adapter: "training",
    Report: "evaluation",
}
_log = logging.getLogger(__name__)
_LIVE_METRICS = ("loss", "learning_rate", "grad_norm", "tokens_per_second")
_SHOWN_ANSWERS = 20
"""In the report at least, unless the recipe wants none: half a page of them tells little."""


@dataclass(frozen=True)
class PrefectRun:
    """The flow run in Prefect; nothing when the flow's function is called without Prefect."""

    id: str | None
    url: str | None
    reason: str = ""
    """Why it is run, as whoever started it says."""


class RunRecord:
    """Holds what every stage needs, and writes down what each came to.

    The MLflow run is opened when something is really trained or judged: a run that finds nothing to
    do opens none. Leaving the block with an error closes it as FAILED, an interruption as KILLED.
    """

    def __init__(
        self, recipe: Path, overrides: tuple[str, ...], force: bool, prefect: PrefectRun
    ) -> None:
        self.home = home()
        self.home.prepare()
        self.recipe_path = recipe.expanduser().absolute()
        # A deployment's run comes here without the command line's look at things.
        loaded = check_recipe(self.recipe_path, overrides)
        for warning in loaded.warnings:
            _log.warning(warning)
        self.recipe = loaded.recipe
        refuse_unreachable(self.home)
        self.base = resolve_base(self.recipe.base, self.recipe_path, self.home)
        self.recipe_text = self._portable(_with_overrides(self.recipe_path, overrides))
        self.store = Store.of(self.home)
        self.tracker = Tracker(self.home)
        self.force = force
        self.prefect = prefect
        self.beginning = FROM_BASE
        """What the training starts from, once `begin` has decided it."""
        self._rows_today = 0
        self._named_start = self._resolved_start()
        self.outcome = Outcome(
            outcome="failed", reason="did not finish", prefect_flow_run_id=prefect.id
        )
        self.recipe_digest = recipe_digest(self.recipe)
        """sha256 (hex) of what the recipe means: no comments, no schedule."""
        self.drift: dict[str, Any] | None = None
        """How far the training rows are from the champion's, as `tasks.dataset.drift` tells it."""
        self._outputs: dict[Stage, Artifact] = {}
        self._compared_with: str | None = None
        self._run_id: str | None = None
        self._writer: MetricWriter | None = None
        self._listening = listening(self._hear)
        self._registering = (0.0, "")
        self._sent_steps: set[int] = set()
        self._no_live_metrics = False

    def __enter__(self) -> Self:
        """Listen to what the stages announce."""
        self._listening.__enter__()
        self._announce()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Send the metrics that wait, and give the MLflow run its final status."""
        self._listening.__exit__(kind, error, trace)
        if self._run_id is None:
            return
        # Ctrl-C, SIGTERM and Prefect's cancellation are not errors of the run.
        stopped = isinstance(error, Interrupted | Preempted) or not isinstance(error, Exception)
        status: Literal["FINISHED", "KILLED", "FAILED"] = (
            "FINISHED" if error is None else "KILLED" if stopped else "FAILED"
        )
        try:
            try:
                if self._writer is not None:
                    self._writer.close()
            finally:
                self.tracker.close_run(self._run_id, status)
        except Exception:
            # The first error is the one that a person must read.
            if error is None:
                raise

    @property
    def run_id(self) -> str:
        """The MLflow run of this pipeline run, opened at the first call."""
        if self._run_id is None:
            recipe = self.recipe
            tags = {
                "loraline.recipe": self.recipe_path.name,
                "loraline.recipe_digest": self.recipe_digest,
                "loraline.base_sha256": self.base.weights_sha256,
                "loraline.prefect_flow_run_id": self.prefect.id or "",
                "loraline.prefect_url": self.prefect.url or "",
                "loraline.reason": self.prefect.reason,
            }
            sections = {"dataset", "tokenization", "evaluation", "registration", "promotion"}
            self._run_id = self.tracker.open_run(
                self._experiment,
                f"{recipe.name} {self.recipe_digest[:8]}",
                tags={key: value for key, value in tags.items() if value},
                params={
                    "seed": recipe.seed,
                    "base": {**recipe.base.model_dump(mode="json"), "model": self.base.shown},
                    "training": {
                        **recipe.training.content(self.base.path),
                        **recipe.training.beginning,
                        **self._start_params,
                    },
                    **recipe.model_dump(mode="json", include=sections),
                },
            )
            self.outcome.mlflow_run_id = self._run_id
            self._announce()
        return self._run_id

    @property
    def _start_params(self) -> dict[str, Any]:
        start = self.beginning.start
        return {} if start is None else {"started_from": start.record}

    def _portable(self, text: str) -> str:
        """The recipe's text without absolute paths of its base and its sources: it travels far."""
        places = [self.recipe.base.model]
        places += [
            path
            for source in self.recipe.dataset.sources
            if (path := getattr(source, "path", None))
        ]
        for place in places:
            if place.startswith(("/", "~")):
                text = text.replace(place, Path(place).name)
        return text

    def _resolved_start(self) -> Start | None:
        """The version that the recipe names itself: looked up before anything is made."""
        asked = self.recipe.training.init_from
        if asked in (BASE, CHAMPION):
            return None
        refuse_own_alias(asked, self.recipe.model_name)
        return named_start(self.tracker, asked, base_sha256=self.base.weights_sha256)

    @property
    def _experiment(self) -> str:
        return self.recipe.registration.experiment or self.recipe.name

    def for_dataset(self) -> dict[str, Any]:
        """What `prepare_dataset` is given."""
        return {
            "settings": self.recipe.dataset,
            "salt": self.recipe.split_salt,
            "recipe_folder": self.recipe_path.parent,
            "force": self.force,
        }

    def begin(self, dataset: Dataset, champion: "Champion | None") -> None:
        """Decide, once today's rows are known, what the training starts from.

        Raises: UserError for a version that is not there, or that belongs on another base.
        """
        recipe = self.recipe
        asked = None
        start = self._named_start
        if recipe.training.init_from == CHAMPION:
            asked = asked_for(
                dataset=dataset.fingerprint,
                tokenization=recipe.tokenization.model_dump(mode="json"),
                training={
                    **recipe.training.content(self.base.path),
                    **recipe.training.beginning,
                },
                seed=recipe.seed,
                base=self.base.weights_sha256,
                tokenizer=self.base.tokenizer_sha256,
            )
            start = start_at_champion(
                asked,
                champion,
                base_sha256=self.base.weights_sha256,
                store=self.store,
                tracker=self.tracker,
            )
        self.beginning = Beginning(start, asked, recipe.dataset.split.seen_by_champion)
        if start is not None:
            self.outcome.started_from = dict(start.record)
            self._announce()

    def for_replay(self, dataset: Dataset) -> dict[str, Any] | None:
        """What `replay_rows` is given; None where nothing is replayed."""
        share, start = self.recipe.training.replay.share, self.beginning.start
        self._rows_today = dataset.rows["train"]
        if not share or start is None:
            return None
        return {
            "cleaning": self.recipe.dataset.cleaning,
            "dataset": dataset,
            "start": start,
            "share": share,
            "force": self.force,
        }

    def for_tokenization(self, dataset: Dataset) -> dict[str, Any]:
        """What `tokenize_dataset` is given."""
        return {
            "settings": self.recipe.tokenization,
            "kind": ROWS[self.recipe.training.method],
            "dataset": dataset,
            "base": self.base,
            "force": self.force,
        }

    def for_training(self, dataset: Dataset, tokens: Tokens) -> dict[str, Any]:
        """What `train_adapter` is given."""
        replayed = dataset.rows["train"] - self._rows_today
        return {
            "settings": self.recipe.training,
            "seed": self.recipe.seed,
            "tokens": tokens,
            "base": self.base,
            "home": self.home,
            "beginning": replace(self.beginning, replayed_rows=replayed),
            "force": self.force,
        }

    def for_comparison(
        self, dataset: Dataset, champion: "Champion | None"
    ) -> dict[str, Any] | None:
        """What `compare_with_champion` is given; None when there is nothing to compare with."""
        if champion is None or champion.dataset_card is None or champion.train_rows is None:
            return None
        return {
            "dataset": dataset,
            "settings": self.recipe.dataset,
            "champion": f"version {champion.version}",
            "card": champion.dataset_card,
            "rows": champion.train_rows,
            "earlier": champion.earlier_rows,
        }

    def for_evaluation(
        self, tokens: Tokens, adapter: Adapter, champion: "Champion | None"
    ) -> dict[str, Any]:
        """What `evaluate_adapter` is given.

        An adapter that is champion already has nothing to gain over itself: it is judged as the first,
        and so is one whose champion belongs on another base.
        """
        if champion is not None and (
            champion.adapter_sha256 == adapter.sha256 or not self._comparable(champion)
        ):
            champion = None
        self._compared_with = None if champion is None else champion.version
        return {
            "settings": self.recipe.evaluation,
            "tokens": tokens,
            "adapter": adapter,
            "base": self.base,
            "champion": champion and champion.folder,
            "champion_sha256": champion and champion.adapter_sha256,
            "champion_rows": self._seen_rows(adapter, champion),
            "seen_by_champion": self.recipe.dataset.split.seen_by_champion,
            "home": self.home,
            "recipe_folder": self.recipe_path.parent,
            "dataset": self._outputs["dataset"].path,
            "force": self.force,
        }

    def _seen_rows(self, adapter: Adapter, champion: "Champion | None") -> Path | None:
        """The ids of all rows that the champion, or what the adapter started from, was ever trained on."""
        files = [adapter.path / EARLIER_ROWS]
        if champion is not None:
            files += [path for path in (champion.train_rows, champion.earlier_rows) if path]
        files = [path for path in files if path.is_file()]
        return together(files, self.home.cache / "seen_rows")

    def for_registration(
        self, dataset: Dataset, tokens: Tokens, adapter: Adapter, report: Report
    ) -> dict[str, Any]:
        """What `register_adapter` is given; the MLflow run is complete before a version points to it."""
        key = self._registration_key(tokens, adapter)
        self._registering = (time.monotonic(), key)
        bridged(lambda: self._log(dataset, report), doing="write the MLflow run")
        return {
            "key": key,
            "settings": self.recipe.registration,
            "store": self.store,
            "tracker": self.tracker,
            "name": self.recipe.model_name,
            "made": Provenance(
                dataset=dataset,
                tokens=tokens,
                adapter=adapter,
                report=report,
                base=self.base,
                recipe_path=self.recipe_path,
                recipe_text=self.recipe_text,
                recipe_digest=self.recipe_digest,
                run_id=self.run_id,
                prefect_flow_run_id=self.prefect.id,
                started_from=None if (start := self.beginning.start) is None else start.uri,
            ),
            "max_tokens": self.recipe.evaluation.max_new_tokens,
        }

    def for_promotion(self, version: Version, champion: "Champion | None") -> dict[str, Any]:
        """What `promote_version` is given."""
        return {
            "settings": self.recipe.promotion,
            "version": version,
            "tracker": self.tracker,
            "judged_against": champion and champion.version,
            "comparable": self._comparable(champion),
            "gated": bool(self.recipe.evaluation.gate),
        }

    def _comparable(self, champion: "Champion | None") -> bool:
        return champion is None or champion.base_sha256 == self.base.weights_sha256

    def keep(self, output: _Output) -> _Output:
        """Write a stage's output into the outcome."""
        stage = _STAGE_OF[type(output)]
        self._outputs[stage] = output
        self._time(stage, output.fingerprint, output.reused, output.seconds)
        if isinstance(output, Adapter):
            self.outcome.trainable_parameters = output.trainable_parameters
        if isinstance(output, Report):
            self.outcome.metrics = output.metrics
            self.outcome.differences = output.differences
            self.outcome.gate = output.gate
            self.outcome.report = str(output.document)
        self._announce()
        return output

    def is_done(self, tokens: Tokens, adapter: Adapter) -> bool:
        """Whether nothing is left to do: this adapter, judged by these rules, is a version already,
        and the promotion policy has had its say on it.
        """
        if self.force:
            return False
        key = self._registration_key(tokens, adapter)
        found = find_registered(self.store, key, self.tracker)
        report = None if found is None else find_report(self.store, found.evaluation)
        if found is None or report is None:
            return False
        if self.recipe.promotion.policy == "automatic" and not found.was_promoted:
            # Stopped between registration and promotion, or the policy has changed since.
            return False
        version = found.version
        self.keep(report)
        self._name_report_of(version.mlflow_run_id)
        self._time("registration", key, True, 0.0)
        for stage in ("evaluation", "registration"):
            announce("stage", stage=stage, state="reused", seconds=0.0)
        self.outcome.mlflow_run_id = version.mlflow_run_id
        self._end(
            "skipped",
            f"Nothing has changed since version {version.version} of {version.name} was registered "
            f"(MLflow run {version.mlflow_run_id}); `--force` runs every stage again.",
            version,
        )
        return True

    def is_refused(self, report: Report) -> bool:
        """Whether the gate stops the adapter; its MLflow run is then complete, and no version is made."""
        if report.gate is None or report.gate["passed"]:
            return False
        dataset = self._outputs["dataset"]
        assert isinstance(dataset, Dataset)
        rules: Any = report.gate["rules"]
        broken = [f"{rule['metric']}: {rule['why']}" for rule in rules if not rule["passed"]]
        judged = self._judged_before(report)
        if judged is None:
            self._log(dataset, report)
        else:
            self.outcome.mlflow_run_id = judged
            self._name_report_of(judged)
        self._end("refused", f"The gate refused the adapter. {' '.join(broken)}")
        if judged is None:
            self._finish_report()
        return True

    def close_with(self, version: Version, decision: "Decision") -> None:
        """Write the registered version into the outcome, and what happens to it next."""
        started, key = self._registering
        self._time("registration", key, False, time.monotonic() - started)
        reason = f"Version {version.version} of {version.name}: {decision.reason}"
        if "champion" in version.aliases:
            reason += " It is champion."
        else:
            reason += (
                " It is challenger; to promote it: "
                f"loraline promote {version.name} {version.version} --reason '...'"
            )
        self._end(decision.outcome, reason, version)
        self._finish_report()

    def _judged_before(self, report: Report) -> str | None:
        """The MLflow run that holds this very report, when nothing was done in this run."""
        if not report.reused or self._run_id is not None:
            return None
        return self.tracker.find_run(
            self._experiment, {"loraline.fingerprint.evaluation": report.fingerprint}
        )

    def _registration_key(self, tokens: Tokens, adapter: Adapter) -> str:
        return registration_key(
            self.recipe.registration,
            name=self.recipe.model_name,
            adapter=adapter,
            evaluation=evaluation_content(
                self.recipe.evaluation,
                tokens=tokens,
                adapter=adapter,
                base=self.base,
                recipe_folder=self.recipe_path.parent,
            ),
            tracker=self.tracker,
        )

    def _log(self, dataset: Dataset, report: Report) -> None:
        """Write data, metrics, summaries, report and predictions into the MLflow run."""
        run_id, tracker = self.run_id, self.tracker
        tracker.log_dataset(
            run_id,
            name=self.recipe.name,
            digest=dataset.digest,
            source=", ".join(source.type for source in self.recipe.dataset.sources),
            counts=dataset.rows,
            context="training",
        )
        tracker.log_metrics(run_id, report.metrics["challenger"] or {})
        for model in ("base", "champion"):
            values = report.metrics[model] or {}
            tracker.log_metrics(run_id, {f"{model}.{name}": v for name, v in values.items()})
        tracker.log_text(run_id, self.recipe_text, f"recipe/{self.recipe_path.name}")
        tracker.describe_run(run_id, self._description(dataset, report))
        summaries = [
            (output.path / "summary.md", f"summaries/{stage}")
            for stage, output in self._outputs.items()
        ]
        training = self._outputs["training"].path
        self._send_missing_steps(training / "history.jsonl")
        page = self._write_report()
        tracker.log_files(
            run_id,
            [
                (report.document, "report"),
                *([] if page is None else [(page, "report")]),
                (training / "loss.png", "report"),
                (dataset.path / "card.html", "dataset"),
                (dataset.path / "card.json", "dataset"),
                (self._outputs["tokenization"].path / "tokens.html", "tokenization"),
                *summaries,
            ],
        )
        if self.drift is not None:
            tracker.log_metrics(
                run_id, {f"drift.{k}": v for k, v in self.drift["distances"].items()}
            )
            tracker.log_metrics(run_id, {"drift.new_rows_share": self.drift["new_rows_share"]})
            tracker.log_text(run_id, self.drift["summary"], "summaries/drift/summary.md")
        tracker.set_tags(
            run_id,
            {
                f"loraline.fingerprint.{stage}": output.fingerprint
                for stage, output in self._outputs.items()
            },
        )
        if self.recipe.evaluation.sample_answers:
            tracker.log_table(run_id, report.path / "predictions.parquet", "predictions")

    def _write_report(self) -> Path | None:
        """Write the run's page as far as the run has come; None, and a warning, when that fails.

        A trained adapter is worth more than a page about it.
        """
        path = self.home.reports / self.run_id / "report.html"
        try:
            write_report(self._reported(), path)
        except Exception:
            _log.warning("This run goes without its HTML report", exc_info=True)
            return None
        self.outcome.report = str(path)
        return path

    def _finish_report(self) -> None:
        """Write the page again now that the run has ended: with its version, and what became of it."""
        page = self._write_report()
        if page is None:
            return
        try:
            self.tracker.log_files(self.run_id, [(page, "report")])
        except Exception as error:
            _log.warning("The report in MLflow does not tell how the run ended: %s", error)

    def _name_report_of(self, run_id: str) -> None:
        """The page of an earlier run, where this machine has it, is the one to open."""
        page = self.home.reports / run_id / "report.html"
        if page.is_file():
            self.outcome.report = str(page)

    def _reported(self) -> ReportedRun:
        outputs, start, version = self._outputs, self.beginning.start, self.outcome.model_version
        dataset = outputs["dataset"]
        assert isinstance(dataset, Dataset)
        answers = self.recipe.evaluation.sample_answers
        return ReportedRun(
            name=self.recipe.name,
            written=datetime.now(UTC),
            outcome=self.outcome,
            made_from=MadeFrom(
                base=self.base.shown,
                base_sha256=self.base.weights_sha256,
                recipe=self.recipe_path.name,
                recipe_text=self.recipe_text,
                recipe_digest=self.recipe_digest,
                dataset_digest=dataset.digest,
                git_commit=recipe_commit(self.recipe_path.parent),
                started_from=None if start is None else start.uri,
                mlflow_run_id=self.run_id,
                mlflow_url=self.tracker.run_url(self.run_id),
                version_url=None
                if version is None
                else self.tracker.version_url(str(version["name"]), str(version["version"])),
                prefect_url=self.prefect.url,
            ),
            evaluation=outputs["evaluation"].path,
            training=outputs["training"].path,
            dataset=dataset.path,
            tokenization=outputs["tokenization"].path,
            champion=self._compared_with,
            answers=max(answers, _SHOWN_ANSWERS) if answers else 0,
            training_processes=self.recipe.training.spread.total,
            new_rows_share=None if self.drift is None else self.drift["new_rows_share"],
        )

    def _description(self, dataset: Dataset, report: Report) -> str:
        """The text of the run's page."""
        gate = report.gate
        verdict = "has none" if gate is None else "passed" if gate["passed"] else "refused"
        lines = [
            f"Adapter `{self.recipe.name}` on {dataset.rows['train']:,} training rows, "
            f"evaluated on {dataset.rows['test']:,}. Gate: {verdict}."
        ]
        if self.prefect.url:
            lines.append(f"[Flow run in Prefect]({self.prefect.url})")
        return "\n\n".join(lines)

    def _time(self, stage: Stage, fingerprint: str, reused: bool, seconds: float) -> None:
        self.outcome.stages[stage] = StageTiming(
            fingerprint=fingerprint, reused=reused, seconds=round(seconds, 3)
        )

    def _end(
        self,
        outcome: Literal["registered", "skipped", "refused", "awaiting_approval"],
        reason: str,
        version: Version | None = None,
    ) -> None:
        self.outcome.outcome = outcome
        self.outcome.reason = reason
        if version is not None:
            self.outcome.model_version = version.model_dump(exclude={"mlflow_run_id"})
        self._announce()

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
                self._writer = self.tracker.metric_writer(self.run_id)
            except Exception:
                self._no_live_metrics = True
                _log.warning("No live metrics: MLflow does not answer; they are sent at the end")
                return
        if kind == "step":
            self._sent_steps.add(event["step"])
            self._writer.add(_live(event), event["step"])

    def _send_missing_steps(self, history: Path) -> None:
        """Send the steps that this run's MLflow run lacks: those before a resume, or during an outage."""
        with history.open(encoding="utf-8") as lines:
            for event in map(json.loads, lines):
                if event["step"] not in self._sent_steps:
                    self.tracker.log_metrics(self.run_id, _live(event), event["step"])

    def _announce(self) -> None:
        announce("outcome", outcome=self.outcome.model_dump(mode="json"))


def _live(event: Event) -> dict[str, float]:
    return {f"train.{name}": event[name] for name in _LIVE_METRICS if event.get(name) is not None}


def _with_overrides(recipe: Path, overrides: tuple[str, ...]) -> str:
    """The recipe as it was run: its text, read once, and the overrides as comments."""
    text = recipe.read_text(encoding="utf-8")
    return text + "".join(f"# --set {override}\n" for override in overrides)

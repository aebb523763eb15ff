"""What one run of the pipeline comes to: each stage's output, the outcome, and where a person reads of it."""

import logging
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from flows.mlflow_run import MlflowRun
from flows.run_facts import PrefectRun, gather_facts
from flows.run_names import rename_flow_run, run_name
from flows.run_page import page_of, write_page
from flows.stage_arguments import StageArguments
from tasks.artifacts import (
    NOTHING_NEW,
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
from tasks.evaluation.task import find_report
from tasks.outage import bridged
from tasks.progress import announce
from tasks.promotion.task import is_unasked
from tasks.registration.task import find_registered

if TYPE_CHECKING:
    from tasks.promotion.work import Decision
    from tasks.registry import Champion

__all__ = ["PrefectRun", "RunRecord"]
_Output = TypeVar("_Output", bound=Artifact)
_STAGE_OF: dict[type[Artifact], Stage] = {
    Dataset: "dataset",
    Tokens: "tokenization",
    Adapter: "training",
    Report: "evaluation",
}
_log = logging.getLogger(__name__)


class RunRecord:
    """Writes down what every stage came to.

    The MLflow run is opened when something is really trained or judged: a run that finds nothing to
    do opens none. Leaving the block with an error closes it as FAILED, an interruption as KILLED.
    """

    def __init__(
        self, recipe: Path, overrides: tuple[str, ...], force: bool, prefect: PrefectRun
    ) -> None:
        """Raises: as `gather_facts`."""
        facts = gather_facts(recipe, overrides, force, prefect)
        self.facts = facts
        self.home, self.store, self.tracker = facts.home, facts.store, facts.tracker
        self.recipe, self.base = facts.recipe, facts.base
        self.arguments = StageArguments(facts)
        """What each stage is given."""
        self.outcome = Outcome(
            outcome="failed", reason="did not finish", prefect_flow_run_id=prefect.id
        )
        self.drift: dict[str, Any] | None = None
        """How far the training rows are from the champion's, as `tasks.dataset.drift` tells it."""
        self.mlflow = MlflowRun(facts, self.arguments, name=lambda: self.name, opened=self._opened)
        self._outputs: dict[Stage, Artifact] = {}
        self._registering = 0.0
        self._shown_name = ""

    def __enter__(self) -> Self:
        """Listen to what the stages announce."""
        self.mlflow.__enter__()
        self._announce()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the MLflow run its final status."""
        self.mlflow.__exit__(kind, error, trace)

    @property
    def name(self) -> str:
        """What Prefect and MLflow call the run, as far as it is known: `quickstart v7 · 6,120 rows · nightly`."""
        dataset, version = self._outputs.get("dataset"), self.outcome.model_version
        return run_name(
            self.recipe.name,
            version=None if version is None else str(version["version"]),
            rows=dataset.rows["train"] if isinstance(dataset, Dataset) else None,
            cause=self.facts.prefect.cause,
        )

    def begin(self, dataset: Dataset, champion: "Champion | None") -> None:
        """Decide, once today's rows are known, what the training starts from.

        Raises: UserError, for an experiment that somebody deleted, too: no training is to end there.
        """
        self.tracker.refuse_deleted(self.facts.experiment)
        self.arguments.begin(dataset, champion)
        if (start := self.arguments.beginning.start) is not None:
            self.outcome.started_from = dict(start.record)
            self._announce()

    def keep(self, output: _Output) -> _Output:
        """Write a stage's output into the outcome."""
        stage = _STAGE_OF[type(output)]
        self._outputs[stage] = output
        self._time(stage, output.fingerprint, output.reused, output.seconds)
        if isinstance(output, Dataset):
            self._show_name()
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
        if self.facts.force:
            return False
        key = self.arguments.registration_key(tokens, adapter)
        found = find_registered(self.store, key, self.tracker)
        report = None if found is None else find_report(self.store, found.evaluation)
        if found is None or report is None:
            return False
        if self.recipe.promotion.policy == "automatic" and not found.was_promoted:
            # Stopped between registration and promotion, or the policy has changed since.
            return False
        if self.recipe.promotion.policy == "approval" and is_unasked(self.tracker, found.version):
            # The same, or there was nobody to ask then.
            return False
        if report.gate is not None and not report.gate["passed"]:
            # A version all the same (`registration.register: always`), and refused again.
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
            f"{NOTHING_NEW} since version {version.version} of {version.name} was registered "
            f"by the MLflow run {self._address_of(version.mlflow_run_id)} "
            "(`--force` runs every stage again).",
            version,
        )
        return True

    def is_refused(self, report: Report) -> bool:
        """Whether the gate stops the adapter; its MLflow run is then complete, and no version is made."""
        if report.gate is None or report.gate["passed"]:
            return False
        rules: Any = report.gate["rules"]
        broken = [f"{rule['metric']}: {rule['why']}" for rule in rules if not rule["passed"]]
        self._registering = time.monotonic()
        judged = self.mlflow.judged_before(report)
        if judged is None:
            self._write_mlflow()
        else:
            self.outcome.mlflow_run_id = judged
            self._name_report_of(judged)
        self._end("refused", f"The gate refused the adapter. {' '.join(broken)}")
        if judged is None:
            self._finish_report()
        return True

    @property
    def keeps_refused(self) -> bool:
        """Whether an adapter becomes a version that the gate has stopped."""
        return self.recipe.registration.register == "always"

    @property
    def refused_in(self) -> str:
        """The MLflow run that holds the verdict."""
        return self.outcome.mlflow_run_id or self.mlflow.id

    def close_refused(self, version: Version) -> None:
        """Name the version of an adapter that the gate has stopped."""
        self._time_registration()
        held = f"It is version {version.version} of {version.name}, without an alias."
        self._end("refused", f"{self.outcome.reason} {held}", version)
        if self.mlflow.is_open:
            self.mlflow.rename()
            self._finish_report()

    def write_mlflow(self) -> str:
        """Complete the MLflow run before a version points to it; an outage is bridged. Returns its id."""
        self._registering = time.monotonic()
        bridged(self._write_mlflow, doing="write the MLflow run")
        return self.mlflow.id

    def close_with(self, version: Version, decision: "Decision") -> None:
        """Write the registered version into the outcome, and what happens to it next."""
        self._time_registration()
        reason = f"Version {version.version} of {version.name}: {decision.reason}"
        if "champion" in version.aliases:
            reason += " It is champion."
        else:
            reason += (
                " It is challenger; to promote it: "
                f"loraline promote {version.name} {version.version} --reason '...'"
            )
        self._end(decision.outcome, reason, version)
        self.mlflow.rename()
        self._finish_report()

    def _time_registration(self) -> None:
        tokens, adapter = self._outputs["tokenization"], self._outputs["training"]
        assert isinstance(tokens, Tokens)
        assert isinstance(adapter, Adapter)
        key = self.arguments.registration_key(tokens, adapter)
        self._time("registration", key, False, time.monotonic() - self._registering)

    def _write_mlflow(self) -> None:
        self.mlflow.write(self._outputs, self.drift, self._write_page)

    def _write_page(self) -> Path | None:
        share = None if self.drift is None else self.drift["new_rows_share"]
        return write_page(
            self.facts, self.arguments, self._outputs, self.outcome, self.mlflow.id, share
        )

    def _finish_report(self) -> None:
        """Write the page again now that the run has ended: with its version, and what became of it."""
        page = self._write_page()
        if page is None:
            return
        try:
            self.mlflow.write_page(page)
        except Exception as error:
            _log.warning("The report in MLflow does not tell how the run ended: %s", error)

    def _name_report_of(self, run_id: str) -> None:
        """The page of an earlier run, where this machine has it, is the one to open."""
        page = page_of(self.facts, run_id)
        if page.is_file():
            self.outcome.report = str(page)

    def _address_of(self, run_id: str) -> str:
        """The run's page; of one that MLflow does not find any more, the id."""
        try:
            return self.tracker.run_url(run_id)
        except Exception as error:
            # That there is nothing to do is known all the same.
            _log.warning("No address of the MLflow run %s: %s", run_id, error)
            return run_id

    def _opened(self, run_id: str) -> None:
        self.outcome.mlflow_run_id = run_id
        self._announce()

    def _show_name(self) -> None:
        """In Prefect; MLflow's run is named when it is opened, and when there is a version."""
        if self.facts.prefect.id is not None and self.name != self._shown_name:
            self._shown_name = self.name
            rename_flow_run(self.facts.prefect.id, self.name)

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
            self.outcome.model_version = version.model_dump(exclude={"mlflow_run_id", "proof"})
            self._show_name()
        self._announce()

    def _announce(self) -> None:
        announce("outcome", outcome=self.outcome.model_dump(mode="json"))

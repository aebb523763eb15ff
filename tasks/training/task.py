"""The Prefect task of the stage `training`."""

import contextvars
import time
from typing import Any

from prefect import State, get_run_logger, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE

from tasks.artifacts import Adapter, Tokens
from tasks.base import Base
from tasks.errors import Preempted
from tasks.home import Home
from tasks.progress import announce
from tasks.stage_report import ended, started
from tasks.start import FROM_BASE, Beginning
from tasks.store import Store
from tasks.training.settings import TrainingSettings

SECONDS_BEFORE_RETRIES: list[float] = [15, 120, 600]
SECONDS_BETWEEN_LOG_LINES = 2.0
SECONDS_BETWEEN_ARTIFACT_UPDATES = 5.0


def was_preempted(task: Any, task_run: Any, state: State[Any]) -> bool:
    """Whether a failed attempt left a checkpoint to go on from, and nothing is wrong with the recipe."""
    try:
        state.result()
    except Preempted:
        return True
    except BaseException:
        return False
    return False


# The store is the cache: it is keyed by content and checked byte by byte. Retried is only what was
# preempted, on this machine, after the time that a scheduler takes to give it back; all else that fails
# here fails again, and a killed training goes on from its checkpoint when the flow is run again.
@task(
    name="train adapter",
    persist_result=False,
    cache_policy=NO_CACHE,
    retries=len(SECONDS_BEFORE_RETRIES),
    retry_delay_seconds=SECONDS_BEFORE_RETRIES,
    retry_condition_fn=was_preempted,
)
def train_adapter(
    store: Store,
    settings: TrainingSettings,
    *,
    seed: int,
    tokens: Tokens,
    base: Base,
    home: Home,
    beginning: Beginning = FROM_BASE,
    force: bool = False,
) -> Adapter:
    """A LoRA adapter of the base, trained on the tokens by a worker process.

    Raises: UserError for settings that do not fit the base; StageFailed when training fails.
    """
    from tasks.training import work

    started("training")
    progress = _Progress(get_run_logger())
    # Events come in the thread that reads the worker's output, which would know of no task run.
    context = contextvars.copy_context()
    adapter = work.train_adapter(
        store,
        settings,
        seed=seed,
        tokens=tokens,
        base=base,
        home=home,
        beginning=beginning,
        force=force,
        on_event=lambda event: context.run(progress.hear, event),
    )
    progress.finish()
    ended(
        "training",
        adapter,
        f"{'Reused' if adapter.reused else 'Trained'} an adapter of "
        f"{adapter.trainable_parameters:,} parameters (sha256 {adapter.sha256[:12]})",
        description="Loss curve, what was trained, and how fast",
    )
    return adapter


class _Progress:
    """Passes the worker's events on: all of them to listeners, few to Prefect."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger
        self._artifact: Any = None
        self._logged_at = 0.0
        self._updated_at = 0.0

    def hear(self, event: dict[str, Any]) -> None:
        values = {name: value for name, value in event.items() if name != "event"}
        announce(event["event"], stage="training", **values)
        if event["event"] == "note":
            self._logger.info("%s", event["message"])
            return
        now = time.monotonic()
        last = event["step"] == event["total_steps"]
        if last or now - self._logged_at >= SECONDS_BETWEEN_LOG_LINES:
            self._logged_at = now
            self._logger.info(
                "step %d/%d: loss %.4f, %.0f tokens/s, %.0f s left",
                event["step"],
                event["total_steps"],
                event["loss"],
                event["tokens_per_second"],
                event["eta_seconds"],
            )
        if now - self._updated_at >= SECONDS_BETWEEN_ARTIFACT_UPDATES:
            self._updated_at = now
            self._show(100.0 * event["step"] / event["total_steps"])

    def finish(self) -> None:
        if self._artifact is not None:
            self._show(100.0)

    def _show(self, percent: float) -> None:
        try:
            if self._artifact is None:
                self._artifact = create_progress_artifact(
                    progress=percent,
                    key="loraline-training-progress",
                    description="Optimizer steps done",
                )
            else:
                update_progress_artifact(self._artifact, progress=percent)
        except Exception:
            # Prefect's server may be away for a while; the training does not need it.
            self._logger.warning("The progress artifact could not be updated", exc_info=True)

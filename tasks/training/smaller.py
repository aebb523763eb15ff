"""Once more with smaller batches, where memory ran out: the same rows in every optimizer step."""

import json
from collections.abc import Mapping
from typing import Any

from tasks.training.job import TrainingJob
from tasks.training.methods.limits import rows_weighed_together, smallest_batch
from tasks.training.sharing import Share

_FILE = "smaller_batches.json"
OFFER = (
    "With `training.smaller_batches: true` a run tries once more by itself, from its newest checkpoint: half "
    "as many rows at once, as many in each step."
)
BATCH, ACCUMULATION = "per_device_train_batch_size", "gradient_accumulation_steps"


def with_smaller_batches(job: TrainingJob) -> TrainingJob | None:
    """The job with at most half as many rows at once on each process; None where there is no such.

    It reads its rows in the order of the recipe's batch: another one would sort other rows together, and a
    training that goes on would read some of them twice and others never.
    """
    if _another_training(job):
        return None
    share = _share(job)
    batch, accumulation = share.batch, share.accumulation
    while batch % 2 == 0 and batch // 2 >= smallest_batch(job.method):
        batch, accumulation = batch // 2, accumulation * 2
        smaller = Share(batch, accumulation, job.processes)
        if smaller.team_size <= batch and smaller.own_batch <= share.own_batch // 2:
            return _with(job, batch, accumulation, job.order_batch or share.batch)
    return None


def why_not_smaller(job: TrainingJob) -> str:
    """Where `with_smaller_batches` finds none: why that is, and what helps, for a person."""
    why = _another_training(job) or "the batch has no smaller half that divides it"
    return (
        f"training.smaller_batches made no smaller batch: {why}. Change the recipe to what would fit, as "
        "said above."
    )


def _another_training(job: TrainingJob) -> str:
    """Why smaller batches are another training, whatever their size; empty where they are not."""
    if job.training_config.get("dataloader_drop_last"):
        # Fewer rows lie beyond the last whole one of them.
        return "with dataloader_drop_last an epoch would have other rows"
    together = rows_weighed_together(job.method, job.training_config)
    return together and f"{together}, so that smaller ones are another training"


def remembered(job: TrainingJob) -> TrainingJob:
    """The job with the batches that an earlier attempt found to fit, if there was one."""
    try:
        kept = json.loads((job.working / _FILE).read_text(encoding="utf-8"))
        batch, accumulation, recipe = kept[BATCH], kept[ACCUMULATION], kept["order_batch"]
    except (OSError, ValueError, KeyError, TypeError):
        return job
    share = _share(job)
    if recipe != share.batch or batch * accumulation != share.batch * share.accumulation:
        return job
    return _with(job, batch, accumulation, recipe)


def remember(job: TrainingJob) -> None:
    """Write the job's batches where a restart finds them; replaced whole."""
    share = _share(job)
    values = {
        BATCH: share.batch,
        ACCUMULATION: share.accumulation,
        "order_batch": job.order_batch,
    }
    job.working.mkdir(parents=True, exist_ok=True)
    temporary = job.working / f"{_FILE}.tmp"
    temporary.write_text(json.dumps(values), encoding="utf-8")
    temporary.replace(job.working / _FILE)


def rows_at_once(training_config: Mapping[str, Any]) -> tuple[int, int]:
    """Rows of a micro-batch, and micro-batches of an optimizer step; the defaults are transformers'."""
    return int(training_config.get(BATCH, 8)), int(training_config.get(ACCUMULATION, 1))


def _share(job: TrainingJob) -> Share:
    return Share(*rows_at_once(job.training_config), job.processes)


def _with(job: TrainingJob, batch: int, accumulation: int, order_batch: int) -> TrainingJob:
    values = {**job.training_config, BATCH: batch, ACCUMULATION: accumulation}
    return job.model_copy(update={"training_config": values, "order_batch": order_batch})

"""Run tasks of EleutherAI's lm-evaluation-harness on a model that is already loaded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.errors import UserError

Scores = dict[str, dict[str, float]]
"""Task -> metric (with its filter, as `acc,none`) -> value."""


def run_harness(
    model: Any,
    tokenizer: Path,
    tasks: Sequence[str],
    *,
    include: Path | None,
    limit: int | None,
    batch_size: int,
    device: str,
) -> Scores:
    """The values of every task, with their standard errors where the harness gives them.

    Raises: UserError when a task is unknown or its data cannot be had.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(
        tokenizer, local_files_only=True, trust_remote_code=False
    )
    wrapped = HFLM(pretrained=model, tokenizer=loaded, batch_size=batch_size, device=device)
    try:
        found = lm_eval.simple_evaluate(
            model=wrapped,
            tasks=list(tasks),
            limit=limit,
            bootstrap_iters=0,
            log_samples=False,
            task_manager=TaskManager(include_path=None if include is None else str(include)),
        )
    except Exception as error:  # a task is code of its own
        raise UserError(
            f"evaluation.lm_eval: the tasks {', '.join(tasks)} cannot be run: {type(error).__name__}: "
            f"{error}. `lm_eval ls tasks` lists those that there are; most fetch their data from the Hub."
        ) from error
    assert found is not None
    return {
        task: {
            metric: float(value)
            for metric, value in values.items()
            if "," in metric and isinstance(value, int | float)
        }
        for task, values in found["results"].items()
    }

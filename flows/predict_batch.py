"""Answer a file of rows with a registered version, as a flow: batch scoring without a shell."""

from pathlib import Path
from typing import Annotated, Any

from prefect import State, flow
from prefect.runtime import flow_run
from prefect.states import Completed
from pydantic import Field

from flows import run_leases
from flows.block_secrets import taken_from_blocks
from flows.bridging import bridged_run
from flows.unattended import unattended
from tasks.errors import UserError
from tasks.files import expanded
from tasks.gpu_turn import gpu_turn
from tasks.home import home
from tasks.registration.task import answer_file
from tasks.tracking import reachable_tracker

FORMATS = (".jsonl", ".parquet")


def _run_name() -> str:
    given = flow_run.parameters
    return f"{given.get('model', 'predict')} · {Path(str(given.get('input', ''))).name}"


@flow(name="predict", flow_run_name=_run_name, persist_result=False)
def predict(
    input: str,
    output: str,
    model: str,
    max_tokens: Annotated[int, Field(ge=1)] | None = None,
    overwrite: bool = False,
) -> State[dict[str, Any]]:
    """Answer every row of a JSONL file.

    Args:
        input: JSONL rows with `prompt` or `messages`; a path on the worker.
        output: Where the rows go with `answer` and `finish_reason` added: `.jsonl` or `.parquet`.
        model: The adapter's name for its champion, or `models:/NAME@ALIAS`, `models:/NAME/VERSION`.
        max_tokens: Longest answer in tokens. Default: the version's own.
        overwrite: Replace `output` if it is there. Without it, a file from before fails the run.

    Returns how many rows were answered, how many were cut, and by which version. The output appears
    complete or not at all.
    """
    if unattended() is not None:
        run_leases.begin(home())
    source, target = expanded(input), expanded(output)
    if target.suffix not in FORMATS:
        raise UserError(f"output {target}: it must end with {' or '.join(FORMATS)}.")
    if not target.absolute().parent.is_dir():
        raise UserError(f"output {target}: there is no folder {target.absolute().parent}.")
    if target.exists() and not overwrite:
        raise UserError(f"output {target} is there already. Name another file, or set `overwrite`.")

    def attempt() -> dict[str, Any]:
        tracker = reachable_tracker(home())
        with gpu_turn():
            return answer_file(tracker, model, source, target, max_tokens=max_tokens)

    # Which base the version belongs on is seen when it is loaded.
    with taken_from_blocks(["HF_TOKEN"]):
        answered = bridged_run(attempt, doing=f"answer the rows of {source}")
    told = f"{answered['rows']} answers of {answered['model']} in {target}"
    return Completed(message=told, data=answered)

"""Judge a registered version on a recipe's rows of today, without training anything."""

from pathlib import Path
from typing import Any

from prefect import State, flow
from prefect.runtime import flow_run
from prefect.states import Completed

from flows import run_leases
from flows.block_secrets import secrets_of
from flows.bridging import bridged_run
from flows.recipe_form import Override
from flows.unattended import unattended
from tasks.base import resolve_base
from tasks.dataset.task import prepare_dataset
from tasks.errors import UserError
from tasks.evaluation.task import evaluate_adapter
from tasks.files import expanded
from tasks.gpu_turn import give_back_gpus
from tasks.home import Home, home
from tasks.methods import ROWS
from tasks.preflight import check_recipe
from tasks.registration.task import adapter_of, find_champion, find_version
from tasks.retention.readers import Reader, reading
from tasks.seen import together
from tasks.store import Store
from tasks.tokenization.task import tokenize_dataset
from tasks.tracking import reachable_tracker


def _run_name() -> str:
    given = flow_run.parameters
    return f"{Path(str(given.get('recipe', ''))).stem} · {given.get('version', 'champion')}"


@flow(name="evaluate", flow_run_name=_run_name, persist_result=False)
def evaluate(
    recipe: str, version: str = "champion", overrides: list[Override] | None = None
) -> State[dict[str, Any]]:
    """Base, champion and one registered version on the test rows that the sources give today.

    Args:
        recipe: Path of the recipe, as the worker sees it.
        version: A version's number, or an alias.
        overrides: Fields to change, for example `evaluation.max_new_tokens=64`.

    Rows that the version was trained on are left out. Nothing is registered and no alias moves; the
    report is an artifact of this run. Ends as `Completed(name="Refused")` when the gate would refuse.
    """
    path, changes = expanded(recipe).absolute(), tuple(overrides or ())
    here = home()
    here.prepare()
    if unattended() is not None:
        run_leases.begin(here)

    def attempt() -> State[dict[str, Any]]:
        with reading(here) as reader:
            return _judged(path, version, changes, here, reader)

    with secrets_of(path, changes):
        return bridged_run(attempt, doing=f"judge version {version} by {path.name}")


def _judged(
    path: Path, version: str, overrides: tuple[str, ...], here: Home, reader: Reader
) -> State[dict[str, Any]]:
    loaded = check_recipe(path, overrides).recipe
    tracker = reachable_tracker(here)
    store = Store.of(here)
    base = resolve_base(loaded.base, path, here)
    judged = find_version(tracker, loaded.model_name, version)
    reader.reads_adapter(judged.adapter_sha256)
    if judged.base_sha256 != base.weights_sha256:
        raise UserError(
            f"Version {judged.version} of {judged.name} belongs on a base with sha256 "
            f"{judged.base_sha256[:12]}, and the recipe's has {base.weights_sha256[:12]}."
        )
    champion = find_champion(tracker, loaded.model_name)
    if champion is not None and (
        champion.adapter_sha256 == judged.adapter_sha256
        or champion.base_sha256 != base.weights_sha256
    ):
        champion = None
    if champion is not None:
        reader.reads_adapter(champion.adapter_sha256)
    try:
        dataset = prepare_dataset(
            store, loaded.dataset, salt=loaded.split_salt, recipe_folder=path.parent
        )
        reader.reads("dataset", dataset.fingerprint)
        tokens = tokenize_dataset(
            store,
            loaded.tokenization,
            kind=ROWS[loaded.training.method],
            dataset=dataset,
            base=base,
        )
        reader.reads("tokenization", tokens.fingerprint)
        learned = [judged.train_rows, judged.earlier_rows]
        learned += [champion.train_rows, champion.earlier_rows] if champion else []
        report = evaluate_adapter(
            store,
            loaded.evaluation,
            tokens=tokens,
            adapter=adapter_of(judged),
            base=base,
            champion=champion.folder if champion else None,
            champion_sha256=champion.adapter_sha256 if champion else None,
            champion_rows=together([it for it in learned if it], here.cache / "seen_rows"),
            # The rows are today's: that some were trained on meanwhile is to be expected.
            seen_by_champion="drop",
            home=here,
            recipe_folder=path.parent,
            dataset=dataset.path,
        )
    finally:
        give_back_gpus()
    passed = report.gate is None or bool(report.gate["passed"])
    data = {
        "version": judged.version,
        "champion": champion and champion.version,
        "metrics": report.metrics,
        "differences": report.differences,
        "gate": report.gate,
        "report": str(report.document),
    }
    told = f"Version {judged.version} of {judged.name} on {tokens.rows['test']} rows"
    verdict = "has no gate" if report.gate is None else "passes" if passed else "would be refused"
    return Completed(name=None if passed else "Refused", message=f"{told}: {verdict}", data=data)

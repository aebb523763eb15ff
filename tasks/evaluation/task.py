"""The Prefect task of the stage `evaluation`."""

from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.artifacts import Adapter, Report, Tokens
from tasks.base import Base
from tasks.evaluation.settings import EvaluationSettings
from tasks.home import Home
from tasks.progress import announce
from tasks.seen import SeenPolicy
from tasks.stage_report import ended, started
from tasks.store import Store


# The store is the cache: it is keyed by content and checked byte by byte.
@task(
    name="evaluate adapter",
    task_run_name="evaluate adapter: {tokens.rows[test]:,} test rows",
    persist_result=False,
    cache_policy=NO_CACHE,
)
def evaluate_adapter(
    store: Store,
    settings: EvaluationSettings,
    *,
    tokens: Tokens,
    adapter: Adapter,
    base: Base,
    champion: Path | None,
    champion_sha256: str | None,
    champion_rows: Path | None,
    seen_by_champion: SeenPolicy,
    home: Home,
    recipe_folder: Path | None = None,
    dataset: Path | None = None,
    force: bool = False,
) -> Report:
    """Base, champion and the new adapter on the same test rows: metrics, intervals, the gate's verdict.

    Raises: UserError when an adapter does not fit the base; WorkerFailed when a process dies.
    """
    from tasks.evaluation import work

    started("evaluation")
    report = work.evaluate_adapter(
        store,
        settings,
        tokens=tokens,
        adapter=adapter,
        base=base,
        champion=champion,
        champion_sha256=champion_sha256,
        champion_rows=champion_rows,
        seen_by_champion=seen_by_champion,
        home=home,
        recipe_folder=recipe_folder,
        dataset=dataset,
        force=force,
        on_event=_pass_on,
    )
    gate = "none" if report.gate is None else "passed" if report.gate["passed"] else "refused"
    ended(
        "evaluation",
        report,
        f"{'Reused the evaluation of' if report.reused else 'Evaluated'} the adapter on "
        f"{tokens.rows['test']} test rows (gate: {gate})",
        description="Base, champion and adapter on the same test rows, and the gate's verdict",
    )
    return report


def evaluation_content(
    settings: EvaluationSettings,
    *,
    tokens: Tokens,
    adapter: Adapter,
    base: Base,
    recipe_folder: Path | None = None,
) -> str:
    """The evaluation's fingerprint as if there were no champion: what is asked, not against whom."""
    from tasks.evaluation import work
    from tasks.evaluation.files import find_files

    return work.fingerprint_of(
        settings,
        adapter_fingerprint=adapter.fingerprint,
        tokens_fingerprint=tokens.fingerprint,
        base=base,
        champion_sha256=None,
        files=find_files(settings, recipe_folder).digests,
    )


def find_report(store: Store, key: str) -> Report | None:
    """The complete report with this fingerprint, or None."""
    from tasks.evaluation import work

    return work.find_report(store, key)


def _pass_on(event: dict[str, Any]) -> None:
    announce(**event)

"""The Prefect task of the stage `dataset`."""

from pathlib import Path

from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from tasks.artifacts import Dataset
from tasks.dataset.settings import DatasetSettings
from tasks.progress import announce
from tasks.store import Store


# The store is the cache: it is keyed by content and checked byte by byte.
@task(name="prepare dataset", persist_result=False, cache_policy=NO_CACHE)
def prepare_dataset(
    store: Store,
    settings: DatasetSettings,
    *,
    salt: str,
    recipe_folder: Path,
    force: bool = False,
) -> Dataset:
    """Rows of chat messages, divided into train and test, from the recipe's sources.

    Raises: DataError for rows a person must correct.
    """
    from tasks.dataset import work

    logger = get_run_logger()
    announce("stage", stage="dataset", state="started")
    dataset = work.prepare_dataset(
        store, settings, salt=salt, recipe_folder=recipe_folder, force=force
    )
    logger.info(
        "%s %d train and %d test rows (digest %s) in %.1f s",
        "Reused" if dataset.reused else "Prepared",
        dataset.rows["train"],
        dataset.rows["test"],
        dataset.digest[:12],
        dataset.seconds,
    )
    create_markdown_artifact(
        (dataset.path / "summary.md").read_text(encoding="utf-8"),
        key="loraline-dataset",
        description="Rows, where they come from, and what was left out",
    )
    announce(
        "stage",
        stage="dataset",
        state="reused" if dataset.reused else "done",
        seconds=dataset.seconds,
    )
    return dataset

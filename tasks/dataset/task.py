"""The Prefect task of the stage `dataset`."""

from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.artifacts import Dataset
from tasks.dataset.settings import DatasetSettings
from tasks.stage_report import ended, started
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

    started("dataset")
    dataset = work.prepare_dataset(
        store, settings, salt=salt, recipe_folder=recipe_folder, force=force
    )
    ended(
        "dataset",
        dataset,
        f"{'Reused' if dataset.reused else 'Prepared'} {dataset.rows['train']} train and "
        f"{dataset.rows['test']} test rows (digest {dataset.digest[:12]})",
        description="Rows, where they come from, and what was left out",
    )
    return dataset

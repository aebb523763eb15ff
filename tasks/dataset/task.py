"""The Prefect task of the stage `dataset`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from tasks.artifacts import Dataset
from tasks.dataset.cleaning_settings import CleaningSettings
from tasks.dataset.settings import DatasetSettings
from tasks.seen import TEST_COPIES, seen_by_champion
from tasks.stage_report import ended, show, started
from tasks.start import Start
from tasks.store import Store

if TYPE_CHECKING:
    from tasks.dataset.watching import Seen, Watch


# The store is the cache: it is keyed by content and checked byte by byte.
@task(
    name="prepare dataset",
    task_run_name="prepare dataset",
    persist_result=False,
    cache_policy=NO_CACHE,
)
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


@task(
    name="replay rows",
    task_run_name="replay rows of {start.uri}",
    persist_result=False,
    cache_policy=NO_CACHE,
)
def replay_rows(
    store: Store,
    cleaning: CleaningSettings,
    *,
    dataset: Dataset,
    start: Start,
    share: float,
    force: bool = False,
) -> Dataset:
    """The dataset with rows of the version that training starts from among its training rows.

    Raises: UserError when this store does not have that version's rows.
    """
    from tasks.dataset.replay import add_replayed_rows

    replayed = add_replayed_rows(
        store, cleaning, dataset=dataset, start=start, share=share, force=force
    )
    ended(
        "dataset",
        replayed,
        f"{replayed.rows['train'] - dataset.rows['train']} rows of {start.uri} are replayed",
        description="Rows, where they come from, and what was left out",
    )
    return replayed


@task(
    name="compare with the champion's data",
    task_run_name="compare with the data of {champion}",
    persist_result=False,
    cache_policy=NO_CACHE,
)
def compare_with_champion(
    dataset: Dataset,
    settings: DatasetSettings,
    *,
    champion: str,
    card: Path,
    rows: Path,
    earlier: Path | None = None,
) -> dict[str, Any]:
    """`drift.drift` of today's rows and the champion's, shown in Prefect; warns above the threshold.

    `card` and `rows` are the `card.json` and `train_rows.npy` that the champion's version keeps,
    `earlier` the rows that it had seen before, where its training started from another version.

    Raises: DataError when test rows of today were training rows of the champion, unless the recipe
    says to drop them: before a GPU is touched.
    """
    import numpy as np

    from tasks.dataset.drift import ASPECTS, drift, drift_summary

    test_ids = np.load(dataset.path / "test_rows.npy", allow_pickle=False)
    for seen in filter(None, (rows, earlier)):
        seen_by_champion(
            test_ids,
            seen,
            settings.split.seen_by_champion,
            copies=dataset.path / TEST_COPIES,
        )
    found = drift(
        json.loads((dataset.path / "card.json").read_text(encoding="utf-8")),
        json.loads(card.read_text(encoding="utf-8")),
        today_rows=dataset.path / "train_rows.npy",
        champion_rows=rows,
        warn_above=settings.drift.warn_above,
    )
    text = drift_summary(found, champion=champion)
    show("loraline-drift", text, "Today's training rows against the champion's")
    for name in found["warnings"]:
        get_run_logger().warning(
            "The data has drifted: %s are %.2f from the champion's (warned above %g)",
            ASPECTS[name],
            found["distances"][name],
            settings.drift.warn_above,
        )
    return {**found, "summary": text}


@task(
    name="look at sources",
    task_run_name="look at sources",
    persist_result=False,
    cache_policy=NO_CACHE,
)
def look_at_sources(watch: "Watch", settings: DatasetSettings, **how: Any) -> "Seen":
    """What is new in a recipe's sources, as `watching.Watch.look` finds it. Raises: as that does."""
    seen = watch.look(settings, **how)
    get_run_logger().info("%s", seen.told + (f": {seen.cause}" if seen.cause else ""))
    return seen

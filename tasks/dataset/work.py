"""Prepare the dataset: open the sources, build both sides, write down what came of it."""

import hashlib
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from tasks.artifacts import Dataset
from tasks.dataset.build import build
from tasks.dataset.card import card
from tasks.dataset.cleaning.personal import PersonalData
from tasks.dataset.cleaning_settings import PersonalDataSettings
from tasks.dataset.page import page
from tasks.dataset.publishing import publish_dataset
from tasks.dataset.reading.opening import Opened, open_sources
from tasks.dataset.settings import DatasetSettings
from tasks.dataset.summary import summary
from tasks.store import Store, fingerprint

OUTPUT_VERSION = 5
"""Raise it when the same sources and settings give other bytes; a golden test watches."""

_log = logging.getLogger(__name__)


def prepare_dataset(
    store: Store,
    settings: DatasetSettings,
    *,
    salt: str,
    recipe_folder: Path,
    force: bool = False,
) -> Dataset:
    """Publish `train.jsonl`, `test.jsonl`, `train_rows.npy`, `test_copies.npy`, `card.json`,
    `summary.md` and `card.html`, or find them in the store; `removed.jsonl` and `quarantine.jsonl`
    where rows were left out.

    A line is `{"id", "group", "messages": [{"role", "content"}, ...], "source", "label"}`, with
    `tools`, `rejected`, `desirable`, `time` and `slice` where the row has them.

    Raises: DataError with every bad row, or when one side of the split is empty.
    """
    started = time.monotonic()
    cache = _cache(store)
    sources = _open(settings, recipe_folder, cache)
    key = _key(settings, salt, sources)

    def draft(folder: Path, scratch: Path) -> None:
        _build(folder, scratch, settings, salt, sources)

    return publish_dataset(store, key, draft, started=started, force=force)


def fingerprint_of(
    settings: DatasetSettings, *, salt: str, recipe_folder: Path, store: Store
) -> str:
    """The output's key: the contents of the sources, the settings and the salt; never a folder.

    Reads every local source once, to hash it; builds nothing.

    Raises: DataError when a source does not exist.
    """
    return _key(settings, salt, _open(settings, recipe_folder, _cache(store)))


def _key(settings: DatasetSettings, salt: str, sources: Sequence[Opened]) -> str:
    described = {
        # The salt arrives resolved: the recipe's name stands in where the setting is empty.
        "split": {
            **settings.split.model_dump(mode="json", exclude={"salt", "seen_by_champion"}),
            "salt": salt,
        },
        "sources": [source.identity for source in sources],
        "holdout": settings.holdout is not None,
        **settings.model_dump(mode="json", exclude={"split", "sources", "holdout", "drift"}),
    }
    inputs = {f"source {number}": source.digest for number, source in enumerate(sources)}
    return fingerprint("dataset", OUTPUT_VERSION, described, inputs)


def _open(settings: DatasetSettings, recipe_folder: Path, cache: Path) -> list[Opened]:
    """The sources in the recipe's order; the holdout, where there is one, is the last."""
    sources = open_sources(settings, recipe_folder, cache=cache)
    if settings.holdout is not None:
        alone = settings.model_copy(update={"sources": [settings.holdout], "holdout": None})
        sources += open_sources(alone, recipe_folder, cache=cache)
    return sources


def _cache(store: Store) -> Path:
    """Where downloads and watermarks of sources lie: beside the store, in the same state folder."""
    folder = store.root.parent / "cache" / "sources"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _build(
    folder: Path, scratch: Path, settings: DatasetSettings, salt: str, opened: list[Opened]
) -> None:
    holdout = opened[-1] if settings.holdout is not None else None
    sources = opened[: len(settings.sources)]
    built = build(folder, scratch, settings, salt=salt, sources=sources, holdout=holdout)
    both = "".join(digests["ordered"] for digests in built.digests.values())
    # Cards go to Prefect and MLflow: they hold no personal data, also where rows may.
    private = PersonalData(settings.cleaning.personal_data or PersonalDataSettings())
    facts = card(built, digest=hashlib.sha256(bytes.fromhex(both)).hexdigest(), private=private)
    text = summary(
        facts,
        {side: [private.masked(row) for row in p.shown] for side, p in built.profiles.items()},
    )
    (folder / "card.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    (folder / "summary.md").write_text(text, encoding="utf-8")
    (folder / "card.html").write_text(page("Dataset", text), encoding="utf-8")
    _log.info("Prepared %d train and %d test rows", facts["rows"]["train"], facts["rows"]["test"])

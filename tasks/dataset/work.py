"""Prepare the dataset: read the sources, take out duplicates, divide into train and test."""

import hashlib
import json
import logging
import time
from pathlib import Path

from tasks.artifacts import Dataset
from tasks.dataset.reading.sources import (
    read_sources,
    source_digest,
    source_identity,
    within_limits,
)
from tasks.dataset.rows import Row
from tasks.dataset.settings import DatasetSettings
from tasks.dataset.split import Split, distinct, split_rows
from tasks.dataset.summary import card, summary
from tasks.errors import DataError
from tasks.store import Store, fingerprint

OUTPUT_VERSION = 1
"""Raise it when the same sources and settings give other bytes; a golden test watches."""

_log = logging.getLogger(__name__)


def fingerprint_of(settings: DatasetSettings, *, salt: str, recipe_folder: Path) -> str:
    """The output's key: the contents of the sources, the settings and the salt; never a folder.

    Reads every source once, to hash it; builds nothing.

    Raises: DataError when a source does not exist.
    """
    described = {
        "sources": [source_identity(source) for source in settings.sources],
        # The salt arrives resolved: the recipe's name stands in where the setting is empty.
        "split": {**settings.split.model_dump(mode="json", exclude={"salt"}), "salt": salt},
    }
    inputs = {
        f"source {number}": source_digest(source, recipe_folder)
        for number, source in enumerate(settings.sources)
    }
    return fingerprint("dataset", OUTPUT_VERSION, described, inputs)


def prepare_dataset(
    store: Store,
    settings: DatasetSettings,
    *,
    salt: str,
    recipe_folder: Path,
    force: bool = False,
) -> Dataset:
    """Publish `train.jsonl`, `test.jsonl`, `card.json` and `summary.md`, or find them in the store.

    A line is `{"id", "group", "messages": [{"role", "content"}, ...], "source", "label"}`.

    Raises: DataError with every bad row, or when one side of the split is empty.
    """
    started = time.monotonic()
    key = fingerprint_of(settings, salt=salt, recipe_folder=recipe_folder)

    def build(folder: Path) -> None:
        _build(folder, settings, salt, recipe_folder)
        # The key promises these very contents.
        if fingerprint_of(settings, salt=salt, recipe_folder=recipe_folder) != key:
            raise DataError("The dataset's sources changed while they were read. Run again.")

    stored = store.publish("dataset", key, build, force=force)
    facts = json.loads((stored.path / "card.json").read_text(encoding="utf-8"))
    return Dataset(
        path=stored.path,
        fingerprint=key,
        reused=stored.reused,
        seconds=time.monotonic() - started,
        digest=facts["digest"],
        rows=facts["rows"],
    )


def _build(folder: Path, settings: DatasetSettings, salt: str, recipe_folder: Path) -> None:
    sources = read_sources(settings, recipe_folder)
    # Before the split: a duplicate on the other side would be a leak.
    rows, dropped = distinct([row for source in sources for row in source.rows], salt)
    split = split_rows(within_limits(rows, sources, dropped), settings.split, salt)
    split.dropped.update(dropped)
    _refuse_empty_side(split, settings, salt)
    total = hashlib.sha256()
    for side, side_rows in (("train", split.train), ("test", split.test)):
        text = "".join(f"{_line(row)}\n" for row in side_rows).encode()
        (folder / f"{side}.jsonl").write_bytes(text)
        total.update(hashlib.sha256(text).digest())
    facts = card(sources, split, digest=total.hexdigest())
    (folder / "card.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    (folder / "summary.md").write_text(summary(facts, split), encoding="utf-8")
    _log.info("Prepared %d train and %d test rows", len(split.train), len(split.test))


def _line(row: Row) -> str:
    return json.dumps(
        {
            "id": row.id,
            "group": row.group,
            "messages": list(row.messages),
            "source": row.source,
            "label": row.label,
        },
        ensure_ascii=False,
        separators=(",", ":"),
    )


def _refuse_empty_side(split: Split, settings: DatasetSettings, salt: str) -> None:
    if split.train and split.test:
        return
    rows = split.train + split.test
    groups = len({row.group for row in rows})
    raise DataError(
        f"The split leaves no {'test' if split.train else 'train'} row: "
        f"{len(rows)} {'row' if len(rows) == 1 else 'rows'} in {groups} "
        f"{'group' if groups == 1 else 'groups'}, dataset.split.test is {settings.split.test}, "
        f"the salt is {salt!r}. Add rows, change dataset.split.test or dataset.split.salt, or "
        "choose another dataset.sources[].group: a group is never divided."
    )

"""Add rows of an earlier version's dataset to today's training rows, so that going on forgets less.

The old rows pass all that today's recipe does to training rows: cleaning, copies, decontamination.
Today's own rows stay as they are, and the test rows too.
"""

import json
import time
from pathlib import Path

from tasks.artifacts import Dataset
from tasks.dataset.cleaning_settings import CleaningSettings
from tasks.dataset.publishing import publish_dataset
from tasks.dataset.replay_build import build_with_replay
from tasks.errors import UserError
from tasks.registry import VersionFiles
from tasks.start import Start
from tasks.store import Store, fingerprint

OUTPUT_VERSION = 1
"""Raise it when the same datasets and settings give other rows."""


def add_replayed_rows(
    store: Store,
    cleaning: CleaningSettings,
    *,
    dataset: Dataset,
    start: Start,
    share: float,
    force: bool = False,
) -> Dataset:
    """Publish the dataset with rows of the start's dataset at the end of `train.jsonl`, or find it.

    They are `share` of all its training rows, or fewer where the start's dataset has no more that are
    not in today's. Which ones follows from the start and each row alone. Everything else is as
    `prepare_dataset` publishes it; the card's `replay` tells the counts.

    Raises: UserError when the start's rows are in this store no more.
    """
    began = time.monotonic()
    key = fingerprint(
        "dataset",
        OUTPUT_VERSION,
        {"replay": share, "cleaning": cleaning.model_dump(mode="json")},
        {"dataset": dataset.fingerprint, "start": start.adapter_sha256},
    )

    def draft(folder: Path, scratch: Path) -> None:
        old = prepared_rows(store, start.files())
        build_with_replay(folder, scratch, cleaning, dataset.path, old, start, share)

    return publish_dataset(store, key, draft, started=began, force=force)


def prepared_rows(store: Store, version: VersionFiles) -> Path:
    """The `train.jsonl` that the version was trained on, replayed rows of its own included.

    A version holds hashes of its rows, never their text: the store of the home that trained it does.

    Raises: UserError with the ways out when this store does not.
    """
    uri = f"models:/{version.name}/{version.version}"
    card = version.dataset_card
    digest = "" if card is None else str(json.loads(card.read_text(encoding="utf-8"))["digest"])
    if digest:
        for found in sorted((store.root / "dataset").glob("[!.]*/card.json")):
            same = json.loads(found.read_text(encoding="utf-8"))["digest"] == digest
            if same and store.find("dataset", found.parent.name) is not None:
                return found.parent / "train.jsonl"
    what = f"its dataset {digest[:12]}" if digest else "a record of its dataset"
    raise UserError(
        f"training.replay: the rows that {uri} was trained on are needed, and the store {store.root} does "
        f"not have {what}. Use the home (LORALINE_HOME) that trained it, run that version's recipe there "
        "with its sources as they were, start from another version, or set training.replay.share to 0."
    )

"""Publish a dataset into the store, or find it there."""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tasks.artifacts import Dataset
from tasks.store import Store


def publish_dataset(
    store: Store,
    key: str,
    build: Callable[[Path, Path], None],
    *,
    started: float,
    force: bool = False,
) -> Dataset:
    """The dataset `key`; where the store lacks it, `build(folder, scratch)` writes its files, `card.json` among them.

    `scratch` is on the store's disk and gone afterwards. `started` is a `time.monotonic()`.
    """

    def draft(folder: Path) -> None:
        with tempfile.TemporaryDirectory(
            dir=folder.parent, prefix=f".{key}.", suffix=".draft"
        ) as scratch:
            build(folder, Path(scratch))

    stored = store.publish("dataset", key, draft, force=force)
    facts = json.loads((stored.path / "card.json").read_text(encoding="utf-8"))
    return Dataset(
        path=stored.path,
        fingerprint=key,
        reused=stored.reused,
        seconds=time.monotonic() - started,
        digest=facts["digest"],
        rows=facts["rows"],
    )

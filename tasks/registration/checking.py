"""Check a registered version anew: its files, the rows it was trained on, and what it computes."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.files import file_sha256
from tasks.home import Home
from tasks.registration.named import check_registered, registered_at
from tasks.registration.verification import verify_version
from tasks.registry import DATASET_CARD, TRAIN_ROWS, model_files
from tasks.store import Store
from tasks.tracking import Tracker
from tasks.version_manifest import check_files


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    passed: bool | None
    """None: there was nothing to compare with."""
    told: str


def check_version(tracker: Tracker, uri: str, *, base: Path | None, home: Home) -> list[Check]:
    """Recompute what the version says of itself; the last check loads it in a fresh process.

    `uri` is `models:/NAME@ALIAS` or `models:/NAME/VERSION`; `base` the base's folder where it is
    not found by itself.

    Raises: UserError when there is no such version; StageFailed when it does not load, or its logits
    differ from the trained adapter's.
    """
    check_registered(tracker, uri)
    named = registered_at(tracker, uri)
    with model_files(tracker, named.model_id, home) as folder:
        artifacts = folder / "artifacts"
        files = check_files(folder, named.tags)
        checks = [Check("files", not files.wrong, files.told)]
        if files.wrong:
            told = "not loaded: what is not as it was registered is not executed"
            return [*checks, Check("logits", False, told)]
        checks += _rows(artifacts / "about", home)
        found = verify_version(tracker, uri, base=base, fixture=artifacts / "fixture", home=home)
    told = (
        f"loaded in a fresh process; logits differ by at most {found.largest_difference:.2g} from the "
        f"trained adapter's, {found.allowed:.2g} is allowed"
    )
    return [*checks, Check("logits", True, told)]


def _rows(about: Path, home: Home) -> list[Check]:
    """The recorded digests against the version's own list of rows, and against the store's files."""
    import numpy as np

    if not (about / DATASET_CARD).is_file() or not (about / TRAIN_ROWS).is_file():
        return [Check("rows", None, "this version keeps no record of its rows")]
    card: dict[str, Any] = json.loads((about / DATASET_CARD).read_text(encoding="utf-8"))
    ids = np.load(about / TRAIN_ROWS, allow_pickle=False)
    wanted = card["digests"]["train"]["any_order"]
    same = hashlib.sha256(np.sort(ids).astype(">u8").tobytes()).hexdigest() == wanted
    checks = [
        Check(
            "training rows",
            same,
            f"{len(ids):,} row hashes {'have' if same else 'do not have'} the recorded digest "
            f"{wanted[:12]}",
        )
    ]
    folder = _prepared(card["digest"], home)
    if folder is None:
        told = "the prepared dataset is not in this store; run the recipe to compare its files"
        return [*checks, Check("dataset files", None, told)]
    for side, digests in card["digests"].items():
        file = folder / f"{side}.jsonl"
        same = file.is_file() and file_sha256(file) == digests["ordered"]
        told = f"{'has' if same else 'does not have'} the recorded sha256 {digests['ordered'][:12]}"
        if not file.is_file():
            told = "is missing from the prepared dataset; run the recipe again to have it made anew"
        checks.append(Check(f"{side}.jsonl", same, told))
    return checks


def _prepared(digest: str, home: Home) -> Path | None:
    """The store's folder of the dataset with this digest."""
    root = Store(home.store).root / "dataset"
    for card in sorted(root.glob("[!.]*/card.json")):
        if json.loads(card.read_text(encoding="utf-8"))["digest"] == digest:
            return card.parent
    return None

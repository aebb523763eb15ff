"""Write today's dataset with rows of an earlier version at the end of its training rows, and its card."""

import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.dataset.build import SIDES, any_order
from tasks.dataset.cleaning.personal import PersonalData
from tasks.dataset.cleaning_settings import CleaningSettings, PersonalDataSettings
from tasks.dataset.page import page
from tasks.dataset.profile import Profile
from tasks.dataset.removed import Removed
from tasks.dataset.replay_choice import OLD, TESTED, TODAY, Chosen, choose, spooled
from tasks.dataset.replay_summary import replay_section
from tasks.dataset.rows import Row
from tasks.dataset.summary import summary
from tasks.seen import TEST_COPIES
from tasks.start import Start

REPLAYED = "replayed"
"""Slice of the card that replayed rows are counted under."""

_log = logging.getLogger(__name__)


def build_with_replay(
    folder: Path,
    scratch: Path,
    cleaning: CleaningSettings,
    today: Path,
    old: Path,
    start: Start,
    share: float,
) -> None:
    """Fill `folder` as `prepare_dataset` does; `today` is its output, `old` the start's `train.jsonl`."""
    import numpy as np

    with Removed(scratch / "removed.jsonl") as removed:
        spool, read = spooled(scratch, cleaning, removed, today, old)
        chosen = choose(spool, cleaning, start.adapter_sha256, share, read, dict(removed.counts))
    for name in ("removed.jsonl", "quarantine.jsonl", "test.jsonl", "test_rows.npy", TEST_COPIES):
        if (today / name).is_file():
            shutil.copyfile(today / name, folder / name)
    private = PersonalData(cleaning.personal_data or PersonalDataSettings())
    source, ids = spool.column("source"), spool.column("id")
    train = np.concatenate([np.flatnonzero(source == TODAY), chosen.places])
    profiles = {
        "train": Profile.of(spool, train),
        "test": Profile.of(spool, np.flatnonzero(source == TESTED)),
    }
    shutil.copyfile(today / "train.jsonl", folder / "train.jsonl")
    taken = np.zeros(len(spool), dtype=np.bool_)
    taken[chosen.places] = True
    with (folder / "train.jsonl").open("ab") as stream:
        for position, line in enumerate(spool.lines()):
            kind = int(source[position])
            if taken[position]:
                stream.write(line + b"\n")
            if kind != OLD or taken[position]:
                profiles["test" if kind == TESTED else "train"].see(position, line, REPLAYED)
    np.save(folder / "train_rows.npy", np.sort(ids[train]))
    facts = _facts(today, folder, profiles, any_order(ids[train]), chosen, start, share, private)
    shown: dict[str, Sequence[Row]]
    shown = {side: [private.masked(row) for row in p.shown] for side, p in profiles.items()}
    text = summary(facts, shown) + replay_section(facts["replay"])
    (folder / "card.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    (folder / "summary.md").write_text(text, encoding="utf-8")
    (folder / "card.html").write_text(page("Dataset", text), encoding="utf-8")
    told = facts["replay"]
    _log.info("Added %d rows of %s to the training rows", told["rows"], start.uri)
    if told["rows"] < told["wanted"]:
        _log.warning(
            "training.replay.share asks for %d rows of %s, and it has %d that are not among today's",
            told["wanted"],
            start.uri,
            told["rows"],
        )


def _facts(
    today: Path,
    folder: Path,
    profiles: dict[str, Profile],
    train_in_any_order: str,
    chosen: Chosen,
    start: Start,
    share: float,
    private: PersonalData,
) -> dict[str, Any]:
    """The card of today's dataset, with the replayed rows counted in."""
    facts: dict[str, Any] = json.loads((today / "card.json").read_text(encoding="utf-8"))
    before = facts["profiles"]
    with (folder / "train.jsonl").open("rb") as stream:
        ordered = hashlib.file_digest(stream, "sha256").hexdigest()
    digests = facts["digests"] | {"train": {"ordered": ordered, "any_order": train_in_any_order}}
    both = "".join(digests[side]["ordered"] for side in SIDES)
    found = {side: profile.facts() for side, profile in profiles.items()}
    added = len(chosen.places)
    for side, was in before.items():
        # The names of today's sources are in its card, and not in its rows.
        more = {REPLAYED: added} if side == "train" and added else {}
        found[side]["slices"] = was["slices"] | more
    told = {
        "from": start.uri,
        "share": share,
        "rows": added,
        "wanted": chosen.wanted,
        "read": chosen.read,
        "left_out": private.masked_value(chosen.left_out),
    }
    return facts | {
        "digest": hashlib.sha256(bytes.fromhex(both)).hexdigest(),
        "digests": digests,
        "rows": {side: profile["rows"] for side, profile in found.items()},
        "groups": {side: profile["groups"] for side, profile in found.items()},
        "characters": {side: profile["characters"] for side, profile in found.items()},
        "profiles": found,
        "steps": [*facts["steps"], {"step": REPLAYED, "rows": facts["steps"][-1]["rows"] + added}],
        "sources": [
            *facts["sources"],
            {"name": start.uri, "weight": None, "kind": "replay", "rows": added},
        ],
        "replay": told,
    }

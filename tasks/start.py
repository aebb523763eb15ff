"""What a training starts from: the base alone, or the adapter of a registered version.

The champion is looked up once for the same inputs. Which version a training started from is written
down before it begins, and whoever asks again with the same recipe, rows and base gets that version, not
today's champion: else every night would train on from its own result.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import UserError
from tasks.registry import (
    ADAPTER_TAG,
    BASE_TAG,
    VersionFiles,
    version_at,
    version_files,
)
from tasks.seen import SeenPolicy
from tasks.start_notes import goes_on_elsewhere, read_notes, write_note
from tasks.store import digest

if TYPE_CHECKING:
    from tasks.home import Home
    from tasks.registry import Champion
    from tasks.store import Store
    from tasks.tracking import Tracker

BASE, CHAMPION = "base", "champion"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """A registered version whose adapter a training goes on with."""

    uri: str
    """`models:/NAME/VERSION`: an alias is resolved."""
    adapter_sha256: str
    base_sha256: str
    tracker: "Tracker" = field(repr=False, compare=False)

    def files(self) -> VersionFiles:
        """The version on this machine; asked for only when something is built from it.

        Raises: UserError when it is gone or holds another adapter by now; StageFailed when it is
        damaged.
        """
        version = version_at(self.tracker, self.uri)
        if version.tags.get(ADAPTER_TAG) != self.adapter_sha256:
            raise UserError(
                f"{self.uri} was recorded with the adapter {self.adapter_sha256[:12]}, and the registry "
                f"has {str(version.tags.get(ADAPTER_TAG))[:12]} there now. Name another version in "
                "training.init_from, or `base`."
            )
        return version_files(self.tracker, version, self.tracker.home)

    @property
    def record(self) -> dict[str, str]:
        """What is written down of it."""
        return {
            "uri": self.uri,
            "adapter_sha256": self.adapter_sha256,
            "base_sha256": self.base_sha256,
        }


@dataclass(frozen=True)
class Beginning:
    """How one training begins."""

    start: Start | None = None
    """None: a fresh adapter on the base."""
    asked: str | None = None
    """sha256 of everything that decides the adapter but the champion, where the recipe asks for the
    champion; None where it names its start itself."""
    seen: SeenPolicy = "refuse"
    """What happens to test rows that the start was trained on, or its own starts."""
    replayed_rows: int = 0
    """Training rows that come from the start's own dataset."""


FROM_BASE = Beginning()


def asked_for(**inputs: Any) -> str:
    """`Beginning.asked` of these inputs: fingerprints, settings, seed."""
    return digest(inputs)


def named_start(tracker: "Tracker", uri: str, *, base_sha256: str) -> Start:
    """The version that a recipe names as `models:/NAME/VERSION` or `models:/NAME@ALIAS`.

    Raises: UserError when there is none, or when it belongs on another base.
    """
    version = version_at(tracker, uri)
    tags = version.tags
    pinned = f"models:/{version.name}/{version.version}"
    if ADAPTER_TAG not in tags or BASE_TAG not in tags:
        raise UserError(
            f"training.init_from: {pinned} was not registered by loraline, and nothing says which base "
            "it belongs on. Name another version, or `base`."
        )
    if tags[BASE_TAG] != base_sha256:
        raise UserError(
            f"training.init_from: {pinned} belongs on a base with sha256 {tags[BASE_TAG][:12]}, and this "
            f"recipe's has {base_sha256[:12]}. Name that base in `base`, another version, or "
            "`training.init_from: base`."
        )
    return Start(pinned, tags[ADAPTER_TAG], tags[BASE_TAG], tracker)


def refuse_own_alias(uri: str, model_name: str) -> None:
    """Raises: UserError for an alias that every training of this recipe moves to its own result."""
    moving = {f"models:/{model_name}@{alias}": alias for alias in (CHAMPION, "challenger")}
    if uri in moving:
        raise UserError(
            f"training.init_from: {uri} would be the result of the last run, so that every run trains "
            "again, from itself. Write `training.init_from: champion`, which trains when something "
            f"else has changed, or name a version (models:/{model_name}/3)."
        )


def start_at_champion(
    asked: str,
    champion: "Champion | None",
    *,
    base_sha256: str,
    store: "Store",
    tracker: "Tracker",
) -> Start | None:
    """What `init_from: champion` means for these inputs.

    A training with the same inputs that is complete in the store, or has checkpoints to go on from, keeps
    its start. So does the champion's own training, when this home knows nothing of it: made from these
    very inputs, it is not trained on from itself. Only then it is today's champion; the base where
    there is none, or where it belongs on another base.
    """
    noted = _noted(asked, store, tracker.home)
    if noted is None and champion is not None and champion.training.get("asked") == asked:
        noted = {"start": champion.training.get("start")}
    if noted is not None:
        return recorded_start(noted["start"], tracker)
    if champion is None:
        _log.info("There is no champion to start from: training starts from the base")
        return None
    if champion.base_sha256 != base_sha256:
        _log.warning(
            "The champion, version %s, belongs on another base: training starts from the base",
            champion.version,
        )
        return None
    uri = f"models:/{champion.name}/{champion.version}"
    return Start(uri, champion.adapter_sha256, champion.base_sha256, tracker)


def recorded_start(record: Mapping[str, Any] | None, tracker: "Tracker") -> Start | None:
    """The start that a `Start.record` tells of."""
    if record is None:
        return None
    return Start(record["uri"], record["adapter_sha256"], record["base_sha256"], tracker)


def note_start(beginning: Beginning, training: str, store: "Store") -> None:
    """Write down, before the training with this fingerprint begins, what it starts from."""
    if beginning.asked is None:
        return
    start = beginning.start and beginning.start.record
    write_note(beginning.asked, {"training": training, "start": start}, store)


def working_folder(home: "Home", training: str) -> Path:
    """Where the training with this fingerprint keeps its checkpoints until it is published."""
    return home.work / f"training-{training[:16]}"


def _noted(asked: str, store: "Store", home: "Home") -> dict[str, Any] | None:
    """The note of these inputs, while the training that it speaks of stands or can go on, here or from the
    store that homes share."""
    for note in read_notes(asked, store):
        training = str(note["training"])
        if (
            any((working_folder(home, training) / "checkpoints").glob("checkpoint-*"))
            or store.find("training", training) is not None
            or goes_on_elsewhere(training, store)
        ):
            return note
    return None

"""How a registered version was made, read back from its papers: what `loraline reproduce` does again."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tasks.errors import StageFailed
from tasks.home import Home
from tasks.registration.named import check_registered, registered_at
from tasks.registry import ADAPTER_TAG, TRAINING, model_files
from tasks.tracking import Tracker

_DATASET_TAG = "loraline.dataset_digest"
_RECIPE_TAG = "loraline.recipe_digest"


@dataclass(frozen=True)
class Making:
    """The recipe of a version, and what its inputs and its adapter must be equal to."""

    uri: str
    recipe_text: str
    """As it was run, overrides included."""
    recipe_place: str
    """Where it lay, relative to a folder above the state folder or the working directory."""
    adapter_sha256: str
    base_sha256: str
    base_commit: str | None
    base_path: str | None
    """A local base, from the recipe's folder."""
    dataset_digest: str
    recipe_digest: str
    training: dict[str, Any]
    """What the training told of itself: `versions`, `device`, `dtype`; empty for older versions."""


def read_making(tracker: Tracker, uri: str, home: Home) -> Making:
    """The papers of `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

    Raises: UserError when there is no such version; StageFailed when it is not loraline's, or when
    its papers are gone.
    """
    check_registered(tracker, uri)
    named = registered_at(tracker, uri)
    tags = named.tags
    with model_files(tracker, named.model_id, home) as folder:
        about = folder / "artifacts" / "about"
        recipe = about / "recipe.yaml"
        missing = [name for name in (ADAPTER_TAG, _DATASET_TAG) if name not in tags]
        if missing or not recipe.is_file():
            what = f"the tags {', '.join(missing)}" if missing else "its recipe"
            raise StageFailed(f"{uri} cannot be made again: it keeps no record of {what}.")
        training = about / TRAINING
        config = _config(folder)
        return Making(
            uri=uri,
            recipe_text=recipe.read_text(encoding="utf-8"),
            recipe_place=str(config.get("recipe") or ""),
            adapter_sha256=tags[ADAPTER_TAG],
            base_sha256=str(config.get("base_sha256") or ""),
            base_commit=str(config.get("base_commit") or "") or None,
            base_path=str(config.get("base_path") or "") or None,
            recipe_digest=tags.get(_RECIPE_TAG, ""),
            dataset_digest=tags[_DATASET_TAG],
            training=json.loads(training.read_text(encoding="utf-8")) if training.is_file() else {},
        )


def _config(model: Path) -> dict[str, Any]:
    values = yaml.safe_load((model / "MLmodel").read_text(encoding="utf-8"))
    return dict(values["flavors"]["python_function"].get("config") or {})

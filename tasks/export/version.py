"""A registered version as the export reads it: a verified copy of its adapter, its base, its papers."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tasks.errors import BaseModelError, StageFailed, UserError
from tasks.registration.named import check_registered
from tasks.registration.pulling import pull_adapter
from tasks.registry import (
    ADAPTER_TAG,
    DATASET_CARD,
    GATE_TAG,
    METRICS_TAG,
    VERDICT_TAG,
    model_files,
    model_id_of,
    version_at,
)
from tasks.tracking import Tracker
from tasks.version_manifest import adapter_manifest

TOKENIZER_MODEL = "tokenizer.model"
"""SentencePiece's file, which converters to GGUF read for some architectures."""


@dataclass(frozen=True)
class ExportedVersion:
    """A version with copies of its files in a folder of ours, compared with its manifest."""

    name: str
    number: str
    description: str
    metrics: Mapping[str, Any]
    """Model (`base`, `champion`, `challenger`: the version itself) -> metric -> value."""
    gate: str
    """passed, refused or none."""
    verdict: Mapping[str, Any]
    recipe: Mapping[str, Any]
    dataset: Mapping[str, Any]
    """The dataset's card; empty where the version keeps none."""
    loading: Mapping[str, Any]
    """The configuration that chat_model.py is given, `base_model` and `base_sha256` among it."""
    adapter_sha256: str
    folder: Path
    """`adapter/`, `fixture/` and `manifest.json`."""
    base: Path | None
    """The base's folder, of the recorded sha256; None where it was not asked for."""

    @property
    def uri(self) -> str:
        """`models:/NAME/VERSION`."""
        return f"models:/{self.name}/{self.number}"

    @property
    def adapter(self) -> Path:
        """The adapter's folder."""
        return self.folder / "adapter"

    @property
    def adapter_config(self) -> dict[str, Any]:
        """PEFT's configuration."""
        return _json(self.adapter / "adapter_config.json")

    @property
    def base_model(self) -> str:
        """The base's Hub id, or the name of its folder."""
        shown = str(self.loading["base_model"])
        return shown if self.base_commit else Path(shown).name

    @property
    def base_commit(self) -> str | None:
        """The Hub commit; None for a base that is a local folder."""
        return str(self.loading.get("base_commit") or "") or None

    @property
    def base_sha256(self) -> str:
        """Over the base's config.json and weights."""
        return str(self.loading["base_sha256"])

    @property
    def trained_on(self) -> str:
        """`none`, or how the base was quantized in training."""
        return str(self.loading.get("quantization") or "none")

    @property
    def tokenizer_files(self) -> list[Path]:
        """Tokenizer, chat template and generation config, as they lie beside the adapter."""
        own = ("adapter_config.json", "adapter_model.safetensors", "README.md")
        return sorted(p for p in self.adapter.iterdir() if p.is_file() and p.name not in own)


def read_version(
    tracker: Tracker, uri: str, folder: Path, *, base: Path | None, find_base: bool
) -> ExportedVersion:
    """Copy the version's adapter and fixture to `folder`, which must be absent, and verify the copy.

    `base` names the base's folder; with `find_base` it is looked for where it is not named.

    Raises: UserError when there is no such version; BaseModelError when the base is not found or is
    not the recorded one; StageFailed when the version is damaged or not loraline's.
    """
    if uri.startswith("models:/m-"):
        raise UserError(
            f"{uri} is a logged model. Name a registered version: models:/NAME/VERSION."
        )
    check_registered(tracker, uri)
    found = version_at(tracker, uri)
    # An alias may move while the files are read.
    fixed = f"models:/{found.name}/{found.version}"
    tags = found.tags
    pulled = pull_adapter(tracker, fixed, folder / "adapter")
    # Of the copy: the version's own manifest names files that are not copied.
    manifest = adapter_manifest(folder / "adapter", pulled.base_sha256)
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with model_files(tracker, model_id_of(found), tracker.home) as model:
        artifacts = model / "artifacts"
        try:
            loading = yaml.safe_load((model / "MLmodel").read_text(encoding="utf-8"))
            loading = dict(loading["flavors"]["python_function"]["config"])
            shutil.copytree(artifacts / "fixture", folder / "fixture")
            about = artifacts / "about"
            recipe = yaml.safe_load((about / "recipe.yaml").read_text(encoding="utf-8"))
            dataset = _json(about / DATASET_CARD) if (about / DATASET_CARD).is_file() else {}
            metrics = json.loads(tags.get(METRICS_TAG) or "{}")
            verdict = json.loads(tags.get(VERDICT_TAG) or "{}")
            _ = loading["base_model"], loading["base_sha256"]
        except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
            raise StageFailed(
                f"{fixed} is damaged, or was not registered by loraline: "
                f"{error.__class__.__name__}: {' '.join(str(error).split())}. "
                "Restore MLflow's artifact store, or name another version."
            ) from error
        place = None
        if base is not None or find_base:
            place = _base(loading, artifacts / "adapter", base)
    return ExportedVersion(
        name=str(found.name),
        number=str(found.version),
        description=str(found.description or ""),
        metrics={k: v for k, v in metrics.items() if isinstance(v, dict)},
        gate=str(tags.get(GATE_TAG) or "none"),
        verdict=verdict if isinstance(verdict, dict) else {},
        recipe=recipe if isinstance(recipe, dict) else {},
        dataset=dataset,
        loading=loading,
        adapter_sha256=str(tags.get(ADAPTER_TAG) or ""),
        folder=folder,
        base=place,
    )


def _base(loading: dict[str, Any], adapter: Path, named: Path | None) -> Path:
    from tasks.registration.chat_model import find_base

    config = {**loading, "base": str(named.absolute()) if named else ""}
    try:
        return find_base(config, adapter)
    except RuntimeError as error:
        raise BaseModelError(f"{error}\nOn this command line: --base DIR.") from error


def _json(path: Path) -> dict[str, Any]:
    values = json.loads(path.read_text(encoding="utf-8"))
    return values if isinstance(values, dict) else {}

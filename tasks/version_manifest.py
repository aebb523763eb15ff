"""What a version's files must be: its manifest names the sha256 of each, and the registry's tags name the manifest."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.files import hashes
from tasks.store import digest

MANIFEST = "artifacts/manifest.json"
WEIGHTS = "adapter_model.safetensors"
FILES_TAG = "loraline.files_sha256"
"""On a version: digest over the sha256 of every file but the manifest."""
FINGERPRINT_TAG = "loraline.fingerprint"
ADAPTER_TAG = "loraline.adapter_sha256"
BASE_TAG = "loraline.base_sha256"

_ADAPTER = "artifacts/adapter/"
_WHOLE = ".."
"""The manifest's `root`: the folder of the model, from where the manifest lies."""
_MLFLOW_S = "registered_model_meta"
"""MLflow writes it beside MLmodel wherever it delivers a version: name and number, which nothing reads."""


@dataclass(frozen=True)
class Checked:
    """A version's files beside what is recorded of them."""

    wrong: tuple[str, ...]
    """One statement for each file that is not as recorded."""
    files: int
    """How many the manifest names."""
    whole: bool
    """False for a version from before manifests covered more than the adapter."""
    base_sha256: str
    """The base it belongs on."""
    adapter: Mapping[str, str] = field(default_factory=dict)
    """sha256 of the adapter's files as recorded, by name in its folder."""

    @property
    def told(self) -> str:
        """The finding, as the end of a sentence about the files."""
        if self.wrong:
            return "; ".join(self.wrong)
        if self.whole:
            return f"all {self.files} have their recorded sha256"
        return (
            f"the adapter's {self.files} have their recorded sha256; the others (the code that loads it, its "
            "papers) are not compared: this version was registered before its manifest named them"
        )


def write_manifest(model: Path, base_sha256: str) -> str:
    """Write the manifest of a model's folder, when everything else is in it; returns `FILES_TAG`'s value."""
    files = {name: sha for name, sha in hashes(model).items() if name != MANIFEST}
    manifest = {"root": _WHOLE, "files": files, "base_sha256": base_sha256}
    (model / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    return digest(files)


def adapter_manifest(adapter: Path, base_sha256: str) -> dict[str, Any]:
    """The manifest of an adapter's folder alone. Its digest is what the tag `FINGERPRINT_TAG` holds."""
    return {"files": hashes(adapter), "base_sha256": base_sha256}


def check_files(model: Path, tags: Mapping[str, str]) -> Checked:
    """Compare a model's folder with its manifest, and the manifest with the tags of the version.

    Nothing in the folder is executed or trusted: whoever may write there may write a manifest, too.
    `tags` is empty for a model that is no version yet.
    """
    try:
        manifest = json.loads((model / MANIFEST).read_text(encoding="utf-8"))
        files = {str(name): str(sha) for name, sha in manifest["files"].items()}
        base = str(manifest["base_sha256"])
        whole = manifest.get("root") == _WHOLE
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        told = f"{MANIFEST} cannot be read ({error.__class__.__name__})"
        return Checked((told,), 0, False, "")
    if not whole:
        files = {f"{_ADAPTER}{name}": sha for name, sha in files.items()}
    adapter = {
        name.removeprefix(_ADAPTER): sha for name, sha in files.items() if name.startswith(_ADAPTER)
    }
    claimed = {
        FILES_TAG: digest(files) if whole else None,
        FINGERPRINT_TAG: digest({"files": adapter, "base_sha256": base}),
        ADAPTER_TAG: adapter.get(WEIGHTS),
        BASE_TAG: base,
    }
    foreign = [
        f"{MANIFEST} was changed: the registry's tag {tag} names "
        f"{tags[tag][:12]}, the manifest {str(value)[:12] if value else 'nothing'}"
        for tag, value in claimed.items()
        if tag in tags and tags[tag] != value
    ]
    if whole and tags and FILES_TAG not in tags:
        foreign.append(f"the registry's tag {FILES_TAG} is gone")
    present = {
        name: sha
        for name, sha in hashes(model if whole else model / _ADAPTER).items()
        if name not in (MANIFEST, _MLFLOW_S)
    }
    if not whole:
        present = {f"{_ADAPTER}{name}": sha for name, sha in present.items()}
    return Checked((*foreign, *differences(files, present)), len(files), whole, base, adapter)


def differences(recorded: Mapping[str, str], present: Mapping[str, str]) -> list[str]:
    """What differs between two lists of sha256 by name, a statement for each file."""
    told = []
    for name in sorted({*recorded, *present}):
        if name not in present:
            told.append(f"{name} is missing")
        elif name not in recorded:
            told.append(f"{name} was added")
        elif recorded[name] != present[name]:
            told.append(f"{name} was changed")
    return told


def drop_bytecode(model: Path) -> None:
    """Remove what Python kept of `chat_model.py` when a process loaded the model where it lies.

    It is made anew when it is missing, and executed in place of the file when it is there: what
    somebody else put there would run, and no comparison of the file would show it.
    """
    shutil.rmtree(model / "__pycache__", ignore_errors=True)

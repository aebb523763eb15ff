"""Copy a version's adapter into a plain folder that PEFT loads, every file compared with the manifest."""

import json
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.errors import StageFailed, UserError
from tasks.registration.checking import model_id_of_uri
from tasks.registration.package import hashes
from tasks.registration.prediction import check_registered
from tasks.registry import model_files
from tasks.tracking import Tracker


@dataclass(frozen=True)
class Pulled:
    """An adapter that was copied."""

    folder: Path
    files: int
    base_model: str
    base_sha256: str
    """The base it belongs on, and no other."""


def pull_adapter(tracker: Tracker, uri: str, folder: Path) -> Pulled:
    """Copy the adapter of `uri` to `folder`, which must be absent or empty. It appears whole or not at all.

    Raises: UserError when there is no such version or the folder holds something; StageFailed when
    the version's files are not those of its manifest.
    """
    folder = folder.absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already, and not an empty folder. Name another one.")
    check_registered(tracker, uri)
    with model_files(tracker, model_id_of_uri(tracker, uri), tracker.home) as model:
        artifacts = model / "artifacts"
        manifest = _manifest(artifacts, uri)
        draft = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.draft")
        try:
            draft.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(artifacts / "adapter", draft)
            _compare(draft, manifest["files"], uri)
            if folder.exists():
                folder.rmdir()
            draft.rename(folder)
        except OSError as error:
            raise UserError(f"Cannot write {folder}: {error.strerror or error}.") from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return Pulled(
        folder,
        len(manifest["files"]),
        str(config.get("base_model_name_or_path") or ""),
        str(manifest["base_sha256"]),
    )


def _manifest(artifacts: Path, uri: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((artifacts / "manifest.json").read_text("utf-8"))
        if isinstance(found["files"], dict) and "base_sha256" in found:
            return found
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise StageFailed(f"{uri} has no readable manifest: it is damaged, or not loraline's.")


def _compare(folder: Path, files: dict[str, str], uri: str) -> None:
    """What was copied, and not what it was copied from."""
    there = hashes(folder)
    wrong = sorted(name for name in {*files, *there} if files.get(name) != there.get(name))
    if wrong:
        raise StageFailed(
            f"{uri} is not what was registered: {', '.join(wrong)} differ from the manifest, or are missing "
            "or not in it. Restore MLflow's artifact store, or name another version."
        )

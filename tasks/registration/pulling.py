"""Copy a version's adapter into a plain folder that PEFT loads, every file compared with what was registered."""

import json
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import UserError
from tasks.files import hashes
from tasks.registration.named import check_registered, refuse, registered_files
from tasks.tracking import Tracker
from tasks.version_manifest import differences


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
    the version's files are not those that were registered.
    """
    folder = folder.absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already, and not an empty folder. Name another one.")
    check_registered(tracker, uri)
    with registered_files(tracker, uri) as (model, found):
        draft = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.draft")
        try:
            draft.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(model / "artifacts" / "adapter", draft)
            files = hashes(draft)
            # What was copied, and not what it was copied from.
            refuse(uri, differences(found.adapter, files))
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
        len(files),
        str(config.get("base_model_name_or_path") or ""),
        found.base_sha256,
    )

"""Which checkpoints can be trusted: those whose manifest, written last, names every byte."""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tasks.errors import StageFailed
from tasks.files import file_sha256, fsync
from tasks.start_notes import COMPLETE

MANIFEST = COMPLETE
PREFIX = "checkpoint-"
_TORN = "torn-"


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which the checkpoint was written."""
    return int(checkpoint.name.removeprefix(PREFIX))


def mark_complete(
    checkpoint: Path,
    inputs: Mapping[str, Any] | None = None,
    made_with: Mapping[str, Any] | None = None,
) -> None:
    """Declare a written checkpoint complete. Until then a resume passes it by.

    `inputs` is what decides the training that it belongs to, `made_with` what computed it.
    """
    files = {p.relative_to(checkpoint).as_posix(): file_sha256(p) for p in _files(checkpoint)}
    for name in files:
        fsync(checkpoint / name)
    temporary = checkpoint / f"{MANIFEST}.tmp"
    values = {"files": files, "inputs": dict(inputs or {}), "made_with": dict(made_with or {})}
    temporary.write_text(json.dumps(values, indent=1), encoding="utf-8")
    fsync(temporary)
    # Written last: its existence means that the checkpoint is complete.
    temporary.rename(checkpoint / MANIFEST)
    fsync(checkpoint)


def is_complete(checkpoint: Path) -> bool:
    """Whether every file is there, byte for byte as it was when the checkpoint was declared complete."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"]
        return bool(files) and all(file_sha256(checkpoint / n) == sha for n, sha in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def made_with_of(checkpoint: Path) -> dict[str, Any]:
    """What `mark_complete` was told; empty where it says nothing."""
    try:
        value = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["made_with"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return value if isinstance(value, dict) else {}


def newest_declared(folder: Path) -> Path | None:
    """The newest checkpoint with a manifest, whose files are not looked at."""
    declared = [c for c in _checkpoints(folder) if (c / MANIFEST).is_file()]
    return declared[-1] if declared else None


def refuse_other_inputs(checkpoint: Path, inputs: Mapping[str, Any]) -> None:
    """Raises: StageFailed when the checkpoint belongs to a training with other inputs, naming them."""
    manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    # As JSON has it: a tuple is a list there.
    asked = json.loads(json.dumps(dict(inputs)))
    changes = list(_changes("", manifest.get("inputs", {}), asked))
    if not changes:
        return
    raise StageFailed(
        f"{checkpoint} belongs to another training, and going on from it would give an adapter that "
        f"no recipe describes. What differs: {'; '.join(changes)}. Move {checkpoint.parent} away to "
        "train from the start, or run the recipe that it was written for."
    )


def _changes(name: str, kept: Any, asked: Any) -> Iterator[str]:
    if isinstance(kept, dict) and isinstance(asked, dict):
        for key in sorted(kept.keys() | asked.keys()):
            inner = f"{name}.{key}" if name else key
            yield from _changes(inner, kept.get(key), asked.get(key))
    elif kept != asked:
        yield f"{name} was {kept!r} and is {asked!r}"


def newest_complete(folder: Path) -> Path | None:
    """The complete checkpoint with the highest step; torn ones are renamed out of the way."""
    for checkpoint in reversed(_checkpoints(folder)):
        if is_complete(checkpoint):
            return checkpoint
        aside = folder / f"{_TORN}{checkpoint.name}"
        shutil.rmtree(aside, ignore_errors=True)
        checkpoint.rename(aside)
    return None


def keep_newest(folder: Path, limit: int | None) -> None:
    """Remove all but the `limit` newest checkpoints; None keeps all, and one is always kept.

    To be called after `mark_complete`: removing first would leave none if we died in between.
    """
    if limit is None:
        return
    for checkpoint in _checkpoints(folder)[: -max(1, limit)]:
        # Its manifest goes first: a half-removed checkpoint must never look complete.
        (checkpoint / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(checkpoint, ignore_errors=True)


def _checkpoints(folder: Path) -> list[Path]:
    found = (p for p in folder.glob(f"{PREFIX}*") if p.name.removeprefix(PREFIX).isdigit())
    return sorted((p for p in found if p.is_dir()), key=step_of)


def _files(checkpoint: Path) -> list[Path]:
    return sorted(p for p in checkpoint.rglob("*") if p.is_file() and p.name != MANIFEST)

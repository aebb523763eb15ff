"""What a checkpoint was computed with: a training that goes on otherwise ends with another adapter."""

import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasks.errors import StageFailed, UserError
from tasks.training import checkpoints, loading

LIBRARIES = ("torch", "transformers", "trl", "peft")


def versions() -> dict[str, str]:
    """Of the libraries that compute."""
    return {name: importlib.metadata.version(name) for name in LIBRARIES}


def made_with(precision: loading.Precision) -> dict[str, Any]:
    """What the manifest of a checkpoint says of it."""
    return {"dtype": precision.name, "versions": versions()}


def precision_to_go_on_with(
    dtype: loading.Dtype, folder: Path, note: Callable[[str], None]
) -> loading.Precision:
    """That of `dtype`; where it is `auto` and there is a checkpoint, the checkpoint's.

    Another machine may compute faster in another number format, and half a training in each is no
    adapter that a recipe describes. Raises: UserError for a dtype that this machine lacks;
    StageFailed when it lacks the checkpoint's.
    """
    checkpoint = checkpoints.newest_declared(folder) if dtype == "auto" else None
    kept = checkpoints.made_with_of(checkpoint).get("dtype") if checkpoint else None
    if checkpoint is None or kept is None:
        return loading.choose_precision(dtype)
    own = loading.choose_precision("auto")
    if own.name == kept:
        return own
    try:
        found = loading.choose_precision(kept)
    except UserError as error:
        raise StageFailed(
            f"{checkpoint} was computed in {kept}, which this machine does not do. Go on on a machine "
            f"like the one before; or start anew here: write training.dtype: {own.name}, which is "
            f"another training, or move {checkpoint.parent} away. ({error})"
        ) from error
    note(
        f"Going on in {kept}, as the checkpoint was computed; anew, this machine would take {own.name} "
        f"({own.reason}). training.dtype: {own.name} is another training, which starts anew."
    )
    return loading.Precision(found.base, found.autocast, "the checkpoint was computed in it")


def refuse_other_precision(checkpoint: Path, precision: loading.Precision) -> None:
    """Raises: StageFailed when the checkpoint was computed in another number format."""
    kept = checkpoints.made_with_of(checkpoint).get("dtype")
    if kept not in (None, precision.name):
        raise StageFailed(
            f"{checkpoint} was computed in {kept}, and this training computes in {precision.name}: the "
            f"adapter would be neither's. Write training.dtype: {kept}, or move {checkpoint.parent} "
            "away to train from the start."
        )


def other_versions(checkpoint: Path) -> str:
    """What to tell of libraries that are not those of the checkpoint; empty where they are the same."""
    now = versions()
    before = checkpoints.made_with_of(checkpoint).get("versions") or {}
    changed = [
        f"{name} {before[name]} (now {now[name]})"
        for name in LIBRARIES
        if name in before and before[name] != now[name]
    ]
    if not changed:
        return ""
    return (
        f"The checkpoint was written with {', '.join(changed)}: the adapter may differ in its last bits "
        "from that of a training that was not interrupted."
    )

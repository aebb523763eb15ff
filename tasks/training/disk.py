"""Refuse a disk that will not do, and recognise a full one whichever library ran into it."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.errors import StageFailed

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SAID = (
    "No space left on device",
    "Disk quota exceeded",
    "File too large",
    # All that torch's writer of archives says.
    "PytorchStreamWriter failed writing file",
    "unexpected pos",
)


def refuse_full(checkpoints: Path, trainable: int, kept: int | None) -> None:
    """Raises: StageFailed where the `kept` checkpoints (2 if None) of so many parameters will not fit."""
    # Adapter in float32 and two moments of the optimizer, and what lies beside them.
    checkpoint = trainable * 12 + 20_000_000
    needed = checkpoint * (int(kept or 2) + 2)
    checkpoints.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(checkpoints).free
    if free < needed:
        raise StageFailed(
            f"The disk of {checkpoints} has {free / 1e9:.1f} GB free; checkpoints need about "
            f"{needed / 1e9:.1f} GB. Free some space, point LORALINE_HOME at another disk, or lower "
            "training.training_config.save_total_limit."
        )


def is_full(error: BaseException) -> bool:
    """Whether this, or what led to it, is a disk, a quota or a file limit that is used up."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.errno in _FULL:
            return True
        if any(words in str(link) for words in _SAID):
            return True
        link = link.__cause__ or link.__context__
    return False


def full(what: str, folder: Path, error: BaseException) -> StageFailed:
    """The same for a person: what could not be written, and that nothing older is lost."""
    return StageFailed(
        f"The disk is full: {what} could not be written below {folder} ({error}). Older checkpoints are "
        "untouched, and the same command goes on from the newest. Free some space, raise the quota, "
        "or lower training.training_config.save_total_limit."
    )


@contextmanager
def whole_or_nothing(checkpoint: Path) -> Iterator[None]:
    """Write a checkpoint inside the block; what an error leaves of it is removed.

    A part of one is of no use, and where the disk is full it is in the way.

    Raises: StageFailed when the disk is full.
    """
    try:
        yield
    except Exception as error:
        shutil.rmtree(checkpoint, ignore_errors=True)
        if is_full(error):
            raise full(checkpoint.name, checkpoint.parent, error) from error
        raise

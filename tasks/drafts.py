"""A folder that a command writes for its user: whole, or not at all."""

import errno
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)


def require_free(output: Path) -> None:
    """What is there already is never overwritten. Raises: UserError unless it is absent or empty."""
    if output.is_symlink() or (output.exists() and (not output.is_dir() or any(output.iterdir()))):
        raise UserError(
            f"--output {output}: is there already, and not an empty folder. Name another one."
        )


@contextmanager
def published(output: Path) -> Iterator[Path]:
    """The path of a draft beside the output, which the block makes and fills; renamed at the block's end.

    Nothing stays when the block fails.

    Raises: UserError when the output cannot be written, or a file that the block needs cannot be read.
    """
    draft = output.with_name(f".{output.name}.{uuid.uuid4().hex[:8]}.draft")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        yield draft
        # The kernel replaces an empty folder, and refuses one that was filled in the meantime.
        draft.rename(output)
    except OSError as error:
        raise UserError(_told(error, output, draft)) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _told(error: OSError, output: Path, draft: Path) -> str:
    reason = error.strerror or str(error)
    place = error.filename if isinstance(error.filename, str | Path) else None
    # Also what the block made beside the draft, by a longer name.
    is_written = place is not None and (
        str(place).startswith(str(draft)) or Path(place) in (output, *output.parents)
    )
    if is_written or error.errno in _FULL:
        return f"--output {output}: cannot be written ({reason})."
    if place is not None:
        return f"{place}: {reason}. Nothing was written to {output}."
    return f"{output} could not be made, and nothing was written to it: {reason}."

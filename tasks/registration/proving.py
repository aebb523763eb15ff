"""Prove before a promotion that a version is whole and computes what was trained, in a fresh process."""

from pathlib import Path

from tasks.errors import StageFailed, UserError, WorkerFailed
from tasks.registration.named import registered_files
from tasks.registration.verification import verify_version
from tasks.tracking import Tracker


def prove_version(tracker: Tracker, uri: str, *, base: Path | None = None) -> str:
    """Check the files, load the version as a user would, compare its logits; what was found, in a sentence.

    `base` is the base's folder where it is not found by itself.

    Raises: StageFailed when it is damaged, does not load or computes something else.
    """
    with registered_files(tracker, uri) as (folder, _):
        try:
            found = verify_version(
                tracker,
                uri,
                base=base,
                fixture=folder / "artifacts" / "fixture",
                home=tracker.home,
            )
        except (UserError, WorkerFailed) as error:
            raise StageFailed(f"{uri} does not load: {error}") from error
    return found.told

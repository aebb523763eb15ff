"""Prove before a promotion that a version is whole and computes what was trained, in a fresh process."""

from pathlib import Path

from tasks.errors import StageFailed, UserError, WorkerFailed
from tasks.registration.checking import files_check, model_id_of_uri
from tasks.registration.verification import verify_version
from tasks.registry import model_files
from tasks.tracking import Tracker


def prove_version(tracker: Tracker, uri: str, *, base: Path | None = None) -> str:
    """Check the manifest, load the version as a user would, compare its logits; what was found, in a sentence.

    `base` is the base's folder where it is not found by itself.

    Raises: StageFailed when it is damaged, does not load or computes something else.
    """
    with model_files(tracker, model_id_of_uri(tracker, uri), tracker.home) as folder:
        artifacts = folder / "artifacts"
        try:
            files = files_check(artifacts)
        except (OSError, ValueError, KeyError) as error:
            raise StageFailed(f"{uri} has no readable manifest ({error}).") from error
        if not files.passed:
            raise StageFailed(f"{uri} is not what was registered: files are {files.told}.")
        try:
            found = verify_version(
                tracker, uri, base=base, fixture=artifacts / "fixture", home=tracker.home
            )
        except (UserError, WorkerFailed) as error:
            raise StageFailed(f"{uri} does not load: {error}") from error
    return found.told

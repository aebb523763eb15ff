"""Create versions: a model's upload that is compared byte by byte, and one version for one content."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.errors import StageFailed
from tasks.files import hashes
from tasks.home import Home
from tasks.registry import FINGERPRINT_TAG, model_files
from tasks.tracking import Tracker, filter_text

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion


def find_by_fingerprint(tracker: Tracker, name: str, fingerprint: str) -> "ModelVersion | None":
    """The oldest ready version of this name with this content, or None."""
    with tracker.explained(f"search the versions of {name!r}"):
        found = tracker.client.search_model_versions(
            f"name = {filter_text(name)} and tag.`{FINGERPRINT_TAG}` = '{fingerprint}'"
        )
    ready = [version for version in found if version.status == "READY"]
    return min(ready, key=lambda version: int(version.version), default=None)


def create_version(
    tracker: Tracker,
    name: str,
    *,
    model_id: str,
    run_id: str,
    tags: Mapping[str, str],
    description: str,
    model_description: str = "",
) -> str:
    """Create a version from an uploaded, verified model; returns its number.

    The model is created with `model_description` where there is none: what a person wrote there later
    stays. Called with the lock held. Where workers share no disk, and so no lock, two may create the same
    version: the younger one is withdrawn.
    """
    from mlflow.exceptions import MlflowException

    client = tracker.client
    with tracker.explained(f"register {name!r}"):
        try:
            client.create_registered_model(name, description=model_description)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        with _as_default(tracker.uri):
            created = client.create_model_version(
                name,
                source=f"models:/{model_id}",
                run_id=run_id,
                model_id=model_id,
                tags=dict(tags),
                description=description,
            )
    number = str(created.version)
    first = find_by_fingerprint(tracker, name, tags[FINGERPRINT_TAG])
    if first is not None and str(first.version) != number:
        with tracker.explained(f"withdraw the second copy of version {first.version}"):
            client.delete_model_version(name, number)
            client.delete_logged_model(model_id)
        return str(first.version)
    return number


def upload_model(tracker: Tracker, folder: Path, *, model_id: str, home: Home) -> None:
    """Upload a written model and compare what arrived, byte by byte, with what was sent."""
    with tracker.explained("store the model's files"):
        tracker.client.log_model_artifacts(model_id, str(folder))
    with model_files(tracker, model_id, home) as arrived:
        sent, there = hashes(folder), hashes(arrived)
    wrong = sorted(name for name in sent if there.get(name) != sent[name])
    if wrong:
        raise StageFailed(
            f"{len(wrong)} of {len(sent)} files of the model did not reach MLflow's artifact store "
            f"intact, for example {wrong[0]}. Check the space and the health of the artifact store, then "
            "run the same recipe again."
        )


@contextmanager
def _as_default(uri: str) -> Iterator[None]:
    """MLflow's SQL registry looks a model up in the process's default store, whatever its client's is."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    os.environ["MLFLOW_TRACKING_URI"] = uri
    try:
        yield
    finally:
        if before is None:
            del os.environ["MLFLOW_TRACKING_URI"]
        else:
            os.environ["MLFLOW_TRACKING_URI"] = before

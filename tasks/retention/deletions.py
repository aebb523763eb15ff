"""What somebody deleted in MLflow: it is only marked there until it is purged."""

import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from tasks.retention.needs import Registered

if TYPE_CHECKING:
    from tasks.tracking import Tracker

RESTORABLE_DAYS = 30
"""So long what was deleted can be restored (`mlflow runs restore`, `mlflow experiments restore`)."""
_DELETED, _ALL = 2, 3
"""`mlflow.entities.ViewType`."""


@dataclass(frozen=True)
class DeletedSource:
    """Something deleted that a registered version came from."""

    model: str
    """The registered model."""
    version: str
    kind: Literal["experiment", "run", "logged model"]
    id: str

    def way_back(self, uri: str) -> str:
        """How it comes back in the MLflow at `uri`, after "until"."""
        if self.kind == "logged model":
            # MLflow has no command for that.
            return f"`lifecycle_stage` of {self.id} is 'active' again in the table `logged_models` of its database"
        command = f"mlflow {self.kind}s restore --{self.kind}-id {self.id}"
        return f"`MLFLOW_TRACKING_URI={shlex.quote(uri)} {command}` brings it back"


def deleted_runs(tracker: "Tracker", *, days: float = RESTORABLE_DAYS) -> list[str]:
    """Ids of deleted runs that may have been so for that long; none where MLflow's files are not this home's.

    MLflow tells its clients no time of deletion: these are those that had ended by then. Which of them
    go `mlflow gc` decides, by that time.

    Raises: StageFailed when MLflow does not answer.
    """
    if not tracker.owns_artifacts:
        return []
    before = (datetime.now(UTC) - timedelta(days=days)).timestamp() * 1000
    with tracker.explained("list deleted runs"):
        found = list(_runs(tracker, _experiments(tracker, _ALL), _DELETED))
    return [it.info.run_id for it in found if (it.info.end_time or it.info.start_time) < before]


def deleted_sources(
    tracker: "Tracker", versions: Mapping[tuple[str, str], Registered]
) -> list[DeletedSource]:
    """What versions came from and is deleted, however long ago; per version what must come back first. None where
    MLflow's files are not this home's.

    With a deleted experiment MLflow gives up all that it has, also a run in it that somebody restored.

    Raises: StageFailed when MLflow does not answer.
    """
    if not (versions and tracker.owns_artifacts):
        return []
    with tracker.explained("look for what its versions came from"):
        closed = _experiments(tracker, _DELETED)
        everywhere = _experiments(tracker, _ALL)
        in_closed = {it.info.run_id: it.info.experiment_id for it in _runs(tracker, closed, _ALL)}
        deleted = {it.info.run_id for it in _runs(tracker, everywhere, _DELETED)}
        models = {it.model_id: it.experiment_id for it in _models(tracker, everywhere)}
    found: list[DeletedSource] = []
    for (name, number), it in versions.items():
        experiment = in_closed.get(it.mlflow_run_id) or models.get(it.model_id)
        if experiment in closed:
            found.append(DeletedSource(name, number, "experiment", str(experiment)))
        elif it.mlflow_run_id in deleted:
            found.append(DeletedSource(name, number, "run", it.mlflow_run_id))
        elif it.model_id and it.model_id not in models:
            found.append(DeletedSource(name, number, "logged model", it.model_id))
    return found


def _experiments(tracker: "Tracker", view: int) -> list[str]:
    found = _pages(tracker.client.search_experiments, view_type=view)
    return [it.experiment_id for it in found]


def _runs(tracker: "Tracker", experiments: list[str], view: int) -> Iterator[Any]:
    for some in _hundreds(experiments):
        yield from _pages(tracker.client.search_runs, some, run_view_type=view)


def _models(tracker: "Tracker", experiments: list[str]) -> Iterator[Any]:
    """Logged models that are not deleted themselves."""
    for some in _hundreds(experiments):
        yield from _pages(tracker.client.search_logged_models, some)


def _hundreds(them: list[str]) -> Iterable[list[str]]:
    return (them[start : start + 100] for start in range(0, len(them), 100))


def _pages(search: Any, *what: Any, **how: Any) -> Iterator[Any]:
    token: str | None = None
    while True:
        page = search(*what, **how, max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return

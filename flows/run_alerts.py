"""Tell of a retraining that failed or was refused, from within: also where no watchdog of ours looks on.

A run of a deployment only: who runs `loraline run` on a terminal reads there how it ended.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from prefect.settings import PREFECT_API_URL

from flows.orderly import NotNow
from flows.recipe_heading import heading_of
from flows.stack.alerts import Alert, Alerts, Kind, attempt_of, memory_of
from flows.unattended import unattended
from tasks.errors import Interrupted, Killed, OverBudget
from tasks.home import home
from tasks.promotion.task import home_notices
from tasks.stack import read_stack

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

    from flows.run_record import RunRecord
    from tasks.artifacts import Report

_KINDS: dict[type[Exception], tuple[Kind, str]] = {
    OverBudget: ("budget", "was stopped for its budget"),
    Killed: ("crashed", "crashed"),
}
_log = logging.getLogger(__name__)


@contextmanager
def failure_told(recipe: str) -> Iterator[None]:
    """Tell of the error that leaves the block, unless somebody wanted the run to end."""
    try:
        yield
    except (Interrupted, NotNow):
        raise
    except Exception as error:
        # The run crashed: the watchdog tells of it as it starts it once more.
        left = isinstance(error, Killed) and _is_watched()
        if not left and (run := unattended()) is not None:
            kind, what = _KINDS.get(type(error), ("failed", "failed"))
            name = _name(run, recipe)
            text = f"The retraining {run.name} {what}: {str(error)[:1000] or type(error).__name__}"
            attempt = attempt_of(str(run.id), run.run_count)
            _tell(Alert(kind, attempt, name, text, _details(run)))
        raise


def tell_refusal(run: "RunRecord", report: "Report") -> None:
    """Tell that the gate refused an adapter: once for a verdict, however often it is read again."""
    if (flow_run := unattended()) is None:
        return
    details = {**_details(flow_run), "mlflow_run": run.outcome.mlflow_run_id}
    text = f"{run.name}: {run.outcome.reason} The champion stays."
    _tell(Alert("refused", report.fingerprint, run.recipe.name, text, details))


def _is_watched() -> bool:
    """Whether a stack of this home runs, and with it the watchdog, which sees the runs of its own server."""
    server = read_stack(home()).get("prefect")
    if server is None or not server.supervised or server.url != PREFECT_API_URL.value():
        return False
    return server.lives


def _name(run: "FlowRun", recipe: str) -> str:
    """The adapter's, as `flows.stack.crashes` names it: automations listen to one name."""
    creator = run.created_by
    slug = creator.display_value if creator is not None and creator.type == "SCHEDULE" else None
    overrides = run.parameters.get("overrides") or ()
    return heading_of(recipe, overrides, otherwise=slug or "")[0] or "retrain"


def _details(run: "FlowRun") -> dict[str, str]:
    return {"flow_run": str(run.id), "run_name": run.name}


def _tell(alert: Alert) -> None:
    """Never the reason why a run ends otherwise than it would."""
    try:
        here = home()
        alerts = Alerts(memory_of(here), home_notices(here))
        if alerts.tell(alert):
            alerts.deliver()
    except Exception:
        _log.warning("The alert could not be told: %s", alert.text, exc_info=True)

"""Go back to the champion before: it must load before anything is moved."""

from typing import TYPE_CHECKING, Any

from prefect import State, flow
from prefect.runtime import flow_run
from prefect.states import Completed

from flows.bridging import bridged_run
from tasks.home import home
from tasks.promotion.repeating import Asked
from tasks.promotion.task import roll_back_champion
from tasks.registration.task import verifier
from tasks.tracking import reachable_tracker

if TYPE_CHECKING:
    from tasks.promotion.promoting import Moved


def _run_name() -> str:
    return str(flow_run.parameters.get("name", "rollback"))


@flow(name="rollback", flow_run_name=_run_name, persist_result=False)
def rollback(name: str, reason: str, by: str | None = None) -> State[dict[str, Any]]:
    """Make the version with the alias `previous` the champion again.

    Args:
        name: The registered model.
        reason: Why; it stands in the promotion log for good.
        by: Who decided it. Default: the user that runs the flow.

    Returns the log's entry. The run fails, and nothing is moved, when that version does not load. A
    server that is away is waited for.
    """
    asked = Asked()

    def attempt() -> "Moved":
        asked.attempts += 1
        tracker = reachable_tracker(home())
        return roll_back_champion(
            tracker, name, reason=reason, verify=verifier(tracker), asked=asked, actor=by
        )

    moved = bridged_run(attempt, doing=f"roll back {name}")
    assert moved.entry is not None
    data = {"version": moved.version.model_dump(), "entry": moved.entry.model_dump(mode="json")}
    return Completed(message=moved.entry.title, data=data)

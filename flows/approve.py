"""Ask a person whether a version may go live: a form in Prefect, with the gate's verdict beside it."""

from datetime import UTC, datetime
from typing import Any, Literal

from prefect import State, flow, suspend_flow_run
from prefect.input import RunInput
from prefect.runtime import flow_run
from prefect.states import Completed
from pydantic import Field

from flows.approval_forms import created, has_expired, make_way
from tasks.home import home
from tasks.promotion.task import carry_out_approval, show_question
from tasks.registration.task import verifier
from tasks.tracking import reachable_tracker


class Approval(RunInput):
    """The form."""

    decision: Literal["promote", "reject"]
    reason: str = Field(pattern=r"\S", description="Why; it stands in the promotion log for good")
    name: str = Field(pattern=r"\S", description="Your name")


def _run_name() -> str:
    given = flow_run.parameters
    return f"{given.get('name', 'approve')} v{given.get('version', '')}"


@flow(name="approve", flow_run_name=_run_name, persist_result=False)
def approve(name: str, version: str, hours: float = 72.0) -> State[dict[str, Any]]:
    """Wait, suspended, until somebody answers the form; then do what the answer says, if it still holds.

    Args:
        name: The registered model.
        version: The candidate.
        hours: How long the form waits. After that the run ends as `Completed(name="Expired")`.

    A suspended run holds no worker: its process ends, and another begins at the top when the form is
    answered. Ends as Promoted, Rejected, Refused (the verdict does not hold for today's champion),
    Superseded (a newer version waits for its own answer) or Expired.
    """
    tracker = reachable_tracker(home())
    if (newer := make_way(name, version, flow_run.id)) is not None:
        return Completed(name="Superseded", message=f"superseded by v{newer}", data={})
    question = show_question(tracker, name, version)
    given = Approval.with_initial_data(description=question)
    answer = suspend_flow_run(wait_for_input=given, key="approval")
    # Resumed late, where no reconciling run has closed the form in time.
    if has_expired({"hours": hours}, created(flow_run.id), datetime.now(UTC)):
        return Completed(
            name="Expired",
            message=f"Answered after more than {hours:g} hours; not promoted",
            data={},
        )
    settled = carry_out_approval(
        tracker,
        name,
        version,
        decision=answer.decision,
        reason=answer.reason,
        by=answer.name,
        verify=verifier(tracker),
    )
    entry = settled.moved.entry if settled.moved else None
    return Completed(
        name=settled.outcome,
        message=settled.told,
        data={"entry": entry and entry.model_dump(mode="json")},
    )

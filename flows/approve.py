"""Ask a person whether a version may go live: a form in Prefect, with the gate's verdict beside it."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from prefect import State, flow, get_run_logger, suspend_flow_run
from prefect.input import RunInput
from prefect.runtime import flow_run
from prefect.states import Completed
from pydantic import Field

from flows.approval_forms import answered, created, has_expired, make_way
from flows.bridging import bridged_run
from flows.evaluate_version import evaluate
from tasks.errors import LoralineError
from tasks.home import home
from tasks.promotion.entry import LONGEST_NAME, LONGEST_REASON
from tasks.promotion.task import (
    carry_out_approval,
    needs_new_verdict,
    note_new_verdict,
    show_question,
)
from tasks.registration.task import verifier
from tasks.tracking import Tracker, reachable_tracker


class Approval(RunInput):
    """The form."""

    decision: Literal["promote", "reject"]
    reason: str = Field(
        pattern=r"\S",
        max_length=LONGEST_REASON,
        description="Why; it stands in the promotion log for good",
    )
    name: str = Field(pattern=r"\S", max_length=LONGEST_NAME, description="Your name")


def _run_name() -> str:
    given = flow_run.parameters
    return f"{given.get('name', 'approve')} v{given.get('version', '')}"


@flow(name="approve", flow_run_name=_run_name, persist_result=False)
def approve(
    name: str,
    version: str,
    hours: Annotated[float, Field(gt=0, le=8760)] = 72.0,
    recipe: str = "",
    overrides: list[str] | None = None,
) -> State[dict[str, Any]]:
    """Wait, suspended, until somebody answers the form; then do what the answer says, if it still holds.

    Args:
        name: The registered model.
        version: The candidate.
        hours: How long the form waits, a year at most. After that the run ends as `Completed(name="Expired")`.
        recipe: By whose rows and rules the version is judged again, where another one was promoted meanwhile.
        overrides: Fields of the recipe that were changed when the version was made.

    A suspended run holds no worker: its process ends, and another begins at the top when the form is
    answered. Ends as Promoted, Rejected, Refused (the verdict does not hold for today's champion),
    Superseded (a newer version waits for its own answer) or Expired. A server that is away is waited for.
    """
    if (newer := make_way(name, version, flow_run.id)) is not None:
        return Completed(name="Superseded", message=f"superseded by v{newer}", data={})

    def shown() -> tuple[Tracker, str]:
        tracker = reachable_tracker(home())
        return tracker, show_question(tracker, name, version)

    # Also once it is answered, when the run begins at its top again: nobody answers a second time.
    tracker, question = bridged_run(shown, doing="show what is to be decided")
    given = Approval.with_initial_data(description=question)
    answer = suspend_flow_run(wait_for_input=given, key="approval")
    # Answered late, where no reconciling run has closed the form in time.
    when = answered(flow_run.id) or datetime.now(UTC)
    if has_expired({"hours": hours}, created(flow_run.id), when):
        return Completed(
            name="Expired",
            message=f"Answered after more than {hours:g} hours; not promoted",
            data={},
        )
    if recipe and answer.decision == "promote" and needs_new_verdict(tracker, name, version):
        _judge_again(tracker, name, version, recipe, overrides or [])
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


def _judge_again(
    tracker: Tracker, name: str, version: str, recipe: str, overrides: list[str]
) -> None:
    """The form showed a comparison with a champion that is none any more: compare with the one of this moment."""
    try:
        found: Any = evaluate(recipe, version, overrides)
    except LoralineError:
        # Without a new verdict the old one does not count, and the answer is refused in words.
        get_run_logger().exception("Version %s of %s could not be judged again", version, name)
        return
    note_new_verdict(tracker, name, version, found)

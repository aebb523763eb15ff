"""Promote a registered version: its verdict checked, loaded in a fresh process, moved under the lock, on record."""

from typing import TYPE_CHECKING, Any

from prefect import State, flow
from prefect.runtime import flow_run
from prefect.states import Completed

from flows.bridging import bridged_run
from tasks.errors import GateRefused
from tasks.home import home
from tasks.promotion.repeating import Asked
from tasks.promotion.task import promote_registered
from tasks.registration.task import verifier
from tasks.tracking import reachable_tracker

if TYPE_CHECKING:
    from tasks.promotion.promoting import Moved


def _run_name() -> str:
    given = flow_run.parameters
    return f"{given.get('name', 'promote')} {given.get('version', '')}".strip()


@flow(name="promote", flow_run_name=_run_name, persist_result=False)
def promote(
    name: str, version: str, reason: str, by: str | None = None, force: bool = False
) -> State[dict[str, Any]]:
    """Make a version the champion.

    Args:
        name: The registered model.
        version: The version's number.
        reason: Why; it stands in the promotion log for good.
        by: Who decided it. Default: the user that runs the flow.
        force: Against the gate's verdict, or without one that holds today; the log says so.

    Returns the log's entry. A version that the gate refused ends the run as
    `Completed(name="Refused")`; one that does not load, or a champion that somebody else moved
    meanwhile, fails it. Nothing is moved then. A server that is away is waited for.
    """
    asked = Asked()

    def attempt() -> "Moved":
        asked.attempts += 1
        tracker = reachable_tracker(home())
        return promote_registered(
            tracker,
            name,
            version,
            reason=reason,
            verify=verifier(tracker),
            asked=asked,
            actor=by,
            force=force,
        )

    try:
        moved = bridged_run(attempt, doing=f"promote version {version} of {name}")
    except GateRefused as refused:
        return Completed(name="Refused", message=str(refused), data={"promoted": False})
    entry = moved.entry
    data: dict[str, Any] = {
        "promoted": entry is not None,
        "version": moved.version.model_dump(),
        "entry": entry and entry.model_dump(mode="json"),
    }
    told = entry.title if entry else f"Version {version} is champion already."
    return Completed(message=told, data=data)

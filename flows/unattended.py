"""Whether anybody reads on a terminal how a flow run ends."""

from typing import TYPE_CHECKING

from prefect.context import FlowRunContext

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun


def unattended() -> "FlowRun | None":
    """This flow run, when a deployment started it: from a schedule, an event or a form."""
    context = FlowRunContext.get()
    run = context.flow_run if context is not None else None
    return run if run is not None and run.deployment_id is not None else None

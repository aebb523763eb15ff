"""See what people promoted in MLflow's own pages: verify it, write it into the log, warn of what does not load."""

from typing import Any

from prefect import State, flow
from prefect.runtime import flow_run
from prefect.states import Completed

from flows.approval_forms import close_expired
from flows.run_names import rename_flow_run
from tasks.home import home
from tasks.promotion.task import reconcile_models
from tasks.registration.task import verifier
from tasks.tracking import reachable_tracker

NAME = "look at the registry"


@flow(name="reconcile-registry", flow_run_name=NAME, persist_result=False)
def reconcile_registry() -> State[dict[str, Any]]:
    """One pass over the registry, and over the forms whose time is up; a second one finds nothing to write.

    Ends as `Completed(name="Alert")` when a champion does not load, was refused by the gate or was taken
    away, once for each such state: the passes after it name what still stands in their message. Nothing
    is undone: the alert names the way back, and a person decides. A pass with something to tell bears
    the models' names: among the 1,440 of a day it is found by them.
    """
    # First: what no registry is needed for must not wait for one.
    expired = close_expired()
    tracker = reachable_tracker(home())
    seen = reconcile_models(tracker, verify=verifier(tracker))
    written = [it for it in seen if it.entry is not None]
    alerts = [it.alert for it in seen if it.alert is not None]
    standing = [it.standing for it in seen if it.standing is not None]
    named = [it.name for it in seen if it.entry is not None or it.alert is not None]
    if named and flow_run.id is not None:
        rename_flow_run(str(flow_run.id), f"{NAME}: {', '.join(named)}")
    data = {
        "models": len(seen),
        "expired_forms": expired,
        "written": [it.entry.model_dump(mode="json") for it in written if it.entry],
        "alerts": alerts,
        "standing": standing,
    }
    if alerts:
        return Completed(name="Alert", message=" ".join(alerts), data=data)
    told = ", ".join(f"{it.name}: {it.entry.title}" for it in written if it.entry)
    told = told or f"{len(seen)} models, nothing moved"
    if standing:
        told += f". Told before, and still so: {' '.join(standing)}"
    return Completed(message=told, data=data)

"""Find and end processes by what they were started for, which survives a new session and a lost parent."""

import psutil

from tasks.home import Home
from tasks.marked import WORKER, end, environments, marked

__all__ = ["FLOW_RUN", "PART", "STACK", "end", "end_flow_run", "living_flow_runs", "processes"]

STACK = "LORALINE_STACK"
"""In the environment of everything that a stack started: the home's folder."""
PART = "LORALINE_PART"
"""In the environment of a part and of what it started: the part's name."""
FLOW_RUN = "PREFECT__FLOW_RUN_ID"
"""Prefect's worker names the run here for the process that runs it."""


def processes(home: Home, part: str | None = None) -> list[psutil.Process]:
    """The living processes of the home's stack, or of one of its parts; this one and its parents excluded."""
    mine = {process.pid for process in [psutil.Process(), *psutil.Process().parents()]}
    return [
        process
        for process, environment in environments()
        if environment.get(STACK) == str(home.root)
        and (part is None or environment.get(PART) == part)
        and process.pid not in mine
    ]


def living_flow_runs() -> dict[str, bool]:
    """The Prefect flow runs that have a process of this machine and user -> whether one of them runs the flow.

    Where none does, only workers of it are left, and what those started: nobody waits for them any more.
    """
    found: dict[str, bool] = {}
    for _, environment in environments():
        if run := environment.get(FLOW_RUN):
            found[run] = found.get(run, False) or WORKER not in environment
    return found


def end_flow_run(run_id: str, grace_seconds: float) -> int:
    """End every process of a flow run, also those that it started in sessions of their own."""
    return end(marked(FLOW_RUN, run_id), grace_seconds)

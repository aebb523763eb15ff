"""Find and end processes by what they were started for, which survives a new session and a lost parent."""

import psutil

from tasks.home import Home
from tasks.marked import end, environments, marked

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


def living_flow_runs() -> set[str]:
    """The ids of the Prefect flow runs that a process of this machine and user works on."""
    return {environment[FLOW_RUN] for _, environment in environments() if environment.get(FLOW_RUN)}


def end_flow_run(run_id: str, grace_seconds: float) -> int:
    """End every process of a flow run, also those that it started in sessions of their own."""
    return end(marked(FLOW_RUN, run_id), grace_seconds)

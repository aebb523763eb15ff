"""How the stack is: each part's state, since when, how often it was started again, whether it is well."""

import math
import shlex
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

from flows.stack import supervisor
from flows.stack.api import PrefectApi
from flows.stack.configuration import log_file
from flows.stack.part_process import read_starts
from flows.stack.parts import POOLS, Part, parts, worker_name
from flows.stack.settings import StackSettings, folder, read_settings
from tasks.errors import StageFailed
from tasks.home import Home
from tasks.stack import answers

WATCHDOG_SECONDS = 90.0
"""The watchdog looks around several times in this time; one that does not, hangs."""
Health = Literal["healthy", "starting", "unhealthy"]


class PartState(BaseModel):
    """One part."""

    model_config = ConfigDict(frozen=True)

    name: str
    title: str
    state: str
    """The supervisor's word: RUNNING, STARTING, BACKOFF, STOPPED..."""
    health: Health
    pid: int | None = None
    since: str | None = None
    """When it was last started, ISO 8601 in UTC."""
    restarts: int = 0
    """How often it was started again since `loraline up`."""
    url: str | None = None
    log: str
    why: str = ""
    """What is wrong, where something is."""


class StackState(BaseModel):
    """The whole stack."""

    model_config = ConfigDict(frozen=True)

    running: bool
    """Whether there is a supervisor."""
    healthy: bool
    home: str
    supervisor_pid: int | None = None
    parts: list[PartState] = []
    message: str = ""
    """What to do, where something is to be done."""
    not_deployed: list[str] = []
    """What `loraline up` could not apply to a healthy stack: recipes, deployments, notifications."""


def stack_state(home: Home, environ: Mapping[str, str]) -> StackState:
    """Ask the supervisor and each part. Takes as long as the slowest answer, 5 s at most each."""
    settings = read_settings(home)
    process = supervisor.find(home)
    if settings is None or process is None:
        message = _not_running(home, settings) if process is None else _without_settings(home)
        return StackState(
            running=process is not None,
            healthy=False,
            home=str(home.root),
            supervisor_pid=None if process is None else process.pid,
            message=message,
        )
    told = {info["name"]: info for info in supervisor.infos(home) or []}
    with ThreadPoolExecutor() as pool:
        states = list(
            pool.map(
                lambda part: _part_state(part, told.get(part.name), home, settings, environ),
                parts(settings),
            )
        )
    healthy = all(state.health == "healthy" for state in states)
    return StackState(
        running=True,
        healthy=healthy,
        home=str(home.root),
        supervisor_pid=process.pid,
        parts=states,
        message="" if healthy else _advice(home, told, states),
    )


def _part_state(
    part: Part,
    info: supervisor.Info | None,
    home: Home,
    settings: StackSettings,
    environ: Mapping[str, str],
) -> PartState:
    starts = read_starts(home, part.name)
    state = str(info["statename"]) if info else "UNKNOWN"
    age = (datetime.now(UTC) - starts.program_at).total_seconds() if starts else math.inf
    why = ""
    health: Health = "healthy"
    if state in ("STOPPED", "EXITED", "FATAL", "UNKNOWN", "BACKOFF"):
        health, why = "unhealthy", str(info.get("spawnerr") or "") if info else ""
    elif starts and -starts.pause_seconds <= age < 0:
        # Before it is asked: what its former incarnation told, a worker's heartbeat, is still believed.
        health = "unhealthy"
        why = f"it died {starts.early_deaths} times in a row; the next attempt is in {-age:.0f} s"
    elif (why := _ailment(part, settings, home, environ)) or state == "STARTING":
        # Less than nothing where the clock was ahead then.
        health = "starting" if 0 <= age < 60 else "unhealthy"
    return PartState(
        name=part.name,
        title=part.title,
        state=state,
        health=health,
        pid=(info or {}).get("pid") or None,
        since=starts.since if starts else None,
        restarts=max(0, starts.count - 1) if starts else 0,
        url=part.url or None,
        log=str(log_file(home, part.name)),
        why=why,
    )


def _ailment(part: Part, settings: StackSettings, home: Home, environ: Mapping[str, str]) -> str:
    """What is wrong with a part whose process lives; empty when nothing is."""
    if part.health:
        return "" if answers(part.health) else f"{part.health} does not answer"
    if part.name in POOLS:
        return _worker_ailment(part, settings, environ)
    beat = folder(home) / "watchdog.json"
    try:
        age = datetime.now(UTC).timestamp() - beat.stat().st_mtime
    except OSError:
        return "it has not looked around yet"
    return "" if age < WATCHDOG_SECONDS else f"it last looked around {age:.0f} s ago"


def _worker_ailment(part: Part, settings: StackSettings, environ: Mapping[str, str]) -> str:
    """Prefect knows a worker by its heartbeat, every 30 s."""
    name = worker_name(part.name, settings)
    api = PrefectApi.of(environ, settings.prefect_api, timeout_seconds=5.0)
    try:
        workers = api.workers(POOLS[part.name])
    except StageFailed as error:
        return str(error)
    if workers is None:
        return f"its work pool {POOLS[part.name]} is gone, and it has not created it anew yet"
    mine = next((worker for worker in workers if worker.get("name") == name), None)
    if mine is None:
        return "Prefect has not heard of it yet"
    return "" if mine.get("status") == "ONLINE" else "Prefect has not heard of it for a while"


def _not_running(home: Home, settings: StackSettings | None) -> str:
    if settings is None:
        told = f"No stack was ever started for {home.root}. `loraline up` starts it."
    elif home.stack_file.exists():
        told = (
            f"The stack of {home.root} was killed, or the machine was started anew. "
            "`loraline up` starts it again; `loraline up --at-boot` lets the system do so."
        )
    else:
        told = f"The stack of {home.root} is not running. `loraline up` starts it."
    return told + elsewhere(home)


def _without_settings(home: Home) -> str:
    return (
        f"A supervisor of {home.root} runs, but its settings are gone: was the folder deleted? "
        "`loraline down`, then `loraline up`."
    )


def elsewhere(home: Home) -> str:
    """A sentence on the other stacks of this user: who asks in another folder means one of these."""
    found = supervisor.others(home)
    return "".join(f"\nAnother stack is running: --home {shlex.quote(str(it))}" for it in found)


def _advice(home: Home, told: Mapping[str, object], states: list[PartState]) -> str:
    if not told:
        return (
            f"The supervisor lives and does not answer (log: {log_file(home, 'supervisor')}). "
            "`loraline down`, then `loraline up`."
        )
    sick = [state for state in states if state.health != "healthy"]
    if all(state.health == "starting" for state in sick):
        return "Starting; ask again in a minute."
    logs = "\n".join(f"  {state.name}: {state.log}" for state in sick if state.health != "starting")
    return f"The supervisor keeps trying. The reason stands at the end of the log:\n{logs}"

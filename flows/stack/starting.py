"""Start the stack, or find the one that runs; stop it."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from flows.stack import leftovers, supervisor
from flows.stack.databases import (
    Databases,
    database_of,
    databases,
    refuse_other_database,
    server_place,
)
from flows.stack.deploying import apply
from flows.stack.exposure import refuse_open
from flows.stack.failed_starts import attended, forget
from flows.stack.in_use import refuse_in_use
from flows.stack.migrating import migrate
from flows.stack.one_stack import only_stack
from flows.stack.own_place import refuse_moved
from flows.stack.part_process import forget_starts
from flows.stack.parts import Part, client_of_stack, parts
from flows.stack.postgres import ready_databases
from flows.stack.settings import StackSettings, folder, read_settings, write_settings
from flows.stack.state import StackState, stack_state
from flows.stack.systemd import Unit
from tasks.errors import StageFailed, UserError
from tasks.home import Home
from tasks.stack import Server, ServerName, start_ticks, write_stack

HEALTHY_SECONDS = 300.0
"""Longest wait for a new stack: its servers import a lot, on a machine that may be busy."""
Say = Callable[[str], None]


def bring_up(home: Home, wanted: StackSettings, say: Say, unit: Unit | None = None) -> StackState:
    """A healthy stack with these settings: the running one, or a new one, which `unit` is to start if there
    is one. Returns how it is.

    Raises: UserError for what a person must change first, StageFailed when a part does not get well;
    the stack is then stopped again if it was started here.
    """
    refuse_open(wanted.host, os.environ)
    home.prepare()
    with _alone(home):
        if supervisor.find(home) is not None:
            settings = _refuse_other(home, wanted)
            say(
                "The stack is already running: what was changed in its environment meanwhile is read after "
                "`loraline down` and `loraline up`."
            )
            return _ready(home, settings, say)
        refuse_moved(home, wanted)
        wanted = _on_its_database(home, wanted, say)
        _clear(home, say)
        where = databases(home, os.environ)
        refuse_in_use(home, wanted)
        if where.server:
            for name in ready_databases(where.server):
                say(f"Created the database {name}.")
        with only_stack(home, where.server, say):
            say("Bringing the databases to the installed versions.")
            migrate(home, wanted, where)
        began = wanted.state_folder or home.root
        wanted = wanted.model_copy(update={"machine": os.uname().nodename, "state_folder": began})
        write_settings(home, wanted)
        if unit is None:
            try:
                return _start(home, wanted, where, say)
            except BaseException:
                supervisor.stop(home, parts(wanted))
                raise
    return _started_by(unit, home, wanted, say)


def remember(home: Home, wanted: StackSettings) -> None:
    """Keep the settings for the next start. Raises: UserError while the stack runs with other ones."""
    home.prepare()
    with _alone(home):
        if supervisor.find(home) is not None:
            _refuse_other(home, wanted)
        else:
            write_settings(home, wanted)


def bring_down(home: Home, say: Say, patience_seconds: float = 5.0) -> bool:
    """End everything that the stack of this home started; False when there was nothing.

    Raises: UserError while another command is at work on the stack for longer than the patience.
    """
    if not home.root.exists() and not leftovers.processes(home):
        # Nothing was ever started here, and a folder of state would be a surprise.
        return False
    home.prepare()
    with _alone(home, patience_seconds):
        settings = read_settings_or_none(home)
        there = supervisor.find(home) is not None or leftovers.processes(home)
        # First, so that who waits for the stack sees that it was wanted: a killed one leaves the file.
        home.stack_file.unlink(missing_ok=True)
        if not there:
            return False
        known: list[Part] = parts(settings) if settings else []
        left = supervisor.stop(home, known)
        if left:
            say(f"{left} processes did not end by themselves and were ended.")
        return True


def read_settings_or_none(home: Home) -> StackSettings | None:
    """As `read_settings`; a damaged file must not keep a stack from being stopped."""
    try:
        return read_settings(home)
    except UserError:
        return None


def _on_its_database(home: Home, wanted: StackSettings, say: Say) -> StackSettings:
    """The settings with the database that has this home's data. Raises: as `refuse_other_database`."""
    kind = wanted.database or database_of(home, read_settings_or_none(home), os.environ)
    refuse_other_database(home, kind, os.environ)
    place, before = server_place(databases(home, os.environ).server), wanted.database_server
    if place and before and place != before:
        say(
            f"PostgreSQL is at {place}, and was at {before} the last time: what was recorded there is here "
            "only if both databases were moved too."
        )
    return wanted.model_copy(update={"database": kind, "database_server": place})


def _start(home: Home, settings: StackSettings, where: Databases, say: Say) -> StackState:
    (home.mlflow / "artifacts").mkdir(parents=True, exist_ok=True)
    forget_starts(home)
    (folder(home) / "watchdog.json").unlink(missing_ok=True)
    supervisor.start(home, parts(settings))
    say(f"Waiting until each part is healthy (logs: {home.logs}).")
    return _ready(home, settings, say)


def _started_by(unit: Unit, home: Home, settings: StackSettings, say: Say) -> StackState:
    """As `_start`; the unit's own `loraline up` needs the lock for it."""
    say(f"Starting {unit.name}, which has an environment of its own and not this shell's.")
    with attended(home):
        state = _state_under(unit, home, say)
    with _alone(home, HEALTHY_SECONDS):
        return _deployed(home, settings, state, say)


def _state_under(unit: Unit, home: Home, say: Say) -> StackState:
    """Start the unit, and wait until its stack is healthy; else it is stopped."""
    try:
        unit.start()
        deadline = time.monotonic() + HEALTHY_SECONDS
        while supervisor.find(home) is None:
            if not unit.is_active() or time.monotonic() > deadline:
                raise StageFailed(
                    f"{unit.name} did not start the stack. `journalctl --user --unit {unit.name} --lines 50` "
                    "shows why."
                )
            time.sleep(0.5)
        say(f"Waiting until each part is healthy (logs: {home.logs}).")
        return _wait_until_healthy(home, say)
    except BaseException:
        with suppress(StageFailed):
            unit.stop()
        raise


def _ready(home: Home, settings: StackSettings, say: Say) -> StackState:
    """Wait until it is healthy, name its servers, and deploy; also for one whose `up` was killed half way."""
    return _deployed(home, settings, _wait_until_healthy(home, say), say)


def _deployed(home: Home, settings: StackSettings, state: StackState, say: Say) -> StackState:
    assert state.supervisor_pid is not None
    forget(home)
    pid = state.supervisor_pid
    urls: dict[ServerName, str] = {"prefect": settings.prefect_api, "mlflow": settings.mlflow_url}
    # Named only now: a run that reads it may use both at once.
    write_stack(
        home, {name: Server(url, pid, True, start_ticks(pid)) for name, url in urls.items()}
    )
    environ: Mapping[str, str] = client_of_stack(
        home, settings, databases(home, os.environ), os.environ
    )
    return state.model_copy(update={"not_deployed": apply(home, settings, environ, say)})


@contextmanager
def _alone(home: Home, patience_seconds: float = 5.0) -> Iterator[None]:
    try:
        with FileLock(home.locks / "stack.lock", timeout=patience_seconds):
            yield
    except Timeout as error:
        raise UserError(
            f"Another `loraline up` or `loraline down` is at work on {home.root}. Wait for it, then ask "
            "`loraline status`."
        ) from error


def _refuse_other(home: Home, wanted: StackSettings) -> StackSettings:
    """The running stack's settings. Raises: UserError when they are not what is asked for."""
    settings = read_settings(home)
    if settings is None:
        raise UserError(
            f"A supervisor of {home.root} runs, but its settings are gone. "
            "`loraline down`, then `loraline up`."
        )
    # A stack from before its database was remembered has none in its settings, and nobody asks for a place.
    unasked = {"database_server", "machine", "state_folder"}
    unasked |= {"database"} if settings.database is None else set()
    differences = [
        f"{name} is {getattr(settings, name)} and not {getattr(wanted, name)}"
        for name in StackSettings.model_fields
        if name not in unasked and getattr(settings, name) != getattr(wanted, name)
    ]
    if differences:
        raise UserError(
            f"The stack of {home.root} is already running, with other settings: "
            f"{'; '.join(differences)}. Leave the options away to use it, or change them with "
            "`loraline down` and `loraline up`."
        )
    return settings


def _clear(home: Home, say: Say) -> None:
    """Remove what a killed stack left: processes in sessions of their own, and files."""
    if ended := leftovers.end(leftovers.processes(home), grace_seconds=10):
        say(f"Ended {ended} processes that a killed stack had left.")
    if home.stack_file.exists():
        home.stack_file.unlink(missing_ok=True)


def _wait_until_healthy(home: Home, say: Say) -> StackState:
    deadline = time.monotonic() + HEALTHY_SECONDS
    told: set[str] = set()
    # Of a stack that runs for months, only what happens from now on says that a part does not start.
    before = {part.name: part.restarts for part in stack_state(home, os.environ).parts}
    heard = time.monotonic()
    while True:
        state = stack_state(home, os.environ)
        if state.healthy:
            return state
        if any(part.state != "UNKNOWN" for part in state.parts):
            heard = time.monotonic()
        elif state.running and time.monotonic() - heard > supervisor.START_SECONDS:
            raise StageFailed(state.message)
        for part in state.parts:
            if part.health == "healthy" and part.name not in told:
                told.add(part.name)
                say(f"{part.title} is healthy.")
            if part.restarts - before.get(part.name, 0) >= 3:
                raise _failed(state, f"{part.title} does not start", Path(part.log))
        if not state.running:
            raise StageFailed(f"The supervisor ended by itself. {state.message}")
        if time.monotonic() > deadline:
            sick = next(p for p in state.parts if p.health != "healthy")
            raise _failed(
                state,
                f"{sick.title} was not healthy after {HEALTHY_SECONDS:.0f} s ({sick.why or sick.state})",
                Path(sick.log),
            )
        time.sleep(0.5)


def _failed(state: StackState, what: str, log: Path) -> StageFailed:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
    except OSError:
        lines = []
    tail = "\n".join(f"  {line}" for line in lines)
    return StageFailed(
        f"{what}. Last lines:\n{tail}\nFull log: {log}\n"
        "`loraline doctor` checks the installed versions that servers are known to die of."
    )

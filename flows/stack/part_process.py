"""A part's own process under the supervisor: `python -P -m flows.stack.part_process NAME`.

It counts its starts, ends what its former incarnation left, pauses when that and those before it died
soon, waits for what it needs, takes its environment, and becomes the module that it is to run.
"""

import contextlib
import dataclasses
import json
import os
import sys
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from flows.server_lock import ServerLock
from flows.server_process import become, end_with_parent, prepare_prefect
from flows.stack import leftovers
from flows.stack.databases import databases, refuse_other_database
from flows.stack.one_stack import hold
from flows.stack.parts import Part, part_environment, parts
from flows.stack.settings import StackSettings, folder, read_settings
from tasks.errors import LoralineError
from tasks.home import Home, home
from tasks.stack import answers

GRACE_SECONDS = 5.0
"""For what a killed incarnation of this part left running."""
SOON_SECONDS = 120.0
"""A part that dies within this time of its start may do so again: a server takes a while until it fails."""
FREE_DEATHS = 2
"""So many in a row cost no pause: who ends a part by hand wants it back at once."""
LONGEST_PAUSE_SECONDS = 60.0


@dataclass(frozen=True)
class Starts:
    """How often a part was started since `loraline up`."""

    count: int
    since: str
    """When the last one was, ISO 8601 in UTC."""
    early_deaths: int = 0
    """How many incarnations in a row, to the last one, died soon after they had begun."""

    @property
    def pause_seconds(self) -> float:
        """Between the last start and the part's program: doubles with each early death.

        The supervisor's own pauses end with `startsecs`, whatever comes of the part then.
        """
        more = self.early_deaths - FREE_DEATHS
        return min(LONGEST_PAUSE_SECONDS, 2**more) if more > 0 else 0.0

    @property
    def program_at(self) -> datetime:
        """When the pause ends, and the program begins."""
        return datetime.fromisoformat(self.since) + timedelta(seconds=self.pause_seconds)


def main(name: str) -> None:
    """Become the part. Ends with exit code 1 when the stack has no such part, none of this home, or
    another database than this environment's."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    state = home()
    settings = read_settings(state)
    part = next((p for p in parts(settings) if p.name == name), None) if settings else None
    if settings is None or part is None:
        sys.exit(f"{folder(state)} knows no part {name!r}; `loraline up` starts the stack")
    began, starts = time.monotonic(), count_start(state, name)
    if part.owns_children and (
        ended := leftovers.end(leftovers.processes(state, name), GRACE_SECONDS)
    ):
        say(f"ended {ended} processes that an earlier {name} left running")
    if starts.pause_seconds:
        say(f"died {starts.early_deaths} times in a row: {starts.pause_seconds:.0f} s of pause")
        time.sleep(max(0.0, began + starts.pause_seconds - time.monotonic()))
    try:
        refuse_other_database(state, settings.database, os.environ)
        if name == "prefect":
            _take_database(state, databases(state, os.environ).server)
    except LoralineError as error:
        sys.exit(str(error))
    _wait_for(part)
    _become(part, state, settings)


def count_start(state: Home, name: str) -> Starts:
    """Note that the part starts. A disk that is full or read-only keeps no part from it."""
    before, now = read_starts(state, name), datetime.now(UTC)
    early = before is not None and now - before.program_at < timedelta(seconds=SOON_SECONDS)
    starts = Starts(
        (before.count if before else 0) + 1,
        now.isoformat("T", "seconds"),
        before.early_deaths + 1 if before and early else 0,
    )
    path = _starts_file(state, name)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(dataclasses.asdict(starts)), encoding="utf-8")
        temporary.rename(path)
    return starts


def read_starts(state: Home, name: str) -> Starts | None:
    """What was noted, None before the first start."""
    try:
        return Starts(**json.loads(_starts_file(state, name).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def starts_folder(state: Home) -> Path:
    """Where starts are noted that a new stack forgets."""
    return folder(state) / "starts"


def forget_starts(state: Home) -> None:
    """Count from nothing: a new stack begins."""
    for path in starts_folder(state).glob("*.json"):
        path.unlink(missing_ok=True)


def say(text: str) -> None:
    """A line of our own in the part's log."""
    print(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} loraline: {text}", flush=True)


def _take_database(state: Home, server: str) -> None:
    """The right to serve this home's database, on this machine and on the PostgreSQL `server` where there is
    one: kept until this process ends, however it does.
    """
    lock = ServerLock(state)
    told = False
    while not lock.acquire("loraline up"):
        if not told:
            say(f"waiting for {lock.holder() or 'another process'}, which serves {state.prefect}")
            told = True
        time.sleep(0.5)
    if server:
        hold(state, server, say)


def _wait_for(part: Part) -> None:
    told: set[str] = set()
    for url in part.needs:
        while not answers(url):
            if url not in told:
                say(f"waiting for {url}")
                told.add(url)
            time.sleep(0.5)


def _become(part: Part, state: Home, settings: StackSettings) -> None:
    environment = part_environment(part, state, settings, databases(state, os.environ), os.environ)
    os.environ.clear()
    os.environ.update(environment)
    say(f"starting: {part.module} {' '.join(part.arguments)}")
    if part.name == "prefect":
        prepare_prefect()
    become(part.module, part.arguments)


def _starts_file(state: Home, name: str) -> Path:
    return starts_folder(state) / f"{name}.json"


if __name__ == "__main__":
    main(sys.argv[1])

"""The watchdog: looks after runs, schedules and parts when nobody else is left to: `python -m flows.watchdog`.

Part of the stack and not a deployment, because it must act when no worker lives.
"""

import logging
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType

from flows.stack import abandoned
from flows.stack.abandoned import Abandoned
from flows.stack.alerts import Alerts, memory_of
from flows.stack.api import PrefectApi
from flows.stack.aside import Aside
from flows.stack.crashes import Crashes
from flows.stack.hangs import Hangs
from flows.stack.leftovers import STACK
from flows.stack.misplanned import LOOK_SECONDS as MISPLANNED_SECONDS
from flows.stack.misplanned import Misplanned
from flows.stack.old_runs import LOOK_SECONDS as OLD_RUNS_SECONDS
from flows.stack.old_runs import OldRuns
from flows.stack.parts import parts
from flows.stack.reaper import LOOK_SECONDS, Reaper
from flows.stack.restarts import Restarts
from flows.stack.round_limit import RoundLimit
from flows.stack.settings import folder, read_settings
from flows.stack.silence import Silence
from flows.stack.silent_workers import SilentWorkers
from flows.stack.stops import note_stop, was_cut_off
from tasks.errors import LoralineError
from tasks.home import Home, home
from tasks.promotion.notices import notices_of

_log = logging.getLogger(__name__)
TURN_SECONDS = 5.0
"""Between two rounds; each check has a rhythm of its own."""
ANSWER_SECONDS = 10.0
"""For one answer of Prefect: all checks that wait for one that hangs fit into a round."""


@dataclass
class Check:
    """Something that is looked at again and again."""

    name: str
    every_seconds: float
    look: Callable[[], object]
    due: float = 0.0
    """`clock` time of the next look."""
    failing: str = field(default="", init=False)
    """Why the last look failed; a reason that stays is logged once."""

    def take_turn(self, now: float) -> None:
        """Look if it is time to. Never raises: one check that fails must not end the others."""
        if now < self.due:
            return
        self.due = now + self.every_seconds
        try:
            self.look()
        except LoralineError as error:
            self._note(str(error))
        except Exception as error:
            if not self.failing:
                _log.exception("The check %s failed", self.name)
            self._note(f"{type(error).__name__}: {error}")
        else:
            if self.failing:
                _log.info("The check %s works again", self.name)
            self.failing = ""

    def _note(self, why: str) -> None:
        if why != self.failing:
            _log.warning("The check %s could not be made: %s", self.name, why)
        self.failing = why


def checks(state: Home, environ: dict[str, str]) -> list[Check]:
    """All checks of a stack; a new one is a line here."""
    api = PrefectApi.of(environ, timeout_seconds=ANSWER_SECONDS)
    notices = notices_of(state, prefect_api=api.url, environ=environ)
    # In a container there may be those of a stack that this folder had before.
    settings = read_settings(state) if STACK in environ else None
    alerts = Alerts(memory_of(state), notices)
    project = Path(environ.get("LORALINE_PROJECT", ""))
    return [
        # First, and told first: the round in which this process ends for standing still gets no further.
        Check("restarts", 30, Restarts(state, alerts)),
        # What waits for MLflow or for receivers of alerts does so beside the others.
        Check("delivery", 15, Aside(alerts.deliver)),
        Check("reaper", LOOK_SECONDS, Reaper(api, state, settings=settings)),
        Check("abandoned runs", LOOK_SECONDS, Aside(Abandoned(api, state))),
        Check("crashes", 15, Crashes(api, alerts, project, partial(was_cut_off, state))),
        # Its first look reads the runs of three months, for minutes where there are many.
        Check("silence", 300, Aside(Silence(api, alerts))),
        Check("hangs", 30, Hangs(state, parts(settings) if settings else [], alerts)),
        Check("silent workers", 30, SilentWorkers(api, state, alerts, settings=settings)),
        # It asks for each schedule whose looks it deletes.
        Check("old runs", OLD_RUNS_SECONDS, Aside(OldRuns(api))),
        Check("plans", MISPLANNED_SECONDS, Misplanned(api)),
    ]


def watch(
    all_checks: list[Check],
    beat: Path,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    rounds: int | None = None,
    limit: RoundLimit | None = None,
) -> None:
    """Take turns for ever, or for `rounds`; the file `beat` is touched in each, as proof of life.

    With a `limit` a round that takes too long ends the process.
    """
    # A check like others: a disk that takes no file must not end those that need none.
    proof = Check("proof of life", 0, partial(_touch, beat))
    while rounds is None or rounds > 0:
        for check in all_checks:
            if limit is not None:
                limit.at(check.name)
            check.take_turn(clock())
        if limit is not None:
            limit.end()
        proof.take_turn(clock())
        rounds = None if rounds is None else rounds - 1
        sleep(TURN_SECONDS)


def _touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def main() -> None:
    """Run until the process is ended."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    os.environ.update(abandoned.CLIENT)
    state = home()
    if STACK not in os.environ:
        _note_end(state)
    watch(checks(state, dict(os.environ)), folder(state) / "watchdog.json", limit=RoundLimit())


def _note_end(state: Home) -> None:
    """Take SIGTERM for a stop of the stack: a container's supervisor ends the watchdog first, and then the
    workers with their runs. `loraline up` has a supervisor whose stops are noted by who stops it."""

    def end(number: int, frame: FrameType | None) -> None:
        note_stop(state)
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    signal.signal(signal.SIGTERM, end)


if __name__ == "__main__":
    main()

"""Short scheduled runs by a worker on SQLite: what each adds to the database, and to the memory of who stays."""

import json
import random
import statistics
import string
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness import Result
from scheduled_runs import Stack, stack

GROWS = ", {type: jsonl, path: rows.jsonl}"
"""A source more for the recipe, to which the soak adds rows."""
ROWS_AT_ONCE = 3
MOST_OF_THEM = 0.8
"""So many of the last tenth must train: on a machine with other work they are late, and give way."""
EVENTS = "%event%"
"""Tables and indexes of Prefect's database of which nothing is older than three days."""
LEVEL = 45
"""Readings, one every two seconds. Garbage comes and goes with each run: their median is the level."""


@dataclass(frozen=True)
class Phase:
    """Due runs that end alike."""

    kind: str
    state: str
    seconds: float
    """From one to the next: what a worker needs for one, and a margin, as one that is late gives way."""


SKIPPED = Phase("skipped", "Skipped", 12)
TRAINED = Phase("trained", "Completed", 60)


class Memory:
    """Of the parts of a stack that stay, in each half of the soak."""

    def __init__(self, of: Stack, runs: int) -> None:
        self._of, self._runs = of, runs
        self._processes = {part: of.process(part) for part in ("worker", "prefect")}
        self._first = {part: of.memory_mb(pid) for part, pid in self._processes.items()}
        self._halves = {part: ([mb], [mb]) for part, mb in self._first.items()}

    def look(self, done: int) -> None:
        """Keep a reading of each, when so many runs of all are done."""
        for part, pid in self._processes.items():
            self._halves[part][done >= self._runs // 2].append(self._of.memory_mb(pid))

    def tell(self, result: Result) -> None:
        """Growth in MB; what fills once (caches, pools of connections) has filled in the first half."""
        for part, halfway in self._halves.items():
            half, end = (statistics.median(readings[-LEVEL:]) for readings in halfway)
            result.values[f"soak_{part}_memory_growth_mb"] = end - self._first[part]
            result.values[f"soak_{part}_memory_growth_of_second_half_mb"] = end - half


def soak(result: Result, folder: Path, text: str, runs: int) -> None:
    """Most find nothing new, as those of a nightly schedule do; the last tenth finds new rows each, and trains.

    `text`: of the recipe, with `GROWS` among its sources.
    """
    with stack(folder) as it:
        recipe = folder / "recipes" / "orchestration.yaml"
        recipe.parent.mkdir()
        recipe.write_text(text)
        rows = recipe.with_name("rows.jsonl")
        _grow(rows, 1)
        it.run_once(recipe)
        # Two more: what is imported or cached once belongs to none of them.
        it.run_on_schedule(recipe, 2, SKIPPED.seconds, lambda _: None)
        trained = max(1, runs // 10)
        skipped = runs - trained
        memory = Memory(it, runs)

        def grow_and_look(done: int) -> None:
            _grow(rows, 2 + done)
            memory.look(skipped + done)

        _phase(result, it, recipe, SKIPPED, skipped, memory.look)
        _phase(result, it, recipe, TRAINED, trained, grow_and_look)
        memory.tell(result)
        result.values["database_lock_errors"] = it.lock_errors


def _phase(
    result: Result, it: Stack, recipe: Path, phase: Phase, count: int, look: Callable[[int], None]
) -> None:
    whole, events = it.database_kb(), it.database_kb(EVENTS)
    states = it.run_on_schedule(recipe, count, phase.seconds, look)
    ends = [state["name"] for state in states]
    result.values[f"soak_runs_{phase.kind}"] = ends.count(phase.state)
    if unwanted := {*ends} - {SKIPPED.state, phase.state}:
        result.failed[f"soak_runs_{phase.kind}"] = f"others ended {', '.join(sorted(unwanted))}"
    versions = len({state["message"] for state in states if state["name"] == phase.state})
    if phase is TRAINED and versions < MOST_OF_THEM * count:
        result.failed["soak_runs_trained"] = f"{versions} new versions of {count}: was it too busy?"
    of_events = it.database_kb(EVENTS) - events
    kind = f"kb_per_{phase.kind}_run"
    result.values[f"database_{kind}"] = (it.database_kb() - whole - of_events) / count
    result.values[f"database_events_{kind}"] = of_events / count


def _grow(rows: Path, times: int) -> None:
    """Append rows as often; no two are near duplicates, and never are all new ones for the test split."""
    with rows.open("a+", encoding="utf-8") as file:
        file.seek(0)
        for number in range(sum(1 for _ in file), ROWS_AT_ONCE * times):
            letters = random.Random(number)
            said = [
                " ".join("".join(letters.choices(string.ascii_lowercase, k=6)) for _ in range(12))
                for _ in range(2)
            ]
            file.write(json.dumps({"prompt": said[0], "completion": said[1]}) + "\n")

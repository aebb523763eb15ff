"""What dies in a training, and what comes of it: the table of crashes, on a stack with its real servers."""

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import pytest

from tests.running_stack import AGAIN, Stack, kill, running_stack, until

STEPS = 60
WITHIN_SECONDS = 120
pytestmark = [pytest.mark.torture, pytest.mark.timeout(1800)]


@dataclass(frozen=True)
class Crash:
    """A line of the table."""

    victims: tuple[str, ...]
    """`worker`, `trainer`, `run` (the process that runs the flow), `supervisor`, or `everything`."""
    state: str
    """What the run is then in Prefect."""
    mlflow: str
    """What it is in MLflow."""
    alerts: tuple[str, ...]
    goes_on: str
    """Who finishes it: `itself`, `the watchdog` with a run of its own, or `the next run` of the recipe."""
    orphan: bool = False
    """Whether something lives on that the trainer started in a session of its own, and nobody watches."""

    @property
    def name(self) -> str:
        """The adapter's, too: none is a part of another."""
        return "-".join(("orphan" if self.orphan else "crash", *self.victims))


TABLE = [
    # A training does not need the worker that started it.
    Crash(("worker",), "COMPLETED", "FINISHED", (), "itself"),
    # Its parts end with it, and the worker's runs with the worker.
    Crash(("supervisor",), "CRASHED", "KILLED", ("crashed",), "the watchdog"),
    # The run lives to tell.
    Crash(("trainer",), "CRASHED", "KILLED", ("crashed",), "the watchdog"),
    Crash(("worker", "trainer"), "CRASHED", "KILLED", ("crashed",), "the watchdog"),
    # The worker lives to tell.
    Crash(("run",), "CRASHED", "KILLED", ("crashed",), "the watchdog"),
    # Nobody lives to tell.
    Crash(("worker", "run"), "CRASHED", "KILLED", ("crashed",), "the watchdog"),
    Crash(("worker", "trainer", "run"), "CRASHED", "KILLED", ("crashed",), "the watchdog"),
    # What lives on keeps the GPU, and not the run.
    Crash(
        ("worker", "trainer", "run"), "CRASHED", "KILLED", ("crashed",), "the watchdog", orphan=True
    ),
    Crash(("everything",), "CRASHED", "KILLED", ("crashed",), "the watchdog"),
]


@pytest.fixture(scope="module")
def stack(small: Any) -> Iterator[Stack]:
    with running_stack(small) as found:
        yield found


@pytest.mark.parametrize("crash", TABLE, ids=lambda crash: crash.name)
def test_a_crash_ends_in_a_finished_retraining_and_one_message_at_most(
    stack: Stack, crash: Crash
) -> None:
    name = crash.name
    # Of a line before this one that failed.
    others = set(stack.checkpoints())
    run = stack.start_long_run(name, STEPS, seed=100 + TABLE.index(crash))
    until(lambda: len(set(stack.checkpoints()) - others) > 1)
    mlflow_run = stack.mlflow_run()
    stack.told.clear()
    orphan = strike(stack, crash, run)

    began = time.monotonic()
    if crash.state == "COMPLETED":
        assert stack.end_of(run)["type"] == "COMPLETED"
    until(lambda: stack.state(run) == crash.state, WITHIN_SECONDS)
    status = stack.tracker.client.get_run
    until(lambda: status(mlflow_run).info.status == crash.mlflow, left_of(began, crash))
    # Processes of it would hold its lock and its GPU.
    until(lambda: not stack.processes_of(run), left_of(began, crash))

    def free() -> bool:
        # Or its repetition's already.
        repetitions = {it["id"] for it in stack.api.flow_runs(AGAIN)}
        return stack.trained_by(name) in {None, *repetitions}

    until(free, left_of(began, crash))
    until(lambda: tuple(stack.alerts_of(run)) == crash.alerts, left_of(began, crash))
    if orphan is not None:
        # By the watchdog, since its parent here did nothing.
        assert orphan.wait(timeout=10) != 0
    if crash.goes_on == "the watchdog":
        finisher = stack.repetition_of(run)
    elif crash.goes_on == "the next run":
        assert not stack.is_trained(name)
        finisher = stack.start("retrain", stack.run(run)["parameters"])
    else:
        finisher = run
    done = stack.end_of(finisher)
    assert done["type"] == "COMPLETED", done
    (version,) = stack.tracker.client.search_model_versions(f"name = '{name}'")
    assert version.status == "READY"
    if finisher != run:
        # It goes on from the last complete checkpoint, and has the adapter's lock to itself.
        steps = stack.steps_of(finisher, STEPS)
        assert steps
        assert min(steps) > 5
    # Time for a second one that should not come.
    time.sleep(30)
    assert tuple(stack.alerts_of(run)) == crash.alerts
    repetitions = [it for it in stack.api.flow_runs(AGAIN) if name in str(it["parameters"])]
    assert len(repetitions) == (crash.goes_on == "the watchdog")
    until(lambda: stack.status()["healthy"])


def test_a_run_whose_worker_dies_before_it_starts_is_closed_and_repeated(stack: Stack) -> None:
    """SIGKILL of the worker, and of what it has begun to start, the moment that it took the run."""
    recipe = stack.write_recipe("stranded", seed="name: stranded\nseed: 200")
    worker = psutil.Process(stack.part("worker")["pid"])
    stack.told.clear()
    run = stack.start("retrain", {"recipe": str(recipe)})
    until(lambda: stack.state(run) == "PENDING")
    kill([worker])
    kill(stack.processes_of(run))
    began = time.monotonic()
    assert stack.state(run) == "PENDING"
    until(lambda: stack.state(run) == "CRASHED", WITHIN_SECONDS)
    until(lambda: stack.alerts_of(run), WITHIN_SECONDS - (time.monotonic() - began))
    assert stack.end_of(stack.repetition_of(run))["type"] == "COMPLETED"
    assert stack.alerts_of(run) == ["crashed"]


def strike(stack: Stack, crash: Crash, run: str) -> "subprocess.Popen[bytes] | None":
    """SIGKILL of the victims, all at once; returns the orphan, where there is to be one.

    Where no process of ours is left that could do anything, it returns when `up` has: that is when the machine
    is there again, and the time from which the two minutes count.
    """
    if crash.victims == ("everything",):
        stack.kill_everything()
        stack.up()
        return None
    if crash.victims == ("supervisor",):
        kill([psutil.Process(stack.status()["supervisor_pid"])])
        until(lambda: stack.status()["running"] is False, 60)
        stack.up()
        return None
    found = {
        "worker": [psutil.Process(stack.part("worker")["pid"])],
        "trainer": stack.trainers_of(run),
        "run": [p for p in stack.processes_of(run) if "tasks.training.worker" not in p.cmdline()],
    }
    assert all(found[victim] for victim in crash.victims)
    orphan = None
    if crash.orphan:
        # Known by what it inherits; its parent is of no account.
        orphan = subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(1800)"],
            env=found["trainer"][0].environ(),
            start_new_session=True,
        )
        until(lambda: orphan.pid in {it.pid for it in stack.processes_of(run)}, 30)
    kill([process for victim in crash.victims for process in found[victim]])
    return orphan


def left_of(began: float, crash: Crash) -> float:
    """Seconds; a run that ended in order took its time."""
    if crash.state == "COMPLETED":
        return 60
    return max(1.0, WITHIN_SECONDS - (time.monotonic() - began))

"""What Prefect costs: the flow against its stages as plain functions, a server of our own, and scheduled runs."""

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from harness import Result, main, ratio
from scheduled_runs import free_port
from soak import GROWS, soak

from tasks.cores import available_cores

ROOT = Path(__file__).resolve().parent.parent
RECIPE = """\
name: orchestration
base: {base}
dataset:
  sources: [{{type: python_source, package: json}}, {{type: python_source, package: asyncio}}{more}]
  split: {{test: 0.1}}
tokenization: {{max_length: 512, long_rows: drop}}
training:
  peft_config: {{r: 4}}
  training_config: {{max_steps: 2, per_device_train_batch_size: 2}}
evaluation: {{max_new_tokens: 4, bootstrap_samples: 100, gate: []}}
promotion: {{policy: automatic}}
"""
MOST = {
    "overhead_seconds": 1,
    "overhead_share_of_quickstart": 0.02,
    "embedded_extra_seconds": 1,
    "tracking_share_of_training": 0.005,
    "tracking_share_of_one_core": 0.01,
    "database_kb_per_skipped_run": 100,
    "database_kb_per_trained_run": 200,
    "database_events_kb_per_skipped_run": 500,
    "database_events_kb_per_trained_run": 1000,
    "soak_worker_memory_growth_of_second_half_mb": 2,
    "soak_prefect_memory_growth_of_second_half_mb": 10,
    "database_lock_errors": 0,
}
"""Beyond these the benchmark fails; of the second half, as caches fill in the first."""
OURS = """
from pathlib import Path
from flows.connection import prefect_connection
from tasks.home import home
with prefect_connection(home(), "benchmark", lambda _: None, lambda: __import__("prefect")):
    from prefect import flow
    flow(lambda: 1, name="nothing")()
"""
PREFECTS = """
from prefect import flow
flow(lambda: 1, name="nothing")()
"""


@contextlib.contextmanager
def _server(folder: Path) -> Iterator[None]:
    """A Prefect server on SQLite, with its scheduler."""
    port = free_port()
    os.environ["PREFECT_HOME"] = str(folder / "prefect")
    os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
    log = (folder / "server.log").open("wb")
    process = subprocess.Popen(
        [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)],
        stdout=log,
        stderr=log,
    )
    try:
        deadline = time.monotonic() + 180
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health", timeout=2).close()
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit((folder / "server.log").read_text())
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        process.wait()
        log.close()


@contextlib.contextmanager
def _plain() -> Iterator[Callable[[Path], None]]:
    """The flow's body with every task replaced by its function, and nothing sent to Prefect."""
    from prefect import Task
    from prefect.logging import disable_run_logger

    import flows.retrain as retraining
    import tasks.stage_report as stage_report
    from flows.run_record import PrefectRun

    tasks = {name: it for name, it in vars(retraining).items() if isinstance(it, Task)}
    deliver = stage_report.deliver
    for name, it in tasks.items():
        setattr(retraining, name, it.fn)
    stage_report.deliver = lambda *_: None
    try:
        with disable_run_logger():
            yield lambda recipe: retraining._retrained(recipe, (), False, PrefectRun(None, None))
    finally:
        stage_report.deliver = deliver
        for name, it in tasks.items():
            setattr(retraining, name, it)


def _seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _overhead(result: Result, recipe: Path, pairs: int) -> None:
    """Stages that are all complete take the same few moments either way: the rest is orchestration.

    As `loraline run` does it, and with the heartbeats that a deployment's run sends.
    """
    from flows.heartbeats import without_heartbeats
    from flows.retrain import retrain
    from flows.run_record import RunRecord

    is_done = RunRecord.is_done
    for name, done in (("", lambda *_: False), ("unchanged_run_", is_done)):
        RunRecord.is_done = done  # type: ignore[method-assign]
        flow, beating, plain = [], [], []
        for _ in range(pairs):
            with without_heartbeats():
                flow.append(_seconds(lambda: retrain(str(recipe))))
            beating.append(_seconds(lambda: retrain(str(recipe))))
            with _plain() as body:
                plain.append(_seconds(lambda body=body: body(recipe)))
        RunRecord.is_done = is_done  # type: ignore[method-assign]
        for kind, seconds in ("", flow), ("with_heartbeats_", beating):
            differences = [f - p for f, p in zip(seconds, plain, strict=True)]
            result.values[f"{name}overhead_{kind}seconds"] = statistics.median(differences)
        result.values[f"{name}flow_seconds"] = statistics.median(flow)
        result.values[f"{name}plain_seconds"] = statistics.median(plain)
        result.ratios[f"{name}plain_vs_flow"] = ratio(plain, flow)


def _quickstart(result: Result) -> None:
    """What the overhead is of a run that does everything for the first time."""
    from flows.retrain import retrain

    seconds = _seconds(lambda: retrain(str(ROOT / "recipes" / "quickstart.yaml")))
    result.values["quickstart_seconds"] = seconds
    most = max(result.values[f"overhead_{kind}seconds"] for kind in ("", "with_heartbeats_"))
    result.values["overhead_share_of_quickstart"] = most / seconds


def _tracking(result: Result, recipe: Path, steps: int) -> None:
    """What the flow's process takes of the processors while a worker trains on all of them.

    Everything that looks on: points and system metrics to MLflow, the progress bar and log lines to Prefect.
    """
    import flows.retrain as retraining

    train, found = retraining.train_adapter, {}

    def watched(*args: Any, **named: Any) -> Any:
        busy, began = time.process_time(), time.perf_counter()
        adapter = train(*args, **named)
        found["seconds"] = time.perf_counter() - began
        found["busy"] = time.process_time() - busy
        return adapter

    config = {"max_steps": steps, "per_device_train_batch_size": 16}
    retraining.train_adapter = watched  # type: ignore[assignment]
    try:
        retraining.retrain(
            str(recipe),
            [f"training.training_config.{key}={value}" for key, value in config.items()],
        )
    finally:
        retraining.train_adapter = train
    result.values["tracked_training_seconds"] = found["seconds"]
    result.values["tracking_cpu_seconds"] = found["busy"]
    share = found["busy"] / found["seconds"]
    result.values["tracking_share_of_one_core"] = share
    result.values["tracking_share_of_training"] = share / available_cores()


def _embedded(result: Result, folder: Path, pairs: int) -> None:
    """The first flow run of a process without a server, on a database that is there already."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    inherited |= {"LORALINE_HOME": str(folder / "home"), "PYTHONPATH": str(ROOT)}
    # Its own twenty seconds are too few for the first start on a busy machine.
    inherited |= {"PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "300"}
    inherited |= {"HOME": str(folder / "nobody")}
    own = {**inherited, "PREFECT_HOME": str(folder / "ephemeral")}

    def seconds(code: str, environment: dict[str, str]) -> float:
        command = [sys.executable, "-P", "-c", code]
        return _seconds(
            lambda: subprocess.run(
                command, env=environment, cwd=folder, stdout=subprocess.DEVNULL, check=True
            )
        )

    # The first makes and migrates the database.
    seconds(OURS, inherited), seconds(PREFECTS, own)
    ours, prefects = [], []
    for _ in range(pairs):
        ours.append(seconds(OURS, inherited))
        prefects.append(seconds(PREFECTS, own))
    extra = [o - p for o, p in zip(ours, prefects, strict=True)]
    result.values["embedded_extra_seconds"] = statistics.median(extra)
    result.values["embedded_seconds"] = statistics.median(ours)
    result.ratios["embedded_vs_prefect"] = ratio(prefects, ours)


def _recipe(more: str = "") -> str:
    return RECIPE.format(base=ROOT / "examples" / "starter", more=more)


def measure(quick: bool) -> Result:
    """The flow and its plain stages alternate on the same store and the same server."""
    result = Result("orchestration", ("prefect", "mlflow", "sqlalchemy"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["LORALINE_HOME"] = str(folder / "state")
        os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
        recipe = folder / "orchestration.yaml"
        recipe.write_text(_recipe())
        with _server(folder):
            from flows.retrain import retrain

            retrain(str(recipe))
            _overhead(result, recipe, 2 if quick else 7)
            _tracking(result, recipe, 4 if quick else 360)
            if not quick:
                _quickstart(result)
        _embedded(result, folder, 1 if quick else 5)
        soak(result, folder / "soak", _recipe(GROWS), 3 if quick else 100)
    for name, most in MOST.items():
        # Three runs say nothing about growth.
        if not quick and (value := result.values[name]) > most:
            result.failed[name] = f"{value:.3g} is more than {most}"
    return result


if __name__ == "__main__":
    main(measure, __doc__ or "")

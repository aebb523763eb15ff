"""Prove in a fresh process that what is registered computes what was trained."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

from tasks import launch
from tasks.errors import NoGpuTurn, StageFailed, WorkerFailed
from tasks.gpu_turn import gpu_turn, hidden_gpus
from tasks.home import Home
from tasks.registration.job import NotFinite, Verification, VerifyJob
from tasks.registration.process import run_worker
from tasks.registry import TRAINING
from tasks.tracking import Tracker

LONGEST_SECONDS = 7200.0
"""A large base takes minutes to load. What hangs keeps the adapter's turn, and promotions are not looked at."""
LONGEST_WAIT_SECONDS = 900.0
"""For a GPU, where the CPU proved nothing: somebody who goes back at night is told then what stands in the way."""
_log = logging.getLogger(__name__)


def verify_version(
    tracker: Tracker, model_uri: str, *, base: Path | None, fixture: Path, home: Home
) -> Verification:
    """Load `model_uri` through mlflow.pyfunc in a process of its own and compare logits on the fixture.

    It computes on a GPU that is free, else on the CPU: a rollback neither waits for a training nor takes
    memory from it. Only where the CPU does not prove it, a GPU is waited for.

    Raises: StageFailed when a logit differs by more than rounding explains, by half of what the adapter
    does or more, or is not a finite number; NoGpuTurn when the CPU did not prove it and no GPU became free;
    what `tasks.launch.run` raises when the process dies.
    """
    name = model_uri.removeprefix("models:/").replace("/", "-")
    log = home.logs / f"verify-{name}.log"
    training = fixture.parent / "about" / TRAINING
    trained_on = json.loads(training.read_text("utf-8"))["device"] if training.is_file() else None

    def look() -> Verification:
        with home.scratch("verify") as folder:
            job = VerifyJob(
                model_uri=model_uri,
                base=base,
                fixture=fixture,
                trained_on=trained_on,
                result=folder / "result.json",
            )
            run_worker(
                "tasks.registration.verify_worker",
                launch.write_job(folder, job),
                tracker=tracker,
                home=home,
                log=log,
                name=f"Verifying {model_uri}",
                timeout_seconds=LONGEST_SECONDS,
            )
            return Verification.model_validate_json(job.result.read_text(encoding="utf-8"))

    on_gpu = trained_on is not None and not trained_on.startswith("cpu")
    found = _computed(model_uri, look, trained_on_gpu=on_gpu)
    if not found.passed:
        rounding = f"rounding explains {found.tolerance:.3g}, and " if found.same_device else ""
        raise StageFailed(
            f"{model_uri} does not compute what was trained: its logits differ by up to "
            f"{found.largest_difference:.3g} from the trained adapter's in {found.dtype}, and at most "
            f"{found.allowed:.3g} is allowed: {rounding}half of what the "
            f"adapter does to them is {found.adapter_effect / 2:.3g}. "
            "A run does not register it; a version that stands already should not be promoted. Run the same recipe again; if it stays so and the training ran on "
            f"other hardware or other library versions, train again here. Log: {log}"
        )
    return found


def _computed(
    model_uri: str, look: Callable[[], Verification], *, trained_on_gpu: bool
) -> Verification:
    """What `look` found on a GPU that this process has the turn on, or on the CPU."""
    try:
        with gpu_turn(within_seconds=0):
            return look()
    except NoGpuTurn as taken:
        _log.warning("%s Loading %s on the CPU instead", taken, model_uri)
    with hidden_gpus():
        try:
            found = look()
            if found.passed:
                return found
            why = f"its logits differ there by up to {found.largest_difference:.3g}"
        except (WorkerFailed, NotFinite) as error:
            if isinstance(error, NotFinite) and not trained_on_gpu:
                raise
            # It may be for lack of memory or of a kernel, or float16 overflows in the CPU's alone: no verdict
            # on the version.
            why = str(error)
    _log.warning(
        "%s was not proved on the CPU: %s. Waiting up to %.0f min for a GPU",
        model_uri,
        why,
        LONGEST_WAIT_SECONDS / 60,
    )
    try:
        with gpu_turn(within_seconds=LONGEST_WAIT_SECONDS):
            return look()
    except NoGpuTurn as taken:
        raise NoGpuTurn(
            f"Nothing is known against {model_uri}, and it was not proved: {taken} On the CPU: {why}"
        ) from taken

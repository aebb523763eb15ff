"""Prove in a fresh process that what is registered computes what was trained."""

from pathlib import Path

from tasks import launch
from tasks.errors import StageFailed
from tasks.home import Home
from tasks.registration.job import Verification, VerifyJob
from tasks.registration.process import run_worker
from tasks.tracking import Tracker

LONGEST_SECONDS = 7200.0
"""A large base takes minutes to load. What hangs keeps the adapter's turn, and promotions are not looked at."""


def verify_version(
    tracker: Tracker, model_uri: str, *, base: Path | None, fixture: Path, home: Home
) -> Verification:
    """Load `model_uri` through mlflow.pyfunc in a process of its own and compare logits on the fixture.

    Raises: StageFailed when a logit differs by more than rounding explains, by half of what the adapter
    does or more, or is not a finite number; what `tasks.launch.run` raises when the process dies.
    """
    name = model_uri.removeprefix("models:/").replace("/", "-")
    log = home.logs / f"verify-{name}.log"
    with home.scratch("verify") as folder:
        job = VerifyJob(
            model_uri=model_uri, base=base, fixture=fixture, result=folder / "result.json"
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
        found = Verification.model_validate_json(job.result.read_text(encoding="utf-8"))
    if not found.passed:
        raise StageFailed(
            f"{model_uri} does not compute what was trained: its logits differ by up to "
            f"{found.largest_difference:.3g} from the trained adapter's in {found.dtype}, and at most "
            f"{found.allowed:.3g} is allowed: rounding explains {found.tolerance:.3g}, and half of what the "
            f"adapter does to them is {found.adapter_effect / 2:.3g}. "
            "A run does not register it; a version that stands already should not be promoted. Run the same recipe again; if it stays so and the training ran on "
            f"other hardware or other library versions, train again here. Log: {log}"
        )
    return found

"""Prove in a fresh process that what is registered computes what was trained."""

import shutil
import uuid
from pathlib import Path

from tasks import launch
from tasks.errors import StageFailed
from tasks.home import Home
from tasks.registration.job import Verification, VerifyJob
from tasks.tracking import Tracker


def verify_version(
    tracker: Tracker, model_uri: str, *, base: Path, fixture: Path, home: Home
) -> Verification:
    """Load `model_uri` through mlflow.pyfunc in a process of its own and compare logits on the fixture.

    Raises: StageFailed when a logit differs by more than rounding explains; what `tasks.launch.run`
    raises when the process dies.
    """
    folder = home.work / f"verify-{uuid.uuid4().hex[:12]}"
    job = VerifyJob(
        tracking_uri=tracker.uri,
        model_uri=model_uri,
        base=base,
        fixture=fixture,
        result=folder / "result.json",
    )
    path = launch.write_job(folder, job)
    name = model_uri.removeprefix("models:/").replace("/", "-")
    launch.run(
        launch.module("tasks.registration.verify_worker", str(path)),
        log=home.logs / f"verify-{name}.log",
        name=f"Verifying {model_uri}",
        environment=home.environment(),
    )
    found = Verification.model_validate_json(job.result.read_text(encoding="utf-8"))
    if not found.passed:
        raise StageFailed(
            f"{model_uri} does not compute what was trained: its logits differ by up to "
            f"{found.largest_difference:.3g} from the trained adapter's in {found.dtype}, and at most "
            f"{found.tolerance:.3g} is rounding (the adapter itself changes them by {found.adapter_effect:.3g}). "
            f"It was not registered. See {home.logs / f'verify-{name}.log'} and run it again by hand with "
            f"{path}; if training ran on other hardware or other library versions, train again here."
        )
    shutil.rmtree(folder)
    return found

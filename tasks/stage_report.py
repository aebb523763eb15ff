"""What the Prefect task of every stage does around its work: announce it, log it, leave an artifact."""

import contextvars
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate
from prefect.context import SettingsContext, get_settings_context
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, Settings
from prefect.utilities.context import get_task_and_flow_run_ids

from tasks.artifacts import Artifact, Stage
from tasks.late import deliver
from tasks.progress import announce

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

_making = threading.Lock()
_once: "tuple[Settings, Settings, SyncPrefectClient] | None" = None
"""The settings of a run, the same with one attempt a request, and a client that lives as long as the process."""


def started(stage: Stage) -> None:
    """Announce that the stage begins."""
    announce("stage", stage=stage, state="started")


def ended(stage: Stage, output: Artifact, told: str, *, description: str) -> None:
    """Log what the stage came to, show its summary in Prefect, and announce the end."""
    get_run_logger().info("%s in %.1f s", told, output.seconds)
    show_summary(stage, output.path, description)
    announce(
        "stage",
        stage=stage,
        state="reused" if output.reused else "done",
        seconds=output.seconds,
        fingerprint=output.fingerprint,
    )


def show_summary(stage: Stage, folder: Path, description: str) -> None:
    """Leave `summary.md` of the folder as the artifact `loraline-<stage>`."""
    show(f"loraline-{stage}", (folder / "summary.md").read_text(encoding="utf-8"), description)


def show(key: str, markdown: str, description: str) -> None:
    """Leave a Prefect artifact. A server that is away gets it later, and no work waits for that."""
    # Whose it is, the context of the run says; other threads lack it.
    task_run_id, flow_run_id = get_task_and_flow_run_ids()
    artifact = ArtifactCreate(
        type="markdown",
        key=key,
        description=description,
        data=markdown,
        task_run_id=task_run_id,
        flow_run_id=flow_run_id,
    )
    settings = contextvars.copy_context()

    def send() -> None:
        with asking_once() as client:
            client.create_artifact(artifact)

    deliver(key, f"the artifact {key}", lambda: settings.run(send))


@contextmanager
def asking_once() -> "Iterator[SyncPrefectClient]":
    """A client of its own for `tasks.late`, which asks again by itself.

    The run's client would ask for minutes, and is closed when a late delivery is made. Settings and client
    are made once: that takes a tenth of a second, and a run delivers ten times.
    """
    global _once
    context = get_settings_context()
    with _making:
        if _once is None or _once[0] is not context.settings:
            changed = context.settings.copy_with_update(updates={PREFECT_CLIENT_MAX_RETRIES: 0})
            settings = SettingsContext(profile=context.profile, settings=changed)
            with settings:
                # With settings of its own it is no other's.
                client = get_client(httpx_settings={"timeout": 30.0}, sync_client=True)
            _once = context.settings, changed, client.__enter__()
        _, changed, client = _once
    with SettingsContext(profile=context.profile, settings=changed):
        yield client

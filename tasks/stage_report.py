"""What the Prefect task of every stage does around its work: announce it, log it, leave an artifact."""

from pathlib import Path

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact

from tasks.artifacts import Artifact, Stage
from tasks.progress import announce


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
    )


def show_summary(stage: Stage, folder: Path, description: str) -> None:
    """Leave `summary.md` of the folder as the artifact `loraline-<stage>`."""
    show(f"loraline-{stage}", (folder / "summary.md").read_text(encoding="utf-8"), description)


def show(key: str, markdown: str, description: str) -> None:
    """Leave a Prefect artifact; a server that is away for a moment costs a warning and no work."""
    try:
        create_markdown_artifact(markdown, key=key, description=description)
    except Exception:
        # Hours of work are complete in the store: they must not become a failed stage.
        get_run_logger().warning("Prefect did not take the artifact %s", key, exc_info=True)

"""Apply the deployments and the recipes' schedules to the stack's Prefect server."""

import os
from collections.abc import Callable, Mapping

from flows.stack.settings import StackSettings
from tasks.home import Home


def apply(
    home: Home, settings: StackSettings, environ: Mapping[str, str], say: Callable[[str], None]
) -> None:
    """Deploy what is shipped, and schedule the recipes in the project's `recipes/`.

    `environ` is what makes this process a client of the stack. Prefect reads it when it is imported,
    which must not have happened before.

    Raises: as `apply_deployments`.
    """
    os.environ.update(environ)
    os.environ.pop("PREFECT_PROFILE", None)
    from flows.deploying import apply_deployments

    folder = settings.project / "recipes"
    applied = apply_deployments(home, [folder] if folder.is_dir() else [])
    for line in applied.changed:
        say(line)
    for problem in applied.problems:
        say(f"Not deployed: {problem}")

"""Apply the deployments and the recipes' schedules to the stack's Prefect server."""

import os
from collections.abc import Callable, Mapping

from flows.stack.settings import StackSettings
from tasks.home import Home


def apply(
    home: Home, settings: StackSettings, environ: Mapping[str, str], say: Callable[[str], None]
) -> list[str]:
    """Deploy what is shipped, and schedule the recipes in the project's `recipes/`.

    `environ` is what makes this process a client of the stack. Prefect reads it when it is imported,
    which must not have happened before.

    Returns what could not be applied, each with the way out. Nothing that goes wrong here is raised: a
    stack that is up keeps the schedules that it has, and whoever waits for it must not stop it.
    """
    os.environ.update(environ)
    os.environ.pop("PREFECT_PROFILE", None)
    folder = settings.project / "recipes"
    try:
        from flows.deploying import apply_deployments

        if folder.is_dir():
            applied = apply_deployments(home, [folder])
        else:
            # A project without recipes, or one whose disk is not mounted.
            applied = apply_deployments(home, [], away=[folder])
    except Exception as error:
        from flows.failures import explain

        problem = (
            f"{explain(error).message}\nThe servers run, and what was scheduled before stays. `loraline "
            "deploy` tries again."
        )
        say(f"Not deployed: {problem}")
        return [problem]
    for line in applied.changed:
        say(line)
    for problem in applied.problems:
        say(f"Not deployed: {problem}")
    return applied.problems

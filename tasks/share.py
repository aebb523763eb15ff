"""Find the files that are shipped beside the code: in the clone, or inside the installed wheel."""

from pathlib import Path
from typing import Literal

Shared = Literal["starter", "recipes", "deployments", "mlflow"]

_IN_CLONE: dict[Shared, str] = {
    "starter": "examples/starter",
    "recipes": "recipes",
    "deployments": "deployments",
    "mlflow": "mlflow",
}


def shared(name: Shared) -> Path:
    """The folder of shipped files called `name`.

    A wheel holds it at `tasks/shared/<name>`; a clone at its own place in the tree.

    Raises: FileNotFoundError when neither is there, which means a broken installation.
    """
    here = Path(__file__).resolve().parent
    in_wheel = here / "shared" / name
    in_clone = here.parent / _IN_CLONE[name]
    # The wheel's copy first: beside an installed package, `../recipes` could be anybody's folder.
    for folder in (in_wheel, in_clone):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f"The shipped folder {name!r} is neither at {in_wheel} nor at {in_clone}: this installation "
        "of loraline is incomplete. Install it again, or restore the clone's missing files."
    )

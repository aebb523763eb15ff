"""Keep a state folder where its stack began: MLflow notes whole addresses of files, and knows no other place."""

import shlex
from pathlib import Path

from flows.stack.settings import StackSettings
from tasks.errors import UserError
from tasks.home import Home


def refuse_moved(home: Home, settings: StackSettings) -> None:
    """Raises: UserError where the home was moved, or is a copy: the address at which its stack began leads elsewhere.

    Its servers would come up healthy, and no version would load; what is written to the old address would make
    the old folder anew.
    """
    began = settings.state_folder
    if began is None or _is_same(began, home.root):
        return
    here, there = (shlex.quote(str(it)) for it in (home.root, began))
    try:
        taken = began.exists()
    except OSError as error:
        ways_out = f"What lies there now cannot be seen ({error}): start the stack as a user who may look there."
    else:
        ways_out = f"Move it back, or let the old place lead here: ln -s {here} {there}"
        if taken:
            ways_out = f"Another folder lies there now: `loraline up --home {there}` starts that one. A copy is no stack."
    raise UserError(
        f"The stack of {home.root} began in {began}, and the folder was moved or copied since. MLflow keeps whole "
        f"addresses of its files, so no version would load. Nothing was started. {ways_out}"
    )


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False

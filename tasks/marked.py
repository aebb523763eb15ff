"""Find and end processes by their environment, which a child inherits in whatever session or group it hides."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

WORKER = "LORALINE_WORKER"
"""Of a worker process and of all that it starts: a value of its own for each worker."""


def environments() -> "Iterator[tuple[psutil.Process, dict[str, str]]]":
    """Every living process of this user, with the environment that it was started with."""
    import psutil

    for process in psutil.process_iter():
        # One that ended, a zombie, or another user's, which is none of ours.
        with contextlib.suppress(psutil.Error, OSError):
            if process.status() != psutil.STATUS_ZOMBIE:
                yield process, process.environ()


def marked(name: str, value: str) -> "list[psutil.Process]":
    """The processes with this variable; the calling one is left out."""
    import psutil

    me = psutil.Process().pid
    return [
        process
        for process, environment in environments()
        if environment.get(name) == value and process.pid != me
    ]


def end(found: "Sequence[psutil.Process]", grace_seconds: float) -> int:
    """SIGTERM, the grace, SIGKILL; without a grace SIGKILL at once. Returns how many there were."""
    import psutil

    alive = list(found)
    if grace_seconds > 0:
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        _, alive = psutil.wait_procs(found, timeout=grace_seconds)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=5)
    return len(found)

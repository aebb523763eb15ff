"""What every worker process does first and last: read its job, die with its parent, report, answer."""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from tasks.errors import UserError
from tasks.marked import WORKER, end, marked

Job = TypeVar("Job", bound=BaseModel)


def emit(event: str, **values: Any) -> None:
    """Tell the parent process something, as one JSON line on standard output."""
    sys.stdout.write(json.dumps({"event": event, **values}) + "\n")
    sys.stdout.flush()


def main(job_type: type[Job], work: Callable[[Job], None]) -> None:
    """Run `work` on the job whose path is the only argument; a user's mistake is exit code 2."""
    _die_with_parent()
    job = job_type.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        work(job)
    except UserError as error:
        emit("user_error", message=str(error))
        sys.exit(UserError.exit_code)


def write_result(path: Path, result: BaseModel) -> None:
    """Write the worker's answer. Renamed into place last: its existence means the work is complete."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(result.model_dump_json(indent=1), encoding="utf-8")
    temporary.rename(path)


def _die_with_parent() -> None:
    """End this worker with all it started when standard input closes, which the parent's death does.

    Only where standard input is a pipe: a person who runs the worker by hand has a terminal.
    """
    if not _is_pipe(0):
        return

    def watch() -> None:
        while os.read(0, 4096):
            pass
        try:
            if WORKER in os.environ:
                # Those in sessions of their own: the group's signal does not reach them.
                end(marked(WORKER, os.environ[WORKER]), grace_seconds=0)
        finally:
            os.killpg(os.getpgid(0), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _is_pipe(descriptor: int) -> bool:
    import stat

    try:
        return stat.S_ISFIFO(os.fstat(descriptor).st_mode)
    except OSError:
        return False

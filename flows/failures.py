"""Turn an exception into what a person reads and the exit code; a traceback goes to a file."""

import datetime
import os
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import Interrupted, LoralineError, StageFailed
from tasks.home import home


@dataclass(frozen=True)
class Failure:
    """Why a command did not finish."""

    message: str
    exit_code: int
    trace: str = ""
    """The traceback; shown only when asked for."""

    def print(self) -> None:
        """Write it to standard error."""
        if debugging() and self.trace:
            sys.stderr.write(self.trace)
        label = "interrupted" if self.exit_code == Interrupted.exit_code else "error"
        if sys.stderr.isatty() and not os.environ.get("NO_COLOR"):
            label = f"\x1b[1;31m{label}:\x1b[0m"
        else:
            label = f"{label}:"
        sys.stderr.write(f"{label} {self.message}\n")
        sys.stderr.flush()


def debugging() -> bool:
    """Whether tracebacks are wanted on the terminal (`--debug` or LORALINE_DEBUG=1)."""
    return os.environ.get("LORALINE_DEBUG", "") not in ("", "0")


def explain(error: BaseException) -> Failure:
    """What to tell the user about `error`.

    One of ours speaks for itself. Anything else is a defect of ours or of a library: one paragraph,
    and the traceback in a file below the home's `logs/`.
    """
    trace = "".join(traceback.format_exception(error))
    if isinstance(error, LoralineError):
        return Failure(str(error), error.exit_code, trace)
    if not isinstance(error, Exception):
        # Ctrl-C, a signal, or Prefect's cancellation.
        return Failure("stopped on request.", Interrupted.exit_code, trace)
    text = f"{type(error).__name__}: {error}".strip().removesuffix(":")
    where = _keep(trace)
    if where is None:
        return Failure(
            f"Something went wrong that loraline did not foresee: {text}\n"
            "Run it again with --debug to see the traceback.",
            StageFailed.exit_code,
            trace,
        )
    return Failure(
        f"Something went wrong that loraline did not foresee: {text}\n"
        f"The traceback is in {where}\n"
        "What was complete before it is kept; --debug shows the traceback here.",
        StageFailed.exit_code,
        trace,
    )


def _keep(trace: str) -> Path | None:
    """Write the traceback to a file; None where that is impossible (a full or read-only disk)."""
    state = home()
    name = f"error-{datetime.datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}.log"
    try:
        state.prepare()
        path = state.logs / name
        path.write_text(trace, encoding="utf-8")
    except OSError:
        return None
    return path

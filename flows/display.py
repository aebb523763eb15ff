"""Show a run on standard error: a live table on a terminal, plain lines elsewhere."""

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from flows.run_state import RunState, StageState
from tasks.addresses import without_passwords
from tasks.durations import duration
from tasks.progress import Event

PLAIN_STEP_SECONDS = 10.0
"""Between two step lines of a stage where there is no terminal."""

_MARKS = {"waiting": "·", "reused": "✓", "done": "✓", "failed": "✗"}
_STYLES = {"waiting": "dim", "started": "bold", "reused": "green", "done": "green", "failed": "red"}


class Display(Protocol):
    """What `run` tells of its progress."""

    def say(self, message: str) -> None:
        """A line that stays."""

    def take(self, event: Event) -> None:
        """A `tasks.progress` listener."""


@contextmanager
def run_display(title: str) -> Iterator[Display]:
    """The display that fits standard error, for the length of the block.

    An exception that leaves the block marks the running stage as failed.
    """
    if _can_draw():
        with _live(title) as display:
            yield display
    else:
        yield PlainDisplay(title)


class PlainDisplay:
    """One line when a stage starts and ends; in between a line every ten seconds at most."""

    def __init__(self, title: str) -> None:
        self._state = RunState()
        self._began = time.monotonic()
        self._spoke: dict[str, float] = {}
        self.say(title)

    def say(self, message: str) -> None:
        """Write one line with the time since the start."""
        seconds = int(time.monotonic() - self._began)
        sys.stderr.write(f"[{seconds // 60:02}:{seconds % 60:02}] {message}\n")
        sys.stderr.flush()

    def take(self, event: Event) -> None:
        """Write a line if the event deserves one."""
        stage = self._state.take(event)
        if stage is None:
            return
        if event["event"] == "stage":
            self.say(f"{stage.name}: {self._words(stage)}")
        elif event["event"] == "note" or self._is_time(stage, event):
            self.say(f"{stage.name}: {stage.detail}")

    def _is_time(self, stage: StageState, event: Event) -> bool:
        now = time.monotonic()
        last = event.get("step") is not None and event.get("step") == event.get("total_steps")
        if not last and now - self._spoke.get(stage.name, -PLAIN_STEP_SECONDS) < PLAIN_STEP_SECONDS:
            return False
        self._spoke[stage.name] = now
        return True

    @staticmethod
    def _words(stage: StageState) -> str:
        took = "" if stage.seconds is None else f" ({duration(stage.seconds)})"
        words = {"reused": "complete already, reused"}.get(stage.state, stage.state)
        return words + took


class LiveDisplay:
    """A table of stages that redraws itself; other output appears above it."""

    def __init__(self, title: str, console: Console) -> None:
        self._title = title
        self._console = console
        self._state = RunState()
        self._began = time.monotonic()
        # One for all redraws: it counts its frames from its own first one.
        self._spinner = Spinner("dots", style="cyan")

    def say(self, message: str) -> None:
        """A line above the table."""
        self._console.print(message, style="dim", markup=False, highlight=False)

    def take(self, event: Event) -> None:
        """Noted; the next redraw shows it."""
        self._state.take(event)

    def fail_running(self) -> None:
        """Show the running stage as failed."""
        self._state.fail_running()

    def __rich__(self) -> Table:
        now = time.monotonic()
        table = Table(box=None, padding=(0, 1), title_justify="left", show_header=False)
        table.title = Text(f"{self._title}  {duration(now - self._began)}", style="bold")
        table.add_column(width=1)
        table.add_column(no_wrap=True)
        table.add_column(justify="right", no_wrap=True)
        table.add_column(width=16)
        table.add_column(no_wrap=True, overflow="ellipsis")
        for stage in self._state.stages.values():
            mark = (
                self._spinner
                if stage.state == "started"
                else Text(_MARKS[stage.state], style=_STYLES[stage.state])
            )
            elapsed = stage.elapsed(now)
            bar = (
                ProgressBar(total=1.0, completed=stage.fraction, width=16)
                if stage.fraction is not None and stage.state == "started"
                else Text("reused" if stage.state == "reused" else "", style="dim")
            )
            table.add_row(
                mark,
                Text(stage.name, style=_STYLES[stage.state]),
                "" if elapsed is None else duration(elapsed),
                bar,
                Text(stage.detail if stage.state != "waiting" else "", style="dim"),
            )
        return table


def _can_draw() -> bool:
    return (
        sys.stderr.isatty()
        and os.environ.get("TERM", "") not in ("", "dumb")
        and (sys.stderr.encoding or "").lower().replace("-", "").startswith("utf")
    )


@contextmanager
def _live(title: str) -> Iterator[LiveDisplay]:
    console = Console(stderr=True)
    display = LiveDisplay(title, console)
    # Standard output is not ours here: `--json` and pipes read it.
    with Live(display, console=console, refresh_per_second=6, redirect_stdout=False):
        try:
            yield display
        except BaseException:
            display.fail_running()
            raise


@contextmanager
def logging_to(path: str, display: Display) -> Iterator[None]:
    """Write all log records to the file `path`; show warnings, each once, on the display.

    A handler with a formatter on the root logger, in place before prefect is imported, keeps Prefect
    from adding its own console handler there (prefect.logging.configuration.setup_logging).
    """
    file = logging.FileHandler(path, encoding="utf-8", delay=True)
    file.setFormatter(_Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    shown = _ShownWarnings(display)
    root = logging.getLogger()
    for handler in (file, shown):
        root.addHandler(handler)
    for name in ("tasks", "flows"):
        logging.getLogger(name).setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for handler in (file, shown):
            root.removeHandler(handler)
            handler.close()


class _Formatter(logging.Formatter):
    """Takes passwords out of addresses, in tracebacks of libraries, too."""

    def format(self, record: logging.LogRecord) -> str:
        return without_passwords(super().format(record))


class _ShownWarnings(logging.Handler):
    def __init__(self, display: Display) -> None:
        super().__init__(logging.WARNING)
        self._display = display
        self._seen: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        # Python's own warnings are for developers; how Prefect words a failure is said better by the
        # command itself. Both stand in the file.
        if record.name == "py.warnings" or (
            record.name.startswith("prefect") and record.levelno > logging.WARNING
        ):
            return
        text = record.getMessage()
        if text not in self._seen:
            self._seen.add(text)
            self._display.say(f"{record.levelname.lower()}: {text}")

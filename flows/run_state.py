"""What the display knows of a run: each stage's state, told by the events of `tasks.progress`."""

import time
from dataclasses import dataclass, field
from typing import Literal

from tasks.artifacts import STAGES
from tasks.progress import Event
from tasks.progress_words import count, rows_text, step_text

State = Literal["waiting", "started", "reused", "done", "failed"]


@dataclass
class StageState:
    """One stage's line."""

    name: str
    state: State = "waiting"
    seconds: float | None = None
    """Wall time once it ended."""
    began: float | None = None
    """time.monotonic() of its start."""
    detail: str = ""
    """What it is doing now, or what it came to."""
    fraction: float | None = None
    """How much of it is done, 0-1, where that is known."""

    def elapsed(self, now: float) -> float | None:
        """Seconds so far, or in all."""
        if self.seconds is not None:
            return self.seconds
        return None if self.began is None else now - self.began


@dataclass
class RunState:
    """The stages in order; `take` is a `tasks.progress` listener."""

    stages: dict[str, StageState] = field(
        default_factory=lambda: {name: StageState(name) for name in STAGES}
    )

    def take(self, event: Event) -> StageState | None:
        """Note an event; the stage it is about, if any."""
        name = event.get("stage")
        if not isinstance(name, str):
            return None
        stage = self.stages.setdefault(name, StageState(name))
        match event["event"]:
            case "stage":
                self._change(stage, event)
            case "step":
                stage.detail = step_text(event)
                stage.fraction = _share(event.get("step"), event.get("total_steps"))
            case "prepared" | "measured" | "generated" as kind:
                stage.detail = _DONE_TEXTS[kind](event)
                stage.fraction = _share(event.get("done"), event.get("total"))
            case "waiting":
                stage.detail = f"waiting: {event.get('message', '')}"
            case "note":
                stage.detail = str(event.get("message", ""))
        return stage

    def fail_running(self) -> None:
        """Mark what was running as failed: the run ended with an error."""
        now = time.monotonic()
        for stage in self.stages.values():
            if stage.state == "started":
                stage.seconds = stage.elapsed(now)
                stage.state = "failed"

    @staticmethod
    def _change(stage: StageState, event: Event) -> None:
        state = event.get("state")
        if state == "started":
            stage.state, stage.began, stage.seconds = "started", time.monotonic(), None
        elif state in ("reused", "done", "failed"):
            seconds = event.get("seconds")
            stage.seconds = (
                float(seconds)
                if isinstance(seconds, int | float)
                else stage.elapsed(time.monotonic())
            )
            stage.state, stage.fraction = state, None


def _measured_text(event: Event) -> str:
    return f"{event.get('model', 'model')}: loss of {_done_of_total(event)} rows"


def _generated_text(event: Event) -> str:
    return f"{event.get('model', 'model')}: {_done_of_total(event)} answers"


_DONE_TEXTS = {
    "prepared": rows_text,
    "measured": _measured_text,
    "generated": _generated_text,
}


def _done_of_total(event: Event) -> str:
    return f"{count(event.get('done'))} of {count(event.get('total'))}"


def _share(done: object, total: object) -> float | None:
    if isinstance(done, int | float) and isinstance(total, int | float) and total > 0:
        return min(1.0, done / total)
    return None

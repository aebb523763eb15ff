"""Callbacks of every training: end after the running step when asked to, and show that work goes on."""

import threading
import time
from typing import Any

from transformers import TrainerCallback

from tasks.training import ranks
from tasks.worker import emit

SECONDS_BETWEEN_SIGNS = 20.0


class StopAtStep(TrainerCallback):
    """When asked to stop, let the running step end, write a checkpoint and leave the loop."""

    def __init__(self, requested: threading.Event) -> None:
        self._requested = requested

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called by the trainer after each optimizer step."""
        # All processes end after the same step, or the others would wait for this one's gradients.
        if ranks.any_of_us(self._requested.is_set()):
            self._requested.set()
            control.should_save = True
            control.should_training_stop = True


class SignOfLife(TrainerCallback):
    """Tells the parent that work goes on, however rarely steps are logged and however long one takes."""

    def __init__(self) -> None:
        self._told_at = time.monotonic()

    def _tell(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if time.monotonic() - self._told_at >= SECONDS_BETWEEN_SIGNS:
            self._told_at = time.monotonic()
            if state.is_world_process_zero:
                emit("alive", step=state.global_step)

    on_substep_end = _tell
    on_step_end = _tell
    on_prediction_step = _tell

"""Show where a training hangs: the stacks of all threads, written into the log before it is stopped."""

import faulthandler
import time
from typing import Any

from transformers import TrainerCallback

SHARE = 0.8
"""Of the patience of the parent: what is written later would not be read."""
SECONDS_BETWEEN_ARMINGS = 1.0


class StacksBeforeStall(TrainerCallback):
    """A timer that every step winds up again; when it runs out, the log tells what each thread does."""

    def __init__(self, stall_seconds: float) -> None:
        self._patience = stall_seconds * SHARE
        self._armed_at = 0.0
        self._wind_up()

    def _wind_up(self) -> None:
        self._armed_at = time.monotonic()
        faulthandler.dump_traceback_later(self._patience)

    def _sign_of_life(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if time.monotonic() - self._armed_at >= SECONDS_BETWEEN_ARMINGS:
            self._wind_up()

    on_substep_end = _sign_of_life
    on_step_end = _sign_of_life
    on_prediction_step = _sign_of_life

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """What follows has no steps."""
        faulthandler.cancel_dump_traceback_later()

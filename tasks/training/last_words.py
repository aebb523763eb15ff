"""What the training worker said, and from that why it ended."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasks.errors import Killed, OutOfMemory, OverBudget, Preempted, StageFailed, WorkerFailed
from tasks.training import disk

Event = dict[str, Any]
_KINDS: dict[str, type[StageFailed]] = {it.__name__: it for it in (OutOfMemory, OverBudget)}


class LastWords:
    """Remembers what the worker said, to explain its end."""

    def __init__(self, on_event: Callable[[Event], None] | None) -> None:
        self._on_event = on_event
        self._step = 0
        self._saved: int | None = None
        self._failed: str | None = None
        self._kind: type[StageFailed] = StageFailed
        self._crashed = ""
        self._preempted = False
        self._advice = (
            "Lower training.training_config.per_device_train_batch_size (and raise "
            "gradient_accumulation_steps by as much), set activation_checkpointing: true, or shorten "
            "tokenization.max_length."
        )

    def hear(self, event: Event) -> None:
        """Remember an event, and pass it on."""
        kind = event["event"]
        if kind == "step":
            self._step = int(event["step"])
        elif kind in ("saved", "interrupted"):
            self._saved = int(event["step"])
            self._preempted = kind == "interrupted"
        elif kind == "memory":
            self._advice = str(event["advice"])
        elif kind == "failed":
            self._failed = str(event["message"])
            self._kind = _KINDS.get(str(event.get("kind")), StageFailed)
        elif kind == "crashed" and not self._crashed:
            # Of several processes the first to go says why; the others only miss it.
            self._crashed = f"{event['error']}: {event['message']}"
        if self._on_event is not None:
            self._on_event(event)

    def where_it_goes_on(self) -> str:
        """A sentence on what the same command does next."""
        if not self._saved:
            return "No step was completed; the same command starts training again."
        return f"The same command goes on from the checkpoint of step {self._saved}."

    def explain(self, error: WorkerFailed, log: Path, *, by_kernel: bool = False) -> StageFailed:
        """`by_kernel`: a process was ended for lack of memory meanwhile."""
        if self._failed is not None:
            return self._kind(f"{self._failed}\nFull log: {log}")
        text = f"{error}\n{self.where_it_goes_on()}"
        if disk.is_full(error):
            return WorkerFailed(
                f"The disk is full: after step {self._step} {log} could not be written, or what the "
                f"training writes below it. Complete checkpoints are untouched. Free some space.\n{text}"
            )
        if error.reason == "stalled":
            return WorkerFailed(
                f"After step {self._step} nothing was heard of the training for as long as "
                "training.stall_minutes allows. Where it hung, the log's last lines say, if they hold "
                "stacks. If its steps, its evaluation or loading the base really take so long, raise "
                f"training.stall_minutes.\n{text}"
            )
        if error.reason == "timed out":
            return WorkerFailed(f"{text} Raise training.timeout_minutes to let it.")
        if self._preempted:
            return Preempted(
                "Preempted: the training process was told to end (SIGTERM), and not by this run: by a "
                "scheduler that takes the machine back, or a person. "
                f"{self.where_it_goes_on()}\nFull log: {log}"
            )
        if self._crashed and self._crashed not in text:
            # The launcher of several processes has the last word in the log.
            text = f"{self._crashed}\n{text}"
        if self._crashed:
            return WorkerFailed(text)
        if error.unheard:
            return WorkerFailed(
                f"After step {self._step} the training process ended, and its last words were not read: "
                f"{error.unheard}. Why it ended, the end of the log may say.\n{text}"
            )
        # The launcher in between turns a child killed by a signal into exit code 1.
        ended = f"The training process was ended from outside after step {self._step}: it left no traceback."
        if by_kernel:
            return OutOfMemory(
                f"{ended} The kernel did it, for lack of memory. {self._advice}\n{text}"
            )
        return Killed(
            f"{ended} When nobody did that, the kernel did for lack of memory. {self._advice}\n{text}"
        )

"""What stops a training whose numbers say that nothing good can come of it."""

import math
from typing import Any, Literal

import torch
from peft import PeftConfig

from tasks.errors import StageFailed

NEAR_GUESSING = 0.9
"""In units of ln(vocabulary), the loss of guessing. Random weights start above 1 by the spread of their
logits; a pretrained base is below 0.6 even on text that it was not made for."""
ABSURD_FIRST_LOSS = 2.0
"""In the same units: beyond it the weights or the kernels are broken, not merely untrained."""
STEPS_TO_FIND_A_SCALE = 25
"""Steps in a row that float16's loss scaling may skip: it halves its factor of 65,536 at each."""


class WatchedNumbers:
    """Mixin for a transformers Trainer: a loss or gradient norm that is not finite ends the training.

    On a CPU before the optimizer has used it. On a GPU one step later, so that the processor never waits
    for the device while that has nothing to do; no checkpoint is written meanwhile, for the numbers are
    settled before.
    """

    args: Any
    accelerator: Any
    state: Any

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.numbers = Numbers(
            late=self.args.device.type != "cpu", scaled=self.accelerator.scaler is not None
        )

    def training_step(self, *args: Any, **options: Any) -> Any:
        """The trainer's own, its loss noted."""
        loss = super().training_step(*args, **options)  # type: ignore[misc]
        self.numbers.add(loss)
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Called by the trainer once a step, after clipping and before the optimizer."""
        norm = super()._get_grad_norm(model, grad_norm)  # type: ignore[misc]
        self.refuse_divergence(self.numbers.end_step(self.state.global_step + 1, norm))
        return norm

    def refuse_divergence(self, found: "NotFinite | None") -> None:
        """Raises: StageFailed, with the ways out, when something was found."""
        if found is None:
            return
        step, loss, norm = found
        raise StageFailed(
            f"Training diverged: at step {step} of {self.state.max_steps} the loss is {loss:.4g} and "
            f"the gradient norm {norm:.4g}. The ways out: a lower "
            f"training.training_config.learning_rate (now {self.args.learning_rate:g}), more "
            "warmup_steps, training.dtype: float32, or other data: `loraline check` shows rows with "
            "the tokens that are trained."
        )


NotFinite = tuple[int, float, float]
"""Optimizer step, loss, gradient norm, of which one at least is NaN or infinite."""


class Numbers:
    """Loss and gradient norm of every optimizer step, and whether they are finite."""

    def __init__(self, *, late: bool, scaled: bool) -> None:
        """`late`: look at a step's numbers when the next one has been queued. `scaled`: under float16
        a gradient that overflows is no mistake, the optimizer skips that step.
        """
        self._late = late
        self._scaled = scaled
        self._loss: Any = 0.0
        self._waiting: tuple[int, torch.Tensor] | None = None
        self._skipped = 0

    def add(self, loss: torch.Tensor) -> None:
        """Note a micro-batch's loss."""
        self._loss = self._loss + loss.detach()

    def end_step(self, step: int, norm: Any) -> NotFinite | None:
        """Note the gradient norm; what is not finite of this step, or of the one before if `late`."""
        loss = torch.as_tensor(self._loss, dtype=torch.float32)
        if norm is None:
            norm = 0.0
        elif isinstance(norm, torch.Tensor) and hasattr(norm, "full_tensor"):
            norm = norm.full_tensor()
        norm = torch.as_tensor(norm, dtype=torch.float32, device=loss.device)
        found = self.settle() if self._late else None
        self._waiting = (step, torch.stack((loss.reshape(()), norm.reshape(()))))
        self._loss = 0.0
        return found if self._late else self.settle()

    def settle(self) -> NotFinite | None:
        """Look at the step that waits, if one does."""
        if self._waiting is None:
            return None
        step, values = self._waiting
        self._waiting = None
        loss, norm = values.tolist()
        self._skipped = 0 if math.isfinite(norm) else self._skipped + 1
        patient = self._scaled and self._skipped <= STEPS_TO_FIND_A_SCALE
        if math.isfinite(loss) and (self._skipped == 0 or patient):
            return None
        return step, loss, norm

    def forget(self) -> None:
        """Drop what was noted since the last step ended."""
        self._loss, self._waiting = 0.0, None


def starts_as_base(config: PeftConfig) -> bool:
    """Whether a fresh adapter of this kind leaves the base's answers as they are."""
    return not config.is_prompt_learning and getattr(config, "init_lora_weights", True) is not False


def refuse_first_loss(
    loss: float, vocabulary: int, untrained_base: Literal["refuse", "allow"]
) -> None:
    """Judge the base by the loss (nats per token) of the first step, before anything was learned.

    Raises: StageFailed when it is worse than a base of random weights, and, unless allowed, when it
    is no better than one.
    """
    guessing = math.log(vocabulary)
    said = (
        f"The first step's loss is {loss:.1f} nats per token; guessing among all {vocabulary:,} tokens "
        f"costs {guessing:.1f}."
    )
    if loss > ABSURD_FIRST_LOSS * guessing:
        raise StageFailed(
            f"{said} The base model's weights are broken, do not fit its configuration, or its "
            "tokenizer belongs to another model. Check the base with `loraline check`, or try "
            "training.dtype: float32."
        )
    if untrained_base == "refuse" and loss > NEAR_GUESSING * guessing:
        raise StageFailed(
            f"{said} The base model knows nothing of these rows: its weights were not loaded (names "
            "in its safetensors files that its config.json does not fit), they are random, or its "
            "tokenizer belongs to another model. Name another `base.model`, or, where random weights "
            "are meant, write `training.guards.untrained_base: allow`."
        )


def finite(tensor: torch.Tensor) -> bool:
    """Whether no element is NaN or infinite."""
    return bool(torch.isfinite(tensor.detach()).all())

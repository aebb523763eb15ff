"""TRL's SFTTrainer with batches of token ids, checkpoints that can be trusted, and events."""

import math
import threading
import time
from pathlib import Path
from typing import Any

import torch
from peft import PromptLearningConfig
from transformers import TrainerCallback
from trl import SFTTrainer

from tasks.errors import StageFailed
from tasks.training import checkpoints, losses
from tasks.training.batches import RowOrder
from tasks.training.collators import NO_LOSS, NUM_TOKENS, LineCollator
from tasks.training.kernels.install import Kernels
from tasks.training.kernels.proof import proved_kernels
from tasks.worker import emit

ABSURD_FIRST_LOSS = 2.0
"""In units of ln(vocabulary), the loss of guessing: beyond it the weights or the kernels are broken."""
SECONDS_BETWEEN_SIGNS = 20.0


class StopAtStep(TrainerCallback):
    """When asked to stop, let the running step end, write a checkpoint and leave the loop."""

    def __init__(self, requested: threading.Event) -> None:
        self._requested = requested

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called by the trainer after each optimizer step."""
        if self._requested.is_set():
            control.should_save = True
            control.should_training_stop = True


class SignOfLife(TrainerCallback):
    """Tells the parent that work goes on, however rarely steps are logged and however long one takes."""

    def __init__(self) -> None:
        self._told_at = time.monotonic()

    def _tell(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if time.monotonic() - self._told_at >= SECONDS_BETWEEN_SIGNS:
            self._told_at = time.monotonic()
            emit("alive", step=state.global_step)

    on_substep_end = _tell
    on_step_end = _tell
    on_prediction_step = _tell


class AdapterTrainer(SFTTrainer):
    """The engine. What differs from TRL's trainer is said at each method."""

    _total_train_tokens: int

    def __init__(
        self,
        *,
        strategy: str,
        checkpoint_limit: int | None,
        lengths: list[int],
        rows_together: int,
        inference_attention: str,
        **options: Any,
    ) -> None:
        self._inference_attention = inference_attention
        self._rows_together = rows_together
        self._kernels: Kernels | None = None
        self._strategy = strategy
        self._checkpoint_limit = checkpoint_limit
        self._lengths = lengths
        super().__init__(**options)
        self._answers_only = (
            # On a GPU, TRL's own kernel skips the positions without loss.
            self.args.device.type == "cpu"
            and self.args.world_size == 1
            and self.args.loss_type == "nll"
            and self.args.label_smoothing_factor == 0
            and not self.aux_loss_enabled
            # Virtual tokens in front would shift every position.
            and not isinstance(self.model.active_peft_config, PromptLearningConfig)
        )
        self._counted_tokens = 0
        self._counted_at = time.monotonic()
        self._began = (0, self._counted_at)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Mean negative log-likelihood (nats) of the labelled tokens.

        On a CPU only the positions with a label go through the output head: TRL multiplies all of
        them there, and with the prompts' share of a batch that is most of the head's work.
        """
        packed_tokens = inputs.pop(NUM_TOKENS, None)
        if return_outputs or not self._answers_only:
            before = self._total_train_tokens
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            if packed_tokens is not None:
                # Without an attention mask TRL counts the positions of one row, padding included.
                self._total_train_tokens = before + int(packed_tokens)
                self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
            return loss
        if self._kernels is not None:
            total = losses.sum_over_line(self._kernels, inputs)
        else:
            head = self.accelerator.unwrap_model(model).get_output_embeddings()
            total = losses.sum_over_answers(model, head, inputs)
        if self.model.training:
            counted = inputs["attention_mask"].sum() if packed_tokens is None else packed_tokens
            self._total_train_tokens += int(counted)
        labelled = (inputs["labels"][:, 1:] != NO_LOSS).sum()
        return (total / (labelled if num_items_in_batch is None else num_items_in_batch)).float()

    def use_kernels(self) -> bool:
        """Compute with our own kernels where that is worth it and proved equal; whether they are used.

        They are made for a CPU: on a GPU attention and head have kernels of the libraries'.
        """
        head = self.model.get_output_embeddings()
        if not self._answers_only or type(head) is not torch.nn.Linear or head.weight.requires_grad:
            return False
        self._kernels = proved_kernels(self.model, self.train_dataset, self.accelerator.autocast)
        if self._kernels is not None:
            self.data_collator = LineCollator()
        return self._kernels is not None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Keep the trainer's own record, refuse numbers that are none, and tell the parent process."""
        if "loss" not in logs:
            super().log(logs, start_time)
            return
        step, now = self.state.global_step, time.monotonic()
        tokens = self._total_train_tokens - self._counted_tokens
        # Over the whole run: batches differ in length, and one of them foretells little.
        first_step, began = self._began
        seconds_per_step = (now - began) / max(1, step - first_step)
        logs["tokens_per_second"] = tokens / max(1e-9, now - self._counted_at)
        self._counted_tokens, self._counted_at = self._total_train_tokens, now
        super().log(logs, start_time)
        self._refuse_divergence(logs)
        if self.is_world_process_zero():
            emit(
                "step",
                step=step,
                total_steps=self.state.max_steps,
                loss=logs["loss"],
                learning_rate=logs.get("learning_rate"),
                grad_norm=logs.get("grad_norm"),
                tokens_per_second=logs["tokens_per_second"],
                eta_seconds=(self.state.max_steps - step) * seconds_per_step,
            )

    def as_loaded(self) -> Any:
        """The trained model as anybody will load it.

        Without accelerate's wrapper, which computes in another format, and with the attention that
        inference takes.
        """
        if self._kernels is not None:
            self._kernels.remove()
            self._kernels = None
        model = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        model.get_base_model().set_attn_implementation(self._inference_attention)
        return model

    def start_clock(self) -> None:
        """Count speed and time left from here: loading and a resume must not slow the first figure."""
        self._counted_at = time.monotonic()
        self._began = (self.state.global_step, self._counted_at)

    def _refuse_divergence(self, logs: dict[str, float]) -> None:
        step, loss, norm = self.state.global_step, logs["loss"], logs.get("grad_norm", 0.0)
        rate = self.args.learning_rate
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise StageFailed(
                f"Training diverged: at step {step} of {self.state.max_steps} the loss is {loss} and "
                f"the gradient norm {norm}. The ways out: a lower "
                f"training.training_config.learning_rate (now {rate:g}), more warmup_steps, "
                "training.dtype: float32, or other data: `loraline check` shows rows with the "
                "tokens that are trained."
            )
        guessing = math.log(self.model.config.get_text_config().vocab_size)
        if step == 1 and loss > ABSURD_FIRST_LOSS * guessing:
            raise StageFailed(
                f"The first step's loss is {loss:.1f} nats per token; guessing among all tokens "
                f"costs {guessing:.1f}. The base model's weights are broken, do not fit its "
                "configuration, or its tokenizer belongs to another model. "
                "Check the base with `loraline check`, or try training.dtype: float32."
            )

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self._strategy in ("random", "group_by_length"):
            return RowOrder(
                self._lengths,
                self._rows_together,
                self.args.seed,
                grouped=self._strategy == "group_by_length",
            )
        return super()._get_train_sampler(train_dataset)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write, declare complete, and only then remove older ones. Not numbers write no checkpoint."""
        broken = [n for n, p in model.named_parameters() if p.requires_grad and not finite(p)]
        if broken:
            raise StageFailed(
                f"Training diverged by step {self.state.global_step}: {broken[0]} and "
                f"{len(broken) - 1} more adapter tensors hold numbers that are not finite. Lower "
                f"training.training_config.learning_rate (now {self.args.learning_rate:g}), or set "
                "training.dtype: float32."
            )
        # Past TRL's method, which writes a model card into every checkpoint.
        super(SFTTrainer, self)._save_checkpoint(model, trial)
        if self.args.should_save:
            folder = Path(self.args.output_dir)
            checkpoints.mark_complete(folder / f"checkpoint-{self.state.global_step}")
            checkpoints.keep_newest(folder, self._checkpoint_limit)
            emit("saved", step=self.state.global_step)


def finite(tensor: torch.Tensor) -> bool:
    """Whether no element is NaN or infinite."""
    return bool(torch.isfinite(tensor.detach()).all())

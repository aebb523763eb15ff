"""TRL's SFTTrainer with batches of token ids, checkpoints that can be trusted, and events."""

import threading
import time
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.data_loader import DataLoaderShard
from peft import PromptLearningConfig
from transformers import Trainer, TrainerCallback
from trl import SFTTrainer

from tasks.errors import StageFailed
from tasks.training import checkpoints, disk, losses, ranks
from tasks.training.batches import RowOrder
from tasks.training.collators import NO_LOSS, NUM_TOKENS, LineCollator
from tasks.training.guards import WatchedNumbers, refuse_first_loss, starts_as_base
from tasks.training.kernels.install import Kernels
from tasks.training.kernels.proof import proved_kernels
from tasks.training.loraplus import speed_up_lora_b
from tasks.training.peft_needs import PeftNeeds
from tasks.training.resuming import prove_checkpoint
from tasks.training.sharing import RowsOrNothing, Share, SharedOrder
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


class MethodTrainer(WatchedNumbers, Trainer):
    """What every method's trainer shares, in front of TRL's class of that method: row order, events, guards,
    checkpoints. What differs from the libraries' is said at each method."""

    _total_train_tokens: int
    needs: PeftNeeds
    """Set as soon as the adapter is on."""

    def __init__(
        self,
        *,
        strategy: str,
        checkpoint_limit: int | None,
        lengths: list[int],
        inputs: dict[str, Any],
        share: Share,
        together: int,
        inference_attention: str,
        loraplus_lr_ratio: float | None = None,
        untrained_base: Literal["refuse", "allow"],
        **options: Any,
    ) -> None:
        self._untrained_base = untrained_base
        self._inputs = inputs
        self._proved = False
        self._share = share
        self._together = together
        self._inference_attention = inference_attention
        self._loraplus_lr_ratio = loraplus_lr_ratio
        self._kernels: Kernels | None = None
        self._strategy = strategy
        self._checkpoint_limit = checkpoint_limit
        self._lengths = lengths
        super().__init__(**options)
        self._counted_tokens = 0
        self._counted_at = time.monotonic()
        self._began = (0, self._counted_at)

    def use_kernels(self) -> bool:
        """Compute with our own kernels where there are some for this method; whether they are used."""
        return False

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
        self.refuse_divergence(self.numbers.settle())
        if step == 1:
            self.judge_base(logs["loss"])
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

    @property
    def row_lengths(self) -> list[int]:
        """Tokens of each row of the training data."""
        return self._lengths

    def start_clock(self) -> None:
        """Count speed and time left from here: loading and a resume must not slow the first figure."""
        self._counted_at = time.monotonic()
        self._began = (self.state.global_step, self._counted_at)

    def judge_base(self, first_loss: float) -> None:
        """Told the loss of the first step; most methods' loss says nothing of the base."""

    def create_optimizer(self, model: Any = None) -> Any:
        """With LoRA+ where the recipe names its ratio."""
        made = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if made and self._loraplus_lr_ratio is not None:
            speed_up_lora_b(optimizer, model or self.model, self._loraplus_lr_ratio)
        return optimizer

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """The adapter, and what its method knows besides."""
        with self.needs.checkpointing():
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.needs.load(Path(resume_from_checkpoint))

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self._strategy in ("random", "group_by_length"):
            return RowOrder(
                self._lengths,
                self._share.batch,
                self.args.seed,
                grouped=self._strategy == "group_by_length",
            )
        return super()._get_train_sampler(train_dataset)

    def get_train_dataloader(self) -> Any:
        """Of several processes each reads its own share of the rows of an optimizer step."""
        if self._share.processes == 1:
            return super().get_train_dataloader()
        order = SharedOrder(
            self._get_train_sampler(),
            self._share,
            self._together,
            drop_last=self.args.dataloader_drop_last,
        )
        return DataLoaderShard(
            RowsOrNothing(self.train_dataset),
            device=self.args.device,
            batch_sampler=order,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
        )

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write, declare complete, and only then remove older ones. Not numbers write no checkpoint."""
        self.refuse_divergence(self.numbers.settle())
        broken = [n for n, p in model.named_parameters() if p.requires_grad and not finite(p)]
        if broken:
            raise StageFailed(
                f"Training diverged by step {self.state.global_step}: {broken[0]} and "
                f"{len(broken) - 1} more adapter tensors hold numbers that are not finite. Lower "
                f"training.training_config.learning_rate (now {self.args.learning_rate:g}), or set "
                "training.dtype: float32."
            )
        # Past TRL's method, which writes a model card into every checkpoint.
        folder = Path(self.args.output_dir)
        checkpoint = folder / f"checkpoint-{self.state.global_step}"
        with disk.whole_or_nothing(checkpoint):
            with self.needs.checkpointing():
                Trainer._save_checkpoint(self, model, trial)
            # Each process has written its random state.
            ranks.wait_for_all()
            if self.args.should_save:
                self.needs.save(checkpoint)
                checkpoints.mark_complete(checkpoint, self._inputs)
        if self.args.should_save:
            if not self._proved:
                self._proved = True
                prove_checkpoint(checkpoint, self)
            checkpoints.keep_newest(folder, self._checkpoint_limit)
            emit("saved", step=self.state.global_step)


class AdapterTrainer(MethodTrainer, SFTTrainer):
    """Mean negative log-likelihood of the labelled tokens: conversations, and texts."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._answers_only = (
            # On a GPU, TRL's own kernel skips the positions without loss.
            self.args.device.type == "cpu"
            and self.args.loss_type == "nll"
            and self.args.label_smoothing_factor == 0
            and not self.aux_loss_enabled
            # Virtual tokens in front would shift every position.
            and not isinstance(self.model.active_peft_config, PromptLearningConfig)
        )

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
        if (kernels := self._kernels) is not None:
            total = ranks.inside(model, lambda: losses.sum_over_line(kernels, inputs))
        else:
            head = self.accelerator.unwrap_model(model).get_output_embeddings()
            total = losses.sum_over_answers(model, head, inputs)
        if self.model.training:
            counted = inputs["attention_mask"].sum() if packed_tokens is None else packed_tokens
            # A row without loss only stands in for one (`sharing.NOTHING`).
            counted = counted * (inputs["labels"] != NO_LOSS).any()
            self._total_train_tokens += int(self.accelerator.reduce(counted))
        if num_items_in_batch is not None:
            # Of all processes, whose gradients are averaged and not summed.
            return (total * self._share.processes / num_items_in_batch).float()
        return (total / (inputs["labels"][:, 1:] != NO_LOSS).sum().clamp(min=1)).float()

    def judge_base(self, first_loss: float) -> None:
        """Raises: StageFailed for a base no better than guessing, unless the recipe allows it."""
        if starts_as_base(self.model.active_peft_config):
            vocabulary = self.model.config.get_text_config().vocab_size
            refuse_first_loss(first_loss, vocabulary, self._untrained_base)

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


def finite(tensor: torch.Tensor) -> bool:
    """Whether no element is NaN or infinite."""
    return bool(torch.isfinite(tensor.detach()).all())

"""What the trainers of all methods share: row order, events, guards, and checkpoints that can be trusted."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.data_loader import DataLoaderShard
from transformers import Trainer
from transformers.trainer_pt_utils import safe_globals

from tasks.errors import StageFailed
from tasks.training import checkpoints, disk, ranks, sharded
from tasks.training.batches import RowOrder
from tasks.training.guards import WatchedNumbers, finite
from tasks.training.job import StartResult
from tasks.training.kernels.install import Kernels
from tasks.training.loraplus import speed_up_lora_b
from tasks.training.peft_needs import PeftNeeds
from tasks.training.resuming import prove_checkpoint
from tasks.training.sharing import RowsOrNothing, Share, SharedOrder
from tasks.worker import emit


class MethodTrainer(WatchedNumbers, Trainer):
    """What every method's trainer shares, in front of TRL's class of that method: row order, events, guards,
    checkpoints. What differs from the libraries' is said at each method."""

    _total_train_tokens: int
    written: dict[str, Any]
    """Of a sharded training what the last checkpoint holds: `adapter` and `optimizer`, whole."""
    needs: PeftNeeds
    """Set as soon as the adapter is on."""
    started_from: StartResult | None = None
    """The version whose adapter it goes on with."""
    attention_said: str = ""
    """Which attention trains, where that was chosen."""
    kernels_said: str = ""
    """Which kernels compute, or why not ours; empty where there are none for this method."""

    def __init__(
        self,
        *,
        strategy: str,
        checkpoint_limit: int | None,
        lengths: list[int],
        inputs: dict[str, Any],
        made_with: dict[str, Any],
        share: Share,
        together: int,
        order_batch: int,
        inference_attention: str,
        loraplus_lr_ratio: float | None = None,
        untrained_base: Literal["refuse", "allow"],
        **options: Any,
    ) -> None:
        self._untrained_base = untrained_base
        self._inputs = inputs
        self._made_with = made_with
        self._proved = False
        self.beside_checkpoints: list[Callable[[Path], None]] = []
        """What writes into each checkpoint before it is declared complete."""
        self._share = share
        self._together = together
        self._order_batch = order_batch
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

    @property
    def in_parts(self) -> bool:
        """Whether each process may hold a part of the model only."""
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The adapter, whole also where each process holds a part of it."""
        if not self.in_parts:
            super().save_model(output_dir, _internal_call)
            return
        assert output_dir is not None, "only checkpoints are saved by the trainer"
        self.written = {"adapter": sharded.adapter_state(self.model)}
        if self.args.should_save:
            sharded.save_adapter_state(self.model, self.written["adapter"], Path(output_dir))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        self.written["optimizer"] = sharded.optimizer_state(self.model, self.optimizer)
        if self.args.should_save:
            torch.save(self.written["optimizer"], Path(output_dir) / "optimizer.pt")
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / "scheduler.pt")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not self.is_fsdp_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        folder = Path(checkpoint)
        with safe_globals():
            state = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
            steps = torch.load(folder / "scheduler.pt", map_location="cpu", weights_only=True)
        sharded.load_optimizer_state(self.model, self.optimizer, state)
        self.lr_scheduler.load_state_dict(steps)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """The adapter, and what its method knows besides."""
        if self.is_fsdp_enabled:
            sharded.load_adapter_state(model or self.model, Path(resume_from_checkpoint))
            return
        with self.needs.checkpointing():
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.needs.load(Path(resume_from_checkpoint))

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self._strategy in ("random", "group_by_length"):
            return RowOrder(
                self._lengths,
                self._order_batch,
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
                for write in self.beside_checkpoints:
                    write(checkpoint)
                checkpoints.mark_complete(checkpoint, self._inputs, self._made_with)
        if self.args.should_save:
            if not self._proved:
                self._proved = True
                prove_checkpoint(checkpoint, self)
            checkpoints.keep_newest(folder, self._checkpoint_limit)
            emit("saved", step=self.state.global_step)

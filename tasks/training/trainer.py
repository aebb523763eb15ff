"""TRL's SFTTrainer with a loss at the labelled tokens alone, and our kernels where they are proved."""

from functools import partial
from typing import Any

import torch
from peft import PromptLearningConfig
from trl import SFTTrainer

from tasks.training import losses, ranks
from tasks.training.batches import LINE_TOKENS
from tasks.training.collators import NO_LOSS, NUM_TOKENS, LineCollator
from tasks.training.guards import refuse_first_loss, starts_as_base
from tasks.training.kernels.install import Kernels
from tasks.training.kernels.proof import proved_kernels
from tasks.training.line_parts import line_parts
from tasks.training.method_trainer import MethodTrainer
from tasks.training.side_by_side import AT_ONCE, SideBySide


class AdapterTrainer(MethodTrainer, SFTTrainer):
    """Mean negative log-likelihood of the labelled tokens: conversations, and texts."""

    _beside: SideBySide | None = None

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

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Any:
        """A long line goes through in parts: the loss is a sum, and memory follows the longest part, or pair.

        Several processes would wait for each other at every part, of which each has its own number.
        """
        if self._kernels is None or num_items_in_batch is None or self._share.processes > 1:
            return super().training_step(model, inputs, num_items_in_batch)
        beside = self._beside
        parts = list(line_parts(inputs, LINE_TOKENS // AT_ONCE, pairs=beside is not None))
        largest = sorted(part["input_ids"].numel() for part in parts)[-AT_ONCE:]
        # Not two examples that are long themselves: each has what a whole line has in memory.
        if beside is not None and len(parts) > 1 and sum(largest) <= 1.5 * LINE_TOKENS:
            return self._step_beside(beside, self._kernels, parts, num_items_in_batch)
        loss = torch.zeros(())
        for part in parts:
            loss += super().training_step(model, part, num_items_in_batch)
        return loss

    def _step_beside(
        self, beside: SideBySide, kernels: Kernels, parts: list[dict[str, Any]], items: Any
    ) -> Any:
        """As the trainer's own `training_step`, for all parts."""
        self.model.train()
        for part in parts:
            self._total_train_tokens += int(part.pop(NUM_TOKENS))

        def loss_of(part: dict[str, Any]) -> torch.Tensor:
            with self.compute_loss_context_manager():
                return (losses.sum_over_line(kernels, part) / items).float()

        loss = beside.backward([partial(loss_of, part) for part in parts])
        self.numbers.add(loss)
        return loss

    def judge_base(self, first_loss: float) -> None:
        """Raises: StageFailed for a base no better than guessing, unless the recipe allows it."""
        if starts_as_base(self.model.active_peft_config):
            vocabulary = self.model.config.get_text_config().vocab_size
            refuse_first_loss(first_loss, vocabulary, self._untrained_base)

    def use_kernels(self) -> bool:
        """Compute with our own kernels where that is worth it and proved equal; whether they are used.

        They are made for a CPU: on a GPU attention and head have kernels of the libraries'.
        """
        if reason := self._reason_against_kernels():
            self.kernels_said = f"Computing with the libraries' kernels: {reason}."
            return False
        self._kernels = proved_kernels(
            self.model, self.train_dataset, self.accelerator.autocast, tell=self._say
        )
        if self._kernels is not None:
            self.data_collator = LineCollator()
            if self._can_compute_beside():
                trained = [p for p in self.model.parameters() if p.requires_grad]
                self._beside = SideBySide(trained, torch.get_num_threads())
                self.kernels_said = (
                    f"{self.kernels_said.removesuffix('.')}, {AT_ONCE} parts of a line at once."
                )
        return self._kernels is not None

    def _can_compute_beside(self) -> bool:
        """Whether two threads may be inside the model at once, and the step is a plain one."""
        # Those update weights within the backward pass, or are told of each step.
        optimizers = ("lomo", "layerwise", "schedule_free")
        # Those keep the angles of the longest row that they saw last.
        rotations = ("dynamic", "longrope")
        kinds = {str(getattr(module, "rope_type", "")) for module in self.model.modules()}
        return (
            self._share.processes == 1
            and torch.get_num_threads() % AT_ONCE == 0
            # What is computed again in the backward pass asks for the random state, which is one for all.
            and not self.args.activation_checkpointing
            and not self.args.activation_offloading
            and self.accelerator.scaler is None
            and not any(name in self.args.optim for name in optimizers)
            and not any(name in kind for name in rotations for kind in kinds)
        )

    def _say(self, words: str) -> None:
        self.kernels_said = words

    def _reason_against_kernels(self) -> str:
        if self.args.device.type != "cpu":
            return "ours are made for a CPU"
        if not self._answers_only:
            return (
                "ours compute the plain loss of answers alone, and this training has another (loss_type, "
                "label_smoothing_factor, a router's loss, virtual tokens)"
            )
        if any(
            isinstance(module, torch.nn.Dropout) and module.p > 0 for module in self.model.modules()
        ):
            return (
                "with dropout (training.peft_config.lora_dropout) no two draws are equal, and ours are "
                "used only where they are seen to compute the same"
            )
        if self.args.neftune_noise_alpha:
            return (
                "NEFTune's noise (neftune_noise_alpha) is scaled by a row's length, and ours compute all rows "
                "in one line"
            )
        head = self.model.get_output_embeddings()
        if type(head) is not torch.nn.Linear:
            return f"the output head is a {type(head).__name__}"
        return "the output head is trained" if head.weight.requires_grad else ""

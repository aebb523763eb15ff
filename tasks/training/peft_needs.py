"""What some PEFT methods need of the training besides their configuration, gathered in one place."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from tasks.errors import UserError
from tasks.training import adalora, data_start
from tasks.training.fused import TargetSlices
from tasks.training.plain_lora import StartingPoint, takes_from_the_base
from tasks.training.slicing import TrainedRows, untrained_parameters


def completed(values: dict[str, Any], steps: int) -> dict[str, Any]:
    """A `peft_config` with what follows from the number of optimizer steps."""
    if values.get("peft_type") == "ADALORA" and steps > 0:
        return adalora.schedule(values, steps)
    return values


def refuse_what_this_machine_lacks(config: Any) -> None:
    """Raises: UserError for LoftQ without a GPU."""
    if getattr(config, "init_lora_weights", None) == "loftq" and not torch.cuda.is_available():
        raise UserError(
            "training.peft_config.init_lora_weights is loftq, which PEFT computes on an NVIDIA GPU "
            "only, and there is none. Take `pissa`, or `training.quantization: nf4` with "
            "`init_lora_weights: true`."
        )


def before_the_adapter(model: Any, config: Any, rows: Any, seed: int) -> None:
    """To be called with the plain base. Raises: UserError for rows that the method cannot start from."""
    if not data_start.needs_rows(config):
        return
    start = config.init_lora_weights
    if "input_ids" not in rows.column_names:
        raise UserError(
            f"training.peft_config.init_lora_weights: {start} starts from rows with one answer each "
            "(training.method sft or pretraining). Take `true`, `olora` or `pissa`."
        )
    if start != "eva" and getattr(model, "is_quantized", False):
        raise UserError(
            f"training.peft_config.init_lora_weights: {start} decomposes the base's weights, which "
            "training.quantization rounds. Set `quantization: none`, or take `eva` or `true`."
        )
    data_start.look_at_base(model, config, rows, seed)


class PeftNeeds:
    """Of one trainer whose adapter was just put on, before anything else touches it."""

    def __init__(
        self, trainer: Trainer, *, rows: Any, seed: int, slices: TargetSlices, base_name: str
    ) -> None:
        model = trainer.model
        config = model.active_peft_config
        if getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False):
            _in_float32(model)
        data_start.look_at_adapter(model, config, rows, seed)
        self.start = StartingPoint(model) if takes_from_the_base(config) else None
        self.untrained = 0
        """Numbers in the adapter's tensors that are kept at zero."""
        self._rows = None
        if slices:
            self.untrained = untrained_parameters(model, slices, base_name)
            self._rows = TrainedRows(model, slices, base_name)
            trainer.add_callback(self._rows)
        self._allocation = None
        if str(config.peft_type.value) == "ADALORA":
            if trainer.args.fp16:
                raise UserError(
                    "AdaLoRA weighs gradients, which float16 scales. Write training.dtype: bfloat16 or "
                    "float32."
                )
            self._allocation = adalora.RankAllocation(model)
            trainer.add_callback(self._allocation)

    def checkpointing(self) -> Any:
        """To be held while PEFT writes or reads a checkpoint."""
        return self._allocation.at_full_rank() if self._allocation else nullcontext()

    def save(self, checkpoint: Path) -> None:
        """Write beside a checkpoint what PEFT does not, before it is declared complete."""
        if self._allocation:
            self._allocation.save(checkpoint)

    def load(self, checkpoint: Path) -> None:
        """Take up what `save` wrote."""
        if self._allocation:
            self._allocation.load(checkpoint)

    def check(self) -> None:
        """Raises: StageFailed when the trained adapter is not what was asked for."""
        if self._rows is not None:
            self._rows.check()


def _in_float32(model: Any) -> None:
    # TRL casts the adapter on a quantized base to bfloat16, whose steps are as coarse as late updates
    # are small; and whoever loads the adapter computes with it in float32.
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()

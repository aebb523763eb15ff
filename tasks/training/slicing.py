"""Train only some rows of a fused projection: the others of `lora_B` are zero and stay exactly zero.

The delta of a LoRA is B A, so a row of B that is zero is a row of the base that is unchanged, also
after merging. The adapter keeps PEFT's ordinary form; A is shared by the rows that are trained.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from transformers import TrainerCallback

from tasks.errors import StageFailed, UserError
from tasks.training.fused import TargetSlices, blocks_of, slices_problem


class TrainedRows(TrainerCallback):
    """Keeps the other rows of every sliced `lora_B` at zero, whatever optimizer and decay do.

    Their gradients are zeroed before they are accumulated, so that neither the norm they are clipped
    by nor an optimizer's moments know of them; the rows themselves once more after each step, for
    optimizers that mix rows.

    Raises: UserError where a row would have to change that is not to be trained.
    """

    def __init__(self, model: Any, slices: TargetSlices, name: str) -> None:
        self._kept: list[tuple[str, torch.nn.Parameter, torch.Tensor]] = []
        _refuse_what_does_not_fit(model, slices, name)
        for module, up, rows in _untrained_rows(model, slices):
            if up[rows].any():
                raise UserError(
                    f"training.target_slices: the adapter of {module} does not start at zero, so "
                    "rows outside the slices would differ from the base. Start from "
                    "`init_lora_weights: true`, or from an adapter trained with the same slices."
                )
            up.register_hook(_without(rows))
            self._kept.append((module, up, rows))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called by the trainer after each optimizer step and before a checkpoint."""
        with torch.no_grad():
            for _module, up, rows in self._kept:
                up.index_fill_(0, rows, 0.0)

    def check(self) -> None:
        """Raises: StageFailed when a row outside the slices is not exactly zero."""
        for module, up, rows in self._kept:
            if bool(up.detach()[rows].any()):
                raise StageFailed(
                    f"Rows of {module} outside training.target_slices were changed by the training. "
                    "Nothing is published; please report this with the recipe."
                )


def untrained_parameters(model: Any, slices: TargetSlices, name: str) -> int:
    """Numbers in the adapter's tensors that the slices keep at zero; shapes suffice, on any device.

    Raises: UserError for slices that the model or its adapter does not have.
    """
    if not slices:
        # Not every adapter has modules of its own to name.
        return 0
    _refuse_what_does_not_fit(model, slices, name)
    return sum(len(rows) * up.shape[1] for _, up, rows in _untrained_rows(model, slices))


def _untrained_rows(
    model: Any, slices: TargetSlices
) -> Iterator[tuple[str, torch.nn.Parameter, torch.Tensor]]:
    """Full name, `lora_B` (out, rank) and the rows that are not trained, of each sliced module."""
    config = model.get_base_model().config.to_dict()
    for module, layer in model.get_base_model().named_modules():
        kind = module.rsplit(".", 1)[-1]
        if kind not in slices or not isinstance(layer, LoraLayer):
            continue
        blocks = blocks_of(config, kind)
        assert blocks is not None
        rows = [row for name, block in blocks.items() if name not in slices[kind] for row in block]
        for adapter, up in layer.lora_B.items():
            variant = layer.lora_variant.get(adapter)
            if variant is not None or layer.lora_bias.get(adapter):
                what = type(variant).__name__ if variant else "lora_bias"
                raise UserError(
                    f"training.target_slices: the adapter of {module} is computed with {what}, which "
                    "changes rows beyond B A. Take plain LoRA (or rsLoRA)."
                )
            size = max(block.stop for block in blocks.values())
            if up.weight.shape[0] != size:
                raise UserError(
                    f"training.target_slices: {module} has {up.weight.shape[0]} rows, and the config "
                    f"of the base tells of {size}. The blocks cannot be told apart; remove `{kind}`."
                )
            yield module, up.weight, torch.tensor(rows, dtype=torch.long, device=up.weight.device)


def _refuse_what_does_not_fit(model: Any, slices: TargetSlices, name: str) -> None:
    config = model.get_base_model().config.to_dict()
    problem = slices_problem(slices, config, model.targeted_module_names, name)
    if problem:
        raise UserError(f"training.target_slices: {problem}")


def _without(rows: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    def masked(gradient: torch.Tensor) -> torch.Tensor:
        # Filled, not multiplied: infinity times zero is not a number.
        return gradient.index_fill(0, rows.to(gradient.device), 0.0)

    return masked

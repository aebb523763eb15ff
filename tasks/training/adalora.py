"""AdaLoRA's share of the training loop: spread the ranks after every step, keep directions orthogonal.

PEFT leaves both to the loop: the allocation is a call after each optimizer step, and the penalty is
added only by models that return a loss of their own.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import TrainerCallback

_FILE = "adalora.safetensors"
_AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")
WARM_UP_SHARE, FINAL_SHARE = 0.1, 0.25
"""Of all steps: before ranks are taken away, and after the last one was."""


def schedule(values: dict[str, Any], steps: int) -> dict[str, Any]:
    """A `peft_config` of AdaLoRA with the schedule that these steps give, where the recipe names none."""
    steps = int(values.get("total_step") or steps)
    return {
        "tinit": int(steps * WARM_UP_SHARE),
        "tfinal": int(steps * FINAL_SHARE),
        **values,
        "total_step": steps,
    }


class RankAllocation(TrainerCallback):
    """Calls PEFT's allocator, and carries what it has seen through checkpoints."""

    def __init__(self, model: Any) -> None:
        self._tuner = model.base_model
        self._config = model.peft_config[self._tuner.trainable_adapter_name]

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The gradient of the penalty, as if it stood in the loss; the logged loss stays a likelihood."""
        directions = [
            (name, p)
            for name, p in self._tuner.model.named_parameters()
            if p.requires_grad and ("lora_A" in name or "lora_B" in name)
        ]
        weight = self._config.orth_reg_weight / max(1, len(directions))
        with torch.enable_grad():
            for name, p in directions:
                gram = p @ p.T if "lora_A" in name else p.T @ p
                eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
                (gradient,) = torch.autograd.grad(weight * (gram - eye).norm(), p)
                p.grad = gradient if p.grad is None else p.grad.add_(gradient)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """While the gradients are still there: importance is weight times gradient."""
        # Steps count from one, so that the last allocation is made even where `tfinal` is 0.
        self._tuner.update_and_allocate(state.global_step + 1)

    @contextmanager
    def at_full_rank(self) -> Iterator[None]:
        """Let PEFT write and read every direction: a masked one may come back after a resume."""
        pattern, self._config.rank_pattern = self._config.rank_pattern, None
        try:
            yield
        finally:
            self._config.rank_pattern = pattern

    def save(self, folder: Path) -> None:
        """Write the allocator's averages beside a checkpoint."""
        allocator = self._tuner.rankallocator
        tensors = {
            f"{kind}/{name}": tensor.detach().contiguous().cpu()
            for kind in _AVERAGES
            for name, tensor in getattr(allocator, kind).items()
        }
        pattern = json.dumps(self._config.rank_pattern)
        save_file(tensors, folder / _FILE, metadata={"rank_pattern": pattern})

    def load(self, folder: Path) -> None:
        """Take the averages up again where a checkpoint left them."""
        allocator = self._tuner.rankallocator
        device = next(self._tuner.parameters()).device
        with safe_open(folder / _FILE, framework="pt") as stream:
            self._config.rank_pattern = json.loads(stream.metadata()["rank_pattern"])
            for key in stream.keys():  # noqa: SIM118 - not a dictionary
                kind, name = key.split("/", 1)
                getattr(allocator, kind)[name] = stream.get_tensor(key).to(device)

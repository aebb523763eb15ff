"""One of two processes that train a small model in parts: `fully_sharded.py FOLDER`, under torchrun.

FOLDER holds `base` and `steps.json` (batches of token ids). Written: `adapter/`, and `trained.json`:
`losses`, norms of `gradients`, and `same` (whether a second model, filled from the saved parts, answers alike).
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import distributed
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from tasks.training import sharded


def in_parts(folder: Path, seed: int) -> Any:
    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear"))
    for layer in base.model.layers:
        fully_shard(layer)
    fully_shard(model)
    return model


def main(folder: Path) -> None:
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    assert distributed.get_world_size() == 2
    model = in_parts(folder, seed=0)
    assert isinstance(model, FSDPModule)
    assert isinstance(model.get_base_model().model.layers[0], FSDPModule)
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor), name
        own, rows = parameter.to_local(), parameter.shape[0]
        # Rows are divided evenly, and none of these shapes is odd.
        assert own.shape == (rows // 2, *parameter.shape[1:]), name
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    losses, gradients = [], []
    for batch in json.loads((folder / "steps.json").read_text()):
        # Each process reads half of the rows.
        ids = torch.tensor(batch[rank::2])
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        mean = loss.detach().clone()
        distributed.all_reduce(mean, distributed.ReduceOp.AVG)
        losses.append(float(mean))
        whole = [sharded.whole(p.grad) for p in model.parameters() if p.grad is not None]
        gradients.append([float(gradient.norm()) for gradient in whole])
        optimizer.step()
        optimizer.zero_grad()
    checkpoint.save(get_model_state_dict(model), checkpoint_id=folder / "parts")
    other = in_parts(folder, seed=1)
    parts = get_model_state_dict(other)
    checkpoint.load(parts, checkpoint_id=folder / "parts")
    set_model_state_dict(other, parts)
    with torch.no_grad():
        ids = torch.tensor([[5, 6, 7, 8]])
        same = torch.equal(model(input_ids=ids).logits, other(input_ids=ids).logits)
    state = sharded.adapter_state(model)
    if rank == 0:
        sharded.save_adapter_state(model, state, folder / "adapter")
        (folder / "trained.json").write_text(
            json.dumps({"losses": losses, "gradients": gradients, "same": same})
        )
    distributed.barrier()
    sharded.load_adapter_state(other, folder / "adapter")
    again = sharded.adapter_state(other)
    assert all(torch.equal(state[name], again[name]) for name in state)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

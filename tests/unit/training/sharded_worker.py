"""The training worker with FSDP2 on a CPU: accelerate, which shards over GPUs only, is told that it may.

Everything else is what a machine with GPUs runs: its launch file, its wrapping, its collectives (over
gloo), its checkpoints.
"""

import sys
from pathlib import Path
from typing import Any

from accelerate import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainerCallback

from tasks.training import sharded, worker
from tasks.training.job import TrainingJob
from tasks.worker import emit

create = Trainer.create_accelerator_and_postprocess


def create_as_on_gpus(self: Any) -> None:
    create(self)
    state = self.accelerator.state
    assert state.distributed_type == DistributedType.MULTI_CPU
    state.distributed_type = DistributedType.FSDP
    # From what the launcher read in our file.
    state.fsdp_plugin = FullyShardedDataParallelPlugin()
    self.is_fsdp_enabled = True


class TellParts(TrainerCallback):
    """Says which part of the model this process holds when training begins."""

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        parameters = list(model.parameters())
        emit(
            "parts",
            processes=args.world_size,
            sharded=sum(isinstance(p, DTensor) for p in parameters),
            parameters=len(parameters),
            held=sum(p.to_local().numel() for p in parameters),
            numbers=sum(p.numel() for p in parameters),
        )


Trainer.create_accelerator_and_postprocess = create_as_on_gpus
sharded.refuse_without_gpu = lambda sharding: None
build = worker.build_trainer
worker.build_trainer = lambda job, rows, precision, callbacks: build(
    job, rows, precision, [*callbacks, TellParts()]
)
worker.train(TrainingJob.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8")))

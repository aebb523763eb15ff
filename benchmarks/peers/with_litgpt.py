"""litgpt's `finetune_lora` on the job's base and rows; it does not pack, so rows are padded."""

import csv
import shutil
from pathlib import Path
from typing import Any

import torch
from litgpt.args import EvalArgs, TrainArgs
from litgpt.config import Config
from litgpt.data import DataModule
from litgpt.data.base import get_sft_collate_fn
from litgpt.finetune import lora
from litgpt.prompts import Default
from litgpt.scripts.convert_hf_checkpoint import copy_weights_phi
from litgpt.utils import save_config
from peer_work import NO_LOSS, Job, Trained, main
from safetensors.torch import load_file
from torch.utils.data import DataLoader


class Rows(DataModule):
    """The job's rows in their order; within each step by length where `by_length` asks for it."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.prompt_style = Default()
        rows, step = job.rows(), job.rows_per_step
        if job.settings.get("by_length"):
            steps = [rows[at : at + step] for at in range(0, len(rows), step)]
            rows = [row for one in steps for row in sorted(one, key=lambda r: len(r["input_ids"]))]
        self.rows = [
            {
                "input_ids": torch.tensor(row["input_ids"]),
                "labels": torch.tensor(row["labels"]),
                "token_counts": {
                    "raw": len(row["input_ids"]),
                    "raw_plus_prompt_template": len(row["input_ids"]),
                },
            }
            for row in rows
        ]

    def connect(
        self, tokenizer: Any = None, batch_size: int = 1, max_seq_length: Any = None
    ) -> None:
        self.batch_size = batch_size

    def train_dataloader(self) -> Any:
        return DataLoader(
            self.rows, batch_size=self.batch_size, collate_fn=get_sft_collate_fn(pad_id=2)
        )

    def val_dataloader(self) -> Any:
        # litgpt reads some before it begins; outside the clock.
        return DataLoader(self.rows[:1], collate_fn=get_sft_collate_fn(pad_id=2))


def convert(job: Job) -> Path:
    """The base as litgpt reads it: by its own table of names, with the shape of the base."""
    shape, folder = job.shape(), job.folder / "base"
    folder.mkdir()
    config = Config.from_name(
        "Phi-3-mini-4k-instruct",
        n_layer=shape["num_hidden_layers"],
        n_head=shape["num_attention_heads"],
        n_embd=shape["hidden_size"],
        intermediate_size=shape["intermediate_size"],
        vocab_size=shape["vocab_size"],
        padded_vocab_size=shape["vocab_size"],
        # No row is as long as the window; without it no mask is built.
        sliding_window_size=None,
    )
    weights: dict[str, torch.Tensor] = {}
    copy_weights_phi(config, {}, weights, load_file(job.base / "model.safetensors"))
    torch.save(weights, folder / "lit_model.pth")
    save_config(config, folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(job.base / name, folder)
    return folder


def train(job: Job) -> Trained:
    rows, micro = job.rows(), job.settings["micro"]
    steps, accumulation = len(rows) // job.rows_per_step, job.rows_per_step // micro
    for after_the_clock in ("save_hyperparameters", "merge_lora"):
        # They take the ranks from a command line, which is not how this was called.
        setattr(lora, after_the_clock, lambda *_, **__: None)
    lora.setup(
        convert(job),
        out_dir=job.folder / "out",
        precision="bf16-true",
        lora_r=job.rank,
        lora_alpha=job.alpha,
        lora_dropout=0.0,
        lora_query=True,
        lora_key=True,
        lora_value=True,
        lora_projection=True,
        lora_mlp=True,
        data=Rows(job),
        train=TrainArgs(
            save_interval=None,
            log_interval=1,
            global_batch_size=job.rows_per_step,
            micro_batch_size=micro,
            lr_warmup_steps=1,
            epochs=1,
            max_steps=steps,
        ),
        eval=EvalArgs(interval=steps + 1, max_new_tokens=1, max_iters=1, final_validation=False),
        optimizer={
            "class_path": "torch.optim.AdamW",
            "init_args": {"lr": job.learning_rate, "weight_decay": 0.0},
        },
    )
    (log,) = (job.folder / "out").rglob("metrics.csv")
    with log.open() as lines:
        # It writes lines of other figures between.
        losses = [float(line["loss"]) for line in csv.DictReader(lines) if line["loss"]]
    done = rows[: steps * job.rows_per_step]
    return Trained(
        tokens=sum(len(row["input_ids"]) for row in done),
        answers=sum(label != NO_LOSS for row in done for label in row["labels"]),
        # A mean over the micro-batches of a step, complete at its last one.
        losses=losses[accumulation - 1 :: accumulation],
    )


if __name__ == "__main__":
    main(train, ("litgpt", "torch", "lightning"))

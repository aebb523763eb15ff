"""LLaMA-Factory's supervised fine-tuning on the job's base and rows, in packs kept apart."""

import json
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# Imported at the top of its data code, used for sound alone; its builds want CUDA's libraries.
silent = ModuleType("torchaudio")
silent.__spec__ = ModuleSpec("torchaudio", None)
sys.modules["torchaudio"] = silent

from llamafactory.data.processor.supervised import SupervisedDatasetProcessor  # noqa: E402
from llamafactory.train.tuner import run_exp  # noqa: E402
from peer_work import NO_LOSS, Job, Trained, main  # noqa: E402
from transformers import TrainerCallback  # noqa: E402

LINEARS = "qkv_proj,o_proj,gate_up_proj,down_proj"


class Watch(TrainerCallback):
    """What was trained on, and each step's loss."""

    def __init__(self) -> None:
        self.tokens = self.answers = 0
        self.losses: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **found: Any) -> None:
        packs = found["train_dataloader"].dataset
        self.tokens = sum(mark != 0 for one in packs["attention_mask"] for mark in one)
        self.answers = sum(label != NO_LOSS for one in packs["labels"] for label in one)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.losses = [float(entry["loss"]) for entry in state.log_history if "loss" in entry]


def give_token_ids(rows: list[dict[str, list[int]]]) -> None:
    """Each example names a row: its ids take the place of a template's and a tokenizer's work."""

    def encode(self: Any, prompt: Any, **_: Any) -> tuple[list[int], list[int]]:
        row = rows[int(prompt[0]["content"])]
        return list(row["input_ids"]), list(row["labels"])

    SupervisedDatasetProcessor._encode_data_example = encode


def train(job: Job) -> Trained:
    rows, pack, micro = job.rows(), job.settings["pack"], job.settings["micro"]
    give_token_ids(rows)
    data = job.folder / "data"
    data.mkdir()
    names = [{"instruction": str(n), "input": "", "output": "."} for n in range(len(rows))]
    (data / "rows.json").write_text(json.dumps(names))
    (data / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.json"}}))
    watch = Watch()
    arguments = {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": str(job.base),
        "template": "phi",
        "dataset": "rows",
        "dataset_dir": str(data),
        "cutoff_len": pack,
        "packing": True,
        "neat_packing": True,
        "finetuning_type": "lora",
        "lora_rank": job.rank,
        "lora_alpha": job.alpha,
        "lora_dropout": 0.0,
        "lora_target": LINEARS,
        "flash_attn": "sdpa",
        "disable_gradient_checkpointing": True,
        "bf16": True,
        "use_cpu": True,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": job.accumulation(micro * pack),
        "learning_rate": job.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 1,
        "weight_decay": 0.0,
        "num_train_epochs": 1,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "output_dir": str(job.folder / "out"),
    }
    run_exp(arguments, [watch])
    return Trained(tokens=watch.tokens, answers=watch.answers, losses=watch.losses)


if __name__ == "__main__":
    main(train, ("llamafactory", "torch", "transformers", "peft", "trl"))

"""How fast an adapter is trained, against TRL's trainer as the notebook sets it and at its best."""

import gc
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from harness import Result, main, ratio
from peft import LoraConfig
from train_work import (
    LINEARS,
    RANK,
    SHAPES,
    Shape,
    fast,
    flop,
    token_rows,
    write_base,
    write_tokens,
)
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from tasks.cores import available_cores
from tasks.training import loading
from tasks.training.defaults import resolve_peft, resolve_training
from tasks.training.engine import build_trainer, read_rows, training_as_configured
from tasks.training.job import TrainingJob

ROWS = 400
CURVE_ROWS, CURVE_BATCH = 96, 8
CURVE_TOLERANCE = 0.01
"""Largest relative difference of a loss in bfloat16 from the reference's."""
WAYS = ("product", "notebook", "trl_best")


class Clock(TrainerCallback):
    """Seconds from the first step's beginning to the last one's end."""

    def __init__(self) -> None:
        self.began = self.ended = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began = self.began or time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.ended = time.perf_counter()


def product(shape: Shape, rows: list[Any], folder: Path, **changes: Any) -> Any:
    """Our trainer with its own defaults, on a base and on rows as a run would find them."""
    base, tokens = folder / "base", write_tokens(rows, folder / "tokens")
    if not base.exists():
        write_base(shape, base)
    job = TrainingJob(
        base=base,
        base_name="benchmark",
        base_commit=None,
        tokens=tokens,
        working=folder / "working",
        seed=0,
        peft_config=resolve_peft({"r": RANK, "lora_alpha": 32}),
        training_config=resolve_training(
            {"num_train_epochs": 1, "save_strategy": "no", "logging_steps": 1, **changes}
        ),
    )
    return build_trainer(job, read_rows(tokens / "train.parquet"), loading.choose_precision("auto"))


def reference(shape: Shape, rows: list[Any], folder: Path, way: str, **changes: Any) -> Any:
    """TRL's trainer: as Microsoft's notebook sets it, or packed and without what costs it time."""
    notebook = way == "notebook"
    values: dict[str, Any] = {
        "output_dir": str(folder / way),
        "use_cpu": True,
        "bf16": True,
        "num_train_epochs": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "max_length": None,
    }
    if notebook:
        values |= {"per_device_train_batch_size": 8, "gradient_checkpointing": True}
        rows = [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in rows]
    else:
        del values["dataset_kwargs"]
        values |= {
            "per_device_train_batch_size": 2,
            "gradient_checkpointing": False,
            "packing": True,
            "max_length": 1024,
        }
    adapter = LoraConfig(
        r=RANK,
        lora_alpha=32,
        lora_dropout=0.05 if notebook else 0.0,
        target_modules=list(LINEARS),
        task_type="CAUSAL_LM",
    )
    for name, value in changes.items():
        values[name] = value
        if name == "packing":
            values["dataset_kwargs"] = {"skip_prepare_dataset": True}
            adapter.lora_dropout = 0.0
    return SFTTrainer(
        shape.model(),
        SFTConfig(**values),
        train_dataset=Dataset.from_list(rows),
        processing_class=fast(shape.vocabulary),
        peft_config=adapter,
    )


def build(way: str, shape: Shape, rows: list[Any], folder: Path) -> Any:
    if way == "product":
        return product(shape, rows, folder)
    return reference(shape, rows, folder, way)


def train(trainer: Any) -> float:
    """Seconds of one pass over the trainer's rows."""
    clock = Clock()
    trainer.add_callback(clock)
    if hasattr(trainer, "use_kernels"):
        with training_as_configured(trainer):
            trainer.train()
    else:
        trainer.train()
    trainer.remove_callback(clock)
    return clock.ended - clock.began


def same_curve(shape: Shape, folder: Path) -> bool:
    """Whether both give the same loss at every step, from the same rows in the same order."""
    rows = token_rows(shape.vocabulary, CURVE_ROWS)
    steps = {
        "per_device_train_batch_size": CURVE_BATCH,
        "train_sampling_strategy": "sequential",
        "learning_rate": 1e-3,
        "max_grad_norm": 1.0,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
    }
    ours = product(shape, rows, folder / "ours", **steps, gradient_accumulation_steps=1)
    theirs = reference(
        shape, rows, folder / "theirs", "trl_best", **steps, packing=False, max_length=None
    )
    # Both adapters begin alike: A is drawn, B is zero.
    names = dict(theirs.model.named_parameters())
    for name, p in ours.model.named_parameters():
        if p.requires_grad:
            p.data.copy_(names[name].data)
    curves = []
    for trainer in (ours, theirs):
        train(trainer)
        curves.append([e["loss"] for e in trainer.state.log_history if "loss" in e])
    return len(curves[0]) == len(curves[1]) and all(
        abs(a - b) <= CURVE_TOLERANCE * b for a, b in zip(*curves, strict=True)
    )


def gemm_gflops() -> float:
    """What the machine reaches in bfloat16 products of the size of these layers, at its best."""
    x, w = (torch.randn(2048, 1024, dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(30):
        began = time.perf_counter()
        torch.nn.functional.linear(x, w)
        seconds.append(time.perf_counter() - began)
    return 2 * 2048 * 2048 * 1024 / min(seconds) / 1e9


def peak_of(way: str, name: str, count: int) -> float:
    """MB that training takes above imports and the loaded model, in a process of its own."""
    command = [sys.executable, __file__, "--peak", way, name, str(count)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return float(done.stdout.strip().splitlines()[-1])


def print_peak(way: str, name: str, count: int) -> None:
    """Entry of the process that `peak_of` starts."""
    torch.set_num_threads(available_cores())
    shape = SHAPES[name]
    with tempfile.TemporaryDirectory() as folder:
        trainer = build(way, shape, token_rows(shape.vocabulary, count), Path(folder))
        gc.collect()
        # Forget the peak of loading.
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        train(trainer)
        print((_status("VmHWM") - before) / 1000)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def measure(quick: bool) -> Result:
    """Each round trains the same rows by each way, one after the other."""
    torch.set_num_threads(available_cores())
    result = Result("train", ("torch", "transformers", "trl", "peft"))
    rounds, count = (1, 48) if quick else (5, ROWS)
    equal = True
    with tempfile.TemporaryDirectory() as folder:
        for name, shape in SHAPES.items():
            rows = token_rows(shape.vocabulary, count)
            tokens = sum(len(row["input_ids"]) for row in rows)
            # The slow ways take a quarter of the rows: their speed does not depend on how many.
            few = rows[: max(16, count // 4)]
            few_tokens = sum(len(row["input_ids"]) for row in few)
            speeds: dict[str, list[float]] = {way: [] for way in WAYS}
            roofline = []
            warm = build("product", shape, few, Path(folder) / name / "warm")
            train(warm)
            for at in range(rounds):
                for way in WAYS:
                    place = Path(folder) / name / f"{way}-{at}"
                    used = rows if way == "product" else few
                    trainer = build(way, shape, used, place)
                    seconds = train(trainer)
                    speeds[way].append((tokens if way == "product" else few_tokens) / seconds)
                    del trainer
                    gc.collect()
                roofline.append(gemm_gflops())
            cost = flop(shape, rows)
            print(f"{name}: {tokens} tokens, FLOP {cost}", file=sys.stderr)
            ours = speeds["product"]
            for way in WAYS[1:]:
                result.ratios[f"{name}_vs_{way}"] = ratio(ours, speeds[way])
            for way in WAYS:
                result.values[f"{name}_{way}_tokens_per_second"] = sorted(speeds[way])[rounds // 2]
            result.values[f"{name}_flop_per_token"] = sum(cost.values()) / tokens
            gflops = [speed * sum(cost.values()) / tokens / 1e9 for speed in ours]
            result.values[f"{name}_roofline_share"] = max(
                sorted(a / b for a, b in zip(gflops, roofline, strict=True))[rounds // 2], 0
            )
            result.values[f"{name}_gemm_gflops"] = max(roofline)
            if not quick:
                equal = equal and same_curve(shape, Path(folder) / name / "curve")
    if not quick:
        peaks = {way: peak_of(way, "deep", 64) for way in ("product", "trl_best", "notebook")}
        result.ratios["memory_vs_trl"] = ratio([peaks["trl_best"]], [peaks["product"]])
        result.values |= {f"{way}_peak_mb": peak for way, peak in peaks.items()}
    result.equal = None if quick else equal
    return result


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peak"]:
        print_peak(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        main(measure, __doc__ or "")

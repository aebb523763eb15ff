"""How fast an adapter is trained, against TRL's trainer as the notebook sets it and at its best."""

import ctypes
import gc
import json
import os
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
from tasks.training.starting import worker_environment

ROWS = 400
CURVE_ROWS, CURVE_BATCH = 96, 8
CURVE_TOLERANCE = 0.01
"""Largest relative difference of a loss in bfloat16 from the reference's."""
REFERENCES = ("notebook", "trl_best")


class Clock(TrainerCallback):
    """Real tokens and seconds of the steps; the first one also pays for what is done once."""

    def __init__(self, trainer: Any) -> None:
        self.tokens = 0
        self.marks: list[tuple[float, int]] = []
        step = trainer.training_step

        def counted(model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
            mask = inputs.get("attention_mask")
            padded = mask is not None and mask.dim() == 2
            # Ours computes a beginning that all rows share once, and says what the rows have.
            plain = int(inputs.get("num_tokens", inputs["input_ids"].numel()))
            self.tokens += int(mask.sum()) if padded else plain
            return step(model, inputs, *rest, **more)

        trainer.training_step = counted

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.marks = self.marks or [(time.perf_counter(), 0)]

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.marks.append((time.perf_counter(), self.tokens))

    @property
    def seconds(self) -> float:
        """Of all steps."""
        return self.marks[-1][0] - self.marks[0][0]

    @property
    def tokens_per_second(self) -> float:
        """Of the steps after the first one."""
        began, first = self.marks[1 if len(self.marks) > 2 else 0]
        ended, last = self.marks[-1]
        return (last - first) / (ended - began)


def product(shape: Shape, rows: list[Any], folder: Path, **changes: Any) -> Any:
    """Our trainer with its own defaults, on a base and on rows as a run would find them."""
    tokens = write_tokens(rows, folder / "tokens")
    job = TrainingJob(
        base=write_base(shape, folder / "base"),
        base_name="benchmark",
        base_commit=None,
        tokens=tokens,
        working=folder / "working",
        seed=0,
        peft_config=resolve_peft({"r": RANK, "lora_alpha": 32}),
        training_config=resolve_training(
            {"num_train_epochs": 1, "save_strategy": "no", "logging_steps": 1, **changes}
        ),
        guards={"untrained_base": "allow"},
    )
    return build_trainer(job, read_rows(tokens / "train.parquet"), loading.choose_precision("auto"))


def reference(shape: Shape, rows: list[Any], folder: Path, changes: dict[str, Any]) -> Any:
    """TRL's trainer on a base in bfloat16, with `changes` of its settings."""
    dropout = changes.pop("dropout", 0.0)
    values = {
        "output_dir": str(folder / "output"),
        "use_cpu": True,
        "bf16": True,
        "num_train_epochs": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
    }
    adapter = LoraConfig(
        r=RANK,
        lora_alpha=32,
        lora_dropout=dropout,
        target_modules=list(LINEARS),
        task_type="CAUSAL_LM",
    )
    return SFTTrainer(
        shape.model(),
        SFTConfig(**(values | changes)),
        train_dataset=Dataset.from_list(rows),
        processing_class=fast(shape.vocabulary),
        peft_config=adapter,
    )


def notebook(shape: Shape, rows: list[Any], folder: Path) -> Any:
    """As the Phi-3 notebooks do: padded batches, checkpointing, dropout, loss on every token."""
    rows = [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in rows]
    changes = padded(8) | {"gradient_checkpointing": True, "dropout": 0.05}
    return reference(shape, rows, folder, changes)


def trl_best(shape: Shape, rows: list[Any], folder: Path) -> Any:
    """What TRL offers for speed: packed rows, nothing computed twice, loss on the answers."""
    changes = {
        "per_device_train_batch_size": 2,
        "gradient_checkpointing": False,
        "packing": True,
        "max_length": 1024,
    }
    return reference(shape, rows, folder, changes)


def padded(batch: int) -> dict[str, Any]:
    """Token ids as they are, padded to the longest of a batch."""
    return {
        "per_device_train_batch_size": batch,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "max_length": None,
    }


WAYS = {"product": product, "notebook": notebook, "trl_best": trl_best}


def train(trainer: Any) -> Clock:
    """One pass over the trainer's rows."""
    clock = Clock(trainer)
    trainer.add_callback(clock)
    if hasattr(trainer, "use_kernels"):
        with training_as_configured(trainer):
            trainer.train()
    else:
        trainer.train()
    return clock


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def same_curve(shape: Shape, folder: Path) -> bool:
    """Whether both give the same loss at every step, from the same rows in the same order."""
    rows = token_rows(shape.vocabulary, CURVE_ROWS)
    steps = {
        "train_sampling_strategy": "sequential",
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
    }
    batch = {"per_device_train_batch_size": CURVE_BATCH, "gradient_accumulation_steps": 1}
    ours = product(shape, rows, folder / "ours", **steps, **batch)
    changes = padded(CURVE_BATCH) | steps | {"gradient_checkpointing": False}
    theirs = reference(shape, rows, folder / "theirs", changes)
    names = dict(theirs.model.named_parameters())
    for name, p in ours.model.named_parameters():
        if p.requires_grad:
            # Both begin with the same draw.
            p.data.copy_(names[name].data)
    train(ours)
    train(theirs)
    pairs = list(zip(losses(ours), losses(theirs), strict=True))
    print("loss of product and reference:", pairs, file=sys.stderr)
    return all(abs(a - b) <= CURVE_TOLERANCE * b for a, b in pairs)


def gemm_gflops() -> float:
    """What the machine reaches in bfloat16 products of the size of these layers, at its best."""
    x, w = torch.randn(2048, 1024, dtype=torch.bfloat16), torch.randn(2048, 1024)
    w = w.to(torch.bfloat16)
    seconds = []
    for _ in range(30):
        began = time.perf_counter()
        torch.nn.functional.linear(x, w)
        seconds.append(time.perf_counter() - began)
    return 2 * 2048 * 2048 * 1024 / min(seconds) / 1e9


def one_way(way: str, name: str, count: int) -> dict[str, float]:
    """Train in this process: tokens/s, and MB above imports and the loaded model."""
    torch.set_num_threads(available_cores())
    shape = SHAPES[name]
    rows = token_rows(shape.vocabulary, count)
    with tempfile.TemporaryDirectory() as folder:
        trainer = WAYS[way](shape, rows, Path(folder))
        gc.collect()
        # What was freed goes back to the system, whatever the allocator's settings: what the steps take
        # of it must count as theirs.
        ctypes.CDLL(None).malloc_trim(0)
        # Forgets the peak of loading.
        Path("/proc/self/clear_refs").write_text("5")
        before = status("VmRSS")
        speed = train(trainer).tokens_per_second
        peak = (status("VmHWM") - before) / 1000
    return {"speed": speed, "peak_mb": peak, "gemm": gemm_gflops()}


def status(name: str) -> int:
    """kB of a line of the kernel's page about this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def in_a_process(way: str, name: str, count: int) -> dict[str, float]:
    """`one_way` where nothing was run before, with the environment that each way is run in."""
    # Their own defaults for the references, which know of no worker.
    environment = os.environ | (worker_environment() if way == "product" else {})
    command = [sys.executable, __file__, "--way", way, name, str(count)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env=environment)
    answer: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def measure(quick: bool) -> Result:
    """Each round trains by each way, one after the other, each in a process of its own."""
    torch.set_num_threads(available_cores())
    result = Result("train", ("torch", "transformers", "trl", "peft"))
    rounds, count = (1, 64) if quick else (3, ROWS)
    # The slow ways take fewer of the rows: their speed does not depend on how many.
    counts = {"product": count, "notebook": count // 8, "trl_best": count // 4}
    equal = True
    for name, shape in SHAPES.items():
        found = [{way: in_a_process(way, name, counts[way]) for way in WAYS} for _ in range(rounds)]
        speeds = {way: [one[way]["speed"] for one in found] for way in WAYS}
        for way in REFERENCES:
            pairs = [1 / s for s in speeds[way]], [1 / s for s in speeds["product"]]
            result.ratios[f"{name}_vs_{way}"] = ratio(*pairs)
        for way in WAYS:
            result.values[f"{name}_{way}_tokens_per_second"] = middle(speeds[way])
        rows = token_rows(shape.vocabulary, count)
        per_token = sum(flop(shape, rows).values()) / sum(len(row["input_ids"]) for row in rows)
        gemm = [max(one[way]["gemm"] for way in WAYS) for one in found]
        shares = [s * per_token / 1e9 / g for s, g in zip(speeds["product"], gemm, strict=True)]
        result.values[f"{name}_roofline_share"] = middle(shares)
        result.values[f"{name}_gemm_gflops"] = max(gemm)
        for part, value in flop(shape, rows).items():
            result.values[f"{name}_gflop_{part}"] = value / 1e9
        if name == "deep":
            peaks = {way: [one[way]["peak_mb"] for one in found] for way in WAYS}
            result.values["product_all_rows_peak_mb"] = middle(peaks["product"])
            # The same rows for all: what is kept from one step to the next grows with their number.
            fewer = [in_a_process("product", name, counts["trl_best"]) for _ in range(rounds)]
            peaks["product"] = [one["peak_mb"] for one in fewer]
            result.ratios["memory_vs_trl"] = ratio(peaks["trl_best"], peaks["product"])
            result.values |= {f"{way}_peak_mb": middle(peak) for way, peak in peaks.items()}
        if not quick:
            with tempfile.TemporaryDirectory() as folder:
                equal = equal and same_curve(shape, Path(folder))
    result.equal = None if quick else equal
    return result


def middle(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--way"]:
        answer, sys.stdout = sys.stdout, sys.stderr
        found = one_way(sys.argv[2], sys.argv[3], int(sys.argv[4]))
        answer.write(json.dumps(found) + "\n")
    else:
        main(measure, __doc__ or "")

"""What a GPU makes of Phi-3-mini's real shape: training speed, memory and generation, random weights.

`--tiny` runs the same steps on a small shape, on a CPU too: it shows that the script works, no figure.
"""

import gc
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import Result, main
from train_work import LINEARS, RANK, Shape, token_rows, write_base, write_tokens
from transformers import Phi3ForCausalLM, TrainerCallback

from tasks.evaluation.answering import generate
from tasks.tokenization.packing import write_packs
from tasks.training import loading
from tasks.training.defaults import resolve_peft, resolve_training
from tasks.training.engine import build_trainer, in_packs, read_rows, training_as_configured
from tasks.training.job import TrainingJob
from tasks.training.packs import read_packs

MINI = Shape(hidden=3072, inner=8192, layers=32, heads=32, vocabulary=32_064)
TINY = Shape(hidden=128, inner=256, layers=2, heads=4, vocabulary=2_048)
WARM, MEASURED = 3, 8
"""Optimizer steps."""
PROMPTS, NEW_TOKENS = 256, 256
TINY_ASKED = "--tiny" in sys.argv
FAILED: list[str] = []
"""Why parts have no figures."""


class Steps(TrainerCallback):
    """When each step ended, and how many tokens had been read by then."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def made_on_the_device(shape: Shape) -> Any:
    """The shape's model with random weights in bfloat16; on a GPU it takes seconds."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            torch.manual_seed(0)
            return Phi3ForCausalLM(shape.config())
    finally:
        torch.set_default_dtype(torch.float32)


def train(
    base: Path,
    tokens: Path,
    folder: Path,
    *,
    batch: int,
    quantization: Any = "none",
    checkpointing: bool = False,
) -> dict[str, float]:
    """Real tokens per second over the measured steps, and the peak of the GPU's memory in GiB."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    steps = Steps()
    job = TrainingJob(
        base=base,
        base_name="benchmark",
        base_commit=None,
        tokens=tokens,
        working=folder,
        seed=0,
        peft_config=resolve_peft({"r": RANK, "lora_alpha": 32, "target_modules": list(LINEARS)}),
        training_config=resolve_training(
            {
                "max_steps": WARM + MEASURED,
                "per_device_train_batch_size": batch,
                "gradient_accumulation_steps": 1,
                "activation_checkpointing": checkpointing,
                "save_strategy": "no",
                "logging_steps": 1,
            }
        ),
        quantization=quantization,
        guards={"untrained_base": "allow"},
    )
    packs = read_packs(tokens)
    assert packs is not None
    rows = in_packs(read_rows(tokens / "train.parquet"), packs)
    trainer = build_trainer(job, rows, loading.choose_precision("auto"), [steps])
    with training_as_configured(trainer):
        trainer.train()
    read = [entry["num_tokens"] for entry in trainer.state.log_history if "num_tokens" in entry]
    share = MEASURED / (WARM + MEASURED)
    total = read[-1] if read else trainer._total_train_tokens
    found = {
        "tokens_per_second": total * share / (steps.ends[-1] - steps.ends[WARM - 1]),
        "seconds_per_step": (steps.ends[-1] - steps.ends[WARM - 1]) / MEASURED,
        "kernels": float(trainer._kernels is not None),
    }
    del trainer
    gc.collect()
    if torch.cuda.is_available():
        found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        torch.cuda.empty_cache()
    return found


def tokens_of(shape: Shape, capacity: int, folder: Path) -> Path:
    """Rows of code and its documentation, packed into lines of `capacity` tokens."""
    rows = token_rows(shape.vocabulary, 6000 if shape is MINI else 200)
    write_tokens(rows, folder)
    write_packs(folder, [len(row["input_ids"]) for row in rows], capacity)
    return folder


def tflops() -> float:
    """Best bfloat16 product of 8192 x 8192 x 8192 (256 without a GPU)."""
    device, size = ("cuda", 8192) if torch.cuda.is_available() else ("cpu", 256)
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device=device) for _ in range(2))
    return 2 * size**3 / best(lambda: a @ b) / 1e12


def terabytes_per_second() -> float:
    """Best copy of 4 GiB (16 MiB without a GPU): read and written."""
    device, size = ("cuda", 1 << 31) if torch.cuda.is_available() else ("cpu", 1 << 23)
    source = torch.zeros(size, dtype=torch.bfloat16, device=device)
    target = torch.empty_like(source)
    return 2 * 2 * size / best(lambda: target.copy_(source)) / 1e12


def best(run: Callable[[], Any]) -> float:
    seconds = []
    for _ in range(10):
        began = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def flop_per_token(shape: Shape, length: float) -> float:
    """Without recomputing: frozen products 4 per weight, A and B 6, causal attention, head on all tokens."""
    d, f = shape.hidden, shape.inner
    sizes = ((d, 3 * d), (d, d), (d, 2 * f), (f, d))
    frozen = shape.layers * sum(i * o for i, o in sizes) + d * shape.vocabulary
    lora = shape.layers * RANK * sum(i + o for i, o in sizes)
    return 4 * frozen + 6 * lora + 3 * 2 * length * d * shape.layers


def answers(shape: Shape, base: Path) -> dict[str, float]:
    """New tokens per second, and their share of what the memory's bandwidth allows."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = Phi3ForCausalLM.from_pretrained(base, dtype=torch.bfloat16).to(device).eval()
    count, new = (PROMPTS, NEW_TOKENS) if shape is MINI else (4, 8)
    prompts = [row["input_ids"][:200] for row in token_rows(shape.vocabulary, count)]
    began = time.perf_counter()
    # Random weights say the last token rarely, if ever: rows are as long as they may be.
    generate(model, prompts, [new] * count, count, [shape.vocabulary - 1], "base")
    speed = count * new / (time.perf_counter() - began)
    weights = sum(p.numel() * 2 for p in model.parameters())
    cached = sum(len(p) + new / 2 for p in prompts) * shape.layers * 2 * shape.hidden * 2
    bound = count * terabytes_per_second() * 1e12 / (weights + cached)
    return {"generated_tokens_per_second": speed, "generation_share_of_bandwidth": speed / bound}


def measure(quick: bool) -> Result:
    """One process, one base on the disk, one way after the other."""
    tiny = TINY_ASKED or not torch.cuda.is_available()
    shape = TINY if tiny else MINI
    result = Result("gpu", ("torch", "transformers", "trl", "peft"))
    values = result.values
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        base = write_base(shape, folder / "base", made_on_the_device(shape))
        short = tokens_of(shape, 2048 if not tiny else 512, folder / "short")
        long = tokens_of(shape, 4096 if not tiny else 512, folder / "long")
        values["gemm_tflops"] = tflops()
        for batch in (8,) if quick else (4, 8, 16):
            found = attempt(train, base, short, folder / f"lora-{batch}", batch=batch)
            values |= {f"lora_{batch}x2048_{name}": value for name, value in found.items()}
        speeds = [v for name, v in values.items() if name.endswith("2048_tokens_per_second")]
        rows = token_rows(shape.vocabulary, 200)
        lengths = [len(row["input_ids"]) for row in rows]
        # A token attends to half of its own example on average.
        mean = sum(n * n for n in lengths) / sum(lengths)
        if speeds:
            values["lora_tokens_per_second"] = max(speeds)
            used = max(speeds) * flop_per_token(shape, mean) / 1e12
            values["lora_model_tflops_share"] = used / values["gemm_tflops"]
        for name, quantization in (("lora", "none"), ("qlora", "nf4")):
            found = attempt(
                train,
                base,
                long,
                folder / f"{name}-long",
                batch=2,
                quantization=quantization,
                checkpointing=True,
            )
            values |= {f"{name}_2x4096_{key}": value for key, value in found.items()}
        quantized, plain = (f"{name}_2x4096_seconds_per_step" for name in ("qlora", "lora"))
        if quantized in values and plain in values:
            values["qlora_time_of_lora"] = values[quantized] / values[plain]
        values |= attempt(answers, shape, base)
    return result


def attempt(run: Callable[..., dict[str, float]], *args: Any, **options: Any) -> dict[str, float]:
    """What one part found; the others must not be lost because it fails."""
    try:
        return run(*args, **options)
    except Exception as error:
        FAILED.append(f"{type(error).__name__}: {str(error)[:500]}")
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return {}


if __name__ == "__main__":
    sys.argv = [word for word in sys.argv if word != "--tiny"]
    main(measure, __doc__ or "")
    if FAILED:
        # After the figures of the other parts, which are not lost.
        sys.exit("\n".join(["Not measured:", *FAILED]))

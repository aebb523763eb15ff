"""The parts that `gpu.py` measures: a training, its attention, answers, and what the hardware could do."""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from harness import Result
from train_work import LINEARS, RANK, Shape, token_rows, write_tokens
from transformers import Phi3ForCausalLM, TrainerCallback

from tasks.evaluation.answering import generate
from tasks.tokenization.packing import write_packs
from tasks.training import loading
from tasks.training.defaults import resolve_peft, resolve_training
from tasks.training.engine import build_trainer, in_packs, read_rows, training_as_configured
from tasks.training.inspect_worker import memory_estimate
from tasks.training.job import InspectionJob, TrainingJob
from tasks.training.out_of_memory import USABLE
from tasks.training.packs import read_packs
from tasks.training.trainer import AdapterTrainer

MINI = Shape(hidden=3072, inner=8192, layers=32, heads=32, vocabulary=32_064)
TINY = Shape(hidden=128, inner=256, layers=2, heads=4, vocabulary=2_048)
WARM, MEASURED = 4, 8
"""Optimizer steps. Flex attention is compiled in the first ones, anew for the second length of a batch."""
PROMPTS, NEW_TOKENS = 256, 256
GPU = torch.cuda.is_available()
PEFT = {"r": RANK, "lora_alpha": 32, "target_modules": list(LINEARS)}
GPU_MULTIPLE = 8
"""Tokens to which a GPU's rows are padded."""


@dataclass
class Found:
    """Figures of one part, and what else is worth knowing of it."""

    values: dict[str, float] = field(default_factory=dict)
    note: str = ""


class Steps(TrainerCallback):
    """When each step ended, and how many tokens had been read by then."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.tokens: list[int] = []
        self.read: Callable[[], int] = int

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if GPU:
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
        self.tokens.append(self.read())


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Without one: rows padded as there, and the libraries' kernels and loss, which compute there."""
    with ExitStack() as patches:
        if not GPU:
            for owner, name, value in (
                (loading, "padding_multiple", lambda: GPU_MULTIPLE),
                (AdapterTrainer, "use_kernels", lambda _: False),
                (AdapterTrainer, "_answers_only", property(lambda _: False, lambda *_: None)),
            ):
                patches.enter_context(patch.object(owner, name, value, create=True))
        yield


def attempt(result: Result, part: str, run: Callable[[], Found]) -> dict[str, float]:
    """What one part found, told at once; the others must not be lost because it fails."""
    found, reason = Found(), ""
    try:
        found = run()
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error)[:500]}"
    # Not inside `except`: there the traceback still holds the frames, and with them the model.
    collect()
    if reason:
        result.lost(part, reason)
    else:
        result.found(part, found.values, found.note)
    return found.values


def collect() -> None:
    """Let go of what a former part left: trainer and callbacks know each other."""
    gc.collect()
    if GPU:
        torch.cuda.empty_cache()


def named(prefix: str, found: Found) -> Found:
    """With the part's name before that of each figure."""
    return Found({f"{prefix}_{name}": value for name, value in found.values.items()}, found.note)


def train(
    base: Path,
    tokens: Path,
    folder: Path,
    *,
    batch: int,
    attention: Any = "auto",
    quantization: Any = "none",
    checkpointing: bool = False,
    measured: int = MEASURED,
) -> Found:
    """Real tokens per second over the measured steps, and the peak of the GPU's memory in GiB."""
    collect()
    values = {}
    if GPU:
        values["held_before_gib"] = torch.cuda.memory_allocated() / 2**30
        torch.cuda.reset_peak_memory_stats()
    steps = Steps()
    job = TrainingJob(
        base=base,
        base_name="benchmark",
        base_commit=None,
        tokens=tokens,
        working=folder,
        seed=0,
        peft_config=resolve_peft(PEFT),
        training_config=resolve_training(
            {
                "max_steps": WARM + measured,
                "per_device_train_batch_size": batch,
                "gradient_accumulation_steps": 1,
                "activation_checkpointing": checkpointing,
                "save_strategy": "no",
                "logging_steps": 1,
            }
        ),
        quantization=quantization,
        attention=attention,
        guards={"untrained_base": "allow"},
    )
    packs = read_packs(tokens)
    assert packs is not None
    rows = in_packs(read_rows(tokens / "train.parquet"), packs)
    trainer = build_trainer(job, rows, loading.choose_precision("auto"), [steps])
    steps.read = lambda: trainer._total_train_tokens
    with training_as_configured(trainer):
        trainer.train()
    seconds = [end - begin for begin, end in zip(steps.ends, steps.ends[1:], strict=False)]
    seconds = seconds[WARM - 1 :]
    values |= {
        "tokens_per_second": (steps.tokens[-1] - steps.tokens[WARM - 1]) / sum(seconds),
        "seconds_per_step": sum(seconds) / measured,
        # Far above the mean: something was compiled, or waited for, inside the measured steps.
        "slowest_step_seconds": max(seconds),
        "kernels": float(trainer._kernels is not None),
    }
    if GPU:
        values["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    note = f"{trainer.model.config._attn_implementation} attention"
    # accelerate's lists of models outlive the trainer in reference cycles.
    steps.read = int
    trainer.accelerator.free_memory()
    return Found(values, note)


def attentions() -> list[str]:
    """The recipe's names of those that this machine can train packed rows with."""
    if not GPU:
        return ["sdpa"]
    optional = {"flash": "flash_attn", "varlen": "torch.nn.attention.varlen"}
    there = [name for name, module in optional.items() if find_spec(module) is not None]
    return ["sdpa", "flex", *there]


def fits(shape: Shape, batch: int, length: int) -> bool:
    """Whether a training on lines of `length` tokens fits, by the estimate that `loraline check` shows."""
    collect()
    free = loading.free_memory_bytes()
    job = InspectionJob(
        base=Path(),
        base_name="benchmark",
        working=Path(),
        rows=1,
        longest=length,
        longest_answer=length,
        peft_config=PEFT,
        training_config={"per_device_train_batch_size": batch},
    )
    frozen, lora = parameters(shape)
    precision = loading.choose_precision("auto")
    # Counted once more: the table of embeddings, which no product reads.
    total = frozen + lora + shape.hidden * shape.vocabulary
    needed = memory_estimate(shape.config(), job, precision, lora, total)["total"]
    return free is None or needed <= USABLE * free


def made_on_the_device(shape: Shape) -> Any:
    """The shape's model with random weights in bfloat16; on a GPU it takes seconds."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda" if GPU else "cpu"):
            torch.manual_seed(0)
            return Phi3ForCausalLM(shape.config())
    finally:
        torch.set_default_dtype(torch.float32)


def tokens_of(shape: Shape, capacity: int, folder: Path) -> Path:
    """Rows of code and its documentation, packed into lines of `capacity` tokens."""
    rows = token_rows(shape.vocabulary, 6000 if shape is MINI else 200)
    write_tokens(rows, folder)
    write_packs(folder, [len(row["input_ids"]) for row in rows], capacity)
    return folder


def tflops() -> float:
    """Best bfloat16 product of 8192 x 8192 x 8192 (256 without a GPU)."""
    device, size = ("cuda", 8192) if GPU else ("cpu", 256)
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device=device) for _ in range(2))
    return 2 * size**3 / best(lambda: a @ b) / 1e12


def terabytes_per_second() -> float:
    """Best copy of 4 GiB (16 MiB without a GPU): read and written."""
    device, size = ("cuda", 1 << 31) if GPU else ("cpu", 1 << 23)
    source = torch.randn(size, dtype=torch.bfloat16, device=device)
    target = torch.empty_like(source)
    return 2 * 2 * size / best(lambda: target.copy_(source)) / 1e12


def best(run: Callable[[], Any]) -> float:
    seconds = []
    for _ in range(10):
        began = time.perf_counter()
        run()
        if GPU:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def parameters(shape: Shape) -> tuple[int, int]:
    """Frozen weights that are multiplied with, the head's among them; those of the adapter."""
    d, f = shape.hidden, shape.inner
    sizes = ((d, 3 * d), (d, d), (d, 2 * f), (f, d))
    frozen = shape.layers * sum(i * o for i, o in sizes) + d * shape.vocabulary
    return frozen, shape.layers * RANK * sum(i + o for i, o in sizes)


def flop_per_token(shape: Shape, length: float) -> float:
    """Without recomputing: frozen products 4 per weight, A and B 6, causal attention, head on all tokens."""
    frozen, lora = parameters(shape)
    return 4 * frozen + 6 * lora + 3 * 2 * length * shape.hidden * shape.layers


def answers(shape: Shape, base: Path) -> Found:
    """New tokens per second, and their share of what the memory's bandwidth allows."""
    model = Phi3ForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    model = model.to("cuda" if GPU else "cpu").eval()
    count, new = (PROMPTS, NEW_TOKENS) if shape is MINI else (4, 8)
    prompts = [row["input_ids"][:200] for row in token_rows(shape.vocabulary, count)]
    # Random weights say the last token rarely, if ever: rows are as long as they may be.
    stops = [shape.vocabulary - 1]
    # What libraries load and the allocator asks for once is no speed.
    generate(model, prompts, [2] * count, count, stops, "warm")
    began = time.perf_counter()
    generate(model, prompts, [new] * count, count, stops, "base")
    speed = count * new / (time.perf_counter() - began)
    weights = sum(p.numel() * 2 for p in model.parameters())
    cached = sum(len(p) + new / 2 for p in prompts) * shape.layers * 2 * shape.hidden * 2
    bound = count * terabytes_per_second() * 1e12 / (weights + cached)
    return Found(
        {"generated_tokens_per_second": speed, "generation_share_of_bandwidth": speed / bound}
    )

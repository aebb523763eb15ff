"""Which parts `gpu.py` measures, and what follows from them."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu_needs
import torch
from gpu_work import (
    GPU,
    MINI,
    TINY,
    Found,
    answers,
    as_on_a_gpu,
    attempt,
    attentions,
    fits,
    flop_per_token,
    made_on_the_device,
    named,
    tflops,
    tokens_of,
    train,
)
from harness import Result
from train_work import Shape, token_rows, write_base

BATCHES = (4, 8, 12, 16)
"""Packs of 2,048 tokens at once, of which those are tried that fit by estimate."""
CHOOSING = {"batch": 4, "measured": 4}
"""The short trainings that tell which attention is the fastest."""


def measure(quick: bool, *, tiny: bool) -> Result:
    """One process, one base on the disk, one way after the other."""
    result = Result("gpu", ("torch", *gpu_needs.AS_LOCKED, gpu_needs.QUANTIZING))
    if GPU:
        result.gpu = torch.cuda.get_device_name()
    with tempfile.TemporaryDirectory() as place, as_on_a_gpu():
        Parts(result, Path(place), MINI if GPU and not tiny else TINY).measure(quick)
    return result


class Parts:
    """All of one run, on one base."""

    def __init__(self, result: Result, folder: Path, shape: Shape) -> None:
        self._result = result
        self._folder = folder
        self._shape = shape
        self._base = write_base(shape, folder / "base", made_on_the_device(shape))

    def measure(self, quick: bool) -> None:
        """Every part into the result; the attention first, with which the others then train."""
        line, long_line = (2048, 4096) if self._shape is MINI else (512, 512)
        self._part("gemm", lambda: Found({"gemm_tflops": tflops()}))
        short = tokens_of(self._shape, line, self._folder / "short")
        attention = self._fastest_attention(short)
        batches = BATCHES if self._shape is MINI else BATCHES[:2]
        for batch in BATCHES[1:2] if quick else batches:
            if fits(self._shape, batch, line):
                self._training(f"lora_{batch}x2048", short, batch=batch, attention=attention)
        self._speed()
        long = tokens_of(self._shape, long_line, self._folder / "long")
        for name, quantization in (("lora", "none"), ("qlora", "nf4")):
            self._training(
                f"{name}_2x4096",
                long,
                batch=2,
                attention=attention,
                quantization=quantization,
                checkpointing=True,
            )
        found = self._result.values
        quantized, plain = (f"{name}_2x4096_seconds_per_step" for name in ("qlora", "lora"))
        if quantized in found and plain in found:
            share = {"qlora_time_of_lora": found[quantized] / found[plain]}
            self._result.found("qlora", share)
        self._part("generation", lambda: answers(self._shape, self._base))

    def _part(self, part: str, run: Callable[[], Found]) -> dict[str, float]:
        return attempt(self._result, part, run)

    def _training(self, part: str, tokens: Path, **options: Any) -> dict[str, float]:
        folder = self._folder / part
        return self._part(part, lambda: named(part, train(self._base, tokens, folder, **options)))

    def _fastest_attention(self, tokens: Path) -> str:
        """The recipe's name of it; `auto` where none could train."""
        speeds = {}
        for name in attentions():
            part = f"attention_{name}"
            found = self._training(part, tokens, attention=name, **CHOOSING)
            if found:
                speeds[name] = found[f"{part}_tokens_per_second"]
        if not speeds:
            return "auto"
        best = max(speeds, key=lambda name: speeds[name])
        taken = {f"attention_{name}_taken": float(name == best) for name in speeds}
        self._result.found("attention", taken, f"the others train with {best}")
        return best

    def _speed(self) -> None:
        """The fastest batch, and its share of what the best product reaches."""
        found = self._result.values
        speeds = [
            value
            for name, value in found.items()
            if name.startswith("lora_") and name.endswith("x2048_tokens_per_second")
        ]
        if not speeds:
            return
        values = {"lora_tokens_per_second": max(speeds)}
        if "gemm_tflops" in found:
            lengths = [len(row["input_ids"]) for row in token_rows(self._shape.vocabulary, 200)]
            # A token attends to half of its own example on average.
            mean = sum(n * n for n in lengths) / sum(lengths)
            used = max(speeds) * flop_per_token(self._shape, mean) / 1e12
            values["lora_model_tflops_share"] = used / found["gemm_tflops"]
        self._result.found("lora", values)

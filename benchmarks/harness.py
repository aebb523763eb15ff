"""What every benchmark prints: one table for people, or exactly one JSON object with `--json`.

`{"benchmark", "hardware", "versions", "ratios": {name: {"median", "low", "high"}}, "values": {name:
number}, "equal": bool | null}`. A ratio says how many times better the product is than the reference
(above 1 is better, for time, memory and bytes alike), from pairs interleaved in one run. `--quick`
ends within a minute.
"""

import argparse
import json
import os
import platform
import random
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any


@dataclass
class Result:
    """What a benchmark measured."""

    benchmark: str
    packages: Sequence[str] = ()
    """Distributions whose versions matter here."""
    ratios: dict[str, dict[str, float]] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)
    equal: bool | None = None
    """Whether product and reference gave the same result; None where that makes no sense."""

    def as_json(self) -> dict[str, Any]:
        return {
            "benchmark": self.benchmark,
            "hardware": hardware(),
            "versions": {name: version(name) for name in ("loraline", *self.packages)},
            "ratios": self.ratios,
            "values": self.values,
            "equal": self.equal,
        }


def ratio(reference: Sequence[float], product: Sequence[float]) -> dict[str, float]:
    """Median of the pairs' ratios, with a seeded bootstrap 95 % interval of that median."""
    pairs = [r / p for r, p in zip(reference, product, strict=True)]
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(pairs, k=len(pairs))) for _ in range(2000))
    return {"median": statistics.median(pairs), "low": medians[50], "high": medians[1949]}


def hardware() -> str:
    """Cores that this process may use, the processor, the GPU where there is one."""
    model = platform.processor() or platform.machine()
    flags = ""
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        lines = {key.strip(): value.strip() for key, value in lines.items()}
        model = lines.get("model name", model)
        flags = " with avx512_bf16" if "avx512_bf16" in lines.get("flags", "") else ""
    gpu = Path("/proc/driver/nvidia/version")
    return f"{len(os.sched_getaffinity(0))} cores of {model}{flags}" + (
        ", NVIDIA GPU" if gpu.exists() else ""
    )


def main(measure: Callable[[bool], Result], description: str) -> None:
    """Parse `--json` and `--quick`, measure, print."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="print exactly one JSON object")
    parser.add_argument("--quick", action="store_true", help="at most a minute, coarser figures")
    options = parser.parse_args()
    # Whatever a library prints while we measure must not spoil the answer.
    answer, sys.stdout = sys.stdout, sys.stderr
    result = measure(options.quick).as_json()
    if options.json:
        answer.write(json.dumps(result) + "\n")
        return
    answer.write(f"{result['benchmark']} on {result['hardware']}\n")
    answer.write("  " + ", ".join(f"{k} {v}" for k, v in result["versions"].items()) + "\n\n")
    for name, value in result["ratios"].items():
        answer.write(
            f"  {name:<40} {value['median']:.2f}x [{value['low']:.2f}, {value['high']:.2f}]\n"
        )
    for name, number in result["values"].items():
        answer.write(f"  {name:<40} {number:,.3f}\n")
    if result["equal"] is not None:
        answer.write(f"  {'equal results':<40} {result['equal']}\n")

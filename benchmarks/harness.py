"""What every benchmark prints: one table for people, or exactly one JSON object with `--json`.

`{"benchmark", "hardware", "versions", "ratios": {name: {"median", "low", "high"}}, "values": {name:
number}, "equal": bool | null}`, and `"failed": {part: reason}` where parts have no figures, or worse
ones than they may. A ratio says how many times better the product is than the reference (above 1 is
better, for time, memory and bytes alike), from pairs interleaved in one run. `--quick`
ends within a minute. What a benchmark tells as it goes (`Result.found`) is on stderr at once, and with
`--out FILE` in that file: a run that is killed keeps it.
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
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar, TextIO

PRODUCT = "loraline"


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
    gpu: str = ""
    """Name of the GPU that was used."""
    failed: dict[str, str] = field(default_factory=dict)
    """Why parts have no figures, or may not have these, by the name of the part."""
    file: ClassVar[Path | None] = None
    """Holds the answer as far as it is known."""

    def __post_init__(self) -> None:
        # Before anything is measured: nothing that goes wrong here may cost figures.
        self._versions = {name: version_of(name) for name in (PRODUCT, *self.packages)}
        self._hardware = hardware()

    def found(self, part: str, values: dict[str, float], note: str = "") -> None:
        """Keep a part's values, and tell them at once."""
        self.values |= values
        figures = ", ".join(f"{name} {value:,.3f}" for name, value in values.items())
        self._tell(f"{part}: {figures}{note and f' ({note})'}")

    def lost(self, part: str, reason: str) -> None:
        """Keep why a part has no values, and tell it at once."""
        self.failed[part] = reason
        self._tell(f"{part}: not measured: {reason}")

    def as_json(self) -> dict[str, Any]:
        found = {
            "benchmark": self.benchmark,
            "hardware": self._hardware + (f", {self.gpu}" if self.gpu else ""),
            "versions": self._versions,
            "ratios": self.ratios,
            "values": self.values,
            "equal": self.equal,
        }
        return found | ({"failed": self.failed} if self.failed else {})

    def _tell(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)
        self.write()

    def write(self) -> None:
        """Into `file`, where one was asked for; replaced whole."""
        if self.file is not None:
            draft = self.file.with_name(f"{self.file.name}.tmp")
            draft.write_text(json.dumps(self.as_json()) + "\n", encoding="utf-8")
            draft.replace(self.file)


def version_of(name: str) -> str:
    """Of a distribution; ours may be a copied working tree without one."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "from the working tree" if name == PRODUCT else "not installed"


def ratio(reference: Sequence[float], product: Sequence[float]) -> dict[str, float]:
    """Median of the pairs' ratios, with a seeded bootstrap 95 % interval of that median."""
    pairs = [r / p for r, p in zip(reference, product, strict=True)]
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(pairs, k=len(pairs))) for _ in range(2000))
    return {"median": statistics.median(pairs), "low": medians[50], "high": medians[1949]}


def hardware() -> str:
    """Cores that this process may use, and the processor."""
    model = platform.processor() or platform.machine()
    flags = ""
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        lines = {key.strip(): value.strip() for key, value in lines.items()}
        model = lines.get("model name", model)
        flags = " with avx512_bf16" if "avx512_bf16" in lines.get("flags", "") else ""
    return f"{len(os.sched_getaffinity(0))} cores of {model}{flags}"


def main(measure: Callable[[bool], Result], description: str) -> None:
    """Parse `--json`, `--quick` and `--out`, measure, print.

    Raises: SystemExit, after all figures, when a part has none or one that is worse than it may be.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="print exactly one JSON object")
    parser.add_argument("--quick", action="store_true", help="at most a minute, coarser figures")
    parser.add_argument("--out", type=Path, metavar="FILE", help="keep what is measured there")
    options = parser.parse_args()
    Result.file = options.out
    # Whatever a library prints while we measure must not spoil the answer.
    answer, sys.stdout = sys.stdout, sys.stderr
    measured = measure(options.quick)
    measured.write()
    result = measured.as_json()
    if options.json:
        answer.write(json.dumps(result) + "\n")
    else:
        show(result, answer)
    if measured.failed:
        answer.flush()
        sys.exit("\n".join(["Failed:", *(f"{k}: {v}" for k, v in measured.failed.items())]))


def show(result: dict[str, Any], answer: TextIO) -> None:
    """The answer as a table for people."""
    answer.write(f"{result['benchmark']} on {result['hardware']}\n")
    answer.write("  " + ", ".join(f"{k} {v}" for k, v in result["versions"].items()) + "\n\n")
    width = max((40, *map(len, (*result["ratios"], *result["values"]))))
    for name, value in result["ratios"].items():
        answer.write(
            f"  {name:<{width}} {value['median']:.2f}x [{value['low']:.2f}, {value['high']:.2f}]\n"
        )
    for name, number in result["values"].items():
        # A share of a few thousandths says something, too.
        shown = f"{number:,.3f}" if number == 0 or abs(number) >= 0.01 else f"{number:.2g}"
        answer.write(f"  {name:<{width}} {shown}\n")
    if result["equal"] is not None:
        answer.write(f"  {'equal results':<{width}} {result['equal']}\n")

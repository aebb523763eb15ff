"""`benchmarks/gpu.py --tiny`: every part of it runs where no GPU is; its figures mean nothing there."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
def test_every_part_of_the_gpu_benchmark_runs_on_a_small_shape() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu.py", "--tiny", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    assert set(found) == {"benchmark", "hardware", "versions", "ratios", "values", "equal"}
    wanted = {
        "lora_tokens_per_second",
        "lora_model_tflops_share",
        "qlora_time_of_lora",
        "generated_tokens_per_second",
        "generation_share_of_bandwidth",
    }
    assert {name: found["values"].get(name, 0) > 0 for name in wanted} == dict.fromkeys(
        wanted, True
    )

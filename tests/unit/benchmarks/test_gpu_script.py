"""`benchmarks/gpu.py`: every part of it runs where no GPU is; what is lost, and what is kept, when one fails."""

import gc
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A module beside the benchmarks, as a script there would import it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if name in ("harness", "gpu_needs", "gpu_parts", "gpu_work", "train_work"):
            del sys.modules[name]


@pytest.mark.slow
def test_every_part_of_the_gpu_benchmark_runs_on_a_small_shape(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu.py", "--tiny", "--json", "--out", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    assert set(found) == {"benchmark", "hardware", "versions", "ratios", "values", "equal"}
    assert json.loads(out.read_text()) == found
    wanted = {
        "attention_sdpa_taken",
        "lora_tokens_per_second",
        "lora_model_tflops_share",
        "qlora_time_of_lora",
        "generated_tokens_per_second",
        "generation_share_of_bandwidth",
    }
    assert {name: found["values"].get(name, 0) > 0 for name in wanted} == dict.fromkeys(
        wanted, True
    )
    assert "(sdpa attention)" in done.stderr


@pytest.fixture
def tokens(load: Any, tmp_path: Path) -> Path:
    """Twelve rows, packed."""
    from tasks.tokenization.packing import write_packs

    rows = [[300 + (row * 31 + at * 7) % 3000 for at in range(20 + row)] for row in range(12)]
    load("train_work").write_tokens([{"input_ids": r, "labels": r} for r in rows], tmp_path / "t")
    write_packs(tmp_path / "t", [len(row) for row in rows], 63)
    return tmp_path / "t"


@pytest.mark.long
def test_a_part_reads_batches_as_a_gpu_does_and_leaves_no_model_behind(
    load: Any, tokens: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import Phi3ForCausalLM

    from tasks.training.collators import PackCollator

    work, harness = load("gpu_work"), load("harness")
    shapes: set[tuple[int, ...]] = set()
    real = PackCollator.__call__

    def seen(self: PackCollator, rows: Any) -> Any:
        batch = real(self, rows)
        shapes.add(tuple(batch["input_ids"].shape))
        return batch

    monkeypatch.setattr(PackCollator, "__call__", seen)
    monkeypatch.setattr(work, "WARM", 1)
    result = harness.Result("gpu")

    def left() -> list[Any]:
        return [one for one in gc.get_objects() if type(one) is Phi3ForCausalLM]

    # Of tests before this one.
    gc.collect()
    before = len(left())
    with work.as_on_a_gpu():
        options = {"batch": 2, "attention": "sdpa", "measured": 2}
        found = work.attempt(
            result, "one", lambda: work.train(tiny_base, tokens, tmp_path / "w", **options)
        )
        assert found["tokens_per_second"] > 0
        assert found["kernels"] == 0
        assert all(length % 8 == 0 for _, length in shapes)
        assert len(left()) == before
        monkeypatch.setattr(work.Steps, "on_step_end", lambda *_, **__: 1 / 0)
        assert not work.attempt(
            result, "two", lambda: work.train(tiny_base, tokens, tmp_path / "x", **options)
        )
    assert len(left()) == before
    assert result.failed == {"two": "ZeroDivisionError: division by zero"}
    assert result.values == found


def test_batches_are_those_that_fit_by_the_estimate(
    load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = load("gpu_work")
    monkeypatch.setattr(work.loading, "free_memory_bytes", lambda: 139 * 2**30)
    monkeypatch.setattr(
        work.loading,
        "choose_precision",
        lambda _: work.loading.Precision(work.torch.bfloat16, "bf16", ""),
    )
    assert [work.fits(work.MINI, batch, 2048) for batch in (4, 8, 16)] == [True, True, False]
    assert work.parameters(work.MINI)[1] == 25_165_824
    monkeypatch.setattr(work.loading, "free_memory_bytes", lambda: 8 * 2**30)
    assert not work.fits(work.MINI, 1, 2048)


def test_what_is_measured_is_told_and_kept_at_once(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    harness = load("harness")
    out = tmp_path / "out.json"
    monkeypatch.setattr(harness.Result, "file", out)
    result = harness.Result("some", ("no-such-distribution",), gpu="NVIDIA H200")
    result.found("first", {"speed": 2.0}, "with flex")
    kept = json.loads(out.read_text())
    assert kept["values"] == {"speed": 2.0}
    assert kept["hardware"].endswith(", NVIDIA H200")
    assert kept["versions"]["no-such-distribution"] == "not installed"
    assert "failed" not in kept
    result.lost("second", "OutOfMemoryError: too much")
    assert json.loads(out.read_text())["failed"] == {"second": "OutOfMemoryError: too much"}
    assert capsys.readouterr().err.splitlines() == [
        "first: speed 2.000 (with flex)",
        "second: not measured: OutOfMemoryError: too much",
    ]
    monkeypatch.setattr(harness, "version", lambda name: (_ for _ in ()).throw(missing(name)))
    assert harness.version_of("loraline") == "from the working tree"


def missing(name: str) -> Exception:
    from importlib.metadata import PackageNotFoundError

    return PackageNotFoundError(name)


def test_a_run_with_a_part_that_failed_prints_the_others_and_says_so(
    load: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    harness = load("harness")

    def measure(quick: bool) -> Any:
        result = harness.Result("some")
        result.found("first", {"speed": 2.0})
        result.lost("second", "no such kernel")
        return result

    monkeypatch.setattr(sys, "argv", ["some.py", "--json"])
    out = sys.stdout
    try:
        with pytest.raises(SystemExit, match=r"Failed:\nsecond: no such kernel"):
            harness.main(measure, "")
    finally:
        sys.stdout = out
    assert json.loads(capsys.readouterr().out)["values"] == {"speed": 2.0}


def test_libraries_of_other_versions_are_refused_before_anything_is_measured(
    load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs = load("gpu_needs")
    lock = needs.locked()
    assert set(needs.AS_LOCKED) | {"torch", needs.QUANTIZING} <= set(lock)
    have = dict(lock) | {"torch": "2.11.0+cu130"}
    monkeypatch.setattr(needs, "version_of", lambda name: have[name])
    assert needs.problems(lock) == []
    have[needs.QUANTIZING] = "not installed"
    assert needs.problems(lock) == []
    have |= {"transformers": "5.17.0", "trl": "not installed", needs.QUANTIZING: "0.1"}
    said = needs.refusal(needs.problems(lock))
    assert f"transformers is 5.17.0 here, and requirements.lock has {lock['transformers']}" in said
    assert "trl is not installed" in said
    assert "bitsandbytes is 0.1 here" in said


def test_the_script_says_what_is_missing_instead_of_breaking(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')\n")
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu.py", "--tiny", "--json"],
        cwd=ROOT,
        env={"PYTHONPATH": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("benchmarks/gpu.py measures nothing here:\n  no torch here.")
    assert "Traceback" not in done.stderr

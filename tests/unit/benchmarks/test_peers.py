"""What `benchmarks/peers.py` decides: who is best, who did the same, what is installed; and how it times us."""

import importlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A module beside the benchmarks, as a script there would import it."""
    for folder in (BENCHMARKS, BENCHMARKS / "peers"):
        monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if name in ("harness", "peer_results", "peer_environments", "peer_work"):
            del sys.modules[name]


def measured(load: Any, **changes: Any) -> Any:
    kind = load("peer_results").Measured
    values = {"losses": [8.0, 6.0], "versions": {"some": "1.0", "torch": "2.0"}}
    return kind(
        **({"seconds": 10.0, "steps": 2, "tokens": 1000, "answers": 100} | values | changes)
    )


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({}, True),
        ({"tokens": 600, "answers": 60}, True),
        ({"tokens": 500, "answers": 50}, False),
        ({"tokens": 1001}, False),
        ({"answers": 1000}, False),
        ({"losses": [8.2, 6.1]}, True),
        ({"losses": [8.0, 8.0]}, False),
    ],
    ids=[
        "equal",
        "part of a step left over",
        "a whole step left over",
        "padding counted",
        "loss on prompts",
        "other order",
        "learned nothing",
    ],
)
def test_a_peer_counts_where_it_did_the_same_work(
    load: Any, changes: dict[str, Any], same: bool
) -> None:
    ours = measured(load)
    assert load("peer_results").same_work(ours, replace(ours, **changes)) is same


def test_the_best_peer_has_the_best_median_and_its_ratio_pairs_the_rounds(load: Any) -> None:
    results = load("peer_results")
    seconds = {"product": [1.0, 2.0, 1.0], "steady": [3.0, 6.0, 3.0], "lucky": [1.0, 9.0, 9.0]}
    rounds = [
        {way: measured(load, seconds=values[at]) for way, values in seconds.items()}
        for at in range(3)
    ]
    result = results.Comparison("peers", equal=True)
    results.add(result, "deep", rounds, {"steady": {"pack": 512}, "lucky": {"micro": 4}})
    assert result.ratios["deep_vs_best_peer"]["median"] == pytest.approx(3.0)
    assert result.ratios["deep_vs_best_peer"] == result.ratios["deep_vs_steady"]
    assert result.ratios["deep_vs_lucky"]["median"] == pytest.approx(4.5)
    assert result.values["deep_product_tokens_per_second"] == pytest.approx(1000)
    assert result.values["deep_steady_pack"] == 512
    assert result.equal is True
    assert result.peers == {"some": "1.0", "some's torch": "2.0"}


def test_one_peer_with_other_work_makes_the_comparison_unequal(load: Any) -> None:
    results = load("peer_results")
    found = {"product": measured(load), "a": measured(load, answers=999), "b": measured(load)}
    result = results.Comparison("peers", equal=True)
    results.add(result, "deep", [found], {"a": {}, "b": {}})
    assert result.equal is False


def test_an_environment_is_installed_once_and_anew_for_other_versions(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environments = load("peer_environments")
    calls: list[tuple[str, ...]] = []
    monkeypatch.setattr(environments, "pip", lambda python, *arguments: calls.append(arguments))
    monkeypatch.setattr(environments.venv, "create", lambda folder, **_: folder.mkdir())
    peer = environments.Peer("with_it.py", ("it==1.0",), ({},), without=("heavy",))
    folder = tmp_path / "it"
    for _ in range(2):
        python = environments.build(peer, folder, "2.13.0")
    assert python == folder / "bin" / "python"
    first = [
        ("install", "torch==2.13.0"),
        ("install", "torch==2.13.0", "it==1.0"),
        ("uninstall", "--yes", "heavy"),
    ]
    assert calls == first
    (folder / "left over").touch()
    environments.build(peer, folder, "2.14.0")
    assert len(calls) == 6
    assert not (folder / "left over").exists()


def test_an_environment_whose_installation_broke_off_is_made_anew(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environments = load("peer_environments")

    def refuse(python: Path, *arguments: str) -> None:
        raise SystemExit("pip install failed")

    monkeypatch.setattr(environments.venv, "create", lambda folder, **_: folder.mkdir())
    peer = environments.Peer("with_it.py", ("it==1.0",), ({},))
    monkeypatch.setattr(environments, "pip", refuse)
    with pytest.raises(SystemExit):
        environments.build(peer, tmp_path / "it", "2.13.0")
    calls: list[tuple[str, ...]] = []
    monkeypatch.setattr(environments, "pip", lambda python, *arguments: calls.append(arguments))
    environments.build(peer, tmp_path / "it", "2.13.0")
    assert len(calls) == 2


def test_every_peer_has_its_runner_and_exact_versions(load: Any) -> None:
    environments = load("peer_environments")
    for peer in environments.PEERS.values():
        assert (environments.RUNNERS / peer.runner).is_file()
        assert all("==" in one for one in peer.requirements)
        assert peer.candidates


def test_the_clock_runs_from_the_first_training_forward_to_the_last_step(load: Any) -> None:
    import torch

    clock = load("peer_work").Clock()
    try:
        model = torch.nn.Linear(2, 1)
        optimizer = torch.optim.AdamW(model.parameters())
        model.eval()
        with torch.no_grad():
            model(torch.ones(1, 2))
        model.train()
        assert clock.began == 0
        for _ in range(2):
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
            began, ended = clock.began, clock.ended
        assert 0 < began < ended
        assert clock.steps == 2
    finally:
        clock.stop()
    optimizer.step()
    assert clock.steps == 2


def test_packs_are_gathered_to_about_the_rows_of_a_step(load: Any, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    lengths = [100, 200] * 4
    lines = [json.dumps({"input_ids": [1] * n, "labels": [1] * n}) for n in lengths]
    rows.write_text("\n".join(lines))
    job = load("peer_work").Job(
        base=tmp_path,
        rows_file=rows,
        folder=tmp_path,
        rank=16,
        alpha=32,
        learning_rate=1e-3,
        rows_per_step=16,
        threads=1,
        settings={},
    )
    assert [job.accumulation(size) for size in (512, 1024, 100_000)] == [5, 2, 1]


@pytest.mark.long
def test_our_own_training_answers_with_its_seconds_and_its_tokens(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    job = {
        "folder": str(tmp_path / "work"),
        "rank": 4,
        "alpha": 8,
        "learning_rate": 1e-3,
        "threads": 1,
        "shape": "deep",
        "rows": 20,
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    began = time.perf_counter()
    command = [sys.executable, str(BENCHMARKS / "peers.py"), "--ours", str(tmp_path / "job.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert 0.05 < found["seconds"] < time.perf_counter() - began
    # Twenty rows are two steps of sixteen: a step takes a moment, and no second has a million tokens.
    assert found["steps"] == len(found["losses"]) == 2
    assert found["tokens"] / found["seconds"] < 1e6
    assert found["tokens"] > found["answers"] > 0

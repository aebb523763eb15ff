"""How fast an adapter is trained, against LLaMA-Factory, torchtune and litgpt, each in its environment.

`--environments DIR` says where those are installed (about 5 GB with torch's CPU build, kept for the
next run; default: the folder `loraline-peers` below the user's cache), `--torch VERSION` which torch
they get (default: the one of this environment), `--rounds N` how often all train in turn, `--peers`
which of them. Installing needs a package registry, measuring nothing. All train on the processor.
`--quick` takes two minutes, for eight processes load their libraries; its figures say only that all ran.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from harness import Result, main
from peer_environments import PEERS, RUNNERS, build, default_folder
from peer_results import OURS, Comparison, Measured, add
from train import losses, product
from train import train as train_with_clock
from train_work import NO_LOSS, RANK, SHAPES, token_rows, write_base

from tasks.cores import available_cores
from tasks.training.starting import worker_environment

ROWS, TRIAL_ROWS, QUICK_ROWS = 400, 96, 32
ROWS_PER_STEP = 16
"""What the product takes as it comes; the peers' batches or packs are gathered to the same."""
LEARNING_RATE = 1e-3


def ours(job: dict[str, Any]) -> dict[str, Any]:
    """One pass of our trainer with its defaults, but for the learning rate's course."""
    torch.set_num_threads(job["threads"])
    rows = token_rows(SHAPES[job["shape"]].vocabulary, job["rows"])
    course = {
        "learning_rate": job["learning_rate"],
        "lr_scheduler_type": "cosine",
        "warmup_steps": 1,
    }
    trainer = product(SHAPES[job["shape"]], rows, Path(job["folder"]), **course)
    seconds = train_with_clock(trainer).seconds
    return asdict(
        Measured(
            seconds=seconds,
            steps=trainer.state.global_step,
            tokens=sum(len(row["input_ids"]) for row in rows),
            answers=sum(label != NO_LOSS for row in rows for label in row["labels"]),
            losses=losses(trainer),
            versions={},
        )
    )


class Bench:
    """One shape's base and rows on disk, and every way to train on them."""

    def __init__(self, shape: str, count: int, folder: Path, pythons: dict[str, Path]) -> None:
        self.shape, self.count, self.folder, self.pythons = shape, count, folder, pythons
        self.base = write_base(SHAPES[shape], folder / "base")
        self.settings = {name: PEERS[name].candidates[0] for name in pythons}

    def train(self, way: str, count: int, settings: dict[str, int]) -> Measured:
        """In a process of its own, where nothing was run before."""
        with tempfile.TemporaryDirectory(dir=self.folder) as working:
            job = {
                "folder": f"{working}/work",
                "rank": RANK,
                "alpha": 2 * RANK,
                "learning_rate": LEARNING_RATE,
                "threads": available_cores(),
            }
            Path(job["folder"]).mkdir()
            given = Path(working) / "job.json"
            if way == OURS:
                command = [sys.executable, __file__, "--ours", str(given)]
                environment = os.environ | worker_environment()
                job |= {"shape": self.shape, "rows": count}
            else:
                command = [str(self.pythons[way]), str(RUNNERS / PEERS[way].runner), str(given)]
                # Nothing from the network, nothing of ours, nothing left in the home directory.
                environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": f"{working}/hub"}
                for name in ("PYTHONPATH", "PYTHONSAFEPATH"):
                    environment.pop(name, None)
                rows = Path(working) / "rows.jsonl"
                found = token_rows(SHAPES[self.shape].vocabulary, count)
                rows.write_text("".join(json.dumps(row) + "\n" for row in found))
                job |= {"base": str(self.base), "rows_file": str(rows), "settings": settings}
                job |= {"rows_per_step": ROWS_PER_STEP}
            given.write_text(json.dumps(job))
            # The same processor for all.
            environment["CUDA_VISIBLE_DEVICES"] = ""
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise SystemExit(f"{way} on {self.shape} failed, {settings}:\n{done.stderr[-4000:]}")
        answer = Measured(**json.loads(done.stdout.strip().splitlines()[-1]))
        print(f"{self.shape} {way} {settings}: {answer.speed:,.0f} tokens/s", file=sys.stderr)
        return answer

    def choose(self) -> None:
        """Each peer's fastest settings for this shape on this machine, by a short trial."""
        for name in self.pythons:
            tried = [(self.train(name, TRIAL_ROWS, s).speed, s) for s in PEERS[name].candidates]
            self.settings[name] = max(tried, key=lambda one: one[0])[1]

    def round(self) -> dict[str, Measured]:
        """Every way, one after the other."""
        settings = {OURS: {}} | self.settings
        return {way: self.train(way, self.count, chosen) for way, chosen in settings.items()}


def measure(quick: bool) -> Result:
    """Per shape: choose settings, then rounds in which all train one after the other."""
    print(f"The peers' environments lie in {OPTIONS.environments}.", file=sys.stderr)
    pythons = {
        name: build(peer, OPTIONS.environments / name, OPTIONS.torch)
        for name, peer in PEERS.items()
        if name in OPTIONS.peers
    }
    result = Comparison("peers", ("torch", "transformers", "trl", "peft"), equal=True)
    count, rounds = (QUICK_ROWS, 1) if quick else (ROWS, OPTIONS.rounds)
    for shape in SHAPES:
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(shape, count, Path(folder), pythons)
            if not quick:
                bench.choose()
            found = [bench.round() for _ in range(rounds)]
        add(result, shape, found, bench.settings)
    return result


def options() -> argparse.Namespace:
    """What is this benchmark's own; the rest stays for the harness."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--environments", type=Path, default=default_folder())
    parser.add_argument("--torch", default=version("torch").split("+")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), default=list(PEERS))
    found, sys.argv[1:] = parser.parse_known_args()
    found.environments = found.environments.resolve()
    return found


if __name__ == "__main__":
    if sys.argv[1:2] == ["--ours"]:
        answer, sys.stdout = sys.stdout, sys.stderr
        answer.write(json.dumps(ours(json.loads(Path(sys.argv[2]).read_text()))) + "\n")
    else:
        OPTIONS = options()
        main(measure, __doc__ or "")

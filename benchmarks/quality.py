"""How many steps our defaults take to the loss that the settings of Phi-3's sample end with.

Three small tasks of real text on the starter base, three seeds. The reference trains as Phi-3's sample
does (rank 16, dropout, a cosine after a long warm-up, loss on every token), once at the sample's learning
rate and once at the best of seven for each task. Both train through our engine, on the same rows in the
same number of steps of the same size; only settings differ. They are judged by the held-out answer loss:
nats per answer token on rows of modules that neither trained on; the reference, too, which learns the
questions besides. A ratio is the steps of the reference divided by those from which on the product stays
at or below the reference's last loss, 0 where it never gets there. The worst task decides.

`probe` is an experiment: three short trainings choose between the default learning rate, a quarter of it
and four times as much, and the steps left train with the one chosen.
"""

import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from harness import Result, main, ratio
from quality_work import BASE, EVERY, STEPS, TASKS, Trained, Way, train, write_task

from tasks.cores import available_cores
from tasks.errors import StageFailed
from tasks.training.defaults import resolve_peft, resolve_training
from tasks.training.settings import TrainingSettings

SEEDS = (0, 1, 2)
SAMPLE_RATE = 5e-6
RATES = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)
"""What the reference's learning rate is tuned over; the best must not be an end of it."""
PROBED = (0.25, 1.0, 4.0)
"""Times the default rate."""
PROBE_STEPS = 2
"""Of each short training: together a tenth of all steps."""


Job = tuple[str, str, int]
"""Way, task, seed."""


def product(**changes: Any) -> Way:
    """Our defaults, but for what is given."""
    settings = TrainingSettings(training_config=changes)
    return Way(settings.resolved_peft_config(), settings.resolved_training_config(BASE))


def sample(rate: float) -> Way:
    """As Phi-3's sample does, at this learning rate."""
    return Way(
        resolve_peft({"r": 16, "lora_alpha": 32, "lora_dropout": 0.05}),
        resolve_training(
            {
                "learning_rate": rate,
                "lr_scheduler_type": "cosine",
                "warmup_steps": 0.2,
                "train_sampling_strategy": "random",
            }
        ),
        all_tokens=True,
    )


def measure(quick: bool) -> Result:
    """Every training in one of as many processes as there are cores, with one thread each."""
    began = time.perf_counter()
    result = Result("quality", ("torch", "transformers", "trl", "peft"))
    tasks, seeds = (["library"], SEEDS[:1]) if quick else (list(TASKS), SEEDS)
    rates = RATES[2:4] if quick else RATES
    names = ["product", "probe", "sample", *(f"tuned {rate:g}" for rate in rates)]
    jobs = [(name, task, seed) for seed in seeds for task in tasks for name in names]
    with tempfile.TemporaryDirectory() as folder:
        for task in tasks:
            for seed in seeds:
                write_task(task, seed, Path(folder, task, str(seed)))
        context = multiprocessing.get_context("spawn")
        with context.Pool(available_cores(), _alone, (folder,)) as pool:
            found = {}
            for job, trained in zip(jobs, pool.imap(_run, jobs), strict=True):
                print(*job, f"{trained.loss:.3f} in {trained.seconds:.0f} s", file=sys.stderr)
                found[job] = trained
    for task in tasks:
        _compare(result, task, {name: [found[name, task, s] for s in seeds] for name in names})
    for reference in ("sample", "tuned"):
        every = [result.ratios[f"{task}_vs_{reference}"] for task in tasks]
        result.ratios[f"vs_{reference}"] = min(every, key=lambda one: one["median"])
    loss = result.values
    losses = [loss[f"{task}_probe_loss"] / loss[f"{task}_product_loss"] for task in tasks]
    result.values["probe_loss_vs_product"] = statistics.mean(losses)
    result.values["longest_training_seconds"] = max(one.seconds for one in found.values())
    result.values["seconds"] = time.perf_counter() - began
    return result


def _compare(result: Result, task: str, found: dict[str, list[Trained]]) -> None:
    """One task's ratios, and the losses (means over the seeds) that they come from."""
    losses = {name: statistics.mean(one.loss for one in all_) for name, all_ in found.items()}
    best = min((name for name in found if name.startswith("tuned")), key=losses.__getitem__)
    for reference, way in (("sample", "sample"), ("tuned", best)):
        pairs = zip(found["product"], found[way], strict=True)
        reached = [steps_to(ours.curve, theirs.loss) for ours, theirs in pairs]
        result.ratios[f"{task}_vs_{reference}"] = ratio([STEPS] * len(reached), reached)
    result.values[f"{task}_loss_before"] = statistics.mean(o.curve[0][1] for o in found["product"])
    for name in ("product", "probe", "sample"):
        result.values[f"{task}_{name}_loss"] = losses[name]
    result.values[f"{task}_tuned_loss"] = losses[best]
    result.values[f"{task}_tuned_rate"] = float(best.removeprefix("tuned "))


def steps_to(curve: Sequence[tuple[int, float]], target: float) -> float:
    """Steps from which on the loss stays at or below `target`; infinite where it never does.

    Between two looks by a straight line; not before the first one, since nothing was measured there.
    """
    above = [at for at, (_, loss) in enumerate(curve) if loss > target]
    if not above:
        return float(curve[0][0])
    if above[-1] == len(curve) - 1:
        return float("inf")
    (before, high), (after, low) = curve[above[-1] : above[-1] + 2]
    if before == curve[0][0]:
        return float(after)
    return before + (after - before) * (high - target) / (high - low)


def _alone(folder: str) -> None:
    """What each process does first."""
    os.chdir(folder)
    torch.set_num_threads(1)
    # The trainer's events, which would spoil the answer.
    sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115


def _run(job: Job) -> Trained:
    name, task, seed = job
    tokens = Path(task, str(seed)).absolute()
    if name == "probe":
        return _probed(tokens, seed)
    if name == "product":
        return train(tokens, seed, product(), every=EVERY)
    rate = SAMPLE_RATE if name == "sample" else float(name.removeprefix("tuned "))
    return _or_diverged(tokens, seed, sample(rate))


def _probed(tokens: Path, seed: int) -> Trained:
    """The rate with the least loss on spare rows after a few steps, then a training that is as much shorter."""
    constant = {"lr_scheduler_type": "constant", "warmup_steps": 0}
    rates = [product().training["learning_rate"] * scale for scale in PROBED]
    ways = [product(learning_rate=rate, **constant) for rate in rates]
    short = [_or_diverged(tokens / "spare", seed, way, PROBE_STEPS) for way in ways]
    rate = min(zip(short, rates, strict=True), key=lambda pair: pair[0].loss)[1]
    print(f"probe: {rate:g} of", *(f"{one.loss:.3f}" for one in short), file=sys.stderr)
    done = train(tokens, seed, product(learning_rate=rate), steps=STEPS - PROBE_STEPS * len(PROBED))
    return Trained(done.curve, done.seconds + sum(one.seconds for one in short))


def _or_diverged(tokens: Path, seed: int, way: Way, steps: int = STEPS) -> Trained:
    """A training that the guards stop is an infinite loss."""
    try:
        return train(tokens, seed, way, steps=steps)
    except StageFailed:
        return Trained([(steps, float("inf"))], 0.0)


if __name__ == "__main__":
    main(measure, __doc__ or "")

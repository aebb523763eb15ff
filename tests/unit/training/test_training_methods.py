"""What is trained by the methods other than sft, through the worker itself: our tokens and no others."""

import json
import math
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tasks.training import engine, loading, method_trainer, worker
from tasks.training.guard_settings import Guards
from tasks.training.job import TrainingJob, TrainingResult
from tasks.training.methods.preference import preference_of
from tasks.training.settings import TrainingSettings

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_signals_and_threads")]

MakeJob = Callable[..., TrainingJob]
PREFERENCES = ("dpo", "orpo", "kto")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory, end: int) -> Path:
    """Prompts with two answers of unequal length; the better one is of low token ids, the worse of high."""
    folder = tmp_path_factory.mktemp("pairs")
    draw = random.Random(0)
    for side, count in (("train", 24), ("test", 4)):
        rows = []
        for at in range(count):
            prompt = [draw.randrange(300, 4000) for _ in range(draw.randrange(5, 12))]
            chosen = [draw.randrange(300, 400) for _ in range(draw.randrange(2, 9))] + [end]
            rejected = [draw.randrange(3900, 4000) for _ in range(draw.randrange(2, 9))] + [end]
            rows.append(
                {
                    "id": f"{side}-{at}",
                    "input_ids": prompt + chosen,
                    "labels": [-100] * len(prompt) + chosen,
                    "prompt_length": len(prompt),
                    "rejected_ids": rejected,
                }
            )
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{side}.parquet")
    return folder


@pytest.fixture
def job(tmp_path: Path, make_job: MakeJob, pairs: Path) -> MakeJob:
    """A job of a method, with its own defaults; six steps an epoch."""

    def make(method: str, name: str = "working", **changes: Any) -> TrainingJob:
        given = {
            "learning_rate": 5e-3,
            "num_train_epochs": 4,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 1,
            "logging_steps": 1,
            "save_steps": 5,
        } | changes.pop("training", {})
        settings = TrainingSettings(method=method, training_config=given)
        job = make_job(tmp_path / name, tokens=pairs, method=method)
        return job.model_copy(
            update={
                "training_config": settings.resolved_training_config(),
                "guards": Guards(untrained_base="allow"),
                **changes,
            }
        )

    return make


def train(job: TrainingJob) -> TrainingResult:
    worker.train(job)
    return TrainingResult.model_validate_json(job.result.read_text())


def history(job: TrainingJob) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (job.output / "history.jsonl").read_text().splitlines()]


def answer_logp(model: Any, prompt: list[int], answer: list[int]) -> float:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0].float()
    logps = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return float(logps[torch.arange(len(answer)), torch.tensor(answer)].sum())


@pytest.mark.parametrize("method", PREFERENCES)
def test_the_better_answers_gain_on_the_worse_ones(method: str, job: MakeJob, pairs: Path) -> None:
    made = job(method)
    result = train(made)
    lines = history(made)
    assert result.steps == len(lines) == 24 * (2 if method == "kto" else 1)
    margins = [line["rewards/margins"] for line in lines if "rewards/margins" in line]
    assert sum(margins[-6:]) > sum(margins[:6])
    assert all(line["tokens_per_second"] > 0 for line in lines)
    base = AutoModelForCausalLM.from_pretrained(made.base, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, made.output / "adapter")
    gained = []
    for row in pq.read_table(pairs / "train.parquet").to_pylist():
        prompt, chosen = (
            row["input_ids"][: row["prompt_length"]],
            row["input_ids"][row["prompt_length"] :],
        )
        with adapted.disable_adapter():
            before = [answer_logp(adapted, prompt, a) for a in (chosen, row["rejected_ids"])]
        after = [answer_logp(adapted, prompt, a) for a in (chosen, row["rejected_ids"])]
        gained.append((after[0] - after[1]) - (before[0] - before[1]))
    assert sum(gain > 0 for gain in gained) > 0.8 * len(gained)


def test_the_first_loss_of_dpo_is_that_of_no_preference(job: MakeJob) -> None:
    made = job("dpo", training={"num_train_epochs": 1})
    result = train(made)
    assert result.first_loss == pytest.approx(math.log(2), abs=1e-5)
    assert result.tokens == sum(
        2 * row["prompt_length"]
        + len(row["input_ids"])
        - row["prompt_length"]
        + len(row["rejected_ids"])
        for row in pq.read_table(made.tokens / "train.parquet").to_pylist()
    )


def test_the_loss_of_dpo_is_the_papers_on_our_tokens(job: MakeJob, pairs: Path) -> None:
    made = job("dpo", training={"beta": 0.3})
    ours = build(made)
    rows = pq.read_table(pairs / "train.parquet").to_pylist()[:4]
    perturb(ours)
    model = ours.accelerator.unwrap_model(ours.model).eval()
    expected = []
    for row in rows:
        prompt, chosen = (
            row["input_ids"][: row["prompt_length"]],
            row["input_ids"][row["prompt_length"] :],
        )
        policy = [answer_logp(model, prompt, a) for a in (chosen, row["rejected_ids"])]
        with model.disable_adapter():
            reference = [answer_logp(model, prompt, a) for a in (chosen, row["rejected_ids"])]
        margin = (policy[0] - reference[0]) - (policy[1] - reference[1])
        expected.append(-math.log(1 / (1 + math.exp(-0.3 * margin))))
    batch = ours.data_collator([ours.train_dataset[at] for at in range(4)])
    loss = float(ours.compute_loss(ours.model, batch).detach())
    assert loss == pytest.approx(sum(expected) / 4, abs=1e-4)


def test_the_loss_of_orpo_is_the_papers_on_our_answers(job: MakeJob, pairs: Path) -> None:
    ours = build(job("orpo", training={"beta": 0.3}))
    perturb(ours)
    model = ours.accelerator.unwrap_model(ours.model).eval()
    likelihood, tokens, odds = 0.0, 0, []
    for row in pq.read_table(pairs / "train.parquet").to_pylist()[:4]:
        prompt, chosen = (
            row["input_ids"][: row["prompt_length"]],
            row["input_ids"][row["prompt_length"] :],
        )
        total = answer_logp(model, prompt, chosen)
        likelihood, tokens = likelihood + total, tokens + len(chosen)
        better = total / len(chosen)
        worse = answer_logp(model, prompt, row["rejected_ids"]) / len(row["rejected_ids"])
        ratio = (better - math.log(1 - math.exp(better))) - (worse - math.log(1 - math.exp(worse)))
        odds.append(math.log(1 + math.exp(-ratio)))
    batch = ours.data_collator([ours.train_dataset[at] for at in range(4)])
    loss = float(ours.compute_loss(ours.model, batch).detach())
    assert loss == pytest.approx(-likelihood / tokens + 0.3 * sum(odds) / 4, abs=1e-4)


def test_what_orpos_prompts_cost_changes_nothing(job: MakeJob) -> None:
    ours = build(job("orpo"))
    rows = [ours.train_dataset[at] for at in range(4)]
    batch = ours.data_collator(rows)
    before = float(ours.compute_loss(ours.model, batch).detach())
    # The last token of the shortest prompt is predicted one place before it.
    inside = min(len(row["prompt_ids"]) for row in rows) - 1

    def other(_: Any, __: Any, logits: torch.Tensor) -> torch.Tensor:
        # Elsewhere among the words: a shift of all of them alike would cost nothing.
        return torch.cat((logits[:, :inside].roll(1, dims=-1) * 9, logits[:, inside:]), dim=1)

    ours.model.get_output_embeddings().register_forward_hook(other)
    assert float(ours.compute_loss(ours.model, batch).detach()) == before


@pytest.mark.parametrize(
    ("method", "training"),
    [("dpo", {}), ("orpo", {}), ("kto", {"loss_type": "apo_zero_unpaired"})],
)
def test_each_row_of_a_step_counts_alike_in_micro_batches_of_whatever_size(
    method: str, training: dict[str, Any], job: MakeJob
) -> None:
    def gradients(*sizes: int) -> tuple[float, torch.Tensor]:
        ours = build(job(method, training=training))
        perturb(ours)
        ours.model_wrapped = ours.model
        rows = [ours.train_dataset[at] for at in range(sum(sizes))]
        batches = []
        for size in sizes:
            batches.append(ours.data_collator(rows[:size]))
            rows = rows[size:]
        ours.current_gradient_accumulation_steps = len(sizes)
        items = ours._get_num_items_in_batch(batches, ours.args.device)
        loss = sum(float(ours.training_step(ours.model, batch, items)) for batch in batches)
        of = [p.grad.flatten() for p in ours.model.parameters() if p.grad is not None]
        return loss, torch.cat(of)

    loss, expected = gradients(7)
    for sizes in ((4, 3), (3, 3, 1), (6, 1)):
        found, gradient = gradients(*sizes)
        assert found == pytest.approx(loss, rel=1e-5)
        assert torch.allclose(gradient, expected, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("method", PREFERENCES)
def test_every_token_of_every_answer_reaches_the_batches(
    method: str, job: MakeJob, pairs: Path
) -> None:
    ours = build(job(method))
    wanted, seen = set(), set()
    for row in pq.read_table(pairs / "train.parquet").to_pylist():
        prompt = row["input_ids"][: row["prompt_length"]]
        for answer in (row["input_ids"][row["prompt_length"] :], row["rejected_ids"]):
            wanted.add((tuple(prompt), tuple(answer)))
    for batch in ours.get_train_dataloader():
        for ids, answers, real in (
            [(batch["input_ids"], batch["completion_mask"], batch["attention_mask"])]
            if method != "orpo"
            else [
                (
                    batch[f"{side}_input_ids"],
                    batch[f"{side}_labels"] != -100,
                    batch[f"{side}_attention_mask"],
                )
                for side in ("chosen", "rejected")
            ]
        ):
            for row, mask, own in zip(ids, answers.bool(), real.bool(), strict=True):
                seen.add((tuple(row[own & ~mask].tolist()), tuple(row[mask].tolist())))
    assert seen == wanted


@pytest.fixture
def judged(tmp_path: Path, pairs: Path) -> Path:
    """The pairs' answers judged one by one, but for every third pair, which stays one."""
    folder = tmp_path / "judged"
    folder.mkdir()
    for side in ("train", "test"):
        rows = []
        for at, row in enumerate(pq.read_table(pairs / f"{side}.parquet").to_pylist()):
            if at % 3 == 0:
                rows.append(row | {"desirable": None})
                continue
            prompt = row["input_ids"][: row["prompt_length"]]
            for desirable in (True, False):
                answer = (
                    row["input_ids"][row["prompt_length"] :] if desirable else row["rejected_ids"]
                )
                rows.append(
                    row
                    | {
                        "input_ids": prompt + answer,
                        "labels": [-100] * len(prompt) + answer,
                        "rejected_ids": None,
                        "desirable": desirable,
                    }
                )
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{side}.parquet")
    return folder


def test_kto_learns_the_same_from_judged_answers_as_from_the_pairs_they_make(
    job: MakeJob, judged: Path
) -> None:
    short = {"num_train_epochs": 1}
    whole = job("kto", "whole", training=short)
    apart = job("kto", "apart", training=short, tokens=judged)
    assert train(apart).adapter_sha256 == train(whole).adapter_sha256


def test_kto_learns_from_batches_of_one_verdict(job: MakeJob, judged: Path, tmp_path: Path) -> None:
    table = pq.read_table(judged / "train.parquet")
    folder = tmp_path / "good"
    folder.mkdir()
    good = pa.Table.from_pylist([row for row in table.to_pylist() if row["desirable"]])
    for side in ("train", "test"):
        pq.write_table(good, folder / f"{side}.parquet")
    result = train(job("kto", training={"num_train_epochs": 1}, tokens=folder))
    assert result.steps == 4
    assert math.isfinite(result.final_loss)


def test_foreign_answers_of_kto_come_from_other_rows_of_the_same_batch(job: MakeJob) -> None:
    ours = build(job("kto"))
    for batch in ours.get_train_dataloader():
        own = [
            tuple(row[mask].tolist())
            for row, mask in zip(batch["input_ids"], batch["completion_mask"].bool(), strict=True)
        ]
        foreign = [
            tuple(row[mask].tolist())
            for row, mask in zip(
                batch["KL_input_ids"], batch["KL_completion_mask"].bool(), strict=True
            )
        ]
        assert foreign == own[-1:] + own[:-1]
        assert not set(map(tuple, zip(own, foreign, strict=True))) & {(o, o) for o in own}


@pytest.mark.parametrize("method", PREFERENCES)
def test_a_preference_training_goes_on_to_the_same_bits(
    method: str, job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(job(method, "whole", training={"num_train_epochs": 2}))
    cut = job(method, "cut", training={"num_train_epochs": 2})

    def emit(event: str, **values: Any) -> None:
        if event == "step" and values["step"] == 7:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(method_trainer, "emit", emit)
        with pytest.raises(SystemExit):
            worker.train(cut)
    resumed = train(cut)
    assert resumed.resumed_from_step == 8
    assert resumed.adapter_sha256 == whole.adapter_sha256


@pytest.mark.parametrize("method", PREFERENCES)
def test_test_pairs_are_judged_on_the_way_also_in_bfloat16(method: str, job: MakeJob) -> None:
    made = job(
        method,
        dtype="bfloat16",
        training={"num_train_epochs": 1, "eval_strategy": "steps", "eval_steps": 3},
    )
    assert train(made).dtype == "bfloat16"
    judged = [line for line in history(made) if "eval_loss" in line]
    assert len(judged) == (4 if method == "kto" else 2)
    assert all(math.isfinite(line["eval_loss"]) for line in judged)
    assert all("eval_rewards/margins" in line for line in judged)


@pytest.mark.parametrize("method", ["dpo", "orpo"])
def test_accumulated_pairs_give_the_step_of_one_batch(method: str, job: MakeJob) -> None:
    once = {
        "num_train_epochs": 1,
        "learning_rate": 1e-3,
        # Rows sorted by length would be sorted within batches of another size.
        "train_sampling_strategy": "random",
    }
    together = job(method, "together", training=once)
    apart = job(
        method,
        "apart",
        training=once | {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    )
    train(together)
    train(apart)
    first, second = (history(made) for made in (together, apart))
    for one, other in zip(first, second, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
    one, other = (
        load_file(made.output / "adapter" / "adapter_model.safetensors")
        for made in (together, apart)
    )
    assert all(torch.allclose(one[name], other[name], atol=1e-4) for name in one)


def test_the_reference_is_no_second_copy_of_the_base(job: MakeJob) -> None:
    ours = build(job("dpo"))
    assert ours.ref_model is None
    total = sum(p.numel() for p in ours.model.parameters())
    assert total < 1.2 * sum(
        p.numel() for p in AutoModelForCausalLM.from_pretrained(job("dpo").base).parameters()
    )


def test_a_supervised_method_brings_no_trainer_of_preferences() -> None:
    assert preference_of("sft") is None
    assert preference_of("pretraining") is None


def build(job: TrainingJob) -> method_trainer.MethodTrainer:
    rows = engine.read_rows(job.tokens / "train.parquet")
    return engine.build_trainer(job, rows, loading.choose_precision("float32"))


def perturb(ours: method_trainer.MethodTrainer) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in ours.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))

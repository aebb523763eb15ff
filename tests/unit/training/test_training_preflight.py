"""Two steps before the first one that leave nothing behind, and what is said when memory runs out."""

import random
import re
import signal
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Phi3Config

from tasks.errors import StageFailed
from tasks.training import loading, method_trainer, out_of_memory, preflight, trainer, worker
from tasks.training.collators import LineCollator
from tasks.training.guard_settings import Guards
from tasks.training.job import TrainingJob, TrainingResult
from tasks.training.kernels.attention import LAYOUT

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_signals_and_threads")]

MakeJob = Callable[..., TrainingJob]
WITHOUT = Guards(untrained_base="allow", preflight=False)


def train(job: TrainingJob) -> TrainingResult:
    worker.train(job)
    return TrainingResult.model_validate_json(job.result.read_text())


@pytest.mark.parametrize(
    "changes",
    [
        {"training": {"max_steps": 5}},
        {"training": {"max_steps": 5, "gradient_accumulation_steps": 2}, "dtype": "bfloat16"},
        {"training": {"max_steps": 5, "optim": "adafactor"}},
        {"training": {"max_steps": 5, "optim": "sgd", "neftune_noise_alpha": 5}},
    ],
    ids=["dropout", "accumulation-bfloat16", "no-step-to-undo", "noise"],
)
def test_the_adapter_is_the_same_bytes_with_and_without(
    job: MakeJob, changes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    tried = train(job("tried", **changes))
    assert re.findall(
        r"Two steps on the longest rows \(\d of up to 40 tokens\)", capsys.readouterr().out
    )
    plain = train(job("plain", **changes, guards=WITHOUT))
    assert "Two steps" not in capsys.readouterr().out
    assert tried.adapter_sha256 == plain.adapter_sha256
    assert tried.tokens == plain.tokens


def test_everything_is_put_back_bit_by_bit(job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []

    def look(trainer_: Any) -> tuple[Any, ...]:
        weights = [p.detach().clone() for p in trainer_.model.parameters()]
        assert all(p.grad is None for p in trainer_.model.parameters())
        states = [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()]
        counts = [trainer_._total_train_tokens, trainer_.optimizer.state_dict()["state"]]
        return weights, states, counts

    real = preflight.two_steps_and_back

    def between(trainer_: Any) -> str:
        before = look(trainer_)
        said = real(trainer_)
        after = look(trainer_)
        assert all(map(torch.equal, before[0], after[0]))
        assert before[1][:2] == after[1][:2]
        assert torch.equal(before[1][2], after[1][2])
        assert before[2] == after[2]
        looked.append(said)
        return said

    steps = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(preflight, "two_steps_and_back", between)
    monkeypatch.setattr(
        torch.optim.AdamW, "step", lambda self, *a, **k: (steps.append(1), step(self, *a, **k))[1]
    )
    train(job(training={"max_steps": 2}))
    assert len(looked) == 1
    # One of the trial, and two of the training.
    assert len(steps) == 3


def test_a_training_that_goes_on_is_not_tried_again(
    job: MakeJob, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def emit(event: str, **values: Any) -> None:
        if event == "step" and values["step"] == 4:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(method_trainer, "emit", emit)
        with pytest.raises(SystemExit):
            worker.train(job())
    capsys.readouterr()
    train(job())
    assert "Two steps" not in capsys.readouterr().out


def test_the_longest_rows_are_those_that_are_tried() -> None:
    assert preflight.longest_rows([5, 9, 9, 1, 7], 3) == [1, 2, 4]
    assert preflight.longest_rows([5, 9], 4) == [1, 0]


@pytest.mark.parametrize(("begin", "shared"), [(16, [16, 0, 16]), (2, [0, 0])])
def test_rows_that_begin_alike_are_tried_both_ways(begin: int, shared: list[int]) -> None:
    rows = [
        {"input_ids": [*range(begin), 90 + row, 5], "labels": [-100] * (begin + 1) + [5]}
        for row in range(3)
    ]
    trainer_ = SimpleNamespace(data_collator=LineCollator(), train_dataset=rows)
    tried = [collate(rows) for collate in preflight._collators(trainer_, [0, 1, 2])]
    assert [batch[LAYOUT].shared for batch in tried] == shared


def test_memory_that_runs_out_on_the_longest_rows_is_said_before_the_first_step(
    job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = trainer.AdapterTrainer.compute_loss

    def greedy(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if inputs["input_ids"].shape[1] == 40:
            torch.empty(1 << 50)
        return real(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(trainer.AdapterTrainer, "compute_loss", greedy)
    task = job()
    with pytest.raises(
        StageFailed, match=r"before the first step: .*DefaultCPUAllocator"
    ) as stopped:
        worker.train(task)
    assert "per_device_train_batch_size: 2 with gradient_accumulation_steps: 2" in str(
        stopped.value
    )
    assert "By estimate this training needs" in str(stopped.value)
    assert not list(task.checkpoints.glob("checkpoint-*"))


def test_memory_that_runs_out_later_is_said_with_its_step(
    job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = trainer.AdapterTrainer.compute_loss

    def greedy(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 4:
            torch.empty(1 << 50)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(trainer.AdapterTrainer, "compute_loss", greedy)
    with pytest.raises(StageFailed, match="Memory ran out in step 5 of 14"):
        worker.train(job())


def test_a_base_that_does_not_fit_is_said_with_the_ways_out(
    job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "load_base", lambda *_, **__: torch.empty(1 << 50))
    with pytest.raises(StageFailed, match=r"while the base model was loaded.*") as stopped:
        worker.train(job())
    assert "smaller base" in str(stopped.value)


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory is not what this is"), False),
    ],
)
def test_lack_of_memory_is_told_from_other_failures(error: Exception, memory: bool) -> None:
    assert out_of_memory.is_out_of_memory(error) is memory


def advice_of(job: TrainingJob, free: float, layers: int = 32) -> str:
    """For Phi-3-mini with rank 16, rows of 4,096 tokens."""
    return out_of_memory.MemoryAdvice(
        job,
        Phi3Config(num_hidden_layers=layers),
        loading.Precision(torch.bfloat16, "bf16", "said"),
        parameters=(25_165_824, 3_846_245_376),
        longest=4096,
        longest_answer=1024,
        free=int(free),
    ).words()


def test_the_mildest_change_that_fits_is_proposed(job: MakeJob) -> None:
    asked = job(training={"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4})
    batch = "per_device_train_batch_size"
    for free, words in (
        (80e9, f"{batch}: 2 with gradient_accumulation_steps: 8: "),
        (45e9, f"{batch}: 1 with gradient_accumulation_steps: 16: "),
        (26e9, "Set training.training_config.activation_checkpointing: true: "),
        (9.5e9, "activation_checkpointing: true and training.quantization: nf4: "),
        (2e9, "No batch and no method here would fit"),
    ):
        assert words in advice_of(asked, free), (free, advice_of(asked, free))


def test_an_estimate_that_had_promised_too_much_is_not_believed_again(job: MakeJob) -> None:
    asked = job(training={"per_device_train_batch_size": 4})
    plenty = advice_of(asked, 10_000e9)
    assert "per_device_train_batch_size: 2 with" in plenty


def test_no_batch_is_proposed_that_kto_cannot_train_with(job: MakeJob) -> None:
    asked = job(method="kto", training={"per_device_train_batch_size": 4})
    for free in (120e9, 80e9, 40e9, 20e9, 2e9):
        assert "per_device_train_batch_size: 1 " not in advice_of(asked, free)


def test_free_memory_is_told() -> None:
    free = loading.free_memory_bytes()
    assert free is not None
    assert free > 0

"""Parts of a line that are computed at once give the gradients that they give one after the other."""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from tasks.training import engine, loading, losses
from tasks.training.collators import LineCollator
from tasks.training.job import TrainingJob
from tasks.training.kernels.attention import LAYOUT
from tasks.training.line_parts import line_parts
from tasks.training.side_by_side import SideBySide
from tests.unit.training.test_training_kernels import gradients, moved_with_kernels, rows

pytestmark = pytest.mark.usefixtures("own_signals_and_threads")
MakeJob = Callable[..., TrainingJob]
LENGTHS = [64, 5, 18, 200, 19, 17, 90, 33]


def trained(model: Any) -> list[torch.nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("lengths", [LENGTHS, [40] * 12, [7, 300]])
def test_the_gradients_are_those_of_the_whole_line_and_the_same_bytes_each_time(
    lengths: list[int],
) -> None:
    model, kernels = moved_with_kernels()
    line = LineCollator()(rows(lengths))
    parts = list(line_parts(line, 100, pairs=True))
    assert len(parts) > 1
    whole = losses.sum_over_line(kernels, line)
    expected = gradients(whole, model)
    beside = SideBySide(trained(model), 2)
    found = []
    for _ in range(4):
        model.zero_grad()
        loss = beside.backward([partial(losses.sum_over_line, kernels, part) for part in parts])
        assert loss.item() == pytest.approx(whole.item(), rel=1e-5)
        # An optimizer that fuses its operations takes the memory as it lies.
        assert all(p.grad is not None and p.grad.is_contiguous() for p in trained(model))
        found.append(torch.cat([p.grad.flatten() for p in trained(model)]))
        torch.testing.assert_close(found[-1], expected, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(found[0], other) for other in found[1:])
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("lengths", "own"),
    [
        ([150, 160, 290], [(150, 160), (290,)]),
        # Cut where examples end, they had 380 and 310.
        ([30, 50, 300, 310], [(50, 300), (30, 310)]),
        ([10, 15, 20, 40, 300, 310], [(10, 15, 20, 300), (40, 310)]),
        ([150] * 4, [(150, 150), (150, 150)]),
        # The third has no other.
        ([30, 30, 280, 300, 310], [(30, 280), (30, 300), (310,)]),
    ],
)
def test_two_parts_that_are_computed_at_once_are_about_as_long(
    lengths: list[int], own: list[tuple[int, ...]]
) -> None:
    line = LineCollator()(rows(lengths))
    parts = list(line_parts(line, 300, pairs=True))
    assert [part[LAYOUT].own for part in parts] == own
    examples = [tuple(e.tolist()) for e in line["input_ids"][0].split(line[LAYOUT].own)]
    found = [tuple(e.tolist()) for p in parts for e in p["input_ids"][0].split(p[LAYOUT].own)]
    assert sorted(found) == sorted(examples)


def test_a_part_without_another_has_all_cores() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    cores = []

    def part() -> torch.Tensor:
        cores.append(torch.get_num_threads())
        return weight.sum()

    SideBySide([weight], 2).backward([part, part, part])
    assert cores == [1, 1, 2]
    assert torch.get_num_threads() == 2


def test_what_is_there_is_added_to_and_what_takes_no_part_has_no_gradient() -> None:
    first, second, third = (torch.nn.Parameter(torch.ones(2)) for _ in range(3))
    first.grad = torch.full((2,), 10.0)
    beside = SideBySide([first, second, third], 2)
    loss = beside.backward([lambda: first.sum(), lambda: (2 * first + second).sum()])
    assert loss.item() == 2 + 6
    assert first.grad.tolist() == [13.0, 13.0]
    assert second.grad is not None
    assert second.grad.tolist() == [1.0, 1.0]
    assert third.grad is None


def test_no_more_gradients_are_in_memory_than_parts_are_computed_at_once() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    begun, added = [], []

    def part(number: int) -> torch.Tensor:
        begun.append(number)
        added.append(0.0 if weight.grad is None else float(weight.grad[0]))
        return number * weight.sum()

    loss = SideBySide([weight], 2).backward([partial(part, n) for n in (1, 2, 3, 4, 5)])
    assert loss.item() == 30
    assert sorted(begun[:2]) == [1, 2]
    assert sorted(zip(begun, added, strict=True)) == [(1, 0), (2, 0), (3, 3), (4, 3), (5, 10)]
    assert weight.grad is not None
    assert weight.grad.tolist() == [15, 15]


@pytest.mark.parametrize(("begin", "count"), [(8, 2), (80, 1)])
def test_a_long_beginning_is_not_computed_twice_for_it(begin: int, count: int) -> None:
    sample = rows([begin + 30] * 4, prompt=0.99)
    for one in sample:
        one["input_ids"][:begin] = sample[0]["input_ids"][:begin]
    line = LineCollator()(sample)
    assert line[LAYOUT].shared == begin
    assert len(list(line_parts(line, 300, pairs=True))) == count


def test_an_error_is_raised_when_nobody_computes_any_more() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    ended = threading.Event()

    def slow() -> torch.Tensor:
        threading.Event().wait(0.3)
        ended.set()
        return weight.sum()

    def failing() -> torch.Tensor:
        raise MemoryError("no more")

    with pytest.raises(MemoryError, match="no more"):
        SideBySide([weight], 2).backward([failing, slow])
    assert ended.is_set()
    assert weight.grad is None


@pytest.mark.parametrize(
    ("changes", "beside"),
    [
        ({}, True),
        ({"training": {"activation_checkpointing": True}}, False),
        ({"training": {"optim": "schedule_free_adamw"}}, False),
    ],
)
def test_two_parts_are_computed_at_once_where_the_step_is_a_plain_one(
    job: MakeJob, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], beside: bool
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    task = job(**changes, peft={"lora_dropout": 0.0})
    made = engine.build_trainer(
        task, engine.read_rows(task.tokens / "train.parquet"), loading.choose_precision(task.dtype)
    )
    assert "our kernels" in made.kernels_said
    assert ("2 parts of a line at once." in made.kernels_said) == beside


def test_angles_that_follow_the_longest_row_are_computed_by_one_thread(
    job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = job(peft={"lora_dropout": 0.0})
    made = engine.build_trainer(
        task, engine.read_rows(task.tokens / "train.parquet"), loading.choose_precision(task.dtype)
    )
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert made._can_compute_beside()
    rotary = next(m for m in made.model.modules() if hasattr(m, "rope_type"))
    monkeypatch.setattr(rotary, "rope_type", "longrope")
    assert not made._can_compute_beside()
    monkeypatch.undo()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert not made._can_compute_beside()

"""The order in which rows are read."""

import itertools
import random
from collections.abc import Callable

import pytest

from tasks.errors import UserError
from tasks.training import engine, loading
from tasks.training.arguments import steps_of
from tasks.training.batches import RowOrder, row_order, total_steps
from tasks.training.job import TrainingJob

MakeJob = Callable[..., TrainingJob]
_GENERATOR = random.Random(1)
LENGTHS = [_GENERATOR.randrange(10, 500) for _ in range(1003)]


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("rows", [0, 1, 7, 8, 9, 1003])
def test_every_row_is_read_once(rows: int, grouped: bool) -> None:
    for epoch in (0, 1):
        order = row_order(LENGTHS[:rows], 8, 3, epoch, grouped)
        assert sorted(order) == list(range(rows))


@pytest.mark.parametrize("grouped", [True, False])
def test_the_order_depends_on_seed_and_epoch_alone(grouped: bool) -> None:
    order = row_order(LENGTHS, 8, 3, 1, grouped)
    random.random()
    assert row_order(LENGTHS, 8, 3, 1, grouped) == order
    assert row_order(LENGTHS, 8, 3, 2, grouped) != order
    assert row_order(LENGTHS, 8, 4, 1, grouped) != order


def test_grouped_batches_are_little_padding() -> None:
    def share_of_tokens(grouped: bool) -> float:
        order = row_order(LENGTHS, 8, 3, 0, grouped)
        batches = [order[at : at + 8] for at in range(0, len(order), 8)]
        padded = sum(len(b) * max(LENGTHS[r] for r in b) for b in batches)
        return sum(LENGTHS) / padded

    assert share_of_tokens(grouped=True) > 0.95
    assert share_of_tokens(grouped=False) < 0.7


def test_the_longest_row_is_in_the_first_batch_and_the_ragged_batch_comes_last() -> None:
    order = row_order(LENGTHS, 8, 3, 0, True)
    assert LENGTHS.index(max(LENGTHS)) in order[:8]
    assert len(order) % 8 == 3
    # Every full batch holds neighbours by length; a ragged one in the middle would shift them all.
    spreads = [
        max(part) - min(part)
        for at in range(8, 992, 8)
        if (part := [LENGTHS[r] for r in order[at : at + 8]])
    ]
    assert max(spreads) < 60


def test_batches_of_one_length_do_not_follow_each_other() -> None:
    order = row_order(LENGTHS, 8, 3, 0, True)
    means = [sum(LENGTHS[r] for r in order[at : at + 8]) / 8 for at in range(0, 992, 8)]
    falling = sum(a >= b for a, b in itertools.pairwise(means)) / (len(means) - 1)
    assert 0.3 < falling < 0.7


def test_the_sampler_reads_the_epoch_it_is_told() -> None:
    sampler = RowOrder(LENGTHS, 8, 3, grouped=True)
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) == row_order(LENGTHS, 8, 3, 1, True) != first
    assert len(sampler) == len(LENGTHS)


@pytest.mark.parametrize(
    ("rows", "batch", "accumulation", "epochs", "max_steps", "expected"),
    [
        (26, 4, 1, 2, -1, 14),
        (26, 4, 2, 2, -1, 8),
        (26, 4, 2, 1.5, -1, 6),
        (1, 8, 4, 3, -1, 3),
        (1000, 8, 4, 3, 10, 10),
        (42, 4, 4, 2, -1, 6),
    ],
)
def test_steps_are_counted_as_the_trainer_counts_them(
    rows: int, batch: int, accumulation: int, epochs: float, max_steps: int, expected: int
) -> None:
    assert total_steps(rows, batch, accumulation, epochs, max_steps) == expected


@pytest.mark.parametrize(
    ("rows", "accumulation", "epochs", "expected"), [(41, 4, 2, 6), (33, 4, 2, 4), (35, 4, 1, 2)]
)
def test_steps_without_the_ragged_batch_are_counted_as_the_trainer_counts_them(
    rows: int, accumulation: int, epochs: float, expected: int
) -> None:
    assert total_steps(rows, 4, accumulation, epochs, -1, drop_last=True) == expected


def test_only_what_does_not_fill_the_recipes_own_batch_is_dropped(job: MakeJob) -> None:
    training = {
        "dataloader_drop_last": True,
        "gradient_accumulation_steps": 4,
        "num_train_epochs": 1,
    }
    task = job(peft={"lora_dropout": 0.0}, training=training)
    rows = engine.read_rows(task.tokens / "train.parquet")
    ours = engine.build_trainer(task, rows, loading.choose_precision("float32"))
    loader = ours.get_train_dataloader()
    assert [len(batch) for batch in loader.batch_sampler] == [4] * 6
    *_, steps = ours.set_initial_training_values(ours.args, loader)
    assert steps == steps_of(task.training_config, len(rows)) == 2


def test_a_batch_that_no_rows_fill_is_refused_where_it_would_be_dropped(job: MakeJob) -> None:
    training = {"dataloader_drop_last": True, "per_device_train_batch_size": 32}
    with pytest.raises(UserError, match="a batch of 32, and there are 26 training rows"):
        steps_of(job(training=training).training_config, 26)

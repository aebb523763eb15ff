"""Packs: every row once, nothing above the capacity, as full as best-fit decreasing makes them."""

import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tasks.artifacts import Dataset, Tokens
from tasks.base import Base
from tasks.store import Store
from tasks.tokenization.best_fit import Plan, best_fit_decreasing
from tasks.tokenization.exact_fit import exact_fit
from tasks.tokenization.packing import FULL_ENOUGH, TRAIN_PACKS, Packs, pack, write_packs
from tasks.tokenization.settings import TokenizationSettings
from tasks.tokenization.work import tokenize_dataset
from tasks.training import work as training
from tasks.training.settings import TrainingSettings


def lognormal(mu: float, sigma: float, rows: int, capacity: int, seed: int = 0) -> list[int]:
    values = np.random.default_rng(seed).lognormal(mu, sigma, rows)
    return [int(x) for x in np.clip(np.round(values), 1, capacity)]


def members(packs: Packs) -> list[list[int]]:
    return [
        packs.rows[start:stop].tolist()
        for start, stop in zip(packs.offsets[:-1], packs.offsets[1:], strict=True)
    ]


def spaces_of(plan: Plan, capacity: int) -> list[int]:
    spaces = [capacity] * plan.packs
    for length, packs in plan.owners.items():
        for number in packs:
            spaces[number] -= length
    return spaces


def textbook(lengths: list[int], capacity: int) -> list[int]:
    """Space left in each pack, by the textbook: one row at a time, every pack looked at."""
    spaces: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [at for at, space in enumerate(spaces) if space >= length]
        if fitting:
            spaces[min(fitting, key=lambda at: spaces[at])] -= length
        else:
            spaces.append(capacity - length)
    return sorted(spaces)


def some_lengths(seed: int) -> tuple[list[int], int]:
    generator = random.Random(seed)
    capacity = generator.choice([8, 50, 97, 1000])
    longest = generator.choice([capacity, capacity // 2, capacity // 5 + 1])
    return [generator.randint(1, longest) for _ in range(generator.randint(1, 400))], capacity


@pytest.mark.parametrize("seed", range(40))
def test_best_fit_on_counts_leaves_the_spaces_of_the_textbook(seed: int) -> None:
    lengths, capacity = some_lengths(seed)
    plan = best_fit_decreasing(Counter(lengths), capacity)
    assert {length: len(packs) for length, packs in plan.owners.items()} == Counter(lengths)
    assert sorted(spaces_of(plan, capacity)) == textbook(lengths, capacity)


@pytest.mark.parametrize("seed", range(40))
def test_every_row_is_in_one_pack_and_none_is_above_the_capacity(seed: int) -> None:
    lengths, capacity = some_lengths(seed)
    found = members(pack(lengths, capacity))
    assert sorted(row for rows in found for row in rows) == list(range(len(lengths)))
    assert max(sum(lengths[row] for row in rows) for rows in found) <= capacity
    assert len(found) <= len(textbook(lengths, capacity))


@pytest.mark.parametrize("seed", range(40))
def test_full_packs_use_the_rows_that_are_there(seed: int) -> None:
    lengths, capacity = some_lengths(seed)
    plan = exact_fit(Counter(lengths), capacity)
    assert {length: len(packs) for length, packs in plan.owners.items()} == Counter(lengths)
    spaces = spaces_of(plan, capacity)
    assert 0 <= min(spaces) <= max(spaces) < capacity


@pytest.mark.parametrize(
    ("mu", "sigma", "capacity"),
    [(5.0, 1.0, 1024), (5.5, 0.8, 2048), (6.0, 1.0, 2048), (6.2, 1.0, 4096), (7.0, 1.2, 32768)],
)
def test_packs_of_100_000_log_normal_rows_are_999_permille_full(
    mu: float, sigma: float, capacity: int
) -> None:
    lengths = lognormal(mu, sigma, 100_000, capacity)
    packs = pack(lengths, capacity)
    assert packs.fill >= 0.999
    assert packs.fill == sum(lengths) / (len(packs) * capacity)
    # Best fit alone was full enough, so that nothing else was tried.
    assert len(packs) == best_fit_decreasing(Counter(lengths), capacity).packs


@pytest.mark.parametrize(
    ("mu", "sigma", "capacity"), [(5.0, 0.3, 1024), (6.0, 0.3, 2048), (6.0, 0.5, 2048)]
)
def test_where_best_fit_leaves_gaps_because_rows_are_alike_other_packs_are_found(
    mu: float, sigma: float, capacity: int
) -> None:
    lengths = lognormal(mu, sigma, 100_000, capacity)
    best = best_fit_decreasing(Counter(lengths), capacity)
    assert sum(lengths) / (best.packs * capacity) < FULL_ENOUGH
    assert pack(lengths, capacity).fill >= 0.999


def test_the_packs_depend_on_the_lengths_alone() -> None:
    lengths = lognormal(5.0, 1.0, 5000, 1024)
    first = pack(lengths, 1024)
    np.random.seed(1)
    again = pack(np.array(lengths, dtype=np.int16), 1024)
    assert first.rows.tolist() == again.rows.tolist()
    assert first.offsets.tolist() == again.offsets.tolist()


def test_the_longest_row_of_a_pack_comes_first() -> None:
    lengths = lognormal(4.0, 1.0, 2000, 256)
    for rows in members(pack(lengths, 256)):
        sizes = [lengths[row] for row in rows]
        assert sizes == sorted(sizes, reverse=True)


def test_rows_as_long_as_a_pack_stand_alone() -> None:
    assert members(pack([8, 8, 1], 8)) == [[0], [1], [2]]


def test_no_rows_make_no_packs() -> None:
    packs = pack([], 8)
    assert (len(packs), packs.fill, packs.rows.tolist()) == (0, 1.0, [])


@pytest.mark.parametrize("lengths", [[3, 9], [0, 3], [-1]])
def test_a_length_that_no_pack_can_hold_is_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="a pack takes 1 to 8"):
        pack(lengths, 8)


def test_the_file_holds_row_numbers_pack_after_pack_and_the_capacity(tmp_path: Path) -> None:
    packs = write_packs(tmp_path, [3, 7, 5, 2, 8], 10)
    table = pq.read_table(tmp_path / TRAIN_PACKS)
    assert table["rows"].to_pylist() == members(packs) == [[4, 3], [1, 0], [2]]
    assert table.schema.metadata[b"capacity"] == b"10"


def test_the_same_lengths_write_the_same_bytes(tmp_path: Path) -> None:
    written = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_packs(tmp_path / name, lognormal(4.0, 1.0, 2000, 256), 256)
        written.append((tmp_path / name / TRAIN_PACKS).read_bytes())
    assert written[0] == written[1]


def test_the_stage_packs_its_training_rows_only_where_the_recipe_says_so(
    tmp_path: Path, starter: Path
) -> None:
    base = Base(starter, "../starter", None, "w", "t")
    (tmp_path / "data").mkdir()
    for side, rows in (("train", 40), ("test", 5)):
        conversations = [
            {
                "id": f"{side}-{at}",
                "group": f"{side}-{at}",
                "source": f"{side}.jsonl:{at}",
                "label": None,
                "messages": [
                    {"role": "user", "content": f"What is {at}? " * (1 + at % 5)},
                    {"role": "assistant", "content": f"A number, {at}."},
                ],
            }
            for at in range(rows)
        ]
        text = "".join(json.dumps(row) + "\n" for row in conversations)
        (tmp_path / "data" / f"{side}.jsonl").write_text(text)
    dataset = Dataset(
        path=tmp_path / "data",
        fingerprint="f",
        reused=False,
        seconds=0,
        digest="d",
        rows={"train": 40, "test": 5},
    )

    def tokenize(packing: bool) -> Tokens:
        settings = TokenizationSettings(max_length=128, packing=packing)
        return tokenize_dataset(Store(tmp_path / "store"), settings, dataset=dataset, base=base)

    def adapter(tokens: Tokens) -> str:
        settings = TrainingSettings()
        return training.fingerprint_of(
            settings, seed=1, tokens_fingerprint=tokens.fingerprint, base=base
        )

    alone, together = tokenize(packing=False), tokenize(packing=True)
    assert not (alone.path / TRAIN_PACKS).exists()
    lengths = [len(ids) for ids in pq.read_table(together.path / "train.parquet")["input_ids"]]
    found = pq.read_table(together.path / TRAIN_PACKS)["rows"].to_pylist()
    assert found == members(pack(lengths, 128))
    assert len(found) < len(lengths) == 40
    assert adapter(alone) != adapter(together)
    rows = [(tokens.path / "train.parquet").read_bytes() for tokens in (alone, together)]
    assert rows[0] == rows[1]

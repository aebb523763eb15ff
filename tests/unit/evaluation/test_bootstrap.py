"""The paired bootstrap."""

import numpy as np
import pytest

from tasks.evaluation import bootstrap
from tasks.evaluation.comparisons import Comparisons


def means(scores: list[float]) -> np.ndarray:
    return np.array([[score, 1.0] for score in scores])


def test_equal_contestants_differ_by_exactly_nothing() -> None:
    scores = means([0.1, 0.7, 0.3, 0.9])
    others = {f"other {n}": {"rougeL": scores * n} for n in range(2, 15)}
    found = Comparisons({"a": {"rougeL": scores}, **others, "b": {"rougeL": scores.copy()}}, 200)
    difference = found.against("a", "b")["rougeL"]
    assert (difference.mean, difference.low, difference.high) == (0.0, 0.0, 0.0)


def test_the_last_bits_of_a_sum_are_no_difference() -> None:
    assert bootstrap.interval(np.array([1e-16, 2e-16, 3e-16]), 0.95) == (0.0, 0.0)


def test_resamples_are_paired_across_contestants() -> None:
    # Rows vary widely, but one contestant is better by the same amount in each of them.
    scores = np.random.default_rng(0).normal(size=50) * 100
    found = Comparisons(
        {"a": {"rougeL": means((scores + 1).tolist())}, "b": {"rougeL": means(scores.tolist())}},
        500,
    )
    difference = found.against("a", "b")["rougeL"]
    assert difference.low == pytest.approx(1)
    assert difference.high == pytest.approx(1)


def test_the_interval_has_the_width_that_theory_gives() -> None:
    scores = np.random.default_rng(1).normal(size=400)
    sums = bootstrap.resampled_sums({"x": means(scores.tolist())}, 4000)["x"]
    low, high = bootstrap.interval(sums[:, 0] / sums[:, 1], 0.95)
    expected = 2 * 1.96 * scores.std() / np.sqrt(len(scores))
    assert high - low == pytest.approx(expected, rel=0.08)
    assert low < scores.mean() < high


def test_a_higher_confidence_gives_a_wider_interval() -> None:
    sums = bootstrap.resampled_sums({"x": means([0.0, 0.2, 0.5, 0.9, 1.0])}, 1000)["x"]
    values = sums[:, 0] / sums[:, 1]
    narrow, wide = bootstrap.interval(values, 0.8), bootstrap.interval(values, 0.99)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_the_same_seed_gives_the_same_resamples_and_another_seed_others() -> None:
    statistics = {"x": means([0.0, 0.2, 0.5, 0.9, 1.0])}
    first = bootstrap.resampled_sums(statistics, 300)["x"]
    assert (first == bootstrap.resampled_sums(statistics, 300)["x"]).all()
    assert (first != bootstrap.resampled_sums(statistics, 300, seed=1)["x"]).any()


def test_resamples_drawn_in_blocks_are_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "DRAWS_AT_ONCE", 12)
    sums = bootstrap.resampled_sums({"x": means([0.0, 0.2, 0.5, 0.9, 1.0])}, 301)["x"]
    assert sums.shape == (301, 2)
    assert (sums[:, 1] == 5).all()
    assert len(np.unique(sums[:, 0].round(6))) > 30


def test_resamples_without_a_known_row_are_left_out() -> None:
    # One row of three is known: a third of the resamples hold none of it.
    known = np.array([[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    found = Comparisons({"a": {"rougeL": known}, "b": {"rougeL": 0.25 * known * [1, 4]}}, 200)
    difference = found.against("a", "b")["rougeL"]
    assert (difference.low, difference.high) == (0.75, 0.75)

"""Paired tests: known p-values for known rows, and how intervals and p-values agree."""

import itertools
import math

import numpy as np
import pytest

from tasks.evaluation.aggregates import Array, corpus_chrf, quotient
from tasks.evaluation.bootstrap import resampled_sums
from tasks.evaluation.paired import Gain, adjusted, gain_of, permutation_p_value, resamples_for


def means(scores: list[float] | Array) -> Array:
    return np.column_stack([np.asarray(scores, dtype=np.float64), np.ones(len(scores))])


def gain(mine: Array, theirs: Array, resamples: int = 4000) -> Gain:
    sums = resampled_sums({"mine": mine, "theirs": theirs}, resamples)
    return gain_of(mine, theirs, quotient, 1, sums=(sums["mine"], sums["theirs"]))


def permuted(mine: Array, theirs: Array, margin: float = 0.0, direction: int = 1) -> float:
    return permutation_p_value(mine, theirs, quotient, direction, margin=margin, permutations=20000)


@pytest.mark.parametrize(("wins", "losses"), [(4, 0), (5, 0), (8, 1), (3, 3), (10, 2)])
def test_the_permutation_test_of_right_and_wrong_is_the_sign_test(wins: int, losses: int) -> None:
    both = [1.0] * 50 + [0.0] * 50
    mine = means(both + [1.0] * wins + [0.0] * losses)
    theirs = means(both + [0.0] * wins + [1.0] * losses)
    count = wins + losses
    exact = sum(math.comb(count, k) for k in range(wins, count + 1)) / 2**count
    assert permuted(mine, theirs) == pytest.approx(exact, abs=0.01)


def test_the_permutation_test_is_that_of_all_exchanges() -> None:
    generator = np.random.default_rng(3)
    mine, theirs = means(generator.random(9)), means(generator.random(9) - 0.2)
    differences = mine[:, 0] - theirs[:, 0]
    signs = np.array(list(itertools.product([1, -1], repeat=9)))
    exact = ((signs @ differences) >= differences.sum() - 1e-12).mean()
    assert permuted(mine, theirs) == pytest.approx(exact, abs=0.01)


def test_a_margin_shifts_every_row_and_lower_may_be_better() -> None:
    generator = np.random.default_rng(4)
    theirs = means(generator.random(60))
    mine = means(theirs[:, 0] + 0.1 + 0.1 * generator.normal(size=60))
    assert permuted(mine, theirs, margin=0.05) < 0.01
    assert permuted(mine, theirs, margin=0.1) > 0.1
    assert permuted(theirs, mine, margin=0.05, direction=-1) < 0.01
    with pytest.raises(ValueError, match="no mean"):
        permutation_p_value(
            np.ones((5, 18)), np.zeros((5, 18)), corpus_chrf, 1, margin=0.1, permutations=10
        )


def test_equal_rows_are_never_better() -> None:
    scores = means([0.1, 0.4, 0.9] * 20)
    found = gain(scores, scores.copy())
    assert found.interval(0.95) == (0.0, 0.0)
    assert found.p_value(0.0) == permuted(scores, scores.copy()) == 1.0
    assert found.differing == 0


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_the_interval_lies_above_a_margin_exactly_where_the_p_value_is_small_enough(
    confidence: float,
) -> None:
    generator = np.random.default_rng(5)
    theirs = means(generator.random(40))
    mine = means(theirs[:, 0] + 0.03 + 0.1 * generator.normal(size=40))
    found = gain(mine, theirs)
    low, _ = found.interval(confidence)
    level = (1 - confidence) / 2
    for margin in [*found.resampled[:400:7].tolist(), low, low - 1e-9, low + 1e-9]:
        assert (low > round(margin, 12)) == (found.p_value(margin) <= level), margin


def test_few_differing_rows_widen_the_interval_as_students_t_does() -> None:
    generator = np.random.default_rng(6)
    theirs = means(generator.random(10))
    mine = means(theirs[:, 0] + generator.normal(size=10))
    low, high = gain(mine, theirs, 20000).interval(0.95)
    differences = mine[:, 0] - theirs[:, 0]
    width = 2 * 2.262 * differences.std(ddof=1) / math.sqrt(10)
    assert high - low == pytest.approx(width, rel=0.1)


def test_four_rows_gained_and_none_lost_are_no_proof() -> None:
    """The plain percentile bootstrap would call it one: 1.8 % of its resamples hold none of the four."""
    theirs = means([0.0] * 200)
    mine = means([1.0] * 4 + [0.0] * 196)
    found = gain(mine, theirs, 20000)
    assert np.mean(found.resampled <= 0) < 0.025
    assert found.p_value(0.0) > 0.05


def test_one_row_lost_of_two_hundred_is_no_loss_of_a_twentieth_but_may_be_one_of_a_fiftieth() -> (
    None
):
    """If a twentieth were lost, ten rows would be expected; one or none has probability 0.0005."""
    theirs = means([1.0] * 200)
    mine = means([0.0] + [1.0] * 199)
    found = gain(mine, theirs)
    assert found.p_value(-0.05) < 0.025
    assert found.p_value(-0.02) > 0.05
    assert gain(theirs, theirs.copy()).p_value(-0.001) < 0.001


def test_resamples_that_give_no_number_are_left_out() -> None:
    found = Gain(0.1, np.array([]), 5, 9)
    assert all(map(math.isnan, found.interval(0.95)))
    assert found.p_value(0.0) == 1.0
    known = np.array([[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    assert len(gain(known, 0.25 * known * [1, 4]).resampled) < 4000


def test_corrections_of_a_known_example() -> None:
    values = [0.01, 0.04, 0.03, 0.005]
    assert adjusted(values, "holm") == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert adjusted(values, "bonferroni") == pytest.approx([0.04, 0.16, 0.12, 0.02])
    assert adjusted(values, "none") == values
    assert adjusted([0.9, 0.8], "holm") == [1.0, 1.0]
    assert adjusted([], "holm") == []


def test_there_are_enough_resamples_for_the_smallest_p_value_that_is_asked() -> None:
    assert resamples_for(2000, 1, 0.95) == 2000
    assert resamples_for(100, 3, 0.999) >= 20 * 3 / 0.0005

"""ROUGE of every row is rouge-score's to the bit, whatever the texts and whichever package counts."""

import random
from collections.abc import Sequence

import numpy as np
import pytest

from tasks.evaluation import rouge_rows as module
from tasks.evaluation.aggregates import Array
from tasks.evaluation.rouge_rows import NAMES, Words, rouge_rows

LETTERS = "abcdeAB01 _-.,\n\t  " + "éÖßΣςσİ̈́中文ファ\u200b\u0301\r\x0b\x1c\u2028"


def texts(count: int, seed: int, letters: str = LETTERS) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices(letters, k=rng.randrange(90))) for _ in range(count)]


def by_rouge_score(answers: Sequence[str], references: Sequence[str], words: bool) -> Array:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(NAMES), tokenizer=Words() if words else None)
    found = [scorer.score(r, a) for a, r in zip(answers, references, strict=True)]
    return np.array([[scores[name] for name in NAMES] for scores in found], dtype=np.float64)


def test_precision_recall_and_f_are_rouge_scores_to_the_bit() -> None:
    answers, references = texts(3000, 1), texts(3000, 2)
    found = rouge_rows(answers, references)
    assert found.library == "rouge-score-rs"
    assert found.scores.shape == (3000, 4, 3)
    assert found.scores.tobytes() == by_rouge_score(answers, references, words=True).tobytes()


def test_ascii_is_scored_as_rouge_score_does_by_default() -> None:
    letters = "abcAB 019 .,;-_\n\n'"
    answers, references = texts(2000, 3, letters), texts(2000, 4, letters)
    found = rouge_rows(answers, references)
    assert found.scores.tobytes() == by_rouge_score(answers, references, words=False).tobytes()


def test_a_scorer_that_differs_in_one_bit_is_left_out_and_named() -> None:
    answers, references = texts(40, 5), texts(40, 6)

    def nearly(references: Sequence[str], predictions: Sequence[str]) -> Array:
        return np.nextafter(by_rouge_score(predictions, references, words=True), 2)

    found = rouge_rows(answers, references, nearly)
    assert found.library == "rouge-score"
    assert "rouge-score-rs is left out: it scores 16 of 16 checked rows otherwise" in found.note
    assert found.scores.tobytes() == by_rouge_score(answers, references, words=True).tobytes()


def test_without_the_fast_package_rouge_score_counts() -> None:
    def missing(references: Sequence[str], predictions: Sequence[str]) -> Array:
        raise ModuleNotFoundError("No module named 'rouge_score_rs'")

    found = rouge_rows(["a b"], ["a b"], missing)
    assert found.library == "rouge-score"
    assert "cannot be imported" in found.note
    assert found.scores.tolist() == [[[1.0] * 3] * 4]


def test_checked_rows_are_spread_and_prefer_other_scripts() -> None:
    answers = ["plain"] * 990 + ["Öl"] * 10
    checked = module._sample(answers, ["plain"] * 1000)
    assert len(checked) == module.CHECKED_ROWS
    assert sum(row >= 990 for row in checked) >= 5
    assert min(checked) < 100
    assert module._sample(["x" * 5000], ["x"]) == []


@pytest.mark.parametrize("count", [0, 1])
def test_few_rows_are_scored_too(count: int) -> None:
    assert rouge_rows(["a"] * count, ["a"] * count).scores.shape == (count, 4, 3)

"""Each metric module gives known values for known inputs, and never drops a row."""

import math
import random
from typing import Any

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF

from tasks.evaluation.aggregates import corpus_bleu, corpus_chrf
from tasks.evaluation.catalog import METRICS as FOLDER
from tasks.evaluation.catalog import TEXT_MODULES, reads_texts, shipped
from tasks.evaluation.score_worker import load_modules
from tasks.evaluation.settings import (
    LOWER_IS_BETTER,
    METRICS,
    NO_DIRECTION,
    PREFERENCE_METRICS,
)

WORDS = [
    "open",
    "close",
    "file",
    "the",
    "a",
    "line",
    "of",
    "text",
    "queue",
    "read",
    "write",
    "until",
    "end",
]


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        # This fixture is older than the test's own home; `evaluate` reads these when imported.
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
        for name in ("HF_MODULES_CACHE", "HF_METRICS_CACHE", "HF_EVALUATE_CACHE"):
            patch.setenv(name, str(tmp_path_factory.mktemp(name.lower())))
        return load_modules(
            shipped(folder.name) for folder in sorted(FOLDER.iterdir()) if folder.name[0] != "_"
        )


def scored(modules: dict[str, Any], name: str, **inputs: Any) -> dict[str, Any]:
    result: dict[str, Any] = modules[name].compute(**inputs)
    return result


def test_the_modules_offer_exactly_the_metrics_of_the_recipe(modules: dict[str, Any]) -> None:
    inputs: dict[str, dict[str, Any]] = {
        name: {"predictions": ["a b"], "references": ["a b"]}
        for name in modules
        if reads_texts(shipped(name))
    }
    inputs["schema_match"]["schema"] = {}
    inputs["loss"] = {"nll": [1.0], "correct": [1], "trained_tokens": [2]}
    inputs["stop_rate"] = {"predictions": ["a b"], "stopped": [True]}
    inputs["mean_length"] = {"tokens": [3]}
    inputs["embedding_similarity"] = {"similarity": [1.0]}
    inputs["judge"] = {"verdicts": [1.0]}
    inputs["preference"] = {
        "nll": [1.0],
        "trained_tokens": [2],
        "rejected_nll": [3.0],
        "rejected_tokens": [4],
    }
    assert set(inputs) == set(modules)
    found = [m for name in inputs for m in scored(modules, name, **inputs[name])["statistics"]]
    assert sorted(found) == sorted(METRICS)


def test_one_exact_and_one_empty_answer_are_half_right(modules: dict[str, Any]) -> None:
    answers, truth = ["Open a file.\n", ""], ["Open a file.", "Close it."]
    result = scored(modules, "exact_match", predictions=answers, references=truth)
    assert result["exact_match"] == 0.5
    assert result["rows"]["exact_match"] == [1.0, 0.0]
    rouge = scored(modules, "rouge", predictions=answers, references=truth)
    assert rouge["rougeL"] == 0.5


def test_rouge_of_a_known_pair(modules: dict[str, Any]) -> None:
    result = scored(modules, "rouge", predictions=["The cat sat."], references=["the cat ran away"])
    # Precision 2/3, recall 2/4 in words; 1/2 and 1/3 in pairs.
    assert result["rouge1"] == pytest.approx(4 / 7)
    assert result["rouge2"] == pytest.approx(2 / 5)
    assert result["rougeL"] == pytest.approx(4 / 7)
    assert result["rougeLsum"] == pytest.approx(4 / 7)


def test_rouge_of_ascii_text_is_that_of_rouge_score(modules: dict[str, Any]) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    generator = random.Random(0)
    texts = [
        "".join(generator.choice("abC _-.,\n\t012") for _ in range(generator.randrange(60)))
        for _ in range(200)
    ]
    answers, truth = texts[:100], texts[100:]
    names = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    theirs = RougeScorer(names)
    rows = scored(modules, "rouge", predictions=answers, references=truth)["rows"]
    for number, (answer, reference) in enumerate(zip(answers, truth, strict=True)):
        expected = theirs.score(reference, answer)
        assert [rows[name][number] for name in names] == [expected[n].fmeasure for n in names]


@pytest.mark.parametrize(
    "text", ["Öffnet die größte Datei", "打开文件", "ファイルを開く", "Άνοιγμα"]
)
def test_rouge_counts_words_of_every_script(modules: dict[str, Any], text: str) -> None:
    result = scored(modules, "rouge", predictions=[text, ""], references=[text, text])
    assert result["rows"]["rougeL"] == [1.0, 0.0]


def test_bleu_of_a_known_pair(modules: dict[str, Any]) -> None:
    result = scored(
        modules,
        "bleu",
        predictions=["the cat sat on the mat"],
        references=["the cat sat on a mat"],
    )
    assert result["bleu"] == pytest.approx((5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
    assert result["rows"]["bleu"] == pytest.approx([result["bleu"]])


def test_bleu_punishes_short_answers(modules: dict[str, Any]) -> None:
    result = scored(modules, "bleu", predictions=["a b c d", ""], references=["a b c d", "a b c d"])
    assert result["bleu"] == pytest.approx(math.exp(1 - 8 / 4))


def test_chrf_of_a_known_pair(modules: dict[str, Any]) -> None:
    result = scored(modules, "chrf", predictions=["ab"], references=["abc"])
    precision, recall = 1.0, (2 / 3 + 1 / 2) / 2
    assert result["chrf"] == pytest.approx(5 * precision * recall / (4 * precision + recall))


def test_loss_weighs_tokens_and_not_rows(modules: dict[str, Any]) -> None:
    result = scored(modules, "loss", nll=[2.0, 1.0], correct=[0, 3], trained_tokens=[1, 3])
    assert result["loss"] == 0.75
    assert result["perplexity"] == pytest.approx(math.exp(0.75))
    assert result["token_accuracy"] == 0.75
    assert result["rows"]["loss"] == pytest.approx([2.0, 1 / 3])


def test_an_overflowing_perplexity_is_infinite_and_no_crash(modules: dict[str, Any]) -> None:
    assert scored(modules, "loss", nll=[1e6], correct=[0], trained_tokens=[1])[
        "perplexity"
    ] == float("inf")


def test_preference_counts_pairs_alone_and_a_tie_as_half(modules: dict[str, Any]) -> None:
    result = scored(
        modules,
        "preference",
        # Likelier as a whole, likelier by token alone, tied in both, no pair, no number.
        nll=[2.0, 9.0, 4.0, 1.0, float("nan")],
        trained_tokens=[1, 9, 2, 1, 1],
        rejected_nll=[3.0, 6.0, 4.0, None, 1.0],
        rejected_tokens=[3, 2, 2, None, 1],
    )
    assert result["rows"] == {
        "preference_accuracy": [1.0, 0.0, 0.5, None, 0.0],
        "preference_accuracy_per_token": [0.0, 1.0, 0.5, None, 0.0],
    }
    assert result["preference_accuracy"] == 1.5 / 4
    assert result["statistics"]["preference_accuracy"][3] == [0.0, 0.0]


def test_an_empty_answer_has_the_worst_score_of_every_metric_with_a_direction(
    modules: dict[str, Any],
) -> None:
    """Otherwise an adapter that says nothing would gain by it."""
    answers, truth = ["", " \n"], ["Open the file.", '{"open": 1}']
    more: dict[str, dict[str, Any]] = {"schema_match": {"schema": {}}}
    found: dict[str, list[float]] = {}
    for name in modules:
        if reads_texts(shipped(name)):
            inputs = {"predictions": answers, "references": truth, **more.get(name, {})}
            found |= scored(modules, name, **inputs)["rows"]
    inputs = {"predictions": answers, "stopped": [True, True]}
    found |= scored(modules, "stop_rate", **inputs)["rows"]
    judged = set(METRICS) - NO_DIRECTION - {"judge", "embedding_similarity"}
    # These look at the references' tokens, not at answers.
    judged -= {"loss", "perplexity", "token_accuracy", *PREFERENCE_METRICS}
    worst = {name: [1.0, 1.0] if name in LOWER_IS_BETTER else [0.0, 0.0] for name in judged}
    assert {name: rows for name, rows in found.items() if name in judged} == worst


def test_stop_rate_and_mean_length(modules: dict[str, Any]) -> None:
    inputs = {"predictions": ["a", "b", "c", " "], "stopped": [True, False, True, True]}
    assert scored(modules, "stop_rate", **inputs)["stop_rate"] == 0.5
    assert scored(modules, "mean_length", tokens=[0, 10, 5])["mean_length"] == 5


@pytest.mark.parametrize("answer", ["", ".", "...", "\n", " ", "\u200b"])
def test_answers_without_a_word_score_zero_and_are_counted(
    modules: dict[str, Any], answer: str
) -> None:
    for name in TEXT_MODULES:
        result = scored(modules, name, predictions=[answer] * 3, references=["Open it now"] * 3)
        for metric, rows in result["rows"].items():
            assert rows == [0.0] * 3, metric
        for metric, statistics in result["statistics"].items():
            assert result[metric] == 0.0
            assert len(statistics) == 3


def test_resampled_bleu_and_chrf_are_sacrebleus(modules: dict[str, Any]) -> None:
    generator = random.Random(1)

    def text(longest: int) -> str:
        return " ".join(generator.choices(WORDS, k=generator.randrange(longest)))

    for longest, count in ((12, 30), (3, 5), (6, 2), (2, 8), (30, 1), (1, 3)):
        answers = [text(longest) for _ in range(count)]
        truth = [text(longest + 3) for _ in range(count)]
        for name, ours, theirs in (
            ("bleu", corpus_bleu, BLEU(force=True)),
            ("chrf", corpus_chrf, CHRF()),
        ):
            result = scored(modules, name, predictions=answers, references=truth)
            sums = np.asarray(result["statistics"][name], dtype=np.float64).sum(axis=0)
            expected = theirs.corpus_score(answers, [truth]).score / 100
            assert float(ours(sums)) == pytest.approx(expected, abs=1e-9), (name, longest)
            assert ours(np.stack([sums, sums])).tolist() == [float(ours(sums))] * 2

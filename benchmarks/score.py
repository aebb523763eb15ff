"""How fast answers are scored: ROUGE of every row against rouge-score's loop, and the paired bootstrap."""

import random
import time

import numpy as np
from harness import Result, main, ratio
from train_work import texts

from tasks.evaluation.bootstrap import resampled_sums
from tasks.evaluation.comparisons import Comparisons
from tasks.evaluation.rouge_rows import NAMES, Words, rouge_rows

ROWS = 2_000
RESAMPLES = 10_000


def pairs(rows: int) -> tuple[list[str], list[str]]:
    """Answers and references of one to eight sentences each, of which about half are shared.

    The sentences are real documentation; every tenth reference has words of other scripts too.
    """
    rng = random.Random(0)
    sentences = [answer.removesuffix("<|end|>") for _, answer in texts(2_000)]
    answers, references = [], []
    for row in range(rows):
        reference = rng.choices(sentences, k=rng.randint(1, 8))
        answer = [rng.choice(sentences) if rng.random() < 0.5 else kept for kept in reference]
        if row % 10 == 0:
            reference.append("Öffnet die größte Datei. 打开文件。 Άνοιγμα αρχείου.")
            answer.append("Öffne die Datei. 打开 Άνοιγμα")
        references.append("\n".join(reference))
        answers.append("\n".join(answer[: rng.randint(0, 9)]))
    return answers, references


def measure(quick: bool) -> Result:
    """Interleaved; rouge-score has the product's words, so that both score the same question."""
    from rouge_score.rouge_scorer import RougeScorer

    answers, references = pairs(ROWS)
    scorer = RougeScorer(list(NAMES), tokenizer=Words())
    reference_seconds, seconds = [], []
    rouge_rows(answers[:2], references[:2])
    for _ in range(3 if quick else 5):
        started = time.perf_counter()
        theirs = [scorer.score(r, a) for a, r in zip(answers, references, strict=True)]
        reference_seconds.append(time.perf_counter() - started)
        started = time.perf_counter()
        ours = rouge_rows(answers, references)
        seconds.append(time.perf_counter() - started)
    expected = np.array([[scores[name] for name in NAMES] for scores in theirs])
    result = Result("score", ("rouge-score", "rouge-score-rs", "numpy"))
    result.ratios["vs_rouge_score"] = ratio(reference_seconds, seconds)
    result.equal = ours.scores.tobytes() == expected.tobytes() and not ours.note
    result.values = {
        "rows_per_second": len(answers) / min(seconds),
        "reference_rows_per_second": len(answers) / min(reference_seconds),
        "bootstrap_seconds": bootstrap_seconds(),
    }
    return result


def bootstrap_seconds() -> float:
    """10,000 resamples of 2,000 rows: one metric of three models, both differences, their intervals."""
    drawn = np.random.default_rng(0).random((3, ROWS))
    statistics = {
        model: {"rougeL": np.stack([scores, np.ones(ROWS)], axis=1)}
        for model, scores in zip(("base", "champion", "challenger"), drawn, strict=True)
    }
    resampled_sums({"warm": statistics["base"]["rougeL"]}, 100)
    runs = []
    for _ in range(3):
        started = time.perf_counter()
        found = Comparisons(statistics, RESAMPLES)
        for other in ("base", "champion"):
            found.against("challenger", other)
        runs.append(time.perf_counter() - started)
    return min(runs)


if __name__ == "__main__":
    main(measure, __doc__ or "")

"""Corpus BLEU by sacrebleu, on 0-1."""

from typing import Any

import datasets
import evaluate
from sacrebleu.metrics import BLEU

DESCRIPTION = (
    "Corpus BLEU (0-1): sacrebleu's score divided by 100, tokenizer 13a, exponential smoothing. "
    "A row's score is its sentence BLEU with effective n-gram order; the value is no mean of these."
)
INPUTS = """
Args:
    predictions: list of str, one a row; an empty one adds length to the brevity penalty and scores 0.
    references: list of str.
Returns:
    bleu: float, 0-1.
    rows: {"bleu": list of float}.
    statistics: {"bleu": list of 10 counts: words of the answer, words of the reference, matching
        n-grams for n = 1..4, n-grams of the answer for n = 1..4}; the value follows from their sums.
"""


class Bleu(evaluate.Metric):
    """Corpus BLEU."""

    def _info(self) -> Any:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="Matt Post. A Call for Clarity in Reporting BLEU Scores. 2018.",
            inputs_description=INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, Any]:
        # `force` stops the advice that answers ending in " ." look tokenized.
        corpus = BLEU(force=True)
        sentence = BLEU(effective_order=True, force=True)
        value = corpus.corpus_score(predictions, [references]).score / 100
        rows, statistics = [], []
        for prediction, reference in zip(predictions, references, strict=True):
            score = sentence.sentence_score(prediction, [reference])
            rows.append(score.score / 100)
            statistics.append([score.sys_len, score.ref_len, *score.counts, *score.totals])
        return {"bleu": value, "rows": {"bleu": rows}, "statistics": {"bleu": statistics}}

"""ROUGE-1, ROUGE-2, ROUGE-L and ROUGE-Lsum (F-measure), computed by the rouge-score package."""

import re
import unicodedata
from typing import Any

import datasets
import evaluate
from rouge_score import rouge_scorer, tokenizers

NAMES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
DESCRIPTION = (
    "Mean F-measures (0-1) of the ROUGE family (Lin 2004), no stemming. "
    "ROUGE-Lsum takes each line as a sentence."
)
INPUTS = """
Args:
    predictions: list of str, one a row; one without a word (empty, or a lone full stop) scores 0.
    references: list of str.
Returns:
    rouge1, rouge2, rougeL, rougeLsum: float, 0-1.
    rows: name -> list of float.
    statistics: name -> list of [score, 1]; the value is the quotient of their sums.
"""
# On ASCII text these are rouge-score's own words, to the bit. Its pattern drops every other letter,
# so that an answer in Greek would score 0; scripts without spaces are taken character by character.
WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"
    r"|[^\W_\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+"
)


class Words(tokenizers.Tokenizer):
    """Lower-case words of any script."""

    def tokenize(self, text: str) -> list[str]:
        """The words of `text`, in order."""
        return WORD.findall(unicodedata.normalize("NFC", text).lower())


class Rouge(evaluate.Metric):
    """The ROUGE family."""

    def _info(self) -> Any:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="Chin-Yew Lin. ROUGE: A Package for Automatic Evaluation of Summaries. 2004.",
            inputs_description=INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, Any]:
        scorer = rouge_scorer.RougeScorer(list(NAMES), tokenizer=Words())
        rows: dict[str, list[float]] = {name: [] for name in NAMES}
        for prediction, reference in zip(predictions, references, strict=True):
            scores = scorer.score(target=reference, prediction=prediction)
            for name in NAMES:
                rows[name].append(float(scores[name].fmeasure))
        values: dict[str, Any] = {name: sum(rows[name]) / len(rows[name]) for name in NAMES}
        return {
            **values,
            "rows": rows,
            "statistics": {name: [[score, 1.0] for score in rows[name]] for name in NAMES},
        }

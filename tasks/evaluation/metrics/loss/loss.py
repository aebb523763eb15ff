"""Loss, perplexity and token accuracy of reference answers, weighted by token."""

import math
from typing import Any

import datasets
import evaluate

DESCRIPTION = (
    "Teacher-forced loss (nats per trained token), its exponential, and the share (0-1) of trained "
    "tokens that were the model's first choice. Each token weighs the same, whatever its row."
)
INPUTS = """
Args:
    nll: list of float, one a row: the sum of -log p over the row's trained tokens.
    correct: list of int: trained tokens that were the most likely one.
    trained_tokens: list of int, at least 1 each.
Returns:
    loss, perplexity, token_accuracy: float.
    rows: name -> list of float.
    statistics: name -> list of [sum, trained tokens]; the value is the quotient of their sums
        (perplexity: its exponential).
"""


class Loss(evaluate.Metric):
    """Loss, perplexity and token accuracy."""

    def _info(self) -> Any:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features(
                {
                    "nll": datasets.Value("float64"),
                    "correct": datasets.Value("int64"),
                    "trained_tokens": datasets.Value("int64"),
                }
            ),
        )

    def _compute(
        self, nll: list[float], correct: list[int], trained_tokens: list[int]
    ) -> dict[str, Any]:
        losses = [total / n for total, n in zip(nll, trained_tokens, strict=True)]
        shares = [hits / n for hits, n in zip(correct, trained_tokens, strict=True)]
        tokens = sum(trained_tokens)
        loss = sum(nll) / tokens
        sums = [[total, float(n)] for total, n in zip(nll, trained_tokens, strict=True)]
        hits = [[float(c), float(n)] for c, n in zip(correct, trained_tokens, strict=True)]
        return {
            "loss": loss,
            "perplexity": _exp(loss),
            "token_accuracy": sum(correct) / tokens,
            "rows": {
                "loss": losses,
                "perplexity": [_exp(value) for value in losses],
                "token_accuracy": shares,
            },
            "statistics": {"loss": sums, "perplexity": sums, "token_accuracy": hits},
        }


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf

"""The recipe's section `evaluation`: what is measured, and the gate that a version must pass."""

from typing import Literal, get_args

from pydantic import Field, model_validator

from tasks.quantization import Quantization
from tasks.settings import Settings

Metric = Literal[
    "loss",
    "perplexity",
    "token_accuracy",
    "exact_match",
    "rouge1",
    "rouge2",
    "rougeL",
    "rougeLsum",
    "bleu",
    "chrf",
    "stop_rate",
    "mean_length",
    "preference_accuracy",
    "preference_accuracy_per_token",
]
METRICS: tuple[Metric, ...] = get_args(Metric)
LOWER_IS_BETTER = frozenset({"loss", "perplexity"})
PREFERENCE_METRICS: tuple[Metric, ...] = ("preference_accuracy", "preference_accuracy_per_token")
"""Measured where test rows are pairs of answers, as `dpo`, `orpo` and `kto` learn from them."""
NO_DIRECTION = frozenset({"mean_length"})
"""Neither more nor less of it is better, so that no gain can be asked of it."""


class GateRule(Settings):
    """One condition for promotion: a bound on the metric, or a gain against another model."""

    metric: Metric
    against: Literal["base", "champion"] | None = None
    """Compare with this model on the same rows. Without a champion, `champion` means the base."""
    min_gain: float | None = Field(default=None, allow_inf_nan=False)
    """The gain (in the metric's better direction) must exceed this; negative tolerates a small loss."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """The gain's bootstrap interval at this confidence must lie above `min_gain`."""
    min: float | None = Field(default=None, allow_inf_nan=False)
    """The challenger's own value must be at least this."""
    max: float | None = Field(default=None, allow_inf_nan=False)
    """The challenger's own value must be at most this."""

    @model_validator(mode="after")
    def _one_kind(self) -> "GateRule":
        bounds = self.min is not None or self.max is not None
        if (self.against is not None) != (self.min_gain is not None) or bounds == (
            self.against is not None
        ):
            raise ValueError(
                "a gate rule has either `against` with `min_gain`, or `min` and/or `max`"
            )
        if self.against is not None and self.metric in NO_DIRECTION:
            raise ValueError(
                f"`{self.metric}` has no better direction, so no gain can be asked of it; "
                "bound it with `min` and/or `max`"
            )
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"`min` ({self.min:g}) is above `max` ({self.max:g})")
        return self


class EvaluationSettings(Settings):
    """Base, champion and challenger answer the same test rows, greedily."""

    max_new_tokens: int = Field(default=256, ge=1)
    """Longest answer in tokens; a model that has not stopped by then counts against `stop_rate`."""
    batch_size: int = Field(default=16, ge=1)
    """Prompts generated together. Part of the result: padding changes low bits."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Arithmetic of every model compared. `auto`: bfloat16 on a GPU that has it, float32 on a CPU, where answers then do not depend on the batch."""
    quantization: Quantization = "none"
    """Load the base in 4 or 8 bits. Needed where the GPU cannot hold it otherwise; answers change a little, for all models alike."""
    bootstrap_samples: int = Field(default=2000, ge=100)
    """Resamples of the paired bootstrap behind every interval."""
    sample_answers: int = Field(default=12, ge=0)
    """Answers shown side by side in the report. 0 also keeps the predictions out of MLflow."""
    stall_minutes: float = Field(default=30, gt=0)
    """Stop an evaluation that reports nothing for this long."""
    gate: list[GateRule] = Field(default=[])
    """All rules must hold for promotion. Without rules every trained adapter passes."""

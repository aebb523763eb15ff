"""The rules of `evaluation.gate`: what each may say."""

from typing import Literal

from pydantic import Field, model_validator

from tasks.settings import Settings

CONFIDENCE = 0.95
LEAST_ROWS = 20
"""Rows that a comparison needs where its rule does not say."""
LEAST_SLICE_ROWS = 30
CUSTOM = "custom/"
"""Before the name of a metric of the recipe's own."""
NOT_MEANS = frozenset({"perplexity", "bleu", "chrf", "macro_f1"})
"""Metrics that are no mean over rows, so that no margin can be laid on a single row."""


class GateRule(Settings):
    """One condition for promotion: a bound on a metric, a gain over another model, or a limit to its drop."""

    metric: str | None = Field(default=None, min_length=1)
    """What is judged: a metric's name, or `custom/<name>`. Only a rule on a `suite` may leave it out: the suite's main metric, ROUGE-L where it names none."""
    against: Literal["base", "champion"] | None = None
    """Compare with this model on the same rows; `champion` if left out. Without a champion, `champion` means the base."""
    min_gain: float | None = Field(default=None, allow_inf_nan=False)
    """The gain (in the metric's better direction) must exceed this beyond chance; negative tolerates a small loss (non-inferiority)."""
    max_drop: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """The adapter's value may be worse by at most this. Judged as measured; with `confidence` the drop must also be smaller beyond chance, which few rows seldom show."""
    confidence: float | None = Field(default=None, gt=0.5, le=0.999)
    """Of the interval that must lie above `min_gain` (or above `-max_drop`); 0.95 for gains if left out. Higher promotes less by chance and misses more true gains: half of what is left to 1 is the share of equally good adapters that pass."""
    test: Literal["bootstrap", "permutation"] = "bootstrap"
    """How chance is ruled out. `permutation` is exact for any number of rows; `bootstrap` also takes margins on bleu, chrf and perplexity."""
    min: float | None = Field(default=None, allow_inf_nan=False)
    """The adapter's own value must be at least this."""
    max: float | None = Field(default=None, allow_inf_nan=False)
    """The adapter's own value must be at most this."""
    slice: str | None = Field(default=None, min_length=1)
    """Judge slices of the rows instead of all: `"*"` each one, `source` each of that column, `source=web` this one. Each must hold."""
    suite: str | None = Field(default=None, min_length=1)
    """Judge another set of rows than the test rows, such as `retention`."""
    min_rows: int | None = Field(default=None, ge=1)
    """Fewer rows than this refuse; a slice with fewer is listed as not judged. If left out: 20 for comparisons, 30 for slices, 1 for bounds."""

    @model_validator(mode="after")
    def _one_claim(self) -> "GateRule":
        bounds = self.min is not None or self.max is not None
        claims = [bounds, self.min_gain is not None, self.max_drop is not None]
        if sum(claims) == 0:
            raise ValueError(
                "a gate rule claims something: `min_gain` or `max_drop` (a comparison), or `min` "
                "and/or `max` (a bound)"
            )
        if sum(claims) > 1:
            raise ValueError(_too_many(self))
        if self.metric is None and self.suite is None:
            raise ValueError("`metric` is missing; only a rule on a `suite` may leave it out")
        if self.suite is not None and self.slice is not None:
            raise ValueError(
                "`slice` parts the test rows, and `suite` names other rows: keep one of them"
            )
        if bounds:
            for name in ("against", "confidence", "test"):
                if name in self.model_fields_set and getattr(self, name) is not None:
                    raise ValueError(
                        f"`{name}` belongs to a comparison, and `min` and `max` bound the adapter's own "
                        f"value: delete `{name}`, or write `min_gain` or `max_drop`"
                    )
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"`min` ({self.min:g}) is above `max` ({self.max:g})")
        return self

    @model_validator(mode="after")
    def _test_fits(self) -> "GateRule":
        if self.test == "bootstrap":
            return self
        if self.max_drop is not None and self.confidence is None:
            raise ValueError(
                "`test` says how chance is ruled out, and `max_drop` alone is judged as measured: add "
                "`confidence`, or delete `test`"
            )
        if self.margin and self.metric in NOT_MEANS:
            raise ValueError(
                f"a permutation test lays the margin ({self.margin:g}) on every row, and "
                f"`{self.metric}` is no mean of rows: write `test: bootstrap`, or `min_gain: 0`"
            )
        return self

    @property
    def compares(self) -> bool:
        """Whether it sets the adapter beside another model."""
        return self.min_gain is not None or self.max_drop is not None

    @property
    def opponent(self) -> Literal["base", "champion"]:
        """The model of a comparison."""
        return self.against or "champion"

    @property
    def margin(self) -> float:
        """The gain that must be exceeded (`min_gain`), or may just be reached (`-max_drop`)."""
        if self.max_drop is not None:
            return -self.max_drop
        return self.min_gain or 0.0

    @property
    def level(self) -> float | None:
        """The confidence that decides; None for bounds and for drops that are judged as measured."""
        if self.min_gain is not None:
            return self.confidence or CONFIDENCE
        return self.confidence

    @property
    def claims_a_gain(self) -> bool:
        """Whether it says that the adapter is better, not merely no worse."""
        return self.min_gain is not None and self.min_gain >= 0

    @property
    def least_rows(self) -> int:
        """Rows without which nothing is judged."""
        if self.min_rows is not None:
            return self.min_rows
        if self.slice is not None:
            return LEAST_SLICE_ROWS
        return LEAST_ROWS if self.compares else 1


def _too_many(rule: GateRule) -> str:
    if rule.min_gain is not None and rule.max_drop is not None:
        return (
            f"`max_drop` ({rule.max_drop:g}) and `min_gain` ({rule.min_gain:g}) both bound the same "
            f"difference: keep one, or write two rules"
        )
    return "`min` and `max` bound the adapter's own value, `min_gain` and `max_drop` its difference to another model: write two rules"

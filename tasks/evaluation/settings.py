"""The recipe's section `evaluation`: what is measured, and the gate that a version must pass."""

import json
from typing import Annotated, Literal, get_args

from pydantic import Field, JsonValue, field_validator, model_validator

from tasks.evaluation.gate_mistakes import check_rules
from tasks.evaluation.gate_settings import CUSTOM, GateRule
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
    "token_f1",
    "length_ratio",
    "repetition",
    "distinct_1",
    "distinct_2",
    "accuracy",
    "macro_f1",
    "json_validity",
    "schema_match",
    "embedding_similarity",
    "judge",
]
METRICS: tuple[Metric, ...] = get_args(Metric)
LOWER_IS_BETTER = frozenset({"loss", "perplexity", "repetition"})
PREFERENCE_METRICS: tuple[Metric, ...] = ("preference_accuracy", "preference_accuracy_per_token")
"""Measured where test rows are pairs of answers, as `dpo`, `orpo` and `kto` learn from them."""
NO_DIRECTION = frozenset({"mean_length", "length_ratio"})
"""Neither more nor less of it is better, so that no gain can be asked of it."""
OptionalMetric = Literal["accuracy", "macro_f1", "json_validity"]
"""Measured where the recipe asks for them: they say nothing about free text."""
SHARES = frozenset(METRICS) - {"loss", "perplexity", "mean_length", "length_ratio"}
"""Metrics that lie between 0 and 1."""

JUDGE_PARAMETERS: dict[str, JsonValue] = {"temperature": 0, "max_tokens": 64}
"""What most servers take."""


class JudgeSettings(Settings):
    """Another model that scores every answer, behind any URL that speaks OpenAI's chat completions."""

    url: str = Field(pattern=r"^https?://[^\s]+$")
    """Where its API begins, for example `http://127.0.0.1:8000/v1`. Prompts, references and answers are sent there."""
    model: str = Field(min_length=1)
    """Its name there. Another model scores otherwise: champion and challenger are always judged by the same."""
    instruction: str = Field(
        default="Score how well the answer does what the prompt asks; the reference is one good answer.",
        min_length=1,
    )
    """What it is told to judge by. It is always asked for a whole number from 0 to 10."""
    key_variable: str = Field(default="OPENAI_API_KEY", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """The environment variable that holds the API key; without one, requests go without a key."""
    parameters: dict[str, JsonValue] = Field(default=JUDGE_PARAMETERS)
    """What every request says beside model and messages. It takes the default's place whole: `{max_completion_tokens: 2000}` for models that refuse `max_tokens` or another temperature, and think before they answer. Other parameters are other verdicts, which are asked for again."""
    timeout_seconds: float = Field(default=60, gt=0)
    """Longest wait for one verdict."""
    retries: int = Field(default=3, ge=0, le=20)
    """Further attempts where it is busy, fails or does not answer in time, each after a longer pause."""
    parallel: int = Field(default=4, ge=1, le=256)
    """Requests at a time."""
    max_missing_share: float = Field(default=0.1, ge=0, le=1)
    """Share of rows that may stay without a usable verdict; above it the evaluation fails."""

    @field_validator("parameters")
    @classmethod
    def _ours(cls, values: dict[str, JsonValue]) -> dict[str, JsonValue]:
        ours = sorted({"model", "messages", "stream", "n"} & set(values))
        if ours:
            raise ValueError(
                f"{', '.join(ours)} cannot be set here: a request asks `model` one question, and one "
                "whole reply is read"
            )
        try:
            json.dumps(values, allow_nan=False)
        except ValueError as error:
            raise ValueError("every number in it must be finite: JSON has no others") from error
        return values


class RetentionSettings(Settings):
    """A frozen file of general questions: what the adapter makes the base forget."""

    path: str = Field(min_length=1)
    """JSONL with `messages`, or `prompt` and `answer`. Never change it: scores before and after could no longer be compared. Relative paths start at the recipe's folder."""
    max_rows: int | None = Field(default=None, ge=1)
    """Only the first so many rows."""


class LmEvalSettings(Settings):
    """Tasks of EleutherAI's lm-evaluation-harness, where the package `lm_eval` is installed."""

    tasks: list[str] = Field(min_length=1)
    """Names as its `--tasks` takes them."""
    include_path: str | None = None
    """A folder with task files of your own. Relative paths start at the recipe's folder."""
    limit: int | None = Field(default=None, ge=1)
    """Only the first so many documents of each task."""


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
    sample_answers: int = Field(default=20, ge=0)
    """Answers shown side by side in the report. 0 also keeps the predictions out of MLflow."""
    stall_minutes: float = Field(default=30, gt=0)
    """Stop an evaluation that reports nothing for this long."""
    metrics: list[OptionalMetric] = Field(default=[])
    """Measured beside the standard ones: `accuracy` and `macro_f1` where references are labels, `json_validity` where answers must be JSON."""
    metrics_folder: str | None = Field(default=None, min_length=1)
    """A folder with metric modules of your own (`<name>.py` or `<name>/<name>.py` with an `evaluate.Metric`); each is measured as `custom/<name>`. Their code runs on this machine."""
    json_schema: str | None = Field(default=None, min_length=1)
    """A JSON Schema file; `schema_match` is then the share of answers that are valid by it."""
    embedding_model: str | None = Field(default=None, min_length=1)
    """The folder of a sentence-embedding model; `embedding_similarity` then compares meanings. Costs one pass of it over every answer."""
    judge: JudgeSettings | None = None
    """Let another model score every answer. Costs a request for each."""
    slices: list[Annotated[str, Field(min_length=1)]] = Field(default=[])
    """Every metric again on parts of the test rows: by `length` (of the prompt, in tokens), `turns`, `source`, or any field that the dataset's rows have, as `slice` and `label`."""
    retention: RetentionSettings | None = None
    """Measure a frozen general set too: what base, champion and adapter make of it tells forgetting. Costs its share of time."""
    lm_eval: LmEvalSettings | None = None
    """Run harness tasks on base and adapter. Costs as much as these tasks."""
    gate: list[GateRule] = Field(default=[])
    """All rules must hold for promotion. Without rules every trained adapter passes."""
    gate_correction: Literal["holm", "bonferroni", "none"] = "holm"
    """How p-values are corrected where several rules claim a gain. Since all rules must hold, even `none` promotes no more by chance than one rule does; with the others each single claim of the verdict can be believed too. `bonferroni` misses more true gains."""

    @field_validator("retention", mode="before")
    @classmethod
    def _path_alone(cls, value: object) -> object:
        return {"path": value} if isinstance(value, str) else value

    @field_validator("slices", "metrics")
    @classmethod
    def _once(cls, values: list[str]) -> list[str]:
        doubled = sorted({value for value in values if values.count(value) > 1})
        if doubled:
            raise ValueError(f"{', '.join(doubled)} stands in it twice")
        return values

    @model_validator(mode="after")
    def _rules_are_measured(self) -> "EvaluationSettings":
        """A rule on what is not measured could never be kept."""
        check_rules(
            self.gate,
            metrics=METRICS,
            without_direction=NO_DIRECTION,
            shares=SHARES,
            suites=["retention"] if self.retention is not None else [],
            slices=self.slices,
        )
        needs = {
            "schema_match": ("json_schema", self.json_schema),
            "embedding_similarity": ("embedding_model", self.embedding_model),
            "judge": ("judge", self.judge),
        }
        for rule in self.gate:
            name = rule.metric or ""
            if name in get_args(OptionalMetric) and name not in self.metrics:
                raise ValueError(
                    f"the gate has a rule on `{name}`, which is not measured: add it to `metrics`"
                )
            if name in needs and needs[name][1] is None:
                raise ValueError(
                    f"the gate has a rule on `{name}`, which is not measured: it needs `{needs[name][0]}`"
                )
            if name.startswith(CUSTOM) and self.metrics_folder is None:
                raise ValueError(
                    f"the gate has a rule on `{name}`, but there is no `metrics_folder`"
                )
        return self

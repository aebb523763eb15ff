"""What the evaluation's two worker processes are asked and what they answer."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from tasks.evaluation.settings import JudgeSettings, LmEvalSettings
from tasks.quantization import Quantization

Model = Literal["base", "champion", "challenger"]


class AnswerJob(BaseModel):
    """Measure every model on the test rows and let it answer their prompts."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    base: Path
    adapters: dict[Model, Path]
    """Adapter folders in the order of evaluation; the base comes before them."""
    tokenizer: Path
    """`tokenizer.json`, which turns answers back into text."""
    rows: Path
    """The tokenization's `test.parquet`."""
    stop_tokens: list[int]
    """Every model stops at these, so that none has an advantage."""
    max_new_tokens: int
    batch_size: int
    dtype: Literal["auto", "bfloat16", "float16", "float32"]
    quantization: Quantization
    predictions: Path
    """Written: one row a test row, see `worker.py`."""
    result: Path
    base_sha256: str = ""
    """Of the base's weights; empty: nothing is reused and nothing kept."""
    kept: Path | None = None
    """Folder of earlier predictions, see `kept.py`; None: everything is computed."""
    retention: Path | None = None
    """JSONL of general questions that are answered too."""
    retention_rows: int | None = None
    """Only the first so many of them."""
    retention_predictions: Path | None = None
    """Written: as `predictions`."""
    embedding_model: Path | None = None
    """Compares the meanings of answers and references."""
    lm_eval: LmEvalSettings | None = None
    """Harness tasks that are run too."""
    lm_eval_tasks: Path | None = None
    """A folder with task files of the user's own."""


class AnswerResult(BaseModel):
    """How the answers came about."""

    rows: int
    device: str
    dtype: str
    quantization: str
    batch_size: int
    max_new_tokens: int
    stop_tokens: list[int]
    bad_answers: int = 0
    """Rows whose answer was judged bad: nothing to be measured by, so they are left out."""
    shortened_rows: int
    """Rows whose prompt leaves less room in the model's context than `max_new_tokens`."""
    seconds: dict[str, float]
    """Wall time per model: loss and answers."""
    generated_tokens: dict[str, int]
    ended_with: dict[str, dict[str, int]]
    """Per model and stop token: how many answers it ended. The others ran into the limit."""
    versions: dict[str, str]
    prompts_sha256: str = ""
    """Over the token ids of all prompts, in order: equal in evaluations that asked the same."""
    reused: list[str] = []
    """Models whose predictions of an earlier evaluation were taken, since everything they depend on is
    equal."""
    retention_rows: int = 0
    lm_eval: dict[str, dict[str, dict[str, float]]] | None = None
    """Model -> harness task -> metric -> value."""
    champion_problem: str | None = None
    """Why the champion cannot be put on the base, where there is one that cannot; it then answers nothing."""


class ScoreJob(BaseModel):
    """Compute every metric from the predictions; needs no model."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    predictions: Path
    models: list[Model]
    bootstrap_samples: int
    confidences: list[float]
    """Confidences at which intervals are wanted; 0.95 is always among them."""
    scores: Path
    """Written: Parquet, the scores of each row (`<model>_<metric>`). Beside it the rows' statistics, see
    `gate_evidence`."""
    result: Path
    metrics: list[str] = []
    """Those of `evaluation.metrics`."""
    json_schema: Path | None = None
    """The schema of `schema_match`."""
    custom: dict[str, Path] = {}
    """The user's own metric modules: name -> file."""
    slices: Path | None = None
    """Parquet, a line a row of the predictions: for each slicing the row's label, or null."""
    judge: JudgeSettings | None = None
    verdicts: Path | None = None
    """Where the judge's verdicts are remembered: JSONL, read and appended to."""


class Interval(BaseModel):
    """A difference, challenger minus another, with its 95 % interval."""

    mean: float
    """The observed difference (not the mean of the resamples)."""
    low: float
    high: float


class Answerer(BaseModel):
    """A trivial answerer's place in the table."""

    rows: int
    """Rows for which it has an answer; it is compared with the challenger on these only."""
    metrics: dict[str, float]
    differences: dict[str, Interval]
    """Challenger minus it."""


class Slice(BaseModel):
    """The metrics on a part of the rows."""

    rows: int
    metrics: dict[str, dict[str, float]]
    """Model -> metric -> value."""
    differences: dict[str, dict[str, Interval]]
    """Model -> metric -> challenger minus it."""


class ScoreResult(BaseModel):
    """Every number of the evaluation. A value that is not finite is left out and named."""

    rows: int
    pairs: int = 0
    """Rows with a worse answer too, on which preference accuracy is measured."""
    metrics: dict[str, dict[str, float]]
    differences: dict[str, dict[str, Interval]]
    intervals: dict[str, dict[str, dict[str, tuple[float, float]]]]
    """Model -> metric -> confidence (as `str(float)`) -> low and high of challenger minus model."""
    answerers: dict[str, Answerer]
    not_finite: list[str]
    """`<model>.<metric>` of values that were NaN or infinite."""
    same_answers: dict[str, int]
    """Model -> rows in which its answer is the challenger's, character by character."""
    empty_answers: dict[str, int]
    """Model -> answers without a character but white space. They are scored as all others are."""
    directions: dict[str, int]
    """Metric -> 1 where more is better, -1 where less is, 0 where neither is."""
    slices: dict[str, dict[str, Slice]]
    """Slicing -> label -> what was measured on its rows."""
    missing_verdicts: int = 0
    """Rows that count for no model in `judge`, since the judge gave no usable verdict on one of them."""
    notes: list[str]
    """What a person should know about how it was measured."""
    bootstrap_samples: int
    bootstrap_seed: int
    metric_modules: dict[str, str]
    """Metric module -> sha256 of its source."""
    versions: dict[str, str]

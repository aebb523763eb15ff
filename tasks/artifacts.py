"""What a stage hands to the next: a path, a fingerprint and counts, never data."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

STAGES = ("dataset", "tokenization", "training", "evaluation", "registration")
Stage = Literal["dataset", "tokenization", "training", "evaluation", "registration"]
NOTHING_NEW = "Nothing has changed"
"""How the reason of a run begins that was skipped because its work is done already."""


class Artifact(BaseModel):
    """A complete stage output in the store."""

    model_config = ConfigDict(frozen=True)

    path: Path
    """The folder `<store>/<stage>/<fingerprint>`."""
    fingerprint: str
    """sha256 (hex) over the stage's settings, its inputs' fingerprints and its OUTPUT_VERSION."""
    reused: bool
    """Whether the output was found complete in the store."""
    seconds: float
    """Wall time of this call."""


class Dataset(Artifact):
    """Rows as chat messages: `train.jsonl` and `test.jsonl`, one row a line."""

    digest: str
    """sha256 over the rows of both files, in order."""
    rows: dict[str, int]
    """Rows per split: `train` and `test`."""


class Tokens(Artifact):
    """Token ids and labels of each split: `train.parquet` and `test.parquet`."""

    rows: dict[str, int]
    tokens: dict[str, int]
    """All tokens per split."""
    trained_tokens: dict[str, int]
    """Tokens that carry loss, per split."""


class Adapter(Artifact):
    """A PEFT adapter in `adapter/` with tokenizer, chat template and generation config."""

    sha256: str
    """sha256 of `adapter_model.safetensors`."""
    trainable_parameters: int

    @property
    def folder(self) -> Path:
        """The folder that PEFT loads."""
        return self.path / "adapter"


class Report(Artifact):
    """Metrics of base, champion and challenger on the test rows, with predictions and a report."""

    metrics: dict[str, dict[str, float] | None]
    """`base`, `champion` (None while there is none), `challenger` -> metric -> value."""
    differences: dict[str, dict[str, dict[str, float]] | None]
    """`base`, `champion` -> metric -> `mean`, `low`, `high` of challenger minus it."""
    gate: dict[str, object] | None
    """`passed` and `rules`; None when the recipe has no gate."""

    @property
    def document(self) -> Path:
        """The report a person reads."""
        return self.path / "report.md"


class Version(BaseModel):
    """A version in the MLflow registry."""

    model_config = ConfigDict(frozen=True)

    name: str
    version: str
    uri: str
    """`models:/<name>/<version>`."""
    aliases: list[str]
    mlflow_run_id: str
    proof: str | None = None
    """What a fresh process found that loaded it just now; None for a version that was there before."""


class StageTiming(BaseModel):
    """One stage's line in the outcome."""

    model_config = ConfigDict(frozen=True)

    fingerprint: str
    reused: bool
    seconds: float


class Outcome(BaseModel):
    """What one run came to: exactly the object that `loraline run --json` prints."""

    model_config = ConfigDict(protected_namespaces=())

    outcome: Literal["registered", "skipped", "refused", "awaiting_approval", "failed"]
    reason: str
    prefect_flow_run_id: str | None = None
    mlflow_run_id: str | None = None
    model_version: dict[str, object] | None = None
    stages: dict[str, StageTiming] = {}
    metrics: dict[str, dict[str, float] | None] = {"base": {}, "champion": None, "challenger": {}}
    differences: dict[str, dict[str, dict[str, float]] | None] = {"base": {}, "champion": None}
    gate: dict[str, object] | None = None
    started_from: dict[str, object] | None = Field(default=None, exclude_if=lambda it: it is None)
    """The version whose adapter the training went on with, with its sha256; left out where it is the base."""
    trainable_parameters: int = 0
    """0 while there is no adapter."""
    report: str | None = None

"""What a run's report is made of: the folders that the stages wrote, and how the run ended."""

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from tasks.artifacts import Outcome


@dataclass(frozen=True)
class MadeFrom:
    """What the adapter was made from, and where else the run can be looked at."""

    base: str
    """As the recipe names it."""
    base_sha256: str
    recipe: str
    """File name of the recipe."""
    recipe_text: str
    recipe_digest: str
    dataset_digest: str = ""
    git_commit: str | None = None
    started_from: str | None = None
    """`models:/NAME/VERSION` whose adapter the training went on with."""
    mlflow_run_id: str | None = None
    mlflow_url: str | None = None
    version_url: str | None = None
    prefect_url: str | None = None


@dataclass(frozen=True)
class ReportedRun:
    """One run of the pipeline; whatever is missing leaves its part of the report out, with a word."""

    name: str
    """Of the recipe."""
    written: datetime
    """When the report was written; with a time zone."""
    outcome: Outcome
    """`failed` as its outcome says that the run has not ended yet: only the gate has spoken."""
    made_from: MadeFrom
    evaluation: Path
    """Folder of `metrics.json`, `predictions.parquet`, `scores.parquet`."""
    training: Path | None = None
    """Folder of `history.jsonl` and `result.json`."""
    dataset: Path | None = None
    """Folder of `card.json`."""
    tokenization: Path | None = None
    """Folder of `card.json`."""
    champion: str | None = None
    """The champion's version that the adapter was compared with."""
    answers: int = 20
    """Answers shown side by side; 0 keeps every text of the test rows out of the report."""
    training_processes: int = 1
    """One for each GPU."""
    new_rows_share: float | None = None
    """Share of the training rows that the champion's dataset did not have."""
    notes: list[str] = field(default_factory=list)
    """Further things that a person should know."""

"""Where an adapter comes from: all that its version in the registry tells of its making."""

from dataclasses import dataclass
from pathlib import Path

from tasks.artifacts import Adapter, Dataset, Report, Tokens
from tasks.base import Base


@dataclass(frozen=True)
class Provenance:
    """The outputs of the stages before, and the recipe and the runs that they belong to."""

    dataset: Dataset
    tokens: Tokens
    adapter: Adapter
    report: Report
    base: Base
    recipe_path: Path
    recipe_text: str
    """The recipe as it was run, overrides included."""
    recipe_digest: str
    run_id: str
    """The MLflow run of the pipeline run."""
    prefect_flow_run_id: str | None
    prefect_url: str | None = None
    """The flow run's page."""
    started_from: str | None = None
    """`models:/NAME/VERSION` whose adapter the training went on with; None: from the base."""
    judged_against: str | None = None
    """The version that was champion when it was judged; None: there was none."""

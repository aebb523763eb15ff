"""What the worker that fetches a Hub dataset is told, and what it answers."""

from pathlib import Path

from pydantic import BaseModel


class HubJob(BaseModel):
    """One split of one dataset at one commit."""

    id: str
    commit: str
    config: str | None
    split: str
    rows: Path
    """The Parquet file to write."""
    result: Path
    """Written last."""


class HubResult(BaseModel):
    """What was written."""

    rows: int
    columns: list[str]

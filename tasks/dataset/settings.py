"""The recipe's section `dataset`: where rows come from and how they are split."""

from pydantic import Field

from tasks.dataset.source_settings import Source
from tasks.settings import Settings


class SplitSettings(Settings):
    """How rows are divided: by a hash of the row's group and the salt, never of `seed`."""

    test: float = Field(default=0.05, gt=0, lt=1)
    """Share of groups that are only ever evaluated."""
    salt: str | None = None
    """Changing it deals the rows anew. Default: the recipe's name."""
    max_test_rows: int | None = Field(default=None, ge=1)
    """Evaluate at most this many test rows, chosen by hash; the others are left out of training too."""


class DatasetSettings(Settings):
    """Where rows come from and how they are split."""

    sources: list[Source] = Field(min_length=1)
    """One or more sources, read in this order."""
    split: SplitSettings = SplitSettings()

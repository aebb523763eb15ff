"""The recipe's section `retention`: what stays on the disk after a run."""

from pydantic import Field

from tasks.settings import Settings


class RetentionSettings(Settings):
    """What `loraline gc`, which follows each success, leaves of this adapter's runs; part of no fingerprint."""

    keep_runs: int = Field(default=5, ge=1)
    """Newest runs whose outputs, logs and reports stay. Fewer: less disk; a return to older data is computed again."""
    min_free_gb: float = Field(default=1.0, ge=0)
    """Below so many GB free on the state folder's disk a run refuses before it trains, once collecting has not helped."""

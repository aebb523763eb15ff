"""The recipe's section `tokenization`: how conversations become token ids and trained positions."""

from typing import Literal

from pydantic import Field

from tasks.settings import Settings


class TokenizationSettings(Settings):
    """How conversations become token ids. Assistant turns and their end-of-turn token carry the loss."""

    max_length: int = Field(default=1024, ge=8)
    """Longest row in tokens. A longer one falls under `long_rows`; an answer is never cut."""
    long_rows: Literal["error", "drop"] = "error"
    """`error` refuses the dataset and lists the rows, `drop` leaves them out and counts them."""

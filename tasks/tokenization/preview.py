"""Show what is trained: the first rows of a side, their trained text told from the rest."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow.parquet as pq

from tasks.tokenization.chat import Chat
from tasks.tokenization.segments import Segment, segments
from tasks.tokenization.spans import UNTRAINED


@dataclass(frozen=True)
class PreviewRow:
    """One row as a person reads it."""

    id: str
    segments: list[Segment]
    """In order; special tokens are visible, each stretch of them a segment of its own."""
    tokens: int
    trained_tokens: int


def preview(
    tokens: Path, base: Path, *, rows: int = 5, side: Literal["train", "test"] = "train"
) -> list[PreviewRow]:
    """The first `rows` rows of a side.

    `tokens` is the folder of the tokenization stage's output, `base` the base model's folder. Only
    the beginning of the file is read, and no torch.
    """
    chat = Chat(base)
    shown: list[PreviewRow] = []
    with pq.ParquetFile(tokens / f"{side}.parquet") as file:
        columns = ["id", "input_ids", "labels"]
        for batch in file.iter_batches(batch_size=max(rows, 1), columns=columns):
            for row in batch.to_pylist()[: rows - len(shown)]:
                parts = segments(chat, row["input_ids"], row["labels"])
                trained = sum(label != UNTRAINED for label in row["labels"])
                shown.append(PreviewRow(row["id"], parts, len(row["input_ids"]), trained))
            if len(shown) >= rows:
                break
    return shown

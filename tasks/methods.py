"""The training methods, and the kind of rows that each of them learns from."""

from typing import Literal

Method = Literal["sft", "pretraining", "dpo", "orpo", "kto"]

RowKind = Literal["conversations", "texts", "pairs"]
"""`conversations`: messages whose answers are learned. `texts`: documents that are learned whole.
`pairs`: conversations with a better and a worse last answer."""

ROWS: dict[Method, RowKind] = {
    "sft": "conversations",
    "pretraining": "texts",
    "dpo": "pairs",
    "orpo": "pairs",
    "kto": "pairs",
}
PREFERENCE_METHODS: tuple[Method, ...] = ("dpo", "orpo", "kto")

METHODS_FOR: dict[RowKind, str] = {
    "conversations": "sft",
    "texts": "pretraining",
    "pairs": "dpo, orpo, kto, or sft for the better answers alone",
}
"""What to write as `training.method` for rows of a kind."""

"""The training methods, and the kind of rows that each of them learns from."""

from typing import Literal

Method = Literal["sft", "pretraining", "dpo", "orpo", "kto"]

RowKind = Literal["conversations", "texts", "pairs", "judged"]
"""`conversations`: messages whose answers are learned. `texts`: documents that are learned whole.
`pairs`: conversations with a better and a worse last answer. `judged`: conversations whose last answer
is good or bad by itself; a pair is one of each."""

ROWS: dict[Method, RowKind] = {
    "sft": "conversations",
    "pretraining": "texts",
    "dpo": "pairs",
    "orpo": "pairs",
    "kto": "judged",
}
COMPARED: tuple[RowKind, ...] = ("pairs", "judged")
"""Kinds of which answers are weighed against each other, each of them whole."""
PREFERENCE_METHODS: tuple[Method, ...] = ("dpo", "orpo", "kto")

METHODS_FOR: dict[RowKind, str] = {
    "conversations": "sft",
    "texts": "pretraining",
    "pairs": "dpo, orpo, kto, or sft for the better answers alone",
    "judged": "kto, or sft for the good answers alone",
}
"""What to write as `training.method` for rows of a kind."""

"""Which kind of row the training method learns from, and what is said to a dataset of another kind."""

from typing import Any

from tasks.errors import DataError
from tasks.methods import METHODS_FOR, RowKind
from tasks.tokenization.drops import Drops

OTHER_KIND = "not of the kind that the training method learns from"

_WAYS_OUT: dict[RowKind, str] = {
    "conversations": "or say by the source's `columns` how a text becomes a question and an answer",
    "texts": "or give the source a column `text` (`chat_format: text`)",
    "pairs": "or give the source a better and a worse answer to each prompt (`prompt`, `chosen`, "
    "`rejected`)",
    "judged": "or give each answer of the source a verdict (`prompt`, `completion`, `label`: true or "
    "false), or a better and a worse answer to each prompt (`prompt`, `chosen`, `rejected`)",
}


def kind_of(row: dict[str, Any]) -> RowKind:
    """What a line of the dataset is."""
    if row.get("text") is not None:
        return "texts"
    if row.get("desirable") is not None:
        return "judged"
    return "pairs" if row.get("rejected") else "conversations"


def fits(row: dict[str, Any], wanted: RowKind) -> bool:
    """Whether the row can be learned from. Of a pair the better answer alone can be, and of judged
    answers a good one; a pair is two judged answers.
    """
    kind = kind_of(row)
    return (
        kind == wanted
        or (wanted == "conversations" and kind in ("pairs", "judged"))
        or (wanted == "judged" and kind == "pairs")
    )


def misfit(row: dict[str, Any]) -> str:
    """What the row is, for a person."""
    return {
        "texts": "a text without roles",
        "pairs": "a pair of answers",
        "judged": "one answer with a verdict",
        "conversations": "a conversation with one answer",
    }[kind_of(row)]


def refuse_other_kinds(drops: Drops, wanted: RowKind) -> None:
    """Raises: DataError when a side holds rows of another kind, with how many and the ways out."""
    if not (count := drops.reasons[OTHER_KIND]):
        return
    wants = {
        "conversations": "conversations",
        "texts": "texts",
        "pairs": "pairs of answers",
        "judged": "judged answers",
    }
    others = [kind for kind in METHODS_FOR if kind != wanted]
    choices = "; ".join(f"{wants[kind]}: {METHODS_FOR[kind]}" for kind in others)
    raise DataError(
        f"{count:,} of {drops.read:,} {drops.side} rows are no {wants[wanted]}, which is what "
        f"training.method ({METHODS_FOR[wanted]}) learns from:\n{drops.listing(OTHER_KIND)}\n"
        f"Choose the training.method for these rows ({choices}), {_WAYS_OUT[wanted]}, or take them out."
    )

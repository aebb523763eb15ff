"""Tokenize the dataset: token ids of every conversation, and labels on what the model has to write."""

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.artifacts import Dataset, Tokens
from tasks.base import Base
from tasks.errors import DataError
from tasks.store import Store, fingerprint
from tasks.tokenization.chat import Chat
from tasks.tokenization.rows import Drops, TokenRow, tokenize
from tasks.tokenization.settings import TokenizationSettings
from tasks.tokenization.summary import Tally, card, summary

OUTPUT_VERSION = 1
"""Raise it when the same dataset and tokenizer give other rows; a golden test watches."""

SIDES = ("train", "test")
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("input_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("labels", pa.list_(pa.int32()), nullable=False),
        pa.field("prompt_length", pa.int32(), nullable=False),
        pa.field("reference", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("label", pa.string()),
    ]
)

_log = logging.getLogger(__name__)


def fingerprint_of(settings: TokenizationSettings, *, dataset_fingerprint: str, base: Base) -> str:
    """The output's key: the dataset, the tokenizer's files with the chat template, the settings."""
    return fingerprint(
        "tokenization",
        OUTPUT_VERSION,
        settings.model_dump(mode="json"),
        {"dataset": dataset_fingerprint, "tokenizer": base.tokenizer_sha256},
    )


def tokenize_dataset(
    store: Store,
    settings: TokenizationSettings,
    *,
    dataset: Dataset,
    base: Base,
    force: bool = False,
) -> Tokens:
    """Publish `train.parquet`, `test.parquet`, `card.json` and `summary.md`, or find them.

    Columns: `id`; `input_ids` and `labels` (int32, same length, -100 where not trained);
    `prompt_length`, the number of tokens before the last answer, which are the generation prompt;
    `reference`, the last answer; `prompt`, the rendered generation prompt; `label`, a trivial answer
    or null.

    Raises: DataError for rows that cannot be trained on; BaseModelError for an unusable tokenizer.
    """
    started = time.monotonic()
    key = fingerprint_of(settings, dataset_fingerprint=dataset.fingerprint, base=base)
    stored = store.publish(
        "tokenization", key, lambda folder: _build(folder, settings, dataset, base), force=force
    )
    facts = json.loads((stored.path / "card.json").read_text(encoding="utf-8"))
    return Tokens(
        path=stored.path,
        fingerprint=key,
        reused=stored.reused,
        seconds=time.monotonic() - started,
        rows=facts["rows"],
        tokens=facts["tokens"],
        trained_tokens=facts["trained_tokens"],
    )


def _build(folder: Path, settings: TokenizationSettings, dataset: Dataset, base: Base) -> None:
    chat = Chat(base.path)
    _require_context(chat, settings, base)
    tallies = {side: _tokenize_side(chat, folder, side, settings, dataset) for side in SIDES}
    facts = card(tallies)
    (folder / "card.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    (folder / "summary.md").write_text(summary(chat, facts, tallies), encoding="utf-8")
    _log.info(
        "Tokenized %d rows: %d tokens, %d of them trained",
        sum(facts["rows"].values()),
        sum(facts["tokens"].values()),
        sum(facts["trained_tokens"].values()),
    )


def _tokenize_side(
    chat: Chat, folder: Path, side: str, settings: TokenizationSettings, dataset: Dataset
) -> Tally:
    tally = Tally(Drops(side))
    lines = _read(dataset.path / f"{side}.jsonl")
    with pq.ParquetWriter(folder / f"{side}.parquet", SCHEMA, compression="zstd") as writer:
        for rows in tokenize(chat, lines, settings, tally.drops):
            tally.add(chat, rows)
            writer.write_table(_table(rows))
    if not tally.lengths:
        raise DataError(
            f"Tokenization leaves no {side} row ({tally.drops.describe()}). "
            "Raise tokenization.max_length, or add shorter rows."
        )
    return tally


def _require_context(chat: Chat, settings: TokenizationSettings, base: Base) -> None:
    limit = chat.context_length
    if limit is not None and settings.max_length > limit:
        raise DataError(
            f"tokenization.max_length is {settings.max_length}, but {base.model} accepts at most "
            f"{limit} tokens. Lower tokenization.max_length, or choose a model with a longer context."
        )


def _read(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="\n") as stream:
        for line in stream:
            yield json.loads(line)


def _table(rows: list[TokenRow]) -> pa.Table:
    columns = {
        "id": [row.id for row in rows],
        "input_ids": [row.encoded.input_ids for row in rows],
        "labels": [row.encoded.labels for row in rows],
        "prompt_length": [row.encoded.prompt_length for row in rows],
        "reference": [row.reference for row in rows],
        "prompt": [row.prompt for row in rows],
        "label": [row.label for row in rows],
    }
    return pa.table(columns, schema=SCHEMA)

"""From lines of a dataset's file to a table of token rows and their counts: the unit of parallel work."""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
import pyarrow as pa

from tasks.methods import RowKind
from tasks.tokenization.chat import Chat
from tasks.tokenization.drops import Drops
from tasks.tokenization.encoder import Encoder, EncoderName
from tasks.tokenization.fidelity import Fidelity
from tasks.tokenization.judged import JudgedTokenizer
from tasks.tokenization.pairs import PairTokenizer
from tasks.tokenization.rows import RowTokenizer, TokenRow
from tasks.tokenization.settings import TokenizationSettings
from tasks.tokenization.spans import UNTRAINED
from tasks.tokenization.tally import Tally
from tasks.tokenization.text_rows import TextRow, TextTokenizer

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

REJECTED = pa.field("rejected_ids", pa.list_(pa.int32()), nullable=False)
DESIRABLE = pa.field("desirable", pa.bool_())

Answer = tuple[pa.RecordBatch, Tally]
"""Rows of `schema_of`, and their counts."""

TOKENIZERS: dict[
    RowKind,
    type[RowTokenizer] | type[TextTokenizer] | type[PairTokenizer] | type[JudgedTokenizer],
] = {
    "conversations": RowTokenizer,
    "texts": TextTokenizer,
    "pairs": PairTokenizer,
    "judged": JudgedTokenizer,
}


def schema_of(kind: RowKind) -> pa.Schema:
    """The columns of token rows; pairs have `rejected_ids`, the worse answer behind the same prompt.

    Judged rows have both `rejected_ids` (null but of pairs) and `desirable` (null of pairs).
    """
    if kind == "judged":
        return SCHEMA.append(REJECTED.with_nullable(True)).append(DESIRABLE)
    return SCHEMA.append(REJECTED) if kind == "pairs" else SCHEMA


class Chunk(NamedTuple):
    """Neighbouring lines of a dataset's file, JSON objects: short to say, whatever they hold."""

    side: str
    file: Path
    start: int
    """The first line's place in the file, in bytes."""
    size: int
    """Bytes in all."""

    def lines(self) -> list[bytes]:
        """Read them."""
        with self.file.open("rb") as stream:
            stream.seek(self.start)
            return stream.read(self.size).splitlines()


@dataclass(frozen=True)
class Setup:
    """What another process needs to tokenize as this one does."""

    base: Path
    encoder: EncoderName
    settings: TokenizationSettings
    kind: RowKind = "conversations"


class ChunkTokenizer:
    """Tokenizes lines; every process has one."""

    def __init__(
        self,
        chat: Chat,
        encoder: Encoder,
        settings: TokenizationSettings,
        kind: RowKind = "conversations",
    ) -> None:
        self._schema = schema_of(kind)
        self._rows = TOKENIZERS[kind](chat, encoder, settings)
        self._fidelity = Fidelity(chat)

    @classmethod
    def of(cls, setup: Setup) -> "ChunkTokenizer":
        """The same in another process."""
        chat = Chat(setup.base)
        return cls(chat, Encoder(chat, setup.encoder), setup.settings, setup.kind)

    def tokenize(self, chunk: Chunk) -> Answer:
        """The chunk's rows in order, and their counts.

        Raises: EncodersDisagree.
        """
        with _without_looking_for_cycles():
            return self._tokenize(chunk)

    def _tokenize(self, chunk: Chunk) -> Answer:
        tally = Tally(Drops(chunk.side))
        rows = self._rows.tokenize([orjson.loads(line) for line in chunk.lines()], tally.drops)
        tally.add(self._fidelity, rows)
        return _table(rows, self._schema), tally


@contextmanager
def _without_looking_for_cycles() -> Iterator[None]:
    """Thousands of rows live at once and none is part of a cycle: to look for some takes a tenth of
    the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _table(rows: Sequence[TokenRow | TextRow], schema: pa.Schema) -> pa.RecordBatch:
    encoded = [row.encoded for row in rows]
    offsets: Any = np.fromiter(
        accumulate((len(e.input_ids) for e in encoded), initial=0), np.int32, len(rows) + 1
    )
    ids: Any = np.concatenate([e.input_ids for e in encoded]) if rows else np.empty(0, np.int32)
    labels: Any = np.full(len(ids), UNTRAINED, np.int32)
    for start, one in zip(offsets.tolist(), encoded, strict=False):
        for first, stop in one.trained_spans:
            labels[start + first : start + stop] = one.input_ids[first:stop]
    columns: list[Any] = [
        pa.array([row.id for row in rows], pa.string()),
        pa.ListArray.from_arrays(offsets, ids),
        pa.ListArray.from_arrays(offsets, labels),
        pa.array([e.prompt_length for e in encoded], pa.int32()),
        pa.array([row.reference for row in rows], pa.string()),
        pa.array([row.prompt for row in rows], pa.string()),
        pa.array([row.label for row in rows], pa.string()),
    ]
    if REJECTED.name in schema.names:
        worse = [row.rejected for row in rows if isinstance(row, TokenRow)]
        columns.append(pa.array(worse, REJECTED.type))
    if DESIRABLE.name in schema.names:
        verdicts = [row.desirable for row in rows if isinstance(row, TokenRow)]
        columns.append(pa.array(verdicts, DESIRABLE.type))
    return pa.RecordBatch.from_arrays(columns, schema=schema)

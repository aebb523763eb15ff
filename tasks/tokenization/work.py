"""Tokenize the dataset: token ids of every conversation, and labels on what the model has to write."""

import json
import logging
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.artifacts import Dataset, Tokens
from tasks.base import Base
from tasks.errors import DataError
from tasks.methods import RowKind
from tasks.seen import TEST_COPIES
from tasks.store import Store, fingerprint
from tasks.tokenization.chat import Chat
from tasks.tokenization.chunks import Answer, Chunk, ChunkTokenizer, Setup, schema_of
from tasks.tokenization.drops import LONGEST_ROWS, Drops
from tasks.tokenization.encoder import Encoder, EncodersDisagree, choose
from tasks.tokenization.kinds import refuse_other_kinds
from tasks.tokenization.longest import longest_rows
from tasks.tokenization.packing import write_packs
from tasks.tokenization.page import page
from tasks.tokenization.pool import Pool, workers_for
from tasks.tokenization.rows import refuse
from tasks.tokenization.sample import sample_texts
from tasks.tokenization.settings import TokenizationSettings
from tasks.tokenization.speed import Speed
from tasks.tokenization.summary import one_sided, summary
from tasks.tokenization.tally import Tally, card

OUTPUT_VERSION = 3
"""Raise it when the same dataset and tokenizer give other rows; a golden test watches."""

SIDES = ("train", "test")
CHUNK = 512
"""Rows tokenized together: enough to be worth a message, few enough that what is made of them stays in
the processor's cache, and that no core waits long for the last ones."""
CHUNK_BYTES = 4_000_000
GROUP = 4 * CHUNK
"""Rows that Parquet writes together: readers pay for every group."""
GROUP_BYTES = 32_000_000
# Token ids and texts hardly repeat: dictionaries would cost time, and a fifth more room.
PARQUET: dict[str, Any] = {"compression": "zstd", "use_dictionary": ["label"]}

_log = logging.getLogger(__name__)


def fingerprint_of(
    settings: TokenizationSettings,
    *,
    dataset_fingerprint: str,
    base: Base,
    kind: RowKind = "conversations",
) -> str:
    """The output's key: the dataset, the tokenizer's files with the chat template, the settings."""
    return fingerprint(
        "tokenization",
        OUTPUT_VERSION,
        # Left out where it is the ordinary one: those outputs stay valid.
        settings.model_dump(mode="json") | ({} if kind == "conversations" else {"kind": kind}),
        {"dataset": dataset_fingerprint, "tokenizer": base.tokenizer_sha256},
    )


def tokenize_dataset(
    store: Store,
    settings: TokenizationSettings,
    *,
    dataset: Dataset,
    base: Base,
    kind: RowKind = "conversations",
    force: bool = False,
) -> Tokens:
    """Publish `train.parquet`, `test.parquet`, `card.json`, `summary.md` and `tokens.html`, or find
    them.

    `test_copies.npy` is the dataset's. Columns: `id`; `input_ids` and `labels` (int32, same length, -100 where not trained);
    `prompt_length`, the number of tokens before the last answer, which are the generation prompt;
    `reference`, the last answer; `prompt`, the rendered generation prompt; `label`, a trivial answer
    or null. `last` means the last answer that is trained: what follows it is left out. A row that
    `long_rows: split_turns` made of a longer one has the id `<id>#<number>`, as have the pieces of a
    long text. `kind` is what the training method learns from: of texts every token is trained, and the
    prompt is the first half of a row; pairs have `rejected_ids` too, and end with their answer; so do
    judged rows, with `desirable` (both null where they do not apply).

    Raises: DataError for rows that cannot be trained on; BaseModelError for an unusable tokenizer.
    """
    started = time.monotonic()
    key = fingerprint_of(settings, dataset_fingerprint=dataset.fingerprint, base=base, kind=kind)
    stored = store.publish(
        "tokenization",
        key,
        lambda folder: _build(folder, settings, dataset, base, kind),
        force=force,
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


def _build(
    folder: Path, settings: TokenizationSettings, dataset: Dataset, base: Base, kind: RowKind
) -> None:
    files = {side: dataset.path / f"{side}.jsonl" for side in SIDES}
    size = sum(file.stat().st_size for file in files.values())
    rows = sum(dataset.rows.values())
    with Pool(workers_for(size), folder) as pool:
        chat = Chat(base.path)
        _require_context(chat, settings, base)
        encoder = choose(chat, sample_texts(chat, files["train"]))
        try:
            tallies = _tokenize(chat, encoder, pool, folder, settings, kind, files, rows)
        except EncodersDisagree as problem:
            # The check at the start saw some rows only. What was written is written again.
            _log.warning("Starting again with tokenizers: %s", problem)
            encoder = Encoder(chat, "tokenizers")
            tallies = _tokenize(chat, encoder, pool, folder, settings, kind, files, rows)
    if settings.packing:
        write_packs(folder, tallies["train"].lengths, settings.max_length)
    if (copies := dataset.path / TEST_COPIES).is_file():
        # Whoever compares models on `test.parquet` needs it.
        shutil.copyfile(copies, folder / TEST_COPIES)
    facts = card(tallies, encoder.name)
    (folder / "card.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    (folder / "summary.md").write_text(summary(chat, facts, tallies), encoding="utf-8")
    train = longest_rows(folder / "train.parquet", tallies["train"].lengths, LONGEST_ROWS)
    shown = page(
        chat,
        facts,
        samples={side: tally.samples for side, tally in tallies.items()},
        longest={"train": train},
    )
    (folder / "tokens.html").write_text(shown, encoding="utf-8")
    _say(facts)


def _tokenize(
    chat: Chat,
    encoder: Encoder,
    pool: Pool,
    folder: Path,
    settings: TokenizationSettings,
    kind: RowKind,
    files: dict[str, Path],
    rows: int,
) -> dict[str, Tally]:
    """Write both sides. Raises: DataError, EncodersDisagree, WorkerFailed."""
    speed = Speed(total=rows)
    setup = Setup(chat.folder, encoder.name, settings, kind)
    here = ChunkTokenizer(chat, encoder, settings, kind)
    return {
        side: _side(folder, side, setup, pool.map(_chunks(side, file), setup, here), speed)
        for side, file in files.items()
    }


def _side(
    folder: Path,
    side: str,
    setup: Setup,
    answers: Iterable[Answer],
    speed: Speed,
) -> Tally:
    """All rows are looked at before any is refused, so that one error names them all."""
    tally = Tally(Drops(side))
    group: list[pa.RecordBatch] = []
    with pq.ParquetWriter(folder / f"{side}.parquet", schema_of(setup.kind), **PARQUET) as writer:
        for rows, counts in answers:
            tally.merge(counts)
            if rows.num_rows:
                group.append(rows)
            if (
                sum(r.num_rows for r in group) >= GROUP
                or sum(r.nbytes for r in group) >= GROUP_BYTES
            ):
                writer.write_table(pa.Table.from_batches(group))
                group = []
            speed.advance(counts.drops.read)
        if group:
            writer.write_table(pa.Table.from_batches(group))
    refuse_other_kinds(tally.drops, setup.kind)
    refuse(tally.drops, setup.settings)
    if not tally.lengths:
        raise DataError(
            f"Tokenization leaves no {side} row ({tally.drops.describe()}). "
            "Raise tokenization.max_length, or add shorter rows."
        )
    if side == "test" and tally.verdicts["bad"] == len(tally.lengths):
        raise DataError(
            f"All {len(tally.lengths):,} test rows are bad answers, and models are compared on good ones. "
            "Add good answers, or give the recipe a dataset.holdout with some."
        )
    return tally


def _chunks(side: str, file: Path) -> Iterator[Chunk]:
    """A file's lines, up to `CHUNK` rows or about `CHUNK_BYTES` together."""
    with file.open("rb") as stream:
        start = size = rows = 0
        for line in stream:
            size += len(line)
            rows += 1
            if rows >= CHUNK or size >= CHUNK_BYTES:
                yield Chunk(side, file, start, size)
                start, size, rows = start + size, 0, 0
        if rows:
            yield Chunk(side, file, start, size)


def _say(facts: dict[str, Any]) -> None:
    """Log what was decided, and warn of what a person would want to know before training."""
    _log.info(
        "Tokenized %d rows: %d tokens, %d of them trained",
        sum(facts["rows"].values()),
        sum(facts["tokens"].values()),
        sum(facts["trained_tokens"].values()),
    )
    if warning := one_sided(facts.get("verdicts", {}).get("train", {})):
        _log.warning("%s", warning)
    for side in SIDES:
        for what, count in facts["changed"][side].items():
            _log.warning("%d %s rows: %s", count, side, what)
        if count := facts["unindented_answers"][side]:
            _log.warning(
                "%d %s answers begin with an indented line and lose its indentation, but not that of "
                "the lines after it: the tokenizer swallows white space behind the special token that "
                "opens an answer. Begin such answers with a line of text or a code fence",
                count,
                side,
            )


def _require_context(chat: Chat, settings: TokenizationSettings, base: Base) -> None:
    limit = chat.context_length
    if limit is not None and settings.max_length > limit:
        raise DataError(
            f"tokenization.max_length is {settings.max_length}, but {base.model} accepts at most "
            f"{limit} tokens. Lower tokenization.max_length, or choose a model with a longer context."
        )

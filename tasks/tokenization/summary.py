"""What a person and a machine read about tokenized rows: `summary.md` and `card.json`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tasks.markdown import code_block, table
from tasks.quantiles import quantiles
from tasks.tokenization.chat import Chat
from tasks.tokenization.rows import Drops, TokenRow
from tasks.tokenization.segments import segments

HISTOGRAM_BINS = 12
BAR_CHARACTERS = 40
SHOWN_CHARACTERS = 1200
OPEN, CLOSE = "⟦", "⟧"
"""Around trained text."""


@dataclass
class Tally:
    """Counts of one side, kept while its rows pass by."""

    drops: Drops
    lengths: list[int] = field(default_factory=list)
    """Tokens of each row."""
    trained: list[int] = field(default_factory=list)
    """Trained tokens of each row."""
    turns: int = 0
    trimmed_answers: int = 0
    """Answers whose white space at the beginning or end the template or the tokenizer drops."""
    prefixed_answers: int = 0
    """Answers before which the template writes text of its own, such as an empty think block."""
    altered_answers: int = 0
    """Answers that do not come back when their tokens are decoded."""
    sample: TokenRow | None = None
    """The row with the smallest id."""

    def add(self, chat: Chat, rows: Sequence[TokenRow]) -> None:
        """Count rows."""
        for row in rows:
            self.lengths.append(len(row.encoded.input_ids))
            self.trained.append(sum(stop - start for start, stop in row.encoded.spans))
            if self.sample is None or row.id < self.sample.id:
                self.sample = row
        pairs = [
            (answer, row.encoded.input_ids[start : stop - 1])
            for row in rows
            for answer, (start, stop) in zip(row.answers, row.encoded.spans, strict=True)
        ]
        texts = chat.tokenizer.decode_batch([ids for _, ids in pairs], skip_special_tokens=False)
        self.turns += len(pairs)
        for (answer, _), text in zip(pairs, texts, strict=True):
            if text == answer:
                continue
            if text.strip() == answer.strip():
                self.trimmed_answers += 1
            elif text.rstrip().endswith(answer.strip()):
                self.prefixed_answers += 1
            else:
                self.altered_answers += 1


def card(tallies: dict[str, Tally]) -> dict[str, Any]:
    """Counts as JSON; holds no text of the rows but the ids and sources of dropped ones."""
    return {
        "rows": {side: len(tally.lengths) for side, tally in tallies.items()},
        "tokens": {side: sum(tally.lengths) for side, tally in tallies.items()},
        "trained_tokens": {side: sum(tally.trained) for side, tally in tallies.items()},
        "turns": {side: tally.turns for side, tally in tallies.items()},
        "dropped": {side: dict(sorted(t.drops.reasons.items())) for side, t in tallies.items()},
        "dropped_rows": {side: t.drops.examples for side, t in tallies.items()},
        "trimmed_answers": {side: t.trimmed_answers for side, t in tallies.items()},
        "prefixed_answers": {side: t.prefixed_answers for side, t in tallies.items()},
        "altered_answers": {side: t.altered_answers for side, t in tallies.items()},
        "length": {side: quantiles(tally.lengths) for side, tally in tallies.items()},
        "trained_length": {side: quantiles(tally.trained) for side, tally in tallies.items()},
        "histogram": {side: histogram(tally.lengths) for side, tally in tallies.items()},
    }


def histogram(lengths: Sequence[int]) -> list[dict[str, int]]:
    """Rows per range of lengths in tokens: `{"from", "to", "rows"}`, both ends included."""
    low, high = min(lengths), max(lengths)
    width = -(-(high - low + 1) // HISTOGRAM_BINS)
    counts = [0] * (-(-(high - low + 1) // width))
    for length in lengths:
        counts[(length - low) // width] += 1
    return [
        {"from": low + i * width, "to": min(low + (i + 1) * width - 1, high), "rows": rows}
        for i, rows in enumerate(counts)
    ]


def summary(chat: Chat, facts: dict[str, Any], tallies: dict[str, Tally]) -> str:
    """Markdown: counts, lengths, what was left out, and a row of each side with its trained text."""
    total = sum(facts["tokens"].values())
    trained = sum(facts["trained_tokens"].values())
    parts = [
        "# Tokens",
        f"{total:,} tokens, {trained:,} of them ({trained / total:.1%}) carry loss: the assistant's "
        "answers and the token that ends each of them.",
        table(
            ("", "train", "test"),
            [
                _line("rows", facts["rows"]),
                _line("tokens", facts["tokens"]),
                _line("trained tokens", facts["trained_tokens"]),
                _spread("tokens in a row", facts["length"]),
                _spread("trained tokens in a row", facts["trained_length"]),
            ],
        ),
        "## Length of the training rows, in tokens",
        code_block(_bars(facts["histogram"]["train"])),
        "## What was left out",
        _left_out(facts),
    ]
    parts += _notes(facts)
    for side, tally in tallies.items():
        assert tally.sample is not None
        parts += [
            f"## A {side} row",
            f"Row `{tally.sample.id}`. The text between {OPEN} and {CLOSE} is trained.",
            code_block(_marked(chat, tally.sample)),
        ]
    return "\n\n".join(parts) + "\n"


def _marked(chat: Chat, row: TokenRow) -> str:
    text = "".join(
        f"{OPEN}{segment.text}{CLOSE}" if segment.trained else segment.text
        for segment in segments(chat, row.encoded.input_ids, row.encoded.labels)
    )
    return text if len(text) <= SHOWN_CHARACTERS else "[...] " + text[-SHOWN_CHARACTERS:]


def _left_out(facts: dict[str, Any]) -> str:
    reasons = sorted({reason for side in facts["dropped"].values() for reason in side})
    if not reasons:
        return "Nothing."
    counts = [
        _line(reason, {side: drops.get(reason, 0) for side, drops in facts["dropped"].items()})
        for reason in reasons
    ]
    return table(("rows", "train", "test"), counts)


def _notes(facts: dict[str, Any]) -> list[str]:
    notes = []
    if trimmed := sum(facts["trimmed_answers"].values()):
        notes.append(
            f"{trimmed:,} answers lose white space at their beginning or end: the template or the "
            "tokenizer drops it."
        )
    if prefixed := sum(facts["prefixed_answers"].values()):
        notes.append(
            f"Before {prefixed:,} answers the template writes text of its own, which the model learns "
            "to write too (an empty think block, for example)."
        )
    if altered := sum(facts["altered_answers"].values()):
        notes.append(
            f"{altered:,} answers do not come back as they were when their tokens are decoded: the "
            "tokenizer normalises their characters."
        )
    return notes


def _bars(bins: list[dict[str, int]]) -> str:
    most = max(entry["rows"] for entry in bins)
    lines = []
    for entry in bins:
        bar = "█" * round(BAR_CHARACTERS * entry["rows"] / most)
        lines.append(
            f"{entry['from']:>7,} - {entry['to']:>7,}  {entry['rows']:>9,}  {bar}".rstrip()
        )
    return "\n".join(lines)


def _line(name: str, counts: dict[str, int]) -> tuple[str, ...]:
    return (name, *(f"{count:,}" for count in counts.values()))


def _spread(name: str, sides: dict[str, dict[str, int]]) -> tuple[str, ...]:
    spreads = (f"{q['median']:,} / {q['p95']:,} / {q['max']:,}" for q in sides.values())
    return (f"{name} (median / 95 % / longest)", *spreads)

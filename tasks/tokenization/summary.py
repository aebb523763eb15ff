"""What a person reads about tokenized rows: `summary.md`."""

from typing import Any

from tasks.markdown import cell, code_block, table
from tasks.personal_data.detector import Detector
from tasks.tokenization.chat import Chat
from tasks.tokenization.segments import segments
from tasks.tokenization.tally import Sample, Tally

BAR_CHARACTERS = 40
SHOWN_CHARACTERS = 1200
NAME_CHARACTERS = 80
OPEN, CLOSE = "⟦", "⟧"
"""Around trained text."""
SPECIAL_OPEN, SPECIAL_CLOSE = "«", "»"
"""Around special tokens."""


def summary(chat: Chat, facts: dict[str, Any], tallies: dict[str, Tally]) -> str:
    """Markdown: counts, lengths, what was left out, and a row of each side with its trained text."""
    total = sum(facts["tokens"].values())
    trained = sum(facts["trained_tokens"].values())
    parts = [
        "# Tokens",
        f"{total:,} tokens, {trained:,} of them ({trained / total:.1%}) carry loss. "
        f"Encoded by {facts['encoder']}.",
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
        "## The longest rows",
        _longest(facts["longest_rows"]),
        "## What was left out",
        _counts(facts["dropped"]),
        "## What was changed",
        _counts(facts["changed"]),
    ]
    parts += [*_verdicts(facts), *_notes(facts)]
    parts += [
        "## Rows as they are trained",
        f"The text between {OPEN} and {CLOSE} is trained; {SPECIAL_OPEN} and {SPECIAL_CLOSE} stand "
        "around special tokens. What looks like personal data is masked here, and nowhere else.",
    ]
    detector = Detector()
    for side, tally in tallies.items():
        for sample in tally.samples:
            parts += [
                f"Row {cell(sample.id, NAME_CHARACTERS)} ({side}):",
                code_block(_marked(chat, sample, detector)),
            ]
    return "\n\n".join(parts) + "\n"


def _marked(chat: Chat, row: Sample, detector: Detector) -> str:
    text = ""
    open_ = False
    for segment in segments(chat, row.input_ids, row.labels):
        if segment.trained != open_:
            text += OPEN if segment.trained else CLOSE
            open_ = segment.trained
        text += (
            f"{SPECIAL_OPEN}{segment.text}{SPECIAL_CLOSE}"
            if segment.special
            else detector.redacted(segment.text)
        )
    text += CLOSE if open_ else ""
    return text if len(text) <= SHOWN_CHARACTERS else "[...] " + text[-SHOWN_CHARACTERS:]


def _longest(rows: dict[str, list[dict[str, Any]]]) -> str:
    lines = [
        (
            f"{row['tokens']:,}",
            side,
            cell(row["id"], NAME_CHARACTERS),
            cell(row["source"], NAME_CHARACTERS),
        )
        for side, longest in rows.items()
        for row in longest
    ]
    return table(("tokens", "split", "row", "source"), lines)


def _counts(counts: dict[str, dict[str, int]]) -> str:
    reasons = sorted({reason for side in counts.values() for reason in side})
    if not reasons:
        return "Nothing."
    lines = [
        _line(reason, {side: some.get(reason, 0) for side, some in counts.items()})
        for reason in reasons
    ]
    return table(("rows", "train", "test"), lines)


def _verdicts(facts: dict[str, Any]) -> list[str]:
    if "verdicts" not in facts:
        return []
    sides = facts["verdicts"]
    lines = [
        _line(name, {side: counts.get(kind, 0) for side, counts in sides.items()})
        for kind, name in (("good", "good answers"), ("bad", "bad answers"), ("pairs", "pairs"))
    ]
    told = ["## Verdicts", table(("", "train", "test"), lines)]
    return told + ([f"**{warning}**"] if (warning := one_sided(sides["train"])) else [])


def one_sided(verdicts: dict[str, int]) -> str | None:
    """What is to be said of answers that were all judged alike; None of others."""
    good, bad, pairs = (verdicts.get(name, 0) for name in ("good", "bad", "pairs"))
    if pairs or bool(good) == bool(bad):
        return None
    return (
        f"All {good + bad:,} judged training answers are {'good' if good else 'bad'}: nothing says what "
        f"sets a {'bad' if good else 'good'} one apart, and KTO moves the model "
        f"{'towards' if good else 'away from'} them all alike. Add {'bad' if good else 'good'} answers"
        + (", or train by sft." if good else ".")
    )


def _notes(facts: dict[str, Any]) -> list[str]:
    notes = []
    if trimmed := sum(facts["trimmed_answers"].values()):
        notes.append(
            f"{trimmed:,} answers lose white space at their beginning or end: the template or the "
            "tokenizer drops it."
        )
    if unindented := sum(facts["unindented_answers"].values()):
        notes.append(
            f"{unindented:,} of them begin with an indented line, whose indentation is lost while that "
            "of the lines after it stays: indented code comes out crooked. Begin such answers with a "
            "line of text or a code fence."
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

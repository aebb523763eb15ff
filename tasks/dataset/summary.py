"""What a person and a machine read about a prepared dataset: `summary.md` and `card.json`."""

from collections.abc import Sequence
from typing import Any

from tasks.dataset.reading.jsonl import JsonlCounts
from tasks.dataset.reading.sources import Read
from tasks.dataset.rows import Row
from tasks.dataset.split import Split
from tasks.markdown import code_block, table
from tasks.quantiles import quantiles

SHOWN_CHARACTERS = 1200
"""Of each turn of a sample row: the summary travels to Prefect and MLflow."""


def card(sources: Sequence[Read], split: Split, *, digest: str) -> dict[str, Any]:
    """Counts of every step, as JSON. Holds no text of the rows and no folder."""
    sides = {"train": split.train, "test": split.test}
    return {
        "digest": digest,
        "rows": {side: len(rows) for side, rows in sides.items()},
        "groups": {side: len({row.group for row in rows}) for side, rows in sides.items()},
        "read": sum(len(source.rows) for source in sources),
        "dropped": dict(sorted(split.dropped.items())),
        "characters": {
            side: {
                "prompt": quantiles([_prompt_characters(row) for row in rows]),
                "answer": quantiles([len(row.answer) for row in rows]),
            }
            for side, rows in sides.items()
        },
        "sources": [_source(source) for source in sources],
    }


def summary(facts: dict[str, Any], split: Split) -> str:
    """Markdown: where rows came from, what was left out, lengths, and a row of each side."""
    rows, groups = facts["rows"], facts["groups"]
    share = rows["test"] / (rows["train"] + rows["test"])
    parts = [
        "# Dataset",
        f"{rows['train']:,} rows to train on and {rows['test']:,} rows to test with "
        f"({share:.1%}). No group of related rows is on both sides.",
        table(
            ("", "train", "test"),
            [
                ("rows", f"{rows['train']:,}", f"{rows['test']:,}"),
                ("groups", f"{groups['train']:,}", f"{groups['test']:,}"),
                *(
                    (f"{part}, characters (median / 95 % / longest)", *_lengths(facts, part))
                    for part in ("prompt", "answer")
                ),
            ],
        ),
        "## Where the rows come from",
        table(
            ("source", "kind", "rows", "notes"),
            [
                (_cell(s["name"]), s["kind"], f"{s['rows']:,}", _cell(_notes(s)))
                for s in facts["sources"]
            ],
        ),
        "## What was left out",
        table(
            ("reason", "rows"),
            [(_cell(reason), f"{count:,}") for reason, count in facts["dropped"].items()],
        )
        if facts["dropped"]
        else "Nothing.",
        f"Digest of the rows: `{facts['digest']}`",
    ]
    for side, side_rows in (("train", split.train), ("test", split.test)):
        row = min(side_rows, key=lambda row: row.id)
        parts += [f"## A {side} row", f"`{row.source}`, group `{_code(row.group)}`"]
        for message in row.messages:
            parts += [f"**{message['role']}**", code_block(message["content"], SHOWN_CHARACTERS)]
    return "\n\n".join(parts) + "\n"


def _source(source: Read) -> dict[str, Any]:
    counts = source.counts
    if isinstance(counts, JsonlCounts):
        return {
            "name": source.name,
            "kind": counts.format,
            "rows": counts.rows,
            "lines": counts.lines,
            "blank_lines": counts.blank_lines,
            "ignored_columns": list(counts.ignored_columns),
        }
    return {
        "name": source.name,
        "kind": "python_source",
        "rows": counts.rows,
        "files": counts.files,
        "unreadable_files": counts.unreadable_files,
        "skipped": dict(sorted(counts.skipped.items())),
    }


def _notes(source: dict[str, Any]) -> str:
    notes = []
    if files := source.get("files"):
        notes.append(f"{files:,} files")
    if unreadable := source.get("unreadable_files"):
        notes.append(f"{len(unreadable):,} of them not Python of this version")
    notes += [f"{count:,} × {reason}" for reason, count in source.get("skipped", {}).items()]
    if ignored := source.get("ignored_columns"):
        notes.append("columns not used: " + ", ".join(ignored))
    if blank := source.get("blank_lines"):
        notes.append(f"{blank:,} blank lines")
    return "; ".join(notes)


def _lengths(facts: dict[str, Any], part: str) -> list[str]:
    sides = (facts["characters"][side][part] for side in ("train", "test"))
    return [f"{q['median']:,} / {q['p95']:,} / {q['max']:,}" for q in sides]


def _prompt_characters(row: Row) -> int:
    return sum(len(message["content"]) for message in row.messages[:-1])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _code(text: str) -> str:
    return text.replace("`", "'")

"""What a person and a machine read about a prepared dataset: `card.json`, `summary.md`, `card.html`."""

from typing import Any

from tasks.dataset.build import Built
from tasks.dataset.cleaning.contamination import OUT_OF_SCOPE
from tasks.dataset.rows import Row
from tasks.markdown import code_block, table

SHOWN_CHARACTERS = 1200
"""Of each turn of a sample row: the summary travels to Prefect and MLflow."""
SHOWN_SLICES = 20
BAR_CHARACTERS = 40


def card(built: Built, *, digest: str) -> dict[str, Any]:
    """Counts of every step, as JSON. Holds no text of the rows and no folder."""
    profiles = {side: profile.facts() for side, profile in built.profiles.items()}
    return {
        "digest": digest,
        "digests": built.digests,
        "rows": {side: facts["rows"] for side, facts in profiles.items()},
        "groups": {side: facts["groups"] for side, facts in profiles.items()},
        "holdout_rows": built.holdout_rows,
        "read": built.read,
        "steps": [{"step": step, "rows": rows} for step, rows in built.steps],
        "unrecognisable_evaluation_rows": built.unrecognisable,
        "dropped": dict(sorted(built.dropped.items())),
        "changed": dict(sorted(built.changed.items())),
        "characters": {side: facts["characters"] for side, facts in profiles.items()},
        "profiles": profiles,
        "sources": [
            {"name": source.name, "weight": source.weight, **source.counts}
            for source in built.sources
        ],
    }


def summary(facts: dict[str, Any], shown: dict[str, Row | None]) -> str:
    """Markdown: where rows came from, what was left out, lengths, slices, and a row of each side."""
    rows, groups = facts["rows"], facts["groups"]
    share = rows["test"] / (rows["train"] + rows["test"])
    holdout = f" {facts['holdout_rows']:,} of them are the holdout's." * bool(facts["holdout_rows"])
    parts = [
        "# Dataset",
        f"{rows['train']:,} rows to train on and {rows['test']:,} rows to test with "
        f"({share:.1%}).{holdout} No group of related rows is on both sides.",
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
        table(("after", "rows left"), [(s["step"], f"{s['rows']:,}") for s in facts["steps"]]),
        table(
            ("reason", "rows"),
            [(_cell(reason), f"{count:,}") for reason, count in facts["dropped"].items()],
        )
        if facts["dropped"]
        else "Nothing.",
    ]
    if any(step["step"] == "decontamination" for step in facts["steps"]):
        parts.append(_about_contamination(facts))
    if facts["changed"]:
        parts += [
            "## What was changed",
            table(("what", "rows"), [(_cell(k), f"{n:,}") for k, n in facts["changed"].items()]),
        ]
    train = facts["profiles"]["train"]
    parts += [
        "## Lengths of the training answers, in characters",
        code_block(_bars(train["lengths"]["answer"])),
    ]
    if len(train["turns"]) > 1:
        parts += [
            "## Messages in a training conversation",
            table(("messages", "rows"), [(t, f"{n:,}") for t, n in train["turns"].items()]),
        ]
    if len(train["slices"]) > 1:
        parts += ["## Slices", _slices(facts)]
    if train["languages"]:
        told = ", ".join(f"{language} {rows:,}" for language, rows in train["languages"].items())
        parts += [
            "## Languages of the training answers",
            f"Of {sum(train['languages'].values()):,} rows: {told}.",
        ]
    parts.append(
        "Digests of the rows: "
        + "; ".join(
            f"{side} `{digests['ordered'][:16]}` (in any order `{digests['any_order'][:16]}`)"
            for side, digests in facts["digests"].items()
        )
        + f"; both `{facts['digest']}`"
    )
    for side, row in shown.items():
        if row is None:
            continue
        parts += [f"## A {side} row", f"`{row.source}`, group `{_code(row.group)}`"]
        for message in row.messages:
            text = str(message.get("content") or message.get("tool_calls") or "")
            parts += [f"**{message['role']}**", code_block(text, SHOWN_CHARACTERS)]
    return "\n\n".join(parts) + "\n"


def _about_contamination(facts: dict[str, Any]) -> str:
    few = facts["unrecognisable_evaluation_rows"]
    return (
        "Training rows that repeat an evaluation row are left out. "
        + OUT_OF_SCOPE
        + f" {few:,} evaluation rows are too short, or hold too little of their own, to be compared."
        * bool(few)
    )


def _notes(source: dict[str, Any]) -> str:
    notes = []
    if mapping := source.get("mapping"):
        told = ", ".join(f"{role} from {column}" for role, column in mapping.items())
        notes.append(f"{source['chat_format']}: {told}")
    if isinstance(files := source.get("files"), int) and files:
        notes.append("1 file" if files == 1 else f"{files:,} files")
    if bad := source.get("bad_rows"):
        notes.append(f"{bad:,} bad rows in quarantine.jsonl")
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


def _bars(counts: list[int]) -> str:
    """A line for each power of two: `64 -     127      1,203  ████`."""
    most = max(counts)
    first = next(i for i, count in enumerate(counts) if count)
    lines = []
    for power in range(first, len(counts)):
        low, high = (2 ** (power - 1), 2**power - 1) if power else (0, 0)
        bar = "█" * round(BAR_CHARACTERS * counts[power] / most)
        lines.append(f"{low:>9,} - {high:>9,}  {counts[power]:>11,}  {bar}".rstrip())
    return "\n".join(lines)


def _slices(facts: dict[str, Any]) -> str:
    train, test = (facts["profiles"][side]["slices"] for side in ("train", "test"))
    names = sorted({*train, *test}, key=lambda name: (-train.get(name, 0), name))
    lines = [
        (_cell(name), f"{train.get(name, 0):,}", f"{test.get(name, 0):,}")
        for name in names[:SHOWN_SLICES]
    ]
    if len(names) > SHOWN_SLICES:
        lines.append((f"{len(names) - SHOWN_SLICES} more", "", ""))
    return table(("slice", "train", "test"), lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _code(text: str) -> str:
    return text.replace("`", "'")

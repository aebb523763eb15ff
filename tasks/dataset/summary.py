"""What a person reads about a prepared dataset: `summary.md`, and the same as `card.html`."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from tasks.dataset.cleaning.contamination import OUT_OF_SCOPE
from tasks.dataset.rows import Row
from tasks.markdown import cell, code_block, table

SHOWN_CHARACTERS = 1200
"""Of each turn of a sample row: the summary travels to Prefect and MLflow."""
SHOWN_SLICES = 20
BAR_CHARACTERS = 20
"""With its numbers a line fits a telephone."""


def summary(facts: dict[str, Any], shown: dict[str, Sequence[Row]]) -> str:
    """Markdown: where rows came from, what each step left out, lengths, slices, rows of each side.

    `shown` are rows of each side as they may be published.
    """
    rows, groups = facts["rows"], facts["groups"]
    share = rows["test"] / (rows["train"] + rows["test"])
    holdout = f" {facts['holdout_rows']:,} of them are the holdout's." * bool(facts["holdout_rows"])
    train = facts["profiles"]["train"]
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
        *(
            ["## Look at this before training", *(f"- {_text(w)}" for w in facts["warnings"])]
            if facts["warnings"]
            else []
        ),
        "## Where the rows come from",
        table(
            ("source", "kind", "rows"),
            [(_cell(s["name"]), s["kind"], f"{s['rows']:,}") for s in facts["sources"]],
        ),
        "\n".join(
            f"- {_text(s['name'])}: {_text(told)}"
            for s in facts["sources"]
            if (told := source_notes(s))
        ),
        "## Step by step",
        _steps(facts["steps"]),
        "## What was left out",
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
            "## What was changed or found",
            table(("what", "rows"), [(_cell(k), f"{n:,}") for k, n in facts["changed"].items()]),
        ]
    for part in ("prompt", "answer"):
        # Texts have no prompts.
        if train["characters"][part]["max"]:
            parts += [
                f"## Lengths of the training {part}s, in characters",
                f"```histogram\n{_bars(train['lengths'][part])}\n```",
            ]
    parts += [
        "## Messages in a training conversation",
        table(("messages", "rows"), [(_turns(t), f"{n:,}") for t, n in train["turns"].items()]),
        "## Slices",
        _slices(facts),
    ]
    if train["languages"]:
        told = ", ".join(f"{language} {rows:,}" for language, rows in train["languages"].items())
        parts += [
            "## Languages of the training answers",
            f"Of {sum(train['languages'].values()):,} rows: {told}.",
        ]
    parts += [
        "## Digests of the rows",
        table(
            ("", "in their order", "in any order"),
            [
                (side, f"`{found['ordered'][:16]}`", f"`{found['any_order'][:16]}`")
                for side, found in facts["digests"].items()
            ],
        ),
        f"Both sides together: `{facts['digest']}`",
    ]
    for side, some in shown.items():
        parts.append(f"## Some {side} rows")
        for row in some:
            parts += _row(row)
    return "\n\n".join(parts) + "\n"


def _steps(steps: list[dict[str, Any]]) -> str:
    first, *_ = steps
    lines = [(first["step"], f"{first['rows']:,}", "")]
    for before, step in pairwise(steps):
        lost = before["rows"] - step["rows"]
        lines.append((step["step"], f"{step['rows']:,}", f"{lost:,}" if lost else ""))
    return table(("step", "rows left", "left out"), lines)


def _row(row: Row) -> list[str]:
    told = [f"`{_code(row.source)}`, group `{_code(row.group)}`"]
    if row.text is not None:
        return [*told, code_block(row.text, SHOWN_CHARACTERS)]
    said = [(str(message["role"]), message) for message in row.messages]
    if row.desirable is not None:
        said[-1] = (f"{said[-1][0]}, {'good' if row.desirable else 'bad'}", said[-1][1])
    said += [(f"{message['role']}, rejected", message) for message in row.rejected]
    for role, message in said:
        text = str(message.get("content") or message.get("tool_calls") or "")
        told += [f"**{_cell(role)}**", code_block(text, SHOWN_CHARACTERS)]
    return told


def _turns(turns: str) -> str:
    return "16 and more" if turns == "16" else turns


def _about_contamination(facts: dict[str, Any]) -> str:
    few = facts["unrecognisable_evaluation_rows"]
    return (
        "Training rows that repeat an evaluation row are left out. "
        + OUT_OF_SCOPE
        + f" {few:,} evaluation rows are too short, or hold too little of their own, to be compared."
        * bool(few)
    )


def source_notes(source: dict[str, Any]) -> str:
    """A source's mapping and oddities, in a line."""
    notes = []
    if mapping := source.get("mapping"):
        told = ", ".join(f"{role} from {column}" for role, column in mapping.items())
        notes.append(f"{source['chat_format']}: {told}")
    if isinstance(files := source.get("files"), int) and files:
        notes.append("1 file" if files == 1 else f"{files:,} files")
    if bad := source.get("bad_rows"):
        rows = "row" if bad == 1 else "rows"
        notes.append(f"{bad:,} bad {rows} in quarantine.jsonl")
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
    """A line for each power of two: ` 64 - 127  1,203  ████`."""
    most = max(counts)
    first = next(i for i, count in enumerate(counts) if count)
    ranges = [(2 ** (power - 1), 2**power - 1) if power else (0, 0) for power in range(len(counts))]
    wide, much = len(f"{ranges[-1][1]:,}"), len(f"{most:,}")
    lines = []
    for (low, high), count in zip(ranges[first:], counts[first:], strict=True):
        # What is there is seen, however little it is beside the others.
        bar = "█" * round(BAR_CHARACTERS * count / most) or "▏" * (count > 0)
        lines.append(f"{low:>{wide},} - {high:>{wide},}  {count:>{much},}  {bar}".rstrip())
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


def _text(text: str) -> str:
    # Colons stay as they are: here they are ours.
    return cell(text, SHOWN_CHARACTERS).replace("\\:", ":")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _code(text: str) -> str:
    return text.replace("`", "'")

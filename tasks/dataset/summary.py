"""What a person reads about a prepared dataset: `summary.md`, and the same as `card.html`."""

from collections.abc import Sequence
from typing import Any

from tasks.dataset.cleaning.contamination import OUT_OF_SCOPE
from tasks.dataset.cleaning.found import FORM_ROWS
from tasks.dataset.rows import Row
from tasks.dataset.summary_parts import (
    SHOWN_CHARACTERS,
    bars,
    length_cells,
    plain_cell,
    row_lines,
    slices_table,
    some_names,
    steps_table,
    turns_name,
)
from tasks.markdown import cell, table


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
                    (f"{part}, characters (median / 95 % / longest)", *length_cells(facts, part))
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
            [(plain_cell(s["name"]), s["kind"], f"{s['rows']:,}") for s in facts["sources"]],
        ),
        "\n".join(
            f"- {_text(s['name'])}: {_text(told)}"
            for s in facts["sources"]
            if (told := source_notes(s))
        ),
        "## Step by step",
        steps_table(facts["steps"]),
        "## What was left out",
        table(
            ("reason", "rows"),
            [(plain_cell(reason), f"{count:,}") for reason, count in facts["dropped"].items()],
        )
        if facts["dropped"]
        else "Nothing.",
    ]
    if any(step["step"] == "decontamination" for step in facts["steps"]):
        parts.append(_about_contamination(facts))
    if facts["changed"]:
        parts += [
            "## What was changed or found",
            table(
                ("what", "rows"), [(plain_cell(k), f"{n:,}") for k, n in facts["changed"].items()]
            ),
        ]
    for part in ("prompt", "answer"):
        # Texts have no prompts.
        if train["characters"][part]["max"]:
            parts += [
                f"## Lengths of the training {part}s, in characters",
                f"```histogram\n{bars(train['lengths'][part])}\n```",
            ]
    parts += [
        "## Messages in a training conversation",
        table(("messages", "rows"), [(turns_name(t), f"{n:,}") for t, n in train["turns"].items()]),
        "## Slices",
        slices_table(facts),
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
            parts += row_lines(row)
    return "\n\n".join(parts) + "\n"


def source_notes(source: dict[str, Any]) -> str:
    """A source's mapping and oddities, in a line."""
    notes = []
    if mapping := source.get("mapping"):
        told = ", ".join(f"{role} from {column}" for role, column in mapping.items())
        notes.append(f"{source['chat_format']}: {told}")
    if isinstance(files := source.get("files"), int) and files:
        notes.append("1 file" if files == 1 else f"{files:,} files")
    if passed := source.get("passed_over"):
        noun = "file" if len(passed) == 1 else "files"
        notes.append(f"{len(passed):,} {noun} passed over: {some_names(passed)}")
    if broken := source.get("broken_links"):
        links = "link" if len(broken) == 1 else "links"
        notes.append(f"{len(broken):,} broken {links}: {some_names(broken)}")
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


def _about_contamination(facts: dict[str, Any]) -> str:
    few, alike = facts["unrecognisable_evaluation_rows"], facts["resembled_evaluation_rows"]
    return (
        "Training rows that repeat an evaluation row are left out. "
        + OUT_OF_SCOPE
        + f" {few:,} of {facts['rows']['test']:,} evaluation rows cannot be judged: they are too short, or "
        "hold too little that is not in many other rows as well. Nothing says that they are clean."
        * bool(few)
        + f" Those among them that are like more than {FORM_ROWS} training rows each are told above."
        * bool(alike)
    )


def _text(text: str) -> str:
    # Colons stay as they are: here they are ours.
    return cell(text, SHOWN_CHARACTERS).replace("\\:", ":")

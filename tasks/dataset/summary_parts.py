"""The tables, bars and rows that a dataset's summary is made of, as Markdown."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from tasks.dataset.rows import Row
from tasks.markdown import code_block, table

SHOWN_CHARACTERS = 1200
"""Of each turn of a sample row: the summary travels to Prefect and MLflow."""
SHOWN_SLICES = 20
SHOWN_NAMES = 5
BAR_CHARACTERS = 20
"""With its numbers a line fits a telephone."""


def steps_table(steps: list[dict[str, Any]]) -> str:
    """What was done, the rows left after it, and how many it left out."""
    first, *_ = steps
    lines = [(first["step"], f"{first['rows']:,}", "")]
    for before, step in pairwise(steps):
        lost = before["rows"] - step["rows"]
        lines.append((step["step"], f"{step['rows']:,}", f"{lost:,}" if lost else ""))
    return table(("step", "rows left", "left out"), lines)


def row_lines(row: Row) -> list[str]:
    """A row as people read it: where it is from, and each turn."""
    told = [f"`{_code(row.source)}`, group `{_code(row.group)}`"]
    if row.text is not None:
        return [*told, code_block(row.text, SHOWN_CHARACTERS)]
    said = [(str(message["role"]), message) for message in row.messages]
    if row.desirable is not None:
        said[-1] = (f"{said[-1][0]}, {'good' if row.desirable else 'bad'}", said[-1][1])
    said += [(f"{message['role']}, rejected", message) for message in row.rejected]
    for role, message in said:
        text = str(message.get("content") or message.get("tool_calls") or "")
        told += [f"**{plain_cell(role)}**", code_block(text, SHOWN_CHARACTERS)]
    return told


def turns_name(turns: str) -> str:
    """A number of messages; the last one counted stands for more, too."""
    return "16 and more" if turns == "16" else turns


def some_names(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - SHOWN_NAMES
    return ", ".join(names[:SHOWN_NAMES]) + (f" and {more:,} more" if more > 0 else "")


def length_cells(facts: dict[str, Any], part: str) -> list[str]:
    """Median, 95th percentile and longest of each side's prompts or answers."""
    sides = (facts["characters"][side][part] for side in ("train", "test"))
    return [f"{q['median']:,} / {q['p95']:,} / {q['max']:,}" for q in sides]


def bars(counts: list[int]) -> str:
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


def slices_table(facts: dict[str, Any]) -> str:
    """Rows of each side by slice, the largest first."""
    train, test = (facts["profiles"][side]["slices"] for side in ("train", "test"))
    names = sorted({*train, *test}, key=lambda name: (-train.get(name, 0), name))
    lines = [
        (plain_cell(name), f"{train.get(name, 0):,}", f"{test.get(name, 0):,}")
        for name in names[:SHOWN_SLICES]
    ]
    if len(names) > SHOWN_SLICES:
        lines.append((f"{len(names) - SHOWN_SLICES} more", "", ""))
    return table(("slice", "train", "test"), lines)


def plain_cell(text: str) -> str:
    """Text of our own for a table cell."""
    return text.replace("|", "\\|").replace("\n", " ")


def _code(text: str) -> str:
    return text.replace("`", "'")

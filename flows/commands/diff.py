"""`loraline diff A B`: two versions side by side: recipe, data, metrics, answers."""

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, TextIO

from tasks.home import home

if TYPE_CHECKING:
    from tasks.registration.comparing import Difference


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.usage = "loraline diff A B | loraline diff NAME VERSION VERSION"
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL_URI",
        help="two of NAME (its champion), models:/NAME@ALIAS, models:/NAME/VERSION; or NAME and two versions",
    )
    parser.add_argument(
        "--answers",
        type=int,
        default=5,
        metavar="N",
        help="test rows to show, those answered differently first (default: 5)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print what differs. Raises UserError for versions that are not there."""
    from flows.streams import own_standard_output
    from tasks.registration.comparing import compare_versions
    from tasks.tracking import reachable_tracker

    first, second = _uris(args.models)
    with own_standard_output() as out:
        tracker = reachable_tracker(home())
        found = compare_versions(tracker, first, second, samples=max(0, args.answers))
        if args.json:
            out.write(json.dumps(asdict(found)) + "\n")
        else:
            _print(found, out)
    return 0


def _uris(words: list[str]) -> tuple[str, str]:
    from tasks.errors import UserError
    from tasks.registration.prediction import model_uri

    if len(words) == 3:
        name, one, two = words
        return model_uri(f"models:/{name}/{one}"), model_uri(f"models:/{name}/{two}")
    if len(words) == 2:
        return model_uri(words[0]), model_uri(words[1])
    raise UserError(
        "diff compares two versions: `loraline diff models:/NAME/1 models:/NAME/2`, or `loraline diff NAME 1 2`."
    )


def _print(found: "Difference", out: TextIO) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=out, width=None if out.isatty() else 160)
    one, two = found.versions
    table = Table(box=None, pad_edge=False)
    for heading in ("", one, two):
        table.add_column(heading, overflow="fold")
    for name, (a, b) in found.facts.items():
        if a or b:
            table.add_row(name, a, b, style=None if a == b else "bold")
    for split, counts in found.rows.items():
        table.add_row(f"{split} rows", *(f"{n:,}" if n is not None else "" for n in counts))
    console.print(table)
    if found.metrics:
        out.write("\n")
        if found.same_test_rows is False:
            out.write("Their test rows differ: these metrics are not to be compared.\n")
        metrics = Table(box=None, pad_edge=False)
        metrics.add_column("metric")
        for heading in (one, two, "difference"):
            metrics.add_column(heading, justify="right")
        for name, (x, y) in found.metrics.items():
            metrics.add_row(name, _number(x), _number(y), _gain(x, y))
        console.print(metrics)
    out.write(f"\nRecipe: {found.recipe_note or ('' if found.recipe else 'the same text')}\n")
    for line in found.recipe.splitlines():
        style = {"+": "green", "-": "red"}.get(line[:1], "")
        console.print(Text(line, style=style), soft_wrap=True)
    out.write(f"\nAnswers: {found.samples_note}\n")
    for sample in found.samples:
        console.print(Text(f"\n{sample.prompt.strip()}", style="bold"), soft_wrap=True)
        for label, text in (
            ("reference", sample.reference),
            (one, sample.answers[0]),
            (two, sample.answers[1]),
        ):
            console.print(Text.assemble((f"  {label}: ", "dim"), text.strip()), soft_wrap=True)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _gain(one: float | None, two: float | None) -> str:
    return "" if one is None or two is None else f"{two - one:+.4g}"

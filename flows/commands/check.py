"""`loraline check`: what a recipe and its data would do, before a GPU is touched."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.program import program
from tasks.durations import duration
from tasks.errors import RecipeError
from tasks.home import home

if TYPE_CHECKING:
    from rich.console import Console

    from flows.recipe_check import RecipeCheck
    from tasks.recipe import Recipe
    from tasks.training.job import Inspection

GIB = 1024**3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe file, such as recipes/a.yaml")
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="override a value of the recipe; may be repeated",
    )
    parser.add_argument(
        "--rows",
        type=_count,
        default=5,
        metavar="N",
        help="show N training rows with the trained tokens marked (default: 5)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Recipe, data and tokens without torch; then the model in a worker process.

    Registers nothing. The data and the tokens it prepares stay in the store, where `run` finds them.
    With --json a check that fails prints `{"ok": false, "error": ...}` with what was found before, and
    for a wrong recipe `"mistakes"`, a list of its lines.
    """
    from flows.streams import own_standard_output

    with own_standard_output() as answer:
        from rich.console import Console

        # For --json the words go to standard error, the object to standard output.
        plain = None if answer.isatty() else 120
        console = Console(stderr=True) if args.json else Console(file=answer, width=plain)
        facts: dict[str, Any] = {"ok": False}
        try:
            _check(args, console, facts)
            facts["ok"] = True
        except Exception as error:
            from flows.failures import explain

            facts["error"] = explain(error).message
            if isinstance(error, RecipeError):
                facts["mistakes"] = facts["error"].splitlines()
            raise
        finally:
            if args.json:
                answer.write(json.dumps(facts) + "\n")
    return 0


def _check(args: argparse.Namespace, console: "Console", facts: dict[str, Any]) -> None:
    """Make each step, print what it found and add it to `facts`."""
    from flows.recipe_check import RecipeCheck

    check = RecipeCheck(Path(args.recipe), tuple(args.overrides), home())
    facts["recipe"] = _recipe(check, console)
    facts["dataset"] = _dataset(check, console)
    facts["tokenization"] = _tokens(check, console, args.rows)
    facts["training"] = _model(check, console)
    _title(console, "Next", f"{program()} run {args.recipe}")


def _recipe(check: "RecipeCheck", console: "Console") -> dict[str, Any]:
    loaded = check.loaded
    _title(console, "Recipe", f"{check.path}: valid, named {check.recipe.name}")
    warnings = [*loaded.warnings, *_cautions(check.recipe)]
    for warning in warnings:
        console.print(f"  warning: {warning}", style="yellow", markup=False, highlight=False)
    return {"name": check.recipe.name, "warnings": warnings}


def _cautions(recipe: "Recipe") -> list[str]:
    """What is no mistake, and seldom meant."""
    if recipe.promotion.policy != "automatic" or recipe.evaluation.gate:
        return []
    return [
        "promotion.policy is automatic, and evaluation.gate has no rule: every adapter that trains takes the "
        "champion's place, a worse one too. Add a rule, such as {metric: rougeL, against: champion, min_gain: "
        "0}, or write promotion.policy: approval."
    ]


def _dataset(check: "RecipeCheck", console: "Console") -> dict[str, Any]:
    from flows.recipe_check import card
    from tasks.dataset.summary import source_notes

    counts = card(check.dataset)
    rows = counts["rows"]
    _title(console, "Data", f"{rows['train']:,} rows to train on, {rows['test']:,} to test with")
    for source in counts["sources"]:
        told = f"from {source['name']} ({source['kind']}): {source['rows']:,} rows"
        _line(console, "; ".join(part for part in (told, source_notes(source)) if part))
    for reason, count in counts["dropped"].items():
        _line(console, f"left out: {count:,} ({reason})")
    for what, count in counts["changed"].items():
        _line(console, f"changed or found: {count:,} ({what})")
    for warning in counts["warnings"]:
        console.print(f"  warning: {warning}", style="yellow", markup=False, highlight=False)
    _line(console, f"rows in {check.dataset.path}")
    return {**counts, "path": str(check.dataset.path)}


def _tokens(check: "RecipeCheck", console: "Console", rows: int) -> dict[str, Any]:
    from flows.recipe_check import card

    base, tokens = check.base, check.tokens
    counts = card(tokens)
    where = f"{base.model}@{base.commit[:12]}" if base.commit else str(base.path)
    _title(console, "Tokens", f"by the tokenizer of {where}")
    for side in ("train", "test"):
        share = tokens.trained_tokens[side] / max(tokens.tokens[side], 1)
        _line(
            console,
            f"{side}: {tokens.rows[side]:,} rows, {tokens.tokens[side]:,} tokens, "
            f"{tokens.trained_tokens[side]:,} of them trained ({share:.0%})",
        )
        for reason, count in counts["dropped"][side].items():
            if count:
                _line(console, f"{side}: left out: {count:,} ({reason})")
        for what, count in counts["changed"][side].items():
            _line(console, f"{side}: changed: {count:,} ({what})")
    longest = max(counts["longest_rows"]["train"], key=lambda row: int(row["tokens"]))
    _line(
        console, f"longest: {longest['tokens']:,} tokens, row {longest['id']} ({longest['source']})"
    )
    _line(console, f"encoded by {counts['encoder']}")
    if rows:
        _preview(check, console, rows)
    return {**counts, "path": str(tokens.path), "base": base.model, "commit": base.commit}


def _preview(check: "RecipeCheck", console: "Console", rows: int) -> None:
    from rich.text import Text

    # Without colours brackets tell the trained text and the special tokens.
    marks = ("", "", "", "") if console.color_system else ("⟦", "⟧", "«", "»")
    _line(
        console,
        "trained text is green, special tokens are reversed"
        if console.color_system
        else "trained text is in ⟦ ⟧, special tokens are in « »",
    )
    for row in check.preview(rows):
        _line(console, f"row {row.id}: {row.tokens} tokens, {row.trained_tokens} trained")
        text = Text()
        trained = False
        for segment in row.segments:
            if segment.trained != trained:
                text.append(marks[0] if segment.trained else marks[1])
                trained = segment.trained
            style = ("green" if trained else "dim") + (" reverse" if segment.special else "")
            shown = f"{marks[2]}{segment.text}{marks[3]}" if segment.special else segment.text
            text.append(shown, style=style)
        text.append(marks[1] if trained else "")
        console.print(text, soft_wrap=True)


def _model(check: "RecipeCheck", console: "Console") -> dict[str, Any]:
    found = check.model
    share = found.trainable_parameters / max(found.total_parameters, 1)
    _title(
        console,
        "Model",
        f"{found.trainable_parameters:,} of {found.total_parameters:,} parameters trained "
        f"({share:.2%})",
    )
    modules = ", ".join(f"{name} ({count})" for name, count in found.target_modules.items())
    _line(console, f"adapted modules: {modules}")
    _line(console, f"{found.device}, {found.dtype}: {found.dtype_reason}")
    _line(console, _memory(found))
    time = "unknown" if found.seconds is None else f"about {duration(found.seconds)}"
    _line(console, f"{found.steps:,} steps; time: {time} ({found.seconds_reason})")
    return dict(found.model_dump(mode="json"))


def _memory(found: "Inspection") -> str:
    parts = {name: size for name, size in found.memory_bytes.items() if name != "total"}
    detail = ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items())
    text = f"memory, an estimate: {found.memory_bytes['total'] / GIB:.2f} GiB ({detail})"
    if found.memory_available_bytes is not None:
        text += f"; {found.memory_available_bytes / GIB:.1f} GiB are free"
    return text


def _title(console: "Console", title: str, text: str) -> None:
    from rich.text import Text

    console.print()
    console.print(Text.assemble((f"{title}: ", "bold"), text), soft_wrap=True)


def _line(console: "Console", text: str) -> None:
    console.print(f"  {text}", markup=False, highlight=False, soft_wrap=True)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number from 0, not {text!r}")
    return int(text)

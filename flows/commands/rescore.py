"""`loraline rescore RUN`: compute a run's metrics again from its stored predictions; no model is loaded."""

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.files import expanded
from tasks.home import home

if TYPE_CHECKING:
    from tasks.tracking import Tracker


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "run",
        metavar="RUN",
        help="an MLflow run id, an evaluation's fingerprint, or a folder with predictions.parquet",
    )
    parser.add_argument(
        "--recipe",
        type=Path,
        metavar="FILE",
        help="score by this recipe's section `evaluation` (default: as the run was scored)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="with --recipe: change a field, for example evaluation.slices=[length]",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="where metrics.json and report.md go (default: a new folder below `rescored` in the state folder)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print the new metrics beside the stored ones, and the gate's verdict on them.

    Raises: UserError when the run, its predictions or what the recipe names cannot be found.
    """
    from flows.streams import own_standard_output
    from tasks.errors import UserError
    from tasks.evaluation.rescoring import find_stored, rescore
    from tasks.preflight import check_recipe
    from tasks.store import Store
    from tasks.tracking import reachable_tracker

    if args.set and args.recipe is None:
        raise UserError("--set changes fields of a recipe: name it with --recipe.")
    with own_standard_output() as out:
        here = home()
        here.prepare()
        stored = find_stored(
            args.run, Store(here.store), lambda name: _tags(reachable_tracker(here), name)
        )
        settings, folder = None, Path.cwd()
        if args.recipe is not None:
            settings = check_recipe(args.recipe, tuple(args.set)).recipe.evaluation
            folder = expanded(args.recipe).absolute().parent
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
        output = expanded(args.output or here.root / "rescored" / stamp).absolute()
        before = json.loads((stored.folder / "metrics.json").read_text(encoding="utf-8"))
        facts = rescore(stored, settings, recipe_folder=folder, output=output, home=here)
        if args.json:
            told = {name: facts[name] for name in ("metrics", "differences", "slices", "gate")}
            out.write(json.dumps({"run": args.run, "output": str(output), **told}) + "\n")
        else:
            _show(out, before, facts, output)
    return 0


def _tags(tracker: "Tracker", run_id: str) -> dict[str, str]:
    from tasks.errors import UserError

    try:
        return dict(tracker.client.get_run(run_id).data.tags)
    except Exception as error:
        raise UserError(
            f"{run_id} is no folder with predictions, no evaluation in the store, and no MLflow run "
            f"({type(error).__name__}). `loraline versions --json` names the runs of versions."
        ) from error


def _show(out: Any, before: dict[str, Any], facts: dict[str, Any], output: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    models = [model for model, values in facts["metrics"].items() if values is not None]
    table = Table(box=None, pad_edge=False)
    table.add_column("metric", no_wrap=True)
    for model in models:
        table.add_column(model, justify="right", no_wrap=True)
    table.add_column("adapter before", justify="right", no_wrap=True)
    old = before["metrics"]["challenger"]
    for metric in facts["metrics"]["challenger"]:
        values = [facts["metrics"][model].get(metric) for model in models]
        table.add_row(metric, *map(_number, [*values, old.get(metric)]))
    Console(file=out, width=None if out.isatty() else 160).print(table)
    gate = facts["gate"]
    if gate is not None:
        out.write(f"\nThe gate {'lets it pass' if gate['passed'] else 'refuses it'}:\n")
        for rule in gate["rules"]:
            out.write(f"{'✓' if rule['passed'] else '✗'} {rule['rule']}: {rule['why']}\n")
    out.write(f"\nReport: {output / 'report.md'}\n")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"

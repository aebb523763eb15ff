"""`loraline gc`: remove stage outputs, checkpoints, logs and reports that nothing needs; without --yes it only says which."""

import argparse
import json
from typing import TYPE_CHECKING, Any

from tasks.home import home

if TYPE_CHECKING:
    from tasks.retention.collecting import Plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = (
        "Say what no registered version, no running or resumable run and none of the last runs of its "
        "adapter needs; --yes removes it. A run does this by itself after each success."
    )
    parser.add_argument(
        "--keep-runs",
        type=_positive,
        metavar="N",
        help="newest runs of each adapter to keep (default: its recipe's retention.keep_runs)",
    )
    parser.add_argument("--yes", action="store_true", help="remove it")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print what goes, by kind. Raises StageFailed when MLflow cannot say which versions there are."""
    from flows.connection import RUNS_KEPT_DAYS
    from flows.streams import own_standard_output
    from tasks.retention.collecting import collect, plan
    from tasks.retention.deleted_runs import RESTORABLE_DAYS
    from tasks.tracking import reachable_tracker

    with own_standard_output() as out:
        here = home()
        tracker = reachable_tracker(here)
        if args.yes:
            done = collect(here, tracker, keep_runs=args.keep_runs, asked=True)
        else:
            done = plan(here, tracker, keep_runs=args.keep_runs)
        if args.json:
            out.write(json.dumps(_as_json(done)) + "\n")
            return 0
        for goes in done.goes:
            name = goes.path.relative_to(here.root)
            out.write(
                f"  {'gone ' if done.removed else 'goes '} {goes.bytes / 1e6:9.1f} MB  {name}\n"
            )
        if runs := len(done.deleted_runs):
            which = "that were deleted"
            if not done.removed:
                which += f": those of them that were so {RESTORABLE_DAYS} days ago"
            out.write(f"  {'gone ' if done.removed else 'goes '} {runs} MLflow runs {which}\n")
        if not done.goes and not done.deleted_runs:
            out.write("Everything here is needed.\n")
        else:
            told = "were removed" if done.removed else "would go; --yes removes them"
            out.write(f"{len(done.goes)} things, {done.bytes / 1e9:.2f} GB, {told}.\n")
        out.write(
            f"Prefect's server deletes its own runs, {RUNS_KEPT_DAYS} days after their end.\n"
        )
    return 0


def _as_json(done: "Plan") -> dict[str, Any]:
    goes = [{"kind": it.kind, "path": str(it.path), "bytes": it.bytes} for it in done.goes]
    return {
        "removed": done.removed,
        "bytes": done.bytes,
        "goes": goes,
        "deleted_mlflow_runs": done.deleted_runs,
        "stays": done.stays,
    }


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, not {text!r}")
    return int(text)

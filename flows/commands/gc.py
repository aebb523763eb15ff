"""`loraline gc`: remove what nothing needs, on disk, in Prefect and in MLflow; without --yes it only says what."""

import argparse
import json
import logging
from typing import TYPE_CHECKING, Any

from tasks.errors import StageFailed
from tasks.home import Home, home

if TYPE_CHECKING:
    from tasks.retention.collecting import Plan

_log = logging.getLogger(__name__)


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
    from tasks.retention.deletions import RESTORABLE_DAYS
    from tasks.tracking import reachable_tracker

    with own_standard_output() as out:
        here = home()
        tracker = reachable_tracker(here)
        if args.yes:
            done = collect(here, tracker, keep_runs=args.keep_runs, asked=True)
        else:
            done = plan(here, tracker, keep_runs=args.keep_runs)
        ended = _long_ended(here, delete=args.yes)
        if args.json:
            out.write(json.dumps(_as_json(done, ended)) + "\n")
            return 0
        verb = "gone " if done.removed else "goes "
        for goes in done.goes:
            name = goes.path.relative_to(here.root)
            out.write(f"  {verb} {goes.bytes / 1e6:9.1f} MB  {name}\n")
        if runs := len(done.deleted_runs):
            which = "that were deleted"
            if not done.removed:
                which += f": those of them that were so {RESTORABLE_DAYS} days ago"
            out.write(f"  {verb} {runs} MLflow runs {which}\n")
        if ended:
            out.write(f"  {verb} {len(ended)} Prefect runs that ended {RUNS_KEPT_DAYS} days ago\n")
        if not (done.goes or done.deleted_runs or ended):
            out.write("Everything here is needed.\n")
        else:
            told = "were removed" if done.removed else "would go; --yes removes them"
            out.write(f"{len(done.goes)} things, {done.bytes / 1e9:.2f} GB, {told}.\n")
        if ended is None:
            out.write(
                f"Prefect's server deletes its own runs, {RUNS_KEPT_DAYS} days after their end.\n"
            )
    return 0


def _long_ended(here: Home, *, delete: bool) -> list[str] | None:
    """Runs in Prefect that go, or went; None where no server of this home's answers: a full disk must not wait for it."""
    from flows.stack.long_ended import long_ended, own_prefect

    try:
        if (api := own_prefect(here)) is None:
            return None
        found = long_ended(api)
        if delete:
            api.delete_flow_runs(found)
    except StageFailed as error:
        _log.warning("%s", error)
        return None
    return found


def _as_json(done: "Plan", ended: list[str] | None) -> dict[str, Any]:
    goes = [{"kind": it.kind, "path": str(it.path), "bytes": it.bytes} for it in done.goes]
    return {
        "removed": done.removed,
        "bytes": done.bytes,
        "goes": goes,
        "deleted_mlflow_runs": done.deleted_runs,
        "long_ended_prefect_runs": ended,
        "stays": done.stays,
    }


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, not {text!r}")
    return int(text)

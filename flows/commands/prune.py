"""`loraline prune NAME --keep 5`: delete old versions that nothing needs; without --yes it only says which."""

import argparse
import json

from tasks.home import home


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = (
        "Say which versions may go, with their MLflow runs; --yes deletes them. A version with an alias, "
        "one that a rollback may need, and one that a later version started from always stay."
    )
    parser.add_argument("name", metavar="NAME", help="registered model")
    parser.add_argument(
        "--keep", type=int, default=5, metavar="N", help="newest versions to keep (default: 5)"
    )
    parser.add_argument("--yes", action="store_true", help="delete them")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print what goes and what stays, and why. Raises UserError for a name that is not registered."""
    from flows.receivers import command_notices
    from flows.streams import own_standard_output
    from tasks.promotion.pruning import plan, prune
    from tasks.registration.listing import list_versions
    from tasks.retention.deletions import RESTORABLE_DAYS
    from tasks.tracking import reachable_tracker

    with own_standard_output() as out:
        tracker = reachable_tracker(home())
        # Tells a misspelt name, with those that there are.
        list_versions(tracker, args.name)
        if args.yes:
            notices = command_notices(tracker.home)
            done = prune(tracker, args.name, keep=args.keep, notices=notices)
        else:
            done = plan(tracker, args.name, keep=args.keep)
        if args.json:
            answer = {
                "deleted": args.yes,
                "versions": list(done.go),
                "runs": list(done.runs),
                "kept": {kept.version: kept.why for kept in done.stay},
            }
            out.write(json.dumps(answer) + "\n")
            return 0
        for kept in done.stay:
            out.write(f"  stays  version {kept.version}: {kept.why}\n")
        for number in done.go:
            out.write(f"  {'gone ' if args.yes else 'goes '}  version {number}\n")
        if not done.go:
            out.write("Nothing may go.\n")
        elif args.yes:
            out.write(
                f"{len(done.go)} versions and {len(done.runs)} MLflow runs are deleted. `loraline gc` frees "
                f"their space once they cannot be restored any more, after {RESTORABLE_DAYS} days; where "
                "MLflow's files lie elsewhere, its own `mlflow gc` does.\n"
            )
        else:
            out.write(
                f"{len(done.go)} versions and {len(done.runs)} MLflow runs would go. Nothing was deleted; "
                "--yes deletes them.\n"
            )
    return 0

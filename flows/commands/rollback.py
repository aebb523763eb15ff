"""`loraline rollback NAME --reason ...`: make the version before the champion again."""

import argparse
import json
import sys

from tasks.home import home


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = (
        "Load the version with the alias `previous` in a fresh process, and only then make it the "
        "champion again. A second rollback goes one step further back."
    )
    parser.add_argument("name", metavar="NAME", help="registered model")
    parser.add_argument("--reason", required=True, metavar="TEXT", help="why; it stands in the log")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Go back; a version that does not load is an error in words, and nothing is moved then."""
    from flows.receivers import command_notices
    from flows.streams import own_standard_output
    from tasks.promotion.promoting import checked_reason, roll_back
    from tasks.registration.proving import prove_version
    from tasks.tracking import reachable_tracker

    # Before a server is waited for.
    reason = checked_reason(args.reason)
    with own_standard_output() as out:
        tracker = reachable_tracker(home())

        def verify(uri: str) -> str:
            version = uri.rpartition("/")[2]
            sys.stderr.write(f"Loading version {version} of {args.name} in a fresh process ...\n")
            return prove_version(tracker, uri)

        moved = roll_back(
            tracker,
            args.name,
            reason=reason,
            verify=verify,
            notices=command_notices(tracker.home),
        )
        entry = moved.entry
        assert entry is not None
        if args.json:
            answer = {
                "version": moved.version.model_dump(),
                "entry": entry.model_dump(mode="json"),
            }
            out.write(json.dumps(answer) + "\n")
        else:
            out.write(
                f"Version {entry.champion_to} of {args.name} is champion again "
                f"(version {entry.champion_from or 'none'} was).\n"
            )
    return 0

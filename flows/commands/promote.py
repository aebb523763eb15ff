"""`loraline promote NAME VERSION --reason ...`: make a registered version the champion."""

import argparse
import json
import sys

from tasks.home import home


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = (
        "Check the gate's verdict on the version, load it in a fresh process, point the alias `champion` "
        "to it and `previous` to the one before, and write the promotion log. Exit code 3: the gate "
        "refused it."
    )
    parser.add_argument("name", metavar="NAME", help="registered model")
    parser.add_argument("version", metavar="VERSION", help="the version's number")
    parser.add_argument("--reason", required=True, metavar="TEXT", help="why; it stands in the log")
    parser.add_argument(
        "--force",
        action="store_true",
        help="against the gate's verdict, or when the champion it was judged against is gone; the log says so",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Promote; what stands against it is an error in words, and nothing is moved then."""
    from flows.receivers import command_notices
    from flows.streams import own_standard_output
    from tasks.promotion.promoting import checked_reason, promote
    from tasks.registration.proving import prove_version
    from tasks.tracking import reachable_tracker

    # Before a server is waited for.
    reason = checked_reason(args.reason)
    with own_standard_output() as out:
        tracker = reachable_tracker(home())

        def verify(uri: str) -> str:
            sys.stderr.write(
                f"Loading version {args.version} of {args.name} in a fresh process ...\n"
            )
            return prove_version(tracker, uri)

        moved = promote(
            tracker,
            args.name,
            args.version,
            reason=reason,
            verify=verify,
            force=args.force,
            notices=command_notices(tracker.home),
        )
        entry = moved.entry
        if args.json:
            answer = {
                "promoted": entry is not None,
                "version": moved.version.model_dump(),
                "entry": entry and entry.model_dump(mode="json"),
            }
            out.write(json.dumps(answer) + "\n")
        elif entry is None:
            out.write(f"Version {moved.version.version} of {args.name} is champion already.\n")
        else:
            forced = ", by force" if entry.forced else ""
            out.write(
                f"Version {entry.champion_to} of {args.name} is champion now{forced}"
                f" (before: {entry.champion_from or 'none'}).\n"
            )
            if entry.champion_from:
                out.write(f"Back again: loraline rollback {args.name} --reason ...\n")
    return 0

"""`loraline verify MODEL_URI`: recompute what a registered version says of itself."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from tasks.home import home


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "model",
        metavar="MODEL_URI",
        help="NAME (its champion), models:/NAME@ALIAS, models:/NAME/VERSION",
    )
    parser.add_argument(
        "--base",
        type=Path,
        metavar="DIR",
        help="the base model's folder, if it is not found by itself",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print each check; 1 when one fails. A version that does not load is an error in words."""
    from flows.streams import own_standard_output
    from tasks.registration.checking import check_version
    from tasks.registration.prediction import model_uri
    from tasks.tracking import reachable_tracker

    uri = model_uri(args.model)
    with own_standard_output() as out:
        tracker = reachable_tracker(home())
        base = args.base.absolute() if args.base else None
        checks = check_version(tracker, uri, base=base, home=tracker.home)
        if args.json:
            found = {"model": uri, "checks": [asdict(check) for check in checks]}
            out.write(json.dumps(found) + "\n")
        else:
            marks = {True: "✓", False: "✗", None: "·"}
            for check in checks:
                out.write(f"{marks[check.passed]} {check.name}: {check.told}\n")
    return int(any(check.passed is False for check in checks))

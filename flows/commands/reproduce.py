"""`loraline reproduce MODEL_URI`: run a version's recorded recipe again and compare the adapters."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = (
        "Read the data, tokenize and train again, as the version's recorded recipe says, in a fresh "
        "folder; nothing is registered. Exit code 0: the same adapter came out, byte for byte; 1: "
        "another one did, or an input is not what it was, and what differs is said."
    )
    parser.add_argument(
        "model",
        metavar="MODEL_URI",
        help="NAME (its champion), models:/NAME@ALIAS, models:/NAME/VERSION",
    )
    parser.add_argument(
        "--recipe",
        type=Path,
        metavar="FILE",
        help="where the recipe lies today, if it is not found by itself; its text is the recorded one",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print whether the adapters are equal and what differs; 1 when they are not."""
    from flows.reproduction import reproduce
    from flows.streams import own_standard_output
    from tasks.home import home
    from tasks.registration.making import read_making
    from tasks.registration.prediction import model_uri
    from tasks.tracking import reachable_tracker

    uri = model_uri(args.model)
    with own_standard_output() as out:
        tracker = reachable_tracker(home())
        making = read_making(tracker, uri, tracker.home)
        made = reproduce(
            making,
            tracker.home,
            recipe=args.recipe,
            on_note=lambda text: print(text, file=sys.stderr),
        )
        if args.json:
            out.write(json.dumps(asdict(made) | {"equal": made.equal}) + "\n")
            return int(not made.equal)
        if made.equal:
            out.write(f"✓ {uri} is reproduced: the same adapter, sha256 {made.expected[:12]}\n")
        elif made.found is None:
            out.write(f"✗ {uri} cannot be reproduced: an input is not what it was\n")
        else:
            out.write(
                f"✗ {uri} is not reproduced: its adapter has sha256 {made.expected[:12]}, the one "
                f"trained now {made.found[:12]}\n"
            )
        for line in made.differences:
            out.write(f"· {line}\n")
        if not made.equal and not made.differences:
            out.write(
                "· inputs, libraries and device are what they were: another processor, or a training "
                "that is not deterministic (a GPU's kernels)\n"
            )
    return int(not made.equal)

"""`loraline pull MODEL_URI DIR`: copy a version's adapter into a plain PEFT folder."""

import argparse
import json
from pathlib import Path

from tasks.home import home


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "model",
        metavar="MODEL_URI",
        help="NAME (its champion), models:/NAME@ALIAS, models:/NAME/VERSION",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="a folder that is absent or empty")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Copy, and compare every file with the version's manifest; what differs is an error in words."""
    from flows.streams import own_standard_output
    from tasks.registration.prediction import model_uri
    from tasks.registration.pulling import pull_adapter
    from tasks.tracking import reachable_tracker

    uri = model_uri(args.model)
    with own_standard_output() as out:
        pulled = pull_adapter(reachable_tracker(home()), uri, args.folder)
        if args.json:
            answer = {
                "model": uri,
                "folder": str(pulled.folder),
                "files": pulled.files,
                "base_model": pulled.base_model,
                "base_sha256": pulled.base_sha256,
            }
            out.write(json.dumps(answer) + "\n")
        else:
            out.write(
                f"{pulled.files} files of {uri} in {pulled.folder}, each with its recorded sha256.\n"
                f"The adapter belongs on {pulled.base_model} (sha256 {pulled.base_sha256[:12]}).\n"
            )
    return 0

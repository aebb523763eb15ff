"""`loraline audit NAME`: verify the promotion log and print it."""

import argparse
import json
from typing import TYPE_CHECKING, TextIO

from tasks.home import home

if TYPE_CHECKING:
    from tasks.promotion.audit import Audit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = (
        "Verify that every entry of the promotion log is what was written, and that none is missing. "
        "Exit code 1: one was altered or is missing; the first of them is named."
    )
    parser.add_argument("name", metavar="NAME", help="registered model")
    parser.add_argument(
        "--accept",
        action="store_true",
        help="go on with a log that was damaged: write an entry that names what is wrong, and by whom "
        "it was accepted (needs --reason); nothing is promoted before that",
    )
    parser.add_argument("--reason", metavar="TEXT", help="with --accept: why; it stands in the log")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print the log; 1 when its chain is broken. Raises UserError for a name that is not registered."""
    from flows.streams import own_standard_output
    from tasks.errors import UserError
    from tasks.promotion.audit import audit
    from tasks.registration.listing import list_versions
    from tasks.tracking import reachable_tracker

    with own_standard_output() as out:
        tracker = reachable_tracker(home())
        # Tells a misspelt name from one that nobody promoted yet.
        list_versions(tracker, args.name)
        if args.accept:
            from flows.receivers import command_notices
            from tasks.promotion.accepting import accept

            notices = command_notices(tracker.home)
            accept(tracker, args.name, reason=args.reason or "", notices=notices)
        elif args.reason is not None:
            raise UserError("--reason belongs to --accept: an audit alone changes nothing.")
        found = audit(tracker, args.name)
        if args.json:
            answer = {
                "ok": not found.problems,
                "entries": [{**it.value, "hash": it.hash} for it in found.entries],
                "problems": [{"number": it.number, "told": it.told} for it in found.problems],
                "notes": list(found.notes),
            }
            out.write(json.dumps(answer) + "\n")
        else:
            _print(args.name, found, out)
    return 1 if found.problems else 0


def _print(name: str, found: "Audit", out: TextIO) -> None:
    from rich.console import Console
    from rich.table import Table

    if found.entries:
        table = Table(box=None, pad_edge=False)
        for heading in ("#", "at (UTC)", "what", "champion", "before", "by", "gate", "verified"):
            table.add_column(heading, no_wrap=True)
        table.add_column("reason")
        for it in found.entries:
            table.add_row(
                str(it.number),
                it.at[:16].replace("T", " "),
                it.kind + (" (forced)" if it.forced else ""),
                it.champion_to or "none",
                it.champion_from or "none",
                it.actor,
                it.gate or "",
                {True: "✓", False: "✗", None: ""}[it.verified],
                it.reason,
            )
        Console(file=out, width=None if out.isatty() else 160).print(table)
    for note in found.notes:
        out.write(f"{note}\n")
    if found.problems:
        first = found.problems[0]
        number = "an entry" if first.number is None else f"entry {first.number}"
        out.write(f"The chain is BROKEN. The first that is not as it was written is {number}:\n")
        for problem in found.problems:
            out.write(f"  {problem.number or '?'}: {problem.told}\n")
    elif found.entries:
        out.write(
            "All entries behind the accepted damage are as they were written, and none is missing.\n"
            if any(it.kind == "accepted" for it in found.entries)
            else f"All {len(found.entries)} entries are as they were written, and none is missing.\n"
        )
    else:
        out.write(f"Nobody has promoted a version of {name} yet.\n")

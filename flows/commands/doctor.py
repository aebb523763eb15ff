"""`loraline doctor`: what this machine has, and what to do about what is missing."""

import argparse
import json
from dataclasses import asdict

from tasks.home import home

_MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "missing": ("✗", "red")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print each finding as it is made; 0 when all that is needed is there, else 1."""
    from flows.findings import examine
    from flows.streams import own_standard_output

    with own_standard_output() as answer:
        if args.json:
            found = list(examine(home()))
        else:
            from rich.console import Console
            from rich.text import Text

            console = Console(file=answer, width=None if answer.isatty() else 120)
            found = []
            for finding in examine(home()):
                found.append(finding)
                mark, style = _MARKS[finding.state]
                line = Text.assemble(
                    (f"{mark} ", style), (f"{finding.name}: ", "bold"), finding.value
                )
                console.print(line, soft_wrap=True)
                if finding.advice:
                    console.print(Text(f"    {finding.advice}", style), soft_wrap=True)
        missing = [finding for finding in found if finding.state == "missing"]
        if args.json:
            report = {"ok": not missing, "findings": [asdict(finding) for finding in found]}
            answer.write(json.dumps(report) + "\n")
        elif missing:
            answer.write(f"\n{len(missing)} of these must be put right before a run can succeed.\n")
    return 1 if missing else 0

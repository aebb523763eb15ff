"""`loraline status`: how each part of the stack is."""

import argparse
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tasks.durations import duration
from tasks.home import home

if TYPE_CHECKING:
    from flows.stack.state import StackState

UNHEALTHY = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--json", action="store_true", help="print the state as JSON")


def run(args: argparse.Namespace) -> int:
    """Return 0 when every part is healthy, 1 otherwise."""
    from flows.stack.state import stack_state

    state = stack_state(home(), os.environ)
    if args.json:
        print(state.model_dump_json(indent=1))
    else:
        _print(state)
    return 0 if state.healthy else UNHEALTHY


def _print(state: "StackState") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if state.parts:
        table = Table("part", "health", "state", "pid", "up for", "restarts", box=None)
        table.add_column("where", overflow="fold")
        for part in state.parts:
            age = ""
            if part.since:
                age = duration(
                    (datetime.now(UTC) - datetime.fromisoformat(part.since)).total_seconds()
                )
            colour = {"healthy": "green", "starting": "yellow"}.get(part.health, "red")
            table.add_row(
                part.name,
                Text(part.health, style=colour),
                part.state.lower(),
                str(part.pid or ""),
                age,
                str(part.restarts),
                part.url or part.log,
            )
        console.print(table)
        for part in state.parts:
            if part.why:
                console.print(f"{part.name}: {part.why}", markup=False, soft_wrap=True)
    if state.message:
        console.print(state.message, markup=False, soft_wrap=True)

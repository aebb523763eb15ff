"""`loraline down`: stop the stack of this home and everything it started."""

import argparse
import sys
from functools import partial

from tasks.home import home


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")


def run(args: argparse.Namespace) -> int:
    """Return 0, also when nothing ran. Raises: UserError when another command is at work on the stack."""
    from flows.stack import supervisor
    from flows.stack.boot import stop_unit
    from flows.stack.starting import bring_down
    from flows.stack.state import elsewhere

    state, say = home(), partial(print, file=sys.stderr)
    # First where no stack is healthy yet: a unit whose starts fail would make one. One that was is ended in order, and
    # not while another command is at work on it.
    starting = supervisor.find(state) is None or not state.stack_file.exists()
    by_unit = starting and stop_unit(state, say)
    stopped = bring_down(state, say) or by_unit
    if not starting:
        # It may wait to start the stack again, which was another command's.
        stop_unit(state, say)
    if args.json:
        import json

        print(json.dumps({"ok": True, "stopped": stopped, "home": str(state.root)}))
    elif stopped:
        print(
            f"The stack of {state.root} is stopped. Unfinished runs go on after the next `loraline up`."
        )
    else:
        print(f"No stack of {state.root} was running.{elsewhere(state)}")
    return 0

"""`loraline up`: start the stack of this home, or find the one that runs."""

import argparse
import os
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from flows.connection import user_connection
from flows.signals import stop_signals
from flows.stack import supervisor
from flows.stack.settings import StackSettings, has_settings, read_settings
from flows.stack.state import StackState
from tasks.addresses import without_passwords
from tasks.errors import StageFailed, UserError
from tasks.files import expanded
from tasks.home import Home, home

NOT_ALL_DEPLOYED = 1
"""The stack is up, and something could not be deployed to it."""
PATIENCE_SECONDS = 60.0
"""For another command that is at work on a stack which is told to end: what a unit leaves, systemd kills."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--host", metavar="ADDRESS", help="listen there (default: 127.0.0.1; others need passwords)"
    )
    for server, default in (("prefect", 4200), ("mlflow", 5000)):
        parser.add_argument(
            f"--{server}-port",
            type=int,
            metavar="PORT",
            help=f"port of the {server} server (default: {default})",
        )
    parser.add_argument(
        "--trainings", type=int, metavar="N", help="retrainings at once (default: 1)"
    )
    parser.add_argument(
        "--database",
        choices=("sqlite", "postgresql"),
        help="begin anew on the other database than this stack's, with no records (default: the one it has)",
    )
    parser.add_argument(
        "--project",
        type=Path,
        metavar="DIR",
        help="folder of recipes/, in which flows run (default: the working directory)",
    )
    parser.add_argument(
        "--foreground",
        action="store_true",
        help="stay until Ctrl-C or SIGTERM, then stop the stack (not one that ran before)",
    )
    parser.add_argument(
        "--existing",
        action="store_true",
        help="refuse where this home had no stack before, as while its disk is not mounted",
    )
    parser.add_argument(
        "--at-boot",
        action="store_true",
        help="install and enable a systemd user unit that starts the stack with the machine",
    )
    parser.add_argument("--json", action="store_true", help="print the stack's state as JSON")


def run(args: argparse.Namespace) -> int:
    """Return 0 with a healthy stack, 1 where not everything could be deployed to it.

    Raises: UserError, StageFailed.
    """
    from flows.stack.boot import install, unit_to_start
    from flows.stack.failed_starts import failure_told
    from flows.stack.starting import bring_up

    state = home()
    if args.existing and not has_settings(state):
        raise UserError(
            f"{state.root} has had no stack: its settings are not there. Is its disk not mounted, or the folder "
            "away to be restored? Nothing was made in its place. `loraline up` begins a new stack."
        )
    foreground = args.foreground and not args.at_boot
    # Nobody reads the errors of what a unit starts.
    failing = partial(failure_told, state) if foreground else nullcontext
    with failing():
        _take_environment(state)
        wanted = wanted_settings(args, state)
        if foreground:
            _refuse_for_good(state, wanted)
    if args.at_boot:
        for line in install(state, wanted):
            print(line)
        return 0
    for note in _notes():
        _say(note)
    unit = None if args.foreground else unit_to_start(state, wanted, _say)
    before = supervisor.find(state)
    # Ctrl-C and SIGTERM end a half-started stack as they end a running one.
    with stop_signals():
        with failing():
            found = bring_up(state, wanted, _say, unit)
        if args.foreground:
            return _stay(state, before, lambda: _tell(found, as_json=args.json))
        _tell(found, as_json=args.json)
        return NOT_ALL_DEPLOYED if found.not_deployed else 0


def wanted_settings(args: argparse.Namespace, state: Home) -> StackSettings:
    """What is asked for: options, else what the home's stack had the last time, else the defaults.

    Raises: UserError for values that cannot be, and for damaged settings: they say where the data is.
    """
    from pydantic import ValidationError

    from flows.stack.databases import database_of

    before = read_settings(state)
    chosen: dict[str, Any] = before.model_dump() if before else {"project": Path.cwd()}
    chosen["database"] = database_of(state, before, os.environ)
    for name in StackSettings.model_fields:
        if (value := getattr(args, name, None)) is not None:
            chosen[name] = value
    chosen["project"] = expanded(chosen["project"]).resolve()
    if not chosen["project"].is_dir():
        if args.project is not None:
            raise UserError(f"--project {chosen['project']} is no folder.")
        raise UserError(
            f"{chosen['project']}, where the stack of {state.root} had its recipes the last time, is no "
            "folder any more. Say where they are now: loraline up --project DIR."
        )
    try:
        return StackSettings.model_validate(chosen)
    except ValidationError as error:
        wrong = "; ".join(
            f"--{str(e['loc'][0]).replace('_', '-')}: {e['msg']}" for e in error.errors()
        )
        raise UserError(f"{wrong}.") from None


def _take_environment(state: Home) -> None:
    """Take what this shell does not set from the stack's own file: without it a stack would tell nobody."""
    from flows.stack.environment_file import environment_file, missing, read_environment

    file = environment_file(state)
    taken = missing(read_environment(file), os.environ)
    os.environ.update(taken)
    if taken:
        _say(f"From {file}: {', '.join(taken)}.")


def _refuse_for_good(state: Home, wanted: StackSettings) -> None:
    """Raises: UserError for missing passwords, another database or a folder that was moved, with the exit code
    after which systemd tries no more.
    """
    from flows.stack.databases import refuse_other_database
    from flows.stack.exposure import NO_RESTART, refuse_open
    from flows.stack.own_place import refuse_moved

    try:
        refuse_open(wanted.host, os.environ)
        if supervisor.find(state) is None:
            refuse_moved(state, wanted)
            refuse_other_database(state, wanted.database, os.environ)
    except UserError as error:
        error.exit_code = NO_RESTART
        raise


def _tell(found: StackState, *, as_json: bool) -> None:
    if as_json:
        print(found.model_dump_json(indent=1), flush=True)
        return
    for part in found.parts:
        if part.url:
            print(f"{part.title.removesuffix(' server'):8} {part.url}", flush=True)
    _say("`loraline status` shows how each part is; `loraline down` stops the stack.")


def _stay(state: Home, before: psutil.Process | None, tell: Callable[[], None]) -> int:
    """Until a signal comes, or `loraline down`; what systemd or a container waits for. The signal ends the
    stack, too, unless its supervisor is the one of `before`, which another command had started: a unit that
    ends with a login takes nobody's along.

    Raises: StageFailed when the supervisor was killed: whoever waits starts the stack again then.
    """
    from flows.stack.starting import bring_down

    try:
        tell()
        while (process := supervisor.find(state)) is not None:
            while _lives(process):
                time.sleep(0.5)
    except KeyboardInterrupt:
        if before is not None and before == supervisor.find(state):
            _say("The stack goes on: it ran before this command. `loraline down` stops it.")
        else:
            bring_down(state, _say, PATIENCE_SECONDS)
        return 0
    if not state.stack_file.exists():
        _say("The stack was stopped by `loraline down`.")
        return 0
    bring_down(state, _say)
    raise StageFailed("The supervisor ended by itself; its parts ended with it.")


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _notes() -> list[str]:
    """Settings of this shell that lead its own commands to other servers; the stack's parts use its own."""
    notes = []
    user = user_connection(os.environ, Path.cwd(), Path.home())
    if user is not None:
        notes.append(
            f"Note: {user.reason} names the Prefect server {without_passwords(user.url)}: commands of "
            "this shell go there, and only the stack's workers use the stack."
        )
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        notes.append(
            f"Note: MLFLOW_TRACKING_URI is {without_passwords(uri)}: commands of this shell track there, "
            "and only the stack's workers use the stack."
        )
    return notes


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()

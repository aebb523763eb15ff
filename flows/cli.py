"""The console script `loraline`: parsing and help; a command's module is imported when it is called."""

import argparse
import importlib
import os
import sys
from typing import Any

COMMANDS: dict[str, str] = {
    "init": "write a working folder with a recipe for your own data",
    "run": "run a recipe: data, tokens, training, evaluation, registration",
    "check": "check a recipe and its data before a GPU is touched",
    "schema": "print the recipe's JSON Schema",
    "lock": "pin the recipe's base model to a commit, or move the pin",
    "versions": "list the registered versions of an adapter",
    "predict": "answer prompts with a registered version",
    "verify": "recompute what a registered version says of itself",
    "doctor": "say what this machine has, and what to do about what is missing",
    "ui": "serve this folder's Prefect and MLflow on loopback",
}
"""Every command and its line in `loraline --help`, in the order a newcomer meets them.

`flows/commands/<name>.py` has `add_arguments(parser)` and `run(args) -> int` (the exit code).
"""

EXIT_CODES = """\
exit codes:
  0  done (run: registered, skipped, or waiting for approval)
  1  a stage failed
  2  the input is wrong: recipe, data, base model, arguments
  3  the gate refused the adapter
  130  interrupted"""


INTERRUPTED = 130


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (default: this process's) and return its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        parser = build_parser(_command_in(arguments))
    except KeyboardInterrupt:
        # So early that nothing is to be told or kept.
        return INTERRUPTED
    args = parser.parse_args(arguments)
    if args.command is None:
        parser.print_help()
        return 0
    if getattr(args, "home", None):
        # Before anything reads it: every path of the run hangs on this one.
        os.environ["LORALINE_HOME"] = args.home
    if getattr(args, "debug", False):
        os.environ["LORALINE_DEBUG"] = "1"
    try:
        return int(_module(args.command).run(args))
    except BrokenPipeError:
        # The reader (`| head`) went away. What Python still wants to flush goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Exception, KeyboardInterrupt) as error:
        from flows.failures import explain

        failure = explain(error)
        failure.print()
        return failure.exit_code


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The parser of all commands; only `command` gets its arguments, since that imports its module."""
    parser = argparse.ArgumentParser(
        prog="loraline",
        description="Retrain LoRA adapters on a schedule, from raw chats to a promoted version.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, line in COMMANDS.items():
        sub = subparsers.add_parser(
            name,
            help=line,
            description=line[0].upper() + line[1:] + ".",
            allow_abbrev=False,
            # A command may redefine one of the common options below.
            conflict_handler="resolve",
        )
        sub.add_argument(
            "--home", metavar="DIR", help="state folder (default: $LORALINE_HOME, else ./.loraline)"
        )
        sub.add_argument("--debug", action="store_true", help="show tracebacks")
        if name == command:
            _module(name).add_arguments(sub)
    return parser


def _command_in(arguments: list[str]) -> str | None:
    # No option before the command takes a value, so the first plain word is the command.
    word = next((a for a in arguments if not a.startswith("-")), None)
    return word if word in COMMANDS else None


def _module(name: str) -> Any:
    return importlib.import_module(f"flows.commands.{name}")


class _Version(argparse.Action):
    """Reads the version only when it is asked for: that import is a third of `--help`'s time."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"loraline {version('loraline')}")
        except PackageNotFoundError:
            print("loraline (not installed)")
        parser.exit()


if __name__ == "__main__":
    sys.exit(main())

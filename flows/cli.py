"""The console script `loraline`: parsing and help; a command's module is imported when it is called."""

import argparse
import importlib
import os
import re
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

COMMANDS: dict[str, str] = {
    "init": "write a working folder with a recipe for your own data",
    "run": "run a recipe: data, tokens, training, evaluation, registration",
    "check": "check a recipe and its data before a GPU is touched",
    "schema": "print the recipe's JSON Schema",
    "lock": "pin the recipe's base model to a commit, or move the pin",
    "versions": "list the registered versions of an adapter",
    "promote": "make a registered version the champion",
    "rollback": "make the version before the champion again",
    "audit": "verify the promotion log and print it",
    "diff": "compare two versions: recipe, data, metrics, answers",
    "pull": "copy a version's adapter into a plain PEFT folder",
    "prune": "delete old versions that nothing needs",
    "rescore": "compute a run's metrics again from its stored predictions",
    "predict": "answer prompts with a registered version",
    "verify": "recompute what a registered version says of itself",
    "reproduce": "train a registered version again and compare the adapters",
    "export": "write a version as a PEFT folder, merged weights, loralib or GGUF",
    "convert": "turn a loralib checkpoint into a PEFT adapter, or back",
    "doctor": "say what this machine has, and what to do about what is missing",
    "deploy": "schedule the recipes on the Prefect server",
    "schedules": "list what is scheduled, when, and how it went",
    "gc": "remove stage outputs, checkpoints and logs that nothing needs",
    "ui": "serve this folder's Prefect and MLflow on loopback",
    "up": "start the stack and keep it alive: servers, workers, watchdog, schedules",
    "status": "show how each part of the stack is",
    "down": "stop the stack and everything it started",
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
  75  preempted: the training was told to end; the same command goes on from its checkpoint
  130  interrupted"""


INTERRUPTED = 130
ANSWER_THEMSELVES = ("run", "check")
"""Commands whose --json object tells a failure too, with what was found before it."""


class WrongArguments(SystemExit):
    """The command line cannot be understood; `message` says why, as standard error does."""

    def __init__(self, message: str) -> None:
        super().__init__(2)
        self.message = message


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (default: this process's) and return its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        parser = build_parser(_command_in(arguments))
    except KeyboardInterrupt:
        # So early that nothing is to be told or kept.
        return INTERRUPTED
    try:
        args = parser.parse_args(arguments)
    except WrongArguments as wrong:
        if "--json" in arguments:
            _answer_failure(_command_in(arguments), wrong.message)
        raise
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
        if getattr(args, "json", False) and args.command not in ANSWER_THEMSELVES:
            _answer_failure(args.command, failure.message)
        return failure.exit_code


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The parser of all commands; only `command` gets its arguments, since that imports its module."""
    parser = _Parser(
        prog="loraline",
        description="Retrain LoRA adapters on a schedule, from raw chats to a promoted version.",
        epilog=EXIT_CODES,
        formatter_class=_Help,
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


def _answer_failure(command: str | None, message: str) -> None:
    """The one object on standard output that a program which asked for JSON reads."""
    import json

    answer: dict[str, Any] = {"ok": False, "error": message}
    if command in (None, "run"):
        from tasks.artifacts import Outcome

        answer = Outcome(outcome="failed", reason=message).model_dump(mode="json")
    print(json.dumps(answer))


class _Help(argparse.RawDescriptionHelpFormatter):
    """A line for each command: argparse forgets that they are indented once more than options."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog)
        self._action_max_length = max(map(len, COMMANDS)) + 2 * self._indent_increment


class _Parser(argparse.ArgumentParser):
    """Says what was meant by a misspelt command or option; its subparsers are of this class too."""

    def error(self, message: str) -> NoReturn:
        message = f"{message}{self._meant(message)}"
        self.print_usage(sys.stderr)
        sys.stderr.write(f"{self.prog}: error: {message}\n")
        raise WrongArguments(message)

    def _meant(self, message: str) -> str:
        from tasks.suggest import did_you_mean

        wrong, allowed = None, list(COMMANDS)
        if found := re.search(r"invalid choice: '(.*?)'", message):
            wrong = found[1]
        elif found := re.search(r"unrecognized arguments:.*?(--[\w-]+)", message):
            wrong, allowed = found[1], sorted(_options(self))
        hint = did_you_mean(wrong, allowed) if wrong else ""
        return f". {hint}" if hint.startswith("Did") else ""


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The options of a parser and of its subparsers, of which only the command in use has its own."""
    for action in parser._actions:
        yield from (option for option in action.option_strings if option.startswith("--"))
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _options(inner)


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

"""`loraline predict MODEL_URI`: answer one prompt, or a file of rows, with a registered version."""

import argparse
import sys
from pathlib import Path
from typing import Any

from tasks.home import home


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "model",
        metavar="MODEL_URI",
        help="NAME (its champion), models:/NAME@ALIAS, models:/NAME/VERSION",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", metavar="TEXT", help="one question; the answer is printed")
    source.add_argument(
        "--input", type=Path, metavar="FILE", help="JSONL rows with `prompt` or `messages`"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="with --input: the rows with `answer` added"
    )
    parser.add_argument(
        "--base",
        type=Path,
        metavar="DIR",
        help="the base model's folder, if it is not found by itself",
    )
    parser.add_argument(
        "--max-tokens", type=_positive, metavar="N", help="longest answer in tokens"
    )


def run(args: argparse.Namespace) -> int:
    """Print the answer, or write the file. Bad rows and models that cannot be loaded are UserErrors."""
    from flows.streams import own_standard_output
    from tasks.errors import UserError
    from tasks.gpu_turn import gpu_turn
    from tasks.registration.prediction import Row, answer_rows, model_uri, read_rows, write_rows
    from tasks.tracking import reachable_tracker

    if (args.input is None) != (args.output is None):
        raise UserError(
            "--input and --output belong together: --input rows.jsonl --output out.jsonl"
        )
    if args.output is not None and not args.output.absolute().parent.is_dir():
        raise UserError(
            f"--output {args.output}: there is no folder {args.output.absolute().parent}."
        )
    uri = model_uri(args.model)
    if args.input is not None:
        rows = read_rows(args.input)
    elif args.prompt.strip():
        rows = [Row("--prompt", {"prompt": args.prompt})]
    else:
        raise UserError("--prompt is empty.")
    with own_standard_output() as out:
        tracker = reachable_tracker(home())
        with gpu_turn():
            answers = answer_rows(
                rows,
                tracker=tracker,
                uri=uri,
                base=args.base.absolute() if args.base else None,
                home=tracker.home,
                max_tokens=args.max_tokens,
                on_event=_show_progress if len(rows) > 1 else None,
            )
        if args.output is None:
            out.write(answers[0].answer + "\n")
        else:
            write_rows(args.output, rows, answers)
    if args.output is None:
        if answers[0].finish_reason == "length":
            sys.stderr.write("(cut at the longest answer; --max-tokens N allows a longer one)\n")
        return 0
    cut = sum(answer.finish_reason == "length" for answer in answers)
    note = f"; {cut} were cut at the longest answer" if cut else ""
    sys.stderr.write(f"{len(answers)} answers in {args.output}{note}\n")
    return 0


def _show_progress(event: dict[str, Any]) -> None:
    if event["event"] == "generated":
        sys.stderr.write(f"{event['done']} of {event['total']} answers\n")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, not {text!r}")
    return int(text)

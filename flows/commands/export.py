"""`loraline export MODEL_URI`: a version as a PEFT folder, merged weights, a loralib checkpoint or GGUF."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.home import home

if TYPE_CHECKING:
    from tasks.export.exporting import Exported


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "model",
        metavar="MODEL_URI",
        help="NAME (its champion), models:/NAME@ALIAS, models:/NAME/VERSION",
    )
    parser.add_argument(
        "--format",
        required=True,
        choices=("peft", "merged", "loralib", "gguf"),
        help="peft: the adapter, for PEFT and vLLM; merged: the whole model, certified; "
        "loralib: a checkpoint of loralib; gguf: for llama.cpp, through its own converter",
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="a folder that is absent or empty"
    )
    parser.add_argument(
        "--dtype",
        choices=("bf16", "fp16", "fp32"),
        help="of merged or gguf weights (default: the base's own)",
    )
    parser.add_argument(
        "--base",
        type=Path,
        metavar="DIR",
        help="the base model's folder, if it is not found by itself",
    )
    parser.add_argument(
        "--whole-model",
        action="store_true",
        help="with gguf: merge, and convert the whole model instead of the adapter",
    )
    parser.add_argument(
        "--push",
        metavar="REPO_ID",
        help="then send it to this private repository of the Hub; the token is $HF_TOKEN",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Export; what cannot be expressed, or would be another model, is an error in words."""
    from flows.streams import own_standard_output
    from tasks.export.exporting import export_version
    from tasks.registration.prediction import model_uri
    from tasks.tracking import reachable_tracker

    uri = model_uri(args.model)
    with own_standard_output() as out:
        state = home()
        state.prepare()
        done = export_version(
            reachable_tracker(state),
            uri,
            to=args.format,
            output=args.output,
            dtype=args.dtype,
            base=args.base,
            whole_model=args.whole_model,
            push=args.push,
        )
        out.write(json.dumps(_answer(done)) + "\n" if args.json else _shown(done, uri))
    return 0


def _answer(done: "Exported") -> dict[str, object]:
    return {
        "format": done.format,
        "output": str(done.output),
        "sha256s": done.sha256s,
        "certificate": done.certificate.model_dump() if done.certificate else None,
        "pushed": asdict(done.pushed) if done.pushed else None,
    }


def _shown(done: "Exported", uri: str) -> str:
    lines = [f"{uri} as {done.format} in {done.output}: {len(done.sha256s)} files."]
    if found := done.certificate:
        lines.append(
            f"Merged in {found.dtype}: on {found.rows} prompts no logit differs by more than "
            f"{found.largest_difference:.3g} from the adapter on its base ({found.tolerance:.3g} is allowed, "
            f"the adapter changes them by {found.adapter_effect:.3g})."
        )
        if found.trained_on != "none":
            lines.append(
                f"The training's base was quantized to {found.trained_on}; this is the unquantized one."
            )
    if done.pushed:
        lines.append(f"Pushed to {done.pushed.url}, commit {done.pushed.commit[:12]}.")
    return "\n".join(lines) + "\n"

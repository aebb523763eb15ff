"""`loraline convert CHECKPOINT`: a loralib checkpoint as a PEFT adapter, and back."""

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.home import home

if TYPE_CHECKING:
    from tasks.conversion.job import Conversion
    from tasks.conversion.sidecar import Sidecar


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = (
        "Read a checkpoint of loralib (torch.save of lora_state_dict, or safetensors) and write an "
        "adapter's folder that any PEFT loads; with --to loralib the other way. loralib stores neither "
        "r nor alpha, the blocks of a MergedLinear nor the base: say them here or in a sidecar file. "
        "NAME is a module's full name or its last parts; without it a value is for all modules."
    )
    parser.add_argument("source", type=Path, metavar="CHECKPOINT", help="the file; or the folder")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="or a .pt file")
    parser.add_argument("--to", choices=("peft", "loralib"), default="peft", help="default: peft")
    parser.add_argument(
        "--base",
        metavar="PATH",
        help="the base model's folder, its Hub id, or a plain model's weights (.safetensors)",
    )
    parser.add_argument(
        "--r", action="append", default=[], metavar="[NAME=]N", help="loralib's r; repeatable"
    )
    parser.add_argument(
        "--alpha", action="append", default=[], metavar="[NAME=]X", help="loralib's lora_alpha"
    )
    parser.add_argument(
        "--enable-lora",
        action="append",
        default=[],
        metavar="NAME=1,0,1",
        help="the module is a MergedLinear with these blocks enabled; repeatable",
    )
    parser.add_argument(
        "--bias",
        choices=("none", "all", "lora_only"),
        help="the mode of lora_state_dict (default: as the checkpoint's keys show)",
    )
    parser.add_argument(
        "--architecture", metavar="CLASS", help="model class, where not the base's own"
    )
    parser.add_argument(
        "--sidecar",
        type=Path,
        metavar="FILE",
        help="JSON or YAML with the same (default: CHECKPOINT's name with .loralib.json or .yaml)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Convert and say what became of each module. Everything that does not fit is a UserError."""
    from flows.streams import own_standard_output
    from tasks.conversion.converting import convert_to_loralib, convert_to_peft

    flags = _flags(args)
    convert = convert_to_peft if args.to == "peft" else convert_to_loralib
    with own_standard_output() as out:
        state = home()
        state.prepare()
        done = convert(args.source, flags, output=args.output, home=state, sidecar=args.sidecar)
        if args.json:
            out.write(done.model_dump_json() + "\n")
        else:
            out.write(_shown(done, args.output))
    return 0


def _flags(args: argparse.Namespace) -> "Sidecar":
    from tasks.conversion.sidecar import parse_sidecar

    modules: dict[str, dict[str, Any]] = {}
    told: dict[str, Any] = {"modules": modules}
    for field, texts in (("r", args.r), ("alpha", args.alpha)):
        for text in texts:
            name, _, value = text.rpartition("=")
            (modules.setdefault(name, {}) if name else told)[field] = _number(f"--{field}", value)
    for text in args.enable_lora:
        name, _, value = text.rpartition("=")
        modules.setdefault(name, {})["enable_lora"] = _blocks(name, value, text)
    told |= {"base": args.base, "architecture": args.architecture, "bias": args.bias}
    return parse_sidecar(told, "The command line")


def _number(flag: str, text: str) -> int | float:
    from tasks.errors import UserError

    try:
        value = float(text)
    except ValueError as error:
        raise UserError(f"{flag} {text}: is not a number, nor NAME=number.") from error
    return int(value) if value.is_integer() else value


def _blocks(name: str, value: str, text: str) -> list[bool]:
    from tasks.errors import UserError

    words = value.split(",")
    if not name or any(word not in ("0", "1") for word in words):
        raise UserError(
            f"--enable-lora {text}: write a module's name and a 1 or 0 for each of its blocks, as in "
            "attn.c_attn=1,0,1."
        )
    return [word == "1" for word in words]


def _shown(done: "Conversion", output: Path) -> str:
    """Modules that differ only in the numbers of their names are one line."""
    groups: dict[str, int] = {}
    for m in done.modules:
        blocks = (
            f", blocks {','.join(str(int(on)) for on in m.enable_lora)}" if m.enable_lora else ""
        )
        name = re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", m.name)
        line = (
            f"{name}: {m.kind} r={m.r} alpha={m.alpha:g}{blocks}; "
            f"in PEFT r={m.peft_r} alpha={m.peft_alpha:g}"
        )
        groups[line] = groups.get(line, 0) + 1
    lines = [f"  {count} x {line}" for line, count in groups.items()]
    lines += [f"  biases ({done.bias}): {done.num_biases}"]
    lines += [f"  note: {note}" for note in done.notes]
    return "\n".join([f"{output}: {len(done.modules)} modules", *lines]) + "\n"

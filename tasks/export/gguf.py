"""Write GGUF through llama.cpp's own converters, where this machine has them."""

import logging
import os
import shutil
import sys
from pathlib import Path

from tasks import launch
from tasks.errors import BaseModelError, StageFailed, UserError
from tasks.export.job import Dtype
from tasks.export.reach import gguf_problems
from tasks.export.version import TOKENIZER_MODEL, ExportedVersion
from tasks.home import Home

VARIABLE = "LLAMA_CPP_DIR"
ADAPTER_CONVERTER = "convert_lora_to_gguf.py"
MODEL_CONVERTER = "convert_hf_to_gguf.py"
OUTTYPES: dict[Dtype, str] = {"bf16": "bf16", "fp16": "f16", "fp32": "f32"}
MAGIC = b"GGUF"

_log = logging.getLogger(__name__)


def find_converter(name: str) -> list[str]:
    """The command that starts one of llama.cpp's converters: below `$LLAMA_CPP_DIR`, else on the PATH.

    One from a checkout runs with this Python, which has torch and transformers.

    Raises: UserError when there is none.
    """
    if named := os.environ.get(VARIABLE):
        script = Path(named).expanduser().resolve() / name
        if not script.is_file():
            raise UserError(
                f"{VARIABLE} is {named}, and there is no {name} in it. Let it name a checkout of llama.cpp."
            )
        return [sys.executable, str(script)]
    if found := shutil.which(name):
        return [found]
    raise UserError(
        f"GGUF is written by llama.cpp's {name}, which is not on this machine's PATH. Clone "
        f"https://github.com/ggml-org/llama.cpp and set {VARIABLE} to that folder, or export as merged "
        "and convert where llama.cpp is."
    )


def check_expressible(version: ExportedVersion) -> None:
    """Raises: UserError naming each thing in the adapter that llama.cpp's adapter file has no place for."""
    if problems := gguf_problems(version.adapter_config):
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise UserError(
            f"{version.uri} cannot be written as an adapter in GGUF:\n{lines}\n"
            "With --whole-model it is merged, and the whole model is converted."
        )


def convert_adapter(
    converter: list[str], version: ExportedVersion, dtype: Dtype, output: Path, *, home: Home
) -> None:
    """Write the adapter's GGUF file. Raises: StageFailed when the converter does not."""
    assert version.base is not None, "the base was not asked for"
    arguments = ["--base", str(version.base), str(version.adapter)]
    _convert(converter, dtype, output, arguments, home=home)


def convert_model(
    converter: list[str], model: Path, dtype: Dtype, output: Path, *, home: Home
) -> None:
    """Write the GGUF file of a whole model's folder. Raises: StageFailed when the converter does not."""
    _convert(converter, dtype, output, [str(model)], home=home)


def complete_tokenizer(version: ExportedVersion, model: Path) -> None:
    """Fetch SentencePiece's file, without which llama.cpp does not convert Phi-3 and some others.

    Training and loading do without it, so the local copy of a Hub's base may lack it. Where it cannot
    be had, the converter says whether it needs it.
    """
    if version.base_commit is None or (model / TOKENIZER_MODEL).exists():
        return
    from tasks.hub import snapshot

    try:
        folder = snapshot(version.base_model, version.base_commit, [TOKENIZER_MODEL])
    except BaseModelError as error:
        _log.warning("%s of %s was not fetched: %s", TOKENIZER_MODEL, version.base_model, error)
        return
    if (folder / TOKENIZER_MODEL).is_file():
        shutil.copyfile(folder / TOKENIZER_MODEL, model / TOKENIZER_MODEL)


def _convert(
    converter: list[str], dtype: Dtype, output: Path, arguments: list[str], *, home: Home
) -> None:
    log = home.logs / "export-gguf.log"
    script = Path(converter[-1])
    launch.run(
        [*converter, "--outfile", str(output), "--outtype", OUTTYPES[dtype], *arguments],
        log=log,
        name=f"llama.cpp's {script.name}",
        environment={
            **home.environment(),
            # The scripts import each other, which Python's safe path, set for our workers, forbids.
            "PYTHONPATH": str(script.resolve().parent),
            # Somebody else's program needs neither the network nor who we are.
            "HF_HUB_OFFLINE": "1",
            "HF_TOKEN": "",
            "CUDA_VISIBLE_DEVICES": "",
        },
        repeatable=False,
    )
    try:
        with output.open("rb") as stream:
            begins = stream.read(len(MAGIC))
    except OSError:
        begins = b""
    if begins != MAGIC:
        raise StageFailed(
            f"llama.cpp's {script.name} ended without an error and wrote no GGUF file. Log: {log}"
        )

"""What `gpu.py` needs of its machine's libraries, asked before anything is measured.

A machine without a network gets them as wheels for its Python, unpacked into a folder that PYTHONPATH
names together with this repository's root: transformers, trl, peft, accelerate, datasets (with dill and
multiprocess), pydantic (with pydantic-core, annotated-types and typing-inspection), and for QLoRA
bitsandbytes, all in the versions of `requirements.lock`. Of bitsandbytes' libraries only the one of the
machine's CUDA is used (`libbitsandbytes_cuda130.so` with CUDA 13.0); the others may be left out.

torch is the machine's own: its build for CUDA is several gigabytes, and which one it was is in the answer.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from harness import version_of

LOCK = Path(__file__).parents[1] / "requirements.lock"
AS_LOCKED = ("transformers", "trl", "peft", "accelerate", "datasets")
"""Others of these are another training."""
QUANTIZING = "bitsandbytes"
"""Without it QLoRA is not measured; in another version it is another QLoRA."""
MISSING = "not installed"


def locked(lock: Path = LOCK) -> dict[str, str]:
    """Versions by distribution."""
    found = re.findall(r"^([\w.-]+)==([^\s;\\]+)", lock.read_text(encoding="utf-8"), re.MULTILINE)
    return dict(found)


def problems(lock: Mapping[str, str]) -> list[str]:
    """What is missing or of another version, a sentence each."""
    have = {name: version_of(name) for name in ("torch", *AS_LOCKED, QUANTIZING)}
    if have[QUANTIZING] == MISSING:
        del have[QUANTIZING]
    said = []
    for name, version in have.items():
        if version == MISSING:
            said.append(f"{name} is not installed; requirements.lock has {lock[name]}.")
        elif name != "torch" and version != lock[name]:
            said.append(f"{name} is {version} here, and requirements.lock has {lock[name]}.")
    return said


def refusal(said: list[str]) -> str:
    """Why nothing is measured, and the way out."""
    return "\n".join(
        [
            "benchmarks/gpu.py measures nothing here:",
            *(f"  {line}" for line in said),
            "Install the versions of requirements.lock. Without a network: unpack their wheels into a "
            "folder, and name it in PYTHONPATH together with the repository's root "
            "(benchmarks/gpu_needs.py lists them).",
        ]
    )

"""The peers that `peers.py` measures: pinned versions, an environment for each, settings to choose from."""

import os
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

RUNNERS = Path(__file__).parent / "peers"


@dataclass(frozen=True)
class Peer:
    """Another trainer."""

    runner: str
    requirements: tuple[str, ...]
    """Exact versions of what decides the speed; pip finds the rest, with torch given."""
    candidates: tuple[dict[str, int], ...]
    """Settings of which a full run takes the fastest for each shape; the first is the usual winner."""
    without: tuple[str, ...] = ()
    """Distributions that are taken out again."""
    why: str = ""
    """Where the environment is not what the peer's own metadata asks for."""


PEERS = {
    "llama_factory": Peer(
        runner="with_llama_factory.py",
        requirements=("llamafactory==0.9.5", "transformers==5.6.0", "peft==0.18.1", "trl==0.24.0"),
        candidates=(
            {"pack": 512, "micro": 1},
            {"pack": 1024, "micro": 1},
            {"pack": 512, "micro": 2},
        ),
        without=("torchvision", "torchaudio"),
        why="torchvision and torchaudio on the registry want CUDA's libraries; images and sound are "
        "no part of this work",
    ),
    "torchtune": Peer(
        runner="with_torchtune.py",
        requirements=("torchtune==0.6.1", "torchao==0.14.1"),
        candidates=(
            {"pack": 512, "micro": 1, "chunked_loss": 1},
            {"pack": 1024, "micro": 1, "chunked_loss": 1},
            {"pack": 512, "micro": 1, "chunked_loss": 0},
        ),
        why="the newest torchao that still has the names torchtune imports",
    ),
    "litgpt": Peer(
        runner="with_litgpt.py",
        requirements=("litgpt==0.5.13", "lightning==2.6.6"),
        candidates=(
            {"micro": 4, "by_length": 1},
            {"micro": 1},
            {"micro": 8, "by_length": 1},
        ),
    ),
}


def default_folder() -> Path:
    """Below the user's cache, so that a second run finds what the first one installed."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "loraline-peers"


def build(peer: Peer, folder: Path, torch: str) -> Path:
    """The interpreter of an environment with exactly these requirements, installed if need be."""
    wanted = "\n".join(
        [f"torch=={torch}", *peer.requirements, *(f"-{name}" for name in peer.without)]
    )
    stamp, python = folder / "complete.txt", folder / "bin" / "python"
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"Installing {', '.join(peer.requirements)} into {folder} ...", file=sys.stderr)
    if folder.exists():
        shutil.rmtree(folder)
    venv.create(folder, with_pip=True)
    # torch first and by its exact number: a range would take the newest build with its GPU libraries.
    for packages in ([f"torch=={torch}"], [f"torch=={torch}", *peer.requirements]):
        pip(python, "install", *packages)
    if peer.without:
        pip(python, "uninstall", "--yes", *peer.without)
    # Written last: its existence means the environment is complete.
    stamp.write_text(wanted)
    return python


def pip(python: Path, *arguments: str) -> None:
    """Raises: SystemExit with pip's last words."""
    command = [str(python), "-m", "pip", "--disable-pip-version-check", arguments[0], "--quiet"]
    done = subprocess.run([*command, *arguments[1:]], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"pip {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")

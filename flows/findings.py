"""Is everything here that loraline needs? Each finding says what to do about what is missing."""

import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from flows import machine
from flows.connection import user_connection
from flows.server_lock import ServerLock
from tasks.addresses import answers, without_passwords
from tasks.errors import LoralineError
from tasks.home import Home
from tasks.share import shared
from tasks.stack import read_stack, running

LOW_DISK_GIB = 5.0
LOW_MEMORY_GIB = 2.0

TRAPS = {
    "fastapi": "Prefect's server dies at import with later versions",
    "sqlalchemy": "with 2.1 Prefect's scheduler fails silently: schedules never fire",
}
"""What happens outside the bounds of these, seen with Prefect 3.8."""


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    name: str
    state: Literal["ok", "warning", "missing"]
    """`missing`: a run cannot succeed like this."""
    value: str
    advice: str = ""


def examine(home: Home) -> Iterator[Finding]:
    """Look at everything, cheap things first."""
    yield from packages()
    yield from hardware(home)
    yield state_folder(home)
    yield starter()
    yield prefect_server(home)
    yield mlflow_server(home)


def packages() -> Iterator[Finding]:
    """Python and the installed distributions against the bounds in loraline's own metadata."""
    wanted = ">=3.11"
    yield Finding(
        "Python",
        "ok" if sys.version_info >= (3, 11) else "missing",
        f"{platform.python_version()} at {sys.executable}",
        "" if sys.version_info >= (3, 11) else f"Install Python {wanted} and loraline into it.",
    )
    try:
        requirements = [Requirement(text) for text in requires("loraline") or []]
    except PackageNotFoundError:
        yield Finding(
            "packages",
            "missing",
            "loraline is not installed in this Python",
            "Run `make install` in the clone, or `pip install loraline`.",
        )
        return
    needed = [r for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    wrong = [finding for r in needed if (finding := _package(r)) is not None]
    yield from wrong
    if not wrong:
        names = ("torch", "transformers", "trl", "peft", "prefect", "mlflow")
        shown = ", ".join(f"{name} {version(name)}" for name in names)
        yield Finding("packages", "ok", f"{len(needed)} within their bounds ({shown})")


def hardware(home: Home) -> Iterator[Finding]:
    """Processor, memory, disk, GPU."""
    cpu = machine.processor()
    speed = ", ".join(cpu.fast_bf16)
    yield Finding(
        "processor",
        "ok",
        f"{cpu.model}, {cpu.cores} usable cores, "
        + (
            f"fast bfloat16 ({speed})" if speed else "no bfloat16 instructions: training in float32"
        ),
    )
    memory = machine.memory_gib()
    if memory is not None:
        available, total = memory
        low = available < LOW_MEMORY_GIB
        yield Finding(
            "memory",
            "warning" if low else "ok",
            f"{available:.1f} GiB available of {total:.1f} GiB",
            f"Training needs about {LOW_MEMORY_GIB:.0f} GiB even for the quickstart: end something."
            if low
            else "",
        )
    free = machine.free_disk_gib(home.root)
    yield Finding(
        "disk",
        "warning" if free < LOW_DISK_GIB else "ok",
        f"{free:.1f} GiB free at {home.root}",
        "Free some space, or name another folder with LORALINE_HOME."
        if free < LOW_DISK_GIB
        else "",
    )
    yield from _graphics()


def state_folder(home: Home) -> Finding:
    """Whether this process may write the home."""
    folder = machine.existing(home.root)
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return Finding(
            "state folder",
            "missing",
            f"{home.root}: {error.strerror}",
            "Give yourself write access, or name another folder with LORALINE_HOME or --home.",
        )
    made = "" if folder == home.root else " (made by the first run)"
    return Finding("state folder", "ok", f"{home.root}{made}")


def starter() -> Finding:
    """Whether the quickstart's base model is installed."""
    try:
        folder = shared("starter")
        if (folder / "model.safetensors").is_file():
            return Finding("starter model", "ok", str(folder))
        reason = f"{folder} holds no model.safetensors"
    except FileNotFoundError as error:
        reason = str(error)
    return Finding(
        "starter model",
        "missing",
        reason,
        "Install loraline again, or restore the clone's files with git.",
    )


def prefect_server(home: Home) -> Finding:
    """The Prefect server a run would use."""
    user = user_connection(os.environ, Path.cwd(), Path.home())
    if user is not None:
        if _reachable(f"{user.url.rstrip('/')}/health"):
            return Finding(
                "Prefect", "ok", f"{without_passwords(user.url)}, named by {user.reason}"
            )
        return Finding(
            "Prefect",
            "missing",
            f"{without_passwords(user.url)}, named by {user.reason}, does not answer",
            "Start that server, or unset the setting: loraline then starts its own.",
        )
    if (server := running(home, "prefect")) is not None:
        return Finding("Prefect", "ok", f"{server.url}, started by `loraline ui`")
    lock = ServerLock(home)
    if home.locks.is_dir() and not lock.acquire("loraline doctor"):
        holder = lock.holder() or "another process"
        return Finding("Prefect", "ok", f"a server of {holder}; another run waits for its end")
    lock.release()
    stale = (
        " (stack.json is left from servers that ended; it is ignored)" if read_stack(home) else ""
    )
    return Finding("Prefect", "ok", f"none running: each run starts its own{stale}")


def mlflow_server(home: Home) -> Finding:
    """Where a run would be tracked and registered."""
    from tasks.tracking import tracking_uri

    try:
        uri = tracking_uri(home)
    except LoralineError as error:
        way_out = "Correct MLFLOW_TRACKING_URI, or start the stack with `loraline up`."
        return Finding("MLflow", "missing", str(error), way_out)
    if not uri.startswith("http"):
        return Finding("MLflow", "ok", without_passwords(uri))
    if _reachable(f"{uri.rstrip('/')}/health"):
        return Finding("MLflow", "ok", without_passwords(uri))
    return Finding(
        "MLflow",
        "missing",
        f"{without_passwords(uri)} does not answer",
        "Start that server, or unset MLFLOW_TRACKING_URI: loraline then keeps its own database.",
    )


def _reachable(url: str) -> bool:
    """Whether somebody answers HTTP there, were it only to ask who we are."""
    try:
        return answers(url, timeout_seconds=5) < 500
    except (OSError, ValueError):
        return False


def _package(requirement: Requirement) -> Finding | None:
    """What is wrong with one requirement, if anything."""
    name = requirement.name
    try:
        found = version(name)
    except PackageNotFoundError:
        found = ""
    if found and requirement.specifier.contains(found, prereleases=True):
        return None
    reason = f" ({TRAPS[name.lower()]})" if name.lower() in TRAPS else ""
    return Finding(
        name,
        "missing",
        f"{found or 'not installed'}; wanted: {requirement.specifier}{reason}",
        f'Run: {sys.executable} -m pip install "{name}{requirement.specifier}"',
    )


def _graphics() -> Iterator[Finding]:
    facts = machine.torch_facts()
    cards = machine.gpus()
    if "error" in facts:
        yield Finding(
            "torch", "missing", f"does not import: {facts['error']}", "Install loraline again."
        )
        return
    built = f"built for CUDA {facts['cuda']}" if facts["cuda"] else "a CPU build"
    names = ", ".join(f"{card.name} with {card.memory_gib:.0f} GiB" for card in cards)
    if not cards and not facts["devices"]:
        yield Finding(
            "GPU", "ok", f"none; torch {facts['version']} is {built}: training on the CPU"
        )
    elif not facts["devices"]:
        yield Finding(
            "GPU",
            "warning",
            f"{names}, but torch {facts['version']} ({built}) cannot use it",
            f"Driver {cards[0].driver}: install the torch build for its CUDA version "
            "(pytorch.org, `Get started`). Until then training runs on the CPU.",
        )
    else:
        yield Finding(
            "GPU", "ok", f"{names or 'found by torch'}; torch {facts['version']}, {built}"
        )
        yield from _quantization()


def _quantization() -> Iterator[Finding]:
    try:
        yield Finding("bitsandbytes", "ok", f"{version('bitsandbytes')} (4- and 8-bit bases)")
    except PackageNotFoundError:
        yield Finding(
            "bitsandbytes",
            "warning",
            "not installed: recipes with training.quantization cannot run",
            'Run: pip install "loraline[gpu]"',
        )

"""What this machine has: processor, memory, disk, GPU. Read from the system; imports nothing heavy."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.memory import available_bytes

GIB = 1024**3


@dataclass(frozen=True)
class Processor:
    """The CPU as this process may use it."""

    model: str
    cores: int
    """Cores this process may run on, no more than its control group's quota."""
    fast_bf16: tuple[str, ...]
    """Instruction sets that multiply bfloat16: `avx512_bf16`, `amx_bf16`."""


@dataclass(frozen=True)
class Gpu:
    """A GPU as nvidia-smi names it."""

    name: str
    memory_gib: float
    driver: str


def processor() -> Processor:
    """Model, usable cores and bfloat16 instructions (Linux: /proc/cpuinfo; elsewhere less is known)."""
    text = _read(Path("/proc/cpuinfo"))
    fields = {
        key.strip(): value.strip()
        for key, sign, value in (line.partition(":") for line in text.splitlines())
        if sign
    }
    flags = set(fields.get("flags", "").split())
    return Processor(
        model=fields.get("model name", "unknown processor"),
        cores=_usable_cores(),
        fast_bf16=tuple(name for name in ("avx512_bf16", "amx_bf16") if name in flags),
    )


def memory_gib() -> tuple[float, float] | None:
    """(available, total) memory in GiB, no more than the control group allows; None where unknown."""
    available = available_bytes()
    found = re.search(r"^MemTotal:\s+(\d+)", _read(Path("/proc/meminfo")), re.MULTILINE)
    if available is None or found is None:
        return None
    total = int(found[1]) * 1024
    limit = _read(Path("/sys/fs/cgroup/memory.max")).strip()
    if limit.isdigit():
        total = min(total, int(limit))
    return available / GIB, total / GIB


def free_disk_gib(folder: Path) -> float:
    """Free space in GiB of the file system that holds `folder`, which need not exist yet."""
    return shutil.disk_usage(existing(folder)).free / GIB


def existing(folder: Path) -> Path:
    """`folder`, or the nearest folder above it that exists."""
    return next(p for p in (folder, *folder.parents) if p.exists())


def gpus() -> list[Gpu]:
    """The NVIDIA GPUs of this machine; empty without nvidia-smi."""
    query = "--query-gpu=name,memory.total,driver_version"
    text = _output(["nvidia-smi", query, "--format=csv,noheader,nounits"], timeout_seconds=20)
    found = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) == 3 and cells[1].isdigit():
            found.append(Gpu(cells[0], int(cells[1]) / 1024, cells[2]))
    return found


def torch_facts() -> dict[str, Any]:
    """`version`, `cuda` (built for), `devices` that torch can use, or `error`; asked in a subprocess."""
    code = (
        "import json, torch; print(json.dumps({'version': torch.__version__,"
        " 'cuda': torch.version.cuda, 'devices': torch.cuda.device_count()"
        " if torch.cuda.is_available() else 0}))"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", code],
            capture_output=True,
            text=True,
            timeout=180,
            stdin=subprocess.DEVNULL,
        )
        return dict(json.loads(done.stdout.splitlines()[-1]))
    except subprocess.TimeoutExpired:
        return {"error": "importing torch took longer than 180 s"}
    except (OSError, ValueError, IndexError):
        lines = done.stderr.strip().splitlines() if "done" in locals() else []
        return {"error": lines[-1] if lines else "importing torch failed"}


def _usable_cores() -> int:
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    quota = _read(Path("/sys/fs/cgroup/cpu.max")).split()
    if len(quota) == 2 and quota[0].isdigit() and quota[1].isdigit() and int(quota[1]):
        cores = min(cores, max(1, int(quota[0]) // int(quota[1])))
    return cores


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _output(command: list[str], *, timeout_seconds: float) -> str:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""

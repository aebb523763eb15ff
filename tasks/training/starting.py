"""The command line and the environment of a training's worker processes, on one machine or several."""

import os
import shlex
from importlib.util import find_spec
from pathlib import Path

from tasks import launch
from tasks.cores import available_cores
from tasks.errors import UserError
from tasks.training.spread import Sharding, Spread

_ACCELERATE = Path(__file__).parent / "accelerate"
_FILES: dict[Sharding, str] = {
    "none": "ddp.yaml",
    "fsdp2": "fsdp2.yaml",
    "zero2": "zero2.yaml",
    "zero3": "zero3.yaml",
}
ALONE = Spread()
"""One process."""
KEPT_PRODUCTS = 96
"""Kinds of matrix products that stay compiled on a CPU. One line of examples has about sixty, and a line
of another length has others: a thousand, as the libraries keep, are half a gigabyte that no step needs."""


def worker_command(module: str, job: Path, spread: Spread = ALONE) -> list[str]:
    """`accelerate launch` of a worker module, deaf to configurations of the user's.

    Raises: UserError for several machines without an address to meet at, and for ZeRO without DeepSpeed.
    """
    several = spread.total > 1
    if spread.sharding in ("zero2", "zero3") and find_spec("deepspeed") is None:
        raise UserError(
            f"training.sharding is {spread.sharding}, which is DeepSpeed's, and the package `deepspeed` is "
            "not installed. Install it (pip install deepspeed), or write `sharding: fsdp2`, which needs "
            "nothing more and also keeps a part of the base in each process."
        )
    return launch.module(
        "accelerate.commands.launch",
        "--config_file",
        str(_ACCELERATE / (_FILES[spread.sharding] if several else "single.yaml")),
        f"--num_processes={spread.total}",
        f"--num_machines={spread.machines}",
        *(_meeting_place(spread) if several else ()),
        "--mixed_precision=no",
        "--dynamo_backend=no",
        # Its default is one thread.
        f"--num_cpu_threads_per_process={max(1, available_cores() // spread.processes)}",
        # The worker's own last words stand at the end of the log, not the launcher's traceback.
        "--quiet",
        "--module",
        module,
        str(job),
    )


def worker_environment(processes: int = 1) -> dict[str, str]:
    """One visible device for each process, and nothing from the network: the base is here by now.

    Memory is given back at the end alone. glibc returns large freed blocks to the system, and each
    step's activations would find their pages cleared anew: `benchmarks/train.py` shows what it costs. One
    heap serves all threads: what one has freed the other takes.
    And few products of the past are kept ready, by oneDNN and by torch's layer over it.

    Raises: UserError when fewer devices may be used than there are processes.
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        visible = ",".join(map(str, range(processes)))
    else:
        devices = given.split(",")
        if given and len(devices) < processes:
            raise UserError(
                f"training.processes is {processes}, and CUDA_VISIBLE_DEVICES={given} names "
                f"{len(devices)}. Lower training.processes, or name more devices."
            )
        visible = ",".join(devices[:processes])
    return {
        "CUDA_VISIBLE_DEVICES": visible,
        "HF_HUB_OFFLINE": "1",
        "WANDB_DISABLED": "true",
        "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
        "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
        "MALLOC_ARENA_MAX": "1",
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": str(KEPT_PRODUCTS),
        "LRU_CACHE_CAPACITY": str(KEPT_PRODUCTS),
    }


def elsewhere(argv: list[str]) -> str:
    """What a person starts on each of the other machines, given the command of this one."""
    line = shlex.join(argv).replace("--machine_rank=0", "--machine_rank=N")
    return (
        "This training waits for the other machines. On each of them (N = 1, 2, ...), with the same "
        f"software and the same files under the same paths, run: {line}"
    )


def _meeting_place(spread: Spread) -> list[str]:
    # A free port where all processes are on one machine.
    address, port = "127.0.0.1", 0
    if spread.machines > 1:
        found = spread.address or os.environ.get("MASTER_ADDR")
        if not found:
            raise UserError(
                f"training.machines is {spread.machines}, and nothing says where they meet. Set "
                "training.main_address (or MASTER_ADDR) to the address of the machine that runs the "
                "flow, as the others reach it."
            )
        address, port = found, spread.port or int(os.environ.get("MASTER_PORT") or 29500)
    return [
        # The file says it; told by both, it would be launched as plain data parallel.
        *(["--multi_gpu"] if spread.sharding == "none" else []),
        f"--machine_rank={spread.machine_rank}",
        f"--main_process_ip={address}",
        f"--main_process_port={port}",
        # Torch's launcher else leaves a tree of empty folders for each training in the temporary folder.
        f"--log_dir={os.devnull}",
    ]

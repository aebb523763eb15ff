"""How many threads a worker may use."""

import os


def available_cores() -> int:
    """`OMP_NUM_THREADS` where a person set it, else the cores that this process may run on.

    A container's or a scheduler's share counts, which the machine's number of cores would not show.
    """
    chosen = os.environ.get("OMP_NUM_THREADS", "")
    if chosen.isdigit() and int(chosen) > 0:
        return int(chosen)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

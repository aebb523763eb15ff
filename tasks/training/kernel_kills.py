"""How often the kernel has ended a process of ours for lack of memory, where its counters tell."""

from pathlib import Path

_COUNTER = "oom_kill"


def kernel_kills(
    groups: Path = Path("/sys/fs/cgroup"), own_group: Path = Path("/proc/self/cgroup")
) -> int | None:
    """The count of this process's control group since it was made; None where there is none.

    Of version 2 (`memory.events`) and 1 (`memory.oom_control`). The whole machine's counter says nothing:
    whom it counts may be anybody's.
    """
    for folder in _folders(groups, _read(own_group)):
        for name in ("memory.events", "memory.oom_control"):
            for line in _read(folder / name).splitlines():
                word, _, count = line.partition(" ")
                if word == _COUNTER and count.strip().isdigit():
                    return int(count)
    return None


def _folders(groups: Path, own: str) -> list[Path]:
    """The own group's folder; inside a container, whose path the host knows, the root."""
    found = []
    for line in own.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "" or "memory" in controllers.split(","):
            found.append((groups / "memory" if controllers else groups) / path.strip("/"))
    return [*found, groups, groups / "memory"]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""

"""How much memory this process may still take, by the machine and by its control groups."""

from pathlib import Path

_UNLIMITED = 1 << 60


def available_bytes(
    meminfo: Path = Path("/proc/meminfo"),
    groups: Path = Path("/sys/fs/cgroup"),
    own_group: Path = Path("/proc/self/cgroup"),
) -> int | None:
    """What the machine and the control groups (a container's limit) leave; None where it is unknown.

    At a group's limit the kernel kills, whatever the machine has free. Files that the kernel keeps in
    memory and can give back count as free, as they do in the machine's own figure.
    """
    fields = dict(line.split(":", 1) for line in _read(meminfo).splitlines() if ":" in line)
    free = [int(fields["MemAvailable"].split()[0]) * 1024] if "MemAvailable" in fields else []
    for folder in _folders(groups, _read(own_group)):
        if (left := _left(folder)) is not None:
            free.append(left)
    return min(free, default=None)


def _folders(groups: Path, own: str) -> list[Path]:
    """Where limits may stand: in the process's own group and all above it, by version 2 and by 1."""
    found = [groups, groups / "memory"]
    for line in own.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            root = groups / "memory" if controllers else groups
            parts = [part for part in path.split("/") if part not in ("", "..")]
            found += [root.joinpath(*parts[: k + 1]) for k in range(len(parts))]
    return found


def _left(folder: Path) -> int | None:
    """What one group's limit leaves; None without one."""
    for limit_name, used_name, cached_name in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit, used = (_read(folder / name).strip() for name in (limit_name, used_name))
        # Without a limit: the word `max`, or a number beyond any machine.
        if limit.isdigit() and used.isdigit() and int(limit) < _UNLIMITED:
            facts = dict(line.split() for line in _read(folder / "memory.stat").splitlines())
            taken = max(0, int(used) - int(facts.get(cached_name, 0)))
            return max(0, int(limit) - taken)
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""

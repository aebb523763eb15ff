"""Free memory is what the machine and every control group around the process leave."""

from pathlib import Path

import pytest

from tasks.memory import available_bytes

GIB = 1 << 30


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A machine with 8 GiB free, and no limits."""
    (tmp_path / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable:   {8 << 20} kB\n")
    (tmp_path / "groups").mkdir()
    (tmp_path / "own").write_text("0::/jobs/mine\n")
    return tmp_path


def free(machine: Path) -> int | None:
    return available_bytes(machine / "meminfo", machine / "groups", machine / "own")


def limit(folder: Path, most: object, used: int, cached: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{most}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\n")


def test_without_a_limit_the_machine_decides(machine: Path) -> None:
    assert free(machine) == 8 * GIB
    limit(machine / "groups", "max", 5)
    assert free(machine) == 8 * GIB


@pytest.mark.parametrize("below", ["", "jobs", "jobs/mine"])
def test_a_limit_of_any_group_around_the_process_counts(machine: Path, below: str) -> None:
    limit(machine / "groups" / below, 3 * GIB, 2 * GIB)
    limit(machine / "groups" / "others", 2, 1)

    assert free(machine) == GIB


def test_files_that_the_kernel_can_give_back_are_free(machine: Path) -> None:
    limit(machine / "groups", 3 * GIB, 3 * GIB, cached=GIB)

    assert free(machine) == GIB


def test_a_group_over_its_limit_leaves_nothing(machine: Path) -> None:
    limit(machine / "groups", GIB, 2 * GIB)

    assert free(machine) == 0


def test_limits_of_the_first_version_count_too(machine: Path) -> None:
    folder = machine / "groups" / "memory" / "docker"
    folder.mkdir(parents=True)
    (machine / "own").write_text("3:cpu:/x\n9:memory:/docker\n")
    (folder / "memory.limit_in_bytes").write_text(str(2 * GIB))
    (folder / "memory.usage_in_bytes").write_text(str(GIB))

    assert free(machine) == GIB
    (folder / "memory.limit_in_bytes").write_text(str(1 << 62))
    assert free(machine) == 8 * GIB


def test_a_system_that_says_nothing_is_unknown(tmp_path: Path) -> None:
    assert free(tmp_path) is None

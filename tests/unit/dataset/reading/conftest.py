"""Sources opened as a run opens them, in a folder of their own."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tasks.dataset.reading.bad_rows import BadRows
from tasks.dataset.reading.opening import Opened, open_sources
from tasks.dataset.rows import Row
from tasks.dataset.settings import DatasetSettings

ROOT = Path(__file__).resolve().parents[4]


@dataclass
class Reading:
    """What came of reading one source to its end."""

    source: Opened
    rows: list[Row]
    bad: BadRows

    def turns(self) -> list[list[tuple[str, str]]]:
        return [[(m["role"], m["content"]) for m in row.messages] for row in self.rows]


@dataclass
class Reader:
    """Opens and reads the sources of a recipe that lies in `folder`."""

    folder: Path
    bad: BadRows = field(default_factory=BadRows)

    def opened(self, *sources: dict[str, Any]) -> list[Opened]:
        settings = DatasetSettings.model_validate({"sources": list(sources)})
        return open_sources(settings, self.folder, cache=self.folder / "cache")

    def __call__(self, bad: BadRows | None = None, **source: Any) -> Reading:
        (opened,) = self.opened({"type": "files", **source})
        bad = bad or BadRows()
        rows = list(opened.rows(bad))
        bad.raise_if_any()
        return Reading(opened, rows, bad)


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    return Reader(tmp_path)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, bytes | str], Path]:
    """Write a file below the recipe's folder."""

    def written(name: str, content: bytes | str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return written


@pytest.fixture
def resident_growth() -> Callable[[str], tuple[float, str]]:
    """Run code in a fresh process: by how many MB its peak of memory grew after `start()`, and what
    it printed."""

    def measured(code: str) -> tuple[float, str]:
        frame = f"""

from pathlib import Path
def peak():
    return int([x for x in open("/proc/self/status") if x.startswith("VmHWM")][0].split()[1])
before = []
def start():
    before.append(peak())
{code}
print((peak() - before[0]) / 1024)
"""
        done = subprocess.run(
            [sys.executable, "-c", frame], capture_output=True, text=True, cwd=ROOT, check=False
        )
        assert done.returncode == 0, done.stderr
        *told, grown = done.stdout.splitlines()
        return float(grown), "\n".join(told)

    return measured

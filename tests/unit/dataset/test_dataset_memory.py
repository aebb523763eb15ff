"""Memory does not grow with the text of a dataset: a few numbers of each row are kept, and no more."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
WORDS = ("adapter", "queue", "socket", "writes", "returns", "value", "header", "closes")
PREPARE = """
import resource, sys
from pathlib import Path
from tasks.dataset.settings import DatasetSettings
from tasks.dataset.work import prepare_dataset
from tasks.store import Store
folder = Path(sys.argv[1])
settings = DatasetSettings.model_validate({
    "sources": [{"type": "jsonl", "path": "rows.jsonl"}],
    "cleaning": {"near_duplicates": None, "contamination": None, "personal_data": None},
})
rows = prepare_dataset(Store(folder / "store"), settings, salt="s", recipe_folder=folder).rows
print(sum(rows.values()), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def peak_bytes(folder: Path, rows: int, characters: int) -> int:
    """Largest resident memory of a process that prepares so many rows."""
    folder.mkdir()
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as stream:
        for i in range(rows):
            word = WORDS[i % len(WORDS)]
            filler = f"{word} {i} " * (characters // (len(word) + len(str(i)) + 2))
            stream.write(json.dumps({"prompt": f"Question {i}", "completion": filler}) + "\n")
    done = subprocess.run(
        [sys.executable, "-c", PREPARE, str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    kept, peak = map(int, done.stdout.split())
    assert kept == rows
    return peak


def test_ten_times_the_rows_take_a_few_hundred_bytes_each(tmp_path: Path) -> None:
    few = peak_bytes(tmp_path / "few", 4_000, 1_500)
    many = peak_bytes(tmp_path / "many", 40_000, 1_500)

    # The text of a row is 1,500 bytes.
    assert many - few < 36_000 * 500


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_million_rows_of_a_gigabyte_take_less_than_a_gigabyte(tmp_path: Path) -> None:
    assert peak_bytes(tmp_path / "all", 2_000_000, 450) < 1e9
    assert (tmp_path / "all" / "rows.jsonl").stat().st_size > 0.9e9

"""`loraline init --data` makes a recipe for every kind of file."""

import gzip
import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from flows.cli import main
from tasks.dataset.reading.detecting import count_rows, detect
from tasks.dataset.source_settings import FilesSource, JsonlSource
from tasks.recipe import load_recipe

ROWS = [{"instruction": f"Question {i}?", "output": f"Answer {i}.", "ticket": i} for i in range(40)]


def fill(path: Path) -> None:
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    else:
        text = "".join(json.dumps(row) + "\n\n" for row in ROWS).encode()
        path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


@pytest.mark.parametrize(
    ("file", "name", "kind"),
    [
        ("Support Chats.v2.parquet", "support-chats.v2", FilesSource),
        ("chats.jsonl.gz", "chats", FilesSource),
        ("chats.jsonl", "chats", JsonlSource),
    ],
)
def test_the_recipe_for_a_file_names_its_kind_and_reads_its_rows(
    file: str, name: str, kind: type, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tasks.dataset.reading.bad_rows import BadRows
    from tasks.dataset.reading.opening import open_sources

    fill(tmp_path / file)

    assert main(["init", str(tmp_path / "team"), "--data", str(tmp_path / file)]) == 0

    recipe = load_recipe(tmp_path / "team" / "recipes" / f"{name}.yaml")
    assert isinstance(recipe.dataset.sources[0], kind)
    assert "instruction/output, 40 rows; not used: ticket" in capsys.readouterr().out
    folder = tmp_path / "team" / "recipes"
    (source,) = open_sources(recipe.dataset, folder, cache=tmp_path / "cache")
    assert len(list(source.rows(BadRows()))) == 40


def test_a_first_row_with_a_mistake_tells_its_format_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{\n{"prompt": "a", "completion": ""}\n', encoding="utf-8")

    assert detect(path).format == "prompt/completion"
    assert count_rows(path) == 2

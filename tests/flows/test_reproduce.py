"""`loraline reproduce`: the recorded recipe gives the registered adapter again, or the difference is named."""

import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.long


def test_a_registered_version_is_made_again_byte_for_byte(
    small: Any, first_run: dict[str, Any]
) -> None:
    uri = first_run["model_version"]["uri"]
    before = small.json("versions", "small")["versions"]
    made = small.json("reproduce", uri)
    assert made["exit_code"] == 0, made["stderr"][-3000:]
    assert made["equal"] is True
    assert made["found"] == made["expected"]
    assert made["differences"] == []
    # Nothing is registered, and nothing is left in the working folder.
    assert small.json("versions", "small")["versions"] == before
    assert not list((small.folder / ".loraline" / "work").glob("reproduction-*"))


def test_rows_that_changed_since_are_named_and_nothing_is_trained(
    small: Any, first_run: dict[str, Any], tmp_path: Path
) -> None:
    uri = first_run["model_version"]["uri"]
    recorded = _papers(small.folder) / "dataset.json"
    assert json.loads(recorded.read_text())["digests"]
    recipe = small.folder / "recipes" / "small.yaml"
    text = recipe.read_text()
    about = recorded.with_name("recipe.yaml")
    was = about.read_text()
    try:
        # As if a package that the rows come from had another version today.
        about.write_text(was.replace("package: json", "package: email"))
        recipe.write_text(text.replace("package: json", "package: email"))
        made = small.json("reproduce", uri)
    finally:
        about.write_text(was)
        recipe.write_text(text)
    assert made["exit_code"] == 1, made["stderr"][-3000:]
    assert made["found"] is None
    assert [line.split(":")[0] for line in made["differences"]] == ["dataset"]


def test_a_library_that_changed_since_is_named(small: Any, first_run: dict[str, Any]) -> None:
    uri = first_run["model_version"]["uri"]
    paper = _papers(small.folder) / "training.json"
    was = paper.read_text()
    values = json.loads(was)
    try:
        paper.write_text(json.dumps(values | {"versions": values["versions"] | {"peft": "0.20.9"}}))
        made = small.json("reproduce", uri)
    finally:
        paper.write_text(was)
    assert made["exit_code"] == 0, made["stderr"][-3000:]
    [line] = made["differences"]
    assert line.startswith("library: peft was 0.20.9 and is ")


def test_a_version_that_does_not_exist_is_a_mistake_in_words(small: Any) -> None:
    done = small("reproduce", "models:/small/999")
    assert done.returncode == 2
    assert "999" in done.stderr


def _papers(folder: Path) -> Path:
    """Of the first version: other tests register more beside it."""
    papers = (folder / ".loraline" / "mlflow").rglob("about/training.json")
    return min(papers, key=lambda path: path.stat().st_ctime_ns).parent

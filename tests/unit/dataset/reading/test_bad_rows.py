"""Bad rows stop a run, unless the recipe allows so many into quarantine."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from tasks.dataset.reading.bad_rows import BadRows
from tasks.dataset.settings import DatasetSettings
from tasks.errors import DataError

GOOD = json.dumps({"prompt": "a", "completion": "b"}) + "\n"
SOURCES = [{"type": "jsonl", "path": "a"}]


def quarantined(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(("allowed", "passes"), [(2, True), (1, False), (0, False)])
def test_a_number_of_bad_rows_is_allowed(allowed, passes, reader, write, tmp_path) -> None:
    write("rows.jsonl", GOOD + "{\n" + GOOD + "[]\n")
    bad = BadRows(allowed, tmp_path / "quarantine.jsonl")

    if passes:
        assert len(reader(path="rows.jsonl", bad=bad).rows) == 2
        assert quarantined(tmp_path / "quarantine.jsonl") == [
            {
                "where": "rows.jsonl:2",
                "reason": "broken JSON at column 2 (Expecting property name enclosed in double "
                "quotes)",
                "row": "{",
            },
            {
                "where": "rows.jsonl:4",
                "reason": "a JSON object is wanted, this is a list",
                "row": "[]",
            },
        ]
    else:
        with pytest.raises(DataError, match=r"^2 rows are wrong:"):
            reader(path="rows.jsonl", bad=bad)


@pytest.mark.parametrize(("share", "passes"), [(0.1, True), (0.09, False)])
def test_a_share_of_bad_rows_is_allowed(share, passes, reader, write, tmp_path) -> None:
    write("rows.jsonl", GOOD * 18 + "{\n" * 2)
    bad = BadRows(share, tmp_path / "quarantine.jsonl")

    if passes:
        assert len(reader(path="rows.jsonl", bad=bad).rows) == 18
    else:
        with pytest.raises(DataError, match=r"0\.09, which allows 1 of 20 rows read"):
            reader(path="rows.jsonl", bad=bad)
    assert len(quarantined(tmp_path / "quarantine.jsonl")) == 2


def test_without_permission_nothing_is_put_aside(reader, write, tmp_path) -> None:
    write("rows.jsonl", GOOD + "{\n")

    with pytest.raises(DataError, match=r"or let dataset\.max_bad_rows move so many into"):
        reader(path="rows.jsonl", bad=BadRows(0, tmp_path / "quarantine.jsonl"))
    assert not (tmp_path / "quarantine.jsonl").exists()


def test_bad_rows_of_the_mapping_are_put_aside_with_their_columns(reader, write, tmp_path) -> None:
    write("rows.jsonl", GOOD + '{"prompt": "a", "completion": "\\ud800"}\n')

    found = reader(path="rows.jsonl", bad=BadRows(1, tmp_path / "quarantine.jsonl"))

    (entry,) = quarantined(tmp_path / "quarantine.jsonl")
    assert entry["row"] == {"prompt": "a", "completion": "\ud800"}
    assert (found.source.counts["rows"], found.source.counts["bad_rows"]) == (1, 1)


def test_the_share_counts_the_rows_of_all_sources(reader, write, tmp_path) -> None:
    write("a.jsonl", GOOD + "{\n")
    write("b.jsonl", GOOD * 98)
    bad = BadRows(0.01, tmp_path / "quarantine.jsonl")

    for source in reader.opened(*({"type": "jsonl", "path": f"{name}.jsonl"} for name in "ab")):
        list(source.rows(bad))

    bad.raise_if_any()
    assert (bad.count, bad.read) == (1, 100)


@pytest.mark.parametrize("value", [-1, 1.0, 2.5, "many"])
def test_neither_count_nor_share_is_refused(value) -> None:
    with pytest.raises(ValidationError, match="max_bad_rows"):
        DatasetSettings.model_validate({"sources": SOURCES, "max_bad_rows": value})


@pytest.mark.parametrize("value", [0, 3, 0.01])
def test_a_count_and_a_share_stay_what_they_are(value) -> None:
    settings = DatasetSettings.model_validate({"sources": SOURCES, "max_bad_rows": value})

    assert settings.max_bad_rows == value
    assert type(settings.max_bad_rows) is type(value)

import json
import random
from pathlib import Path
from typing import Any

import pytest

from tasks.artifacts import Dataset
from tasks.dataset.drift import drift, drift_summary, js_distance
from tasks.dataset.settings import DatasetSettings
from tasks.dataset.work import prepare_dataset
from tasks.store import Store

SETTINGS = {
    "sources": [{"type": "jsonl", "path": "rows.jsonl", "slice": "part"}],
    "split": {"test": 0.1},
    # Rows of a few words each, drawn by chance, resemble each other.
    "cleaning": {"near_duplicates": None, "contamination": None},
}
WORDS = ["red", "green", "blue", "square", "round", "open", "closed", "list", "file", "queue"]


def prepared(folder: Path, count: int, *, seed: int, words: list[str], length: int) -> Dataset:
    draw = random.Random(seed)
    folder.mkdir()
    rows = [
        {"prompt": f"Row {seed} {i}", "completion": " ".join(draw.choices(words, k=length))}
        for i in range(count)
    ]
    rows = [{**row, "part": "ab"[i % 2]} for i, row in enumerate(rows)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = DatasetSettings.model_validate(SETTINGS)
    return prepare_dataset(Store(folder / "store"), settings, salt="s", recipe_folder=folder)


def compared(today: Dataset, champion: Dataset, warn_above: float = 0.2) -> dict[str, Any]:
    cards = [json.loads((d.path / "card.json").read_text()) for d in (today, champion)]
    return drift(
        *cards,
        today_rows=today.path / "train_rows.npy",
        champion_rows=champion.path / "train_rows.npy",
        warn_above=warn_above,
    )


def test_equal_mixes_are_0_apart_and_disjoint_ones_1() -> None:
    assert js_distance([3, 5], [30, 50]) == pytest.approx(0, abs=1e-9)
    assert js_distance([90_000, 0], [0, 90_000]) == pytest.approx(1, abs=1e-4)
    assert js_distance([9], [9, 9]) == js_distance([9, 0], [9, 9]) > 0


def test_two_small_samples_of_one_mix_are_near_each_other() -> None:
    draw = random.Random(0)
    samples = [[0] * 100 for _ in range(2)]
    for sample in samples:
        for _ in range(600):
            sample[draw.randrange(100)] += 1

    assert js_distance(*samples) < 0.1


def test_rows_drawn_alike_do_not_drift(tmp_path: Path) -> None:
    first = prepared(tmp_path / "a", 400, seed=1, words=WORDS, length=12)
    second = prepared(tmp_path / "b", 500, seed=2, words=WORDS, length=12)

    found = compared(second, first)

    assert found["warnings"] == []
    assert found["new_rows_share"] == 1.0


def test_other_lengths_and_other_words_are_named(tmp_path: Path) -> None:
    first = prepared(tmp_path / "a", 400, seed=1, words=WORDS, length=12)
    longer = prepared(tmp_path / "b", 400, seed=2, words=WORDS, length=80)
    german = prepared(
        tmp_path / "c", 400, seed=3, words=["rot", "Datei", "offen", "rund", "Feld"], length=12
    )

    assert "answer_lengths" in compared(longer, first)["warnings"]
    found = compared(german, first)
    assert "words" in found["warnings"]
    text = drift_summary(found, champion="version 3")
    assert "**Above 0.2: " in text
    assert "words (a sample)" in text.split("**")[1]
    assert "version 3" in text


def test_a_distance_warns_above_the_threshold_and_not_at_it(tmp_path: Path) -> None:
    first = prepared(tmp_path / "a", 400, seed=1, words=WORDS, length=12)
    longer = prepared(tmp_path / "b", 400, seed=2, words=WORDS, length=24)
    measured = compared(longer, first, warn_above=1.0)
    distance = measured["distances"]["answer_lengths"]

    assert 0 < distance < 1
    assert measured["warnings"] == []
    assert "answer_lengths" not in compared(longer, first, warn_above=distance)["warnings"]
    assert "answer_lengths" in compared(longer, first, warn_above=distance - 1e-4)["warnings"]


def test_the_share_of_new_rows_is_counted_by_the_rows_themselves(tmp_path: Path) -> None:
    first = prepared(tmp_path / "a", 200, seed=1, words=WORDS, length=5)
    (tmp_path / "a" / "rows.jsonl").write_text(
        (tmp_path / "a" / "rows.jsonl").read_text()
        + "".join(
            json.dumps({"prompt": f"New {i}", "completion": "new", "part": "a"}) + "\n"
            for i in range(200)
        )
    )
    settings = DatasetSettings.model_validate(SETTINGS)
    second = prepare_dataset(
        Store(tmp_path / "a" / "store"), settings, salt="s", recipe_folder=tmp_path / "a"
    )

    found = compared(second, first)

    assert 0.4 < found["new_rows_share"] < 0.6
    assert found["lost_rows_share"] == 0.0


def test_a_champions_card_without_profiles_is_compared_by_its_rows(tmp_path: Path) -> None:
    today = prepared(tmp_path / "a", 200, seed=1, words=WORDS, length=5)
    whole = json.loads((today.path / "card.json").read_text())
    rows = today.path / "train_rows.npy"
    for missing in ("profiles", "slices"):
        card = json.loads(json.dumps(whole))
        del (card if missing == "profiles" else card["profiles"]["train"])[missing]

        found = drift(whole, card, today_rows=rows, champion_rows=rows, warn_above=0.2)

        assert missing == "profiles" or found["distances"]["turns"] == 0
        assert "slices" in found["not_compared"]
        assert found["new_rows_share"] == 0.0
        text = drift_summary(found, champion="version 3")
        assert "mix of slices" in text.split("Not compared: ")[1]
        assert "another version of loraline wrote it" in text


def test_a_file_of_another_name_is_no_drift(tmp_path: Path) -> None:
    rows = [{"prompt": f"Row {i}", "completion": f"Answer {i}", "part": "a"} for i in range(200)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    found = {}
    for slices in ({}, {"slice": "part"}):
        months = []
        for month in ("october", "november"):
            (tmp_path / f"{month}.jsonl").write_text(text)
            source = {"type": "files", "path": f"{month}.jsonl", **slices}
            settings = DatasetSettings.model_validate({**SETTINGS, "sources": [source]})
            months.append(
                prepare_dataset(
                    Store(tmp_path / "store"), settings, salt="s", recipe_folder=tmp_path
                )
            )
        found[bool(slices)] = compared(*months)

    assert found[False]["warnings"] == found[True]["warnings"] == []
    assert "slices" not in found[False]["distances"]
    assert found[False]["not_compared"] == []
    assert found[True]["distances"]["slices"] == 0

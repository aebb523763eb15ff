"""What the card shows of a dataset, and what it must not show, for it is published."""

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from tasks.artifacts import Dataset
from tasks.dataset.settings import DatasetSettings
from tasks.dataset.work import prepare_dataset
from tasks.store import Store

ADDRESS = "erika.mustermann@firma-beispiel.de"
WORDS = sorted(set(re.findall("[a-z]{3,}", Path(__file__).read_text(encoding="utf-8"))))


def texts(count: int, **columns: Any) -> list[dict[str, Any]]:
    draw = random.Random(1)
    return [
        {
            "prompt": f"Question {i}: {' '.join(draw.sample(WORDS, 12))}?",
            "completion": " ".join(draw.sample(WORDS, 8)),
            **columns,
        }
        for i in range(count)
    ]


def prepare(folder: Path, rows: list[Any], **settings: Any) -> Dataset:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    (folder / "rows.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    source = {"type": "jsonl", "path": "rows.jsonl", **settings.pop("source", {})}
    chosen = DatasetSettings.model_validate(
        {"sources": [source], "split": {"test": 0.2}, **settings}
    )
    return prepare_dataset(Store(folder / "store"), chosen, salt="salt", recipe_folder=folder)


def read(dataset: Dataset, name: str) -> str:
    return (dataset.path / name).read_text(encoding="utf-8")


def facts(dataset: Dataset) -> dict[str, Any]:
    return dict(json.loads(read(dataset, "card.json")))


@pytest.mark.parametrize(
    "cleaning", [{"personal_data": {"policy": "report"}}, {"personal_data": None}]
)
def test_published_cards_hold_no_personal_data_that_the_rows_keep(
    tmp_path: Path, cleaning: dict[str, Any]
) -> None:
    rows = [
        {**row, "prompt": f"{row['prompt']} Ask {ADDRESS}.", "by": f"{ADDRESS} {i % 9}"}
        for i, row in enumerate(texts(60))
    ]

    dataset = prepare(tmp_path, rows, source={"group": "by", "slice": "by"}, cleaning=cleaning)

    assert ADDRESS in read(dataset, "train.jsonl")
    for name in ("card.json", "card.html", "summary.md"):
        assert ADDRESS not in read(dataset, name)
    assert "[EMAIL]" in read(dataset, "card.html")
    slices = facts(dataset)["profiles"]["train"]["slices"]
    assert set(slices) <= {f"[EMAIL] {i}" for i in range(9)}
    assert sum(slices.values()) == dataset.rows["train"]


@pytest.mark.parametrize("policy", ["redact", "drop"])
def test_no_file_holds_what_is_to_be_redacted_or_dropped(tmp_path: Path, policy: str) -> None:
    rows: list[Any] = [
        {**row, "by": ADDRESS if i < 5 else str(i)} for i, row in enumerate(texts(60))
    ]
    rows += [
        f'{{"prompt": "{ADDRESS}',
        {"prompt": f"Is {ADDRESS} right?", "completion": "", "by": "1"},
    ]

    dataset = prepare(
        tmp_path,
        rows,
        source={"group": "by", "slice": "by"},
        cleaning={"personal_data": {"policy": policy}},
        max_bad_rows=2,
    )

    assert sum(dataset.rows.values()) == 60
    for path in dataset.path.iterdir():
        assert ADDRESS.encode() not in path.read_bytes(), path.name
    quarantined = [json.loads(line) for line in read(dataset, "quarantine.jsonl").splitlines()]
    assert [entry["where"] for entry in quarantined] == ["rows.jsonl:61", "rows.jsonl:62"]
    assert all("[EMAIL]" in json.dumps(entry["row"]) for entry in quarantined)


def test_every_step_has_its_line_in_the_order_of_the_pipeline(tmp_path: Path) -> None:
    rows: list[Any] = texts(100)
    rows += [
        "broken",
        {"prompt": "What?", "completion": "\u200b"},
        {"prompt": f"Ask {ADDRESS}", "completion": "Yes."},
        rows[0],
        {"prompt": "Too short?", "completion": "No"},
    ]

    dataset = prepare(
        tmp_path,
        rows,
        max_bad_rows=1,
        source={"max_rows": 90},
        cleaning={"personal_data": {"policy": "drop"}, "length": {"min_answer_characters": 3}},
    )

    card = facts(dataset)
    assert card["read"] == len(rows) == 105
    assert card["steps"][:8] == [
        {"step": "read", "rows": 105},
        {"step": "bad rows put into quarantine", "rows": 104},
        {"step": "normalising", "rows": 103},
        {"step": "personal data", "rows": 102},
        {"step": "exact duplicates", "rows": 101},
        {"step": "near duplicates", "rows": 101},
        {"step": "length and language", "rows": 100},
        {"step": "limits of the sources", "rows": 90},
    ]
    assert card["steps"][-1]["rows"] == sum(dataset.rows.values())
    assert list(card["dropped"].items())[:5] == [
        ("nothing left after normalising", 1),
        ("personal data: email", 1),
        ("same prompt and answer", 1),
        ("answer shorter than 3 characters", 1),
        ("over dataset.sources[].max_rows", 10),
    ]
    told = read(dataset, "summary.md")
    assert "| personal data | 102 | 1 |" in told
    # What was lost on the way is all that is not there at the end.
    assert card["read"] - sum(dataset.rows.values()) == sum(card["dropped"].values()) + 1


def test_both_lengths_the_turns_the_slices_and_three_rows_a_side_are_shown(tmp_path: Path) -> None:
    dataset = prepare(tmp_path, texts(60))

    told = read(dataset, "summary.md")

    assert told.count("```histogram") == 2
    for part in ("prompt", "answer"):
        assert f"## Lengths of the training {part}s, in characters" in told
    assert f"| 2 | {dataset.rows['train']} |" in told
    assert f"| rows.jsonl | {dataset.rows['train']} | {dataset.rows['test']} |" in told
    for side in ("train", "test"):
        section = told.split(f"## Some {side} rows")[1].split("\n## ")[0]
        assert section.count("**assistant**") == 3
        ids = sorted(
            read(dataset, f"{side}.jsonl").splitlines(), key=lambda row: json.loads(row)["id"]
        )
        for line in ids[:3]:
            assert json.loads(line)["messages"][0]["content"] in section


def test_the_page_is_made_for_narrow_windows_and_bars_do_not_wrap(tmp_path: Path) -> None:
    html = read(prepare(tmp_path, texts(60)), "card.html")

    assert '<meta name="viewport" content="width=device-width' in html
    bars = html.split('<code class="language-histogram">')[1].split("</code>")[0]
    assert max(map(len, bars.splitlines())) <= 45
    # Digests have their own heading, and do not stand under the languages.
    assert html.index("Languages of the training") < html.index("<h2>Digests")


@pytest.mark.parametrize("column", [None, "prompt"])
def test_an_address_in_a_files_name_or_in_a_group_called_prompt_is_in_no_card(
    tmp_path: Path, column: str | None
) -> None:
    name = f"{ADDRESS}.jsonl"
    rows = [{**row, "prompt": f"{row['prompt']} {ADDRESS}"} for row in texts(60)]
    (tmp_path / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    (tmp_path / "frozen").mkdir()
    (tmp_path / "frozen" / name).write_text(json.dumps({"prompt": "a", "completion": "b"}))
    (tmp_path / "frozen" / f"{ADDRESS}.txt").write_text("not read")

    dataset = prepare(
        tmp_path,
        [],
        source={"path": name, "group": column},
        holdout={"type": "files", "path": "frozen"},
    )

    for file in ("card.json", "card.html", "summary.md"):
        assert ADDRESS not in read(dataset, file)
    found = facts(dataset)
    assert found["sources"][0]["name"] == "[EMAIL].jsonl"
    assert found["sources"][1]["passed_over"] == ["[EMAIL].txt"]
    assert "[EMAIL].jsonl" in found["profiles"]["train"]["slices"]

"""From sources to both sides: what is left out, who stays of copies, and what is only evaluated."""

import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.artifacts import Dataset
from tasks.dataset.build import any_order
from tasks.dataset.settings import DatasetSettings
from tasks.dataset.work import prepare_dataset
from tasks.errors import DataError
from tasks.store import Store

WORDS = sorted(set(re.findall("[a-z]{3,}", Path(__file__).read_text(encoding="utf-8"))))


def pair(prompt: str, answer: str) -> dict[str, str]:
    return {"prompt": prompt, "completion": answer}


def texts(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Rows that share no long run of words."""
    draw = random.Random(seed)
    return [
        pair(
            f"Question {seed}.{i}: {' '.join(draw.sample(WORDS, 12))}?",
            " ".join(draw.sample(WORDS, 8)),
        )
        for i in range(count)
    ]


def write(path: Path, rows: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def prepare(folder: Path, salt: str = "salt", **settings: Any) -> Dataset:
    recipe = {
        "sources": [{"type": "jsonl", "path": "rows.jsonl"}],
        "split": {"test": 0.2},
        **settings,
    }
    chosen = DatasetSettings.model_validate(recipe)
    return prepare_dataset(Store(folder / "store"), chosen, salt=salt, recipe_folder=folder)


def lines(dataset: Dataset, name: str) -> list[dict[str, Any]]:
    text = (dataset.path / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def prompts(dataset: Dataset, side: str) -> set[str]:
    return {row["messages"][0]["content"] for row in lines(dataset, f"{side}.jsonl")}


def card(dataset: Dataset) -> dict[str, Any]:
    facts = json.loads((dataset.path / "card.json").read_text())
    assert isinstance(facts, dict)
    return facts


def test_the_holdout_is_evaluated_whole_and_never_trained(tmp_path: Path) -> None:
    rows, frozen = texts(200), texts(30, seed=1)
    write(tmp_path / "frozen.jsonl", frozen)
    # Copies of the frozen rows come with the data, with other answers and other layout, too.
    write(
        tmp_path / "rows.jsonl",
        [
            *rows,
            *frozen[:5],
            pair(frozen[6]["prompt"], "Another answer."),
            pair(f"  {frozen[7]['prompt'].upper()} ", "Loud."),
        ],
    )

    dataset = prepare(tmp_path, holdout={"type": "jsonl", "path": "frozen.jsonl"})

    questions = {row["prompt"] for row in frozen}
    assert questions <= prompts(dataset, "test")
    assert not {p.strip().casefold() for p in prompts(dataset, "train")} & {
        q.casefold() for q in questions
    }
    assert card(dataset)["holdout_rows"] == 30
    assert lines(dataset, "test.jsonl")[-1]["messages"][0]["content"] == frozen[-1]["prompt"]


def test_a_holdout_can_be_all_that_is_evaluated(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", texts(50))
    write(tmp_path / "frozen.jsonl", texts(10, seed=1))

    dataset = prepare(
        tmp_path, split={"test": 0}, holdout={"type": "jsonl", "path": "frozen.jsonl"}
    )

    assert dataset.rows == {"train": 50, "test": 10}


def test_no_rows_to_evaluate_is_refused_by_the_settings() -> None:
    with pytest.raises(ValueError, match="no row would be evaluated"):
        DatasetSettings.model_validate(
            {"sources": [{"type": "jsonl", "path": "a"}], "split": {"test": 0}}
        )


def test_another_holdout_is_another_dataset(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", texts(50))
    write(tmp_path / "frozen.jsonl", texts(10, seed=1))
    holdout = {"type": "jsonl", "path": "frozen.jsonl"}
    first = prepare(tmp_path, holdout=holdout)

    write(tmp_path / "frozen.jsonl", texts(11, seed=1))

    assert prepare(tmp_path, holdout=holdout).fingerprint != first.fingerprint


def test_of_near_duplicates_one_stays_and_the_list_says_which(tmp_path: Path) -> None:
    rows = texts(100)
    copy = pair(rows[3]["prompt"].replace("?", "!"), rows[3]["completion"] + ".")
    write(tmp_path / "rows.jsonl", [*rows, copy])

    dataset = prepare(tmp_path)

    (entry,) = lines(dataset, "removed.jsonl")
    assert entry["reason"] == "near duplicate"
    assert entry["source"] in ("rows.jsonl:4", "rows.jsonl:101")
    kept = {row["id"] for side in ("train", "test") for row in lines(dataset, f"{side}.jsonl")}
    assert entry["detail"] in kept
    assert card(dataset)["dropped"] == {"near duplicate": 1}


def test_near_copies_that_arrive_later_move_no_test_row(tmp_path: Path) -> None:
    rows = texts(150)
    write(tmp_path / "rows.jsonl", rows)
    before = prepare(tmp_path)
    copies = [pair(row["prompt"].replace("?", "!"), row["completion"]) for row in rows]
    write(tmp_path / "rows.jsonl", [*copies, *rows, *texts(100, seed=5)])

    after = prepare(tmp_path)

    assert prompts(before, "test") <= prompts(after, "test")
    assert card(after)["dropped"]["near duplicate"] > 50


def test_rows_are_normalised_before_they_are_compared(tmp_path: Path) -> None:
    rows = texts(60)
    write(
        tmp_path / "rows.jsonl",
        [
            *rows,
            pair("Was heißt „Öl“ auf Englisch?", "Oil."),
            pair("Was heißt „O\u0308l“ auf\u200b Englisch?", "Oil."),
        ],
    )

    facts = card(prepare(tmp_path))

    assert facts["dropped"] == {"same prompt and answer": 1}
    assert facts["changed"] == {
        "normalised: composed characters": 1,
        "normalised: invisible characters": 1,
    }


@pytest.mark.parametrize(("policy", "left"), [("report", 41), ("redact", 41), ("drop", 40)])
def test_personal_data_follows_the_policy(tmp_path: Path, policy: str, left: int) -> None:
    secret = "erika.mustermann@firma-beispiel.de"
    write(tmp_path / "rows.jsonl", [*texts(40), pair("Who wrote this?", f"Ask {secret}, please.")])

    dataset = prepare(tmp_path, cleaning={"personal_data": {"policy": policy}})

    assert sum(dataset.rows.values()) == left
    files = [path.read_bytes() for path in dataset.path.iterdir()]
    assert any(secret.encode() in data for data in files) == (policy == "report")
    facts = card(dataset)
    if policy == "drop":
        assert facts["dropped"] == {"personal data: email": 1}
    else:
        word = "left in" if policy == "report" else "redacted"
        assert facts["changed"] == {f"email found and {word}": 1}


def test_bad_rows_that_the_recipe_allows_go_into_quarantine(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", [*texts(50), "broken", pair("empty", " ")])
    with pytest.raises(DataError, match="2 rows are wrong"):
        prepare(tmp_path)

    dataset = prepare(tmp_path, max_bad_rows=2)

    entries = lines(dataset, "quarantine.jsonl")
    assert [entry["where"] for entry in entries] == ["rows.jsonl:51", "rows.jsonl:52"]
    assert "broken JSON" in entries[0]["reason"]
    assert sum(dataset.rows.values()) == 50


def test_digests_name_the_rows_in_their_order_and_in_any(tmp_path: Path) -> None:
    rows = texts(80)
    write(tmp_path / "rows.jsonl", rows)
    first = prepare(tmp_path)
    write(tmp_path / "rows.jsonl", random.Random(1).sample(rows, len(rows)))
    second = prepare(tmp_path)

    ours, others = card(first)["digests"], card(second)["digests"]
    for side in ("train", "test"):
        assert ours[side]["any_order"] == others[side]["any_order"]
        assert ours[side]["ordered"] != others[side]["ordered"]
        ids = np.load(first.path / f"{side}_rows.npy", allow_pickle=False)
        assert any_order(ids) == ours[side]["any_order"]
        assert {f"{number:016x}" for number in ids.tolist()} == {
            row["id"] for row in lines(first, f"{side}.jsonl")
        }


def test_the_card_opens_in_a_browser_and_runs_nothing_of_the_rows(tmp_path: Path) -> None:
    rows = [
        pair(f"{row['prompt']} <script>alert(1)</script>", row["completion"]) for row in texts(40)
    ]
    write(tmp_path / "rows.jsonl", rows)

    html = (prepare(tmp_path).path / "card.html").read_text(encoding="utf-8")

    assert html.startswith("<!doctype html>")
    assert "<table>" in html
    assert "<script" not in html
    assert "&lt;script&gt;" in html


def test_a_killed_preparation_leaves_nothing_that_the_next_one_keeps(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", texts(40))
    dataset = prepare(tmp_path)
    torn = dataset.path.parent / f".{dataset.fingerprint}.scratch.draft"
    torn.mkdir()
    (torn / "rows.jsonl").write_text("half")

    prepare_dataset(
        Store(tmp_path / "store"),
        DatasetSettings.model_validate(
            {"sources": [{"type": "jsonl", "path": "rows.jsonl"}], "split": {"test": 0.2}}
        ),
        salt="salt",
        recipe_folder=tmp_path,
        force=True,
    )

    assert not torn.exists()

"""Rows of an earlier version among today's: as many as asked for, none twice, none that is evaluated."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.artifacts import Dataset
from tasks.dataset.cleaning_settings import CleaningSettings
from tasks.dataset.replay import add_replayed_rows
from tasks.dataset.replay_choice import IN_TEST_GROUP, NOT_CHOSEN
from tasks.errors import UserError
from tasks.files import file_sha256
from tasks.registry import VersionFiles
from tasks.start import Start
from tasks.store import Store


@dataclass(frozen=True)
class KnownStart(Start):
    """A start whose files are here."""

    held: VersionFiles | None = None

    def files(self) -> VersionFiles:
        assert self.held is not None
        return self.held


def start_of(dataset: Dataset, folder: Path, sha256: str = "5" * 64) -> KnownStart:
    """A version that was trained on the dataset."""
    about = folder / f"version-{sha256[:4]}" / "about"
    about.mkdir(parents=True)
    shutil.copy(dataset.path / "card.json", about / "dataset.json")
    held = VersionFiles("small", "3", about.parent / "adapter", sha256, "b" * 64)
    tracker: Any = None
    return KnownStart("models:/small/3", sha256, "b" * 64, tracker, held)


def chat(prompt: str, answer: str) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": answer},
        ]
    }


def rows(words: Any, count: int) -> list[dict[str, Any]]:
    return [chat(words(12), words(30)) for _ in range(count)]


@dataclass(frozen=True)
class Found:
    """A dataset with replayed rows."""

    dataset: Dataset

    def rows(self, side: str) -> list[dict[str, Any]]:
        text = (self.dataset.path / f"{side}.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    def ids(self, side: str) -> set[str]:
        return {row["id"] for row in self.rows(side)}

    @property
    def card(self) -> dict[str, Any]:
        return dict(json.loads((self.dataset.path / "card.json").read_text(encoding="utf-8")))


def replayed(prepare: Any, today: Any, start: Start, share: float, **cleaning: Any) -> Found:
    return Found(
        add_replayed_rows(
            Store(prepare.folder / "store"),
            CleaningSettings(**cleaning),
            dataset=today.dataset,
            start=start,
            share=share,
        )
    )


def test_the_share_is_of_all_training_rows_and_today_s_come_first(
    prepare: Any, words: Any, tmp_path: Path
) -> None:
    old, new = rows(words, 80), rows(words, 40)
    before = prepare(old)
    today = prepare(new)
    found = replayed(prepare, today, start_of(before.dataset, tmp_path), 0.25)
    train = today.rows("train")
    count = round(len(train) / 3)
    assert found.rows("train")[: len(train)] == train
    added = found.rows("train")[len(train) :]
    assert len(added) == count
    assert {row["id"] for row in added} <= before.ids("train")
    assert found.rows("test") == today.rows("test")
    assert found.card["replay"]["rows"] == count
    assert found.card["replay"]["left_out"][NOT_CHOSEN] == len(before.rows("train")) - count
    assert found.dataset.rows["train"] == found.card["rows"]["train"] == len(train) + count
    assert found.card["profiles"]["train"]["slices"]["replayed"] == count
    assert "Replayed rows" in (found.dataset.path / "summary.md").read_text()


def test_the_digests_are_those_of_the_files(prepare: Any, words: Any, tmp_path: Path) -> None:
    """What `loraline verify` recomputes of a version."""
    before, today = prepare(rows(words, 30)), prepare(rows(words, 30))
    found = replayed(prepare, today, start_of(before.dataset, tmp_path), 0.3)
    for side in ("train", "test"):
        file = found.dataset.path / f"{side}.jsonl"
        assert found.card["digests"][side]["ordered"] == file_sha256(file)
        ids = np.load(found.dataset.path / f"{side}_rows.npy")
        assert {f"{number:016x}" for number in ids.tolist()} == found.ids(side)
    assert found.dataset.digest != today.dataset.digest


def test_no_row_comes_twice_and_none_that_is_evaluated_today(
    prepare: Any, words: Any, tmp_path: Path
) -> None:
    """Old training rows are among today's training rows, test rows, and in groups of test rows."""
    old = rows(words, 60)
    before = prepare(old, salt="then")
    # Other rows are tested by another salt.
    today = prepare(old[:40], salt="now")
    tested = today.ids("test")
    assert tested & before.ids("train")
    found = replayed(prepare, today, start_of(before.dataset, tmp_path), 0.9)
    ids = [row["id"] for row in found.rows("train")]
    assert len(ids) == len(set(ids))
    assert not tested & set(ids)
    assert set(ids) == today.ids("train") | (before.ids("train") - tested - today.ids("train"))
    # More was asked for than there is.
    assert found.card["replay"]["rows"] < found.card["replay"]["wanted"]


def test_an_old_row_that_shares_a_group_with_a_test_row_stays_out(
    prepare: Any, words: Any, tmp_path: Path
) -> None:
    """The same prompt with another answer: a test row's other half."""
    old, new = rows(words, 40), rows(words, 40)
    today = prepare(new)
    prompt = sorted(today.prompts("test"))[0]
    before = prepare([*old, chat(prompt, words(30))], salt="then", split={"test": 0.01})
    assert prompt in before.prompts("train")
    found = replayed(prepare, today, start_of(before.dataset, tmp_path), 0.9)
    assert prompt not in {row["messages"][0]["content"] for row in found.rows("train")}
    assert found.card["replay"]["left_out"][IN_TEST_GROUP] == 1


def test_today_s_policy_for_personal_data_holds_for_old_rows(
    prepare: Any, words: Any, tmp_path: Path
) -> None:
    mail = "jane.miller@company-mail.com"
    old = [chat(words(12), f"{words(20)} {mail} {words(10)}") for _ in range(30)]
    before, today = prepare(old), prepare(rows(words, 30))
    assert mail in (before.dataset.path / "train.jsonl").read_text()
    policy = {"personal_data": {"policy": "redact"}}
    found = replayed(prepare, today, start_of(before.dataset, tmp_path), 0.4, **policy)
    assert found.card["replay"]["rows"] > 0
    assert mail not in (found.dataset.path / "train.jsonl").read_text()


def test_the_same_start_replays_the_same_rows_and_another_one_others(
    prepare: Any, words: Any, tmp_path: Path
) -> None:
    before, today = prepare(rows(words, 200)), prepare(rows(words, 30))
    start = start_of(before.dataset, tmp_path)
    first = replayed(prepare, today, start, 0.3)
    ids = first.ids("train")
    shutil.rmtree(first.dataset.path)
    assert replayed(prepare, today, start, 0.3).ids("train") == ids
    other = start_of(before.dataset, tmp_path, sha256="6" * 64)
    assert replayed(prepare, today, other, 0.3).ids("train") != ids


def test_nothing_is_fetched_when_the_output_is_complete(
    prepare: Any, words: Any, tmp_path: Path
) -> None:
    """A version that was deleted since does not stop an unchanged night."""
    before, today = prepare(rows(words, 30)), prepare(rows(words, 30))
    start = start_of(before.dataset, tmp_path)
    first = replayed(prepare, today, start, 0.3)
    gone = KnownStart(start.uri, start.adapter_sha256, start.base_sha256, start.tracker, None)
    assert replayed(prepare, today, gone, 0.3).dataset.path == first.dataset.path


def test_rows_that_this_store_does_not_have_are_refused_with_the_ways_out(
    prepare: Any, words: Any, tmp_path: Path
) -> None:
    before, today = prepare(rows(words, 30)), prepare(rows(words, 30))
    start = start_of(before.dataset, tmp_path)
    digest = json.loads((before.dataset.path / "card.json").read_text())["digest"]
    shutil.rmtree(before.dataset.path)
    with pytest.raises(UserError, match=f"does not have its dataset {digest[:12]}") as refused:
        replayed(prepare, today, start, 0.3)
    assert "training.replay.share to 0" in str(refused.value)

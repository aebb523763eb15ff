"""Data that grows night by night: test rows stay, and no model is compared on what it was trained on."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.dataset.spool import fraction
from tasks.errors import DataError
from tasks.seen import TEST_COPIES, seen_by_champion

GROUPED = {"source": {"group": "ticket"}, "split": {"test": 0.2}}


def pair(prompt: str, answer: str, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "completion": answer, **more}


def trained(sides: Any, folder: Path) -> Path:
    """The ids of a night's training rows, as a version keeps them."""
    path = folder / f"{sides.dataset.fingerprint}.npy"
    path.write_bytes((sides.dataset.path / "train_rows.npy").read_bytes())
    return path


def seen(sides: Any, champion: Path, policy: Any = "refuse") -> set[str]:
    ids = np.load(sides.dataset.path / "test_rows.npy")
    marks = seen_by_champion(ids, champion, policy, copies=sides.dataset.path / TEST_COPIES)
    return {f"{number:016x}" for number in ids[marks].tolist()}


def names(path: Path) -> set[str]:
    return {f"{number:016x}" for number in np.load(path).tolist()}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("where", ["behind", "in front", "shuffled"])
def test_conversations_that_repeat_in_new_groups_refuse_no_night_and_move_no_test_row(
    seed: int, where: str, prepare, words, tmp_path: Path
) -> None:
    """What is said in many tickets: exact copies, and copies with a word more."""
    draw = random.Random(seed)
    polite = [pair(f"thanks {words(6)}", f"You are welcome {words(12)}") for _ in range(25)]

    def ticket(night: int, number: int) -> dict[str, Any]:
        said = dict(draw.choice(polite)) if draw.random() < 0.3 else pair(words(14), words(25))
        if draw.random() < 0.3:
            said["completion"] += f" {words(1)}"
        return {**said, "ticket": f"{night}-{number}"}

    rows = [ticket(0, i) for i in range(150)]
    before = prepare(rows, **GROUPED)
    moved = 0
    for night in range(1, 4):
        champion = trained(before, tmp_path)
        new = [ticket(night, i) for i in range(60)]
        rows = [*new, *rows] if where == "in front" else [*rows, *new]
        if where == "shuffled":
            draw.shuffle(rows)

        now = prepare(rows, **GROUPED)

        assert before.ids("test") <= now.ids("test")
        assert not before.ids("test") & now.ids("train")
        left_out = seen(now, champion)
        compared = now.ids("test") - left_out
        assert not compared & names(champion)
        assert len(compared) > 10
        moved += len(left_out & names(champion))
        before = now
    assert moved, "no trained row moved to the test side: the test shows nothing"


def test_a_test_row_is_seen_where_a_near_copy_of_it_was_trained(
    prepare, words, tmp_path: Path
) -> None:
    rows = [pair(words(20), words(40)) for _ in range(200)]
    first = prepare(rows)
    champion = trained(first, tmp_path)
    new = [pair(f"{row['prompt']} {words(1)}", row["completion"]) for row in rows]

    now = prepare([*rows, *new])

    fresh = now.ids("test") - first.ids("test")
    old = {row["messages"][1]["content"] for row in first.rows("train")}
    copies = {row["id"] for row in now.rows("test") if row["messages"][1]["content"] in old}
    assert len(copies) > 10
    assert copies <= fresh
    assert seen(now, champion) == copies


def test_all_test_rows_of_a_cluster_are_seen_where_one_copy_was_trained(
    prepare, words, tmp_path: Path
) -> None:
    text = words(60)
    cluster = [pair(f"{text} {words(1)}", text, doc=i) for i in range(40)]
    rows = [pair(words(20), words(40), doc=f"x{i}") for i in range(60)]
    settings = {"source": {"group": "doc"}, "split": {"test": 0.3}}
    one = next(row for row in cluster if fraction("salt", f"doc-{row['doc']}") > 0.3)
    first = prepare([*rows, one], **settings)
    assert any(text in row["messages"][0]["content"] for row in first.rows("train"))

    now = prepare([*rows, *cluster], **settings)

    tested = {row["id"] for row in now.rows("test") if text in row["messages"][0]["content"]}
    assert len(tested) > 3
    assert seen(now, trained(first, tmp_path)) == tested


@pytest.mark.parametrize(
    ("step", "changed"),
    [
        ("repeats an evaluation row", lambda row, words: pair(f"{words(9)} {row['prompt']}", "")),
        ("same prompt as an evaluation row", lambda row, words: pair(row["prompt"], words(30))),
    ],
)
def test_other_steps_that_take_a_trained_row_out_for_a_test_row_count_too(
    step: str, changed: Any, prepare, words, tmp_path: Path
) -> None:
    rows = [pair(words(40), words(40), doc=f"a{i}") for i in range(100)]
    settings = {"source": {"group": "doc"}, "cleaning": {"near_duplicates": None}}
    first = prepare(rows, **settings)
    new = [
        {**row, **{k: v for k, v in changed(row, words).items() if v}, "doc": f"{i}b"}
        for i, row in enumerate(rows)
    ]

    now = prepare([*rows, *new], **settings)

    fresh = {row["source"] for row in now.rows("test")} - {r["source"] for r in first.rows("test")}
    place = {row["source"]: row["id"] for row in now.rows("test")}
    was = {row["source"] for row in first.rows("train")}
    copies = {place[it] for it in fresh if f"rows.jsonl:{int(it.split(':')[1]) - 100}" in was}
    assert now.dropped.keys() >= {step}
    assert len(copies) > 5
    assert seen(now, trained(first, tmp_path)) == copies


def test_another_salt_is_no_growth_and_is_refused(prepare, words, tmp_path: Path) -> None:
    rows = [pair(words(14), words(25), ticket=i) for i in range(150)]
    rows += [{**row, "ticket": f"copy {i}"} for i, row in enumerate(rows[:20])]
    champion = trained(prepare(rows, **GROUPED), tmp_path)

    now = prepare(rows, salt="another", **GROUPED)

    with pytest.raises(DataError, match=r"test rows were training rows of the champion \("):
        seen(now, champion)
    assert 0 < len(seen(now, champion, "drop")) < len(now.ids("test"))


def test_copies_that_are_all_on_the_test_side_explain_no_trained_row(
    prepare, words, tmp_path: Path
) -> None:
    tested = [f"{i}" for i in range(200) if fraction("salt", f"ticket-{i}") < 0.2][:2]
    text = pair(words(14), words(25))
    rows = [pair(words(14), words(25), ticket=f"x{i}") for i in range(100)]

    now = prepare([*rows, *({**text, "ticket": group} for group in tested)], **GROUPED)

    (row,) = [it for it in now.rows("test") if it["messages"][0]["content"] == text["prompt"]]
    champion = tmp_path / "champion.npy"
    np.save(champion, np.array([int(row["id"], 16)], dtype=np.uint64))
    with pytest.raises(DataError, match=row["id"]):
        seen(now, champion)


def test_a_champion_that_has_seen_copies_of_all_test_rows_is_refused(
    prepare, words, tmp_path: Path
) -> None:
    rows = [pair(words(14), words(25), ticket=i) for i in range(150)]
    now = prepare(rows, **GROUPED)
    champion = tmp_path / "all.npy"
    np.save(champion, np.load(now.dataset.path / "test_rows.npy"))

    for policy in ("refuse", "drop"):
        with pytest.raises(DataError, match="None is left without them"):
            seen(now, champion, policy)


def test_the_list_of_copies_does_not_depend_on_the_order_of_rows(prepare, words) -> None:
    rows = [pair(words(14), words(25), ticket=i) for i in range(150)]
    rows += [{**row, "ticket": f"copy {i}"} for i, row in enumerate(rows)]

    files = [(prepare(given, **GROUPED).dataset.path / TEST_COPIES) for given in (rows, rows[::-1])]

    first, second = (np.load(path, allow_pickle=False) for path in files)
    assert len(first) > 10
    for part in (True, False):
        one, other = (it["row"][it["tested"] == part].tolist() for it in (first, second))
        assert set(one) == set(other)

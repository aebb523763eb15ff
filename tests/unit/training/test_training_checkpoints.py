"""Only checkpoints whose every byte is as written are gone on from."""

from pathlib import Path

import pytest

from tasks.training.checkpoints import (
    MANIFEST,
    is_complete,
    keep_newest,
    mark_complete,
    newest_complete,
    step_of,
)


def write(folder: Path, step: int, complete: bool = True) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "weights").write_bytes(b"w" * step)
    (checkpoint / "state.json").write_text("{}")
    if complete:
        mark_complete(checkpoint)
    return checkpoint


def test_the_newest_is_the_one_with_the_highest_step(tmp_path: Path) -> None:
    for step in (100, 9, 20):
        write(tmp_path, step)
    found = newest_complete(tmp_path)
    assert found is not None
    assert step_of(found) == 100


def test_without_a_checkpoint_there_is_none(tmp_path: Path) -> None:
    assert newest_complete(tmp_path / "absent") is None


@pytest.mark.parametrize("damage", ["no manifest", "truncated", "file gone", "manifest torn"])
def test_a_torn_checkpoint_is_set_aside_and_the_one_before_is_taken(
    tmp_path: Path, damage: str
) -> None:
    good, torn = write(tmp_path, 10), write(tmp_path, 20)
    if damage == "no manifest":
        (torn / MANIFEST).unlink()
    elif damage == "truncated":
        (torn / "weights").write_bytes(b"w")
    elif damage == "file gone":
        (torn / "state.json").unlink()
    else:
        (torn / MANIFEST).write_text('{"files": {"wei')
    assert not is_complete(torn)
    assert newest_complete(tmp_path) == good
    assert not torn.exists()
    assert (tmp_path / "torn-checkpoint-20").is_dir()
    # The step is reached again, and its torn predecessor is not in the way.
    write(tmp_path, 20, complete=False)
    assert newest_complete(tmp_path) == good


def test_rotation_keeps_the_newest_and_never_none(tmp_path: Path) -> None:
    for step in (1, 2, 10):
        write(tmp_path, step)
    keep_newest(tmp_path, None)
    assert len(list(tmp_path.iterdir())) == 3
    keep_newest(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-2"]
    keep_newest(tmp_path, 0)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-10"]

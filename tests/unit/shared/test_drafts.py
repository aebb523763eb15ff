"""What a command writes for its user is there whole, or not at all, and a failure names its own file."""

import errno
from pathlib import Path

import pytest

from tasks.drafts import published, require_free
from tasks.errors import UserError


def test_a_draft_becomes_the_output_at_the_end_and_never_before(tmp_path: Path) -> None:
    output = tmp_path / "new" / "out"
    with published(output) as draft:
        draft.mkdir()
        (draft / "file").write_text("all of it")
        assert not output.exists()
    assert (output / "file").read_text() == "all of it"
    assert list(output.parent.iterdir()) == [output]
    with pytest.raises(UserError, match="not an empty folder"):
        require_free(output)


def test_nothing_stays_of_a_failure(tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()

    def half(draft: Path) -> None:
        draft.mkdir()
        (draft / "file").write_text("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), published(output) as draft:
        half(draft)
    assert list(tmp_path.iterdir()) == [output]
    require_free(output)


def test_a_file_that_cannot_be_read_is_not_told_as_an_output_that_cannot_be_written(
    tmp_path: Path,
) -> None:
    base = tmp_path / "base.safetensors"
    with pytest.raises(UserError) as caught, published(tmp_path / "out"):
        base.read_bytes()
    assert str(caught.value).startswith(f"{base}: No such file")
    assert "cannot be written" not in str(caught.value)
    with pytest.raises(UserError) as caught, published(tmp_path / "out"):
        raise OSError(errno.EIO, "Input/output error")
    assert "cannot be written" not in str(caught.value)
    assert "Input/output error" in str(caught.value)


def test_what_keeps_the_output_from_being_written_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"), published(tmp_path / "file" / "out"):
        pass
    with pytest.raises(UserError, match="cannot be written"), published(tmp_path / "out") as draft:
        (draft / "file").write_text("the draft was not made")
    with pytest.raises(UserError, match="cannot be written"), published(tmp_path / "out"):
        raise OSError(errno.ENOSPC, "No space left on device")

    def somebody_was_faster(draft: Path) -> None:
        draft.mkdir()
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "of somebody else").touch()

    with pytest.raises(UserError, match="cannot be written"), published(tmp_path / "out") as draft:
        somebody_was_faster(draft)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["of somebody else"]

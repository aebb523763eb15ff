"""Datasets of the Hub: a revision becomes a commit, and a commit's rows are fetched once."""

import io
import logging
import os
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from tasks.dataset.reading.bad_rows import BadRows
from tasks.errors import DataError, LoralineError, UserError
from tests.hub import A, B, Hub, Repository

SOURCE = {"type": "huggingface", "id": "team/chats"}


def table(*prompts: str) -> bytes:
    sink = io.BytesIO()
    rows = [{"prompt": p, "completion": "b", "tags": None} for p in prompts]
    parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue()


@pytest.fixture
def hub(hub: Hub) -> Hub:
    """With the dataset `team/chats`, which grew by a row from the first commit to the second."""
    hub.datasets["team/chats"] = Repository(
        {
            A: {"data/train.parquet": table("1", "2"), "data/test.parquet": table("9")},
            B: {"data/train.parquet": table("1", "2", "3")},
        }
    )
    return hub


def prompts(rows: Any) -> list[str]:
    return [row.messages[0]["content"] for row in rows]


def test_a_branch_is_read_at_its_commit_which_stands_in_the_identity(hub, reader) -> None:
    (source,) = reader.opened(SOURCE)

    assert source.identity["commit"] == A
    assert source.name == "team/chats"
    # Until the rows are wanted, the commit is all that is asked for.
    assert hub.requests == ["GET /api/datasets/team/chats/revision/main"]
    rows = list(source.rows(BadRows()))
    assert prompts(rows) == ["1", "2"]
    assert rows[1].source == "team/chats/train:2"
    assert source.counts["rows"] == 2
    assert source.counts["ignored_columns"] == ["tags"]


def test_rows_of_a_known_commit_are_not_fetched_again_and_a_new_one_is_another_source(
    hub, reader
) -> None:
    (first,) = reader.opened(SOURCE)
    list(first.rows(BadRows()))
    hub.requests.clear()
    (again,) = reader.opened(SOURCE)

    assert prompts(again.rows(BadRows())) == ["1", "2"]
    assert hub.requests == ["GET /api/datasets/team/chats/revision/main"]
    assert (again.digest, again.identity) == (first.digest, first.identity)
    hub.datasets["team/chats"].branches["main"] = B
    (moved,) = reader.opened(SOURCE)
    assert moved.digest != first.digest
    assert prompts(moved.rows(BadRows())) == ["1", "2", "3"]
    (pinned,) = reader.opened({**SOURCE, "revision": A})
    assert (pinned.digest, pinned.identity) == (first.digest, first.identity)


def test_a_split_is_chosen_and_a_missing_one_is_answered_with_those_that_are(hub, reader) -> None:
    (source,) = reader.opened({**SOURCE, "split": "test"})
    assert prompts(source.rows(BadRows())) == ["9"]

    (source,) = reader.opened({**SOURCE, "split": "holdout"})
    with pytest.raises(UserError, match=r"split 'holdout'.*its splits are train, test"):
        list(source.rows(BadRows()))


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        ((401, "RepoNotFound"), r"shows no dataset 'team/chats' \(status 401\)"),
        ((403, "GatedRepo"), "is gated: accept its terms"),
        ((404, "RevisionNotFound"), "no branch, tag or commit 'main'"),
        ((503, ""), r"Cannot resolve the dataset team/chats@main .*status 503"),
    ],
)
def test_each_refusal_of_the_hub_names_its_way_out(failure, words, hub, reader) -> None:
    hub.failure = failure

    with pytest.raises(DataError, match=words):
        reader.opened(SOURCE)


def test_a_silent_hub_is_answered_by_the_last_run_with_a_warning(hub, reader, caplog) -> None:
    (first,) = reader.opened(SOURCE)
    list(first.rows(BadRows()))
    hub.failure = (503, "")

    with caplog.at_level(logging.WARNING):
        (again,) = reader.opened(SOURCE)

    assert prompts(again.rows(BadRows())) == ["1", "2"]
    assert f"taken at commit {A}, as in the last run" in caplog.text


def test_rows_of_a_commit_that_are_not_here_are_refused_in_words_when_the_hub_is_off(
    reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    (source,) = reader.opened({**SOURCE, "revision": A})

    with pytest.raises(UserError) as refused:
        list(source.rows(BadRows()))

    message = str(refused.value)
    assert f"The rows of team/chats at commit {A} are not on this machine yet" in message
    assert "HF_HUB_OFFLINE" in message
    assert "Traceback" not in message


def test_nothing_of_the_library_is_loaded_here_and_nothing_left_in_the_home_folder(
    hub, reader, tmp_path: Path
) -> None:
    import subprocess
    import sys

    code = f"""
import sys
from pathlib import Path
from tasks.dataset.reading.bad_rows import BadRows
from tasks.dataset.reading.opening import open_source
from tasks.dataset.source_settings import HuggingFaceSource
source = HuggingFaceSource.model_validate({SOURCE!r})
opened = open_source(source, Path(), cache=Path({str(tmp_path / "cache")!r}))
assert len(list(opened.rows(BadRows()))) == 2
print([name for name in ("datasets", "torch", "transformers", "pandas") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
    assert not (tmp_path / "user-home").exists()
    assert not list((tmp_path / "cache").rglob("datasets"))


def test_what_is_downloaded_for_the_rows_stays_nowhere(hub, reader, tmp_path: Path) -> None:
    (source,) = reader.opened(SOURCE)
    list(source.rows(BadRows()))

    (folder,) = (reader.folder / "cache" / "hub").glob("*/")
    # As of a process that was killed in between.
    for left in ("downloads", "datasets"):
        (folder / left / "blobs").mkdir(parents=True)
    list(source.rows(BadRows()))
    assert {path.name for path in folder.iterdir()} == {
        *("job.json", "result.json", "rows.parquet", "worker.log")
    }
    assert not (tmp_path / "hub-cache").exists()


def test_a_copy_that_cannot_be_marked_as_used_is_used(
    hub, reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(reader.opened(SOURCE)[0].rows(BadRows()))

    def refused(*_: Any) -> None:
        raise PermissionError("the file is another user's")

    monkeypatch.setattr(os, "utime", refused)
    (again,) = reader.opened(SOURCE)
    assert prompts(again.rows(BadRows())) == ["1", "2"]


def test_files_that_came_whole_are_not_fetched_again_after_a_failure(
    hub, reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"data/train-{i}.parquet": table(str(i)) for i in range(2)}
    chats = hub.datasets["team/chats"] = Repository({A: files})
    (source,) = reader.opened(SOURCE)
    with monkeypatch.context() as patched:
        refused = (403, {}, b"")
        told = chats.file
        patched.setattr(chats, "file", lambda *it: refused if "train-1" in it[1] else told(*it))
        with pytest.raises(LoralineError):
            list(source.rows(BadRows()))
    whole = f"GET /datasets/team/chats/resolve/{A}/data/train-0.parquet"
    assert hub.requests.count(whole) == 1
    (again,) = reader.opened(SOURCE)

    assert prompts(again.rows(BadRows())) == ["0", "1"]
    assert hub.requests.count(whole) == 1


@pytest.mark.parametrize("id", ["a/b/c", "../chats", "team/chats@main", ""])
def test_what_is_no_id_is_refused_in_the_recipe(id, reader) -> None:
    with pytest.raises(ValueError, match="id"):
        reader.opened({**SOURCE, "id": id})

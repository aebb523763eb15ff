"""New data asks for a training: files, an S3 prefix, a database that only grows, a commit on the Hub."""

import json
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tasks.dataset.settings import DatasetSettings
from tasks.dataset.watching import Seen, Watch

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
TRAINED = NOW - timedelta(days=1)


def rows(start: int, stop: int) -> str:
    return "".join(
        json.dumps({"prompt": f"question {n}", "completion": f"answer {n}"}) + "\n"
        for n in range(start, stop)
    )


def settings(**source: Any) -> DatasetSettings:
    return DatasetSettings.model_validate({"sources": [source]})


class Looking:
    """A watch on one source, which is looked at again and again."""

    def __init__(self, folder: Path, **source: Any) -> None:
        (folder / "cache" / "sources").mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.settings = settings(**source)
        self.watch = Watch(folder / "watch", folder / "cache" / "sources")

    def __call__(
        self,
        *,
        trained_at: datetime | None = TRAINED,
        now: datetime = NOW,
        after_new_rows: int | None = 50,
        after_days: float | None = None,
        base: str | None = None,
    ) -> Seen:
        return self.watch.look(
            self.settings,
            self.folder,
            after_new_rows=after_new_rows,
            after_days=after_days,
            trained_at=trained_at,
            base=base,
            now=now,
        )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text(rows(0, 100))
    return path


def test_enough_new_rows_ask_once(tmp_path: Path, file: Path) -> None:
    look = Looking(tmp_path, type="jsonl", path="rows.jsonl")
    assert look().cause is None
    file.write_text(rows(0, 149))
    seen = look()
    assert (seen.new_rows, seen.cause) == (49, None)
    file.write_text(rows(0, 150))
    seen = look()
    assert seen.cause == "50 of 150 rows are new (asked for: 50)"
    look.watch.asked(seen, NOW)
    assert look().cause is None
    # The run came to nothing: it is asked for again, a day later.
    assert look(now=NOW + timedelta(days=1, minutes=1)).cause is not None


def test_after_a_training_the_counting_begins_anew(tmp_path: Path, file: Path) -> None:
    look = Looking(tmp_path, type="jsonl", path="rows.jsonl")
    look()
    file.write_text(rows(0, 150))
    look.watch.asked(look(), NOW)
    done = look(trained_at=NOW + timedelta(hours=1), now=NOW + timedelta(hours=2))
    assert (done.new_rows, done.cause) == (0, None)
    file.write_text(rows(0, 200))
    again = look(trained_at=NOW + timedelta(hours=1), now=NOW + timedelta(hours=3))
    assert again.new_rows == 50
    assert again.cause is not None


def test_a_window_that_moves_counts_its_new_rows_though_it_does_not_grow(
    tmp_path: Path, file: Path
) -> None:
    look = Looking(tmp_path, type="jsonl", path="rows.jsonl")
    look()
    file.write_text(rows(60, 160))
    assert look().new_rows == 60


def test_days_count_only_when_something_changed(tmp_path: Path, file: Path) -> None:
    look = Looking(tmp_path, type="jsonl", path="rows.jsonl")
    assert look(after_new_rows=None, after_days=7).cause is None
    late = NOW + timedelta(days=30)
    assert look(after_new_rows=None, after_days=7, now=late).cause is None
    file.write_text(rows(0, 101))
    early = look(after_new_rows=None, after_days=7, now=NOW)
    assert early.cause is None
    assert "31.0 days old" in str(look(after_new_rows=None, after_days=7, now=late).cause)


def test_where_nothing_was_trained_yet_all_rows_are_new(tmp_path: Path, file: Path) -> None:
    look = Looking(tmp_path, type="jsonl", path="rows.jsonl")
    assert look(trained_at=None).new_rows == 100
    assert look(trained_at=None).cause is not None


def test_a_moved_lock_of_the_base_asks_too(tmp_path: Path, file: Path) -> None:
    look = Looking(tmp_path, type="jsonl", path="rows.jsonl")
    assert look(base="a" * 40).cause is None
    assert look(base="b" * 40).cause == "the base's lock moved to commit bbbbbbbbbbbb"


def test_the_watermark_of_a_query_counts_what_the_table_gained(tmp_path: Path) -> None:
    database = tmp_path / "chats.db"
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE chats (id INTEGER, prompt TEXT, completion TEXT)")
        connection.executemany(
            "INSERT INTO chats VALUES (?, ?, ?)", [(n, f"q {n}", f"a {n}") for n in range(100)]
        )
    look = Looking(
        tmp_path,
        type="sql",
        database="chats.db",
        query="SELECT id, prompt, completion FROM chats",
        watermark="id",
    )
    assert look().cause is None
    with sqlite3.connect(database) as connection:
        connection.executemany(
            "INSERT INTO chats VALUES (?, ?, ?)", [(n, f"q {n}", f"a {n}") for n in range(100, 160)]
        )
    assert look().new_rows == 60


def test_files_that_arrive_below_an_s3_prefix_are_seen(tmp_path: Path, shared_bucket: Any) -> None:
    import s3fs

    s3fs.S3FileSystem(skip_instance_cache=True).pipe(
        "shared/chats/day-1.jsonl", rows(0, 100).encode()
    )
    look = Looking(tmp_path, type="jsonl", path="s3://shared/chats/")
    assert look().cause is None
    s3fs.S3FileSystem(skip_instance_cache=True).pipe(
        "shared/chats/day-2.jsonl", rows(100, 170).encode()
    )
    seen = look()
    assert seen.new_rows == 70
    assert seen.cause is not None


def test_rows_are_not_read_again_while_nothing_changes(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.dataset import watching

    look = Looking(tmp_path, type="jsonl", path="rows.jsonl")
    look()

    def never(_: object) -> None:
        raise AssertionError("the rows were read")

    monkeypatch.setattr(watching, "_ids", never)
    assert look().new_rows == 0


def test_a_new_commit_on_the_hub_is_read_and_its_new_rows_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.dataset.reading import hub
    from tasks.dataset.reading.data_file import DataFile
    from tasks.dataset.reading.places import Placed

    commits = {"a" * 40: rows(0, 100), "b" * 40: rows(0, 180)}
    now = ["a" * 40]

    def fetched(_: object, commit: str, __: Path) -> Placed:
        path = tmp_path / f"{commit[:4]}.jsonl"
        path.write_text(commits[commit])
        return Placed((DataFile(path, path.name, path.name, "jsonl"),))

    # What asks the Hub, and what fetches from it.
    monkeypatch.setattr(hub, "_asked", lambda _: now[0])
    monkeypatch.setattr(hub, "_fetched", fetched)
    look = Looking(tmp_path, type="huggingface", id="owner/chats")
    assert look().cause is None
    now[0] = "b" * 40
    assert look().new_rows == 80

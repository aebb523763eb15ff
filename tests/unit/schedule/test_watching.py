"""New data asks for a training: files, an S3 prefix, a database that only grows, a commit on the Hub."""

import json
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tasks.dataset.settings import DatasetSettings
from tasks.dataset.watching import Seen, Watch
from tests.hub import A, B, Hub, Repository

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
        begun: datetime | None = None,
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
            begun=[begun] if begun else [],
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
    look.watch.asked(NOW)
    assert look().cause is None
    # The run came to nothing: it is asked for again, a day later.
    assert look(now=NOW + timedelta(days=1, minutes=1)).cause is not None


def test_a_clock_that_was_ahead_hides_no_row_later(tmp_path: Path, file: Path) -> None:
    look = Looking(tmp_path, type="jsonl", path="rows.jsonl")
    ahead = NOW + timedelta(days=400)
    look(trained_at=ahead, now=ahead)
    look.watch.asked(ahead)
    file.write_text(rows(0, 150))
    # The clock is right again: the day until it is asked once more begins now.
    assert look(now=NOW).new_rows == 50
    assert look(now=NOW + timedelta(days=1)).cause is not None
    assert look(trained_at=NOW + timedelta(days=2), now=NOW + timedelta(days=3)).new_rows == 0
    file.write_text(rows(0, 210))
    seen = look(trained_at=NOW + timedelta(days=2), now=NOW + timedelta(days=4))
    assert seen.cause == "60 of 210 rows are new (asked for: 50)"


def test_after_a_training_the_counting_begins_anew(tmp_path: Path, file: Path) -> None:
    look = Looking(tmp_path, type="jsonl", path="rows.jsonl")
    look()
    file.write_text(rows(0, 150))
    look()
    look.watch.asked(NOW)
    done = look(trained_at=NOW + timedelta(hours=1), now=NOW + timedelta(hours=2))
    assert (done.new_rows, done.cause) == (0, None)
    file.write_text(rows(0, 200))
    again = look(trained_at=NOW + timedelta(hours=1), now=NOW + timedelta(hours=3))
    assert again.new_rows == 50
    assert again.cause is not None


def test_rows_that_arrive_during_a_training_are_new_after_it(tmp_path: Path, file: Path) -> None:
    look = Looking(tmp_path, type="jsonl", path="rows.jsonl")
    look()
    # A person starts one on the hundred rows; it takes six hours, in which 400 come.
    begun = NOW + timedelta(minutes=5)
    for quarter in range(1, 24):
        file.write_text(rows(0, 100 + min(400, 20 * quarter)))
        look(begun=begun, now=NOW + timedelta(minutes=15 * quarter), after_new_rows=500)
    done = look(trained_at=begun, begun=begun, now=NOW + timedelta(hours=6), after_new_rows=500)
    assert (done.new_rows, done.cause) == (400, None)
    late = look(
        trained_at=begun,
        begun=begun,
        now=NOW + timedelta(days=30),
        after_new_rows=500,
        after_days=7,
    )
    assert "the data changed (400 new rows)" in str(late.cause)
    # Of all those looks only a few are kept.
    assert len(list((tmp_path / "watch").glob("rows-*.npy"))) <= 3


def test_a_run_that_failed_is_no_reason_to_forget_what_the_next_one_saw(
    tmp_path: Path, file: Path
) -> None:
    look = Looking(tmp_path, type="jsonl", path="rows.jsonl")
    look()
    failed, begun = NOW + timedelta(minutes=5), NOW + timedelta(minutes=50)
    for quarter in range(1, 9):
        file.write_text(rows(0, 100 + 10 * quarter))
        at = NOW + timedelta(minutes=15 * quarter)
        look(begun=begun if at > begun else failed, now=at, after_new_rows=500)
    done = look(trained_at=begun, begun=begun, now=NOW + timedelta(hours=3), after_new_rows=500)
    # The last look before it was after 45 minutes and saw 130; 180 are there now.
    assert done.new_rows == 50


def test_a_training_that_was_still_reading_when_a_look_ended_may_have_missed_its_rows(
    tmp_path: Path, file: Path
) -> None:
    look = Looking(tmp_path, type="jsonl", path="rows.jsonl")
    look()
    begun = NOW + timedelta(minutes=14)
    file.write_text(rows(0, 130))
    # This look began before the training and knows nothing of it.
    look(now=NOW + timedelta(minutes=15))
    look(begun=begun, now=NOW + timedelta(minutes=30))
    file.write_text(rows(0, 140))
    look(begun=begun, now=NOW + timedelta(minutes=45))
    done = look(trained_at=begun, begun=begun, now=NOW + timedelta(minutes=60))
    assert done.new_rows == 40


def test_data_that_keeps_growing_asks_once_for_a_training_that_does_not_succeed(
    tmp_path: Path, file: Path
) -> None:
    look = Looking(tmp_path, type="jsonl", path="rows.jsonl")
    look()
    asked = []
    for quarter in range(1, 29):
        file.write_text(rows(0, 100 + 10 * quarter))
        at = NOW + timedelta(minutes=15 * quarter)
        if look(now=at).cause:
            look.watch.asked(at)
            asked.append(quarter)
    assert asked == [5]
    tomorrow = look(now=NOW + timedelta(hours=25, minutes=30))
    assert tomorrow.new_rows == 280
    assert tomorrow.cause is not None


def test_a_training_that_began_before_the_asking_does_not_answer_it(
    tmp_path: Path, file: Path
) -> None:
    look = Looking(tmp_path, type="jsonl", path="rows.jsonl")
    look()
    file.write_text(rows(0, 160))
    begun, asked = NOW - timedelta(hours=1), NOW + timedelta(minutes=5)
    assert look(now=asked).cause is not None
    look.watch.asked(asked)
    done = look(trained_at=begun, begun=begun, now=NOW + timedelta(hours=2))
    assert (done.new_rows, done.cause) == (60, None)


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


def test_a_lock_that_moves_during_a_training_asks_after_it(tmp_path: Path, file: Path) -> None:
    look = Looking(tmp_path, type="jsonl", path="rows.jsonl")
    look(base="a" * 40)
    begun = NOW + timedelta(minutes=5)
    for quarter in (1, 2, 3):
        look(base="b" * 40, begun=begun, now=NOW + timedelta(minutes=15 * quarter))
    done = look(base="b" * 40, begun=begun, trained_at=begun, now=NOW + timedelta(hours=1))
    assert "lock moved" in str(done.cause)


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
    # They took their ids before those, and are committed only now.
    with sqlite3.connect(database) as connection:
        connection.executemany(
            "INSERT INTO chats VALUES (?, ?, ?)",
            [(n, f"late {n}", f"a {n}") for n in range(140, 150)],
        )
    assert look().new_rows == 70


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
    tmp_path: Path, hub: Hub
) -> None:
    chats = hub.datasets["owner/chats"] = Repository(
        {A: {"train.jsonl": rows(0, 100).encode()}, B: {"train.jsonl": rows(0, 180).encode()}}
    )
    look = Looking(tmp_path, type="huggingface", id="owner/chats")
    assert look().cause is None
    chats.branches["main"] = B
    assert look().new_rows == 80

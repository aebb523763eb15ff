"""Rows of a query, on SQLite and on a real PostgreSQL server."""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

from tasks.dataset.reading.bad_rows import BadRows
from tasks.dataset.source_settings import SqlSource
from tasks.errors import DataError, LoralineError

VARIABLE = "LORALINE_TEST_DATABASE"


@dataclass
class Database:
    """A database with a table of answered tickets."""

    engine: sqlalchemy.Engine

    def add(self, *ids: int, at: str = "2026-01-01 00:00:00") -> None:
        with self.engine.begin() as connection:
            for i in ids:
                connection.execute(
                    sqlalchemy.text(
                        "INSERT INTO tickets VALUES (:id, :question, :answer, :customer, :at)"
                    ),
                    {
                        "id": i,
                        "question": f"Question {i}: 'what'?",
                        "answer": f"Answer {i}\nwith ümlaut",
                        "customer": i % 3 if i % 4 else None,
                        "at": at,
                    },
                )

    def run(self, text: str) -> None:
        with self.engine.begin() as connection:
            connection.execute(sqlalchemy.text(text))


@pytest.fixture(params=["sqlite", "postgresql"])
def database(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Database]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'tickets.db'}"
    else:
        url = request.getfixturevalue("postgres").replace("postgresql", "postgresql+psycopg", 1)
    monkeypatch.setenv(VARIABLE, url)
    engine = sqlalchemy.create_engine(url)
    found = Database(engine)
    found.run("DROP TABLE IF EXISTS tickets")
    found.run(
        "CREATE TABLE tickets (id INTEGER PRIMARY KEY, question TEXT, answer TEXT, "
        "customer INTEGER, at TIMESTAMP)"
    )
    yield found
    engine.dispose()


SOURCE = {
    "type": "sql",
    "url_variable": VARIABLE,
    "query": "SELECT id, question AS prompt, answer AS completion, customer, at FROM tickets "
    "WHERE question IS NOT NULL AND at >= '2000-01-01 00:00:00' ORDER BY id;",
    "name": "tickets",
}


@pytest.fixture
def query(reader):
    """Read the source to its end: (rows, source)."""

    def read(**more: Any) -> tuple[list[Any], Any]:
        (source,) = reader.opened({**SOURCE, **more})
        bad = BadRows()
        rows = list(source.rows(bad))
        bad.raise_if_any()
        return rows, source

    return read


def numbers(rows: list[Any]) -> list[int]:
    return [int(row.messages[0]["content"].split()[1].rstrip(":")) for row in rows]


def test_the_rows_of_a_query_become_conversations(query, database) -> None:
    database.add(*range(1, 26))

    rows, source = query(chunk_rows=10)

    assert numbers(rows) == list(range(1, 26))
    assert rows[0].messages[1]["content"] == "Answer 1\nwith ümlaut"
    assert rows[0].source == "tickets:1"
    assert source.counts["mapping"] == {"user": "prompt", "assistant": "completion"}
    assert (source.counts["new_rows"], source.counts["kept_rows"]) == (25, 0)
    assert (source.name, source.max_rows) == ("tickets", None)


def test_whole_numbers_beside_nulls_stay_whole(query, database) -> None:
    """A group 1 in one chunk must not be a group 1.0 in another."""
    database.add(*range(1, 25))

    rows, _ = query(
        columns={"user": "{{ prompt }} ({{ customer or 0 }})", "assistant": "{{ completion }}"},
        chunk_rows=5,
    )

    assert rows[0].messages[0]["content"].endswith("(1)")
    assert {row.messages[0]["content"][-3:] for row in rows} == {"(0)", "(1)", "(2)"}


def test_times_of_the_database_are_times(query, database) -> None:
    database.add(1, at="2026-03-01 10:00:00")

    rows, _ = query(time="at", slice="customer")

    assert rows[0].time == "2026-03-01T10:00:00.000000+00:00"
    assert rows[0].slice == "1"


def test_a_bad_row_of_a_query_is_named_by_its_number(query, database) -> None:
    database.add(1, 2, 3)
    database.run("UPDATE tickets SET answer = NULL WHERE id = 2")

    with pytest.raises(DataError, match="tickets:2: completion is null"):
        query()


@pytest.mark.parametrize(
    ("watermark", "overlap"),
    [
        ("id", {"overlap_rows": 0}),
        ("id", {"overlap_rows": 2}),
        ("at", {"overlap_seconds": 0}),
        ("at", {"overlap_seconds": 3600}),
    ],
)
def test_only_rows_since_shortly_before_the_last_run_are_asked_for(
    watermark, overlap, query, database
) -> None:
    database.add(1, 2, at="2026-01-01 00:00:00")
    database.add(3, at="2026-01-01 12:00:00")
    database.add(4, at="2026-01-02 00:00:00")
    first, before = query(watermark=watermark, **overlap)
    database.add(5, 6, at="2026-01-03 00:00:00")
    # Had the old rows been asked for again, this would show.
    database.run("UPDATE tickets SET answer = 'changed' WHERE id <= 2")

    again, after = query(watermark=watermark, **overlap)

    assert (numbers(first), numbers(again)) == ([1, 2, 3, 4], [1, 2, 3, 4, 5, 6])
    assert "changed" not in {row.messages[1]["content"] for row in again}
    assert (after.counts["new_rows"], after.counts["kept_rows"]) == (2, 4)
    assert after.counts["watermark"]["column"] == watermark
    assert before.digest != after.digest
    assert before.identity == after.identity


def test_rows_that_share_the_highest_value_are_all_found(query, database) -> None:
    """Two rows of one moment, and the second was written after the first was fetched."""
    database.add(1, at="2026-01-01 00:00:00")
    database.add(2, at="2026-01-02 00:00:00")
    query(watermark="at", overlap_seconds=0)
    database.add(3, at="2026-01-02 00:00:00")

    rows, source = query(watermark="at", overlap_seconds=0)

    assert sorted(numbers(rows)) == [1, 2, 3]
    assert (source.counts["new_rows"], source.counts["kept_rows"]) == (1, 2)


def test_an_unchanged_table_gives_the_same_digest(query, database) -> None:
    database.add(*range(1, 8))

    digests = {query(watermark="id")[1].digest for _ in range(3)}

    assert len(digests) == 1
    assert {query()[1].digest for _ in range(2)} == digests


@pytest.mark.parametrize("key", [{}, {"key": "id"}])
def test_rows_that_are_committed_late_are_found_by_their_id_and_none_is_held_twice(
    key, query, database
) -> None:
    database.add(1, 2, 4)
    query(watermark="id", **key)
    database.add(3, 5)

    rows, source = query(watermark="id", **key)

    assert numbers(rows) == [1, 2, 3, 4, 5]
    assert (source.counts["new_rows"], source.counts["kept_rows"]) == (2, 3)
    assert query(watermark="id", **key)[1].digest == source.digest


def test_a_transaction_that_was_open_for_a_day_loses_no_row(query, database) -> None:
    database.add(7, at="2025-12-30 00:00:00")
    database.add(1, at="2026-01-01 00:00:00")
    database.add(2, 3, at="2026-01-02 23:30:00")
    database.add(4, at="2026-01-03 00:00:00")
    query(watermark="at")
    database.add(5, at="2026-01-02 00:00:00")
    # As the setting says: this one was open for longer.
    database.add(6, at="2025-12-31 00:00:00")

    rows, source = query(watermark="at")

    assert numbers(rows) == [7, 1, 5, 2, 3, 4]
    assert source.counts["new_rows"] == 1


def test_times_with_a_zone_and_dates_reach_back_too(query, database) -> None:
    if database.engine.dialect.name != "postgresql":
        return
    for kind in ("timestamptz", "date", "numeric(20, 6)", "text"):
        database.run("DELETE FROM tickets")
        column = f"extract(epoch FROM at)::{kind}" if "numeric" in kind else f"at::{kind}"
        source = {
            "query": f"SELECT id, question AS prompt, answer AS completion, {column} AS w FROM tickets",
            "watermark": "w",
            "overlap_rows": 2,
            "overlap_seconds": 86_400,
        }
        database.add(1, at="2026-01-01 00:00:00.25")
        database.add(3, at="2026-01-03 00:00:00.25")
        database.add(5, at="2026-01-04 00:00:00.5")
        query(**source)
        database.run("UPDATE tickets SET answer = 'changed' WHERE id = 1")
        database.add(4, at="2026-01-03 23:00:00")

        rows, _ = query(**source)

        assert sorted(numbers(rows)) == [1, 3, 4, 5], kind
        assert rows[0].messages[1]["content"] != "changed", kind


def test_equal_rows_in_another_order_make_no_other_dataset(query, database, reader) -> None:
    """Of rows of one moment a database gives now this one first and now that one."""
    first, again = (
        f"SELECT id, question AS prompt, answer AS completion, at FROM tickets ORDER BY {order}"
        for order in ("id", "id DESC")
    )
    database.add(1, 2, 3)
    digests = []
    for order in (first, again):
        database.run("DROP VIEW IF EXISTS seen")
        database.run(f"CREATE VIEW seen AS {order}")
        digests.append(query(query="SELECT * FROM seen", watermark="at")[1].digest)
    database.run("DROP VIEW seen")

    assert digests[0] == digests[1]


def test_an_overlap_that_says_nothing_is_warned_about(query, database, caplog) -> None:
    database.add(1)
    for used in ({"watermark": "at", "overlap_seconds": 60}, {"watermark": "id"}, {}):
        query(**used)
    assert "overlap" not in caplog.text
    query(watermark="id", overlap_seconds=60)
    assert "no time (1), so that dataset.sources[].overlap_seconds says nothing" in caplog.text
    query(watermark="at", overlap_rows=5)
    assert "overlap_rows says nothing" in caplog.text


def test_a_database_that_goes_away_amid_the_rows_leaves_the_earlier_ones_whole(
    query, database, reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.dataset.reading import sql_snapshot

    database.add(*range(1, 9))
    before, _ = query(watermark="id", overlap_rows=5, chunk_rows=2)
    (rows,) = (reader.folder / "cache" / "sql").glob("*/rows.jsonl")
    kept = rows.read_bytes()
    lines: list[Any] = []

    def dies(row: Any) -> bytes:
        lines.append(row)
        if len(lines) > 3:
            raise OSError("the network broke")
        return b"{}\n"

    with monkeypatch.context() as patched:
        patched.setattr(sql_snapshot, "_line", dies)
        with pytest.raises(OSError, match="broke"):
            query(watermark="id", overlap_rows=5, chunk_rows=2)

    assert rows.read_bytes() == kept
    assert not list(rows.parent.glob("fetched*"))
    assert numbers(query(watermark="id", overlap_rows=5)[0]) == numbers(before)


def test_a_kill_between_the_rows_and_their_state_is_gone_on_from(
    query, database, reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.dataset.reading import sql_snapshot

    database.add(*range(1, 9))
    query(watermark="id", overlap_rows=3)
    database.add(9, 10)

    def dies(*_: Any) -> None:
        raise KeyboardInterrupt

    for killed in ("copyfileobj", "fsync"):
        with monkeypatch.context() as patched:
            place = sql_snapshot.shutil if killed == "copyfileobj" else sql_snapshot.os
            patched.setattr(place, killed, dies)
            with pytest.raises(KeyboardInterrupt):
                query(watermark="id", overlap_rows=3)

        rows, source = query(watermark="id", overlap_rows=3)
        assert numbers(rows) == list(range(1, 11))
        database.run("UPDATE tickets SET answer = 'changed' WHERE id >= 9")
    assert source.counts["kept_rows"] == 10


def test_a_fetch_that_was_killed_leaves_no_row_twice(query, database, reader) -> None:
    database.add(1, 2, 3)
    query(watermark="id")
    (rows,) = (reader.folder / "cache" / "sql").glob("*/rows.jsonl")
    # What a process that died between the rows and their state leaves behind.
    with rows.open("a") as stream:
        stream.write('{"id": 4, "prompt": "half a')
    database.add(4)

    again, _ = query(watermark="id")

    assert numbers(again) == [1, 2, 3, 4]


@pytest.mark.parametrize("more", [{}, {"overlap_rows": 2}, {"key": "id"}])
def test_rows_stay_with_a_warning_while_a_table_is_emptied(more, query, database, caplog) -> None:
    database.add(1, 2, 3, 4)
    _, before = query(watermark="id", **more)
    database.run("DELETE FROM tickets")

    rows, emptied = query(watermark="id", **more)

    asked = more.get("overlap_rows", 4)
    assert f"{asked} rows of earlier runs were asked for again and are no longer" in caplog.text
    assert "They stay" in caplog.text
    assert "overlap_rows: 0" in caplog.text
    assert (numbers(rows), emptied.digest) == ([1, 2, 3, 4], before.digest)
    database.add(1, 2, 3, 4, 5)
    rows, loaded = query(watermark="id", **more)
    assert numbers(rows) == [1, 2, 3, 4, 5]
    assert loaded.counts["new_rows"] == 1


@pytest.mark.parametrize("watermark", ["id", "at"])
def test_rows_that_go_from_the_overlap_are_counted_and_without_one_they_stay(
    watermark, query, database, caplog
) -> None:
    database.add(1, 2, 3, 4)
    database.add(5, at="2026-01-01 12:00:00")
    setting = {"id": "overlap_rows", "at": "overlap_seconds"}[watermark]
    query(watermark=watermark)
    database.run("DELETE FROM tickets WHERE id < 3")

    assert numbers(query(watermark=watermark)[0]) == [3, 4, 5]
    assert "2 rows of earlier runs" in caplog.text
    assert "They are used no more" in caplog.text
    assert f"{setting}: 0" in caplog.text
    caplog.clear()
    for number in (6, 7):
        # As a queue is read.
        database.run("DELETE FROM tickets")
        query(watermark=watermark, **{setting: 0})
        database.add(number, at=f"2026-01-02 0{number}:00:00")
        rows, source = query(watermark=watermark, **{setting: 0})
        assert source.counts["new_rows"] == 1
    assert numbers(rows) == [3, 4, 5, 6, 7]
    assert "asked for again" not in caplog.text
    if watermark == "at":
        # Of rows of one moment nobody can tell a new one from one that was there.
        database.add(8, at="2026-01-02 07:00:00")
        query(watermark="at", overlap_seconds=0)
        database.run("DELETE FROM tickets WHERE id = 7")
        assert numbers(query(watermark="at", overlap_seconds=0)[0]) == [3, 4, 5, 6, 8]
        assert "1 rows of earlier runs" in caplog.text


def test_whole_decimals_of_a_queue_stay_as_other_numbers_do(query, database) -> None:
    number = "CAST(id AS NUMERIC)" if database.engine.dialect.name == "postgresql" else "id"
    asked = f"SELECT {number} AS n, question AS prompt, answer AS completion FROM tickets"
    source = {"query": asked, "watermark": "n", "overlap_rows": 0}
    database.add(1, 2, 3)
    query(**source)
    database.run("DELETE FROM tickets")
    database.add(4)
    rows, read = query(**source)
    assert numbers(rows) == [1, 2, 3, 4]
    assert read.counts["new_rows"] == 1


def test_equal_numbers_that_are_written_otherwise_are_one_value(query, database) -> None:
    if database.engine.dialect.name != "postgresql":
        return
    database.run("DROP TABLE IF EXISTS priced")
    database.run("CREATE TABLE priced (w NUMERIC, prompt TEXT, completion TEXT)")
    for value in ("0.5", "1.5", "1.50", "'NaN'", "'NaN'"):
        database.run(f"INSERT INTO priced VALUES ({value}, 'Question 1', 'b')")
        source = {"query": "SELECT * FROM priced", "watermark": "w", "overlap_rows": 1}
        query(**source)
    database.run("DELETE FROM priced WHERE w = 'NaN'")
    source["query"] += " -- once more"
    assert [len(query(**source)[0]) for _ in range(3)] == [3, 3, 3]


@pytest.mark.parametrize("broken", ["cut", "short", "gone", "zeros", "state"])
def test_rows_that_are_not_what_their_state_says_are_fetched_anew(
    broken: str, query, database, reader, caplog
) -> None:
    database.add(1, 2, 3)
    query(watermark="id")
    (rows,) = (reader.folder / "cache" / "sql").glob("*/rows.jsonl")
    if broken == "cut":
        rows.write_bytes(rows.read_bytes()[:-9] + b"x" * 20)
    elif broken == "short":
        rows.write_bytes(rows.read_bytes()[:-9])
    elif broken == "gone":
        rows.unlink()
    elif broken == "zeros":
        rows.write_bytes(bytes(rows.stat().st_size))
    else:
        rows.with_name("state.json").write_text("{")
    database.add(4)

    again, source = query(watermark="id")

    assert numbers(again) == [1, 2, 3, 4]
    assert source.counts["new_rows"] == 4
    assert "does not hold the rows that state.json tells of" in caplog.text
    assert query(watermark="id")[1].counts["new_rows"] == 0


@pytest.mark.parametrize("left", ["a longer line", "half a line"])
def test_a_killed_fetch_that_wrote_in_place_costs_only_what_it_overwrote(
    left: str, query, database, reader, caplog
) -> None:
    database.add(1, 2, 3)
    query(watermark="id")
    (rows,) = (reader.folder / "cache" / "sql").glob("*/rows.jsonl")
    *whole, last = rows.read_bytes().splitlines(keepends=True)
    path = rows.with_name("state.json")
    before = len(b"".join(whole))
    tie = {"tie_start": before, "tie_rows": 1, "rows_before_tie": 2}
    path.write_text(json.dumps({**json.loads(path.read_text()), **tie}))
    cut = last[:10] if left == "half a line" else last.replace(b"Answer", b"Answers to it")
    rows.write_bytes(b"".join((*whole, cut)))
    # Nobody can fetch it again.
    database.run("DELETE FROM tickets WHERE id = 1")
    database.add(4)

    again, source = query(watermark="id", overlap_rows=1)

    assert numbers(again) == [1, 2, 3, 4]
    assert source.counts["new_rows"] == 2
    assert "state.json" not in caplog.text


def test_newer_rows_of_another_run_are_not_passed_off_as_ours(query, database, reader) -> None:
    database.add(1, 2)
    (ours,) = reader.opened({**SOURCE, "watermark": "id"})
    database.add(3)
    query(watermark="id")

    with pytest.raises(DataError, match="another run fetched newer rows meanwhile"):
        list(ours.rows(BadRows()))


def test_of_a_row_that_changes_the_newest_is_used_where_the_source_names_a_key(
    query, database
) -> None:
    database.add(1, 2, at="2026-01-01 00:00:00")
    database.add(3, at="2026-01-01 12:00:00")
    _, before = query(watermark="at", key="id", overlap_seconds=0)
    database.run("UPDATE tickets SET answer = 'corrected', at = '2026-01-02 00:00:00' WHERE id = 1")
    database.add(4, at="2026-01-02 00:00:00")

    again, after = query(watermark="at", key="id", overlap_seconds=0)
    database.run("UPDATE tickets SET answer = 'again', at = '2026-01-02 00:00:00' WHERE id = 4")
    last, _ = query(watermark="at", key="id", overlap_seconds=0)

    assert sorted(numbers(again)) == [1, 2, 3, 4]
    answers = {n: row.messages[1]["content"] for n, row in zip(numbers(again), again, strict=True)}
    assert answers[1] == "corrected"
    assert answers[2].startswith("Answer 2")
    assert [row.messages[1]["content"] for row in last if row.source].count("again") == 1
    assert sorted(numbers(last)) == [1, 2, 3, 4]
    assert after.counts["replaced_rows"] == 1
    assert before.counts["replaced_rows"] == 0
    assert before.digest != after.digest


def test_without_a_key_a_changed_row_stands_beside_its_old_self(query, database) -> None:
    """As the setting says: no column tells which row it was."""
    database.add(1)
    database.add(2, at="2026-01-01 12:00:00")
    query(watermark="at", overlap_seconds=0)
    database.run("UPDATE tickets SET answer = 'corrected', at = '2026-01-02 00:00:00' WHERE id = 1")

    rows, _ = query(watermark="at", overlap_seconds=0)

    assert sorted(numbers(rows)) == [1, 1, 2]


def test_an_unchanged_table_with_a_key_gives_the_same_digest(query, database) -> None:
    database.add(*range(1, 8))

    assert len({query(watermark="at", key="id")[1].digest for _ in range(3)}) == 1


@pytest.mark.parametrize(
    ("key", "words"), [("absent", "no column 'absent', which dataset"), ("customer", "is null in")]
)
def test_a_row_without_its_key_is_refused(key: str, words: str, query, database) -> None:
    database.add(4)

    with pytest.raises(DataError, match=words):
        query(watermark="id", key=key)


def test_a_key_needs_a_watermark(query, database) -> None:
    with pytest.raises(ValueError, match="`key` needs a `watermark`"):
        query(key="id")


@pytest.mark.parametrize(
    "end", [" -- all; of them", "; -- all", ";\n/* all */ ;", " /* all */", "\n-- all\n"]
)
@pytest.mark.parametrize("more", [{}, {"watermark": "id"}])
def test_a_comment_may_end_a_query(end: str, more, query, database) -> None:
    database.add(1, 2)
    select = "SELECT id, question AS prompt, ';--' AS completion FROM tickets ORDER BY id"

    for _ in range(2):
        rows, _ = query(query=f"-- tickets\n{select}{end}", **more)
        assert numbers(rows) == [1, 2]
        assert rows[0].messages[1]["content"] == ";--"


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE tickets",
        "-- SELECT\nDELETE FROM tickets",
        "UPDATE tickets SET answer = 'x'",
        "INSERT INTO tickets SELECT * FROM tickets",
        "PRAGMA user_version = 1",
        ";",
    ],
)
def test_what_is_no_query_is_refused_before_it_is_sent(statement: str, query, database) -> None:
    database.add(1)

    with pytest.raises(ValueError, match="begin the query with SELECT, WITH or VALUES"):
        query(query=statement)


@pytest.mark.parametrize(
    "statement",
    [
        "WITH a AS (SELECT 1) DELETE FROM tickets",
        "WITH a AS (DELETE FROM tickets RETURNING *) SELECT * FROM a",
        "SELECT 1 AS id; DELETE FROM tickets",
    ],
)
def test_a_query_that_writes_all_the_same_is_refused_by_the_database(
    statement: str, query, database
) -> None:
    database.add(1)

    with pytest.raises(DataError, match="answers: "):
        query(query=statement)

    assert len(query()[0]) == 1


def test_a_select_that_writes_is_refused_by_postgresql(query, database) -> None:
    """A sequence is not rolled back: only a transaction that may not write protects it."""
    if database.engine.dialect.name != "postgresql":
        return
    database.run("DROP SEQUENCE IF EXISTS numbers")
    database.run("CREATE SEQUENCE numbers")

    with pytest.raises(DataError, match="read-only transaction"):
        query(query="SELECT nextval('numbers') AS id ORDER BY 1")


def test_a_null_watermark_is_refused_for_it_would_be_lost(query, database) -> None:
    database.add(1, 2)
    database.run("UPDATE tickets SET customer = NULL")

    with pytest.raises(DataError, match="watermark 'customer' is null in a row"):
        query(watermark="customer")


def test_a_later_null_watermark_is_refused_too(query, database) -> None:
    database.add(1, 2)
    query(watermark="customer")
    database.add(8)

    with pytest.raises(DataError, match="watermark 'customer' is null in a row"):
        query(watermark="customer")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"query": "SELECT nothing FROM tickets"}, "source tickets: the database .* answers: "),
        ({"query": "SELECT id FROM"}, "answers: "),
        ({"watermark": "absent"}, "absent"),
        ({"query": "SELECT id, id FROM tickets"}, "names a column twice"),
    ],
)
def test_a_wrong_query_is_answered_in_the_database_words(more, words, query, database) -> None:
    database.add(1)

    with pytest.raises(DataError, match=f"(?i){words}") as caught:
        query(**more)

    assert "geheim" not in str(caught.value)


def test_a_query_without_an_order_is_warned_about(query, database, caplog) -> None:
    database.add(1)
    with caplog.at_level(logging.WARNING):
        query()
        assert "ORDER BY" not in caplog.text
        query(query=SOURCE["query"].replace("ORDER BY id", ""))
    assert "has no ORDER BY" in caplog.text


def test_columns_that_hold_json_become_messages(query, database) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    database.add(1)
    with database.engine.begin() as connection:
        connection.execute(
            sqlalchemy.text("UPDATE tickets SET question = :m"), {"m": json.dumps(messages)}
        )
    cast = "::jsonb" if database.engine.dialect.name == "postgresql" else ""

    rows, _ = query(query=f"SELECT question{cast} AS messages FROM tickets ORDER BY id")

    assert list(rows[0].messages) == messages


def test_an_sqlite_file_is_named_relative_to_the_recipe(reader, tmp_path: Path) -> None:
    database = Database(sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'a.db'}"))
    database.run("CREATE TABLE t (prompt TEXT, completion TEXT)")
    database.run("INSERT INTO t VALUES ('a', 'b')")
    database.engine.dispose()
    source = {"type": "sql", "query": "SELECT * FROM t ORDER BY 1"}

    (opened,) = reader.opened({**source, "database": "a.db"})

    assert len(list(opened.rows(BadRows()))) == 1
    assert str(tmp_path) not in json.dumps([opened.identity, opened.counts])
    with pytest.raises(DataError, match=r"database b\.db \(.*/b\.db\) does not exist"):
        reader.opened({**source, "database": "b.db"})
    assert not (tmp_path / "b.db").exists()


def test_a_missing_or_wrong_url_is_named_without_its_password(
    reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(DataError, match=f"environment variable {VARIABLE} is not set"):
        reader.opened(SOURCE)
    for url, words in (
        ("geheim", "holds no SQLAlchemy URL"),
        ("nodriver://u:geheim@h/d", "no driver for nodriver|answers"),
        ("postgresql+psycopg://u:geheim@127.0.0.1:9/d?connect_timeout=2", "answers: "),
    ):
        monkeypatch.setenv(VARIABLE, url)
        with pytest.raises(LoralineError, match=words) as caught:
            reader.opened(SOURCE)
        assert "geheim" not in str(caught.value)


@pytest.mark.parametrize("place", [{}, {"url_variable": "A", "database": "b.db"}])
def test_a_query_has_one_database(place) -> None:
    with pytest.raises(ValueError, match="either `url_variable` or `database`"):
        SqlSource.model_validate({"type": "sql", "query": "SELECT 1", **place})

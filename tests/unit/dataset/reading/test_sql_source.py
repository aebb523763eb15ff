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


@pytest.mark.parametrize("watermark", ["id", "at"])
def test_only_rows_since_the_last_run_are_asked_for(
    watermark, query, database, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.add(1, 2, 3, at="2026-01-01 00:00:00")
    database.add(4, at="2026-01-02 00:00:00")
    first, before = query(watermark=watermark)
    database.add(5, 6, at="2026-01-03 00:00:00")
    # Had the old rows been asked for again, this would show.
    database.run("UPDATE tickets SET answer = 'changed' WHERE id <= 2")

    again, after = query(watermark=watermark)

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
    query(watermark="at")
    database.add(3, at="2026-01-02 00:00:00")

    rows, source = query(watermark="at")

    assert sorted(numbers(rows)) == [1, 2, 3]
    assert (source.counts["new_rows"], source.counts["kept_rows"]) == (1, 2)


def test_an_unchanged_table_gives_the_same_digest(query, database) -> None:
    database.add(*range(1, 8))

    digests = {query(watermark="id")[1].digest for _ in range(3)}

    assert len(digests) == 1
    assert {query()[1].digest for _ in range(2)} == digests


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
    _, before = query(watermark="at", key="id")
    database.run("UPDATE tickets SET answer = 'corrected', at = '2026-01-02 00:00:00' WHERE id = 1")
    database.add(4, at="2026-01-02 00:00:00")

    again, after = query(watermark="at", key="id")
    database.run("UPDATE tickets SET answer = 'again', at = '2026-01-02 00:00:00' WHERE id = 4")
    last, _ = query(watermark="at", key="id")

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
    query(watermark="at")
    database.run("UPDATE tickets SET answer = 'corrected', at = '2026-01-02 00:00:00' WHERE id = 1")

    rows, _ = query(watermark="at")

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

"""A source may be a file, a folder or a pattern; what it is called and hashed to holds no folder."""

import json
import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from tasks.dataset.reading.bad_rows import BadRows
from tasks.dataset.source_settings import FilesSource
from tasks.dataset.summary import source_notes
from tasks.errors import DataError
from tasks.files import file_sha256


def lines(*prompts: str) -> str:
    return "".join(json.dumps({"prompt": p, "completion": "b"}) + "\n" for p in prompts)


@pytest.fixture
def folder(write, tmp_path: Path) -> Path:
    write("chats/b.jsonl", lines("3"))
    write("chats/a.csv", "prompt,completion\n1,b\n2,b\n")
    write("chats/2026/c.jsonl", lines("0"))
    write("chats/README.md", "About these chats.")
    write("chats/_SUCCESS", "")
    write("chats/.hidden.jsonl", "no rows of ours\n")
    write("chats/.cache/d.jsonl", "no rows of ours\n")
    return tmp_path / "chats"


def test_a_folder_gives_its_files_in_the_order_of_their_names(reader, folder) -> None:
    found = reader(path="chats")

    assert [row.messages[0]["content"] for row in found.rows] == ["0", "1", "2", "3"]
    assert [row.source for row in found.rows] == [
        "2026/c.jsonl:1",
        "a.csv:2",
        "a.csv:3",
        "b.jsonl:1",
    ]
    counts = found.source.counts
    assert (counts["files"], counts["file_kinds"]) == (3, {"csv": 1, "jsonl": 2})
    # Hidden ones are named where they look like rows, and marks such as _SUCCESS are not.
    assert counts["passed_over"] == [".cache/d.jsonl", ".hidden.jsonl", "README.md"]


def test_what_a_folder_holds_and_nobody_reads_is_told(reader, folder) -> None:
    (folder / "gone.jsonl").symlink_to(folder / "nowhere.jsonl")
    (folder / "notes.txt").write_text("Of no use.")

    source = reader(path="chats").source

    assert source.counts["broken_links"] == ["gone.jsonl"]
    told = source_notes({"name": source.name, **source.counts})
    assert "4 files passed over: .cache/d.jsonl, .hidden.jsonl, README.md, notes.txt" in told
    assert "1 broken link: gone.jsonl" in told


def test_of_many_files_that_are_passed_over_the_first_are_named(reader, folder) -> None:
    for i in range(9):
        (folder / f"{i}.txt").write_text("Of no use.")

    told = source_notes(reader(path="chats").source.counts)

    assert (
        "12 files passed over: .cache/d.jsonl, .hidden.jsonl, 0.txt, 1.txt, 2.txt and 7 more"
        in told
    )


@pytest.mark.parametrize("path", ["chats", "chats/**/*.jsonl"])
def test_a_linked_folder_which_nobody_searches_is_told(path, reader, folder, write) -> None:
    write("elsewhere/e.jsonl", lines("9"))
    (folder / "more").symlink_to(folder.parent / "elsewhere")
    write("chats/_b.jsonl", lines("8"))

    found = reader(path=path)

    assert "9" not in [row.messages[0]["content"] for row in found.rows]
    assert {"more/ (a linked folder)", "_b.jsonl"} <= set(found.source.counts["passed_over"])


def test_a_folder_of_broken_links_says_so(reader, tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "rows.jsonl").symlink_to(tmp_path / "nowhere.jsonl")

    with pytest.raises(DataError, match=r"rows\.jsonl: the link leads nowhere"):
        reader(path="links")


@pytest.mark.parametrize(
    ("path", "prompts"),
    [
        ("chats/*.jsonl", ["3"]),
        ("chats/**/*.jsonl", ["0", "3"]),
        ("chats/[ab].*", ["1", "2", "3"]),
        ("*/2026/*.jsonl", ["0"]),
        ("file://{folder}/b.jsonl", ["3"]),
    ],
)
def test_a_pattern_gives_the_files_that_fit(path, prompts, reader, folder) -> None:
    found = reader(path=path.format(folder=folder))

    assert [row.messages[0]["content"] for row in found.rows] == prompts


def test_a_file_whose_name_looks_like_a_pattern_is_found(reader, write) -> None:
    write("rows[1].jsonl", lines("a"))

    assert len(reader(path="rows[1].jsonl").rows) == 1


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("absent", r"path absent \(.*/absent\): No such file"),
        ("~no-such-user/a", r"path ~no-such-user/a \(.*\): No such file"),
        ("chats/*.parquet", r"path chats/\*\.parquet .* holds no file of rows"),
        ("docs", r"holds no file of rows\. There are a\.md, which is not read"),
    ],
)
def test_a_place_without_files_is_refused(path, words, reader, write, folder) -> None:
    write("docs/a.md", "text")

    with pytest.raises(DataError, match=words):
        reader.opened({"type": "files", "path": path})


def test_an_empty_file_among_others_is_no_mistake_but_nothing_at_all_is(reader, write) -> None:
    write("chats/a.jsonl", "")
    write("chats/b.jsonl", lines("1"))
    write("none/a.jsonl", "")
    write("none/b.jsonl", "\n")

    assert len(reader(path="chats").rows) == 1
    with pytest.raises(
        DataError, match=r"none/a\.jsonl and 1 more files: the source holds no rows"
    ):
        reader(path="none")


def test_the_digest_follows_names_and_contents_and_not_the_place(reader, folder, write) -> None:
    def digest() -> str:
        (source,) = reader.opened({"type": "files", "path": "chats"})
        assert str(folder) not in json.dumps([source.identity, source.name])
        return source.digest

    first = digest()
    assert digest() == first
    write("chats/README.md", "Other words.")
    assert digest() == first
    (folder / "b.jsonl").rename(folder / "z.jsonl")
    renamed = digest()
    assert renamed != first
    write("chats/z.jsonl", lines("4"))
    assert digest() not in (first, renamed)


def test_settings_that_decide_no_row_are_no_part_of_the_identity(reader, write) -> None:
    write("rows.jsonl", lines("a"))
    write("other/rows.jsonl", lines("a"))

    sources = reader.opened(
        {"type": "files", "path": "rows.jsonl"},
        {"type": "files", "path": "other/rows.jsonl", "storage_options": {"anon": True}},
        {"type": "files", "path": "rows.jsonl", "group": "prompt"},
    )

    identities = [source.identity for source in sources]
    assert identities[0] == identities[1] != identities[2]
    assert [source.name for source in sources] == ["rows.jsonl"] * 3
    assert sources[0].digest == sources[1].digest


def test_a_file_that_changes_while_it_is_read_is_refused(reader, write, tmp_path) -> None:
    path = write("rows.jsonl", lines("a", "b"))
    (source,) = reader.opened({"type": "files", "path": "rows.jsonl"})
    rows = source.rows(BadRows())
    next(rows)
    with path.open("a") as stream:
        stream.write(lines("c"))

    with pytest.raises(DataError, match=r"rows\.jsonl changed while it was read"):
        list(rows)


def test_a_file_that_changes_between_its_hash_and_its_reading_is_refused(reader, write) -> None:
    """As many bytes, and the same time of change: what an export that restores times looks like."""
    path = write("rows.jsonl", lines("a"))
    before = path.stat()
    (source,) = reader.opened({"type": "files", "path": "rows.jsonl"})
    path.write_text(lines("z"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    with pytest.raises(DataError, match=r"rows\.jsonl changed while it was read"):
        list(source.rows(BadRows()))


def test_python_code_that_changes_before_it_is_read_is_refused(reader, write) -> None:
    code = 'def greet():\n    """Say hello to {} who comes in."""\n    return 1\n'
    write("src/a.py", code.format("everybody"))
    (source,) = reader.opened({"type": "python_source", "path": "src"})
    write("src/a.py", code.format("somebody"))

    with pytest.raises(DataError, match="Python files of src changed"):
        list(source.rows(BadRows()))


@pytest.mark.parametrize(
    "options",
    [
        {"key": "AKIA"},
        {"secret": "s"},
        {"aws_secret_access_key": "s"},
        {"client_kwargs": {"aws_session_token": "s"}},
        {"connection": {"account_key": "s"}},
        {"password": "s"},
    ],
)
def test_credentials_in_a_recipe_are_refused_without_repeating_them(options) -> None:
    value = {"type": "files", "path": "s3://bucket/rows.jsonl", "storage_options": options}

    with pytest.raises(ValidationError, match="come from the environment"):
        FilesSource.model_validate(value)


@pytest.mark.parametrize(
    "path",
    [
        "https://user:geheim@example.org/rows.jsonl",
        "https://bucket.example.org/rows.jsonl?X-Amz-Signature=geheim",
        "https://account.example.org/rows.jsonl?sig=geheim",
    ],
)
def test_credentials_in_a_url_are_refused(path) -> None:
    with pytest.raises(ValidationError, match="holds a password or a signature"):
        FilesSource.model_validate({"type": "files", "path": path})


def test_options_that_are_no_secret_are_taken() -> None:
    options = {"endpoint_url": "http://127.0.0.1:9000", "client_kwargs": {"region_name": "eu"}}
    value = {"type": "files", "path": "s3://bucket/rows.jsonl", "storage_options": options}

    assert FilesSource.model_validate(value).storage_options == options


def test_a_file_is_hashed_again_only_when_it_was_written_again(
    reader, write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unchanged gigabyte costs nothing. The same size and a mtime that was set back hide no change."""
    file = tmp_path / "rows.jsonl"
    write("rows.jsonl", lines("1"))
    os.utime(file, (1_000_000_000, 1_000_000_000))
    first = reader(path="rows.jsonl").source.digest
    hashed = []

    def count(path: Path) -> str:
        hashed.append(path.name)
        return file_sha256(path)

    monkeypatch.setattr("tasks.hash_memory.file_sha256", count)
    assert reader(path="rows.jsonl").source.digest == first
    assert hashed == []

    write("rows.jsonl", lines("2"))
    os.utime(file, (1_000_000_000, 1_000_000_000))
    assert reader(path="rows.jsonl").source.digest != first
    assert hashed == ["rows.jsonl"]

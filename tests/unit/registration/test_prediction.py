"""`loraline predict` and `loraline versions` on a registered version."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from flows.commands import predict, versions
from tasks.artifacts import Version
from tasks.errors import DataError, UserError
from tasks.registration.prediction import model_uri, read_rows

pytestmark = pytest.mark.long


def parsed(command: Any, *arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(list(arguments))


@pytest.fixture
def in_project(trained: Any, registered: Version, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory and state folder of a person who ran the recipe."""
    monkeypatch.chdir(trained.project)
    monkeypatch.setenv("LORALINE_HOME", str(trained.home.root))
    return Path(trained.project)


@pytest.mark.parametrize(
    ("text", "uri"),
    [
        ("tiny", "models:/tiny@champion"),
        ("models:/tiny@challenger", "models:/tiny@challenger"),
        ("models:/tiny/3", "models:/tiny/3"),
    ],
)
def test_a_model_is_named_by_name_alias_or_version(text: str, uri: str) -> None:
    assert model_uri(text) == uri


@pytest.mark.parametrize(
    "text", ["", "tiny/3", "tiny@champion", "models:/tiny", "s3://b/x", "models:/"]
)
def test_another_spelling_of_a_model_is_refused_with_the_right_ones(text: str) -> None:
    with pytest.raises(UserError, match="models:/NAME/VERSION"):
        model_uri(text)


def test_every_bad_row_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(
        b'{"prompt": "fine"}\n'
        b"\n"
        b'{"prompt": "not closed\n'
        b"[1]\n"
        b'{"text": "?"}\n'
        b'{"prompt": " "}\n'
        b'{"messages": [{"role": "user"}]}\n'
        b'{"messages": [{"role": "assistant", "content": "x"}]}\n'
        b'{"prompt": "a", "max_tokens": "many"}\n'
        b'{"prompt": "\xff"}\n'
    )
    with pytest.raises(DataError) as caught:
        read_rows(path)
    lines = str(caught.value).splitlines()
    assert [int(line.split(":")[1]) for line in lines] == [3, 4, 5, 6, 7, 8, 9, 10]
    assert "needs either `prompt` or `messages`; it has text" in lines[2]
    assert "not UTF-8" in lines[-1]


def test_rows_may_end_without_a_newline_and_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n{"prompt": "b"}')
    assert [row.values["prompt"] for row in read_rows(path)] == ["a", "b"]
    path.write_bytes(b"\n")
    with pytest.raises(DataError, match="has no rows"):
        read_rows(path)


def test_a_prompt_is_answered_on_standard_output(
    in_project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    args = parsed(predict, "models:/tiny@challenger", "--prompt", "Who is it?", "--max-tokens", "4")
    assert predict.run(args) == 0
    out, err = capfd.readouterr()
    assert out.strip()
    assert "cut at the longest answer" in err


def test_a_file_of_rows_is_answered_row_by_row(in_project: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows = [
        {"prompt": "first", "id": 7, "max_tokens": 3},
        {"messages": [{"role": "user", "content": "second"}], "note": "ü"},
    ]
    source.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    args = parsed(predict, "models:/tiny/1", "--input", str(source), "--output", str(target))
    assert predict.run(args) == 0
    written = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
    assert [
        {k: row[k] for k in original} for row, original in zip(written, rows, strict=True)
    ] == rows
    assert all(row["finish_reason"] in ("stop", "length") for row in written)
    assert all(isinstance(row["answer"], str) for row in written)
    assert sorted(p.name for p in tmp_path.glob("*.jsonl*")) == ["out.jsonl", "rows.jsonl"]


def test_a_row_that_the_model_cannot_take_is_named_and_nothing_is_written(
    in_project: Path, trained: Any, tmp_path: Path
) -> None:
    source, target = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"prompt": "a"}\n{"prompt": "x <|end|> y"}\n')
    args = parsed(predict, "models:/tiny/1", "--input", str(source), "--output", str(target))
    with pytest.raises(UserError, match=r"rows\.jsonl:2: .*control token"):
        predict.run(args)
    assert not target.exists()
    # Nobody's rows stay behind.
    assert not list(trained.home.work.glob("predict-*"))


def test_a_wrong_base_and_a_missing_version_are_the_user_s_mistakes(
    in_project: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        UserError, match=r"was not found.*holds no config\.json|holds no config\.json"
    ):
        predict.run(
            parsed(predict, "models:/tiny/1", "--prompt", "a", "--base", str(tmp_path / "empty"))
        )
    with pytest.raises(UserError, match="There are: tiny"):
        predict.run(parsed(predict, "tiny-typo", "--prompt", "a"))
    with pytest.raises(UserError, match=r"no alias 'champion'.* 1 \(challenger\)"):
        predict.run(parsed(predict, "tiny", "--prompt", "a"))
    with pytest.raises(UserError, match="no version 9"):
        predict.run(parsed(predict, "models:/tiny/9", "--prompt", "a"))


def test_input_and_output_belong_together(in_project: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="belong together"):
        predict.run(parsed(predict, "tiny", "--input", str(tmp_path / "a.jsonl")))
    with pytest.raises(UserError, match="there is no folder"):
        predict.run(
            parsed(
                predict, "tiny", "--input", "a.jsonl", "--output", str(tmp_path / "no" / "b.jsonl")
            )
        )


def test_versions_are_listed_as_a_table_and_as_one_object(
    in_project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert versions.run(parsed(versions, "tiny")) == 0
    table = capfd.readouterr().out
    assert "challenger" in table
    assert "0.400 (0.100)" in table
    assert "aaaaaaaa" in table
    assert versions.run(parsed(versions, "--json")) == 0
    listed = json.loads(capfd.readouterr().out)["versions"]
    assert [(entry["name"], entry["version"], entry["gate"]) for entry in listed] == [
        ("tiny", "1", "passed")
    ]
    assert listed[0]["metrics"]["rougeL"] == 0.4
    with pytest.raises(UserError, match="There are: tiny"):
        versions.run(parsed(versions, "tinny"))

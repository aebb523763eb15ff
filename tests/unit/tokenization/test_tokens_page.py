"""`tokens.html` shows what is trained, and holds nothing that should not be published."""

import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tasks.tokenization.longest import longest_rows

ADDRESS = "erika.mustermann@firma-beispiel.de"


def rows(count: int) -> list[dict[str, Any]]:
    return [
        {
            "id": f"{k:03}",
            "group": "g",
            "messages": [
                {"role": "user", "content": f"<b>Who?</b> Ask {ADDRESS}." + " why" * (k % 17)},
                {"role": "assistant", "content": "Yes.\n  & no." if k else f"Not {ADDRESS}."},
            ],
            "source": f"s:{k}",
            "label": None,
        }
        for k in range(count)
    ]


@pytest.fixture
def tokens(make_base: Any, tokenize: Any) -> Path:
    return Path(tokenize(make_base(), rows(60)).path)


def test_trained_text_stands_on_a_ground_of_its_own_and_special_tokens_are_seen(
    tokens: Path,
) -> None:
    html = (tokens / "tokens.html").read_text(encoding="utf-8")

    assert '<span class="trained">Yes.\n  &amp; no.</span>' in html
    assert '<span class="special trained">&lt;|end|&gt;</span>' in html
    assert '<span class="special">&lt;|user|&gt;</span>&lt;b&gt;Who?&lt;/b&gt;' in html
    assert "<script" not in html
    assert not re.search(r"(?:src|href)=", html)


def test_the_ten_longest_rows_are_on_the_page_the_longest_first(tokens: Path) -> None:
    html = (tokens / "tokens.html").read_text(encoding="utf-8")

    longest = html.split("<h2>The longest train rows</h2>")[1]
    shown = [int(n.replace(",", "")) for n in re.findall(r"<p>([\d,]+) tokens", longest)]
    table = pq.read_table(tokens / "train.parquet", columns=["input_ids"]).to_pylist()
    assert shown == sorted((len(row["input_ids"]) for row in table), reverse=True)[:10]


def test_the_longest_rows_are_found_in_whichever_group_of_the_file_they_are(
    tokens: Path, tmp_path: Path
) -> None:
    table = pq.read_table(tokens / "train.parquet")
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=7)
    lengths = [len(ids) for ids in table["input_ids"].to_pylist()]

    found = longest_rows(tmp_path / "rows.parquet", lengths, 25)

    assert [len(row.input_ids) for row in found] == sorted(lengths, reverse=True)[:25]
    by_id = {row["id"]: row for row in table.to_pylist()}
    assert all(row.input_ids == by_id[row.id]["input_ids"] for row in found)
    assert all(row.labels == by_id[row.id]["labels"] for row in found)


def test_what_is_published_masks_personal_data_and_the_tokens_keep_it(tokens: Path) -> None:
    for name in ("tokens.html", "summary.md", "card.json"):
        assert ADDRESS not in (tokens / name).read_text(encoding="utf-8")
    assert "[EMAIL]" in (tokens / "tokens.html").read_text(encoding="utf-8")
    references = pq.read_table(tokens / "train.parquet", columns=["reference"]).to_pylist()
    assert any(ADDRESS in row["reference"] for row in references)


def test_a_text_of_any_length_leaves_a_small_page(make_base: Any, tokenize: Any) -> None:
    given = rows(3)
    given[1]["messages"][0]["content"] = "word " * 20_000 + "the end"
    tokens = tokenize(make_base(context=200_000), given, max_length=200_000)

    html = (tokens.path / "tokens.html").read_text(encoding="utf-8")

    assert len(html) < 60_000
    assert "characters are not shown]" in html
    assert "the end" in html
    assert json.loads((tokens.path / "card.json").read_text())["length"]["train"]["max"] > 20_000

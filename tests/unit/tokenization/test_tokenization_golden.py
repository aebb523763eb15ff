"""The token rows are part of the fingerprint's promise: they change only with OUTPUT_VERSION."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tasks.artifacts import Dataset
from tasks.store import Store
from tasks.tokenization.settings import TokenizationSettings
from tasks.tokenization.work import OUTPUT_VERSION, tokenize_dataset

EXPECTED_VERSION = 3
EXPECTED_SHA256 = {
    "card.json": "399e43f7f87a92bd5e26ff3c4f7a36737a84283581296888dae7b5b66b967fcb",
    "summary.md": "3485a823f8a258e3b782779b633b6f22db9735835fb721281ba8a25fcbe9fc81",
    "tokens.html": "8ade739ac47eb4b1fe74d3c603cce47ba3682bdc84c35393f87e71cec9d7f04a",
    "train": "63239f5729c8a8f0b47024af8fa1a919f410bbf83ae9ba7a7aa96738b290c99c",
    "test": "cacece7481bef0d04098d3d83f0253f5317b99bee870d02b3f9bcfe71af737a9",
}


def test_the_same_rows_give_the_same_tokens_until_the_output_version_is_raised(
    tmp_path: Path, make_base: Any
) -> None:
    for side, answers in {
        "train": ["Das Ende\n  ist nah.", "x" * 200, "🙂"],
        "test": ["Ω"],
    }.items():
        rows = [
            {
                "id": f"{side}-{i}",
                "group": "g",
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": f"the question {i}"},
                    {"role": "assistant", "content": answer},
                ],
                "source": f"rows.jsonl:{i}",
                "label": None if i else "a label",
            }
            for i, answer in enumerate(answers)
        ]
        (tmp_path / f"{side}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = Dataset(
        path=tmp_path,
        fingerprint="f",
        reused=False,
        seconds=0,
        digest="d",
        rows={"train": 3, "test": 1},
    )

    tokens = tokenize_dataset(
        Store(tmp_path / "store"),
        TokenizationSettings(max_length=150, long_rows="drop"),
        dataset=dataset,
        base=make_base(),
    )

    actual = {}
    encoder = json.loads((tokens.path / "card.json").read_text())["encoder"]
    for name in ("card.json", "summary.md", "tokens.html"):
        # Which encoder was used depends on the machine, what it gives does not.
        text = (tokens.path / name).read_text(encoding="utf-8").replace(encoder, "encoder")
        actual[name] = hashlib.sha256(text.encode()).hexdigest()
    for side in ("train", "test"):
        # Not the file's bytes: they hold the version of the library that wrote it.
        table = pq.read_table(tokens.path / f"{side}.parquet").to_pylist()
        actual[side] = hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()
    assert (OUTPUT_VERSION, actual) == (EXPECTED_VERSION, EXPECTED_SHA256), (
        "The tokenization's output has other values. If that is meant, raise OUTPUT_VERSION in "
        "tasks/tokenization/work.py, so that no stored output of the old kind is reused, and copy "
        "the new values to this test."
    )

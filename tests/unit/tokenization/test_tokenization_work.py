import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tasks.artifacts import Dataset, Tokens
from tasks.base import Base
from tasks.errors import DataError
from tasks.store import Store
from tasks.tokenization.preview import preview
from tasks.tokenization.settings import TokenizationSettings
from tasks.tokenization.spans import UNTRAINED
from tasks.tokenization.work import fingerprint_of, tokenize_dataset

Row = dict[str, Any]


def row(i: int, answer: str = "It is known.", question: str = "What?", **more: Any) -> Row:
    messages = [
        {"role": "user", "content": f"{question} {i}"},
        {"role": "assistant", "content": answer},
    ]
    return {
        "id": f"{i:016x}",
        "group": f"g{i}",
        "messages": messages,
        "source": f"rows.jsonl:{i}",
        "label": None,
        **more,
    }


def dataset(folder: Path, train: list[Row], test: list[Row] | None = None) -> Dataset:
    path = folder / "dataset"
    path.mkdir(exist_ok=True)
    sides = {"train": train, "test": test if test is not None else [row(7), row(8)]}
    for side, rows in sides.items():
        text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
        (path / f"{side}.jsonl").write_text(text, encoding="utf-8")
    return Dataset(
        path=path,
        fingerprint="f" * 64,
        reused=False,
        seconds=0,
        digest="d" * 64,
        rows={side: len(rows) for side, rows in sides.items()},
    )


def tokenize(folder: Path, base: Base, train: list[Row], **settings: Any) -> Tokens:
    return tokenize_dataset(
        Store(folder / "store"),
        TokenizationSettings(**settings),
        dataset=dataset(folder, train),
        base=base,
    )


def card(tokens: Tokens) -> dict[str, Any]:
    value = json.loads((tokens.path / "card.json").read_text(encoding="utf-8"))
    assert isinstance(value, dict)
    return value


@pytest.fixture
def base(make_base: Any) -> Base:
    value = make_base()
    assert isinstance(value, Base)
    return value


def test_the_output_holds_ids_labels_prompts_and_references(tmp_path: Path, base: Base) -> None:
    rows = [row(i, label="what is it") for i in range(3)]
    tokens = tokenize(tmp_path, base, rows)

    table = pq.read_table(tokens.path / "train.parquet")

    assert [f"{field.name}: {field.type}" for field in table.schema] == [
        "id: string",
        "input_ids: list<element: int32>",
        "labels: list<element: int32>",
        "prompt_length: int32",
        "reference: string",
        "prompt: string",
        "label: string",
    ]
    for written, read in zip(rows, table.to_pylist(), strict=True):
        assert read["id"] == written["id"]
        assert read["reference"] == "It is known."
        assert read["prompt"] == f"<|user|>\nWhat? {int(written['id'], 16)}<|end|>\n<|assistant|>\n"
        assert read["label"] == "what is it"
        length = read["prompt_length"]
        assert set(read["labels"][:length]) == {UNTRAINED}
        assert read["labels"][length] == read["input_ids"][length]
    assert tokens.rows == {"train": 3, "test": 2}
    assert tokens.tokens["train"] == sum(len(r["input_ids"]) for r in table.to_pylist())
    trained = (label != UNTRAINED for r in table.to_pylist() for label in r["labels"])
    assert tokens.trained_tokens["train"] == sum(trained)


def test_a_second_call_reuses_the_output(tmp_path: Path, base: Base) -> None:
    first = tokenize(tmp_path, base, [row(1)])
    second = tokenize(tmp_path, base, [row(1)])

    assert (first.reused, second.reused) == (False, True)
    assert second.tokens == first.tokens


def test_the_fingerprint_follows_dataset_tokenizer_and_settings(base: Base) -> None:
    def key(dataset: str = "a", base: Base = base, **settings: Any) -> str:
        chosen = TokenizationSettings(**settings)
        return fingerprint_of(chosen, dataset_fingerprint=dataset, base=base)

    elsewhere = Base(Path("/other"), "other", None, "1", base.tokenizer_sha256)
    changed = Base(base.path, base.model, None, base.weights_sha256, "changed")

    assert key() == key(base=elsewhere)
    assert len({key(), key("b"), key(base=changed), key(max_length=99)}) == 4


def test_a_chat_with_several_answers_trains_them_all_and_asks_for_the_last(
    tmp_path: Path, base: Base
) -> None:
    messages = [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "First."},
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": "Second."},
    ]
    tokens = tokenize(tmp_path, base, [row(1, messages=messages)])

    (shown,) = preview(tokens.path, base.path, rows=5)

    assert [tuple(segment) for segment in shown.segments] == [
        ("<|user|>", False, True),
        ("One?", False, False),
        ("<|end|><|assistant|>", False, True),
        ("First.", True, False),
        ("<|end|>", True, True),
        ("<|user|>", False, True),
        ("Two?", False, False),
        ("<|end|><|assistant|>", False, True),
        ("Second.", True, False),
        ("<|end|>", True, True),
        ("<|endoftext|>", False, True),
    ]
    (read,) = pq.read_table(tokens.path / "train.parquet").to_pylist()
    assert read["reference"] == "Second."
    assert read["prompt"].endswith("Two?<|end|>\n<|assistant|>\n")
    assert read["prompt_length"] == len(read["input_ids"]) - len("Second.") - len("▁") - 2


def test_long_rows_are_refused_and_listed(tmp_path: Path, base: Base) -> None:
    rows = [row(i, "a" * (100 if i % 2 else 5)) for i in range(60)]

    with pytest.raises(DataError) as caught:
        tokenize(tmp_path, base, rows, max_length=64)

    text = str(caught.value)
    assert "30 of 60 train rows are longer than tokenization.max_length (64 tokens)" in text
    assert f"row {1:016x} (rows.jsonl:1): " in text
    assert "... and 10 more" in text
    assert "tokenization.long_rows: drop" in text


def test_long_rows_are_dropped_whole_and_counted_when_asked(tmp_path: Path, base: Base) -> None:
    rows = [row(i, "a" * (100 if i % 2 else 5)) for i in range(60)]

    tokens = tokenize(tmp_path, base, rows, max_length=64, long_rows="drop")

    assert tokens.rows["train"] == 30
    assert card(tokens)["dropped"]["train"] == {"longer than tokenization.max_length": 30}
    for read in pq.read_table(tokens.path / "train.parquet").to_pylist():
        assert read["reference"] == "aaaaa"


def test_the_longest_row_that_fits_is_kept_to_its_last_token(tmp_path: Path, base: Base) -> None:
    fitting = tokenize(tmp_path, base, [row(1)]).tokens["train"]

    assert tokenize(tmp_path, base, [row(1)], max_length=fitting).rows["train"] == 1
    with pytest.raises(DataError, match=f"{fitting} tokens"):
        tokenize(tmp_path, base, [row(1)], max_length=fitting - 1)


def test_no_row_left_is_an_error(tmp_path: Path, base: Base) -> None:
    with pytest.raises(DataError, match="leaves no train row"):
        tokenize(tmp_path, base, [row(1)], max_length=8, long_rows="drop")


def test_rows_that_the_template_refuses_are_all_named(tmp_path: Path, make_base: Any) -> None:
    base = make_base("byte", "gemma", bos="<bos>")
    system = [{"role": "system", "content": "Be brief."}]
    rows = [row(i) for i in range(4)]
    for bad in rows[1:3]:
        bad["messages"] = system + bad["messages"]

    with pytest.raises(DataError) as caught:
        tokenize(tmp_path, base, rows)

    assert str(caught.value).startswith("2 of 4 train rows cannot be trained on")
    assert f"row {1:016x} (rows.jsonl:1): the chat template refuses it" in str(caught.value)
    assert f"row {2:016x} (rows.jsonl:2): " in str(caught.value)


def test_a_max_length_beyond_the_model_is_refused(tmp_path: Path, make_base: Any) -> None:
    base = make_base(context=512)

    with pytest.raises(DataError, match=r"max_length is 1024, but \.\./base accepts at most 512"):
        tokenize(tmp_path, base, [row(1)])


def test_answers_that_change_on_their_way_are_counted(tmp_path: Path, base: Base) -> None:
    rows = [row(1, "  indented"), row(2, "a ▁ b"), row(3)]

    facts = card(tokenize(tmp_path, base, rows))

    assert facts["trimmed_answers"] == {"train": 1, "test": 0}
    assert facts["altered_answers"] == {"train": 1, "test": 0}
    assert facts["prefixed_answers"] == {"train": 0, "test": 0}


def test_an_empty_think_block_is_reported_as_the_templates_own(
    tmp_path: Path, make_base: Any
) -> None:
    base = make_base("byte", "qwen3", bos=None, eos="<|im_end|>")

    tokens = tokenize(tmp_path, base, [row(1)])

    assert card(tokens)["prefixed_answers"] == {"train": 1, "test": 2}
    assert "Before 3 answers the template writes" in (tokens.path / "summary.md").read_text()


def test_the_summary_marks_what_is_trained(tmp_path: Path, base: Base) -> None:
    tokens = tokenize(tmp_path, base, [row(i, "a" * i + ".") for i in range(1, 40)])

    summary = (tokens.path / "summary.md").read_text(encoding="utf-8")

    assert "«<|end|><|assistant|>»⟦a.«<|end|>»⟧«<|endoftext|>»" in summary
    assert "█" in summary
    histogram = card(tokens)["histogram"]["train"]
    assert sum(entry["rows"] for entry in histogram) == 39
    assert histogram[-1]["to"] == card(tokens)["length"]["train"]["max"]


def test_more_rows_than_one_chunk_keep_their_order(
    tmp_path: Path, base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.tokenization import work

    monkeypatch.setattr(work, "CHUNK", 7)
    tokens = tokenize(tmp_path, base, [row(i) for i in range(50)])

    ids = pq.read_table(tokens.path / "train.parquet").column("id").to_pylist()

    assert ids == [f"{i:016x}" for i in range(50)]
    assert len(preview(tokens.path, base.path, rows=20)) == 20


def test_tokenizing_needs_no_torch(tmp_path: Path, base: Base) -> None:
    tokenize(tmp_path, base, [row(1)])
    code = f"""
import sys
from pathlib import Path
from tasks.artifacts import Dataset
from tasks.base import Base
from tasks.store import Store
from tasks.tokenization.preview import preview
from tasks.tokenization.settings import TokenizationSettings
from tasks.tokenization.work import tokenize_dataset
folder = Path({str(tmp_path)!r})
dataset = Dataset(path=folder / "dataset", fingerprint="other", reused=False, seconds=0, digest="d",
                  rows={{"train": 1, "test": 2}})
base = Base(Path({str(base.path)!r}), "base", None, "0", "0")
tokens = tokenize_dataset(Store(folder / "store"), TokenizationSettings(), dataset=dataset, base=base)
assert not tokens.reused
assert preview(tokens.path, base.path, rows=1)
heavy = ["torch", "transformers", "datasets", "trl", "peft", "mlflow", "prefect"]
print([name for name in heavy if name in sys.modules])
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    assert result.stdout.strip() == "[]"


def test_the_list_of_copies_travels_with_the_test_rows(tmp_path: Path, base: Base) -> None:
    """Without it, evaluation would take copies of what the champion was trained on for unseen."""
    prepared = dataset(tmp_path, [row(1), row(2)])
    (prepared.path / "test_copies.npy").write_bytes(b"the dataset's")

    tokens = tokenize_dataset(
        Store(tmp_path / "store"), TokenizationSettings(), dataset=prepared, base=base
    )

    assert (tokens.path / "test_copies.npy").read_bytes() == b"the dataset's"

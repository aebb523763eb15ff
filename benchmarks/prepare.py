"""Chat rows to token ids with the answers' mask: loraline's tokenization against `datasets` + `map`.

The reference is what most people write: `load_dataset("json")`, then a batched `map` on all cores with
`apply_chat_template(return_assistant_tokens_mask=True)` and a template that marks answers with
`{% generation %}`. Both read the same file, each in a process of its own, in turns; imports are not
counted. The product packs the rows besides. Two tokenizers: a byte-level one, trained here, and the
starter's, which is of Phi-3's kind. The rows are docstrings and functions of installed packages.

The ratios are of tokenization alone. What a run waits for on new data is all of it, and has no
reference here: `raw_to_packed_mb_per_second` is from the raw JSONL to packed token rows, with the
dataset stage as a recipe without settings has it (normalising, personal data, exact and near
duplicates, split, decontamination); `dataset_stage_mb_per_second` is that stage alone, and
`dataset_stage_without_cleaning_mb_per_second` what of it is reading, split and writing.
`unchanged_rerun_seconds` is what both stages take when nothing has changed: less than one.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness import Result, main, ratio

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "transformers", "pandas", "sqlalchemy", "mlflow", "prefect", "numpy", "trl")
MAX_LENGTH = 8192
RERUN = "unchanged_rerun_seconds"
CONTROL_TEXT = re.compile(r"<\||</?s>|<unk>")
BYTE_LEVEL_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PHI_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)


def measure(quick: bool) -> Result:
    result = Result("prepare", ("fastokens", "tokenizers", "datasets", "transformers", "pyarrow"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = _write_rows(folder / "train.jsonl", 12_000_000 if quick else 64_000_000)
        shutil.copy(folder / "train.jsonl", folder / "rows.jsonl")
        _write_rows(folder / "test.jsonl", 1)
        _byte_level_base(folder, 6_000 if quick else 32_000)
        _phi_base(folder)
        equal = []
        for kind in ("byte_level", "phi3"):
            reference, product = [], []
            for _ in range(1 if quick else 3):
                reference.append(_child("reference", folder, kind)["seconds"])
                facts = _child("product", folder, kind)
                product.append(facts["seconds"])
            equal.append(_equal(folder, kind))
            suffix = "" if kind == "byte_level" else f"_{kind}"
            result.ratios[f"vs_datasets_map{suffix}"] = ratio(reference, product)
            result.values[f"mb_per_second_{kind}"] = size / 1e6 / min(product)
            result.values[f"reference_mb_per_second_{kind}"] = size / 1e6 / min(reference)
            result.values[f"rows_per_second_{kind}"] = facts["rows"] / min(product)
            result.values[f"fastokens_used_{kind}"] = float(facts["encoder"] == "fastokens")
        result.values["megabytes"] = size / 1e6
        whole = [_child("whole", folder, "byte_level") for _ in range(1 if quick else 3)]
        for name in whole[0]:
            seconds = min(facts[name] for facts in whole)
            result.values[name] = seconds if name == RERUN else size / 1e6 / seconds
        result.equal = all(equal)
    return result


def _child(side: str, folder: Path, kind: str) -> dict[str, Any]:
    """Run one side in a fresh process: neither inherits the other's threads, caches or memory."""
    done = subprocess.run(
        [sys.executable, __file__, side, str(folder), kind],
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "hf")},
        stdout=subprocess.PIPE,
        check=True,
        cwd=ROOT,
    )
    answer = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(answer, dict)
    return answer


def _product(folder: Path, kind: str) -> dict[str, Any]:
    from tasks.artifacts import Dataset
    from tasks.base import Base
    from tasks.store import Store
    from tasks.tokenization.settings import TokenizationSettings
    from tasks.tokenization.work import tokenize_dataset

    rows = {
        side: (folder / f"{side}.jsonl").read_bytes().count(b"\n") for side in ("train", "test")
    }
    dataset = Dataset(path=folder, fingerprint="f", reused=False, seconds=0, digest="d", rows=rows)
    base = Base(folder / kind, kind, None, "0", kind)
    settings = TokenizationSettings(max_length=MAX_LENGTH, packing=True)
    started = time.monotonic()
    tokens = tokenize_dataset(
        Store(folder / "store"), settings, dataset=dataset, base=base, force=True
    )
    seconds = time.monotonic() - started
    shutil.copy(tokens.path / "train.parquet", folder / f"{kind}-product.parquet")
    card = json.loads((tokens.path / "card.json").read_text(encoding="utf-8"))
    return {"seconds": seconds, "rows": tokens.rows["train"], "encoder": card["encoder"]}


def _whole(folder: Path, kind: str) -> dict[str, Any]:
    """Seconds from raw rows to packed tokens, with the names that their speeds get."""
    from tasks.base import Base
    from tasks.dataset.settings import DatasetSettings
    from tasks.dataset.work import prepare_dataset
    from tasks.store import Store
    from tasks.tokenization.settings import TokenizationSettings
    from tasks.tokenization.work import tokenize_dataset

    state = Path(tempfile.mkdtemp(dir=folder))
    store = Store(state / "store")
    # Some docstrings are white space.
    sources = {"sources": [{"type": "files", "path": "rows.jsonl"}], "max_bad_rows": 0.1}
    nothing = {"normalise": False, "personal_data": None, "near_duplicates": None}
    bare = DatasetSettings.model_validate(
        {**sources, "cleaning": {**nothing, "contamination": None}}
    )

    def prepared(settings: DatasetSettings) -> Any:
        return prepare_dataset(store, settings, salt="benchmark", recipe_folder=folder)

    started = time.monotonic()
    prepared(bare)
    without_cleaning = time.monotonic() - started
    started = time.monotonic()
    dataset = prepared(DatasetSettings.model_validate(sources))
    stage = time.monotonic() - started
    base = Base(folder / kind, kind, None, "0", kind)
    tokenization = TokenizationSettings(max_length=MAX_LENGTH, packing=True, long_rows="drop")
    tokenize_dataset(store, tokenization, dataset=dataset, base=base)
    whole = time.monotonic() - started
    started = time.monotonic()
    again = prepared(DatasetSettings.model_validate(sources))
    tokens = tokenize_dataset(store, tokenization, dataset=again, base=base)
    rerun = time.monotonic() - started
    assert again.reused
    assert tokens.reused
    shutil.rmtree(state)
    return {
        "raw_to_packed_mb_per_second": whole,
        "dataset_stage_mb_per_second": stage,
        "dataset_stage_without_cleaning_mb_per_second": without_cleaning,
        RERUN: rerun,
    }


def _reference(folder: Path, kind: str) -> dict[str, Any]:
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(folder / kind)

    def encode(batch: dict[str, Any]) -> Any:
        return tokenizer.apply_chat_template(
            batch["messages"],
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            return_attention_mask=False,
        )

    cache = Path(tempfile.mkdtemp(dir=folder))
    started = time.monotonic()
    rows = datasets.load_dataset(
        "json", data_files=str(folder / "rows.jsonl"), split="train", cache_dir=str(cache)
    )
    tokens = rows.map(
        encode,
        batched=True,
        num_proc=len(os.sched_getaffinity(0)),
        remove_columns=rows.column_names,
    )
    seconds = time.monotonic() - started
    tokens.select_columns(["input_ids", "assistant_masks"]).to_parquet(
        folder / f"{kind}-reference.parquet"
    )
    shutil.rmtree(cache)
    return {"seconds": seconds, "rows": len(tokens)}


def _equal(folder: Path, kind: str) -> bool:
    """Whether every row has the same ids, and the same tokens trained."""
    import numpy as np
    import pyarrow.parquet as pq

    ours = pq.read_table(folder / f"{kind}-product.parquet", columns=["input_ids", "labels"])
    theirs = pq.read_table(folder / f"{kind}-reference.parquet")

    def flat(table: Any, column: str) -> Any:
        values = table[column].combine_chunks()
        return values.flatten().to_numpy(zero_copy_only=False)

    lengths = [
        table["input_ids"].combine_chunks().value_lengths().to_numpy() for table in (ours, theirs)
    ]
    return (
        np.array_equal(*lengths)
        and np.array_equal(flat(ours, "input_ids"), flat(theirs, "input_ids"))
        and np.array_equal(flat(ours, "labels") != -100, flat(theirs, "assistant_masks") != 0)
    )


def _write_rows(file: Path, size: int) -> int:
    written = 0
    with file.open("w", encoding="utf-8") as stream:
        for number, (question, answer, source) in enumerate(_pairs()):
            messages = [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]
            line = json.dumps(
                {
                    "id": f"{number:016x}",
                    "group": source,
                    "messages": messages,
                    "source": source,
                    "label": None,
                },
                ensure_ascii=False,
            )
            stream.write(line + "\n")
            written += len(line.encode()) + 1
            if written >= size:
                break
    return written


def _pairs() -> Iterator[tuple[str, str, str]]:
    """Docstring, function and place, in the same order on every machine with the same packages."""
    from importlib.util import find_spec

    for package in PACKAGES:
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            continue
        for file in sorted(Path(spec.origin).parent.rglob("*.py")):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    source = file.read_text(encoding="utf-8")
                    tree = ast.parse(source)
                except (UnicodeDecodeError, SyntaxError):
                    continue
            lines = source.splitlines(keepends=True)
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef) and (words := ast.get_docstring(node)):
                    code = textwrap.dedent("".join(lines[node.lineno - 1 : node.end_lineno]))
                    # The reference would take a control token's text for the token.
                    # Nor does its mask know that Phi-3's special tokens swallow white space: it
                    # would train `<|assistant|>` itself.
                    if (
                        80 < len(code) < 8_000
                        and not code[0].isspace()
                        and not CONTROL_TEXT.search(code + words)
                    ):
                        yield words, code, f"{file.name}:{node.lineno}"


def _byte_level_base(folder: Path, vocabulary: int) -> None:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    words = Regex(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    lines = (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()[:4000]
    texts = (m["content"] for line in lines for m in json.loads(line)["messages"])
    core.train_from_iterator(texts, trainer)
    core.add_special_tokens(
        [AddedToken(t, normalized=False) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")]
    )
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}
    _base(folder / "byte_level", core.to_str(), BYTE_LEVEL_TEMPLATE, config)


def _phi_base(folder: Path) -> None:
    starter = ROOT / "examples" / "starter"
    tokenizer = (starter / "tokenizer.json").read_text(encoding="utf-8")
    config = json.loads((starter / "tokenizer_config.json").read_text(encoding="utf-8"))
    _base(folder / "phi3", tokenizer, PHI_TEMPLATE, config)


def _base(folder: Path, tokenizer: str, template: str, config: dict[str, Any]) -> None:
    folder.mkdir()
    (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    limits = {"model_type": "phi3", "max_position_embeddings": 131072}
    (folder / "config.json").write_text(json.dumps(limits), encoding="utf-8")


if __name__ == "__main__":
    sides = {"reference": _reference, "product": _product, "whole": _whole}
    if run := sides.get((sys.argv[1:2] or [""])[0]):
        print(json.dumps(run(Path(sys.argv[2]), sys.argv[3])))
    else:
        main(measure, __doc__ or "")

"""A tiny base, two different adapters on it, and a few tokenized test rows."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.artifacts import Adapter, Tokens
from tasks.base import Base
from tasks.files import file_sha256

ROWS = [
    ("Write the docstring of def add(a, b).", "Return the sum of two numbers.", "add"),
    ("Say it.", "Open a file.", "say it"),
    ("Write the docstring of def read_lines(path, limit): ...", "Read lines.", "read lines"),
    ("x = 1", "Assign one to x, and say so in a rather longer sentence than needed.", None),
    ("Document class Queue with methods put and get.", "A queue of items.", "queue"),
    ("def close(self): self.file.close()", "Close the file.", "close"),
    ("def is_open(self): return not self.closed", "Whether it is open.", "is open"),
    ("y", "Nothing.", "y"),
    ("Write the docstring of def walk(tree, visit, *, depth=3).", "Visit nodes.", "walk"),
]


@pytest.fixture(scope="session")
def chat_tokens(tmp_path_factory: pytest.TempPathFactory, starter: Path) -> Tokens:
    """`test.parquet` as the tokenization writes it, for nine short rows of different lengths."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(starter / "tokenizer.json"))
    rows: list[dict[str, Any]] = []
    for number, (question, answer, label) in enumerate(ROWS):
        prompt = f"<|user|>\n{question}<|end|>\n<|assistant|>\n"
        prompt_ids = tokenizer.encode(prompt, add_special_tokens=False).ids
        answer_ids = tokenizer.encode(f"{answer}<|end|>", add_special_tokens=False).ids
        rows.append(
            {
                "id": f"row-{number}",
                "input_ids": prompt_ids + answer_ids,
                "labels": [-100] * len(prompt_ids) + answer_ids,
                "prompt_length": len(prompt_ids),
                "reference": answer,
                "prompt": prompt,
                "label": label,
            }
        )
    folder = tmp_path_factory.mktemp("tokens")
    pq.write_table(pa.Table.from_pylist(rows), folder / "test.parquet")
    counts = {"train": 0, "test": len(rows)}
    return Tokens(
        path=folder,
        fingerprint="ab" * 32,
        reused=False,
        seconds=0.0,
        rows=counts,
        tokens=counts,
        trained_tokens=counts,
    )


@pytest.fixture(scope="session")
def tiny(tiny_base: Path) -> Base:
    """The tiny base as the recipe's resolver describes one."""
    return Base(
        path=tiny_base,
        model="./tiny",
        commit=None,
        weights_sha256=file_sha256(tiny_base / "model.safetensors"),
        tokenizer_sha256=file_sha256(tiny_base / "tokenizer.json"),
    )


@pytest.fixture(scope="session")
def make_adapter(
    tmp_path_factory: pytest.TempPathFactory, tiny_base: Path
) -> Callable[[int, int], Adapter]:
    """Make a random adapter whose lora_B is not zero: `make_adapter(seed, rank)`."""

    def make(seed: int, rank: int) -> Adapter:
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
        torch.manual_seed(seed)
        model = get_peft_model(base, LoraConfig(r=rank, target_modules="all-linear"))
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_B" in name:
                    weight.normal_(std=0.2)
        folder = tmp_path_factory.mktemp(f"adapter-{seed}")
        model.save_pretrained(str(folder / "adapter"))
        for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
            shutil.copy(tiny_base / name, folder / "adapter" / name)
        sha256 = file_sha256(folder / "adapter" / "adapter_model.safetensors")
        return Adapter(
            path=folder,
            fingerprint=sha256,
            reused=False,
            seconds=0.0,
            sha256=sha256,
            trainable_parameters=1,
        )

    return make


@pytest.fixture(scope="session")
def challenger(make_adapter: Callable[[int, int], Adapter]) -> Adapter:
    return make_adapter(1, 4)


@pytest.fixture(scope="session")
def champion(make_adapter: Callable[[int, int], Adapter]) -> Adapter:
    return make_adapter(2, 2)


@pytest.fixture(scope="session")
def stops(tiny_base: Path) -> list[int]:
    """The two stop tokens, end of turn and end of text."""
    text = (tiny_base / "generation_config.json").read_text(encoding="utf-8")
    return [int(token) for token in json.loads(text)["eos_token_id"]]

"""The work that `train.py` and its like measure: two shapes of Phi-3, real rows, their cost in products."""

import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Phi3Config, Phi3ForCausalLM, PreTrainedTokenizerFast

from tasks.dataset.reading.python_source import PythonCounts, read_python
from tasks.dataset.source_settings import PythonSource

RANK = 16
LINEARS = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
LONGEST = 512
"""Tokens. Rows of real code and its documentation, of which most are far shorter."""
NO_LOSS = -100
_SPECIAL = ("<unk>", "<s>", "<|end|>", "<|user|>", "<|assistant|>")


@dataclass(frozen=True)
class Shape:
    """A Phi-3 with random weights: speed does not depend on what they are."""

    hidden: int
    inner: int
    layers: int
    heads: int
    vocabulary: int

    def config(self) -> Phi3Config:
        return Phi3Config(
            hidden_size=self.hidden,
            intermediate_size=self.inner,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            vocab_size=self.vocabulary,
            max_position_embeddings=4096,
            original_max_position_embeddings=4096,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=2,
        )

    def model(self) -> Any:
        torch.manual_seed(0)
        return Phi3ForCausalLM(self.config()).to(torch.bfloat16)


SHAPES = {
    "wide": Shape(hidden=384, inner=1024, layers=6, heads=6, vocabulary=32_064),
    "deep": Shape(hidden=512, inner=1408, layers=8, heads=8, vocabulary=2_048),
}
"""`wide`: the head is most of the work. `deep`: the layers are, as in the real model."""


@cache
def texts(count: int) -> list[tuple[str, str]]:
    """Prompt and answer of `count` documented functions of the standard library, mixed by a seed."""
    source = PythonSource(type="python_source", package="stdlib", max_code_characters=1200)
    rows = list(read_python(source, Path(), PythonCounts()))
    random.Random(0).shuffle(rows)
    return [
        (
            f"<|user|>\n{row.messages[0]['content']}<|end|>\n<|assistant|>\n",
            f"{row.messages[1]['content']}<|end|>",
        )
        for row in rows[:count]
    ]


@cache
def tokenizer(vocabulary: int) -> Tokenizer:
    """Byte-level BPE of this size, learned from the same library's rows."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=list(_SPECIAL), show_progress=False
    )
    made.train_from_iterator((part for row in texts(20_000) for part in row), trainer)
    return made


def token_rows(vocabulary: int, count: int) -> list[dict[str, list[int]]]:
    """`input_ids` and `labels` (answers only) of rows of at most `LONGEST` tokens."""
    encode = tokenizer(vocabulary).encode
    rows = []
    for prompt, answer in texts(20_000):
        head, tail = encode(prompt).ids, encode(answer).ids
        if len(head) + len(tail) <= LONGEST:
            rows.append({"input_ids": head + tail, "labels": [NO_LOSS] * len(head) + tail})
        if len(rows) == count:
            break
    return rows


def write_base(shape: Shape, folder: Path, model: Any = None) -> Path:
    """The shape's model (made here, or given) and its tokenizer as a base that a recipe could name."""
    (model or shape.model()).save_pretrained(folder)
    fast(shape.vocabulary).save_pretrained(folder)
    return folder


def fast(vocabulary: int) -> Any:
    """The tokenizer as transformers knows it."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer(vocabulary),
        bos_token="<s>",
        eos_token="<|end|>",
        pad_token="<|end|>",
        unk_token="<unk>",
    )


def write_tokens(rows: list[dict[str, list[int]]], folder: Path) -> Path:
    """As the tokenization stage leaves them."""
    folder.mkdir(parents=True, exist_ok=True)
    prompts = [sum(label == NO_LOSS for label in row["labels"]) for row in rows]
    ints = pa.list_(pa.int32())
    table = pa.table(
        {
            "input_ids": pa.array([row["input_ids"] for row in rows], ints),
            "labels": pa.array([row["labels"] for row in rows], ints),
            "prompt_length": pa.array(prompts, pa.int32()),
        }
    )
    for split in ("train", "test"):
        pq.write_table(table, folder / f"{split}.parquet")
    return folder


def flop(shape: Shape, rows: list[dict[str, list[int]]]) -> dict[str, float]:
    """Floating-point operations that one pass of LoRA training over `rows` cannot do without.

    Frozen products count twice (forward, gradient of the input), A and B of each LoRA three times
    (6 x parameters), causal attention's two products three times over half a square. Left out is what
    no gradient and no loss needs: the first projection's input gradient, and the last layer and the
    head where nothing is predicted.
    """
    tokens = sum(len(row["input_ids"]) for row in rows)
    answers = sum(label != NO_LOSS for row in rows for label in row["labels"])
    squares = sum(len(row["input_ids"]) ** 2 for row in rows)
    d, f = shape.hidden, shape.inner
    sizes = {"qkv": (d, 3 * d), "o": (d, d), "gate_up": (d, 2 * f), "down": (f, d)}
    after_attention = sum(i * o for name, (i, o) in sizes.items() if name != "qkv")
    qkv = sizes["qkv"][0] * sizes["qkv"][1]
    lora = {name: RANK * (i + o) for name, (i, o) in sizes.items()}
    lora_after = sum(lora.values()) - lora["qkv"]
    deep = shape.layers - 1
    return {
        "frozen": 4 * (deep * tokens + answers) * after_attention
        + (4 * shape.layers - 2) * tokens * qkv,
        "head": 4 * answers * d * shape.vocabulary,
        "lora": 6 * (shape.layers * tokens * lora["qkv"] + (deep * tokens + answers) * lora_after),
        "attention": 3 * 2 * squares * d * shape.layers,
    }

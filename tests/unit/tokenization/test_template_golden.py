"""Token ids and trained positions of each supported template, kept: no dependency may move them.

Write the file anew, after reading the difference, with
`LORALINE_WRITE_GOLDEN=1 python -m pytest tests/unit/tokenization/test_template_golden.py -n 0`.
"""

import json
import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tasks.tokenization.spans import UNTRAINED

GOLDEN = Path(__file__).parent / "templates" / "golden.json"
TEMPLATES = {
    "phi3": ("phi", "<s>", "<|endoftext|>"),
    "phi3_training": ("phi", "<s>", "<|endoftext|>"),
    "phi3_5": ("phi", "<s>", "<|endoftext|>"),
    "phi4": ("byte", "<|endoftext|>", "<|im_end|>"),
    "phi4_release": ("byte", "<|endoftext|>", "<|im_end|>"),
    "llama3": ("byte", "<|begin_of_text|>", "<|eot_id|>"),
    "llama3_training": ("byte", "<|begin_of_text|>", "<|eot_id|>"),
    "llama3_1": ("byte", "<|begin_of_text|>", "<|eot_id|>"),
    "llama3_2": ("byte", "<|begin_of_text|>", "<|eot_id|>"),
    "qwen2_5": ("byte", None, "<|im_end|>"),
    "qwen2_5_training": ("byte", None, "<|im_end|>"),
    "qwen3": ("byte", None, "<|im_end|>"),
    "qwen3_training": ("byte", None, "<|im_end|>"),
    "gemma": ("gemma", "<bos>", "<eos>"),
    "gemma_training": ("gemma", "<bos>", "<eos>"),
    "gemma3": ("gemma", "<bos>", "<eos>"),
    "mistral": ("mistral", "<s>", "</s>"),
    "mixtral": ("mistral", "<s>", "</s>"),
    "chatml": ("byte", None, "<|im_end|>"),
}
MESSAGES = [
    {"role": "user", "content": "the 1st?\n"},
    {"role": "assistant", "content": "Ω the\n  x"},
    {"role": "user", "content": "🙂"},
    {"role": "assistant", "content": "No."},
]


def runs(numbers: list[int]) -> list[list[int]]:
    """Trained positions as `[start, stop]` pairs."""
    found: list[list[int]] = []
    for k, label in enumerate(numbers):
        if label != UNTRAINED:
            if found and found[-1][1] == k:
                found[-1][1] = k + 1
            else:
                found.append([k, k + 1])
    return found


@pytest.mark.parametrize("template", TEMPLATES)
def test_token_ids_and_mask_are_the_golden_ones(
    template: str, make_base: Any, tokenize: Any
) -> None:
    kind, bos, eos = TEMPLATES[template]
    row = {"id": "a", "group": "g", "messages": MESSAGES, "source": "s:1", "label": None}
    tokens = tokenize(make_base(kind, template, bos=bos, eos=eos), [row])
    (read,) = pq.read_table(tokens.path / "train.parquet").to_pylist()
    actual = {
        "ids": read["input_ids"],
        "trained": runs(read["labels"]),
        "prompt": read["prompt_length"],
    }

    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("LORALINE_WRITE_GOLDEN"):
        golden[template] = actual
        lines = [f'"{name}": {json.dumps(golden[name])}' for name in TEMPLATES if name in golden]
        GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")

    assert actual == golden[template]


def test_the_golden_file_holds_nothing_else() -> None:
    assert set(json.loads(GOLDEN.read_text())) == set(TEMPLATES)

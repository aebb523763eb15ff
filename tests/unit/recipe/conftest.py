"""A model on the Hub, and recipes as short texts."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hub import A, B, Hub, Repository

SMALL_MODEL = {
    "config.json": b'{"model_type": "phi3"}',
    "model.safetensors": b"weights of commit a",
    "tokenizer.json": b'{"version": "1.0"}',
    "tokenizer_config.json": b"{}",
    "pytorch_model.bin": b"a pickle",
    "onnx/model.safetensors": b"the same weights in another format",
}


@pytest.fixture
def hub(hub: Hub) -> Hub:
    """With the model `team/base`, which has the same files at two commits."""
    hub.models["team/base"] = Repository({A: dict(SMALL_MODEL), B: dict(SMALL_MODEL)})
    return hub


@pytest.fixture
def write_recipe(tmp_path: Path) -> Callable[..., Path]:
    """`write_recipe(text)` -> a recipe file whose first five lines are a valid head."""

    def write(text: str = "", head: str | None = None) -> Path:
        if head is None:
            head = (
                "name: test\n"
                "base: ./base\n"
                "dataset:\n"
                "  sources:\n"
                "    - {type: jsonl, path: rows.jsonl}\n"
            )
        path = tmp_path / "recipe.yaml"
        path.write_text(head + text, encoding="utf-8")
        return path

    return write

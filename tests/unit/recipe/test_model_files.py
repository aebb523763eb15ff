"""A model's files tell its context, and the names of its modules, before it is loaded."""

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.model_files import ModelFiles, read_model
from tasks.training import fields


def context(**config: Any) -> int | None:
    return ModelFiles(config, {}).context


@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        ({}, None),
        ({"max_position_embeddings": 4096, "sliding_window": 2047}, 4096),
        ({"n_positions": 1024, "n_ctx": 1024}, 1024),
        ({"max_position_embeddings": None}, None),
        # Llama 3.1 and Phi-3 with 128k count the stretching in.
        (
            {
                "max_position_embeddings": 131072,
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "original_max_position_embeddings": 8192,
                },
            },
            131072,
        ),
        (
            {
                "max_position_embeddings": 131072,
                "original_max_position_embeddings": 4096,
                "rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]},
            },
            131072,
        ),
        # Qwen 2.5 with YaRN does not.
        (
            {
                "max_position_embeddings": 32768,
                "rope_scaling": {
                    "type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 32768,
                },
            },
            131072,
        ),
        (
            {
                "max_position_embeddings": 4096,
                "rope_scaling": {"type": "linear", "factor": 4.0},
            },
            16384,
        ),
        # transformers 5 writes `rope_parameters`, for some models one for each kind of layer.
        (
            {
                "max_position_embeddings": 1024,
                "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            },
            1024,
        ),
        (
            {
                "max_position_embeddings": 8192,
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "factor": 2.0},
                    "sliding_attention": {"rope_type": "default"},
                },
            },
            16384,
        ),
        ({"text_config": {"max_position_embeddings": 8192}}, 8192),
    ],
)
def test_the_context_is_what_the_config_allows_at_most(
    config: dict[str, Any], tokens: int | None
) -> None:
    assert context(**config) == tokens


def tiny(kind: str) -> Any:
    """A model of random weights, small in everything."""
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    common = {
        "vocab_size": 320,
        "intermediate_size": 64,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "bos_token_id": 0,
        "eos_token_id": 0,
    } | sizes
    config = {
        "phi3": lambda: transformers.Phi3Config(**common),
        "llama": lambda: transformers.LlamaConfig(**common),
        "qwen2": lambda: transformers.Qwen2Config(**common, tie_word_embeddings=True),
        "gemma2": lambda: transformers.Gemma2Config(**common, head_dim=8),
        "opt": lambda: transformers.OPTConfig(
            vocab_size=320, ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=64, **sizes
        ),
        "gpt2": lambda: transformers.GPT2Config(
            vocab_size=320, n_embd=32, n_layer=2, n_head=4, n_positions=64
        ),
        "falcon": lambda: transformers.FalconConfig(vocab_size=320, **sizes),
        "bloom": lambda: transformers.BloomConfig(
            vocab_size=320, hidden_size=32, n_layer=2, n_head=4
        ),
    }[kind]()
    return transformers.AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize(
    "kind", ["phi3", "llama", "qwen2", "gemma2", "opt", "gpt2", "falcon", "bloom"]
)
def test_the_files_name_the_linear_modules_that_the_loaded_model_has(
    tmp_path: Path, kind: str
) -> None:
    from tasks.training.loading import head_name, linear_modules

    model = tiny(kind)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    files = read_model(tmp_path)
    names, head = files.linear_modules()
    assert set(names) == set(linear_modules(model))
    assert head == head_name(model)
    assert files.context == getattr(model.config, "max_position_embeddings", None)
    assert files.model_type not in fields.renamed_at_loading()


def test_a_file_of_the_inner_model_is_read_too(tmp_path: Path) -> None:
    """Some models were saved without their head, and their names lack the outer prefix."""
    tiny("gpt2").transformer.save_pretrained(tmp_path)
    assert "h.0.attn.c_attn" in read_model(tmp_path).linear_modules()[0]


def test_what_stands_in_a_header_beside_tensors_is_no_tensor(tmp_path: Path) -> None:
    header = json.dumps(
        {
            "__metadata__": {"format": "pt"},
            "a.weight": {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]},
        }
    ).encode()
    data = len(header).to_bytes(8, "little") + header + bytes(4)
    (tmp_path / "model.safetensors").write_bytes(data)
    (tmp_path / "config.json").write_text("{}")
    assert read_model(tmp_path).shapes == {"a.weight": (1, 1)}

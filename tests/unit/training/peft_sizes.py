"""What kinds of PEFT adapters need on a model of width 32."""

from typing import Any

NEEDS: dict[str, dict[str, Any]] = {
    # What has no sensible default, and sizes that fit a model of width 32.
    "C3A": {"block_size": 8},
    "IA3": {"target_modules": ["qkv_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "LN_TUNING": {"target_modules": ["input_layernorm", "post_attention_layernorm"]},
    "MISS": {"r": 8},
    "ROAD": {"group_size": 8},
    "SHIRA": {"r": 4},
    "TRAINABLE_TOKENS": {"token_indices": list(range(300, 4000))},
    "VBLORA": {"vector_length": 16, "num_vectors": 32},
    "WAVEFT": {"n_frequency": 64},
    "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 1},
}

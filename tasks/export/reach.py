"""What other programs make of an adapter: what they refuse, and what they would compute wrongly."""

from collections.abc import Mapping
from typing import Any

VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Values of vLLM's `--max-lora-rank`; its default is 16."""


def vllm_problems(config: Mapping[str, Any]) -> list[str]:
    """Why vLLM would not serve the adapter, or serve another one; empty where it serves it.

    vLLM scales every module by the one `lora_alpha / r` of the configuration, and reads neither
    `rank_pattern` nor `alpha_pattern`.
    """
    problems = _beyond_two_matrices(config)
    problems += [
        f"{name} is set, which vLLM does not read: it would scale those modules wrongly"
        for name in ("rank_pattern", "alpha_pattern")
        if config.get(name)
    ]
    rank = int(config.get("r") or 0)
    if rank > VLLM_RANKS[-1]:
        problems.append(f"r is {rank}, and vLLM serves ranks up to {VLLM_RANKS[-1]}")
    return problems


def gguf_problems(config: Mapping[str, Any]) -> list[str]:
    """Why llama.cpp cannot express the adapter as a file of its own.

    llama.cpp scales a module by the file's one alpha, over the rank of the module's own matrices.
    """
    problems = _beyond_two_matrices(config)
    if config.get("use_rslora"):
        problems.append("use_rslora: llama.cpp scales by alpha / r and not by alpha / sqrt(r)")
    if config.get("alpha_pattern"):
        problems.append("alpha_pattern: llama.cpp has one alpha for all modules")
    return problems


def vllm_rank(config: Mapping[str, Any]) -> int:
    """The smallest `--max-lora-rank` that serves the adapter."""
    rank = int(config.get("r") or 0)
    return next((allowed for allowed in VLLM_RANKS if allowed >= rank), VLLM_RANKS[-1])


def _beyond_two_matrices(config: Mapping[str, Any]) -> list[str]:
    found = []
    if config.get("peft_type", "LORA") != "LORA":
        found.append(f"peft_type is {config['peft_type']}, not LORA")
    if config.get("modules_to_save"):
        found.append("modules_to_save: whole trained modules lie beside the matrices")
    if config.get("use_dora"):
        found.append("use_dora: DoRA's magnitudes lie beside the matrices")
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        found.append("bias: trained biases lie beside the matrices")
    if config.get("trainable_token_indices"):
        found.append("trainable_token_indices: trained tokens lie beside the matrices")
    if config.get("target_parameters"):
        found.append("target_parameters: bare parameters are adapted")
    return found

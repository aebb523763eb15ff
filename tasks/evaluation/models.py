"""Load the base once, and put one adapter on it at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, GenerationConfig

from tasks.errors import UserError
from tasks.evaluation.job import AnswerJob
from tasks.quantization import quantization_config


class AdapterMisfit(UserError):
    """An adapter that cannot be put on the base."""


def arithmetic(job: AnswerJob) -> tuple[str, torch.dtype, str]:
    """Device, dtype, and why that dtype."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if job.dtype != "auto":
        dtype, why = getattr(torch, job.dtype), "evaluation.dtype says so"
    elif device == "cpu":
        dtype, why = torch.float32, "on a CPU answers must not depend on the batch"
    elif torch.cuda.is_bf16_supported():
        dtype, why = torch.bfloat16, "the GPU has it"
    else:
        dtype, why = torch.float32, "the GPU has no bfloat16"
    return device, dtype, why


def load_base(job: AnswerJob, device: str, dtype: torch.dtype) -> Any:
    """The base in evaluation mode, with no generation settings of its own."""
    options: dict[str, Any] = {}
    if job.quantization != "none":
        options = {
            "quantization_config": quantization_config(
                job.quantization, dtype, field="evaluation.quantization"
            ),
            "device_map": {"": device},
        }
    model = AutoModelForCausalLM.from_pretrained(
        job.base,
        dtype=dtype,
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        **options,
    )
    # generate() takes what we leave open from here: a base's repetition penalty or forced tokens
    # would make answers that are not the model's own first choices.
    model.generation_config = GenerationConfig()
    return model.eval() if options else model.to(device).eval()


def room(config: Any, prompt: int, max_new_tokens: int) -> int:
    """Tokens that an answer to a prompt of `prompt` tokens may have in the model's context."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return max_new_tokens if limit is None else max(1, min(max_new_tokens, limit - prompt))


@contextmanager
def wearing(base: Any, name: str, adapter: Path | None) -> Iterator[Any]:
    """The base itself, or with the adapter on it; taken off again afterwards.

    One adapter at a time: champion and challenger may differ in kind, and neither can lean on the
    other's weights.
    """
    if adapter is None:
        yield base
        return
    try:
        model = PeftModel.from_pretrained(base, str(adapter), is_trainable=False).eval()
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, KeyError, TypeError, OSError, SafetensorError) as error:
        raise AdapterMisfit(_misfit(name, adapter, str(error))) from error
    # PEFT leaves weights that are missing from the file at their random start, with a warning.
    expected = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    with safe_open(adapter / "adapter_model.safetensors", framework="pt") as file:
        saved = set(file.keys())
    odd = sorted((expected - saved) | (saved - expected - set(model.state_dict())))
    if odd:
        raise AdapterMisfit(_misfit(name, adapter, f"{len(odd)} weights differ in name: {odd[:3]}"))
    try:
        yield model
    finally:
        model.unload()


def _misfit(name: str, adapter: Path, reason: str) -> str:
    # torch names every weight whose shape differs, hundreds of them.
    lines = [line.strip() for line in reason.splitlines() if line.strip()]
    more = f" (and {len(lines) - 2} more)" if len(lines) > 2 else ""
    reason = " ".join(lines[:2]).rstrip(".") + more
    return (
        f"The {name} adapter ({adapter}) does not fit the base model: {reason}. It was made for "
        "another base, or its files are damaged. Train on the base it names, or promote another champion."
    )

"""Frozen base weights in 4 or 8 bits: the same bitsandbytes configuration for training and evaluation."""

from typing import TYPE_CHECKING, Any, Literal

from tasks.errors import UserError

if TYPE_CHECKING:
    import torch

Quantization = Literal["none", "nf4", "int8"]


def quantization_config(kind: Quantization, dtype: "torch.dtype", *, field: str) -> Any:
    """The `BitsAndBytesConfig` that computes in `dtype`; `field` is the recipe's, for the error.

    With `nf4` (QLoRA, https://arxiv.org/abs/2305.14314) the weights are 4-bit normal floats whose
    scales are quantized again; with `int8` they are LLM.int8.

    Raises: UserError when bitsandbytes is not installed.
    """
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"{field} is {kind}, which needs bitsandbytes ({error}). "
            f'Install it with `pip install "loraline[gpu]"`, or write `{field}: none`.'
        ) from error
    from transformers import BitsAndBytesConfig

    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )

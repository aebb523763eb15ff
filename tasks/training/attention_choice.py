"""Which attention trains: torch's own, or one that computes nothing across packed examples."""

from importlib.util import find_spec
from typing import Literal

from tasks.errors import UserError

Attention = Literal["auto", "sdpa", "flash", "flex", "varlen"]
VARLEN = "torch_varlen"
"""The name that torch's own attention by examples is registered under with transformers."""

_IMPLEMENTATIONS = {
    "sdpa": "sdpa",
    "flash": "flash_attention_2",
    "flex": "flex_attention",
    "varlen": VARLEN,
}
"""As transformers' `attn_implementation`."""
_LIBRARY = "flash_attn"


def attention_to_train_with(
    asked: Attention, *, dtype: str, packed: bool, gpu: bool
) -> tuple[str | None, str]:
    """transformers' name of the attention, and why, as a sentence; None leaves the base's own.

    A block-diagonal mask over a pack pays for its zeros. Flash attention is told where examples end, and
    so `auto` takes it for packed rows where it is installed.

    Raises: UserError for one that this machine does not have.
    """
    if asked == "auto":
        if packed and gpu and dtype != "float32" and find_spec(_LIBRARY) is not None:
            return _IMPLEMENTATIONS["flash"], "Training with flash attention, example by example."
        if packed and gpu:
            lacking = "float32 has none" if dtype == "float32" else f"{_LIBRARY} is not installed"
            return None, (
                "Training packed rows with a block-diagonal mask, which computes its zeros: no flash "
                f"attention ({lacking}). training.attention: varlen and flex need no other library."
            )
        return None, ""
    if asked != "sdpa" and not gpu:
        raise UserError(
            f"training.attention is {asked}, which computes on a GPU only, and there is none. Write auto."
        )
    if asked in ("flash", "varlen") and dtype == "float32":
        raise UserError(
            f"training.attention is {asked}, which has no float32. Write training.dtype: bfloat16, or "
            "`attention: flex`."
        )
    if asked == "varlen" and not packed:
        raise UserError(
            "training.attention is varlen, which is told where packed examples end, and these rows stand "
            "alone. Write `tokenization.packing: true`, or `attention: sdpa`."
        )
    if asked == "flash" and find_spec(_LIBRARY) is None:
        raise UserError(
            "training.attention is flash, and the package flash-attn is not installed. Install it, or "
            "write `attention: varlen` or `flex`, which need nothing more, or auto."
        )
    return _IMPLEMENTATIONS[asked], f"Training with {asked} attention: the recipe says so."

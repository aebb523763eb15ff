"""Causal attention inside each example of a flat line of tokens, by torch's own flash kernels for a GPU.

The same as flash attention's package computes, without that package:
https://docs.pytorch.org/docs/stable/nn.attention.varlen.html
"""

from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tasks.errors import UserError
from tasks.training.attention_choice import VARLEN


def register() -> None:
    """Let transformers' models be switched to `VARLEN`."""
    ALL_ATTENTION_FUNCTIONS.register(VARLEN, _attend)
    # Boundaries take a mask's place; padding is on the right, where no token of an example looks.
    ALL_MASK_ATTENTION_FUNCTIONS.register(VARLEN, lambda *_, **__: None)


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: (rows, heads, tokens, width) to (rows, tokens, heads, width).

    `cu_seq_lens_q`: where examples begin and end in one line, int32; without it each row is an example.

    Raises: UserError for a model whose attention has what torch's kernel lacks.
    """
    if dropout or softcap is not None or s_aux is not None or attention_mask is not None:
        raise UserError(
            "training.attention is varlen, which has no dropout, soft cap, sink or mask, and this base's "
            "attention has one. Write `attention: sdpa`, or auto."
        )
    rows, heads, tokens, _ = query.shape
    ends, longest = cu_seq_lens_q, max_length_q
    if ends is None or longest is None:
        ends = torch.arange(0, (rows + 1) * tokens, tokens, dtype=torch.int32, device=query.device)
        longest = tokens
    queries, keys, values = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
    grouped: dict[str, Any] = {} if key.shape[1] == heads else {"enable_gqa": True}
    output = varlen_attn(
        queries,
        keys,
        values,
        ends,
        ends,
        longest,
        longest,
        scale=scaling,
        # Neighbours to the left and to the right of a token, itself not counted; -1: all.
        window_size=(sliding_window - 1 if sliding_window else -1, 0),
        **grouped,
    )
    assert isinstance(output, torch.Tensor)
    return output.unflatten(0, (rows, tokens)), None

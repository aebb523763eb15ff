"""Attention inside each example of a flat line on a GPU: torch's own kernel for rows of any length."""

from functools import lru_cache

import torch


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: tuple[int, ...],
    scale: float,
    window: int | None,
) -> torch.Tensor:
    """Causal; query, key and value: (heads, tokens, width), the result (tokens, heads, width).

    Raises: RuntimeError or ImportError where the kernel has not this format, width or device.
    """
    from torch.nn.attention.varlen import varlen_attn

    bounds, longest = _bounds(lengths, query.device)
    output = varlen_attn(
        query.transpose(0, 1).contiguous(),
        key.transpose(0, 1).contiguous(),
        value.transpose(0, 1).contiguous(),
        bounds,
        bounds,
        longest,
        longest,
        scale=scale,
        # So many tokens to the left beside the query itself.
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=len(query) != len(key),
    )
    assert isinstance(output, torch.Tensor)
    return output


@lru_cache(maxsize=8)
def _bounds(lengths: tuple[int, ...], device: torch.device) -> tuple[torch.Tensor, int]:
    """Where examples begin and end, int32; the longest's tokens."""
    ends = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    return ends.to(device), max(lengths)

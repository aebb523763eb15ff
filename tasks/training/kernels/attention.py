"""Causal attention inside each example of a flat line of tokens, as plain matrix products.

A block-diagonal mask over the whole line pays for its zeros, and on a CPU the backward pass of torch's
fused attention is several times slower in bfloat16 than the products it is made of. Here examples of
about one length are multiplied together, nothing is computed across examples, and the probabilities
are kept for the backward pass only where rows are short.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tasks.training.kernels.layout import Group, groups_of

NAME = "per_example"
"""As transformers' `attn_implementation`."""
LENGTHS = "example_lengths"
"""The model's keyword argument: a tuple with the tokens of each example of the line."""
_BLOCK = 256
"""Queries that are compared with all keys up to them at once: smaller ones see fewer keys in vain."""
_KEPT = 512
"""Tokens of an example up to which the probabilities are kept for the backward pass. Of longer ones
they are computed again: that memory grows with the square."""


def register() -> None:
    """Let transformers' models be switched to `NAME`."""
    ALL_ATTENTION_FUNCTIONS.register(NAME, _attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, lambda *_, **__: None)


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
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: (1, heads, tokens, width) to (1, tokens, heads, width)."""
    if dropout or softcap is not None or s_aux is not None or attention_mask is not None:
        raise NotImplementedError("attention with dropout, soft caps, sinks or a mask of its own")
    if len(query) != 1:
        raise NotImplementedError("attention by examples for more than one line")
    # A line that says nothing is one example.
    lengths: tuple[int, ...] = kwargs.get(LENGTHS) or (query.shape[2],)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    window = sliding_window or None
    # Not by an index, whose backward pass fills a second tensor.
    flat = (x.squeeze(0) for x in (query, key, value))
    output = _PerExample.apply(*flat, groups_of(lengths), scale, window)
    return output.transpose(0, 1).unsqueeze(0), None


class _PerExample(torch.autograd.Function):
    """softmax(scale * q k^T + causal mask) v for each example; heads first, the line's tokens second."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        groups: tuple[Group, ...],
        scale: float,
        window: int | None,
    ) -> torch.Tensor:
        heads, tokens, _ = query.shape
        # In memory tokens come first: the next layer reads a token's heads side by side.
        output = value.new_empty(tokens, heads, value.shape[-1]).transpose(0, 1)
        saved: list[torch.Tensor] = []
        for group in groups:
            q = _queries(group.take(query), len(key))
            k, v = group.take(key).flatten(0, 1), group.take(value).flatten(0, 1)
            attended = v.new_empty(*q.shape[:-1], v.shape[-1])
            kept = []
            for block in _blocks(group.length):
                p = _probabilities(q, k, block, scale, window)
                attended[:, :, block] = torch.bmm(p, v[:, : block.stop]).unflatten(
                    1, (q.shape[1], -1)
                )
                kept.append(p)
            group.put(_heads(attended, len(key)), output)
            saved += [q, k, v, attended, *(kept if group.length <= _KEPT else [])]
        ctx.save_for_backward(*saved)
        ctx.groups, ctx.scale, ctx.window = groups, scale, window
        ctx.shapes = query.shape, key.shape, value.shape
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = gradients
        saved = iter(ctx.saved_tensors)
        kv_heads = ctx.shapes[1][0]
        grads = [gradient.new_empty(n, h, w).transpose(0, 1) for h, n, w in ctx.shapes]
        for group in ctx.groups:
            q, k, v, attended = (next(saved) for _ in range(4))
            blocks = list(_blocks(group.length))
            kept = [next(saved) for _ in blocks] if group.length <= _KEPT else None
            g = _queries(group.take(gradient), kv_heads)
            # What softmax's derivative subtracts: one number per query.
            mean = (g * attended).sum(-1, keepdim=True)
            dq = torch.empty_like(q)
            dk, dv = torch.empty(0), torch.empty(0)
            # From the last block, whose queries see every key, so that the others add to its sums.
            for at in reversed(range(len(blocks))):
                block = blocks[at]
                p = kept[at] if kept else _probabilities(q, k, block, ctx.scale, ctx.window)
                gb, qb, mb = (x[:, :, block].flatten(1, 2) for x in (g, q, mean))
                dp = torch.bmm(gb, v[:, : block.stop].transpose(1, 2)).sub_(mb).mul_(p)
                dq[:, :, block] = torch.bmm(dp, k[:, : block.stop]).unflatten(1, (q.shape[1], -1))
                k_part, v_part = torch.bmm(dp.transpose(1, 2), qb), torch.bmm(p.transpose(1, 2), gb)
                if block.stop == group.length:
                    dk, dv = (x if at == 0 else x.float() for x in (k_part, v_part))
                else:
                    dk[:, : block.stop] += k_part
                    dv[:, : block.stop] += v_part
            group.put(_heads(dq.mul_(ctx.scale), kv_heads), grads[0])
            group.put(dk.mul_(ctx.scale).to(k.dtype).unflatten(0, (kv_heads, -1)), grads[1])
            group.put(dv.to(v.dtype).unflatten(0, (kv_heads, -1)), grads[2])
        return (*grads, None, None, None)


def _queries(part: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """(heads, count, length, width) to (kv heads x count, heads per kv head, length, width)."""
    return part.unflatten(0, (kv_heads, -1)).transpose(1, 2).flatten(0, 1).contiguous()


def _heads(part: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """The way back of `_queries`."""
    return part.unflatten(0, (kv_heads, -1)).transpose(1, 2).flatten(0, 1)


def _blocks(length: int) -> Iterator[slice]:
    for begin in range(0, length, _BLOCK):
        yield slice(begin, min(length, begin + _BLOCK))


def _probabilities(
    q: torch.Tensor, k: torch.Tensor, block: slice, scale: float, window: int | None
) -> torch.Tensor:
    """(batch, queries of the block for each head, keys up to its end)."""
    queries = q[:, :, block].flatten(1, 2)
    keys = k[:, : block.stop]
    mask = _mask(block.start, block.stop, window, q.shape[1], q.dtype)
    scores = torch.baddbmm(
        mask.expand(len(queries), -1, -1), queries, keys.transpose(1, 2), alpha=scale
    )
    return torch.softmax(scores, -1)


@lru_cache(maxsize=512)
def _mask(
    begin: int, end: int, window: int | None, repeats: int, dtype: torch.dtype
) -> torch.Tensor:
    """0 where query `begin + i` sees key `j`, else minus infinity; once per head of a kv head."""
    distance = torch.arange(begin, end)[:, None] - torch.arange(end)[None]
    hidden = distance < 0
    if window is not None:
        hidden |= distance >= window
    return (
        torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, -torch.inf).repeat(repeats, 1)
    )

"""Causal attention inside each example of a flat line of tokens, as plain matrix products.

A block-diagonal mask over the whole line pays for its zeros, and on a CPU the backward pass of torch's
fused attention is several times slower in bfloat16 than the products it is made of. Here examples of
about one length are multiplied together, nothing is computed across examples, and the probabilities
are kept for the backward pass only where rows are short.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tasks.training.kernels.layout import Group, groups_of
from tasks.training.kernels.pointwise import Rotation, rotated

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
    work = _Work(groups_of(lengths), scale, sliding_window or None, Rotation.awaited_by(query))
    # Not by an index, whose backward pass fills a second tensor.
    parts = tuple(x.squeeze(0) for x in (query, key, value))
    if (whole := _fused(parts)) is not None:
        work.heads = tuple(len(part) for part in parts)
        output = _PerExample.apply(work, whole)
    else:
        output = _PerExample.apply(work, *parts)
    return output.transpose(0, 1).unsqueeze(0), None


@dataclass
class _Work:
    """What attention has to know beside its tensors."""

    groups: tuple[Group, ...]
    scale: float
    window: int | None
    rotation: Rotation | None
    """Of queries and keys that are not yet turned."""
    heads: tuple[int, ...] = ()
    """Of queries, keys and values where one tensor holds all of them."""

    def parts(self, inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Queries, keys and values, each (heads, tokens, width), of tensors of one of both kinds."""
        if not self.heads:
            return inputs
        return inputs[0].unflatten(-1, (sum(self.heads), -1)).transpose(0, 1).split(self.heads)

    def turned(self, part: torch.Tensor, group: Group, sign: int) -> torch.Tensor:
        """(kv heads x count, heads per kv head, length, width) of a group, rotated or rotated back."""
        if self.rotation is None:
            return part
        cos, sin = self.rotation.of(group)
        return rotated(part.unflatten(0, (-1, group.count)), cos, sin, sign).flatten(0, 1)


def _fused(parts: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """The (tokens, all heads x width) that queries, keys and values are views of, in this order.

    Its gradient is then written once. The three views' own ones would each be filled with zeros up to
    its size and added.
    """
    whole = parts[0]._base
    if whole is None or whole.requires_grad != parts[0].requires_grad:
        return None
    whole = whole.flatten(0, -2)
    _, tokens, width = parts[0].shape
    heads = [len(part) for part in parts]
    if whole.shape != (tokens, sum(heads) * width) or not whole.is_contiguous():
        return None
    views = whole.unflatten(-1, (sum(heads), -1)).transpose(0, 1).split(heads)
    same = (
        view.data_ptr() == part.data_ptr() and view.stride() == part.stride()
        for view, part in zip(views, parts, strict=True)
    )
    return whole if all(same) else None


class _PerExample(torch.autograd.Function):
    """softmax(scale * q k^T + causal mask) v for each example; heads first, the line's tokens second."""

    @staticmethod
    def forward(ctx: Any, work: _Work, *inputs: torch.Tensor) -> torch.Tensor:
        query, key, value = work.parts(inputs)
        heads, tokens, _ = query.shape
        # In memory tokens come first: the next layer reads a token's heads side by side.
        output = value.new_empty(tokens, heads, value.shape[-1]).transpose(0, 1)
        saved: list[torch.Tensor] = []
        for group in work.groups:
            q = work.turned(_queries(group.take(query), len(key)), group, 1)
            k = work.turned(_queries(group.take(key), len(key)), group, 1)[:, 0]
            v = group.take(value).flatten(0, 1)
            kept, found = [], []
            for block in _blocks(group.length):
                p = _probabilities(q, k, block, work.scale, work.window)
                found.append(torch.bmm(p, v[:, : block.stop]).unflatten(1, (q.shape[1], -1)))
                kept.append(p)
            group.put(_heads(_joined(found), len(key)), output)
            saved += [q, k, v, *(kept if group.length <= _KEPT else [])]
        # The output costs nothing: the projection after it keeps it, too.
        ctx.save_for_backward(output, *saved)
        ctx.work, ctx.kv_heads = work, len(key)
        ctx.shapes = [(x.shape, not work.heads) for x in inputs]
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = gradients
        work, kv_heads, saved = ctx.work, ctx.kv_heads, iter(ctx.saved_tensors)
        # What softmax's derivative subtracts: one number per query.
        means = (gradient * next(saved)).sum(-1, keepdim=True)
        # In memory tokens come first, as in what they are the gradients of.
        grads = [
            gradient.new_empty(shape[1], shape[0], *shape[2:]).transpose(0, 1)
            if heads_first
            else gradient.new_empty(shape)
            for shape, heads_first in ctx.shapes
        ]
        parts = work.parts(grads)
        for group in work.groups:
            q, k, v = (next(saved) for _ in range(3))
            blocks = list(_blocks(group.length))
            kept = [next(saved) for _ in blocks] if group.length <= _KEPT else None
            g, mean = (_queries(group.take(x), kv_heads) for x in (gradient, means))
            found = []
            dk, dv = torch.empty(0), torch.empty(0)
            # From the last block, whose queries see every key, so that the others add to its sums.
            for at in reversed(range(len(blocks))):
                block = blocks[at]
                p = kept[at] if kept else _probabilities(q, k, block, work.scale, work.window)
                gb, qb, mb = (x[:, :, block].flatten(1, 2) for x in (g, q, mean))
                dp = torch.bmm(gb, v[:, : block.stop].transpose(1, 2)).sub_(mb).mul_(p)
                found.append(torch.bmm(dp, k[:, : block.stop]).unflatten(1, (q.shape[1], -1)))
                k_part, v_part = torch.bmm(dp.transpose(1, 2), qb), torch.bmm(p.transpose(1, 2), gb)
                if block.stop == group.length:
                    dk, dv = (x if at == 0 else x.float() for x in (k_part, v_part))
                else:
                    dk[:, : block.stop] += k_part
                    dv[:, : block.stop] += v_part
            dq = work.turned(_joined(found[::-1]).mul_(work.scale), group, -1)
            dk = work.turned(dk.mul_(work.scale).to(k.dtype)[:, None], group, -1)
            for part, own in zip(parts, (dq, dk, dv.to(v.dtype)[:, None]), strict=True):
                group.put(_heads(own, kv_heads), part)
        return (None, *grads)


def _queries(part: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """(heads, count, length, width) to (kv heads x count, heads per kv head, length, width)."""
    return part.unflatten(0, (kv_heads, -1)).transpose(1, 2).flatten(0, 1).contiguous()


def _heads(part: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """The way back of `_queries`."""
    return part.unflatten(0, (kv_heads, -1)).transpose(1, 2).flatten(0, 1)


def _joined(blocks: list[torch.Tensor]) -> torch.Tensor:
    """Blocks of queries one behind the other; most examples have one."""
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, 2)


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

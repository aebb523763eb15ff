"""Causal attention inside each example of a flat line of tokens, as plain matrix products.

A block-diagonal mask over the whole line pays for its zeros, and on a CPU the backward pass of torch's
fused attention is several times slower in bfloat16 than the products it is made of. Here examples of
about one length are multiplied together, nothing is computed across examples, and the probabilities
are kept for the backward pass only where rows are short. Keys and values of a beginning that all
examples share are computed once, and each example sees them before its own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tasks.training.kernels.layout import Asked, Group, Layout, asked_of, groups_of
from tasks.training.kernels.pointwise import Rotation, rotated

NAME = "per_example"
"""As transformers' `attn_implementation`."""
LAYOUT = "line_layout"
"""The model's keyword argument: a `Layout`, what the line consists of."""
ASKED = "attention_asked_at"
"""A layer's keyword argument: positions of the line whose attention is read; without it, all are."""
_BLOCK = 256
"""Queries that are compared with all keys up to them at once: smaller ones see fewer keys in vain."""
_KEPT = 512
"""Tokens that an example sees up to which the probabilities are kept for the backward pass. Of longer
ones they are computed again: that memory grows with the square."""


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
    layout: Layout = kwargs.get(LAYOUT) or Layout(0, (query.shape[2],))
    groups, positions = groups_of(layout), kwargs.get(ASKED)
    work = _Work(
        [(group, group if positions is None else asked_of(group, positions)) for group in groups],
        query.shape[-1] ** -0.5 if scaling is None else scaling,
        sliding_window or None,
        Rotation.awaited_by(query),
    )
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

    groups: Sequence[tuple[Group, Group | Asked]]
    """Keys and values, and the queries that are compared with them."""
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

    @property
    def is_whole(self) -> bool:
        """Whether every token asks."""
        return all(asked is group for group, asked in self.groups)

    def turned(self, part: torch.Tensor, group: Group | Asked, sign: int) -> torch.Tensor:
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


class _Keyed(NamedTuple):
    """Turned keys, and values, of a group: each (kv heads x count, tokens, width)."""

    keys: torch.Tensor
    values: torch.Tensor

    def behind(self, shared: "_Keyed") -> "_Keyed":
        """Each example's, behind those of the shared beginning; made anew in the backward pass, since kept
        it would stand in memory once for each example and layer."""
        count = len(self.keys) // len(shared.keys)
        both = zip(shared, self, strict=True)
        return _Keyed(*(torch.cat([a.repeat_interleave(count, 0), b], 1) for a, b in both))


class _PerExample(torch.autograd.Function):
    """softmax(scale * q k^T + causal mask) v for each example; heads first, the line's tokens second."""

    @staticmethod
    def forward(ctx: Any, work: _Work, *inputs: torch.Tensor) -> torch.Tensor:
        query, key, value = work.parts(inputs)
        heads, tokens, _ = query.shape
        # In memory tokens come first: the next layer reads a token's heads side by side.
        new = value.new_empty if work.is_whole else value.new_zeros
        output = new(tokens, heads, value.shape[-1]).transpose(0, 1)
        saved: list[torch.Tensor] = []
        shared: _Keyed | None = None
        for group, asked in work.groups:
            q = work.turned(_queries(asked.take(query), len(key)), asked, 1)
            own = _Keyed(
                work.turned(_queries(group.take(key), len(key)), group, 1)[:, 0],
                group.take(value).flatten(0, 1),
            )
            shared = shared or own
            k, v = own.behind(shared) if group.before else own
            kept, found = [], []
            for block in _blocks(group, asked):
                p = _probabilities(q, k, block, asked, work)
                found.append(torch.bmm(p, v[:, : block.keys]).unflatten(1, (q.shape[1], -1)))
                kept.append(p)
            asked.put(_heads(_joined(found), len(key)), output)
            saved += [q, *own, *kept[: _kept_blocks(group, asked)]]
        ctx.save_for_backward(*saved)
        ctx.work, ctx.kv_heads = work, len(key)
        ctx.shapes = [(x.shape, not work.heads) for x in inputs]
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = gradients
        work, kv_heads, saved = ctx.work, ctx.kv_heads, iter(ctx.saved_tensors)
        # In memory tokens come first, as in what they are the gradients of.
        grads = [
            gradient.new_empty(shape[1], shape[0], *shape[2:]).transpose(0, 1)
            if heads_first
            else gradient.new_empty(shape)
            for shape, heads_first in ctx.shapes
        ]
        parts = work.parts(grads)
        if not work.is_whole:
            parts[0].zero_()
        kept = [
            (group, asked, [next(saved) for _ in range(3 + _kept_blocks(group, asked))])
            for group, asked in work.groups
        ]
        first = _Keyed(*kept[0][2][1:3])
        shared: list[torch.Tensor] = []
        # The shared beginning comes last: its gradient is the sum over all examples.
        for group, asked, (q, k, v, *found) in reversed(kept):
            g = _queries(asked.take(gradient), kv_heads)
            keyed = _Keyed(k, v).behind(first) if group.before else _Keyed(k, v)
            dq, *of_keys = _gradients(group, asked, (q, *keyed, g), found, work)
            asked.put(_heads(work.turned(dq, asked, -1), kv_heads), parts[0])
            if group.before:
                sums = [_summed(x[:, : group.before], group.count) for x in of_keys]
                shared = [x + y for x, y in zip(shared, sums, strict=True)] if shared else sums
                of_keys = [x[:, group.before :] for x in of_keys]
            elif shared:
                of_keys = [x + y for x, y in zip(of_keys, shared, strict=True)]
            dk, dv = (x.to(gradient.dtype)[:, None] for x in of_keys)
            for part, own in zip(parts[1:], (work.turned(dk, group, -1), dv), strict=True):
                group.put(_heads(own, kv_heads), part)
        return (None, *grads)


def _gradients(
    group: Group,
    asked: Group | Asked,
    line: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    kept: Sequence[torch.Tensor],
    work: _Work,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of a group's queries, keys and values, of these and of the output's gradient."""
    q, k, v, g = line
    blocks = list(_blocks(group, asked))
    found = []
    dk, dv = torch.empty(0), torch.empty(0)
    # From the last block, whose queries see every key, so that the others add to its sums.
    for at in reversed(range(len(blocks))):
        block = blocks[at]
        p = kept[at] if kept else _probabilities(q, k, block, asked, work)
        gb, qb = (x[:, :, block.queries].flatten(1, 2) for x in (g, q))
        dp = torch.bmm(gb, v[:, : block.keys].transpose(1, 2))
        ds = torch.ops.aten._softmax_backward_data(dp, p, -1, p.dtype)
        found.append(torch.bmm(ds, k[:, : block.keys]).unflatten(1, (q.shape[1], -1)))
        k_part, v_part = torch.bmm(ds.transpose(1, 2), qb), torch.bmm(p.transpose(1, 2), gb)
        if at == len(blocks) - 1:
            dk, dv = (x if at == 0 else x.float() for x in (k_part, v_part))
        else:
            dk[:, : block.keys] += k_part
            dv[:, : block.keys] += v_part
    return _joined(found[::-1]).mul_(work.scale), dk.mul_(work.scale), dv


def _queries(part: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """(heads, count, length, width) to (kv heads x count, heads per kv head, length, width)."""
    return part.unflatten(0, (kv_heads, -1)).transpose(1, 2).flatten(0, 1).contiguous()


def _heads(part: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """The way back of `_queries`."""
    return part.unflatten(0, (kv_heads, -1)).transpose(1, 2).flatten(0, 1)


def _summed(part: torch.Tensor, count: int) -> torch.Tensor:
    """(kv heads x count, tokens, width) to float32 sums over the examples."""
    return part.unflatten(0, (-1, count)).sum(1, dtype=torch.float32)


def _joined(blocks: list[torch.Tensor]) -> torch.Tensor:
    """Blocks of queries one behind the other; most examples have one."""
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, 2)


class _Block(NamedTuple):
    """Queries that are compared with keys at once."""

    begin: int
    end: int
    keys: int
    """From the first one that the example sees."""

    @property
    def queries(self) -> slice:
        return slice(self.begin, self.end)


def _blocks(group: Group, asked: Group | Asked) -> Iterator[_Block]:
    for begin in range(0, asked.length, _BLOCK):
        end = min(asked.length, begin + _BLOCK)
        yield _Block(begin, end, group.before + (end if asked is group else group.length))


def _kept_blocks(group: Group, asked: Group | Asked) -> int:
    """Of how many blocks the probabilities are kept for the backward pass: of all, or of none."""
    return len(list(_blocks(group, asked))) if group.before + group.length <= _KEPT else 0


def _probabilities(
    q: torch.Tensor, k: torch.Tensor, block: _Block, asked: Group | Asked, work: _Work
) -> torch.Tensor:
    """(batch, queries of the block for each head, keys of the block)."""
    queries = q[:, :, block.queries].flatten(1, 2)
    keys = k[:, : block.keys]
    if isinstance(asked, Asked):
        mask = _mask_at(asked.within[:, block.queries], block.keys, work.window, q.dtype)
        # Once per head of a kv head, and per kv head.
        mask = mask.repeat(len(q) // asked.count, q.shape[1], 1)
    else:
        mask = _mask(block, work.window, q.shape[1], q.dtype).expand(len(q), -1, -1)
    scores = torch.baddbmm(mask, queries, keys.transpose(1, 2), alpha=work.scale)
    return torch.softmax(scores, -1)


@lru_cache(maxsize=512)
def _mask(block: _Block, window: int | None, repeats: int, dtype: torch.dtype) -> torch.Tensor:
    """(queries, keys) of a block in which every token asks, once per head of a kv head."""
    before = block.keys - block.end
    places = torch.arange(before + block.begin, before + block.end)
    return _mask_at(places, block.keys, window, dtype).repeat(repeats, 1)


def _mask_at(
    places: torch.Tensor, keys: int, window: int | None, dtype: torch.dtype
) -> torch.Tensor:
    """(..., keys): 0 where a query at such a place of its example sees a key, else minus infinity."""
    distance = places[..., None] - torch.arange(keys)
    hidden = distance < 0
    if window is not None:
        hidden |= distance >= window
    return torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, -torch.inf)

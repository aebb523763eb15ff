"""The two loralib layouts that PEFT lacks, as block-structured LoRA pairs of the same weight change.

Both directions only copy numbers, so there and back again is bit-equal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def spread_merged(b: Tensor, out_features: int, enable_lora: Sequence[bool]) -> Tensor:
    """PEFT's lora_B (out_features, r * enabled) of a `MergedLinear`.

    `b` is loralib's lora_B (out_features / blocks * enabled, r): a grouped convolution, in which the
    g-th enabled block of output rows sees the g-th r rows of lora_A and no others.
    """
    enabled = sum(enable_lora)
    rows, r = out_features // len(enable_lora), b.shape[1]
    wide = b.new_zeros((out_features, r * enabled))
    for group, block in enumerate(_enabled_blocks(enable_lora)):
        wide[_span(block, rows), _span(group, r)] = b[_span(group, rows)]
    return wide


def gather_merged(wide: Tensor, enable_lora: Sequence[bool]) -> Tensor:
    """The inverse of `spread_merged`; what lies outside the blocks is not looked at."""
    rows, r = wide.shape[0] // len(enable_lora), wide.shape[1] // sum(enable_lora)
    b = wide.new_empty((rows * sum(enable_lora), r))
    for group, block in enumerate(_enabled_blocks(enable_lora)):
        b[_span(group, rows)] = wide[_span(block, rows), _span(group, r)]
    return b


def spread_conv(a: Tensor, b: Tensor, kernel: int) -> tuple[Tensor, Tensor]:
    """PEFT's (lora_A, lora_B) of a `Conv2d` without groups: (r*k*k, in, k, k) and (out, r*k*k, 1, 1).

    loralib reads the product of `b` (out * k, r * k) and `a` (r * k, in * k) as a weight (out, in, k, k).
    So each output channel is k rows of `b`, and the p-th of them makes the p-th k-th of that channel's
    in * k * k weights: k times the same lora_A on the diagonal, and the k rows side by side.
    """
    inner, width = a.shape
    out_channels, in_channels = b.shape[0] // kernel, width // kernel
    diagonal = a.new_zeros((kernel * inner, kernel * width))
    for at in range(kernel):
        diagonal[_span(at, inner), _span(at, width)] = a
    return (
        diagonal.reshape(kernel * inner, in_channels, kernel, kernel),
        b.reshape(out_channels, kernel * inner, 1, 1),
    )


def gather_conv(wide_a: Tensor, wide_b: Tensor, kernel: int) -> tuple[Tensor, Tensor]:
    """The inverse of `spread_conv`; only the first of the k diagonal blocks is looked at."""
    rank, in_channels = wide_a.shape[:2]
    inner, width = rank // kernel, in_channels * kernel
    a = wide_a.reshape(rank, kernel * width)[:inner, :width]
    return a.contiguous(), wide_b.reshape(-1, inner)


def _enabled_blocks(enable_lora: Sequence[bool]) -> list[int]:
    return [block for block, enabled in enumerate(enable_lora) if enabled]


def _span(at: int, size: int) -> slice:
    return slice(at * size, (at + 1) * size)

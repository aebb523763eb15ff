"""Keys and values of a batch whose rows leave when they are done and are followed by others.

All rows end at the right edge, so that a batch is narrowed at its left and merged with a narrower one
by padding that one at its left; what a row attends to never moves against it.
"""

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

STEPS = 64
"""Places by which a layer grows at a time: it is copied once in so many steps, not at every one."""


class Layer(DynamicLayer):
    """One layer's keys and values, (rows, heads, places, size), with room behind them."""

    keys: torch.Tensor
    values: torch.Tensor
    _key_room: torch.Tensor
    _value_room: torch.Tensor

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append places; all of them come back."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            empty = key_states[:, :, :0], value_states[:, :, :0]
            self._move(*empty, key_states.shape[-2])
        before, more = self.keys.shape[-2], key_states.shape[-2]
        if before + more > self._key_room.shape[-2]:
            self._move(self.keys, self.values, more)
        end = before + more
        self._key_room[:, :, before:end] = key_states
        self._value_room[:, :, before:end] = value_states
        self._show(end)
        return self.keys, self.values

    def keep(self, rows: torch.Tensor) -> None:
        """Only these rows stay."""
        places = self.keys.shape[-2]
        self._key_room, self._value_room = self._key_room[rows], self._value_room[rows]
        self._show(places)

    def narrow(self, places: int) -> None:
        """Forget the first `places`, which no row needs."""
        left = self.keys.shape[-2] - places
        self._key_room = self._key_room[:, :, places:]
        self._value_room = self._value_room[:, :, places:]
        self._show(left)

    def append(self, other: "Layer") -> None:
        """The other's rows follow this one's, both ending at the right edge."""
        places = max(self.keys.shape[-2], other.keys.shape[-2])
        both = [(self.keys, other.keys), (self.values, other.values)]
        self._key_room, self._value_room = (_stacked(a, b, places) for a, b in both)
        self._show(places)

    def _move(self, keys: torch.Tensor, values: torch.Tensor, more: int) -> None:
        places = keys.shape[-2]
        self._key_room, self._value_room = (
            _room(old, old.shape[0], places + more + STEPS) for old in (keys, values)
        )
        self._key_room[:, :, :places] = keys
        self._value_room[:, :, :places] = values
        self._show(places)

    def _show(self, places: int) -> None:
        self.keys, self.values = self._key_room[:, :, :places], self._value_room[:, :, :places]


def _room(like: torch.Tensor, rows: int, places: int) -> torch.Tensor:
    # Zeros: what is masked is multiplied by nothing, which a stray NaN would survive.
    return like.new_zeros(rows, like.shape[1], places, like.shape[3])


def _stacked(first: torch.Tensor, second: torch.Tensor, places: int) -> torch.Tensor:
    rows = first.shape[0]
    made = _room(first, rows + second.shape[0], places + STEPS)
    made[:rows, :, places - first.shape[-2] : places] = first
    made[rows:, :, places - second.shape[-2] : places] = second
    return made


def new_cache() -> Cache:
    """An empty cache; every layer keeps all places, also where the model's window slides."""
    return Cache(layer_class_to_replicate=Layer)


def fits(model: Any) -> bool:
    """Whether the model remembers by keys and values alone (not by a running state, as Mamba does)."""
    kinds = {DynamicLayer, DynamicSlidingWindowLayer}
    try:
        found = DynamicCache(config=model.config).layers
    except (KeyError, AttributeError):
        # A kind of layer that transformers has no such cache for.
        return False
    return not getattr(model, "_is_stateful", False) and all(type(one) in kinds for one in found)

"""Greedy answers in a batch that stays full: finished rows leave it, and the next prompts come in."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from tasks.evaluation.batches import batches
from tasks.evaluation.cache import Layer, new_cache

Answer = tuple[list[int], int | None]
"""Token ids up to the first stop token, and which one it was (None: the limit came first)."""

OnDone = Callable[[int], None]
REFILL_SHARE = 4
"""A batch is refilled when a fourth of it is empty: each time, all of it is copied once."""


@torch.inference_mode()
def greedy(
    model: Any,
    prompts: Sequence[Sequence[int]],
    rooms: Sequence[int],
    batch_size: int,
    stop_tokens: Sequence[int],
    on_done: OnDone = lambda rows: None,
) -> list[Answer]:
    """The model's first choices, token by token, behind each prompt.

    `rooms` holds each row's longest answer in tokens, at least 1. Longest prompts go first, so that
    what does not fit into memory fails at once. `on_done` hears how many rows are done so far.
    """
    waiting = sorted(range(len(prompts)), key=lambda row: (-len(prompts[row]), row))
    answers: list[Answer] = [([], None)] * len(prompts)
    running = _Running(model, stop_tokens)
    done = 0
    while waiting or running.rows:
        free = batch_size - len(running.rows)
        if waiting and free >= max(1, batch_size // REFILL_SHARE):
            chosen, waiting = waiting[:free], waiting[free:]
            running.add([prompts[row] for row in chosen], [(row, rooms[row]) for row in chosen])
        finished = running.take_finished()
        for row, answer in finished:
            answers[row] = answer
        if finished:
            done += len(finished)
            on_done(done)
        elif running.rows:
            running.step()
    return answers


@dataclass
class _Row:
    number: int
    room: int
    places: int
    """Prompt and answer so far, in tokens."""
    ids: list[int] = field(default_factory=list)


class _Running:
    """The rows that are being answered, each with its newest token not yet read by the model."""

    def __init__(self, model: Any, stop_tokens: Sequence[int]) -> None:
        self.rows: list[_Row] = []
        self._model = model
        self._stops = frozenset(stop_tokens)
        self._padding = stop_tokens[0]
        self._cache: Any = None

    def add(self, prompts: Sequence[Sequence[int]], rows: Sequence[tuple[int, int]]) -> None:
        """Read prompts and choose each one's first token."""
        device = self._model.device
        (batch,) = batches(prompts, len(prompts), self._padding)
        cache = new_cache()
        output = self._model(
            input_ids=torch.tensor(batch.input_ids, device=device),
            attention_mask=torch.tensor(batch.attention_mask, device=device),
            position_ids=torch.tensor(batch.position_ids, device=device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        added = [_Row(*rows[n], places=len(prompts[n])) for n in batch.rows]
        if self._cache is None or not self.rows:
            self._cache = cache
        else:
            for mine, theirs in zip(self._cache.layers, cache.layers, strict=True):
                assert isinstance(mine, Layer)
                mine.append(theirs)
        self.rows += added
        self._choose(added, output.logits)

    def step(self) -> None:
        """Read every row's newest token and choose the next."""
        device = self._model.device
        # Places are counted with the token that is read now.
        width = max(row.places for row in self.rows)
        places = torch.tensor([row.places for row in self.rows], device=device)[:, None]
        output = self._model(
            input_ids=torch.tensor([row.ids[-1:] for row in self.rows], device=device),
            attention_mask=(torch.arange(width, device=device) >= width - places).long(),
            position_ids=places - 1,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._choose(self.rows, output.logits)

    def take_finished(self) -> list[tuple[int, Answer]]:
        """Number and answer of every row that has stopped or filled its room; they leave the batch."""
        finished: list[tuple[int, Answer]] = []
        kept: list[int] = []
        for place, row in enumerate(self.rows):
            if row.ids[-1] in self._stops:
                finished.append((row.number, (row.ids[:-1], row.ids[-1])))
            elif len(row.ids) == row.room:
                finished.append((row.number, (row.ids, None)))
            else:
                kept.append(place)
        if finished and kept:
            # The newest token of a row is not in the cache yet.
            wide = max(row.places for row in self.rows) - 1
            self.rows = [self.rows[place] for place in kept]
            spare = wide - (max(row.places for row in self.rows) - 1)
            index = torch.tensor(kept, device=self._model.device)
            for layer in self._cache.layers:
                layer.keep(index)
                if spare:
                    layer.narrow(spare)
        elif finished:
            self.rows, self._cache = [], None
        return finished

    def _choose(self, rows: Sequence[_Row], logits: torch.Tensor) -> None:
        for row, token in zip(rows, logits[:, -1].argmax(dim=-1).tolist(), strict=True):
            row.ids.append(token)
            row.places += 1

"""Adapters that start from the data: EVA's activations, CorDA's covariances, LoRA-GA's gradients.

PEFT does the mathematics; it wants the rows at the right moment: CorDA and LoRA-GA look at the base
before the adapter is put on, EVA at the adapted model before the first step.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import initialize_lora_eva_weights
from peft.tuners.lora.config import CordaConfig, LoraGAConfig
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.loraga import preprocess_loraga

from tasks.errors import UserError
from tasks.training.collators import Collator

GRADIENT_ROWS = 64
"""Rows whose mean gradient LoRA-GA decomposes."""
CORDA_TOKENS_PER_WIDTH = 128
"""CorDA's covariance of a width is full once it has seen about so many tokens for each dimension."""
EVA_TOKENS_PER_COMPONENT = 4
"""Tokens of a batch for each principal component that EVA looks for."""


def needs_rows(config: Any) -> bool:
    """Whether this PEFT configuration starts from the data."""
    return _start(config) in ("eva", "corda", "lora_ga")


def look_at_base(model: Any, config: Any, rows: Any, seed: int) -> None:
    """CorDA's and LoRA-GA's pass, over the plain base; nothing for other configurations.

    `rows` hold `input_ids` and `labels`; which are taken follows from `seed` alone. No random state
    is used up.
    """
    start = _start(config)
    if start not in ("corda", "lora_ga"):
        return
    if start == "corda":
        config.corda_config = config.corda_config or CordaConfig()
        with _random_state_kept(seed), torch.no_grad():
            preprocess_corda(model, config, lambda: _run(model, _corda_rows(model, rows, seed)))
        return
    config.lora_ga_config = config.lora_ga_config or LoraGAConfig()
    with _random_state_kept(seed):
        preprocess_loraga(model, config, lambda: _backward(model, rows, seed))
    model.zero_grad(set_to_none=True)


def look_at_adapter(model: Any, config: Any, rows: Any, seed: int) -> None:
    """EVA's pass: the first directions of every layer's inputs, and the ranks spread by what they explain.

    Raises: UserError when all rows together have fewer tokens than the decomposition needs.
    """
    if _start(config) != "eva":
        return
    components = round(max([config.r, *config.rank_pattern.values()]) * config.eva_config.rho)
    batches = _Batches(model, rows, seed, EVA_TOKENS_PER_COMPONENT * components)
    if len(batches) == 0:
        raise UserError(
            f"EVA decomposes the inputs of a layer into {components} directions (r x rho) and wants "
            f"{EVA_TOKENS_PER_COMPONENT * components} tokens at a time; the training rows have fewer in "
            "all. Lower training.peft_config.r, or take `init_lora_weights: true`."
        )
    inner = model.get_base_model()
    decoder = getattr(inner, inner.base_model_prefix)

    def forward(_: Any, inputs: dict[str, torch.Tensor]) -> None:
        # Past the head, whose logits nobody asked for.
        decoder(**{n: v for n, v in inputs.items() if n != "labels"}, use_cache=False)

    with _random_state_kept(seed):
        initialize_lora_eva_weights(
            model,
            batches,
            forward_fn=forward,
            # Every process sees the same rows.
            gather_distributed_inputs=False,
            show_progress_bar=False,
        )


class _Batches:
    """Batches of at least so many labelled or unlabelled tokens, in an order drawn from the seed."""

    def __init__(self, model: Any, rows: Any, seed: int, tokens: int) -> None:
        self._model, self._rows = model, rows
        self._groups: list[list[int]] = []
        group: list[int] = []
        held = 0
        for at in _order(len(rows), seed):
            group.append(at)
            held += _wanted(rows[at]["labels"])
            if held >= tokens:
                self._groups.append(group)
                group, held = [], 0

    def __len__(self) -> int:
        return len(self._groups)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for group in self._groups:
            yield _batch(self._model, self._rows, group)


def _wanted(labels: Sequence[int]) -> int:
    # EVA looks at tokens that carry loss (`use_label_mask`); the first one of a row is never predicted.
    return sum(label != -100 for label in labels)


def _start(config: Any) -> Any:
    return getattr(config, "init_lora_weights", None)


def _order(rows: int, seed: int) -> list[int]:
    order: list[int] = torch.randperm(rows, generator=torch.Generator().manual_seed(seed)).tolist()
    return order


def _batch(model: Any, rows: Any, places: Sequence[int]) -> dict[str, torch.Tensor]:
    picked = [{n: rows[at][n] for n in ("input_ids", "labels")} for at in places]
    return {n: v.to(model.device) for n, v in Collator(0, 1)(picked).items() if n in _INPUTS}


_INPUTS = ("input_ids", "attention_mask", "labels")


def _corda_rows(model: Any, rows: Any, seed: int) -> Iterator[dict[str, torch.Tensor]]:
    missing = CORDA_TOKENS_PER_WIDTH * model.config.get_text_config().hidden_size
    for at in _order(len(rows), seed):
        if missing <= 0:
            return
        missing -= len(rows[at]["input_ids"])
        # One at a time: PEFT's hook takes the inputs of a single row.
        yield _batch(model, rows, [at])


def _run(model: Any, batches: Iterator[dict[str, torch.Tensor]]) -> None:
    decoder = getattr(model, model.base_model_prefix)
    for batch in batches:
        decoder(input_ids=batch["input_ids"], use_cache=False)


def _backward(model: Any, rows: Any, seed: int) -> None:
    for at in _order(len(rows), seed)[:GRADIENT_ROWS]:
        model(**_batch(model, rows, [at]), use_cache=False).loss.backward()


@contextmanager
def _random_state_kept(seed: int) -> Iterator[None]:
    """Draws inside come from the seed and change nothing outside."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield

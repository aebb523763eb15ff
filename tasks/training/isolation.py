"""Prove, before the first step, that no packed example sees another one."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from peft import PeftConfig

from tasks.errors import UserError
from tasks.training.collators import NUM_TOKENS, Batch, PackCollator
from tasks.training.packs import EXAMPLE_LENGTHS

_LENGTHS = (7, 9)
"""Tokens of the two examples of the first pack: the second one is watched."""
_OTHER = 5
"""Tokens of the only example of the second pack, which is padded."""
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 2e-2}
"""Allowed difference from the example alone, relative to the largest logit."""


def require_isolation(
    model: Any,
    collator: PackCollator,
    peft_config: PeftConfig,
    autocast: AbstractContextManager[Any] | None = None,
) -> None:
    """Run a few tokens through the adapted model, packed and alone.

    What an example's logits depend on is told by their gradient, which at hidden positions is zero
    exactly, in every number format and with every attention kernel. That positions restart is told by
    the example alone, which must give the same logits.

    Raises: UserError when another example is seen, or when the adapter's method needs rows that
    stand alone.
    """
    _require_method(peft_config)
    first, watched = _LENGTHS
    tokens = _tokens(sum(_LENGTHS) + _OTHER, model.config.get_text_config().vocab_size)
    example = tokens[first : first + watched]
    together = collator([_row(tokens[: sum(_LENGTHS)], _LENGTHS), _row(tokens[-_OTHER:], [_OTHER])])
    alone = collator([_row(example, [watched])])
    place = slice(first, first + watched)
    training = model.training
    model.eval()
    try:
        with autocast or nullcontext():
            logits, seen = _logits_and_gradient(model, together, place)
            with torch.no_grad():
                # A batch that is padded to a multiple has positions behind the example's last one.
                reference = _forward(model, alone).logits[0, :watched].float()
    finally:
        model.train(training)
    own = seen[0, place].clone()
    seen[0, place] = 0
    difference = ((logits - reference).abs().max() / reference.abs().max()).item()
    restarts = difference <= _TOLERANCE.get(model.dtype, max(_TOLERANCE.values()))
    if not own.any() or seen.any() or not restarts:
        raise UserError(_refusal(model, sees=bool(seen.any()), difference=difference))


def _require_method(peft_config: PeftConfig) -> None:
    if peft_config.is_prompt_learning:
        raise UserError(
            f"tokenization.packing is on, and {peft_config.peft_type.value} puts its trained prompt "
            "before a row: only the first example of a pack would have one. Write "
            "`tokenization.packing: false`, or take another `peft_type`, such as LORA."
        )
    if getattr(peft_config, "alora_invocation_tokens", None):
        raise UserError(
            "tokenization.packing is on, and an adapter with `alora_invocation_tokens` looks for them "
            "once in a row: only the last example of a pack would be trained as you mean it. Write "
            "`tokenization.packing: false`."
        )


def _tokens(count: int, vocabulary: int) -> list[int]:
    # Any tokens do; a multiplicative step keeps neighbours different in every vocabulary.
    return [(1 + at * 7919) % vocabulary for at in range(count)]


def _row(tokens: list[int], lengths: Any) -> dict[str, Any]:
    return {"input_ids": tokens, "labels": tokens, EXAMPLE_LENGTHS: list(lengths)}


def _logits_and_gradient(
    model: Any, batch: Batch, place: slice
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits at `place` of the first line, and their gradient for every embedding of the batch."""
    embedded: list[torch.Tensor] = []
    hook = model.get_input_embeddings().register_forward_hook(
        lambda _module, _inputs, output: embedded.append(output.requires_grad_())
    )
    try:
        with torch.enable_grad():
            logits = _forward(model, batch).logits[0, place].float()
            [gradient] = torch.autograd.grad(logits.square().sum(), embedded[:1])
    finally:
        hook.remove()
    return logits.detach(), gradient


def _forward(model: Any, batch: Batch) -> Any:
    inputs = {
        name: value.to(model.device) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
        if name not in ("labels", NUM_TOKENS)
    }
    return model(**inputs, use_cache=False)


def _refusal(model: Any, *, sees: bool, difference: float) -> str:
    name = type(model.get_base_model()).__name__
    attention = model.config._attn_implementation
    reason = (
        "lets an example see the others of its pack"
        if sees
        else "computes an example of a pack otherwise than the example alone (logits differ by "
        f"{difference:.1%} of the largest)"
    )
    return (
        f"tokenization.packing is on, but {name} with `{attention}` attention {reason}: the adapter "
        "would learn from mixtures of rows that no user ever sends. Write `tokenization.packing: "
        "false`, or choose a base whose attention transformers can keep apart."
    )

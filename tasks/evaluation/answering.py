"""What one model makes of the test rows: the loss of their references, and its own greedy answers."""

from typing import Any

import torch
from transformers import GenerationConfig

from tasks.evaluation.batches import Batch, batches
from tasks.evaluation.cache import fits
from tasks.evaluation.greedy import Answer, greedy
from tasks.worker import emit

NO_LOSS = -100
LOGITS_AT_ONCE = 64_000_000
"""Logits held at a time while measuring loss (256 MB in fp32), whatever the vocabulary."""


@torch.inference_mode()
def measure(
    model: Any,
    rows: list[list[int]],
    labels: list[list[int]],
    batch_size: int,
    padding: int,
    name: str,
) -> tuple[list[float], list[int]]:
    """Teacher-forced loss of each row: the sum of -log p over its trained tokens (nats, float64), and
    how many of these tokens were the most likely one.

    A label counts at the position before it, so a first token cannot be trained. Logits are computed
    at trained positions of the batch only.
    """
    nll, correct = [0.0] * len(rows), [0] * len(rows)
    # Rows end at the right edge, so no batch has more trained places than its longest such tail.
    tail = max(
        len(row) - next(n for n, label in enumerate(row) if label != NO_LOSS) for row in labels
    )
    size = LOGITS_AT_ONCE // (model.config.get_text_config().vocab_size * tail)
    done = 0
    for batch in batches(rows, max(1, min(batch_size, size)), padding):
        targets = torch.tensor(
            [
                [NO_LOSS] * (batch.length - len(labels[row])) + [NO_LOSS, *labels[row][1:]]
                for row in batch.rows
            ],
            device=model.device,
        )[:, 1:]
        places = (targets != NO_LOSS).any(dim=0).nonzero().squeeze(1)
        output = model(**_tensors(batch, model.device), use_cache=False, logits_to_keep=places)
        targets = targets[:, places]
        trained = targets != NO_LOSS
        logits, wanted = output.logits[trained].float(), targets[trained]
        losses = torch.nn.functional.cross_entropy(logits, wanted, reduction="none").double()
        hits = (logits.argmax(dim=-1) == wanted).double()
        owners = trained.nonzero()[:, 0]
        totals = torch.zeros(2, len(batch.rows), dtype=torch.float64, device=model.device)
        totals.index_add_(1, owners, torch.stack([losses, hits]))
        for row, loss, right in zip(batch.rows, *totals.tolist(), strict=True):
            nll[row], correct[row] = loss, int(right)
        done += len(batch.rows)
        emit("measured", stage="evaluation", model=name, done=done, total=len(rows))
    return nll, correct


@torch.inference_mode()
def generate(
    model: Any,
    prompts: list[list[int]],
    rooms: list[int],
    batch_size: int,
    stop_tokens: list[int],
    name: str,
) -> list[Answer]:
    """Greedy answers: token ids up to the first stop token, and which one it was (None: none).

    `rooms` holds each row's longest answer in tokens; no more of it is kept, whatever its batch.
    """
    if not fits(model):
        return _generate_by_transformers(model, prompts, rooms, batch_size, stop_tokens, name)
    told = 0

    def tell(done: int) -> None:
        nonlocal told
        if done - told >= batch_size or done == len(prompts):
            told = done
            emit("generated", stage="evaluation", model=name, done=done, total=len(prompts))

    return greedy(model, prompts, rooms, batch_size, stop_tokens, tell)


def _generate_by_transformers(
    model: Any,
    prompts: list[list[int]],
    rooms: list[int],
    batch_size: int,
    stop_tokens: list[int],
    name: str,
) -> list[Answer]:
    """Batch by batch, each until its last row is done: for models that remember by a running state."""
    answers: list[Answer] = [([], None)] * len(prompts)
    done = 0
    for batch in batches(prompts, batch_size, padding=stop_tokens[0]):
        tensors = _tensors(batch, model.device)
        output = model.generate(
            input_ids=tensors["input_ids"],
            attention_mask=tensors["attention_mask"],
            generation_config=GenerationConfig(
                do_sample=False,
                num_beams=1,
                max_new_tokens=max(rooms[row] for row in batch.rows),
                eos_token_id=stop_tokens,
                pad_token_id=stop_tokens[0],
            ),
        )
        for row, ids in zip(batch.rows, output[:, batch.length :].tolist(), strict=True):
            answers[row] = _until_stop(ids[: rooms[row]], stop_tokens)
        done += len(batch.rows)
        emit("generated", stage="evaluation", model=name, done=done, total=len(prompts))
    return answers


def _until_stop(ids: list[int], stop_tokens: list[int]) -> Answer:
    for place, token in enumerate(ids):
        if token in stop_tokens:
            return ids[:place], token
    return ids, None


def _tensors(batch: Batch, device: Any) -> dict[str, torch.Tensor]:
    return {
        "input_ids": torch.tensor(batch.input_ids, device=device),
        "attention_mask": torch.tensor(batch.attention_mask, device=device),
        "position_ids": torch.tensor(batch.position_ids, device=device),
    }

"""Pretrain the starter model on the documented code of the installed packages."""

import argparse
import copy
import itertools
import json
import math
import multiprocessing
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "4096")

import torch
from corpus import Item, cache_folder, digest, first_paragraph, load
from documents import documents
from tokenizer import VOCABULARY, load_or_train
from torch import distributed
from torch.nn import functional
from transformers import GenerationConfig, Phi3Config, Phi3ForCausalLM, PreTrainedTokenizerFast

Document = tuple[torch.Tensor, torch.Tensor]
Batch = tuple[torch.Tensor, torch.Tensor]
LONGEST, STRIDE, BATCH = 512, 32, 2048
# Code only has to be understood; what is said about it is to be learned.
CONTEXT_WEIGHT = 0.3
HELD_OUT = 100
WARM_UP, DECAY_FROM = 0.01, 0.5
AVERAGE_OVER_STEPS = 150
SNAPSHOT_SECONDS = 480


def configuration(tokenizer: PreTrainedTokenizerFast) -> Phi3Config:
    """Return a Phi-3 of four layers, which stays below 8 MB in bf16."""
    return Phi3Config(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        original_max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def split(items: list[Item]) -> tuple[list[Item], list[Item]]:
    """Split off one item in a hundred, keeping items with the same first paragraph together."""
    parts: tuple[list[Item], list[Item]] = ([], [])
    for item in items:
        parts[int(digest(first_paragraph(item.doc)), 16) % HELD_OUT == 0].append(item)
    return parts


def encode(texts: list[tuple[str, str]], tokenizer: PreTrainedTokenizerFast) -> list[Document]:
    """Return each document's tokens, ending with `<|end|>`, and the weight of each of them."""
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    special = set(tokenizer.added_tokens_decoder)
    encoded = []
    for start in range(0, len(texts), 2_000):
        batch = texts[start : start + 2_000]
        found = tokenizer.backend_tokenizer.encode_batch([a + b for a, b in batch])
        for (context, _), encoding in zip(batch, found, strict=True):
            if special.intersection(encoding.ids):
                continue  # A source file that speaks about special tokens.
            tokens = torch.tensor([*encoding.ids, end][:LONGEST], dtype=torch.int16)
            weights = torch.ones(len(tokens), dtype=torch.float16)
            weights[: encoding.char_to_token(len(context)) if context else 0] = CONTEXT_WEIGHT
            encoded.append((tokens, weights))
    return encoded


def one_pass(encoded: list[Document], rng: random.Random) -> Iterator[Batch]:
    """Yield every document once, in batches of like length and in random order.

    Short rows of whole documents cost far less attention than packed rows, and start where a
    prompt starts. Lengths come in few sizes, because each new shape costs set-up time.
    """
    sizes: dict[int, list[Document]] = {}
    for document in rng.sample(encoded, len(encoded)):
        sizes.setdefault(-(-len(document[0]) // STRIDE) * STRIDE, []).append(document)
    groups = [
        (size, found[start : start + BATCH // size])
        for size, found in sizes.items()
        for start in range(0, len(found), BATCH // size)
    ]
    for size, group in rng.sample(groups, len(groups)):
        tokens = torch.zeros(BATCH // size, size + 1, dtype=torch.long)
        weights = torch.zeros(BATCH // size, size + 1)
        for row, document in enumerate(group):
            tokens[row, : len(document[0])] = document[0]
            weights[row, : len(document[1])] = document[1]
        yield tokens, weights


def batches(encoded: list[Document], seed: int) -> Iterator[Batch]:
    """Yield batches for ever, in a new order in every pass."""
    rng = random.Random(seed)
    while True:
        yield from one_pass(encoded, rng)


def share(rank: int, processes: int, encoded: list[Document]) -> Iterator[Batch]:
    """Yield this process's part of the training batches."""
    return itertools.islice(batches(encoded, 1), rank, None, processes)


def losses(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy of each token given those before it."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(tokens[:, :-1], use_cache=False).logits
        return functional.cross_entropy(
            logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
        ).view(tokens.shape[0], -1)


def optimizers(model: Phi3ForCausalLM, rate: float) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices and AdamW for the embeddings and norms."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def schedule(progress: float) -> float:
    """Return the share of the learning rate at this share of the time: up, flat, down to zero."""
    return min(1.0, progress / WARM_UP, (1.0 - progress) / (1.0 - DECAY_FROM))


@torch.no_grad()
def evaluate(model: Phi3ForCausalLM, encoded: list[Document]) -> tuple[float, float]:
    """Return the mean loss of all held-out tokens, and of those that are documentation."""
    total, documentation = [], []
    for tokens, weights in one_pass(encoded, random.Random(0)):
        loss, weights = losses(model, tokens), weights[:, 1:]
        total.append(loss[weights > 0.0])
        documentation.append(loss[weights == 1.0])
    return torch.cat(total).mean().item(), torch.cat(documentation).mean().item()


def save(model: Phi3ForCausalLM, folder: Path) -> None:
    """Save the weights in bf16 with the configuration."""
    half = copy.deepcopy(model).to(torch.bfloat16)
    half.save_pretrained(folder)


@dataclass
class Result:
    """What a pretraining came to."""

    model: Phi3ForCausalLM
    tokens: int
    steps: int


def train(
    rank: int, options: argparse.Namespace, train_set: list[Document], model: Phi3ForCausalLM
) -> Result:
    """Train one of the data-parallel processes; the first one keeps and saves the averaged weights.

    One thread each: on shared cores two threads wait for each other in every operation, and two
    processes only once in a step.
    """
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(options.port))
    distributed.init_process_group("gloo", rank=rank, world_size=options.processes)
    average = copy.deepcopy(model)
    parameters = list(model.parameters())
    steppers = optimizers(model, options.rate)
    forward = torch.compile(losses, dynamic=True)
    stream = share(rank, options.processes, train_set)
    start, seconds = time.monotonic(), options.minutes * 60
    saved, seen, running = start, 0, math.nan
    for step in itertools.count():
        group = list(itertools.islice(stream, options.batches))
        counted = sum((weights > 0).sum() for _, weights in group)
        # The first process tells the time, so that all stop at the same step.
        now = time.monotonic() - start if rank == 0 else 0.0
        totals = torch.tensor(
            [now, float(sum(w[:, 1:].sum() for _, w in group)), float(counted)], dtype=torch.double
        )
        distributed.all_reduce(totals)
        now, weight = totals[0].item(), totals[1].item()
        seen += int(totals[2].item())
        if now >= seconds:
            break
        for stepper in steppers:
            for settings in stepper.param_groups:
                settings["lr"] = options.rate * schedule(now / seconds)
        loss = torch.zeros(())
        for tokens, weights in group:
            part = (forward(model, tokens) * weights[:, 1:]).sum() / weight
            torch.autograd.backward(part)
            loss += part.detach()
        flat = torch.cat([loss.view(1), *(p.grad.flatten() for p in parameters)])
        distributed.all_reduce(flat)
        running = flat[0].item() if step == 0 else 0.98 * running + 0.02 * flat[0].item()
        at = 1
        for parameter in parameters:
            parameter.grad.copy_(flat[at : at + parameter.numel()].view_as(parameter))
            at += parameter.numel()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for stepper in steppers:
            stepper.step()
            stepper.zero_grad(set_to_none=True)
        if rank != 0:
            continue
        with torch.no_grad():
            newest = max(1.0 / AVERAGE_OVER_STEPS, 1.0 / (step + 1))
            for kept, new in zip(average.parameters(), parameters, strict=True):
                kept.lerp_(new, newest)
        if step % 20 == 0:
            print(f"{step} {seen} tokens {now:.0f} s {seen / now:.0f}/s {running:.3f}", flush=True)
        if time.monotonic() - saved > SNAPSHOT_SECONDS:
            saved = time.monotonic()
            save(average, options.output)
    distributed.destroy_process_group()
    return Result(average, seen, step)


def main() -> None:
    """Train the tokenizer and the model for the given time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--output", type=Path, default=Path("examples/starter"))
    parser.add_argument("--batches", type=int, default=2, help="batches per step and process")
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--port", type=int, default=29517, help="on loopback, for the processes")
    options = parser.parse_args()
    torch.manual_seed(0)

    training, held_out = (list(documents(part, random.Random(0))) for part in split(load()))
    tokenizer = load_or_train([context + text for context, text in training], options.output)
    train_set, test_set = encode(training, tokenizer), encode(held_out, tokenizer)
    # Bits per byte compare across tokenizers; perplexity does not. Long documents were cut, so
    # the bytes are those of the tokens that are left.
    bytes_per_token = sum(
        len(tokenizer.decode(tokens.tolist(), skip_special_tokens=True).encode())
        for tokens, _ in test_set
    ) / sum(len(tokens) for tokens, _ in test_set)
    corpus_tokens = sum(len(tokens) for tokens, _ in train_set)
    print(f"{len(train_set)} documents, {corpus_tokens} tokens, {bytes_per_token:.2f} bytes/token")

    # Rows are short: plain matrix products beat the CPU's fused attention, most in the backward.
    model = Phi3ForCausalLM._from_config(configuration(tokenizer), attn_implementation="eager")
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[tokenizer.convert_tokens_to_ids("<|end|>"), tokenizer.eos_token_id],
        pad_token_id=tokenizer.pad_token_id,
    )
    save(model, options.output)

    # Forked before anything ran in parallel: the tokenized corpus is shared and not copied.
    context = multiprocessing.get_context("fork")
    others = [
        context.Process(target=train, args=(rank, options, train_set, model), daemon=True)
        for rank in range(1, options.processes)
    ]
    for other in others:
        other.start()
    start = time.monotonic()
    result = train(0, options, train_set, model)
    for other in others:
        other.join()

    loss_all, loss_doc = evaluate(result.model, test_set)
    save(result.model, options.output)
    record = {
        "parameters": model.num_parameters(),
        "corpus_documents": len(train_set),
        "corpus_tokens": corpus_tokens,
        "tokens_seen": result.tokens,
        "steps": result.steps,
        "minutes": (time.monotonic() - start) / 60,
        "held_out_loss": loss_all,
        "held_out_perplexity": math.exp(loss_all),
        "held_out_bits_per_byte": loss_all / math.log(2) / bytes_per_token,
        "held_out_documentation_loss": loss_doc,
    }
    (cache_folder() / "record.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()

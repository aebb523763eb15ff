"""A batch that stays full gives, row by row, what transformers' own `generate` gives."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM

from tasks.evaluation import answering
from tasks.evaluation.cache import fits
from tasks.evaluation.greedy import Answer, greedy


@pytest.fixture(scope="module")
def model(tiny_base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32).eval()


def questions(count: int, vocabulary: int, longest: int = 40) -> list[list[int]]:
    rng = random.Random(0)
    return [
        [rng.randrange(3, vocabulary) for _ in range(1 + int(longest * rng.random() ** 3))]
        for _ in range(count)
    ]


def by_transformers(
    model: Any, prompts: list[list[int]], rooms: list[int], stops: list[int]
) -> list[Answer]:
    answers: list[Answer] = []
    for prompt, room in zip(prompts, rooms, strict=True):
        output = model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            generation_config=GenerationConfig(
                do_sample=False, max_new_tokens=room, eos_token_id=stops, pad_token_id=stops[0]
            ),
        )
        ids = output[0, len(prompt) :].tolist()
        answers.append((ids[:-1], ids[-1]) if ids[-1] in stops else (ids, None))
    return answers


def some_stops(model: Any, prompts: list[list[int]]) -> list[int]:
    """Tokens that this model says often: answers then end at many different places."""
    said = [t for ids, _ in greedy(model, prompts, [20] * len(prompts), 8, [1]) for t in ids]
    return sorted(set(said), key=lambda token: (-said.count(token), token))[3:9]


@pytest.mark.parametrize("size", [1, 2, 5, 16, 64])
def test_every_row_is_answered_as_by_itself(model: Any, size: int) -> None:
    prompts = questions(37, model.config.vocab_size)
    stops = some_stops(model, prompts)
    rng = random.Random(1)
    rooms = [rng.choice([1, 2, 7, 30, 90]) for _ in prompts]
    expected = by_transformers(model, prompts, rooms, stops)
    # Ends by stop tokens and by room, early and late: or nothing was tested.
    assert len({len(ids) for ids, _ in expected}) > 8
    assert {stop is None for _, stop in expected} == {True, False}
    assert greedy(model, prompts, rooms, size, stops) == expected


def test_a_model_with_a_sliding_window_is_answered_as_by_itself() -> None:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=120,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=8,
        max_position_embeddings=256,
    )
    model = MistralForCausalLM(config).eval()
    prompts = questions(11, 120, longest=30)
    rooms = [3 + 5 * (row % 7) for row in range(11)]
    assert fits(model)
    expected = by_transformers(model, prompts, rooms, [2])
    assert greedy(model, prompts, rooms, 4, [2]) == expected


def test_rows_leave_the_batch_and_others_come_in(model: Any) -> None:
    prompts = questions(24, model.config.vocab_size)
    rooms = [40 if row % 8 == 0 else 2 for row in range(24)]
    sizes: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    try:
        greedy(model, prompts, rooms, 8, [1])
    finally:
        hook.remove()
    # In whole batches of eight each of the three would have run for forty tokens at full width.
    assert sum(sizes) < 24 * 40 / 2
    assert max(sizes) == 8
    assert sizes[-1] < 8


def test_how_many_rows_are_done_is_told(model: Any) -> None:
    told: list[int] = []
    greedy(model, questions(9, 200), [3] * 9, 4, [1], told.append)
    assert told == sorted(told)
    assert told[-1] == 9


def test_a_model_with_a_running_state_is_left_to_transformers(monkeypatch: Any) -> None:
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    config = MambaConfig(vocab_size=60, hidden_size=16, state_size=4, num_hidden_layers=2, expand=2)
    state = MambaForCausalLM(config).eval()
    assert not fits(state)
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=60,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
        )
    ).eval()
    assert fits(llama)
    prompts = questions(5, 60, 10)
    whole = answering._generate_by_transformers(llama, prompts, [6] * 5, 2, [1], "base")
    assert whole == greedy(llama, prompts, [6] * 5, 2, [1])

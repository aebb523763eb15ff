"""Which attention trains packed rows: one that computes nothing across examples, where there is one."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM

from tasks.errors import UserError
from tasks.training import attention_choice, engine, loading
from tasks.training.attention_choice import attention_to_train_with
from tasks.training.collators import NUM_TOKENS, PackCollator
from tasks.training.job import TrainingJob
from tasks.training.kernels import varlen
from tasks.training.packs import EXAMPLE_LENGTHS
from tasks.training.settings import TrainingSettings

MakeJob = Callable[..., TrainingJob]
HERE: dict[str, Any] = {"dtype": "bfloat16", "packed": True, "gpu": True}


@pytest.fixture(params=[True, False], ids=["flash-attn", "no-flash-attn"])
def installed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    has = bool(request.param)
    monkeypatch.setattr(attention_choice, "find_spec", lambda _: object() if has else None)
    return has


def test_auto_takes_flash_attention_for_packed_rows_where_it_is_installed(installed: bool) -> None:
    chosen, said = attention_to_train_with("auto", **HERE)
    assert chosen == ("flash_attention_2" if installed else None)
    assert ("flash_attn is not installed" in said) != installed
    assert attention_to_train_with("auto", **HERE | {"packed": False}) == (None, "")
    assert attention_to_train_with("auto", **HERE | {"gpu": False}) == (None, "")
    assert attention_to_train_with("auto", **HERE | {"dtype": "float32"})[0] is None


def test_what_the_recipe_names_is_taken_or_refused_with_the_reason(installed: bool) -> None:
    assert attention_to_train_with("sdpa", **HERE)[0] == "sdpa"
    assert attention_to_train_with("flex", **HERE)[0] == "flex_attention"
    assert attention_to_train_with("varlen", **HERE)[0] == attention_choice.VARLEN
    if installed:
        assert attention_to_train_with("flash", **HERE)[0] == "flash_attention_2"
    else:
        with pytest.raises(UserError, match="flash-attn is not installed"):
            attention_to_train_with("flash", **HERE)
    for asked in ("flash", "varlen"):
        with pytest.raises(UserError, match=f"is {asked}, which has no float32"):
            attention_to_train_with(asked, **HERE | {"dtype": "float32"})
    with pytest.raises(UserError, match="these rows stand alone"):
        attention_to_train_with("varlen", **HERE | {"packed": False})


def test_another_attention_is_another_adapter_and_auto_is_not() -> None:
    assert TrainingSettings(attention="flex").content()["attention"] == "flex"
    assert "attention" not in TrainingSettings().content()


@pytest.mark.parametrize("asked", ["flash", "flex", "varlen"])
def test_a_machine_without_a_gpu_refuses_them_before_it_trains(job: MakeJob, asked: str) -> None:
    task = job(attention=asked)
    rows = engine.read_rows(task.tokens / "train.parquet")
    with pytest.raises(UserError, match=f"training.attention is {asked}, which computes on a GPU"):
        engine.build_trainer(task, rows, loading.choose_precision(task.dtype))


def test_sdpa_is_sdpa_where_plain_products_would_be_faster(job: MakeJob) -> None:
    def attention(**changes: Any) -> str:
        # A head that is trained keeps our kernels away.
        task = job(dtype="bfloat16", peft={"modules_to_save": ["lm_head"]}, **changes)
        rows = engine.read_rows(task.tokens / "train.parquet")
        made = engine.build_trainer(task, rows, loading.choose_precision(task.dtype))
        return str(made.model.config._attn_implementation)

    assert attention() == "eager"
    assert attention(attention="sdpa") == "sdpa"


def in_plain_products(
    query: Any,
    key: Any,
    value: Any,
    ends: Any,
    key_ends: Any,
    longest: int,
    longest_key: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool = False,
) -> Any:
    """What torch's page says of its `varlen_attn`, which computes on a GPU alone."""
    assert ends.dtype is torch.int32
    assert ends.tolist() == key_ends.tolist()
    assert longest == longest_key == max(ends.diff())
    assert enable_gqa == (query.shape[1] != key.shape[1])
    left, right = window_size
    lines = []
    for begin, end in pairwise(ends.tolist()):
        q, k, v = (x[begin:end].transpose(0, 1) for x in (query, key, value))
        apart = torch.arange(end - begin)[:, None] - torch.arange(end - begin)
        mask = (-right <= apart) & ((apart <= left) if left >= 0 else True)
        lines.append(
            functional.scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=True)
        )
    return torch.cat(lines, dim=1).transpose(0, 1)


PACKS = [
    {"input_ids": list(range(5, 22)), "labels": list(range(5, 22)), EXAMPLE_LENGTHS: [6, 11]},
    {"input_ids": [4, 3, 9], "labels": [4, 3, 9], EXAMPLE_LENGTHS: [3]},
]


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("heads", [4, 2])
def test_torchs_attention_by_examples_gets_their_boundaries(
    heads: int, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(varlen, "varlen_attn", in_plain_products)
    varlen.register()
    torch.manual_seed(0)
    model = MistralForCausalLM(
        MistralConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=heads,
            sliding_window=window,
        )
    )
    padded, flat = (PackCollator(0, 8, flat=flat)(PACKS) for flat in (False, True))
    for batch in (padded, flat):
        del batch["labels"], batch[NUM_TOKENS]
    with torch.no_grad():
        model.set_attn_implementation("sdpa")
        expected = model(**padded, use_cache=False).logits
        alone = model(input_ids=padded["input_ids"], use_cache=False).logits
        model.set_attn_implementation(attention_choice.VARLEN)
        line = model(**flat, use_cache=False).logits[0]
        rows = model(input_ids=padded["input_ids"], use_cache=False).logits
    assert torch.allclose(line, torch.cat([expected[0, :17], expected[1, :3]]), atol=1e-5)
    # Rows that say nothing of examples are one each.
    assert torch.allclose(rows, alone, atol=1e-5)


def test_an_attention_with_more_than_torchs_kernel_computes_is_refused() -> None:
    varlen.register()
    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2)
    model = GPT2LMHeadModel(config).train()
    model.set_attn_implementation(attention_choice.VARLEN)
    with pytest.raises(UserError, match=r"varlen, which has no dropout.*attention: sdpa"):
        model(input_ids=torch.tensor([[1, 2, 3]]), use_cache=False)

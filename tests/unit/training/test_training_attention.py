"""Which attention trains packed rows: one that computes nothing across examples, where there is one."""

from collections.abc import Callable
from typing import Any

import pytest

from tasks.errors import UserError
from tasks.training import attention_choice, engine, loading
from tasks.training.attention_choice import attention_to_train_with
from tasks.training.job import TrainingJob
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
    if installed:
        assert attention_to_train_with("flash", **HERE)[0] == "flash_attention_2"
    else:
        with pytest.raises(UserError, match="flash-attn is not installed"):
            attention_to_train_with("flash", **HERE)
    with pytest.raises(UserError, match="has no float32"):
        attention_to_train_with("flash", **HERE | {"dtype": "float32"})


def test_another_attention_is_another_adapter_and_auto_is_not() -> None:
    assert TrainingSettings(attention="flex").content()["attention"] == "flex"
    assert "attention" not in TrainingSettings().content()


@pytest.mark.parametrize("asked", ["flash", "flex"])
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

"""A training goes on with a registered version's adapter: whole, proved, and refused where it does not fit."""

import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from tasks.errors import StageFailed, UserError
from tasks.files import file_sha256
from tasks.training import engine, fields, loading, worker
from tasks.training.job import StartJob, TrainingJob, TrainingResult
from tasks.training.settings import TrainingSettings

pytestmark = pytest.mark.slow

MakeJob = Callable[..., TrainingJob]
LOUD = {"max_steps": 4, "warmup_steps": 0, "lr_scheduler_type": "constant"}
QUIET = {"lora_dropout": 0.0}


@pytest.fixture(autouse=True)
def _own_signals() -> Iterator[None]:
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def train(job: TrainingJob) -> TrainingResult:
    worker.train(job)
    return TrainingResult.model_validate_json(job.result.read_text())


def start_at(job: TrainingJob, **changes: Any) -> StartJob:
    """The finished training of `job` as its version would hold it."""
    result = TrainingResult.model_validate_json(job.result.read_text())
    values = {
        "uri": "models:/small/1",
        "adapter": job.output / "adapter",
        "adapter_sha256": result.adapter_sha256,
        "base_sha256": "w" * 64,
        "fixture": job.output,
        "recorded_loss": None,
    }
    return StartJob(**values | changes)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, make_job: MakeJob) -> TrainingJob:
    """A finished training of four steps, from the base."""
    job = make_job(tmp_path_factory.mktemp("first"), training=LOUD, peft=QUIET)
    train(job)
    return job


def test_the_second_training_begins_where_the_first_ended(
    first: TrainingJob, tmp_path: Path, make_job: MakeJob, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its first loss is that of the first training's adapter on the same rows, and not the base's."""
    start = start_at(first, recorded_loss=0.01)
    job = make_job(tmp_path / "second", training=LOUD, peft=QUIET, start=start)
    second = train(job)
    before = TrainingResult.model_validate_json(first.result.read_text())
    assert second.start is not None
    assert second.start.logits_difference < 1e-5
    assert second.start.adapter_effect > 1e-2
    assert second.first_loss < before.first_loss
    assert second.adapter_sha256 != before.adapter_sha256
    said = capsys.readouterr().out
    assert "Starting from models:/small/1" in said
    assert "more than 2 times as much" in said


def test_a_version_loads_bit_by_bit(first: TrainingJob, tmp_path: Path, make_job: MakeJob) -> None:
    job = make_job(tmp_path / "second", peft=QUIET, start=start_at(first))
    rows = engine.read_rows(job.tokens / "train.parquet")
    trainer = engine.build_trainer(job, rows, loading.choose_precision("float32"))
    saved = load_file(first.output / "adapter" / "adapter_model.safetensors")
    loaded = {
        name.replace(".default.", "."): p
        for name, p in trainer.model.named_parameters()
        if p.requires_grad
    }
    assert loaded.keys() == saved.keys()
    assert all(torch.equal(loaded[name], saved[name]) for name in saved)


@pytest.mark.parametrize(
    ("peft", "told"),
    [
        ({"lora_alpha": 7}, "lora_alpha: 8 in the version, 7 in the recipe"),
        ({"r": 2}, "r: 4 in the version, 2 in the recipe"),
        ({"use_dora": True}, "use_dora: False in the version, True in the recipe"),
        ({"use_rslora": True}, "use_rslora"),
        (
            {"target_modules": ["qkv_proj"]},
            "in the version, not in the recipe's adapter: model.lay",
        ),
        ({"modules_to_save": ["lm_head"]}, "in the recipe's adapter, not in the version: lm_head"),
        ({"rank_pattern": {"o_proj": 2}}, "shapes (version / recipe): "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_another_adapter_is_refused_with_every_difference(
    first: TrainingJob, tmp_path: Path, make_job: MakeJob, peft: dict[str, Any], told: str
) -> None:
    job = make_job(tmp_path / "second", peft=QUIET | peft, start=start_at(first))
    with pytest.raises(UserError) as refused:
        _build(job)
    assert told in str(refused.value)
    assert "training.init_from: base" in str(refused.value)


def test_dropout_may_change(first: TrainingJob, tmp_path: Path, make_job: MakeJob) -> None:
    _build(make_job(tmp_path / "second", peft={"lora_dropout": 0.3}, start=start_at(first)))


@pytest.mark.parametrize("kind", ["a tensor less", "a tensor more", "another number"])
def test_a_damaged_file_is_refused(
    kind: str, first: TrainingJob, tmp_path: Path, make_job: MakeJob
) -> None:
    start = _copied(first, tmp_path)
    path = start.adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    name = sorted(tensors)[0]
    if kind == "a tensor less":
        del tensors[name]
    elif kind == "a tensor more":
        tensors["base_model.model.model.stranger.weight"] = torch.zeros(2)
    else:
        tensors[name] += 1.0
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match="has sha256"):
        _build(make_job(tmp_path / "second", peft=QUIET, start=start))
    # Where the registry itself recorded such a file.
    recorded = start.model_copy(update={"adapter_sha256": file_sha256(path)})
    expected = {
        "a tensor less": "in the recipe's adapter, not in the version",
        "a tensor more": "in the version, not in the recipe's adapter: model.stranger",
        "another number": "answers otherwise than when the version was trained",
    }
    with pytest.raises(UserError, match=expected[kind]):
        _build(make_job(tmp_path / "third", peft=QUIET, start=recorded))


def test_an_adapter_that_was_not_loaded_is_noticed(
    first: TrainingJob, tmp_path: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "load_start", lambda model, start: None)
    with pytest.raises(UserError, match="without the adapter they differ by"):
        _build(make_job(tmp_path / "second", peft=QUIET, start=start_at(first)))


def test_a_learning_rate_of_zero_is_noticed(
    first: TrainingJob, tmp_path: Path, make_job: MakeJob
) -> None:
    """Its lora_B are not zero, and yet nothing was learned."""
    job = make_job(
        tmp_path / "second",
        training=LOUD | {"learning_rate": 0.0},
        peft=QUIET,
        start=start_at(first),
    )
    with pytest.raises(StageFailed, match="still that of models:/small/1"):
        worker.train(job)


def test_an_interrupted_training_that_started_from_a_version_ends_with_the_same_bytes(
    first: TrainingJob, tmp_path: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = start_at(first)
    settings = LOUD | {"save_steps": 1}
    whole = train(make_job(tmp_path / "whole", training=settings, peft=QUIET, start=start))
    job = make_job(tmp_path / "parts", training=settings, peft=QUIET, start=start)
    _interrupt_after(2, job, monkeypatch)
    result = train(job)
    assert result.resumed_from_step == 2
    assert result.adapter_sha256 == whole.adapter_sha256


def test_slices_go_on_with_an_adapter_of_the_same_slices_and_refuse_a_wider_one(
    first: TrainingJob, tmp_path: Path, make_job: MakeJob
) -> None:
    slices = {"target_slices": {"qkv_proj": ["q"]}}
    sliced = make_job(tmp_path / "sliced", training=LOUD, peft=QUIET, **slices)
    train(sliced)
    _build(make_job(tmp_path / "on", peft=QUIET, start=start_at(sliced), **slices))
    with pytest.raises(UserError, match="from an adapter trained with the same slices"):
        _build(make_job(tmp_path / "no", peft=QUIET, start=start_at(first), **slices))


OFTEN = {"C3A": {"block_size": 8}, "MISS": {"r": 8}, "ROAD": {"group_size": 8}, "SHIRA": {"r": 4}}
MORE: dict[str, dict[str, Any]] = OFTEN | {
    "IA3": {"target_modules": ["qkv_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "LN_TUNING": {"target_modules": ["input_layernorm", "post_attention_layernorm"]},
    "TRAINABLE_TOKENS": {"token_indices": list(range(300, 4000))},
    "VBLORA": {"vector_length": 16, "num_vectors": 32},
    "WAVEFT": {"n_frequency": 64},
}


def _kinds() -> list[str]:
    """The types that a recipe may name together with `init_from`."""
    kinds = []
    for name in fields.peft_types():
        try:
            TrainingSettings(
                init_from="champion", peft_config={"peft_type": name} | MORE.get(name, {})
            )
        except ValidationError:
            continue
        kinds.append(name)
    return kinds


@pytest.mark.parametrize("name", _kinds())
def test_every_type_goes_on_with_its_own_adapter(
    name: str, tmp_path: Path, make_job: MakeJob
) -> None:
    settings = TrainingSettings(peft_config={"peft_type": name} | MORE.get(name, {}))
    config = settings.resolved_peft_config()
    two = {"training": LOUD | {"max_steps": 2}, "peft_config": config}
    before = make_job(tmp_path / "first", **two)
    train(before)
    found = train(make_job(tmp_path / "second", **two, start=start_at(before)))
    assert found.start is not None
    assert found.start.logits_difference < 1e-5 < 1e-4 < found.start.adapter_effect


@pytest.mark.parametrize(
    "peft",
    [
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"trainable_token_indices": {"embed_tokens": [300, 4092]}},
        {"bias": "lora_only"},
        {"rank_pattern": {"qkv_proj": 2}, "alpha_pattern": {"o_proj": 3}},
        {"init_lora_weights": "orthogonal"},
        {"target_modules": ["embed_tokens", "qkv_proj"]},
    ],
    ids=lambda peft: " ".join(peft),
)
def test_what_lora_holds_besides_its_matrices_goes_on_too(
    peft: dict[str, Any], tmp_path: Path, make_job: MakeJob
) -> None:
    two: dict[str, Any] = {"training": LOUD | {"max_steps": 2}, "peft": QUIET | peft}
    before = make_job(tmp_path / "first", **two)
    train(before)
    found = train(make_job(tmp_path / "second", **two, start=start_at(before)))
    assert found.start is not None
    assert found.start.logits_difference < 1e-5


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"init_from": "models:/name"}, "is neither `base`, nor `champion`, nor a version"),
        ({"replay": {"share": 0.1}}, "`init_from` is `base`"),
        (
            {"init_from": "champion", "peft_config": {"init_lora_weights": "pissa"}},
            "twice the rank",
        ),
        (
            {"init_from": "champion", "peft_config": {"init_lora_weights": "eva"}},
            "begins with anot",
        ),
        ({"init_from": "champion", "peft_config": {"peft_type": "ADALORA"}}, "takes ranks away"),
        ({"init_from": "champion", "peft_config": {"peft_type": "P_TUNING"}}, "not the encoder"),
        ({"init_from": "champion", "method": "dpo"}, "merge the version into a base"),
    ],
)
def test_a_recipe_that_cannot_start_from_a_version_is_refused(
    settings: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValidationError, match=told):
        TrainingSettings.model_validate(settings)


def test_what_the_recipe_says_of_the_start_is_no_part_of_what_decides_the_adapter() -> None:
    """The version that it comes to is."""
    champion = TrainingSettings.model_validate({"init_from": "champion", "replay": {"share": 0.2}})
    assert champion.content() == TrainingSettings().content()
    assert champion.beginning == {"init_from": "champion", "replay": 0.2}
    assert TrainingSettings().beginning == {}


def _build(job: TrainingJob) -> Any:
    rows = engine.read_rows(job.tokens / "train.parquet")
    return engine.build_trainer(job, rows, loading.choose_precision("float32"))


def _copied(job: TrainingJob, folder: Path) -> StartJob:
    start = start_at(job)
    adapter = folder / "version" / "adapter"
    shutil.copytree(start.adapter, adapter)
    return start.model_copy(update={"adapter": adapter})


def _interrupt_after(step: int, job: TrainingJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train until a SIGTERM after so many steps has ended the worker with a checkpoint."""
    from tasks.training import callbacks

    real = callbacks.StopAtStep.on_step_end

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **more: Any) -> Any:
        if state.global_step == step:
            signal.raise_signal(signal.SIGTERM)
        return real(self, args, state, control, **more)

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.StopAtStep, "on_step_end", on_step_end)
        with pytest.raises(SystemExit):
            worker.train(job)
    assert not job.result.exists()

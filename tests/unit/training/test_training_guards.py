"""What stops a training: numbers that are none, a base that was not loaded, modules that learn nothing."""

import math
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig

from tasks.errors import StageFailed
from tasks.training import (
    checkpoints,
    engine,
    guards,
    inspect_worker,
    loading,
    method_trainer,
    saving,
    trainer,
    worker,
)
from tasks.training.guard_settings import Guards
from tasks.training.job import TrainingJob, TrainingResult
from tasks.training.settings import TrainingSettings

pytestmark = pytest.mark.usefixtures("own_signals_and_threads")

MakeJob = Callable[..., TrainingJob]


def train(job: TrainingJob) -> TrainingResult:
    worker.train(job)
    return TrainingResult.model_validate_json(job.result.read_text())


def step_of(
    numbers: guards.Numbers, step: int, loss: float, norm: float | None = 1.0
) -> guards.NotFinite | None:
    for part in (0.25, 0.75):
        numbers.add(torch.tensor(loss * part))
    return numbers.end_step(step, None if norm is None else torch.tensor(norm))


@pytest.mark.parametrize(
    ("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (2.0, math.nan), (2.0, math.inf)]
)
def test_either_number_ends_the_training_at_its_own_step(loss: float, norm: float) -> None:
    numbers = guards.Numbers(late=False, scaled=False)
    assert step_of(numbers, 1, 2.0) is None
    found = step_of(numbers, 2, loss, norm)
    assert found is not None
    assert found[0] == 2
    assert not math.isfinite(found[1]) or not math.isfinite(found[2])


def test_a_gpus_numbers_are_looked_at_when_the_next_step_is_queued() -> None:
    numbers = guards.Numbers(late=True, scaled=False)
    assert step_of(numbers, 1, math.nan) is None
    found = step_of(numbers, 2, 2.0)
    assert found is not None
    assert found[0] == 1
    # The last one, before a checkpoint is written of it.
    assert step_of(numbers, 3, 2.0, math.inf) is None
    found = numbers.settle()
    assert found is not None
    assert found[0] == 3
    assert numbers.settle() is None


def test_loss_scaling_may_look_for_its_scale_but_not_for_ever() -> None:
    numbers = guards.Numbers(late=False, scaled=True)
    for step in range(1, guards.STEPS_TO_FIND_A_SCALE + 1):
        assert step_of(numbers, step, 2.0, math.inf) is None
    assert step_of(numbers, 30, 2.0, 1.0) is None
    for step in range(31, 31 + guards.STEPS_TO_FIND_A_SCALE):
        assert step_of(numbers, step, 2.0, math.inf) is None
    assert step_of(numbers, 90, 2.0, math.inf) is not None
    # A loss that is none is no matter of scale.
    assert step_of(guards.Numbers(late=False, scaled=True), 1, math.nan) is not None


def test_without_clipping_the_norm_is_watched_too(
    job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = trainer.AdapterTrainer.training_step

    def broken(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = real(self, *args, **kwargs)
        if self.state.global_step == 3:
            next(p for p in self.model.parameters() if p.requires_grad).grad[0, 0] = math.inf
        return loss

    monkeypatch.setattr(trainer.AdapterTrainer, "training_step", broken)
    quiet = {"max_grad_norm": 0, "logging_steps": 100, "save_steps": 3}
    task = job(training=quiet)
    with pytest.raises(StageFailed, match=r"at step 4 of 14 .* gradient norm inf"):
        worker.train(task)
    # The optimizer has not used it: what was good is kept, and a lower rate is not a resume.
    assert [c.name for c in task.checkpoints.glob("checkpoint-*")] == ["checkpoint-3"]
    assert not task.result.exists()


def test_a_base_of_random_weights_stops_at_the_first_step(job: MakeJob) -> None:
    task = job(guards=Guards())
    with pytest.raises(StageFailed, match=r"loss is 8\.\d .* costs 8\.3") as stopped:
        worker.train(task)
    assert "training.guards.untrained_base: allow" in str(stopped.value)
    assert not list(task.checkpoints.glob("checkpoint-*"))


def test_a_pretrained_base_is_far_from_the_limit(
    job: MakeJob, starter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even on rows of random tokens, of which it can know nothing, it is told from no base by its own
    text: here ten words in a row, as a chat would hold them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(starter)
    ids = tokenizer("Return the number of items in the list.", return_tensors="pt").input_ids
    model = AutoModelForCausalLM.from_pretrained(starter, dtype=torch.float32)
    with torch.no_grad():
        loss = float(model(input_ids=ids, labels=ids).loss)
    guards.refuse_first_loss(loss, model.config.vocab_size, "refuse")
    assert loss < 0.7 * math.log(model.config.vocab_size)


@pytest.mark.parametrize(("share", "refused"), [(0.85, False), (0.95, True), (1.05, True)])
def test_near_guessing_means_from_nine_tenths_on(share: float, refused: bool) -> None:
    loss = share * math.log(32_064)
    guards.refuse_first_loss(loss, 32_064, "allow")
    if refused:
        with pytest.raises(StageFailed, match=r"32,064 tokens costs 10\.4"):
            guards.refuse_first_loss(loss, 32_064, "refuse")
    else:
        guards.refuse_first_loss(loss, 32_064, "refuse")


def test_the_first_loss_judges_the_base_only_where_the_adapter_starts_as_nothing() -> None:
    assert guards.starts_as_base(LoraConfig())
    assert guards.starts_as_base(LoraConfig(init_lora_weights="pissa"))
    assert not guards.starts_as_base(LoraConfig(init_lora_weights=False))
    assert not guards.starts_as_base(PrefixTuningConfig(num_virtual_tokens=4))


def test_a_training_that_goes_on_is_not_judged_by_its_first_loss_again(
    job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def emit(event: str, **values: Any) -> None:
        if event == "step" and values["step"] == 4:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(method_trainer, "emit", emit)
        with pytest.raises(SystemExit):
            worker.train(job())
    assert train(job(guards=Guards())).resumed_from_step == 5


def test_one_module_that_learned_nothing_is_named(
    job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loading.load_base

    def cut_off(*args: Any, **kwargs: Any) -> Any:
        model = real(*args, **kwargs)
        model.model.layers[1].mlp.register_forward_hook(lambda *call: call[2].detach())
        return model

    monkeypatch.setattr(loading, "load_base", cut_off)
    # Ours computes past hooks.
    monkeypatch.setattr(trainer.AdapterTrainer, "use_kernels", lambda _: False)
    with pytest.raises(StageFailed, match=r"2 of 8 adapted modules learned nothing") as stopped:
        worker.train(job(training={"max_steps": 3}))
    assert "model.layers.1.mlp" in str(stopped.value)
    assert "exclude_modules" in str(stopped.value)


def test_an_expert_that_no_token_was_sent_to_is_no_mistake() -> None:
    class Model:
        peft_config: ClassVar = {"default": LoraConfig()}

    state = {
        "base_model.model.layers.0.experts.3.up.lora_B.weight": torch.zeros(2, 2),
        "base_model.model.layers.0.o_proj.lora_B.weight": torch.ones(2, 2),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saving, "get_peft_model_state_dict", lambda *_, **__: state)
        saving.refuse_untrained(Model())


def test_a_training_without_a_step_is_refused(
    job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer.AdapterTrainer, "train", lambda *_, **__: None)
    task = job()
    with pytest.raises(StageFailed, match="made no optimizer step on 26 rows"):
        worker.train(task)
    assert not task.result.exists()
    assert checkpoints.newest_complete(task.checkpoints) is None


NOTHING = {"max_steps": 1, "warmup_steps": 5}
"""Its only step is made at a learning rate of zero."""


@pytest.mark.parametrize(
    "peft",
    [
        {"init_lora_weights": "eva", "r": 4},
        {"target_modules": ["embed_tokens"]},
        {"init_lora_weights": "pissa"},
        {"peft_type": "VERA"},
        {"peft_type": "IA3", "target_modules": ["down_proj"], "feedforward_modules": ["down_proj"]},
        {"modules_to_save": ["lm_head"], "init_lora_weights": "orthogonal"},
    ],
    ids=lambda peft: " ".join(map(str, peft.values()))[:40],
)
def test_an_adapter_of_any_kind_that_learned_nothing_is_refused(
    job: MakeJob, peft: dict[str, Any]
) -> None:
    settings = TrainingSettings(peft_config=peft)
    task = job(peft_config=settings.resolved_peft_config(), training=NOTHING)
    with pytest.raises(StageFailed, match="Training changed nothing"):
        worker.train(task)
    assert not task.result.exists()


def test_one_changed_number_is_a_change() -> None:
    model = torch.nn.Linear(4, 4)
    begun = saving.digests(model)
    with pytest.raises(StageFailed, match="all 2 trained tensors"):
        saving.refuse_unchanged(model, begun, None)
    with pytest.raises(StageFailed, match="still that of models:/m/3"):
        saving.refuse_unchanged(model, begun, "models:/m/3")
    with torch.no_grad():
        model.bias[2] += 1e-6
    saving.refuse_unchanged(model, begun, None)


def test_another_count_of_parameters_than_check_predicts_is_refused_with_both(
    job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = engine.build_peft_config

    def wider(values: dict[str, Any], steps: int) -> Any:
        return real({**values, "r": 5}, steps)

    monkeypatch.setattr(engine, "build_peft_config", wider)
    task = job()
    # Four to five ranks: each module's inputs and outputs once more.
    with pytest.raises(
        StageFailed, match=r"predicts ([0-9,]+) trainable .* has ([0-9,]+)"
    ) as found:
        worker.train(task)
    predicted, trained = (
        int(n.replace(",", ""))
        for n in re.findall(r"([\d,]+)(?= trainable|\. The base)", str(found.value))
    )
    assert trained * 4 == predicted * 5
    assert not list(task.checkpoints.glob("checkpoint-*"))


def test_counting_beforehand_uses_up_no_random_number(job: MakeJob) -> None:
    task = job()
    before = torch.get_rng_state()
    with pytest.raises(StageFailed, match="has 1"):
        inspect_worker.refuse_other_count(1, task, 26)
    assert torch.equal(before, torch.get_rng_state())

"""The worker itself, in this process: what it trains, refuses, goes on from and writes."""

import json
import math
import random
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tasks.artifacts import Tokens
from tasks.base import Base
from tasks.errors import StageFailed, UserError
from tasks.training import (
    checkpoints,
    collators,
    disk,
    engine,
    loading,
    method_trainer,
    saving,
    trainer,
    worker,
)
from tasks.training.job import TrainingJob, TrainingResult
from tasks.training.settings import TrainingSettings

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("own_signals_and_threads")]

MakeJob = Callable[..., TrainingJob]


def train(job: TrainingJob) -> TrainingResult:
    worker.train(job)
    return TrainingResult.model_validate_json(job.result.read_text())


@pytest.fixture(scope="module")
def uninterrupted(
    tmp_path_factory: pytest.TempPathFactory, make_job: MakeJob
) -> tuple[TrainingJob, TrainingResult]:
    """14 steps in two epochs, with dropout, from the first to the last."""
    job = make_job(tmp_path_factory.mktemp("uninterrupted"))
    handler = signal.getsignal(signal.SIGTERM)
    result = train(job)
    signal.signal(signal.SIGTERM, handler)
    return job, result


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A SIGTERM arrives while the worker is in this step."""

    def emit(event: str, **values: Any) -> None:
        # A step is reported after it was decided whether to go on.
        if event == "step" and values["step"] == step - 1:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(method_trainer, "emit", emit)


def test_the_loss_falls_and_the_result_counts_what_was_trained(
    uninterrupted: tuple[TrainingJob, TrainingResult], tokens: Tokens
) -> None:
    job, result = uninterrupted
    assert result.final_loss < result.first_loss
    assert abs(result.first_loss - math.log(4096)) < 0.3
    assert (result.steps, result.epochs, result.rows) == (14, 2.0, 26)
    assert result.tokens == 2 * tokens.tokens["train"]
    # Rank 4 on qkv (32->64), o (32->32), gate_up (32->128) and down (64->32) of two layers.
    assert result.trainable_parameters == 2 * 4 * ((32 + 64) + (32 + 32) + (32 + 128) + (64 + 32))
    assert result.target_modules == dict.fromkeys(
        ("down_proj", "gate_up_proj", "o_proj", "qkv_proj"), 2
    )
    history = [json.loads(line) for line in (job.output / "history.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in history] == list(range(1, 15))
    assert all(entry["tokens_per_second"] > 0 for entry in history)
    assert (job.output / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (job.output / "loss.png").stat().st_size < 40_000


def test_the_same_seed_gives_the_same_adapter_whatever_the_random_state(
    uninterrupted: tuple[TrainingJob, TrainingResult], job: MakeJob
) -> None:
    torch.rand(17)
    np.random.rand(3)
    random.random()
    assert train(job()).adapter_sha256 == uninterrupted[1].adapter_sha256


def test_another_seed_gives_another_adapter(
    uninterrupted: tuple[TrainingJob, TrainingResult], job: MakeJob
) -> None:
    assert train(job(seed=8)).adapter_sha256 != uninterrupted[1].adapter_sha256


@pytest.mark.parametrize("step", [5, 7, 10, 14], ids=["epoch 1", "boundary", "epoch 2", "last"])
def test_a_training_that_goes_on_from_a_checkpoint_ends_with_the_same_bytes(
    uninterrupted: tuple[TrainingJob, TrainingResult],
    job: MakeJob,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
) -> None:
    first = job()
    with monkeypatch.context() as patch:
        stop_at(step, patch)
        with pytest.raises(SystemExit) as ended:
            worker.train(first)
    assert ended.value.code == worker.TERMINATED
    assert not first.result.exists()
    result = train(first)
    assert result.resumed_from_step == step
    assert result.steps == 14
    assert result.adapter_sha256 == uninterrupted[1].adapter_sha256
    history = (first.output / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in history] == list(range(1, 15))


def test_a_checkpoint_torn_by_a_kill_is_passed_by(
    uninterrupted: tuple[TrainingJob, TrainingResult], job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = job()
    with monkeypatch.context() as patch:
        stop_at(10, patch)
        with pytest.raises(SystemExit):
            worker.train(first)
    torn = first.checkpoints / "checkpoint-10" / "adapter_model.safetensors"
    torn.write_bytes(torn.read_bytes()[:100])
    result = train(first)
    assert result.resumed_from_step == 9
    assert result.adapter_sha256 == uninterrupted[1].adapter_sha256


def test_no_more_checkpoints_are_kept_than_asked_for(
    uninterrupted: tuple[TrainingJob, TrainingResult],
) -> None:
    kept = sorted(p.name for p in uninterrupted[0].checkpoints.iterdir())
    assert kept == ["checkpoint-12", "checkpoint-14"]
    assert all(checkpoints.is_complete(uninterrupted[0].checkpoints / name) for name in kept)


def test_accumulated_micro_batches_give_the_gradients_of_the_whole_batch(job: MakeJob) -> None:
    """Of rows of unequal length: a mean of means would weigh short rows more."""
    plain = {"train_sampling_strategy": "sequential", "max_steps": 3, "learning_rate": 1e-3}
    peft = {"lora_dropout": 0.0}
    whole = train(job("whole", training=plain, peft=peft))
    halves = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    parts = train(job("parts", training=plain | halves, peft=peft))
    assert math.isclose(whole.first_loss, parts.first_loss, rel_tol=1e-6)
    assert math.isclose(whole.final_loss, parts.final_loss, rel_tol=1e-5)


def test_the_loss_of_answers_only_is_trls_loss(job: MakeJob, tokens: Tokens) -> None:
    task = job(peft={"lora_dropout": 0.0})
    rows = engine.read_rows(tokens.path / "train.parquet")
    ours = engine.build_trainer(task, rows, loading.choose_precision("float32"))
    batch = ours.data_collator([rows[0], rows[1], rows[2]])
    count = (batch["labels"][:, 1:] != -100).sum()
    assert ours._answers_only
    mine = ours.compute_loss(ours.model, dict(batch), num_items_in_batch=count)
    ours._answers_only = False
    theirs = ours.compute_loss(ours.model, dict(batch), num_items_in_batch=count)
    assert mine.requires_grad
    assert torch.allclose(mine, theirs, rtol=1e-6)
    gradients = [torch.autograd.grad(x, _adapter(ours), retain_graph=True) for x in (mine, theirs)]
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, atol=1e-7)


def test_padding_is_told_by_position_and_not_by_token() -> None:
    # The padding token is also a token of the first row.
    rows = [
        {"input_ids": [9, 5, 9], "labels": [-100, 5, 9]},
        {"input_ids": [1, 2, 3, 4, 5], "labels": [-100, -100, 3, 4, 5]},
    ]
    batch = collators.Collator(pad_id=9, multiple=4)(rows)
    assert batch["input_ids"].tolist() == [[9, 5, 9, 9, 9, 9, 9, 9], [1, 2, 3, 4, 5, 9, 9, 9]]
    assert batch["labels"][0].tolist() == [-100, 5, 9] + [-100] * 5
    assert batch["attention_mask"].tolist() == [[1, 1, 1] + [0] * 5, [1] * 5 + [0] * 3]


def test_the_adapter_folder_can_be_moved_to_another_machine(
    uninterrupted: tuple[TrainingJob, TrainingResult], base: Base, end: int
) -> None:
    job, result = uninterrupted
    folder = job.output / "adapter"
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "../examples/tiny"
    assert config["target_modules"] == ["down_proj", "gate_up_proj", "o_proj", "qkv_proj"]
    for path in job.output.rglob("*.json*"):
        assert str(base.path) not in path.read_text(), path
        assert str(job.working) not in path.read_text(), path
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (folder / name).read_bytes() == (base.path / name).read_bytes()
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["eos_token_id"][0] == end
    assert len(generation["eos_token_id"]) == 2
    assert result.stop_token_ids == generation["eos_token_id"]
    # Readable for whoever serves it, as far as the umask lets.
    modes = {path.stat().st_mode for path in job.output.rglob("*") if path.is_file()}
    assert len(modes) == 1
    assert not list(folder.glob("*.bin")) + list(folder.glob("*.pt")) + list(folder.glob("*.md"))


def test_the_saved_adapter_answers_as_the_fixture_says(
    uninterrupted: tuple[TrainingJob, TrainingResult], base: Base
) -> None:
    output = uninterrupted[0].output
    fixture = json.loads((output / "fixture.json").read_text())
    expected = load_file(output / "fixture.safetensors")["logits"]
    assert expected.shape == (4, fixture["positions"], 4096)
    model = AutoModelForCausalLM.from_pretrained(base.path, dtype=fixture["dtype"]).eval()
    adapted = PeftModel.from_pretrained(model, output / "adapter").eval()
    with torch.no_grad():
        for ids, logits in zip(fixture["input_ids"], expected, strict=True):
            got = adapted(input_ids=torch.tensor([ids])).logits[0, -fixture["positions"] :]
            assert torch.allclose(got, logits, atol=1e-5)
            with adapted.disable_adapter():
                plain = adapted(input_ids=torch.tensor([ids])).logits[0, -fixture["positions"] :]
            assert not torch.allclose(plain, logits, atol=1e-3)


def test_an_absolute_base_path_is_reduced_to_its_name() -> None:
    assert saving.portable_name("/data/models/phi") == "phi"
    assert saving.portable_name("~/models/phi") == "phi"
    assert saving.portable_name("microsoft/Phi-3-mini-4k-instruct").startswith("microsoft/")


def test_an_adapter_that_lost_a_tensor_on_its_way_to_the_disk_is_refused(
    uninterrupted: tuple[TrainingJob, TrainingResult], base: Base, tmp_path: Path
) -> None:
    output = uninterrupted[0].output
    folder = tmp_path / "adapter"
    shutil.copytree(output / "adapter", folder)
    weights = load_file(folder / saving.WEIGHTS)
    weights["base_model.model.renamed.lora_A.weight"] = weights.pop(sorted(weights)[0])
    save_file(weights, folder / saving.WEIGHTS)
    rows = json.loads((output / "fixture.json").read_text())["input_ids"]
    expected = load_file(output / "fixture.safetensors")["logits"]
    model = AutoModelForCausalLM.from_pretrained(base.path)
    with pytest.raises(StageFailed, match="1 tensors are missing"):
        saving.check_reload(model, folder, rows, expected, tolerance=1e-4)


def test_an_adapter_that_answers_differently_after_reloading_is_refused(
    uninterrupted: tuple[TrainingJob, TrainingResult], base: Base
) -> None:
    output = uninterrupted[0].output
    rows = json.loads((output / "fixture.json").read_text())["input_ids"]
    expected = load_file(output / "fixture.safetensors")["logits"]
    model = AutoModelForCausalLM.from_pretrained(base.path)
    with pytest.raises(StageFailed, match="logits differ by"):
        saving.check_reload(model, output / "adapter", rows, expected + 0.1, tolerance=1e-4)


def test_a_base_that_is_rewritten_while_it_is_trained_on_is_noticed(
    job: MakeJob, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "base"
    shutil.copytree(base.path, copy)
    real = saving.save_adapter

    def rewrite(*args: Any, **kwargs: Any) -> None:
        real(*args, **kwargs)
        weights = copy / "model.safetensors"
        weights.write_bytes(weights.read_bytes())

    monkeypatch.setattr(saving, "save_adapter", rewrite)
    with pytest.raises(StageFailed, match="changed while an adapter was trained"):
        worker.train(job(base=copy, training={"max_steps": 2}))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_a_number_stops_the_training(
    job: MakeJob, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    real = trainer.AdapterTrainer.compute_loss

    def broken(self: Any, *args: Any, **kwargs: Any) -> Any:
        factor = value if self.state.global_step == 2 else 1.0
        return real(self, *args, **kwargs) * factor

    monkeypatch.setattr(trainer.AdapterTrainer, "compute_loss", broken)
    task = job()
    with pytest.raises(StageFailed, match=r"at step 3 of 14 .*learning_rate \(now 0.02\)"):
        worker.train(task)
    assert not task.result.exists()
    # What was not a number is in no checkpoint.
    assert not list(task.checkpoints.glob("checkpoint-3"))


def test_gradients_that_are_not_numbers_write_no_checkpoint(
    job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = trainer.AdapterTrainer.training_step

    def broken(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = real(self, *args, **kwargs)
        if self.state.global_step == 1:
            next(p for p in self.model.parameters() if p.requires_grad).grad.fill_(math.nan)
        return loss

    monkeypatch.setattr(trainer.AdapterTrainer, "training_step", broken)
    task = job(training={"logging_steps": 100})
    with pytest.raises(StageFailed, match=r"at step 2 of 14 the loss is 8\.\d+ .* norm nan"):
        worker.train(task)
    assert not list(task.checkpoints.glob("checkpoint-*"))


def test_a_base_far_worse_than_guessing_stops_at_the_first_step(
    job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loading.load_base

    def scaled(*args: Any, **kwargs: Any) -> Any:
        model = real(*args, **kwargs)
        model.get_output_embeddings().weight.data *= 500
        return model

    monkeypatch.setattr(loading, "load_base", scaled)
    with pytest.raises(StageFailed, match=r"guessing among all 4,096 tokens costs 8\.3"):
        worker.train(job())


def test_a_learning_rate_of_zero_trains_nothing_and_is_said(job: MakeJob) -> None:
    with pytest.raises(StageFailed, match="every lora_B is still zero"):
        worker.train(job(training={"learning_rate": 0.0, "max_steps": 2}))


def test_an_adapter_without_parameters_is_refused(job: MakeJob) -> None:
    with pytest.raises(UserError, match="training"):
        worker.train(job(peft={"layers_to_transform": [5]}))


def test_split_projections_on_a_phi3_are_refused(job: MakeJob) -> None:
    with pytest.raises(UserError, match=r"match no module of \.\./examples/tiny: q_proj"):
        worker.train(job(peft={"target_modules": ["q_proj", "o_proj"]}))


def test_what_peft_refuses_is_the_users_mistake(job: MakeJob) -> None:
    with pytest.raises(UserError, match=r"PEFT refuses training\.peft_config"):
        worker.train(job(peft={"init_lora_weights": "loftq"}))


def test_a_full_disk_is_said_before_training(job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StageFailed, match=r"0\.0 GB free; checkpoints need about 0\.1 GB"):
        worker.train(job())


def test_quantization_without_bitsandbytes_names_the_extra(
    job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r'pip install "loraline\[gpu\]"'):
        worker.train(job(quantization="nf4"))


def test_bfloat16_trains_and_reloads(job: MakeJob) -> None:
    task = job(dtype="bfloat16", training={"max_steps": 3})
    result = train(task)
    assert result.dtype == "bfloat16"
    weights = load_file(task.output / "adapter" / saving.WEIGHTS)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_evaluation_during_training_reads_the_test_rows(job: MakeJob) -> None:
    task = job(training={"eval_strategy": "steps", "eval_steps": 7})
    train(task)
    history = [json.loads(x) for x in (task.output / "history.jsonl").read_text().splitlines()]
    losses = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    assert len(losses) == 2
    assert all(5 < loss < 10 for loss in losses)


def test_the_number_format_follows_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU decides here")
    info = tmp_path / "cpuinfo"
    info.write_text("processor : 0\nflags : fpu avx512f avx512_bf16\n")
    assert loading.bf16_cpu_flag(info) == "avx512_bf16"
    info.write_text("processor : 0\nflags : fpu avx2\n")
    assert loading.bf16_cpu_flag(info) is None
    monkeypatch.setattr(loading, "bf16_cpu_flag", lambda: "avx512_bf16")
    assert loading.choose_precision("auto").name == "bfloat16"
    monkeypatch.setattr(loading, "bf16_cpu_flag", lambda: None)
    assert loading.choose_precision("auto").name == "float32"
    with pytest.raises(UserError, match="float16, and there is no GPU"):
        loading.choose_precision("float16")


def test_the_end_of_turn_token_is_what_nearly_all_rows_end_with(tmp_path: Path, end: int) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 2}))
    cut = [[-100, 7, 8]] + [[-100, 7, end, -100]] * 9 + [[-100, -100]]
    assert saving.stop_token_ids(cut, tmp_path, 3) == [end, 2, 3]


def _adapter(ours: trainer.AdapterTrainer) -> list[torch.nn.Parameter]:
    return [p for p in ours.model.parameters() if p.requires_grad]


def test_an_adapter_that_casts_no_inputs_trains_in_bfloat16(job: MakeJob) -> None:
    settings = TrainingSettings(
        peft_config={
            "peft_type": "IA3",
            "target_modules": ["qkv_proj", "down_proj"],
            "feedforward_modules": ["down_proj"],
        }
    )
    task = job(
        dtype="bfloat16",
        training={"max_steps": 2},
        peft_config=settings.resolved_peft_config(),
    )
    assert train(task).trainable_parameters > 0


def test_an_optimizer_whose_library_is_missing_is_told_in_words(
    job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match="a library that is not installed"):
        worker.train(job(training={"max_steps": 1, "optim": "paged_adamw_8bit"}))

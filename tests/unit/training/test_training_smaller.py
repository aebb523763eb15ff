"""Where memory runs out, half as many rows at once, and in every optimizer step the same ones."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks import launch
from tasks.errors import OutOfMemory, StageFailed, WorkerFailed
from tasks.training import engine, loading, smaller, trainer, work, worker
from tasks.training.job import TrainingJob, TrainingResult
from tasks.training.kernel_kills import kernel_kills
from tasks.training.settings import TrainingSettings

MakeJob = Callable[..., TrainingJob]
BATCH = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "num_train_epochs": 2,
    "save_steps": 2,
}


def halved(job: TrainingJob) -> TrainingJob:
    found = smaller.with_smaller_batches(job)
    assert found is not None
    return found


def rows_of_steps(job: TrainingJob) -> list[list[set[int]]]:
    """Of two epochs, the rows of each optimizer step, as the trainer's own loader would read them."""
    made = engine.build_trainer(
        job, engine.read_rows(job.tokens / "train.parquet"), loading.choose_precision(job.dtype)
    )
    arguments = made.args
    step = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    epochs = []
    for epoch in range(2):
        sampler = made.get_train_dataloader().batch_sampler
        sampler.sampler.set_epoch(epoch)
        rows = [row for batch in sampler for row in batch]
        epochs.append([set(rows[at : at + step]) for at in range(0, len(rows), step)])
    return epochs


@pytest.mark.parametrize("strategy", ["group_by_length", "random"])
def test_each_step_reads_the_same_rows(job: MakeJob, strategy: str) -> None:
    whole = job(training=BATCH | {"train_sampling_strategy": strategy})
    before = rows_of_steps(whole)
    assert [len(rows) for rows in before[0]] == [8, 8, 8, 2]
    once = halved(whole)
    assert once.training_config["per_device_train_batch_size"] == 2
    assert rows_of_steps(once) == before
    twice = halved(once)
    assert twice.training_config["per_device_train_batch_size"] == 1
    assert rows_of_steps(twice) == before
    assert smaller.with_smaller_batches(twice) is None


@pytest.mark.long
@pytest.mark.usefixtures("own_signals_and_threads")
def test_a_training_that_ran_out_in_mid_epoch_ends_with_the_losses_of_one_that_did_not(
    job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def losses(task: TrainingJob) -> list[float]:
        lines = (task.output / "history.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]

    values = {"peft": {"lora_dropout": 0.0}, "training": BATCH}
    whole = job("whole", **values)
    worker.train(whole)
    torn = job("torn", **values)
    real = trainer.AdapterTrainer.training_step

    def greedy(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 3:
            raise MemoryError
        return real(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.AdapterTrainer, "training_step", greedy)
        with pytest.raises(OutOfMemory, match="in step 4 of 8"):
            worker.train(torn)
    again = halved(torn)
    worker.train(again)
    result = TrainingResult.model_validate_json(again.result.read_text())
    assert result.resumed_from_step == 2
    assert losses(again) == pytest.approx(losses(whole), abs=1e-4)


def test_on_a_cpu_nothing_puts_the_smaller_batches_together_again(job: MakeJob) -> None:
    task = halved(job(training=BATCH))
    made = engine.build_trainer(
        task, engine.read_rows(task.tokens / "train.parquet"), loading.choose_precision(task.dtype)
    )
    assert made.args.per_device_train_batch_size == 2
    assert made.args.gradient_accumulation_steps == 4


@pytest.mark.parametrize(
    ("method", "processes", "batch", "found"),
    [
        ("sft", 1, 8, 4),
        ("sft", 1, 3, None),
        ("sft", 1, 1, None),
        ("dpo", 1, 4, 2),
        ("orpo", 1, 4, 2),
        # It estimates how far the model has moved from the rows of its batch.
        ("kto", 1, 4, None),
        # Two processes share a batch of 4 already: with 2 x 2 each would compute as many at once.
        ("sft", 2, 4, 1),
        ("sft", 4, 4, None),
    ],
)
def test_a_batch_is_halved_as_far_as_each_process_computes_less_at_once(
    job: MakeJob, method: str, processes: int, batch: int, found: int | None
) -> None:
    values = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": 1}
    task = job(method=method, processes=processes, training=values)
    again = smaller.with_smaller_batches(task)
    assert (again and again.training_config["per_device_train_batch_size"]) == found
    if again is not None:
        assert again.training_config["gradient_accumulation_steps"] * (found or 0) == batch
        assert again.order_batch == batch


def test_a_batch_beyond_which_rows_are_dropped_is_left_as_it_is(job: MakeJob) -> None:
    assert smaller.with_smaller_batches(job(training={"dataloader_drop_last": True})) is None


@pytest.mark.parametrize(
    ("method", "loss_type", "found"),
    [
        ("kto", "kto", None),
        # Without that estimate each answer counts for itself; its batch still deals foreign answers.
        ("kto", "apo_zero_unpaired", 4),
        ("dpo", ["sigmoid"], 4),
        ("dpo", ["sigmoid", "sft"], None),
        ("dpo", ["aot"], None),
    ],
)
def test_a_batch_whose_rows_are_weighed_together_is_left_as_it_is(
    job: MakeJob, method: str, loss_type: Any, found: int | None
) -> None:
    values = {"per_device_train_batch_size": 8, "loss_type": loss_type}
    again = smaller.with_smaller_batches(job(method=method, training=values))
    assert (again and again.training_config["per_device_train_batch_size"]) == found


@pytest.mark.parametrize(
    ("method", "training", "words"),
    [
        ("kto", {}, "KTO estimates from a micro-batch's own rows .* another training"),
        ("dpo", {"loss_type": ["aot"]}, "DPO's loss `aot` is one of a micro-batch's rows together"),
        ("sft", {"dataloader_drop_last": True}, "an epoch would have other rows"),
        ("sft", {"per_device_train_batch_size": 3}, "no smaller half that divides it"),
    ],
)
def test_where_no_smaller_batch_is_made_the_message_says_why(
    job: MakeJob,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    method: str,
    training: dict[str, Any],
    words: str,
) -> None:
    def runs_out(*_: object) -> TrainingResult:
        raise OutOfMemory("Memory ran out in step 3.\nSet training.quantization: nf4.")

    monkeypatch.setattr(work, "_run_worker", runs_out)
    task, allowed = job(method=method, training=training), TrainingSettings(smaller_batches=True)
    with pytest.raises(OutOfMemory, match=words) as failed:
        work._trained(task, allowed, tmp_path / "log", print)
    assert "Set training.quantization: nf4." in str(failed.value)


@pytest.mark.parametrize("batch", [4, 1])
def test_the_way_out_is_offered_only_where_it_is_one(
    job: MakeJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, batch: int
) -> None:
    def runs_out(*_: object) -> TrainingResult:
        raise OutOfMemory("Memory ran out in step 3.")

    monkeypatch.setattr(work, "_run_worker", runs_out)
    task = job(training=BATCH | {"per_device_train_batch_size": batch})
    with pytest.raises(OutOfMemory, match=r"Memory ran out in step 3\.") as failed:
        work._trained(task, TrainingSettings(), tmp_path / "log", print)
    assert ("`training.smaller_batches: true`" in str(failed.value)) == (batch > 1)


def test_a_restart_begins_with_the_batch_that_fitted(
    job: MakeJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tried: list[tuple[int, int | None]] = []

    def run_worker(task: TrainingJob, *_: object) -> TrainingResult:
        batch = task.training_config["per_device_train_batch_size"]
        tried.append((batch, task.order_batch))
        if batch > 2:
            raise OutOfMemory("Memory ran out in step 3")
        if len(tried) == 2:
            raise StageFailed("the machine went away")
        return TrainingResult.model_construct()

    monkeypatch.setattr(work, "_run_worker", run_worker)
    allowed = TrainingSettings(smaller_batches=True)
    with pytest.raises(StageFailed, match="went away"):
        work._trained(job(training=BATCH), allowed, tmp_path / "log", lambda _: None)
    work._trained(job(training=BATCH), allowed, tmp_path / "log", lambda _: None)
    assert tried == [(4, None), (2, 4), (2, 4)]
    # What belongs to another recipe is not taken up.
    other = job(training=BATCH | {"per_device_train_batch_size": 8})
    assert smaller.remembered(other) == other


@pytest.mark.parametrize("rose", [True, False])
def test_a_kill_by_the_kernel_is_lack_of_memory_where_its_counter_tells(
    job: MakeJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rose: bool
) -> None:
    counts = iter([7, 8 if rose else 7])

    def dies(*_: Any, **__: Any) -> None:
        raise WorkerFailed("Training stopped with exit code 1. Last lines:")

    monkeypatch.setattr(work, "kernel_kills", lambda: next(counts))
    monkeypatch.setattr(launch, "run", dies)
    with pytest.raises(StageFailed, match="lack of memory") as failed:
        work._run_worker(job(), TrainingSettings(), tmp_path / "log", None)
    assert isinstance(failed.value, OutOfMemory) == rose


def test_the_kernels_counter_is_the_own_groups(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("0::/a.slice/b.scope\n")
    assert kernel_kills(tmp_path, own) is None
    (tmp_path / "a.slice/b.scope").mkdir(parents=True)
    (tmp_path / "memory.events").write_text("oom 9\noom_kill 9\n")
    assert kernel_kills(tmp_path, own) == 9
    (tmp_path / "a.slice/b.scope/memory.events").write_text("low 0\noom 3\noom_kill 2\n")
    assert kernel_kills(tmp_path, own) == 2


def test_a_full_disk_is_not_called_lack_of_memory(
    job: MakeJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise WorkerFailed("Training stopped with exit code 1.") from OSError(28, "No space left")

    monkeypatch.setattr(launch, "run", full)
    with pytest.raises(WorkerFailed, match=r"^The disk is full: ") as failed:
        work._run_worker(job(), TrainingSettings(), tmp_path / "log", None)
    assert "memory" not in str(failed.value)


def test_words_that_were_not_read_are_no_lack_of_memory(
    job: MakeJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def dies(*_: Any, **__: Any) -> None:
        failure = WorkerFailed("Training stopped with exit code 1.")
        failure.unheard = "its output is still open"
        raise failure

    monkeypatch.setattr(launch, "run", dies)
    with pytest.raises(WorkerFailed, match="its output is still open") as failed:
        work._run_worker(job(), TrainingSettings(), tmp_path / "log", None)
    assert "memory" not in str(failed.value)

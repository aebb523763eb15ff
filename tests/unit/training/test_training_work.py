"""The stage as a flow calls it: a worker process, its end by force, the store."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tasks import launch
from tasks.artifacts import Adapter, Tokens
from tasks.base import Base
from tasks.errors import Interrupted, Killed, StageFailed, UserError, WorkerFailed
from tasks.home import Home
from tasks.store import Store
from tasks.training import starting, work
from tasks.training.job import TrainingResult
from tasks.training.settings import TrainingSettings

Train = Callable[..., Adapter]
STEPS = 300
LONG = {
    "learning_rate": 1e-3,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "max_steps": STEPS,
    "logging_steps": 1,
    "save_steps": 10,
}


@pytest.fixture
def long(settings: TrainingSettings) -> TrainingSettings:
    """Long enough that an event reaches us well before the end."""
    return TrainingSettings.model_validate(settings.model_dump() | {"training_config": LONG})


def worker_of(job: Path) -> psutil.Process:
    """The training process itself, not the launcher above it."""
    found = [
        process
        for process in psutil.Process().children(recursive=True)
        if "tasks.training.worker" in process.cmdline() and str(job) in process.cmdline()
    ]
    return max(found, key=lambda process: process.pid)


@pytest.mark.long
def test_interrupted_then_killed_then_finished_gives_the_uninterrupted_adapter(
    train: Train,
    home: Home,
    long: TrainingSettings,
    tokens: Tokens,
    base: Base,
    tmp_path: Path,
) -> None:
    events: list[dict[str, Any]] = []

    def at(step: int, act: Callable[[], None]) -> Callable[[dict[str, Any]], None]:
        def hear(event: dict[str, Any]) -> None:
            events.append(event)
            if event["event"] == "step" and event["step"] == step:
                act()

        return hear

    # Ctrl-C: the worker writes a checkpoint before it ends.
    with pytest.raises(Interrupted, match="goes on from the checkpoint of step") as interrupted:
        train(settings=long, on_event=at(12, lambda: os.kill(os.getpid(), signal.SIGINT)))
    [working] = home.work.iterdir()
    [kept] = [int(w) for w in str(interrupted.value).split("step ")[-1].rstrip(".").split()[:1]]
    assert 12 <= kept < STEPS
    assert (working / "checkpoints" / f"checkpoint-{kept}").is_dir()
    assert not home.store.joinpath("training").exists() or not list(
        home.store.glob("training/*/manifest.json")
    )

    # SIGKILL: nothing more is written; the message says what is known.
    later = kept + 25
    with pytest.raises(Killed) as killed:
        train(
            settings=long,
            on_event=at(later, lambda: worker_of(working / "job.json").kill()),
        )
    assert "ended from outside after step" in str(killed.value)
    assert "lack of memory" in str(killed.value)
    assert "per_device_train_batch_size" in str(killed.value)
    assert "Run it again by hand" in str(killed.value)

    adapter = train(settings=long, on_event=events.append)
    notes = [event["message"] for event in events if event["event"] == "note"]
    assert any(f"Going on from the checkpoint of step {kept}." in note for note in notes)
    result = TrainingResult.model_validate_json((adapter.path / "result.json").read_text())
    assert result.resumed_from_step is not None
    assert result.resumed_from_step > kept
    assert result.steps == STEPS
    assert not working.exists()
    steps = [
        json.loads(x)["step"] for x in (adapter.path / "history.jsonl").read_text().split("\n")[:-1]
    ]
    assert steps == list(range(1, STEPS + 1))

    elsewhere = Home(tmp_path / "elsewhere")
    uninterrupted = work.train_adapter(
        Store(elsewhere.store), long, seed=7, tokens=tokens, base=base, home=elsewhere
    )
    assert adapter.sha256 == uninterrupted.sha256


def test_a_finished_training_is_published_whole_and_reused_without_a_worker(
    train: Train, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[dict[str, Any]] = []
    adapter = train(on_event=events.append)
    assert not adapter.reused
    assert {p.relative_to(adapter.path).as_posix() for p in adapter.path.rglob("*")} >= {
        "adapter/adapter_model.safetensors",
        "adapter/adapter_config.json",
        "adapter/tokenizer.json",
        "adapter/chat_template.jinja",
        "adapter/generation_config.json",
        "history.jsonl",
        "loss.png",
        "result.json",
        "fixture.json",
        "fixture.safetensors",
        "summary.md",
    }
    summary = (adapter.path / "summary.md").read_text()
    assert f"{adapter.trainable_parameters:,}" in summary
    assert "![Loss curve](data:image/png;base64," in summary
    assert "| `training_config.learning_rate` | 0.02 |" in summary
    steps = [event for event in events if event["event"] == "step"]
    assert [event["step"] for event in steps] == list(range(1, 15))
    for name in ("loss", "learning_rate", "grad_norm", "tokens_per_second", "eta_seconds"):
        assert all(isinstance(event[name], float) for event in steps), name

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a worker was started")

    monkeypatch.setattr(launch, "run", refuse)
    again = train()
    assert again.reused
    assert again.model_dump(exclude={"reused", "seconds"}) == adapter.model_dump(
        exclude={"reused", "seconds"}
    )


def test_a_users_mistake_comes_back_from_the_worker_as_one(
    train: Train, settings: TrainingSettings, home: Home
) -> None:
    wrong = {"target_modules": ["q_proj", "o_proj"]}
    mistaken = TrainingSettings.model_validate(settings.model_dump() | {"peft_config": wrong})
    with pytest.raises(UserError, match=r"calls q_proj: qkv_proj"):
        train(settings=mistaken)
    assert not list(home.store.glob("training/*/manifest.json"))


def test_what_the_worker_says_of_its_failure_is_what_a_person_reads(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(argv: list[str], *, on_event: Any, **_: Any) -> None:
        on_event({"event": "failed", "message": "Training diverged: the loss is nan."})
        raise WorkerFailed("Training stopped with exit code 1. Last lines:\n  noise")

    monkeypatch.setattr(launch, "run", fails)
    with pytest.raises(StageFailed, match=r"^Training diverged: the loss is nan\.\nFull log: "):
        train()


def test_a_crash_with_a_traceback_is_not_called_a_kill(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crashes(argv: list[str], *, on_event: Any, **_: Any) -> None:
        on_event({"event": "crashed", "error": "RuntimeError", "message": "boom"})
        raise WorkerFailed("Training stopped with exit code 1. Last lines:\n  RuntimeError: boom")

    monkeypatch.setattr(launch, "run", crashes)
    with pytest.raises(WorkerFailed) as failure:
        train()
    assert not isinstance(failure.value, Killed)
    assert "RuntimeError: boom" in str(failure.value)
    assert "ended from outside" not in str(failure.value)
    assert "starts training again" in str(failure.value)


def test_an_interrupted_training_goes_on_from_its_checkpoints_by_force_too(
    train: Train, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    def fails(argv: list[str], **_: Any) -> None:
        working = Path(argv[-1]).parent
        seen.append((working / "checkpoints").exists())
        (working / "checkpoints").mkdir(exist_ok=True)
        raise WorkerFailed("stopped")

    monkeypatch.setattr(launch, "run", fails)
    for force in (False, False, True):
        with pytest.raises(WorkerFailed):
            train(force=force)
    assert seen == [False, True, True]


def test_a_worker_sees_one_device_of_those_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for given, expected in (("2,3", "2"), ("", ""), ("MIG-1", "MIG-1")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        assert starting.worker_environment()["CUDA_VISIBLE_DEVICES"] == expected
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert starting.worker_environment()["CUDA_VISIBLE_DEVICES"] == "0"


def test_the_fingerprint_changes_with_everything_that_decides_the_adapter_and_nothing_else(
    settings: TrainingSettings, base: Base, tokens: Tokens, tmp_path: Path
) -> None:
    from dataclasses import replace

    def key(settings_: TrainingSettings = settings, **changes: Any) -> str:
        arguments = {"seed": 7, "tokens_fingerprint": tokens.fingerprint, "base": base} | changes
        return work.fingerprint_of(settings_, **arguments)

    def changed(**fields: Any) -> TrainingSettings:
        return TrainingSettings.model_validate(settings.model_dump() | fields)

    # Another place, and the same width: the default learning rate follows it.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "config.json").write_bytes((base.path / "config.json").read_bytes())
    same = [
        key(changed(stall_minutes=1)),
        key(changed(timeout_minutes=5)),
        key(base=replace(base, path=elsewhere, model="./x")),
    ]
    assert set(same) == {key()}
    others = [
        key(seed=8),
        key(tokens_fingerprint="0"),
        key(base=replace(base, weights_sha256="0")),
        key(base=replace(base, tokenizer_sha256="0")),
        key(changed(dtype="bfloat16")),
        key(changed(quantization="nf4")),
        key(changed(peft_config={"r": 5})),
        key(changed(training_config={"learning_rate": 1e-5})),
    ]
    assert len({key(), *others}) == len(others) + 1


def test_no_configuration_of_the_users_reaches_the_launcher() -> None:
    argv = starting.worker_command("tasks.training.worker", Path("job.json"))
    assert "-P" in argv
    assert "--config_file" in argv
    assert Path(argv[argv.index("--config_file") + 1]).is_file()
    assert argv[-1] == "job.json"


def test_a_crash_among_several_processes_is_told_before_the_launchers_words(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crashes(argv: list[str], *, on_event: Any, **_: Any) -> None:
        on_event({"event": "crashed", "error": "RuntimeError", "message": "boom"})
        on_event({"event": "crashed", "error": "DistBackendError", "message": "Connection reset"})
        raise WorkerFailed("Training stopped with exit code 1. Last lines:\n  ChildFailedError")

    monkeypatch.setattr(launch, "run", crashes)
    with pytest.raises(WorkerFailed, match=r"^RuntimeError: boom\nTraining stopped"):
        train()

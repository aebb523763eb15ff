"""A version is proved on a GPU that is free, else on the CPU; a training is neither disturbed nor waited for."""

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock, Timeout

from flows.commands import predict
from tasks import gpu_turn
from tasks.errors import NoGpuTurn, ServerAway, StageFailed, WorkerFailed
from tasks.home import Home
from tasks.promotion import promoting
from tasks.promotion.moving import Aliases
from tasks.promotion.reconciling import _verified
from tasks.registration import task, verification
from tasks.registration.job import FAILED, Verification
from tasks.registration.prediction import Row
from tasks.registration.verification import verify_version
from tasks.registry import TRAINING
from tasks.tracking import Tracker

FOUND = Verification(
    rows=1,
    positions=4,
    dtype="bfloat16",
    largest_difference=0.1,
    tolerance=0.2,
    adapter_effect=3.0,
    answer="",
    finish_reason="stop",
    seconds=0.0,
)


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FileLock:
    """The lock of the one GPU that this machine seems to have; another run holds it while it is held."""
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho '0, GPU-aa'\n")
    tool.chmod(0o755)
    locks = tmp_path / "gpu-locks"
    locks.mkdir()
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    monkeypatch.setenv(gpu_turn.FOLDER_VARIABLE, str(locks))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpu_turn, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(gpu_turn, "SECONDS_BETWEEN", 0.0)
    return FileLock(locks / "GPU-aa.lock")


def is_free(gpu: FileLock) -> bool:
    try:
        # Another one on the same file: the lock of one holder may be taken twice by them.
        with FileLock(gpu.lock_file).acquire(timeout=0):
            return True
    except Timeout:
        return False


@pytest.fixture
def shown(gpu: FileLock, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, bool]]]:
    """Which GPUs each worker was shown, and whether another run could have computed there meanwhile."""
    seen: list[tuple[str, bool]] = []

    def work(argv: list[str], **_: Any) -> None:
        seen.append((os.environ.get("CUDA_VISIBLE_DEVICES", "all"), is_free(gpu)))
        result = Path(json.loads(Path(argv[-1]).read_text())["result"])
        result.write_text(FOUND.model_dump_json())

    monkeypatch.setattr("tasks.launch.run", work)
    yield seen
    gpu_turn.give_back_gpus()


@pytest.fixture
def verify(tmp_path: Path) -> Callable[[], Verification]:
    home = Home(tmp_path / "state")
    fixture = tmp_path / "model" / "fixture"
    return lambda: verify_version(
        Tracker(home), "models:/tiny/1", base=None, fixture=fixture, home=home
    )


def test_a_free_gpu_is_locked_while_a_version_is_loaded_there(
    gpu: FileLock, shown: list[tuple[str, bool]], verify: Callable[[], Verification]
) -> None:
    assert verify().passed
    assert shown == [("GPU-aa", False)]
    assert is_free(gpu)
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_the_turn_of_the_run_that_registers_goes_on_after_it(
    gpu: FileLock, shown: list[tuple[str, bool]], verify: Callable[[], Verification]
) -> None:
    gpu_turn.take_gpus(1)
    assert verify().passed
    assert shown == [("GPU-aa", False)]
    assert not is_free(gpu)


@pytest.mark.timeout(60)
def test_beside_a_training_a_version_is_loaded_on_the_cpu_at_once(
    gpu: FileLock, shown: list[tuple[str, bool]], verify: Callable[[], Verification]
) -> None:
    with gpu:
        assert verify().passed
    assert shown == [("", False)]
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_a_driver_that_is_silent_keeps_nobody_from_going_back(
    gpu: FileLock,
    shown: list[tuple[str, bool]],
    verify: Callable[[], Verification],
    tmp_path: Path,
) -> None:
    (tmp_path / "bin" / "nvidia-smi").write_text("#!/bin/sh\nexit 255\n")
    assert verify().passed
    assert shown == [("", True)]


@pytest.mark.parametrize("how", ["differs", "dies"])
@pytest.mark.timeout(60)
def test_what_the_cpu_does_not_prove_waits_for_a_gpu(
    gpu: FileLock,
    shown: list[tuple[str, bool]],
    verify: Callable[[], Verification],
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    prove = verification.run_worker
    held = ExitStack()
    held.enter_context(gpu)

    def on_cpu_in_vain(*arguments: Any, **named: Any) -> None:
        prove(*arguments, **named)
        if shown[-1][0]:
            return
        # The training ends meanwhile.
        held.close()
        if how == "dies":
            raise WorkerFailed("killed")
        job = json.loads(Path(arguments[1]).read_text())
        far = FOUND.model_copy(update={"largest_difference": 2.0})
        Path(job["result"]).write_text(far.model_dump_json())

    monkeypatch.setattr(verification, "run_worker", on_cpu_in_vain)
    assert verify().passed
    assert [devices for devices, _ in shown] == ["", "GPU-aa"]


@pytest.mark.parametrize("device", ["NVIDIA H200", "cpu, 2 threads"])
@pytest.mark.timeout(60)
def test_what_overflows_on_the_cpu_alone_is_no_verdict_on_what_a_gpu_trained(
    gpu: FileLock,
    verify: Callable[[], Verification],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
) -> None:
    training = tmp_path / "model" / "about" / TRAINING
    training.parent.mkdir(parents=True)
    training.write_text(json.dumps({"device": device}))
    held = ExitStack()
    held.enter_context(gpu)

    def overflow(argv: list[str], *, on_event: Callable[[Any], None], **_: Any) -> None:
        if os.environ["CUDA_VISIBLE_DEVICES"]:
            Path(json.loads(Path(argv[-1]).read_text())["result"]).write_text(
                FOUND.model_dump_json()
            )
            return
        # The training ends meanwhile.
        held.close()
        on_event({"event": FAILED, "kind": "NotFinite", "message": "3 logits are NaN."})
        raise WorkerFailed("stopped with exit code 1")

    monkeypatch.setattr("tasks.launch.run", overflow)
    if device.startswith("cpu"):
        with pytest.raises(StageFailed, match=r"^3 logits are NaN\."):
            verify()
    else:
        assert verify().passed


@pytest.mark.timeout(60)
def test_an_outage_during_the_look_on_the_cpu_waits_for_no_gpu(
    gpu: FileLock, verify: Callable[[], Verification], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(*_: Any, on_event: Callable[[Any], None], **__: Any) -> None:
        on_event({"event": FAILED, "kind": "ServerAway", "message": "MLflow is away."})
        raise WorkerFailed("stopped with exit code 1")

    monkeypatch.setattr("tasks.launch.run", lose)
    with gpu, pytest.raises(ServerAway, match=r"^MLflow is away\. Log: "):
        verify()


def test_where_the_driver_is_silent_nobody_is_told_to_end_another_run(
    gpu: FileLock,
    verify: Callable[[], Verification],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def die(*_: Any, **__: Any) -> None:
        raise WorkerFailed("killed for lack of memory")

    (tmp_path / "bin" / "nvidia-smi").write_text("#!/bin/sh\nexit 255\n")
    monkeypatch.setattr(verification, "run_worker", die)
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(NoGpuTurn, match="driver does not say") as failed,
    ):
        verify()
    assert "cancel the run" not in str(failed.value)
    assert "on the CPU instead" in caplog.text
    assert "Nothing was started" not in caplog.text


@pytest.mark.timeout(60)
def test_a_run_waits_for_a_gpu_to_register_on_without_the_model_s_lock(
    gpu: FileLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = ExitStack()
    held.enter_context(gpu)
    free: list[bool] = []

    def register(*_: Any, **__: Any) -> Any:
        free.append(is_free(gpu))
        if len(free) == 1:
            raise NoGpuTurn("no GPU became free")
        return SimpleNamespace(version="1")

    def wait(_: float) -> None:
        # The training ends meanwhile.
        held.close()

    monkeypatch.setattr(gpu_turn.time, "sleep", wait)
    monkeypatch.setattr("tasks.registration.work.register_adapter", register)
    for name in ("get_run_logger", "show_summary", "started", "announce"):
        monkeypatch.setattr(task, name, lambda *_, **__: logging.getLogger())
    made = SimpleNamespace(adapter=SimpleNamespace(sha256="aa"))
    given = dict.fromkeys(("settings", "tracker", "max_tokens"))
    store = SimpleNamespace(path=lambda *_: None)
    version = task.register_adapter.fn("k", store=store, name="tiny", made=made, **given)  # type: ignore[arg-type]
    assert version.version == "1"
    # Taken by the training at first, then by the run that registers.
    assert free == [False, False]
    assert is_free(gpu)


@pytest.mark.timeout(60)
def test_a_gpu_that_stays_taken_is_no_verdict_on_a_version(
    gpu: FileLock,
    verify: Callable[[], Verification],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def die(*_: Any, **__: Any) -> None:
        raise WorkerFailed("killed for lack of memory")

    monkeypatch.setattr(verification, "run_worker", die)
    monkeypatch.setattr(verification, "LONGEST_WAIT_SECONDS", 0.1)
    with gpu:
        with pytest.raises(NoGpuTurn, match=r"(?s)Nothing is known against .* cancel .* lack of"):
            verify()
        seen = _verified("tiny", Aliases("1", None), lambda _: verify().told)
    assert seen["verified"] is None


@pytest.mark.parametrize("kind", [NoGpuTurn, ServerAway])
def test_a_rollback_that_could_not_look_does_not_say_that_the_version_is_damaged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: type[StageFailed]
) -> None:
    def refuse(_: str) -> str:
        raise kind("nobody could look")

    for name in ("settle", "observe", "_ready"):
        monkeypatch.setattr(promoting, name, lambda *_, **__: None)
    monkeypatch.setattr(promoting, "aliases_of", lambda *_: Aliases("2", "1"))
    monkeypatch.setattr(promoting, "promoting", lambda *_: ExitStack())
    monkeypatch.setattr(promoting, "_way_back", lambda *_: "1")
    with pytest.raises(StageFailed, match=r"^nobody could look$"):
        promoting.roll_back(
            Tracker(Home(tmp_path)), "tiny", reason="bad", verify=refuse, notices=Any
        )


@pytest.mark.parametrize("hidden", [False, True])
def test_predicting_on_the_command_line_has_a_turn_on_the_gpu_that_it_may_see(
    gpu: FileLock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hidden: bool
) -> None:
    free: list[bool] = []
    if hidden:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def answer(rows: list[Row], **_: Any) -> list[Any]:
        free.append(is_free(gpu))
        return [SimpleNamespace(answer="Four.", finish_reason="stop") for _ in rows]

    monkeypatch.setattr("tasks.registration.prediction.answer_rows", answer)
    monkeypatch.setattr("tasks.tracking.reachable_tracker", Tracker)
    monkeypatch.setenv("LORALINE_HOME", str(tmp_path / "state"))
    given = {"model": "tiny", "prompt": "Two and two?", "input": None, "output": None}
    asked = SimpleNamespace(**given, base=None, max_tokens=None)
    assert predict.run(asked) == 0  # type: ignore[arg-type]
    assert free == [hidden]
    assert is_free(gpu)

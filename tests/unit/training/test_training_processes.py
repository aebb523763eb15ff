"""One training in several processes: the same rows a step, the same gradients, one set of files."""

import itertools
import json
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from tasks.artifacts import Adapter, Tokens
from tasks.errors import Interrupted, StageFailed, UserError
from tasks.home import Home
from tasks.tokenization.packing import write_packs
from tasks.training import batches, checkpoints, ranks, starting, worker
from tasks.training.job import TrainingJob, TrainingResult
from tasks.training.settings import TrainingSettings
from tasks.training.sharing import RowsOrNothing, Share, SharedOrder

pytestmark = pytest.mark.slow

Train = Callable[..., Adapter]


def changed(settings: TrainingSettings, **fields: Any) -> TrainingSettings:
    values = settings.model_dump()
    for name in ("peft_config", "training_config"):
        fields[name] = values[name] | fields.get(name, {})
    return TrainingSettings.model_validate(values | fields)


def result_of(adapter: Adapter) -> TrainingResult:
    return TrainingResult.model_validate_json((adapter.path / "result.json").read_text())


def history_of(adapter: Adapter) -> list[dict[str, Any]]:
    lines = (adapter.path / "history.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("rows", [1, 7, 12, 24, 26, 49])
@pytest.mark.parametrize(
    ("batch", "accumulation", "processes"),
    [(4, 3, 1), (4, 1, 2), (4, 1, 3), (2, 4, 2), (2, 4, 8), (1, 6, 4), (3, 2, 6)],
)
def test_each_step_reads_the_same_rows_however_many_processes_share_them(
    rows: int, batch: int, accumulation: int, processes: int
) -> None:
    if Share(batch, accumulation, processes).team_size > batch:
        pytest.skip("refused")
    order = random.Random(rows).sample(range(rows), rows)
    step = batch * accumulation
    shares = [Share(batch, accumulation, processes, rank) for rank in range(processes)]
    for together in (n for n in (1, 2, 3) if shares[0].own_accumulation % n == 0):
        parts = [share.micro_batches(order, together) for share in shares]
        assert len({len(part) for part in parts}) == 1
        each = shares[0].own_accumulation // together
        assert -(-len(parts[0]) // each) == -(-rows // step)
        for number, start in enumerate(range(0, rows, step)):
            mine = [part[number * each : (number + 1) * each] for part in parts]
            read = list(itertools.chain(*itertools.chain(*mine)))
            assert sorted(read) == sorted(order[start : start + step])
        largest = max(len(batch_) for part in parts for batch_ in part)
        assert largest <= shares[0].own_batch * together


def test_alone_the_share_is_the_batches_of_the_recipe() -> None:
    share = Share(4, 2)
    assert (share.own_batch, share.own_accumulation) == (4, 2)
    assert share.micro_batches(list(range(10)), 1) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_more_processes_than_rows_are_refused() -> None:
    Share(2, 3, 6).refuse_idle()
    with pytest.raises(UserError, match="reads 2 x 3 rows"):
        Share(2, 3, 12).refuse_idle()


def test_a_process_that_the_last_rows_do_not_reach_reads_a_row_without_loss() -> None:
    order = SharedOrder([3, 1, 2], Share(2, 1, 2, rank=1), 1, drop_last=False)
    assert list(order) == [[1], [-1]]
    assert len(order) == 2
    assert list(SharedOrder([3, 1, 2], Share(2, 1, 2), 1, drop_last=True)) == [[3]]

    class Rows(list[Any]):
        column_names = ("input_ids", "labels")

    rows = RowsOrNothing(Rows([{"input_ids": [1], "labels": [1]}]))
    assert rows[0] == {"input_ids": [1], "labels": [1]}
    assert set(rows[-1]["labels"]) == {-100}
    assert len(rows) == 1


def test_micro_batches_of_unequal_rows_train_the_adapter_of_whole_batches(
    make_job: Callable[..., TrainingJob], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean is over the tokens of an optimizer step, and not over its micro-batches."""
    # One micro-batch at a time: a CPU would compute all four in one line.
    monkeypatch.setattr(batches, "LINE_TOKENS", 1)
    monkeypatch.setattr(worker, "_stop_on_sigterm", worker.threading.Event)
    adapters = []
    for rows, accumulation in ((4, 1), (2, 2), (1, 4)):
        training = {
            "per_device_train_batch_size": rows,
            "gradient_accumulation_steps": accumulation,
            "train_sampling_strategy": "random",
            "optim": "sgd",
            "learning_rate": 0.5,
        }
        job = make_job(tmp_path / f"{rows}", peft={"lora_dropout": 0.0}, training=training)
        worker.train(job)
        adapters.append(load_file(job.output / "adapter" / "adapter_model.safetensors"))
    for adapter in adapters[1:]:
        for name, tensor in adapters[0].items():
            assert torch.allclose(tensor, adapter[name], atol=2e-5), name


def test_two_processes_train_the_adapter_of_one(
    train: Train, settings: TrainingSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """26 rows in batches of 4: the last step of an epoch has two, and rows differ in length."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    # Plain descent: AdamW would blow the rounding of small gradients up to that of large ones.
    plain = changed(
        settings,
        peft_config={"lora_dropout": 0.0},
        training_config={
            "optim": "sgd",
            "learning_rate": 0.5,
            "eval_strategy": "steps",
            "eval_steps": 7,
        },
    )
    notes: list[str] = []

    def hear(event: dict[str, Any]) -> None:
        if event["event"] == "note":
            notes.append(event["message"])

    one, two = train(settings=plain), train(settings=changed(plain, processes=2), on_event=hear)
    assert "Training in 2 processes (DistributedDataParallel over gloo)." in notes
    # What is told, is told once.
    assert len(notes) == len(set(notes))
    assert one.fingerprint != two.fingerprint
    first, second = ([e for e in history_of(a) if "loss" in e] for a in (one, two))
    assert sum("eval_loss" in entry for entry in history_of(two)) == 2
    assert [entry["step"] for entry in second] == list(range(1, 15))
    for a, b in zip(first, second, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-4)
    weights = [
        load_file(adapter.path / "adapter" / "adapter_model.safetensors") for adapter in (one, two)
    ]
    for name, tensor in weights[0].items():
        assert torch.allclose(tensor, weights[1][name], atol=2e-5), name
    assert result_of(two).steps == result_of(one).steps
    # A folder a training would fill a disk in years.
    assert list(temporary.iterdir()) == []


def test_two_processes_train_packed_rows_as_one_does(
    train: Train, settings: TrainingSettings, tokens: Tokens, tmp_path: Path
) -> None:
    """Packs hold unequal numbers of answers, and the last step of an epoch does not go round."""
    packed = tmp_path / "packed"
    shutil.copytree(tokens.path, packed)
    lengths = [len(ids) for ids in pq.read_table(packed / "train.parquet")["input_ids"].to_pylist()]
    write_packs(packed, lengths, 64)
    rows = tokens.model_copy(update={"path": packed, "fingerprint": "packed"})
    plain = changed(
        settings,
        peft_config={"lora_dropout": 0.0},
        training_config={
            "optim": "sgd",
            "learning_rate": 0.5,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
        },
    )
    one, two = (train(settings=changed(plain, processes=count), tokens=rows) for count in (1, 2))
    packs, steps = result_of(two).packs, result_of(two).steps
    assert packs is not None
    assert packs % 4 != 0, "every step has a full set of packs"
    assert result_of(one).packs == packs < len(lengths)
    assert steps == result_of(one).steps
    assert result_of(one).tokens == result_of(two).tokens == 2 * sum(lengths)
    for a, b in zip(history_of(one), history_of(two), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-4)
    weights = [
        load_file(adapter.path / "adapter" / "adapter_model.safetensors") for adapter in (one, two)
    ]
    for name, tensor in weights[0].items():
        assert torch.allclose(tensor, weights[1][name], atol=2e-5), name


def test_an_interrupted_training_in_two_processes_goes_on_to_the_same_bytes(
    train: Train, settings: TrainingSettings, home: Home
) -> None:
    """With dropout and accumulation, in the middle of an epoch: each process has its own random state."""
    spread = changed(
        settings,
        processes=2,
        training_config={
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 4,
            "save_steps": 100,
        },
    )
    seen: list[dict[str, Any]] = []

    def stop(event: dict[str, Any]) -> None:
        seen.append(event)
        if event["event"] == "step" and event["step"] == 4:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="goes on from the checkpoint of step"):
        train(settings=spread, on_event=stop)
    [checkpoint] = home.work.glob("training-*/checkpoints/checkpoint-*")
    random_states = sorted(path.name for path in checkpoint.glob("rng_state*"))
    assert random_states == ["rng_state_0.pth", "rng_state_1.pth"]
    states = [torch.load(checkpoint / name, weights_only=False) for name in random_states]
    assert not torch.equal(states[0]["cpu"], states[1]["cpu"])
    resumed = train(settings=spread)
    assert result_of(resumed).resumed_from_step == checkpoints.step_of(checkpoint)
    assert result_of(resumed).steps == 14
    whole = train(settings=spread, force=True)
    assert result_of(whole).resumed_from_step is None
    assert whole.sha256 == resumed.sha256


def test_two_machines_meet_and_train_one_adapter(
    train: Train, settings: TrainingSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other machine is played by a process that is started as the printed line says."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    both = changed(
        settings,
        machines=2,
        main_address="127.0.0.1",
        main_port=port,
        training_config={"max_steps": 2},
    )
    other: list[subprocess.Popen[bytes]] = []
    notes: list[str] = []

    def hear(event: dict[str, Any]) -> None:
        if event["event"] != "note":
            return
        notes.append(event["message"])
        _, found, line = event["message"].partition("run: ")
        if found:
            other.append(subprocess.Popen(shlex.split(line.replace("rank=N", "rank=1"))))

    try:
        adapter = train(settings=both, on_event=hear)
        assert other[0].wait(60) == 0
    finally:
        for process in other:
            process.kill()
            process.wait()
    assert "Training in 2 processes (DistributedDataParallel over gloo)." in notes
    assert result_of(adapter).steps == 2


def test_machines_that_cannot_meet_are_told_before_anything_starts(
    train: Train, settings: TrainingSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UserError, match="nothing says where they meet"):
        train(settings=changed(settings, machines=2))


def test_the_number_of_processes_is_part_of_what_decides_the_adapter(
    settings: TrainingSettings,
) -> None:
    alone = settings.content()
    assert changed(settings, processes=1, main_port=1).content() == alone
    four = [changed(settings, **fields).content() for fields in FOUR]
    assert four[0] == four[1] == alone | {"processes": 4}


FOUR: list[dict[str, Any]] = [{"processes": 4}, {"processes": 2, "machines": 2}]


def test_a_launcher_that_starts_another_number_of_processes_is_caught() -> None:
    ranks.refuse_lost_processes(2, 2)
    with pytest.raises(StageFailed, match="2 processes, and the launcher started 1"):
        ranks.refuse_lost_processes(2, 1)


def test_each_process_gets_a_device_of_those_that_may_be_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    assert starting.worker_environment(2)["CUDA_VISIBLE_DEVICES"] == "4,5"
    with pytest.raises(UserError, match="names 3"):
        starting.worker_environment(4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert starting.worker_environment(4)["CUDA_VISIBLE_DEVICES"] == ""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert starting.worker_environment(3)["CUDA_VISIBLE_DEVICES"] == "0,1,2"


def test_two_processes_train_alike_in_bfloat16(train: Train, settings: TrainingSettings) -> None:
    """Under autocast the wrapped model converts what its forward pass returns."""
    plain = changed(
        settings,
        dtype="bfloat16",
        peft_config={"lora_dropout": 0.0},
        training_config={"max_steps": 4, "gradient_accumulation_steps": 2},
    )
    one, two = train(settings=plain), train(settings=changed(plain, processes=2))
    for a, b in zip(history_of(one), history_of(two), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=5e-3)
    assert result_of(two).tokens == result_of(one).tokens

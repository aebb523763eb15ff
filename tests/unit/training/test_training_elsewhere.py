"""A training that ends on one machine goes on upon another, from the checkpoint in the shared store."""

import json
import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.artifacts import Adapter, Tokens
from tasks.base import Base
from tasks.errors import Interrupted
from tasks.home import Home
from tasks.remote_store import RemoteStore
from tasks.store import Store
from tasks.training import checkpoints, work
from tasks.training.job import TrainingResult
from tasks.training.mirrored import Mirror
from tasks.training.settings import TrainingSettings

pytestmark = pytest.mark.long

STEPS = 60
LONG = {
    "learning_rate": 1e-3,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "max_steps": STEPS,
    "logging_steps": 1,
    "save_steps": 10,
}
URL = "s3://shared/loraline"


@pytest.fixture
def train_in(settings: TrainingSettings, tokens: Tokens, base: Base) -> Callable[..., Adapter]:
    """Train in a home of its own; only the remote store is shared."""
    long = TrainingSettings.model_validate(settings.model_dump() | {"training_config": LONG})

    def train(home: Home, remote: RemoteStore | None, **more: Any) -> Adapter:
        store = Store(home.store, remote)
        return work.train_adapter(store, long, seed=7, tokens=tokens, base=base, home=home, **more)

    return train


def test_another_machine_goes_on_to_the_same_bytes_and_a_third_finds_them(
    train_in: Callable[..., Adapter], shared_bucket: Any, tmp_path: Path
) -> None:
    def interrupt(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 25:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="goes on from the checkpoint of step"):
        train_in(Home(tmp_path / "first"), RemoteStore(URL), on_event=interrupt)
    copies = {o.key.split("/")[3] for o in shared_bucket.objects.filter(Prefix="loraline/check")}
    assert len(copies) == 1

    events: list[dict[str, Any]] = []
    adapter = train_in(Home(tmp_path / "second"), RemoteStore(URL), on_event=events.append)
    result = TrainingResult.model_validate_json((adapter.path / "result.json").read_text())
    assert copies == {f"checkpoint-{result.resumed_from_step}"}
    assert result.resumed_from_step is not None
    assert result.resumed_from_step >= 25
    lines = (adapter.path / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, STEPS + 1))
    assert not list(shared_bucket.objects.filter(Prefix="loraline/checkpoints"))

    third = train_in(Home(tmp_path / "third"), RemoteStore(URL))
    assert third.reused
    alone = train_in(Home(tmp_path / "alone"), None)
    assert not alone.reused
    assert adapter.sha256 == third.sha256 == alone.sha256


@pytest.fixture
def remote(tmp_path: Path) -> RemoteStore:
    return RemoteStore((tmp_path / "mounted").as_uri())


def write(folder: Path, step: int) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "weights").write_text(str(step))
    checkpoints.mark_complete(checkpoint)
    return checkpoint


def saved(step: int) -> dict[str, Any]:
    return {"event": "saved", "step": step}


def test_only_the_newest_copy_is_kept(remote: RemoteStore, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    with Mirror(remote, "t", folder) as mirror:
        for step in (10, 20, 100):
            write(folder, step)
            mirror.hear(saved(step))
    assert remote.folders("checkpoints/t") == ["checkpoint-100"]
    with Mirror(remote, "t", tmp_path / "other"):
        assert checkpoints.is_complete(tmp_path / "other" / "checkpoint-100")
    mirror.forget()
    assert remote.folders("checkpoints/t") == []


def test_a_newer_checkpoint_of_ones_own_stays_and_an_older_one_is_overtaken(
    remote: RemoteStore, tmp_path: Path
) -> None:
    remote.push(write(tmp_path / "a", 20), "checkpoints/t/checkpoint-20", checkpoints.MANIFEST)
    for own, newest in ((30, 30), (9, 20)):
        folder = tmp_path / str(own)
        write(folder, own)
        with Mirror(remote, "t", folder):
            found = checkpoints.newest_complete(folder)
        assert found is not None
        assert checkpoints.step_of(found) == newest


def test_a_torn_copy_is_passed_by_for_the_one_before_it(
    remote: RemoteStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (10, 20):
        place = f"checkpoints/t/checkpoint-{step}"
        remote.push(write(tmp_path / "a", step), place, checkpoints.MANIFEST)
    (tmp_path / "mounted/checkpoints/t/checkpoint-20/weights").write_text("torn")
    with Mirror(remote, "t", tmp_path / "b"):
        found = checkpoints.newest_complete(tmp_path / "b")
    assert found == tmp_path / "b" / "checkpoint-10"
    assert "The checkpoint before it is tried" in caplog.text


def test_a_checkpoint_that_cannot_be_copied_ends_no_training(
    remote: RemoteStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "checkpoints"
    with caplog.at_level(logging.WARNING), Mirror(remote, "t", folder) as mirror:
        mirror.hear(saved(5))
        write(folder, 6)
        mirror.hear(saved(6))
    assert remote.folders("checkpoints/t") == ["checkpoint-6"]


class Slow(RemoteStore):
    """A store whose every file takes longer than a checkpoint."""

    def _put(self, *arguments: Any) -> None:
        time.sleep(0.05)
        super()._put(*arguments)


def complete(remote: RemoteStore) -> list[str]:
    names = remote.folders("checkpoints/t")
    return [n for n in names if remote.has(f"checkpoints/t/{n}", checkpoints.MANIFEST)]


def test_a_store_slower_than_the_saves_holds_a_whole_checkpoint_all_the_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    remote = Slow((tmp_path / "mounted").as_uri())
    folder = tmp_path / "checkpoints"
    seen = []
    with Mirror(remote, "t", folder) as mirror:
        for step in range(1, 31):
            write(folder, step)
            mirror.hear(saved(step))
            checkpoints.keep_newest(folder, 1)
            time.sleep(0.02)
            seen.append(complete(remote))
        # One was copied before the last was saved, and from the first one on there is always one.
        first = next(at for at, names in enumerate(seen) if names)
        assert first < 25
        assert all(seen[first:])
    assert complete(remote) == remote.folders("checkpoints/t") == ["checkpoint-30"]
    assert not (folder / ".mirror").exists()
    assert "was not copied" not in caplog.text
    with Mirror(remote, "t", tmp_path / "other"):
        assert checkpoints.is_complete(tmp_path / "other" / "checkpoint-30")


def test_a_copy_that_fails_half_way_leaves_no_part_and_the_one_before_it(
    remote: RemoteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "checkpoints"
    put = remote._put

    def fails(place: Path, target: str, name: str) -> None:
        if target.endswith("-2") and name == checkpoints.MANIFEST:
            raise PermissionError("the credentials have run out")
        put(place, target, name)

    monkeypatch.setattr(remote, "_put", fails)
    for step in (1, 2):
        with Mirror(remote, "t", folder) as mirror:
            write(folder, step)
            mirror.hear(saved(step))
    assert complete(remote) == remote.folders("checkpoints/t") == ["checkpoint-1"]


def test_what_a_killed_run_left_there_goes_with_the_next_copy(
    remote: RemoteStore, tmp_path: Path
) -> None:
    left = tmp_path / "mounted/checkpoints/t/checkpoint-7"
    left.mkdir(parents=True)
    (left / "weights").write_text("half")
    folder = tmp_path / "checkpoints"
    with Mirror(remote, "t", folder) as mirror:
        write(folder, 5)
        mirror.hear(saved(5))
    assert remote.folders("checkpoints/t") == ["checkpoint-5"]


def test_a_checkpoint_that_is_there_already_is_not_copied_again(
    remote: RemoteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "checkpoints"
    remote.push(write(folder, 20), "checkpoints/t/checkpoint-20", checkpoints.MANIFEST)
    monkeypatch.setattr(remote, "push", lambda *_: pytest.fail("it was copied again"))
    with Mirror(remote, "t", folder) as mirror:
        # As the worker says when it goes on from its own.
        mirror.hear(saved(20))
    assert complete(remote) == ["checkpoint-20"]

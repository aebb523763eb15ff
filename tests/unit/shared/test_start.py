"""What `init_from: champion` comes to: decided once for the same inputs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import UserError
from tasks.home import Home
from tasks.registry import Champion
from tasks.remote_store import RemoteStore
from tasks.start import (
    Beginning,
    Start,
    note_start,
    refuse_own_alias,
    start_at_champion,
    working_folder,
)
from tasks.store import Store
from tasks.tracking import Tracker
from tasks.training import checkpoints

BASE = "b" * 64
ASKED, TRAINING = "a" * 64, "f" * 64
Ask = Callable[..., Start | None]


@pytest.fixture
def tracker(tmp_path: Path) -> Tracker:
    return Tracker(Home(tmp_path / "home"), uri="sqlite:///unused.db")


@pytest.fixture
def ask(tracker: Tracker) -> Ask:
    def call(champion: Champion | None, asked: str = ASKED) -> Start | None:
        store = Store(tracker.home.store)
        return start_at_champion(asked, champion, base_sha256=BASE, store=store, tracker=tracker)

    return call


def champion(folder: Path, number: int, **training: Any) -> Champion:
    about = folder / f"version-{number}" / "about"
    about.mkdir(parents=True)
    (about / "training.json").write_text(json.dumps(training))
    return Champion("small", str(number), about.parent / "adapter", str(number) * 64, BASE)


def publish(store: Store, training: str = TRAINING) -> None:
    store.publish("training", training, lambda folder: _write(folder / "result.json"))


def _write(path: Path) -> None:
    path.write_text("{}")


def test_without_a_champion_training_starts_from_the_base(ask: Ask) -> None:
    assert ask(None) is None


def test_it_is_today_s_champion_for_inputs_that_nobody_trained_on(ask: Ask, tmp_path: Path) -> None:
    start = ask(champion(tmp_path, 3))
    assert start is not None
    assert (start.uri, start.adapter_sha256) == ("models:/small/3", "3" * 64)


def test_a_finished_training_keeps_its_start_whoever_is_champion_now(
    ask: Ask, tmp_path: Path, tracker: Tracker
) -> None:
    store = Store(tracker.home.store)
    first = ask(champion(tmp_path, 3))
    note_start(Beginning(first, ASKED), TRAINING, store)
    publish(store)
    assert ask(champion(tmp_path, 4)) == first
    other = ask(champion(tmp_path, 5), asked="c" * 64)
    assert other is not None
    assert other.uri == "models:/small/5"


def test_one_that_started_from_the_base_keeps_that_too(
    ask: Ask, tmp_path: Path, tracker: Tracker
) -> None:
    """Else the first night's own result would be the start of the second."""
    store = Store(tracker.home.store)
    note_start(Beginning(ask(None), ASKED), TRAINING, store)
    publish(store)
    assert ask(champion(tmp_path, 1)) is None


def test_a_training_with_checkpoints_goes_on_from_what_it_started_from(
    ask: Ask, tmp_path: Path, tracker: Tracker
) -> None:
    first = ask(champion(tmp_path, 3))
    note_start(Beginning(first, ASKED), TRAINING, Store(tracker.home.store))
    later = champion(tmp_path, 4)
    # It died before its first checkpoint: nothing is lost by starting from the better one.
    assert ask(later) != first
    (working_folder(tracker.home, TRAINING) / "checkpoints" / "checkpoint-5").mkdir(parents=True)
    assert ask(later) == first


@pytest.mark.parametrize("how", ["checkpoint", "output", "nothing"])
def test_another_home_with_the_same_store_takes_the_start_that_the_first_one_had(
    tmp_path: Path, how: str
) -> None:
    remote = RemoteStore((tmp_path / "mounted").as_uri())

    def home(name: str) -> tuple[Store, Tracker]:
        own = Home(tmp_path / name)
        return Store(own.store, remote), Tracker(own, uri="sqlite:///unused.db")

    def asked(champion_: Champion, store: Store, tracker: Tracker) -> Start | None:
        return start_at_champion(ASKED, champion_, base_sha256=BASE, store=store, tracker=tracker)

    store, tracker = home("first")
    first = asked(champion(tmp_path, 3), store, tracker)
    note_start(Beginning(first, ASKED), TRAINING, store)
    if how == "checkpoint":
        checkpoint = tmp_path / "checkpoint-5"
        checkpoint.mkdir()
        (checkpoint / "weights").write_text("w")
        checkpoints.mark_complete(checkpoint)
        place = f"checkpoints/{TRAINING}/checkpoint-5"
        remote.push(checkpoint, place, checkpoints.MANIFEST)
    elif how == "output":
        publish(store)
    there = asked(champion(tmp_path, 4), *home("second"))
    assert (there == first) == (how != "nothing")


def test_a_store_that_is_away_costs_a_warning_and_no_training(
    tmp_path: Path, tracker: Tracker, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    remote = RemoteStore((tmp_path / "mounted").as_uri())

    def away(*_: Any) -> None:
        raise PermissionError("the credentials have run out")

    monkeypatch.setattr(remote, "_put", away)
    store = Store(tracker.home.store, remote)
    note_start(Beginning(None, ASKED), TRAINING, store)
    assert "Other homes do not learn" in caplog.text
    monkeypatch.setattr(remote, "_exists", away)
    start = start_at_champion(
        ASKED, champion(tmp_path, 3), base_sha256=BASE, store=store, tracker=tracker
    )
    assert start is not None


def test_a_training_whose_output_was_torn_keeps_nothing(
    ask: Ask, tmp_path: Path, tracker: Tracker
) -> None:
    store = Store(tracker.home.store)
    note_start(Beginning(ask(champion(tmp_path, 3)), ASKED), TRAINING, store)
    publish(store)
    (store.path("training", TRAINING) / "result.json").write_text("torn")
    start = ask(champion(tmp_path, 4))
    assert start is not None
    assert start.uri == "models:/small/4"


def test_in_a_new_home_a_champion_made_of_these_inputs_is_not_trained_on_from_itself(
    ask: Ask, tmp_path: Path
) -> None:
    its_start = {"uri": "models:/small/2", "adapter_sha256": "2" * 64, "base_sha256": BASE}
    start = ask(champion(tmp_path, 3, asked=ASKED, start=its_start))
    assert start is not None
    assert start.record == its_start
    assert ask(champion(tmp_path, 4, asked=ASKED, start=None)) is None


def test_a_champion_on_another_base_is_no_start(
    ask: Ask, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = Champion("small", "3", tmp_path / "adapter", "3" * 64, "0" * 64)
    assert ask(other) is None
    assert "belongs on another base" in caplog.text


@pytest.mark.parametrize("alias", ["champion", "challenger"])
def test_an_alias_that_every_run_moves_to_its_own_result_is_refused(alias: str) -> None:
    with pytest.raises(UserError, match="trains again, from itself"):
        refuse_own_alias(f"models:/small@{alias}", "small")
    refuse_own_alias(f"models:/other@{alias}", "small")
    refuse_own_alias("models:/small@stable", "small")

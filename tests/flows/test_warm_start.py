"""Night after night with `init_from: champion`: trained on when rows are new, and never for the champion's sake."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tasks.home import Home
from tasks.registry import Champion, current_champion
from tasks.tracking import Tracker

RECIPE = """\
name: nightly
base: {base}
dataset:
  sources:
    - type: python_source
      package: {package}
  split:
    test: 0.1
    salt: small
tokenization:
  max_length: 512
  long_rows: drop
training:
  init_from: {start}
  replay: {{share: {share}}}
  peft_config:
    r: 4
    lora_dropout: 0.0
  training_config:
    max_steps: 6
    logging_steps: 2
    per_device_train_batch_size: 4
    learning_rate: 2.0e-3
evaluation:
  max_new_tokens: 4
  bootstrap_samples: 100
promotion:
  policy: automatic
"""
Night = Callable[..., dict[str, Any]]


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory, starter: Path, fresh: Any) -> Night:
    """Run the recipe on the rows of a package, as a schedule would."""
    cli = replace(fresh, folder=tmp_path_factory.mktemp("nightly"))
    recipe = cli.folder / "recipes" / "nightly.yaml"
    recipe.parent.mkdir()

    def run(package: str, start: str = "champion", share: float = 0.0) -> dict[str, Any]:
        recipe.write_text(
            RECIPE.format(base=starter, package=package, start=start, share=share),
            encoding="utf-8",
        )
        found = cli.json("run", "recipes/nightly.yaml")
        return {**found, "folder": cli.folder}

    return run


def champion(folder: Path) -> Champion:
    home = Home(folder / ".loraline")
    found = current_champion(Tracker(home), "nightly", home)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def first(night: Night) -> dict[str, Any]:
    """There is no champion yet."""
    return night("email", share=0.25)


@pytest.fixture(scope="module")
def second(night: Night, first: dict[str, Any]) -> dict[str, Any]:
    """Other rows, and version 1 is champion."""
    return night("asyncio", share=0.25)


def test_the_first_night_starts_from_the_base_and_an_unchanged_second_one_trains_nothing(
    night: Night, first: dict[str, Any]
) -> None:
    """Though there is a champion by then."""
    assert first["exit_code"] == 0, first["stderr"][-3000:]
    assert first["outcome"] == "registered"
    assert "started_from" not in first
    assert champion(first["folder"]).training["start"] is None
    again = night("email", share=0.25)
    assert again["outcome"] == "skipped", again["reason"]


def test_new_rows_train_the_champion_on_with_some_of_its_own(
    first: dict[str, Any], second: dict[str, Any]
) -> None:
    assert second["exit_code"] == 0, second["stderr"][-3000:]
    assert second["started_from"]["uri"] == "models:/nightly/1"
    two = champion(second["folder"])
    assert two.version == "2"
    start = two.training["start"]
    assert start["adapter_sha256"] == second["started_from"]["adapter_sha256"]
    assert start["logits_difference"] < start["adapter_effect"]
    assert start["recorded_loss"] == pytest.approx(first["metrics"]["challenger"]["loss"])
    assert two.dataset_card is not None
    card = json.loads(two.dataset_card.read_text(encoding="utf-8"))
    assert start["replayed_rows"] == card["replay"]["rows"] > 0
    assert two.earlier_rows is not None
    run = Tracker(Home(second["folder"] / ".loraline")).client.get_run(second["mlflow_run_id"])
    params = run.data.params
    assert params["training.started_from.adapter_sha256"] == start["adapter_sha256"]
    assert params["training.init_from"] == "champion"


def test_a_champion_that_was_made_of_these_rows_does_not_go_on_from_itself(
    night: Night, second: dict[str, Any]
) -> None:
    last = night("asyncio", share=0.25)
    assert last["outcome"] == "skipped", last["reason"]
    assert last["model_version"]["version"] == "2"
    assert last["started_from"]["uri"] == "models:/nightly/1"


def test_a_home_that_knows_nothing_of_it_does_not_train_the_champion_on_from_itself(
    night: Night, second: dict[str, Any]
) -> None:
    """A container without yesterday's store makes the same adapter from the same start again."""
    folder = second["folder"]
    store = folder / ".loraline" / "store"
    (store / "beginnings").rename(folder / "beginnings-away")
    (store / "training").rename(folder / "training-away")
    again = night("asyncio", share=0.25)
    assert again["exit_code"] == 0, again["stderr"][-3000:]
    assert again["started_from"]["uri"] == "models:/nightly/1"
    assert again["stages"]["training"]["reused"] is False
    assert again["model_version"]["version"] == "2"


def test_a_version_that_is_not_there_is_refused_before_anything_is_made(
    night: Night, first: dict[str, Any]
) -> None:
    missing = night("email", start="models:/nightly/99")
    assert missing["exit_code"] == 2
    assert "models:/nightly/99 is not in the registry" in missing["reason"]
    own = night("email", start="models:/nightly@champion")
    assert own["exit_code"] == 2
    assert "training.init_from: champion" in own["reason"]

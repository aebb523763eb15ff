"""`mlflow/README.md` names everything that a real run leaves in MLflow, and promises nothing that is not there."""

from typing import Any

import pytest

from tasks.home import Home
from tasks.tracking import Tracker
from tests.registry_page import PAGE, names, unnamed, unnamed_of_run


@pytest.fixture
def client(small: Any) -> Any:
    return Tracker(Home(small.folder / ".loraline")).client


@pytest.mark.long
def test_everything_in_a_run_is_named(client: Any, first_run: dict[str, Any]) -> None:
    assert unnamed_of_run(client, first_run["mlflow_run_id"]) == set()


@pytest.mark.long
def test_what_the_page_promises_of_every_run_is_there(
    client: Any, first_run: dict[str, Any]
) -> None:
    run = client.get_run(first_run["mlflow_run_id"])
    always = names("in a run", "metrics of the new adapter, always", "live metrics")
    assert set(always) <= set(run.data.metrics)
    # What begins with one of these is of others, or of the machine.
    others = ("train.", "system/", "base.", "champion.", "drift.")
    assert {it for it in run.data.metrics if not it.startswith(others)} <= set(always)
    assert any(name.startswith("system/") for name in run.data.metrics)
    assert run.data.tags["loraline.cause"] == "manual"


def test_the_page_knows_every_metric_that_a_recipe_may_ask_for() -> None:
    from tasks.dataset.drift import ASPECTS
    from tasks.evaluation.catalog import OPTIONAL_MODULES, PAIR_MODULES

    asked = names("in a run", "metrics of the new adapter, where the recipe asks")
    assert {*OPTIONAL_MODULES, "schema_match", "embedding_similarity", "judge"} <= set(asked)
    assert all(any(it.startswith(module) for it in asked) for module in PAIR_MODULES)
    assert set(ASPECTS) <= set(names("in a run", "metrics of the data beside"))


@pytest.mark.long
def test_everything_on_a_version_and_its_model_is_named(
    client: Any, first_run: dict[str, Any]
) -> None:
    model = client.get_registered_model("small")
    assert not unnamed(model.aliases, names("on a version", "alias"))
    assert list(model.tags) == ["loraline.promotion.head"]
    assert "`loraline.promotion.head`" in PAGE.read_text(encoding="utf-8")
    version = client.get_model_version("small", "1")
    assert len(version.tags) > 10
    assert not unnamed(version.tags, names("on a version", "tag"))


@pytest.mark.long
def test_everything_in_an_entry_of_the_log_is_named(client: Any, first_run: dict[str, Any]) -> None:
    experiment = client.get_experiment_by_name("small/promotions")
    entries = client.search_runs([experiment.experiment_id])
    assert entries
    for entry in entries:
        assert set(entry.data.params) == set(names("in an entry", "parameters"))
        tags = {name for name in entry.data.tags if not name.startswith("mlflow.")}
        assert tags == set(names("in an entry", "tags"))

"""Registries of versions without content: promotion moves names, and is handed the proof that they load."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.home import Home
from tasks.promotion.notices import Notices
from tasks.tracking import Tracker


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database; creating one takes seconds, copying it nothing."""
    home = Home(tmp_path_factory.mktemp("database").resolve())
    _ = Tracker(home).client
    return home.mlflow / "mlflow.db"


@pytest.fixture(scope="module")
def tracker(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    """One registry for the module; each test registers a model of its own."""
    home = Home(tmp_path_factory.mktemp("registry").resolve())
    home.mlflow.mkdir()
    shutil.copy(migrated, home.mlflow / "mlflow.db")
    return Tracker(home)


@pytest.fixture
def own_tracker(migrated: Path, tmp_path: Path) -> Tracker:
    """A registry for one test, that looks at everything in it."""
    home = Home((tmp_path / "own").resolve())
    home.mlflow.mkdir(parents=True)
    shutil.copy(migrated, home.mlflow / "mlflow.db")
    return Tracker(home)


@pytest.fixture
def register() -> Callable[..., None]:
    """Makes versions that passed the gate, each judged against the one before, unless their tags say otherwise."""

    def make(tracker: Tracker, name: str, versions: int, **tags: str) -> None:
        tracker.client.create_registered_model(name)
        for number in range(1, versions + 1):
            tracker.client.create_model_version(
                name,
                source="mlflow-artifacts:/nowhere",
                tags={
                    "loraline.gate": "passed",
                    "loraline.judged_against": str(number - 1) if number > 1 else "none",
                    "loraline.adapter_sha256": f"{number:064d}",
                    "loraline.metrics": '{"challenger": {"rougeL": 0.4, "loss": 1.5}}',
                    **{key.replace("__", "."): value for key, value in tags.items()},
                },
            )

    return make


@pytest.fixture
def nobody(tmp_path: Path) -> Notices:
    """No receiver is told."""
    return Notices(tmp_path / "outbox")


@pytest.fixture
def loads() -> Callable[[str], str]:
    """The proof of a version that loads."""
    return lambda uri: f"{uri} loads"


@pytest.fixture
def aliases() -> Callable[..., dict[str, str]]:
    """Alias -> version."""

    def read(tracker: Tracker, name: str) -> dict[str, str]:
        found: Any = tracker.client.get_registered_model(name).aliases
        return {alias: str(version) for alias, version in found.items()}

    return read

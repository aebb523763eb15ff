"""A loss of power in a training, on a stack whose data is in PostgreSQL."""

from pathlib import Path
from typing import Any

import pytest

from tests.running_stack import running_stack, until
from tests.unit.conftest import postgres

__all__ = ["postgres"]

STEPS = 60
pytestmark = [pytest.mark.torture, pytest.mark.timeout(1800)]


def advisory_locks(server: str) -> int:
    """How many are granted beside the stack's own, which is in Prefect's database: an adapter's turn is one."""
    import psycopg

    with psycopg.connect(server) as connection:
        found = connection.execute(
            "SELECT count(*) FROM pg_locks JOIN pg_database ON database = pg_database.oid "
            "WHERE locktype = 'advisory' AND granted AND datname = 'loraline_mlflow'"
        ).fetchone()
    assert found is not None
    return int(found[0])


def test_everything_is_killed_and_the_training_goes_on_under_the_adapters_lock(
    fresh: Any, postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORALINE_POSTGRES", postgres.removesuffix("/postgres"))
    (tmp_path / "recipes").mkdir()
    recipe = (fresh.folder / "recipes" / "small.yaml").read_text()
    (tmp_path / "recipes" / "small.yaml").write_text(recipe)
    with running_stack(type(fresh)(tmp_path)) as stack:
        run = stack.start_long_run("on-postgresql", STEPS)
        until(lambda: len(stack.checkpoints()) > 1)
        assert advisory_locks(postgres) == 1
        mlflow_run = stack.mlflow_run()
        stack.kill_everything()
        stack.up()
        until(lambda: stack.state(run) == "CRASHED", 120)
        until(
            lambda: stack.tracker.client.get_run(mlflow_run).info.status == "KILLED",
            120,
        )
        finisher = stack.repetition_of(run)
        assert stack.end_of(finisher)["type"] == "COMPLETED"
        assert min(stack.steps_of(finisher, STEPS)) > 5
        assert advisory_locks(postgres) == 0
        (version,) = stack.tracker.client.search_model_versions("name = 'on-postgresql'")
        assert version.status == "READY"
        until(lambda: stack.alerts_of(run) == ["crashed"], 60)
    assert not (tmp_path / ".loraline" / "mlflow" / "mlflow.db").exists()

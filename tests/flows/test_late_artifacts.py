"""What Prefect's server was away for is delivered when it is back, though the run has ended by then."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tasks import stage_report

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("prefect_server")]


def test_artifacts_of_a_run_are_delivered_after_its_end_and_are_still_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from prefect import flow, task
    from prefect.client.orchestration import get_client
    from prefect.runtime import flow_run

    reach, away = stage_report.asking_once, [False]

    @contextmanager
    def asking_once() -> Iterator[Any]:
        if away[0]:
            raise ConnectionRefusedError("nobody listens")
        with reach() as client:
            yield client

    monkeypatch.setattr(stage_report, "asking_once", asking_once)

    @task
    def train() -> None:
        stage_report.show("late-curve", "# Loss", "Loss curve")

    @flow
    def pipeline() -> str:
        stage_report.show("card", "# Card", "Rows")
        away[0] = True
        train()
        stage_report.show("late-verdict", "# Verdict", "Registered")
        return str(flow_run.id)

    began = time.monotonic()
    run = pipeline()
    # Nobody has waited for it.
    assert time.monotonic() - began < 20
    away[0] = False
    deadline = time.monotonic() + 60
    with get_client(sync_client=True) as client:
        while len(found := client.read_artifacts()) < 3:
            assert time.monotonic() < deadline, [it.key for it in found]
            time.sleep(0.2)
    assert {it.key for it in found} == {"card", "late-curve", "late-verdict"}
    assert {str(it.flow_run_id) for it in found} == {run}
    assert {it.key for it in found if it.task_run_id is not None} == {"late-curve"}

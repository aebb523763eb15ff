"""A run of a command line ends when somebody deletes it in Prefect, and not when the server is away."""

import os
import signal
import time
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.exceptions import ObjectNotFound

from flows import cancelled_elsewhere
from flows.cancelled_elsewhere import heeding_cancellation


@pytest.mark.parametrize(
    ("error", "health", "ends"),
    [
        (ObjectNotFound, None, True),
        # A proxy without its server.
        (ObjectNotFound, RuntimeError("404 page not found"), False),
        (ConnectionError, None, False),
    ],
)
def test_a_deleted_run_ends_and_one_whose_server_is_away_goes_on(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception], health: Exception | None, ends: bool
) -> None:
    asked: list[UUID] = []
    signals: list[int] = []
    said: list[str] = []

    def read(run: UUID) -> None:
        asked.append(run)
        raise error("no answer")

    def client(**_: Any) -> AbstractContextManager[Any]:
        return nullcontext(SimpleNamespace(read_flow_run=read, api_healthcheck=lambda: health))

    monkeypatch.setattr("prefect.client.orchestration.get_client", client)
    monkeypatch.setattr(cancelled_elsewhere, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(os, "kill", lambda _, number: signals.append(number))
    run = str(uuid4())
    with heeding_cancellation(lambda: [run], said.append):
        deadline = time.monotonic() + 60
        while not signals and len(asked) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert signals == [signal.SIGINT] * ends
    assert said == ["Somebody deleted this run in Prefect."] * ends

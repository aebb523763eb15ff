"""What a person sees of a run in Prefect, on a real server: names, one bar, few log lines, secrets from blocks."""

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from tasks.artifacts import Adapter, Outcome, Tokens
from tests.delivered import all_delivered


@pytest.fixture(scope="module", autouse=True)
def _server() -> Iterator[None]:
    from prefect.settings import (
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        PREFECT_LOGGING_TO_API_BATCH_INTERVAL,
        temporary_settings,
    )
    from prefect.testing.utilities import prefect_test_harness

    with (
        prefect_test_harness(server_startup_timeout=300),
        temporary_settings(
            {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None, PREFECT_LOGGING_TO_API_BATCH_INTERVAL: 0.1}
        ),
    ):
        yield


def logs_of(run_id: UUID, last: str) -> list[Any]:
    """The run's lines, once the one that has `last` is there: a busy server takes them late."""
    until = time.monotonic() + 60
    while True:
        lines = _logs_of(run_id)
        if any(last in line.message for line in lines) or time.monotonic() > until:
            return lines
        time.sleep(1)


def _logs_of(run_id: UUID) -> list[Any]:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
    from prefect.logging.handlers import APILogWorker

    APILogWorker.drain_all(timeout=10)
    with get_client(sync_client=True) as client:
        return list(
            client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id])), limit=200)
        )


def artifacts_of(run_id: UUID) -> list[Any]:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

    all_delivered()
    with get_client(sync_client=True) as client:
        mine = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
        return list(client.read_artifacts(artifact_filter=mine, limit=200))


def tokens(folder: Path) -> Tokens:
    return Tokens(
        path=folder,
        fingerprint="b1",
        reused=True,
        seconds=0.0,
        rows={"train": 6120, "test": 680},
        tokens={"train": 1, "test": 1},
        trained_tokens={"train": 1, "test": 1},
    )


def a_talkative_training(folder: Path, seconds: float, attempts: list[int]) -> Any:
    """Stands in for the worker and its reader; the first attempt is preempted."""

    def train(*_: Any, on_event: Any, **__: Any) -> Adapter:
        from tasks.errors import Preempted

        began, number = time.monotonic(), 0
        while time.monotonic() - began < seconds:
            number += 1
            done = {"step": number, "total_steps": 10_000, "loss": 2.314, "eta_seconds": 41.0}
            on_event({"event": "step", "tokens_per_second": 8410.0, **done})
            on_event({"event": "line", "message": f"a library's warning {number}"})
            time.sleep(0.005)
        attempts.append(number)
        if len(attempts) == 1:
            on_event({"event": "line", "message": "Traceback (most recent call last):"})
            on_event({"event": "line", "message": "SystemExit: told to end"})
            raise Preempted("told to end")
        return Adapter(
            path=folder,
            fingerprint="c1",
            reused=False,
            seconds=seconds,
            sha256="cd" * 32,
            trainable_parameters=5,
        )

    return train


@pytest.mark.long
def test_a_training_writes_less_than_once_a_second_and_has_one_bar_over_its_attempts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect import flow
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.runtime import flow_run

    from tasks.training import task, work

    writes: list[str] = []
    for name in ("create_artifact", "update_artifact"):
        real = getattr(SyncPrefectClient, name)

        def counted(
            self: Any, *values: Any, real: Any = real, name: str = name, **more: Any
        ) -> Any:
            writes.append(name)
            return real(self, *values, **more)

        monkeypatch.setattr(SyncPrefectClient, name, counted)
    seconds, attempts = 8.0, []
    monkeypatch.setattr(work, "train_adapter", a_talkative_training(tmp_path, seconds, attempts))
    monkeypatch.setattr(task, "ended", lambda *_, **__: None)
    eager = task.train_adapter.with_options(retry_delay_seconds=0.01)

    @flow
    def training() -> str:
        eager(
            None,  # type: ignore[arg-type]
            None,  # type: ignore[arg-type]
            seed=1,
            tokens=tokens(tmp_path),
            base=None,  # type: ignore[arg-type]
            home=None,  # type: ignore[arg-type]
        )
        return str(flow_run.id)

    run_id = UUID(training())
    assert len(attempts) == 2
    assert sum(attempts) > 200
    lines = logs_of(run_id, last="SystemExit: told to end")
    told = [log for log in lines if "step " in log.message or "warning" in log.message]
    # What an attempt ends with is passed on at its end: three writes an attempt beside the pace.
    assert 4 <= len(told) + len(writes) <= 2 * (seconds + 3)
    assert len(told) + len(writes) - 2 * 3 < 2 * seconds
    (bar,) = artifacts_of(run_id)
    assert bar.key == "loraline-training-progress"
    assert bar.type == "progress"
    assert writes.count("create_artifact") == 1
    # The one is created and brought up to date by the second attempt, which began again at step 1.
    assert bar.description == (
        f"step {attempts[1]:,} of 10,000, loss 2.314, 8,410 tokens/s, 41 s left"
    )
    assert float(bar.data) == pytest.approx(attempts[1] / 100, abs=0.01)
    (trace,) = [log for log in told if "Traceback" in log.message]
    assert "SystemExit: told to end" in trace.message
    assert trace.level >= 40


def test_task_runs_say_what_they_work_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.runtime import flow_run

    from tasks.training import task, work

    monkeypatch.setattr(work, "train_adapter", a_talkative_training(tmp_path, 0.0, [1]))
    monkeypatch.setattr(task, "ended", lambda *_, **__: None)

    @flow
    def training() -> str:
        nothing: Any = None
        task.train_adapter(
            nothing, nothing, seed=1, tokens=tokens(tmp_path), base=nothing, home=nothing
        )
        return str(flow_run.id)

    run_id = training()
    names: list[str] = []
    deadline = time.monotonic() + 60
    # Task runs reach the server's tables by way of its events, first under the name of their beginning.
    while names != ["train adapter: 6,120 rows"] and time.monotonic() < deadline:
        with get_client(sync_client=True) as client:
            found = client.read_task_runs(
                flow_run_filter=_runs(run_id),
            )
        names = [run.name for run in found]
        time.sleep(0.2)
    assert names == ["train adapter: 6,120 rows"]


def _runs(run_id: str) -> Any:
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    return FlowRunFilter(id=FlowRunFilterId(any_=[UUID(run_id)]))


def test_a_secret_comes_from_the_environment_or_else_from_its_block_and_is_gone_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import os

    from prefect.blocks.system import Secret

    from flows.block_secrets import secrets_of
    from tasks.errors import UserError

    recipe = tmp_path / "shop.yaml"
    recipe.write_text(
        "name: shop\ndataset:\n  sources:\n"
        "    - {type: sql, url_variable: SHOP_URL, query: SELECT 1}\n"
        "evaluation: {judge: {url: 'http://127.0.0.1/v1', model: m, key_variable: JUDGE_KEY}}\n"
    )
    Secret(value="postgresql://ada:canary@db/shop").save("shop-url")
    monkeypatch.setenv("JUDGE_KEY", "from the environment")
    Secret(value="from the block").save("judge-key")
    with caplog.at_level("DEBUG", logger="flows"), secrets_of(recipe):
        assert os.environ["SHOP_URL"] == "postgresql://ada:canary@db/shop"
        assert os.environ["JUDGE_KEY"] == "from the environment"
    assert "SHOP_URL" not in os.environ
    assert os.environ["JUDGE_KEY"] == "from the environment"
    assert "shop-url" in caplog.text
    assert "canary" not in caplog.text

    # One that is not there is for others to tell, and one that cannot be read is told here.
    with secrets_of(recipe, ("dataset.sources.0.url_variable=OTHER_URL",)):
        assert "OTHER_URL" not in os.environ
    Secret(value={"user": "ada"}).save("shop-url", overwrite=True)
    with pytest.raises(UserError, match="'shop-url' holds no text"), secrets_of(recipe):
        pass

    # What is public on the Hub needs no token: a block of another shape stops nothing.
    monkeypatch.delenv("HF_TOKEN", raising=False)
    Secret(value={"token": "canary"}).save("hf-token", overwrite=True)
    recipe.write_text("name: shop\nbase: meta-llama/Llama-3.2-1B\n")
    with secrets_of(recipe):
        assert "HF_TOKEN" not in os.environ
    assert "'hf-token' holds no text" in caplog.text
    assert "canary" not in caplog.text


def test_a_server_that_is_away_is_no_secret_that_nobody_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import block_secrets
    from tasks.errors import ServerAway
    from tasks.outage import bridged

    def away(name: str) -> None:
        raise ConnectionError("refused")

    pauses: list[float] = []
    monkeypatch.setattr(block_secrets, "_read", away)
    monkeypatch.setattr(block_secrets, "bridged", partial(bridged, sleep=pauses.append))
    recipe = tmp_path / "shop.yaml"
    recipe.write_text(
        "name: shop\ndataset:\n  sources:\n"
        "    - {type: sql, url_variable: SHOP_URL, query: SELECT 1}\n"
    )
    with pytest.raises(ServerAway, match="'shop-url', which may hold SHOP_URL"):
        block_secrets.secrets_of(recipe).__enter__()
    assert sum(pauses) == 555
    # What is public on the Hub needs no token, and waits for none.
    pauses.clear()
    monkeypatch.delenv("HF_TOKEN", raising=False)
    recipe.write_text("name: shop\nbase: meta-llama/Llama-3.2-1B\n")
    with block_secrets.secrets_of(recipe):
        assert pauses == []


def test_the_verdicts_page_tells_the_end_the_rules_and_the_ways_on() -> None:
    from flows.verdict_page import verdict_page

    gate: dict[str, object] = {
        "passed": False,
        "rules": [{"metric": "rougeL", "rule": "rougeL > 0.9", "passed": False, "why": "0.5"}],
    }
    outcome = Outcome(outcome="refused", reason="The gate refused the adapter.", gate=gate)
    page = verdict_page(
        outcome, "small · 60 rows · nightly", {"MLflow run": "http://127.0.0.1:5000/#/runs/1"}
    )
    assert page.startswith("# ✗ Refused by the gate: small · 60 rows · nightly\n")
    assert "rougeL &gt; 0.9" in page
    assert "**failed**" in page
    assert "[MLflow run](http://127.0.0.1:5000/#/runs/1)" in page
    without = verdict_page(Outcome(outcome="registered", reason="Version 1."), "small", {})
    assert "The recipe has no gate." in without

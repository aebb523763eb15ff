"""A run of a deployment waits for a server that is away; who calls a flow by hand is told at once."""

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tasks.errors import UserError
from tasks.home import Home
from tasks.outage import bridged
from tasks.registry import version_of
from tasks.tracking import Tracker

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("prefect_server")]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the runs' logs say; nobody sleeps."""
    lines: list[str] = []

    class Log:
        warning = lines.append

    monkeypatch.setattr("flows.bridging.bridged", partial(bridged, sleep=lambda _: None))
    monkeypatch.setattr("flows.bridging.get_run_logger", Log)
    return lines


class Work:
    """Finds the server away the first time, and fails in another way if it is to."""

    def __init__(self, answer: Any = None) -> None:
        self.calls = 0
        self.answer = answer

    def __call__(self, *_: Any, **__: Any) -> Any:
        self.calls += 1
        if self.calls == 1:
            raise ConnectionRefusedError("MLflow is away.")
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer() if callable(self.answer) else self.answer


def deployed(tmp_path: Path, flow: Any, parameters: dict[str, Any]) -> Any:
    """The state in which a run of the flow's deployment ends."""
    from prefect.client.orchestration import get_client
    from prefect.flow_engine import run_flow

    from flows.deploying import apply_deployments

    apply_deployments(Home(tmp_path / "home"), [])
    with get_client(sync_client=True) as client:
        there = client.read_deployment_by_name(f"{flow.name}/{flow.name}")
        run = client.create_flow_run_from_deployment(there.id, parameters=parameters)
    return run_flow(flow, flow_run=run, parameters=parameters, return_type="state")


@pytest.fixture
def prediction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("LORALINE_HOME", str(tmp_path / "home"))
    return {
        "input": str(tmp_path / "rows.jsonl"),
        "output": str(tmp_path / "answers.jsonl"),
        "model": "a",
    }


def test_a_prediction_waits_and_has_the_token_of_a_gated_base_from_its_block(
    tmp_path: Path,
    prediction: dict[str, Any],
    told: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from prefect.blocks.system import Secret

    import flows.predict_batch as batch

    monkeypatch.delenv("HF_TOKEN", raising=False)
    Secret(value="hf_canary").save("hf-token", overwrite=True)
    tokens: list[str | None] = []

    def answer() -> dict[str, Any]:
        tokens.append(os.environ.get("HF_TOKEN"))
        return {"rows": 2, "model": "models:/a/1"}

    work = Work(answer)
    monkeypatch.setattr(batch, "answer_file", work)
    state = deployed(tmp_path, batch.predict, prediction)
    assert (state.name, work.calls, tokens) == ("Completed", 2, ["hf_canary"])
    assert "HF_TOKEN" not in os.environ
    assert told == [
        f"Could not answer the rows of {prediction['input']}: MLflow is away. Trying again in 15 s"
    ]
    # By hand nobody waits.
    again = Work(answer)
    monkeypatch.setattr(batch, "answer_file", again)
    assert batch.predict(**prediction, return_state=True).is_failed()
    assert again.calls == 1


def test_a_mistake_is_not_repeated(
    tmp_path: Path,
    prediction: dict[str, Any],
    told: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import flows.predict_batch as batch

    work = Work(UserError("row 1 is wrong"))
    monkeypatch.setattr(batch, "answer_file", work)
    assert deployed(tmp_path, batch.predict, prediction).is_failed()
    assert (work.calls, len(told)) == (2, 1)


def test_a_judgement_and_a_look_wait_too(
    tmp_path: Path, starter: Path, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.states import Completed

    import flows.evaluate_version as judging
    import flows.watch_data as watching

    monkeypatch.setenv("LORALINE_HOME", str(tmp_path / "home"))
    recipe = tmp_path / "shop.yaml"
    recipe.write_text(
        f"name: shop\nbase: {starter}\ndataset: {{sources: [{{type: jsonl, path: a.jsonl}}]}}\n"
        "schedule: {after_days: 2}\n"
    )
    judged, looked = (Work(lambda: Completed(data={})) for _ in range(2))
    monkeypatch.setattr(judging, "_judged", judged)
    monkeypatch.setattr(watching, "_looked", looked)
    given = {"recipe": str(recipe)}
    assert deployed(tmp_path, judging.evaluate, given).is_completed()
    assert deployed(tmp_path, watching.watch_data, given).is_completed()
    assert (judged.calls, looked.calls, len(told)) == (2, 2, 2)
    # The next look is due soon: no longer than that is this one waited for.
    assert sum(watching.SECONDS_BETWEEN) < 120


@pytest.mark.parametrize("stopped", [False, True])
def test_the_last_words_to_mlflow_wait_for_it_where_the_run_went_well(
    tmp_path: Path,
    prediction: dict[str, Any],
    told: list[str],
    monkeypatch: pytest.MonkeyPatch,
    stopped: bool,
) -> None:
    """Begun anew, the run would find nothing left to do, and its first run in MLflow would have no end."""
    import flows.predict_batch as batch
    from flows.mlflow_run import MlflowRun

    close, send = Work(), Work()
    facts: Any = SimpleNamespace(tracker=SimpleNamespace(close_run=close))

    def body(*_: Any, **__: Any) -> dict[str, Any]:
        run = MlflowRun(facts, None, name=str, opened=print)  # type: ignore[arg-type]
        run._id, run._writer = "m1", SimpleNamespace(close=send)  # type: ignore[assignment]
        with run:
            if stopped:
                raise UserError("The recipe is wrong.")
        return {"rows": 2, "model": "models:/a/1"}

    monkeypatch.setattr(batch, "answer_file", body)
    state = deployed(tmp_path, batch.predict, prediction)
    if stopped:
        # The first error is the one that a person must read.
        assert (close.calls, send.calls, told) == (1, 1, [])
        assert "The recipe is wrong." in str(state.message)
    else:
        assert (close.calls, send.calls) == (2, 2)
        assert [line.split(":")[0] for line in told] == [
            "Could not send the last metrics to MLflow",
            "Could not close its run in MLflow",
        ]


def test_what_a_person_is_to_decide_waits_for_mlflow(
    tmp_path: Path, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.states import Completed

    import flows.approve as approval

    monkeypatch.setenv("LORALINE_HOME", str(tmp_path / "home"))
    reach = Work()
    monkeypatch.setattr(approval, "reachable_tracker", reach)
    monkeypatch.setattr(approval, "show_question", lambda *_: "Is it good?")
    answer = approval.Approval(decision="reject", reason="No.", name="ada")
    monkeypatch.setattr(approval, "suspend_flow_run", lambda **_: answer)
    monkeypatch.setattr(approval, "verifier", lambda _: None)
    settled = SimpleNamespace(moved=None, outcome="Rejected", told="It was rejected.")
    monkeypatch.setattr(approval, "carry_out_approval", lambda *_, **__: settled)
    state = deployed(tmp_path, approval.approve, {"name": "a", "version": "2"})
    assert (state.type, state.name) == (Completed().type, "Rejected")
    assert (reach.calls, len(told)) == (2, 1)


@pytest.fixture
def tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tracker:
    """Three versions of `a` that passed the gate; 1 is champion, and each loads as far as this process sees."""
    import tasks.registration.proving as proving

    home = Home((tmp_path / "home").resolve())
    home.mlflow.mkdir(parents=True)
    monkeypatch.setenv("LORALINE_HOME", str(home.root))
    monkeypatch.setattr(proving, "prove_version", lambda _, uri, **__: f"{uri} loads")
    found = Tracker(home)
    found.client.create_registered_model("a")
    for number in ("1", "2", "3"):
        tags = {
            "loraline.gate": "passed",
            "loraline.adapter_sha256": number,
            "loraline.judged_against": "1",
        }
        found.client.create_model_version("a", source="mlflow-artifacts:/nowhere", tags=tags)
    found.client.set_registered_model_alias("a", "champion", "1")
    return found


def champion(tracker: Tracker) -> str:
    return str(tracker.client.get_registered_model("a").aliases["champion"])


def away_once(answer: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose server is away when it is called first."""
    calls: list[object] = []

    def call(*arguments: Any, **named: Any) -> Any:
        calls.append(named)
        if len(calls) == 1:
            raise ConnectionRefusedError("MLflow is away.")
        return answer(*arguments, **named)

    return call


def test_a_promotion_and_a_rollback_wait_for_mlflow_and_move_once(
    tmp_path: Path, tracker: Tracker, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import flows.promote as promotion
    import flows.rollback as going_back
    from tasks.promotion import promoting

    def disturb(module: Any) -> None:
        # Away before anything is read, and again when the aliases are moved.
        monkeypatch.setattr(module, "reachable_tracker", away_once(lambda _: tracker))
        monkeypatch.setattr(promoting, "version_of", away_once(version_of))

    disturb(promotion)
    given = {"name": "a", "version": "2", "reason": "better"}
    state = deployed(tmp_path, promotion.promote, given)
    assert (state.name, state.message) == ("Completed", "#2 promotion: version 2 instead of 1")
    assert told == [
        f"Could not promote version 2 of a: MLflow is away. Trying again in {pause} s"
        for pause in (15, 60)
    ]
    monkeypatch.setattr(promoting, "version_of", version_of)
    promotion.promote("a", "3", "better still", force=True)
    disturb(going_back)
    state = deployed(tmp_path, going_back.rollback, {"name": "a", "reason": "worse"})
    assert state.message == "#4 rollback: version 2 instead of 3"
    # A second time would have gone one step further.
    assert champion(tracker) == "2"


def test_a_rollback_that_waited_takes_nothing_back_that_another_did_meanwhile(
    tmp_path: Path, tracker: Tracker, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import flows.rollback as going_back
    from tasks.promotion.promoting import promote, roll_back

    for version in ("2", "3"):
        promote(tracker, "a", version, reason="better", verify=lambda uri: uri, force=True)

    def sleep(_: float) -> None:
        # The log's times are in seconds.
        time.sleep(1.1)
        roll_back(tracker, "a", reason="worse", verify=lambda uri: uri, actor="bob")

    monkeypatch.setattr("flows.bridging.bridged", partial(bridged, sleep=sleep))
    monkeypatch.setattr(going_back, "reachable_tracker", away_once(lambda _: tracker))
    state = deployed(tmp_path, going_back.rollback, {"name": "a", "reason": "worse"})
    assert state.is_failed()
    assert "Since this run began, bob moved the champion of 'a'" in state.message
    assert len(told) == 1
    assert champion(tracker) == "2"


def clock(seconds: float) -> Callable[[], str]:
    """Another machine's, which is so far ahead; it stamps the log."""
    return lambda: (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat(timespec="seconds")


def test_a_clock_that_is_ahead_keeps_nobody_from_going_back_at_once(
    tmp_path: Path, tracker: Tracker, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import flows.rollback as going_back
    from tasks.promotion.promoting import promote

    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("tasks.promotion.moving.now", clock(300))
        promote(tracker, "a", "2", reason="better", verify=lambda uri: uri, actor="bob")
    monkeypatch.setattr(going_back, "reachable_tracker", lambda _: tracker)
    state = deployed(tmp_path, going_back.rollback, {"name": "a", "reason": "worse"})
    assert state.message == "#3 rollback: version 1 instead of 2"
    assert told == []


def test_a_clock_that_is_behind_hides_no_move_from_a_rollback_that_waits(
    tmp_path: Path, tracker: Tracker, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import flows.rollback as going_back
    from tasks.promotion import promoting
    from tasks.promotion.moving import aliases_of

    for version in ("2", "3"):
        promoting.promote(
            tracker, "a", version, reason="better", verify=lambda uri: uri, force=True
        )

    def sleep(_: float) -> None:
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr("tasks.promotion.moving.now", clock(-300))
            promoting.roll_back(tracker, "a", reason="worse", verify=lambda uri: uri, actor="bob")

    monkeypatch.setattr("flows.bridging.bridged", partial(bridged, sleep=sleep))
    monkeypatch.setattr(going_back, "reachable_tracker", lambda _: tracker)
    # The log was read when the server goes away.
    monkeypatch.setattr(promoting, "aliases_of", away_once(aliases_of))
    state = deployed(tmp_path, going_back.rollback, {"name": "a", "reason": "worse"})
    assert state.is_failed()
    assert "bob moved the champion of 'a' (#4 rollback: version 2 instead of 3)" in state.message
    assert len(told) == 1
    assert champion(tracker) == "2"


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_promotion_that_was_taken_back_while_it_waited_fails(
    tmp_path: Path,
    tracker: Tracker,
    told: list[str],
    monkeypatch: pytest.MonkeyPatch,
    by_hand: bool,
) -> None:
    import flows.promote as promotion
    from tasks.promotion import promoting
    from tasks.promotion.notices import notices_of
    from tasks.promotion.reconciling import reconcile

    def sleep(_: float) -> None:
        if by_hand:
            tracker.client.set_registered_model_alias("a", "champion", "1")
            notices = notices_of(tracker.home, prefect_api=None)
            reconcile(tracker, verify=lambda uri: uri, notices=notices)
        else:
            promoting.roll_back(tracker, "a", reason="worse", verify=lambda uri: uri, actor="bob")

    monkeypatch.setattr("flows.bridging.bridged", partial(bridged, sleep=sleep))
    monkeypatch.setattr(promotion, "reachable_tracker", lambda _: tracker)
    # The alias is moved when the server goes away.
    monkeypatch.setattr(promoting, "version_of", away_once(version_of))
    given = {"name": "a", "version": "2", "reason": "better"}
    state = deployed(tmp_path, promotion.promote, given)
    assert state.is_failed()
    kind = "observed" if by_hand else "rollback"
    assert f"moved the champion of 'a' (#3 {kind}: version 1 instead of 2)" in state.message
    assert len(told) == 1
    assert champion(tracker) == "1"

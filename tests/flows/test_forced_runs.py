"""`force` runs every stage once: what comes between, an outage or a crash, does not begin a night anew."""

import json
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tasks.artifacts import Adapter, Dataset, Tokens
from tasks.errors import StageFailed
from tasks.outage import bridged
from tasks.progress import announce
from tasks.stage_report import ended
from tasks.store import Store, digest

pytestmark = pytest.mark.usefixtures("prefect_server")
ROWS = {"train": 90, "test": 10}


@pytest.fixture
def recipe(tmp_path: Path, starter: Path) -> Path:
    """One whose name is the test's own."""
    path = tmp_path / "forced.yaml"
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    path.write_text(
        f"name: {tmp_path.name.replace('_', '-')}\nbase: {starter}\n"
        "dataset: {sources: [{type: jsonl, path: rows.jsonl}]}\n"
    )
    return path


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Counter[str]":
    """How often each stage was really run; the servers are away when the first training and the first
    evaluation end, and every second evaluation fails."""
    import flows.retrain as retraining

    counts: Counter[str] = Counter()

    def output(store: Store, stage: Any, inputs: str, force: bool) -> dict[str, Any]:
        def build(folder: Path) -> None:
            counts[stage] += 1
            (folder / "summary.md").write_text("x")

        key = digest([stage, inputs])
        stored = store.publish(stage, key, build, force=force)
        common = {"path": stored.path, "fingerprint": key, "reused": stored.reused, "seconds": 1.0}
        announce("stage", stage=stage, state="started")
        return common

    def prepare_dataset(store: Store, *, force: bool, **_: object) -> Dataset:
        made = output(store, "dataset", tmp_path.name, force)
        return Dataset(**made, digest="d", rows=ROWS)

    def tokenize_dataset(store: Store, *, dataset: Dataset, force: bool, **_: object) -> Tokens:
        made = output(store, "tokenization", dataset.fingerprint, force)
        return Tokens(**made, rows=ROWS, tokens=ROWS, trained_tokens=ROWS)

    def train_adapter(store: Store, *, tokens: Tokens, force: bool, **_: object) -> Adapter:
        made = output(store, "training", tokens.fingerprint, force)
        adapter = Adapter(**made, sha256="s", trainable_parameters=1)
        ended("training", adapter, "Trained", description="It was trained")
        counts["end of training"] += 1
        if counts["end of training"] == 1:
            raise ConnectionError("Prefect is away just when the task ends")
        return adapter

    def evaluate_adapter(store: Store, **_: object) -> None:
        counts["evaluation"] += 1
        if counts["evaluation"] == 1:
            raise ConnectionError("the judge is away")
        raise StageFailed("the evaluation fails")

    fakes = (prepare_dataset, tokenize_dataset, train_adapter, evaluate_adapter)
    for fake in fakes:
        monkeypatch.setattr(retraining, fake.__name__, fake)
    monkeypatch.setattr(retraining, "find_champion", lambda *_: None)
    monkeypatch.setattr("flows.bridging.bridged", partial(bridged, sleep=lambda _: None))
    # They speak to Prefect of a task that there is none of here.
    monkeypatch.setattr("tasks.stage_report.get_run_logger", lambda: SilentLogger())
    monkeypatch.setattr("tasks.stage_report.show_summary", lambda *_: None)
    return counts


class SilentLogger:
    def info(self, *_: object) -> None:
        """Nobody reads it."""


def retrained(recipe: Path, key: str | None = None, **parameters: Any) -> Any:
    """The flow run, once it has ended."""
    from prefect.client.orchestration import get_client
    from prefect.flow_engine import run_flow

    from flows.deploying import apply_deployments
    from flows.retrain import retrain
    from tasks.home import Home

    apply_deployments(Home(recipe.parent / "home"), [])
    given = {"recipe": str(recipe), "force": True, **parameters}
    with get_client(sync_client=True) as client:
        there = client.read_deployment_by_name("retrain/retrain")
        run = client.create_flow_run_from_deployment(
            there.id, parameters=given, idempotency_key=key
        )
    state: Any = run_flow(retrain, flow_run=run, parameters=given, return_type="state")
    assert "the evaluation fails" in str(state.message)
    return run


@pytest.mark.long
def test_neither_an_outage_nor_a_crash_makes_a_forced_run_train_again(
    recipe: Path, built: "Counter[str]"
) -> None:
    first = retrained(recipe)
    once = {"dataset": 1, "tokenization": 1, "training": 1}
    assert built == {**once, "end of training": 3, "evaluation": 2}
    # As the watchdog repeats a crashed run, and one that was cut off in its turn.
    second = retrained(recipe, f"again-{first.id}")
    retrained(recipe, f"again-{second.id}")
    assert {stage: built[stage] for stage in once} == once
    # Who asks for another one gets it.
    retrained(recipe)
    assert {stage: built[stage] for stage in once} == dict.fromkeys(once, 2)
    retrained(recipe, force=False)
    assert {stage: built[stage] for stage in once} == dict.fromkeys(once, 2)


def test_what_other_inputs_made_is_made_again_by_force(recipe: Path, tmp_path: Path) -> None:
    from flows.run_facts import PrefectRun, RunFacts, gather_facts
    from flows.stage_arguments import StageArguments
    from tasks.home import home
    from tasks.retention.ledger import recorded
    from tasks.start import FROM_BASE, Beginning, Start

    settings = ("training.init_from=champion", "training.replay.share=0.2")

    def facts(run: str, repeats: str | None = None) -> RunFacts:
        return gather_facts(recipe, settings, True, PrefectRun(run, None, repeats=repeats))

    def artifact(kind: Any, fingerprint: str) -> Any:
        return kind.model_construct(fingerprint=fingerprint, path=tmp_path, rows=ROWS)

    name = facts("one").recipe.name
    with recorded(home(), name, 5, flow_run="one"):
        for stage, key in (("dataset", "d1"), ("tokenization", "t1")):
            announce("stage", stage=stage, state="done", fingerprint=key)
    (note,) = (home().runs / name).glob("*.json")
    assert json.loads(note.read_text())["stages"] == {"dataset": "d1", "tokenization": "t1"}
    for known, forces in ((facts("one"), False), (facts("two", "one"), False), (facts("x"), True)):
        give = StageArguments(known)
        assert give.dataset()["force"] is forces
        assert give.tokenization(artifact(Dataset, "d1"))["force"] is forces
        # The data has changed meanwhile.
        assert give.tokenization(artifact(Dataset, "d2"))["force"] is True
        # Earlier rows are mixed into the day's: what was made is either with them or without.
        give.beginning = Beginning(Start("models:/a/1", "s", "b", known.tracker))
        for day, replays in (("d0", forces), ("d1", True)):
            arguments = give.replay(artifact(Dataset, day))
            assert arguments is not None
            assert arguments["force"] is replays
        # It never got so far.
        give.beginning = FROM_BASE
        tokens = artifact(Tokens, "t1")
        assert give.training(artifact(Dataset, "d1"), tokens)["force"] is True

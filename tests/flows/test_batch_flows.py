"""`predict` and `evaluate` on a registered version, and what a retraining leaves behind it, with a real pipeline."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tasks.home import Home
from tasks.turn import adapter_turn

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("prefect_server")]


@pytest.fixture
def home(small: Any, monkeypatch: pytest.MonkeyPatch) -> Home:
    """The state folder after the first run of `recipes/small.yaml`, as this process's own."""
    found = Home((small.folder / ".loraline").resolve())
    for name, value in found.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(small.folder)
    return found


def rows(path: Path) -> Path:
    asked = [{"prompt": "What does json.dumps do?", "ticket": 7}, {"prompt": "And json.loads?"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in asked))
    return path


def test_a_file_is_answered_by_the_champion_as_jsonl_and_as_parquet(
    home: Home, tmp_path: Path
) -> None:
    import pyarrow.parquet as pq

    from flows.predict_batch import predict
    from tasks.errors import UserError

    asked = rows(tmp_path / "rows.jsonl")
    written = tmp_path / "out.jsonl"
    done = predict(str(asked), str(written), "small", max_tokens=6)
    assert done["rows"] == 2
    assert done["model"] == "models:/small/1"
    answers = [json.loads(line) for line in written.read_text().splitlines()]
    assert answers[0]["ticket"] == 7
    assert all(isinstance(row["answer"], str) for row in answers)
    predict(str(asked), str(tmp_path / "out.parquet"), "models:/small@champion", max_tokens=6)
    table = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["answer"] for row in table] == [row["answer"] for row in answers]
    assert [row["ticket"] for row in table] == [7, None]
    with pytest.raises(UserError, match="is there already"):
        predict(str(asked), str(written), "small")


def test_the_champion_is_judged_on_the_rows_of_today_and_nothing_is_registered(
    home: Home, small: Any
) -> None:
    from flows.evaluate_version import evaluate

    before = small.json("versions", "small")["versions"]
    done = evaluate("recipes/small.yaml", version="champion")
    assert done["version"] == "1"
    assert done["metrics"]["challenger"].keys() == done["metrics"]["base"].keys()
    assert Path(done["report"]).is_file()
    assert small.json("versions", "small")["versions"] == before


def test_an_unchanged_run_is_skipped_and_leaves_a_record_of_what_it_used(home: Home) -> None:
    from flows.retrain import retrain
    from tasks.retention.ledger import entries

    state = retrain("recipes/small.yaml", reason="nightly", return_state=True)
    assert state.name == "Skipped"
    _, newest = entries(home)["small"][0]
    assert newest.succeeded
    assert set(newest.stages) == {
        "dataset",
        "tokenization",
        "training",
        "evaluation",
        "registration",
    }
    for stage, key in newest.stages.items():
        assert (home.store / stage / key / "manifest.json").is_file()


def test_a_scheduled_run_beside_another_of_its_adapter_ends_as_skipped(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    import flows.orderly as orderly
    from flows.retrain import retrain

    monkeypatch.setattr(orderly, "_patience_seconds", lambda: 0)
    monkeypatch.setattr("flows.retrain.refuse_outdated", lambda _: None)
    with adapter_turn(home, "small", run="small v2 · nightly", url="http://127.0.0.1:4200/x"):
        state = retrain("recipes/small.yaml", return_state=True)
    assert state.name == "Skipped"
    assert "small is being trained by small v2 · nightly (http://127.0.0.1:4200/x)" in state.message
    assert state.result()["outcome"] == "skipped"


def test_too_little_room_refuses_before_anything_is_prepared(home: Home) -> None:
    from flows.retrain import retrain
    from tasks.errors import StageFailed

    before = sorted(home.runs.glob("*/*.json"))
    with pytest.raises(StageFailed, match=r"retention\.min_free_gb"):
        retrain("recipes/small.yaml", overrides=["retention.min_free_gb=1000000"])
    assert sorted(home.runs.glob("*/*.json")) == before


def test_gc_says_what_goes_and_keeps_what_the_champion_needs(home: Home, small: Any) -> None:
    spare = home.store / "dataset" / ("f" * 64)
    spare.mkdir()
    (spare / "train.jsonl").write_text("{}\n")
    (spare / "manifest.json").write_text("{}")
    import os

    for path in (spare, *spare.iterdir()):
        os.utime(path, (1, 1))
    told = small.json("gc")
    assert [it["path"] for it in told["goes"]] == [str(spare)]
    assert spare.is_dir()
    assert "one of the last 5 runs of small" in set(told["stays"].values())
    done = small.json("gc", "--yes")
    assert done["removed"]
    assert not spare.exists()
    assert small.json("run", "recipes/small.yaml")["outcome"] == "skipped"


@pytest.mark.slow
def test_an_approval_that_comes_late_is_judged_against_the_champion_of_that_moment(
    home: Home, small: Any, tmp_path: Path
) -> None:
    from prefect import flow

    from flows.approve import _judge_again
    from tasks.promotion.task import needs_new_verdict
    from tasks.promotion.work import stored_verdict
    from tasks.tracking import Tracker

    recipe = small.folder / "recipes" / "late.yaml"
    small_one = small.folder / "recipes" / "small.yaml"
    recipe.write_text(small_one.read_text().replace("name: small", "name: late"))
    assert small.json("run", "recipes/late.yaml", "--set", "seed=5")["outcome"] == "registered"
    manual = ("--set", "seed=6", "--set", "promotion.policy=manual")
    done = small.json("run", "recipes/late.yaml", *manual)
    number = done["model_version"]["version"]
    tracker = Tracker(home)
    # The second one had a champion, with whose data today's is compared where a person looks.
    with closing(sqlite3.connect(home.prefect / "prefect.db")) as database:
        found = database.execute(
            "SELECT data FROM artifact WHERE key = 'loraline-drift' AND flow_run_id = ?",
            (done["prefect_flow_run_id"],),
        )
        ((shown,),) = found.fetchall()
    logged = tracker.client.download_artifacts(
        done["mlflow_run_id"], "summaries/drift/summary.md", str(tmp_path)
    )
    text = Path(logged).read_text(encoding="utf-8")
    assert "version 1" in text
    assert text.strip() in json.loads(shown)
    # The form showed a comparison with version 9, which is champion no more.
    tracker.client.set_model_version_tag("late", number, "loraline.judged_against", "9")
    gate = "evaluation.gate=[{metric: rougeL, against: champion, min_gain: 0.9}]"

    @flow
    def answered() -> None:
        assert needs_new_verdict(tracker, "late", number)
        _judge_again(tracker, "late", number, str(recipe), [gate])
        assert not needs_new_verdict(tracker, "late", number)

    answered()
    verdict = stored_verdict(tracker, "late", number)
    assert verdict.gate == "refused"
    assert verdict.judged_against == "1"
    assert verdict.metrics["champion"]


@pytest.mark.slow
def test_a_refused_adapter_becomes_a_version_without_alias_where_the_recipe_says_so(
    small: Any,
) -> None:
    recipe = small.folder / "recipes" / "kept.yaml"
    text = (
        (small.folder / "recipes" / "small.yaml").read_text().replace("name: small", "name: kept")
    )
    gate = "evaluation:\n  gate: [{metric: rougeL, min: 0.99}]"
    recipe.write_text(text.replace("evaluation:", gate) + "registration: {register: always}\n")
    for _ in range(2):
        # The second time nothing is trained, and it is the same version.
        done = small("run", "recipes/kept.yaml", "--json", "--set", "seed=9")
        assert done.returncode == 3, done.stderr[-3000:]
        outcome = json.loads(done.stdout)
        assert outcome["outcome"] == "refused"
        assert outcome["model_version"]["version"] == "1"
        assert outcome["model_version"]["aliases"] == []
        assert "without an alias" in outcome["reason"]
    assert outcome["stages"]["training"]["reused"] is True
    refused = small("promote", "kept", "1", "--reason", "because")
    assert refused.returncode == 3
    assert "refused by the gate" in refused.stderr

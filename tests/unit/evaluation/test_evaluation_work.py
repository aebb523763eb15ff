"""The whole stage in real processes on a tiny model: outputs, fingerprints, reuse, ties."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tasks import launch
from tasks.artifacts import Adapter, Report, Tokens
from tasks.base import Base
from tasks.errors import StageFailed, WorkerFailed
from tasks.evaluation import score_worker, work, worker
from tasks.evaluation.job import AnswerJob, AnswerResult, Model, ScoreJob, ScoreResult
from tasks.evaluation.settings import METRICS, PREFERENCE_METRICS, EvaluationSettings
from tasks.home import Home
from tasks.store import Store

SETTINGS = EvaluationSettings.model_validate(
    {
        "max_new_tokens": 12,
        "batch_size": 4,
        "bootstrap_samples": 200,
        "sample_answers": 6,
        "gate": [
            {
                "metric": "loss",
                "against": "champion",
                "min_gain": 0.0,
                "confidence": 0.9,
                "min_rows": 5,
            },
            {"metric": "stop_rate", "min": 0.0},
        ],
    }
)

NOT_SHARES = {"loss", "perplexity", "mean_length", "length_ratio"}
ASKED_FOR = {
    "accuracy",
    "macro_f1",
    "json_validity",
    "schema_match",
    "embedding_similarity",
    "judge",
}
OF_ROWS = sorted({*METRICS} - {*PREFERENCE_METRICS} - ASKED_FOR)
"""What is measured where no row is a pair and the recipe asks for nothing more."""

NO_NETWORK = """
import os, socket

def refuse(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6):
        with open(os.environ["NETWORK_USED"], "a") as file:
            file.write(repr(address))
        raise OSError("this test allows no network")
    return connect(self, address)

with open(os.environ["NETWORK_WATCHED"], "a") as file:
    file.write("one process\\n")
connect = socket.socket.connect
socket.socket.connect = refuse
socket.getaddrinfo = lambda *a, **k: refuse(socket.socket(), a)
"""


@dataclass
class Ran:
    report: Report
    store: Store
    home: Home
    events: list[dict[str, Any]]
    outside: Path
    """What the workers were given as HOME, HF_HOME and working folder."""
    network_used: Path
    network_watched: Path


@pytest.fixture(scope="module")
def ran(
    tmp_path_factory: pytest.TempPathFactory,
    chat_tokens: Tokens,
    tiny: Base,
    challenger: Adapter,
    champion: Adapter,
) -> Iterator[Ran]:
    """One evaluation with a champion; no network, empty caches, nothing of the user's in reach."""
    root = tmp_path_factory.mktemp("evaluation")
    outside = root / "outside"
    (root / "site").mkdir()
    (root / "site" / "sitecustomize.py").write_text(NO_NETWORK, encoding="utf-8")
    outside.mkdir()
    home = Home(root / "home")
    store = Store(home.store)
    events: list[dict[str, Any]] = []
    with pytest.MonkeyPatch.context() as patch:
        for name, value in home.environment().items():
            patch.setenv(name, value)
        patch.setenv("PYTHONPATH", os.pathsep.join([str(root / "site"), str(Path.cwd())]))
        patch.setenv("NETWORK_USED", str(root / "network-used"))
        patch.setenv("NETWORK_WATCHED", str(root / "network-watched"))
        patch.setenv("HOME", str(outside))
        patch.setenv("HF_HOME", str(outside / "hf"))
        patch.chdir(outside)
        report = work.evaluate_adapter(
            store,
            SETTINGS,
            tokens=chat_tokens,
            adapter=challenger,
            base=tiny,
            champion=champion.folder,
            champion_sha256=champion.sha256,
            home=home,
            on_event=events.append,
        )
    return Ran(
        report, store, home, events, outside, root / "network-used", root / "network-watched"
    )


def facts_of(report: Report) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((report.path / "metrics.json").read_text(encoding="utf-8"))
    return facts


def test_every_metric_of_every_model_is_there_with_its_interval(ran: Ran) -> None:
    assert list(ran.report.metrics) == ["base", "champion", "challenger"]
    for values in ran.report.metrics.values():
        assert values is not None
        assert sorted(values) == OF_ROWS
    for model in ("base", "champion"):
        differences = ran.report.differences[model]
        mine, theirs = ran.report.metrics["challenger"], ran.report.metrics[model]
        assert differences is not None
        assert mine is not None
        assert theirs is not None
        assert sorted(differences) == OF_ROWS
        for name, found in differences.items():
            assert found["mean"] == pytest.approx(mine[name] - theirs[name])
            assert found["low"] <= found["high"]
    loss = ran.report.differences["base"]
    assert loss is not None
    assert loss["loss"]["mean"] != 0


def test_shares_and_scores_lie_between_zero_and_one(ran: Ran) -> None:
    for values in ran.report.metrics.values():
        assert values is not None
        for name in set(OF_ROWS) - NOT_SHARES:
            assert 0 <= values[name] <= 1, name


def test_the_predictions_keep_every_row_and_the_scores_belong_to_them(ran: Ran) -> None:
    predictions = pq.read_table(ran.report.path / "predictions.parquet").to_pylist()
    scores = pq.read_table(ran.report.path / "scores.parquet").to_pylist()
    assert [row["id"] for row in predictions] == [f"row-{n}" for n in range(9)]
    assert [row["id"] for row in scores] == [row["id"] for row in predictions]
    for model in ("base", "champion", "challenger"):
        for row in predictions:
            assert isinstance(row[f"{model}_answer"], str)
            assert row[f"{model}_stopped"] == (row[f"{model}_tokens"] < 12)
            assert row[f"{model}_nll"] > 0
            assert 0 <= row[f"{model}_correct"] <= row["trained_tokens"]
        mean = sum(row[f"{model}_rougeL"] for row in scores) / len(scores)
        assert facts_of(ran.report)["metrics"][model]["rougeL"] == pytest.approx(mean)
        loss = sum(row[f"{model}_nll"] for row in predictions) / sum(
            row["trained_tokens"] for row in predictions
        )
        assert facts_of(ran.report)["metrics"][model]["loss"] == pytest.approx(loss)


def test_the_trivial_answerers_stand_in_the_table(ran: Ran) -> None:
    answerers = facts_of(ran.report)["answerers"]
    assert answerers["base, first sentence"]["rows"] == 9
    assert answerers["name as words"]["rows"] == 8  # one row has no label
    for answerer in answerers.values():
        assert {"rougeL", "chrf"} <= set(answerer["metrics"])
        assert {"rougeL", "chrf"} <= set(answerer["differences"])
    assert answerers["name as words"]["metrics"]["rougeL"] > 0
    assert "name as words" in ran.report.document.read_text(encoding="utf-8")


def test_the_gate_is_judged_at_the_rules_own_confidence(ran: Ran) -> None:
    gate = ran.report.gate
    assert gate is not None
    first, second = gate["rules"]  # type: ignore[misc]
    spans = facts_of(ran.report)["intervals"]["champion"]["loss"]
    assert set(spans) == {"0.9", "0.95"}
    assert first["confidence"] == 0.9
    assert first["low"] < first["gain"] < first["high"]
    assert first["gain"] == pytest.approx(
        -facts_of(ran.report)["differences"]["champion"]["loss"]["mean"]
    )
    assert second["passed"]
    assert gate["passed"] == first["passed"]


def test_the_report_and_summary_are_for_people(ran: Ran) -> None:
    report = ran.report.document.read_text(encoding="utf-8")
    summary = (ran.report.path / "summary.md").read_text(encoding="utf-8")
    references = pq.read_table(ran.report.path / "predictions.parquet")["reference"].to_pylist()
    for text in (report, summary):
        assert "| rougeL |" in text
        assert "adapter − champion (95 % interval)" in text
        assert "The gate" in text
        assert any(reference in text for reference in references)
        assert "<|user|>" in text  # inside a code block, as it is
    assert "greedily" in report
    assert len(summary) < len(report)


def test_events_tell_how_far_each_model_is(ran: Ran) -> None:
    generated = [event for event in ran.events if event["event"] == "generated"]
    assert {event["model"] for event in generated} == {"base", "champion", "challenger"}
    assert all(event["stage"] == "evaluation" for event in ran.events)
    assert [e["done"] for e in generated if e["model"] == "base"] == [4, 8, 9]


def test_the_workers_need_no_network_and_write_nothing_outside_the_home(ran: Ran) -> None:
    assert ran.network_watched.read_text(encoding="utf-8").count("one process") >= 2
    assert not ran.network_used.exists()
    assert list(ran.outside.rglob("*")) == []
    assert not ran.home.work.exists() or list(ran.home.work.iterdir()) == []


def test_a_second_evaluation_finds_the_first(
    ran: Ran, chat_tokens: Tokens, tiny: Base, challenger: Adapter, champion: Adapter
) -> None:
    again = work.evaluate_adapter(
        ran.store,
        SETTINGS,
        tokens=chat_tokens,
        adapter=challenger,
        base=tiny,
        champion=champion.folder,
        champion_sha256=champion.sha256,
        home=ran.home,
    )
    assert again.reused
    assert again.metrics == ran.report.metrics
    assert again.differences == ran.report.differences
    assert again.gate == ran.report.gate


@pytest.mark.long
def test_two_scorings_at_once_share_a_cache_and_agree(ran: Ran, tmp_path: Path) -> None:
    processes, jobs = [], []
    for number in range(2):
        jobs.append(
            ScoreJob(
                predictions=ran.report.path / "predictions.parquet",
                models=["base", "champion", "challenger"],
                bootstrap_samples=200,
                confidences=[0.9],
                scores=tmp_path / f"scores-{number}.parquet",
                result=tmp_path / f"result-{number}.json",
            )
        )
        path = launch.write_job(tmp_path / str(number), jobs[-1])
        argv = launch.module("tasks.evaluation.score_worker", str(path))
        environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
        processes.append(subprocess.Popen(argv, env=environment, stdin=subprocess.DEVNULL))
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    results = [json.loads(job.result.read_text(encoding="utf-8")) for job in jobs]
    assert results[0] == results[1]
    assert results[0]["metrics"] == ran.report.metrics


def test_an_adapter_evaluated_against_itself_ties_and_is_never_promoted(
    tmp_path: Path, chat_tokens: Tokens, tiny: Base, challenger: Adapter, stops: list[int]
) -> None:
    models: list[Model] = ["base", "champion", "challenger"]
    worker.answer(
        AnswerJob(
            base=tiny.path,
            adapters={"champion": challenger.folder, "challenger": challenger.folder},
            tokenizer=challenger.folder / "tokenizer.json",
            rows=chat_tokens.path / "test.parquet",
            stop_tokens=stops,
            max_new_tokens=6,
            batch_size=9,
            dtype="auto",
            quantization="none",
            predictions=tmp_path / "predictions.parquet",
            result=tmp_path / "answers.json",
        )
    )
    score_worker.score(
        ScoreJob(
            predictions=tmp_path / "predictions.parquet",
            models=models,
            bootstrap_samples=100,
            confidences=[],
            scores=tmp_path / "scores.parquet",
            result=tmp_path / "scores.json",
        )
    )
    found = ScoreResult.model_validate_json((tmp_path / "scores.json").read_text())
    assert sorted(found.differences["champion"]) == OF_ROWS
    for difference in found.differences["champion"].values():
        assert (difference.mean, difference.low, difference.high) == (0.0, 0.0, 0.0)
    assert found.same_answers["champion"] == found.rows
    assert found.metrics["base"] != found.metrics["challenger"]
    settings = EvaluationSettings.model_validate(
        {"gate": [{"metric": "loss", "against": "champion", "min_gain": -1.0, "min_rows": 1}]}
    )
    answers = AnswerResult.model_validate_json((tmp_path / "answers.json").read_text())
    work.write_output(tmp_path, settings, answers, found)
    verdict = json.loads((tmp_path / "metrics.json").read_text())["gate"]
    assert verdict["rules"][0]["passed"]
    assert not verdict["passed"]


def test_the_fingerprint_counts_everything_that_decides_the_numbers(tiny: Base) -> None:
    def key(settings: EvaluationSettings = SETTINGS, **changed: Any) -> str:
        inputs = {
            "adapter_fingerprint": "a",
            "tokens_fingerprint": "t",
            "base": tiny,
            "champion_sha256": None,
        }
        return work.fingerprint_of(settings, **{**inputs, **changed})

    keys = [
        key(),
        key(adapter_fingerprint="b"),
        key(tokens_fingerprint="b"),
        key(base=replace(tiny, weights_sha256="b")),
        key(base=replace(tiny, tokenizer_sha256="b")),
        key(champion_sha256="b"),
        key(SETTINGS.model_copy(update={"batch_size": 5})),
        key(SETTINGS.model_copy(update={"gate": []})),
    ]
    assert len(set(keys)) == len(keys)
    assert key(base=replace(tiny, path=Path("/elsewhere"))) == key()


def test_an_adapter_without_stop_tokens_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(StageFailed, match="names no eos_token_id"):
        work.stop_tokens(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 7}', encoding="utf-8")
    assert work.stop_tokens(tmp_path) == [7]


@pytest.mark.long
def test_a_worker_that_dies_leaves_no_output_in_the_store(
    tmp_path: Path, chat_tokens: Tokens, tiny: Base, challenger: Adapter
) -> None:
    home = Home(tmp_path / "home")
    store = Store(home.store)
    lost = chat_tokens.model_copy(update={"path": tmp_path / "nowhere"})
    with pytest.raises(WorkerFailed, match="Run it again by hand"):
        work.evaluate_adapter(
            store,
            SETTINGS,
            tokens=lost,
            adapter=challenger,
            base=tiny,
            champion=None,
            champion_sha256=None,
            home=home,
        )
    assert not list(home.store.rglob("*.json"))
    assert not list(home.store.rglob("*.parquet"))


def test_the_flows_process_imports_no_torch_for_the_evaluation() -> None:
    code = (
        "import sys, tasks.evaluation.task, tasks.evaluation.work;"
        "heavy = {'torch', 'transformers', 'peft', 'evaluate', 'datasets', 'mlflow'};"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr

"""The page as a run leaves it: in MLflow and on this machine, and never the reason why a run fails."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from flows import run_page
from flows.run_record import PrefectRun, RunRecord
from tasks.artifacts import Adapter, Dataset, Report, Tokens, Version
from tasks.promotion.work import Decision
from tasks.tracking import Tracker

RECIPE = """\
name: docstrings
base: {base}
dataset:
  sources:
    - {{type: jsonl, path: rows.jsonl}}
"""
BESIDE = {
    "dataset": ("summary.md", "card.html"),
    "tokenization": ("summary.md", "tokens.html"),
    "training": ("summary.md", "loss.png"),
    "evaluation": ("summary.md", "report.md"),
}


@pytest.fixture(scope="module")
def common(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One state folder: creating MLflow's database takes longer than these tests."""
    return tmp_path_factory.mktemp("report-home")


@pytest.fixture
def opened(
    full_folders: Path,
    tmp_path: Path,
    tiny_base: Path,
    common: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., tuple[RunRecord, Report]]:
    """A run whose stages are done, up to its evaluation."""
    monkeypatch.setenv("LORALINE_HOME", str(common))
    store = tmp_path / "store"
    shutil.copytree(full_folders, store)
    for stage, names in BESIDE.items():
        for name in names:
            (store / stage / name).write_text("# text\n")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(base=tiny_base))
    (tmp_path / "rows.jsonl").write_text("")
    facts = json.loads((store / "evaluation" / "metrics.json").read_text())

    def begin(*, reused: bool = False) -> tuple[RunRecord, Report]:
        run = RunRecord(recipe, (), False, PrefectRun(None, None))
        done = {"reused": reused, "seconds": 1.5}
        rows = {"train": 4120, "test": 96}
        dataset = Dataset(
            path=store / "dataset", fingerprint="a1", digest="ef" * 32, rows=rows, **done
        )
        tokens = Tokens(
            path=store / "tokenization",
            fingerprint="b1",
            rows=rows,
            tokens=rows,
            trained_tokens=rows,
            **done,
        )
        adapter = Adapter(
            path=store / "training",
            fingerprint="c1",
            sha256="cd" * 32,
            trainable_parameters=5,
            **done,
        )
        report = Report(
            path=store / "evaluation",
            fingerprint=tmp_path.name,
            metrics=facts["metrics"],
            differences=facts["differences"],
            gate=facts["gate"],
            **done,
        )
        run.keep(dataset)
        run.keep(tokens)
        run.keep(adapter)
        run.keep(report)
        return run, report

    return begin


def in_mlflow(run: RunRecord, name: str) -> Path:
    return Path(run.tracker.client.download_artifacts(run.mlflow.id, f"report/{name}"))


def test_a_refused_run_leaves_its_page_in_mlflow_and_on_this_machine(
    opened: Callable[..., tuple[RunRecord, Report]],
) -> None:
    run, report = opened()
    with run:
        assert run.is_refused(report)
    page = Path(run.outcome.report or "")
    assert page == run.home.reports / run.mlflow.id / "report.html"
    text = page.read_text(encoding="utf-8")
    assert "Refused by the gate" in text
    assert "registration" not in run.outcome.stages
    assert run.mlflow.id in text
    assert "4,120" in text
    assert in_mlflow(run, "report.html").read_text(encoding="utf-8") == text
    assert in_mlflow(run, "report.md").is_file()


def test_a_run_that_finds_it_judged_already_names_the_earlier_page(
    opened: Callable[..., tuple[RunRecord, Report]],
) -> None:
    run, report = opened()
    with run:
        assert run.is_refused(report)
    again, same = opened(reused=True)
    with again:
        assert again.is_refused(same)
    assert again.outcome.mlflow_run_id == run.mlflow.id
    assert again.outcome.report == run.outcome.report
    # On a machine that has not the page, the evaluation's own report is left.
    shutil.rmtree(run.home.reports)
    elsewhere, same = opened(reused=True)
    with elsewhere:
        assert elsewhere.is_refused(same)
    assert elsewhere.outcome.report == str(report.document)


def test_a_page_that_cannot_be_written_costs_no_run(
    opened: Callable[..., tuple[RunRecord, Report]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(run_page, "write_report", fail)
    run, report = opened()
    with run:
        assert run.is_refused(report)
    assert run.outcome.outcome == "refused"
    assert run.outcome.report == str(report.document)
    assert "without its HTML report" in caplog.text
    assert in_mlflow(run, "report.md").is_file()
    assert run.tracker.client.get_run(run.mlflow.id).info.status == "FINISHED"


def test_the_page_tells_the_version_once_there_is_one(
    opened: Callable[..., tuple[RunRecord, Report]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, report = opened()
    # The gate's rules are not what this is about.
    gate = {"passed": True, "rules": [{"metric": "rougeL", "passed": True, "why": "it gained"}]}
    path = report.path / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"gate": gate}))
    with run:
        run.write_mlflow()
        before = in_mlflow(run, "report.html").read_text(encoding="utf-8")
        version = Version(
            name="docstrings",
            version="8",
            uri="models:/docstrings/8",
            aliases=["challenger"],
            mlflow_run_id=run.mlflow.id,
        )
        run.close_with(version, Decision("registered", False, "the policy is manual."))
        after = in_mlflow(run, "report.html").read_text(encoding="utf-8")
        assert "Passed the gate" in before
        assert "docstrings 8" not in before
        assert "Registered as challenger" in after
        assert "loraline promote docstrings 8 --reason" in after
        assert "/#/models/docstrings/versions/8" in after

        def away(*_: object) -> None:
            raise OSError("MLflow does not answer")

        monkeypatch.setattr(Tracker, "log_files", away)
        run.close_with(version, Decision("registered", False, "the policy is manual."))
    assert run.outcome.outcome == "registered"

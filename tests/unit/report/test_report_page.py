"""The page as text: what stands in it, what can never stand in it, and that nothing missing stops it."""

import json
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.report.page import run_page, write_report
from tasks.report.run import MadeFrom, ReportedRun
from tests.unit.report.conftest import MODELS, NASTY, answered, evaluation_folder, reported

VOID = {"meta", "link", "circle", "path", "polyline", "img", "br"}


class Structure(HTMLParser):
    """Tags and attributes as a browser sees them; fails on a tag that is closed by another."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "action", "data", "srcset"):
                self.addresses.append(value or "")
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def test_the_first_screen_says_what_happened_why_and_what_changed(full_run: ReportedRun) -> None:
    page = Structure(run_page(full_run)).text
    top = page[: page.index("Every rule must hold")]
    assert "Refused by the gate" in top
    assert "1 of 5 rules fails; nothing goes live. Version 7 stays champion." in top
    assert "retention: rougeL: drop against the base at most 0.02" in top
    assert "champion (version 7)" in top
    assert "12% of the training rows are new" in top


def test_every_part_has_its_numbers(full_run: ReportedRun) -> None:
    facts = json.loads((full_run.evaluation / "metrics.json").read_text())
    page = Structure(run_page(full_run))
    for model in ("base", "champion", "challenger"):
        assert f"{facts['metrics'][model]['rougeL']:.3f}" in page.text
        assert f"{facts['suites']['retention']['metrics'][model]['rougeL']:.3f}" in page.text
    gain = facts["differences"]["champion"]["rougeL"]
    assert f"+{gain['mean']:.3f}" in page.text
    assert f"{gain['low']:+.3f} to {gain['high']:+.3f}".replace("-", "−") in page.text
    assert "base, first sentence" in page.text
    assert "asyncio/streams.py" in page.text
    assert "arc_easy" in page.text
    assert page.tags.count("polyline") == 3  # loss, evaluation loss, learning rate
    # 1510 s on one GPU.
    assert "training, GPU-hours 0.42" in page.text
    assert "5,563" in page.text
    for name in ("microsoft/Phi-3-mini-4k-instruct", "a65874e0c2a9f0d9b8f1a3f1c0e5d7b6a4c3e2f1"):
        assert name in page.text
    assert "http://127.0.0.1:5000/#/experiments/1/runs/5c1d2e3f" in page.addresses
    assert "http://127.0.0.1:4200/runs/flow-run/0f7b6c1e" in page.addresses


def test_twenty_answers_are_shown_and_none_where_the_recipe_wants_none(
    full_run: ReportedRun,
) -> None:
    page = run_page(full_run)
    assert page.count('<article class="row">') == 20
    assert [
        page.count(f"<h3>{title}") for title in ("Best gains", "Worst regressions", "By lot")
    ] == [
        1,
        1,
        1,
    ]
    none = run_page(replace(full_run, answers=0))
    assert '<article class="row">' not in none
    assert "Write the docstring of function" not in none


def test_text_of_models_rows_labels_and_names_is_never_markup(tmp_path: Path) -> None:
    rows = answered(9, 5, {"base": 0.3, "champion": 0.5, "challenger": 0.7})
    for row in rows:
        row["label"] = NASTY
        row["prompt"] = f"{NASTY}</textarea></style>"
        row["challenger_answer"] = NASTY
        row["reference"] = NASTY + NASTY
        row["id"] += NASTY
    folder = evaluation_folder(
        tmp_path / "run" / "evaluation",
        rows,
        settings={"slices": ["length", "source"], "sample_answers": 20, "bootstrap_samples": 100},
        models=MODELS,
        sources=[NASTY] * 9,
    )
    facts = json.loads((folder / "metrics.json").read_text())
    for place in (facts["metrics"], facts["differences"]):
        for values in place.values():
            values[NASTY] = values["rougeL"]
    facts["directions"][NASTY] = 1
    facts["notes"] = facts["not_finite"] = [NASTY]
    facts["answers"]["champion_problem"] = NASTY
    facts["answerers"][NASTY] = facts["answerers"].pop("base, first sentence")
    facts["slices"][NASTY] = facts["slices"]["source"]
    facts["gate"] = {
        "passed": False,
        "rules": [{"metric": NASTY, "rule": NASTY, "why": NASTY, "passed": False}],
    }
    (folder / "metrics.json").write_text(json.dumps(facts))
    (tmp_path / "run" / "dataset").mkdir()
    card = {
        "rows": {NASTY: 3},
        "digest": NASTY,
        "warnings": [NASTY],
        "dropped": {NASTY: 1},
        "sources": [{"name": NASTY, "kind": NASTY, "rows": 1}],
    }
    (tmp_path / "run" / "dataset" / "card.json").write_text(json.dumps(card))
    run = reported(
        tmp_path / "run",
        name=NASTY,
        champion=NASTY,
        notes=[NASTY],
        made_from=MadeFrom(
            base=NASTY,
            base_sha256=NASTY,
            recipe=NASTY,
            recipe_text=f"</pre></details>{NASTY}",
            recipe_digest=NASTY,
            git_commit=NASTY,
            started_from=NASTY,
            mlflow_run_id=NASTY,
            mlflow_url="javascript:alert(1)",
            prefect_url=f"https://host/{NASTY}",
        ),
    )
    text = run_page(run)
    page = Structure(text)
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert not [a for a in page.addresses if not a.startswith(("#", "data:,", "https://host/"))]
    assert text.count("&lt;script&gt;alert(1)") > 50
    assert "default-src 'none'" in text


def test_nothing_outside_the_page_is_asked_for(full_run: ReportedRun) -> None:
    page = Structure(run_page(full_run))
    assert not {"script", "img", "iframe", "object", "embed"} & set(page.tags)
    assert "url(" not in run_page(full_run)
    assert "@import" not in run_page(full_run)


@pytest.mark.parametrize(
    "missing",
    [
        {"gate": None},
        {"slices": {}},
        {"suites": {}},
        {"answerers": {}},
        {"directions": {}},
        {"differences": {"base": None, "champion": None}},
        {"metrics": {"base": None, "champion": None, "challenger": None}, "differences": {}},
        {"gate": {"passed": True, "rules": []}},
        {"answers": {}},
    ],
    ids=lambda one: ", ".join(one),
)
def test_what_was_not_measured_leaves_its_part_out(
    changed_metrics: Callable[..., ReportedRun], missing: dict[str, Any]
) -> None:
    Structure(run_page(changed_metrics(**missing)))


def test_without_any_file_there_is_still_a_page(full_run: ReportedRun, tmp_path: Path) -> None:
    bare = replace(full_run, evaluation=tmp_path, training=None, dataset=None, tokenization=None)
    text = Structure(run_page(bare)).text
    assert "Nothing was measured." in text
    assert "No step was recorded." in text
    assert "No dataset card was found." in text


def test_torn_files_cost_their_part_only(full_run: ReportedRun, tmp_path: Path) -> None:
    shutil.copytree(full_run.evaluation.parent, tmp_path / "run")
    (tmp_path / "run" / "dataset" / "card.json").write_text('{"rows": {"tr')
    with (tmp_path / "run" / "training" / "history.jsonl").open("a") as file:
        file.write('{"step": 300, "lo')
    page = Structure(run_page(reported(tmp_path / "run")))
    assert "No dataset card was found." in page.text
    assert page.tags.count("polyline") == 3


def test_one_row_without_a_champion_and_without_a_gate_is_a_page_too(tmp_path: Path) -> None:
    evaluation_folder(
        tmp_path / "evaluation",
        answered(1, 1, {"base": 0.2, "challenger": 0.9}),
        settings={"bootstrap_samples": 100},
        models=["base", "challenger"],
    )
    page = Structure(run_page(reported(tmp_path, champion=None)))
    assert "The recipe has no gate" in page.text
    assert "All models answered the same 1 test row," in page.text
    assert "There is no champion to compare with." in page.text
    assert "adapter − base" in page.text
    assert "adapter − champion" not in page.text


def test_five_megabytes_of_answers_make_a_small_page_and_say_what_was_cut(
    full_folders: Path, tmp_path: Path
) -> None:
    shutil.copytree(full_folders, tmp_path / "run")
    path = tmp_path / "run" / "evaluation" / "predictions.parquet"
    rows = pq.read_table(path).to_pylist()
    for row in rows:
        row["challenger_answer"] = "word and word <b> " * 3_000
    rows[0]["challenger_answer"] = "x" * 300_000
    pq.write_table(pa.Table.from_pylist(rows), path)
    started = time.monotonic()
    text = run_page(reported(tmp_path / "run", answers=96))
    seconds = time.monotonic() - started
    assert seconds < 5
    assert "show all 54,000 characters" in text
    assert "show 100,000 of 300,000 characters" in text
    assert "200,000 more characters are in predictions.parquet." in text
    assert "x" * 100_001 not in text
    Structure(text)


@pytest.mark.parametrize(
    ("ending", "title"),
    [
        ({"outcome": "registered", "aliases": ["challenger"]}, "Registered as challenger"),
        ({"outcome": "registered", "aliases": ["champion"]}, "Champion now"),
        ({"outcome": "awaiting_approval", "aliases": []}, "Waiting for a person's approval"),
        ({"outcome": "failed", "aliases": None}, "Passed the gate"),
    ],
)
def test_the_verdict_is_the_runs_end(
    changed_metrics: Callable[..., ReportedRun], ending: dict[str, Any], title: str
) -> None:
    gate = {"passed": True, "rules": [{"metric": "rougeL", "passed": True, "why": "it gained"}]}
    run = changed_metrics(gate=gate)
    version = None
    if ending["aliases"] is not None:
        version = {"name": "docstrings", "version": "8", "aliases": ending["aliases"]}
    run.outcome.outcome = ending["outcome"]
    run.outcome.reason = "Version 8 of docstrings: the policy says so."
    run.outcome.model_version = version
    text = run_page(run)
    assert f"<title>docstrings: {title}</title>" in text.replace("&#x27;", "'")
    assert ("the policy says so" in text) == (version is not None)
    assert ("docstrings 8" in text) == (version is not None)


def test_a_gate_that_refuses_is_told_even_when_a_version_was_registered(
    full_run: ReportedRun,
) -> None:
    full_run.outcome.outcome = "registered"
    full_run.outcome.reason = "Version 8 was kept to be looked at."
    full_run.outcome.model_version = {"name": "d", "version": "8", "aliases": []}
    text = run_page(full_run)
    assert "Refused by the gate" in text
    assert "Version 8 was kept to be looked at." in text


def test_the_file_is_whole_or_not_there(full_run: ReportedRun, tmp_path: Path) -> None:
    path = tmp_path / "reports" / "5c1d" / "report.html"
    lone = MadeFrom(
        base="lone \ud800 surrogate",
        base_sha256="",
        recipe="r.yaml",
        recipe_text="",
        recipe_digest="",
    )
    write_report(replace(full_run, made_from=lone), path)
    assert path.read_text(encoding="utf-8").endswith("</html>\n")
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]

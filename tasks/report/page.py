"""A run's report: one HTML page that opens anywhere, runs no script and asks nothing of the network."""

import os
from pathlib import Path

from tasks.report.answers_section import answers_section
from tasks.report.cost_section import cost_section
from tasks.report.curves import curves_section
from tasks.report.dataset_section import dataset_section
from tasks.report.gate_section import gate_section
from tasks.report.headline import headline, verdict_of
from tasks.report.measures import models_of, rival_of
from tasks.report.metric_table import metrics_section, suites_section
from tasks.report.origin_section import origin_section
from tasks.report.reading import read_lines, read_object
from tasks.report.run import ReportedRun
from tasks.report.slice_map import slices_section
from tasks.report.style import STYLE
from tasks.samples import choose
from tasks.web_page import document

# Whatever slipped through the escaping could still run nothing and fetch nothing.
_POLICY = (
    '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
    "style-src 'unsafe-inline'; img-src data:; form-action 'none'; base-uri 'none'\">\n"
    '<link rel="icon" href="data:,">\n'
)
_PLACES = (
    ("gate", "Gate"),
    ("metrics", "Metrics"),
    ("retention", "Retention"),
    ("slices", "Slices"),
    ("answers", "Answers"),
    ("curves", "Curves"),
    ("dataset", "Dataset"),
    ("cost", "Cost"),
    ("origin", "Made from"),
)


def run_page(run: ReportedRun) -> str:
    """The page, from the files that the stages wrote."""
    evaluation = read_object(run.evaluation, "metrics.json")
    training = read_object(run.training, "result.json")
    rival = rival_of(evaluation)
    shown = choose(run.evaluation, models_of(evaluation.get("metrics") or {}), rival, run.answers)
    sections = [
        gate_section(evaluation.get("gate")),
        metrics_section(evaluation),
        suites_section(evaluation),
        slices_section(evaluation),
        answers_section(shown, rival),
        curves_section(read_lines(run.training, "history.jsonl")),
        dataset_section(
            read_object(run.dataset, "card.json"), read_object(run.tokenization, "card.json")
        ),
        cost_section(run, training, evaluation),
        origin_section(run, training, evaluation),
    ]
    body = "".join(sections)
    places = " ".join(
        f'<a href="#{anchor}">{name}</a>' for anchor, name in _PLACES if f'id="{anchor}"' in body
    )
    title = f"{run.name}: {verdict_of(run, evaluation.get('gate')).title}"
    top = headline(run, evaluation, training)
    return document(title, f"{top}<nav>{places}</nav>\n<main>{body}</main>\n", STYLE, _POLICY)


def write_report(run: ReportedRun, path: Path) -> None:
    """Write the page to `path`, whole or not at all; folders above it are created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(run_page(run), encoding="utf-8", errors="replace")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)

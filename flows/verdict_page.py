"""The artifact `loraline-verdict`: what became of a run, the gate's table, and where to look further."""

from typing import TYPE_CHECKING

from tasks.artifacts import Outcome
from tasks.evaluation.gate_table import gate_markdown
from tasks.markdown import cell
from tasks.stage_report import show

if TYPE_CHECKING:
    from flows.run_record import RunRecord

KEY = "loraline-verdict"
_HEADLINES = {
    "registered": "✓ Registered",
    "skipped": "✓ Nothing to do",
    "awaiting_approval": "… Waiting for a person",
    "refused": "✗ Refused by the gate",
    "failed": "✗ Failed",
}


def show_verdict(run: "RunRecord") -> None:
    """Leave the artifact on this flow run; without Prefect there is none."""
    if run.facts.prefect.id is None:
        return
    links = {}
    outcome, tracker = run.outcome, run.tracker
    try:
        if (version := outcome.model_version) is not None:
            name, number = str(version["name"]), str(version["version"])
            links[f"Version {number} of {name} in MLflow"] = tracker.version_url(name, number)
        if outcome.mlflow_run_id is not None:
            links["MLflow run"] = tracker.run_url(outcome.mlflow_run_id)
            earlier = tracker.tags_of(outcome.mlflow_run_id).get("loraline.prefect_url")
            if earlier and earlier != run.facts.prefect.url:
                links["Flow run that trained it"] = earlier
    except Exception:
        # A page short of a link is worth more than a run that fails at its end.
        links["MLflow"] = tracker.ui_url
    show(KEY, verdict_page(outcome, run.name, links), f"{outcome.outcome}: {run.name}")


def verdict_page(outcome: Outcome, name: str, links: dict[str, str]) -> str:
    """The page in markdown; `links` are names and addresses."""
    parts = [f"# {_HEADLINES[outcome.outcome]}: {name}", cell(outcome.reason, 2000)]
    if outcome.gate is not None:
        parts.append(gate_markdown(outcome.gate))
    elif outcome.outcome != "failed":
        parts.append("The recipe has no gate.")
    if links:
        parts.append(" · ".join(f"[{cell(text, 100)}]({url})" for text, url in links.items()))
    if outcome.report:
        parts.append(f"The whole report, on the machine that ran it: `{outcome.report}`")
    return "\n\n".join(parts) + "\n"

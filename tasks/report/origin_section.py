"""What the adapter was made from, and where else to look: base, data, recipe, commit, runs."""

from collections.abc import Mapping
from typing import Any

from tasks.report.markup import MISSING, facts, link, number, section, text
from tasks.report.run import MadeFrom, ReportedRun

WHOLE_RECIPE_CHARACTERS = 200_000


def origin_section(
    run: ReportedRun, training: Mapping[str, Any], evaluation: Mapping[str, Any]
) -> str:
    """Names and digests, links, the recipe's whole text, versions of libraries."""
    made = run.made_from
    version = run.outcome.model_version or {}
    answers = evaluation.get("answers") or {}
    pairs = [
        ("base", f"{text(made.base)} {_digest(made.base_sha256)}"),
        ("started from", text(made.started_from or "the base")),
        ("dataset", _digest(made.dataset_digest)),
        ("recipe", f"{text(made.recipe)} {_digest(made.recipe_digest)}"),
        (
            "git commit",
            _code(made.git_commit) if made.git_commit else "the recipe is in no git repository",
        ),
        ("adapter", _digest(str(training.get("adapter_sha256") or ""))),
        ("trained parameters", number(training.get("trainable_parameters"))),
        ("prompts", _digest(str(answers.get("prompts_sha256") or ""))),
        ("MLflow run", link(made.mlflow_url, made.mlflow_run_id or MISSING)),
        ("MLflow version", _version(made, version)),
        ("Prefect run", _prefect(run)),
    ]
    versions = {**(training.get("versions") or {}), **(evaluation.get("versions") or {})}
    if versions:
        told = ", ".join(
            f"{text(name)} {text(number_)}" for name, number_ in sorted(versions.items())
        )
        pairs.append(("libraries", told))
    recipe = made.recipe_text[:WHOLE_RECIPE_CHARACTERS]
    return section(
        "origin",
        "What it was made from",
        facts(pairs),
        f"<details><summary>The recipe as it was run</summary><pre>{text(recipe)}</pre></details>\n",
    )


def _version(made: MadeFrom, version: Mapping[str, Any]) -> str:
    if not version.get("version"):
        return "none"
    aliases = ", ".join(map(str, version.get("aliases") or ())) or "no alias"
    name = f"{version.get('name')} {version['version']}"
    return f"{link(made.version_url, name)} ({text(aliases)})"


def _prefect(run: ReportedRun) -> str:
    found = run.outcome.prefect_flow_run_id
    return (
        link(run.made_from.prefect_url, found)
        if found
        else "none: the flow was called as a function"
    )


def _digest(digest: str) -> str:
    return f'<code title="{text(digest)}">{text(digest[:16])}</code>' if digest else MISSING


def _code(value: str) -> str:
    return f"<code>{text(value)}</code>"

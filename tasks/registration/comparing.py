"""Two versions side by side: recipe, data, metrics, verdict, and their answers to the same questions."""

import difflib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.registration.named import check_registered
from tasks.registry import (
    ADAPTER_TAG,
    BASE_TAG,
    DATASET_CARD,
    GATE_TAG,
    METRICS_TAG,
    json_tag,
    model_files,
    model_id_of,
    version_at,
)
from tasks.tracking import Tracker

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

PREDICTIONS = "predictions.json"
RECIPE = "recipe.yaml"


@dataclass(frozen=True)
class SampleAnswers:
    """One test row that both versions answered."""

    prompt: str
    reference: str
    answers: tuple[str, str]


@dataclass(frozen=True)
class Difference:
    """What tells two versions apart."""

    versions: tuple[str, str]
    """`models:/NAME/VERSION` of each."""
    facts: Mapping[str, tuple[str, str]]
    """Adapter, base, dataset, verdict: name -> value of each."""
    recipe: str
    """A unified diff; empty when the recipes are equal."""
    recipe_note: str
    """Why there is no diff, where one of them keeps no recipe."""
    rows: Mapping[str, tuple[int | None, int | None]]
    """Rows of the dataset by split."""
    metrics: Mapping[str, tuple[float | None, float | None]]
    same_test_rows: bool | None
    """Whether their metrics come from the same test rows; None where it is not recorded."""
    samples: list[SampleAnswers]
    """Rows that both answered differently first."""
    samples_note: str
    """Why there are none, where there are none."""


def compare_versions(tracker: Tracker, first: str, second: str, *, samples: int = 5) -> Difference:
    """Compare `models:/...` with `models:/...`; nothing is loaded, only read.

    Raises: UserError when one of them is not there or not loraline's.
    """
    for uri in (first, second):
        check_registered(tracker, uri)
    one, two = version_at(tracker, first), version_at(tracker, second)
    papers = (_papers(tracker, one), _papers(tracker, two))
    recipes = [paper.get(RECIPE) for paper in papers]
    cards = [json_tag(paper.get(DATASET_CARD)) for paper in papers]
    metrics = [_own_metrics(version) for version in (one, two)]
    found, note = _samples(tracker, one, two, samples)
    return Difference(
        versions=(_uri(one), _uri(two)),
        facts={name: (_fact(one, tag), _fact(two, tag)) for name, tag in _FACTS.items()},
        recipe=_recipe_diff(recipes, (_uri(one), _uri(two))),
        recipe_note="" if None not in recipes else "one of them keeps no recipe",
        rows=_rows(cards),
        metrics={
            name: (metrics[0].get(name), metrics[1].get(name))
            for name in dict.fromkeys([*metrics[0], *metrics[1]])
        },
        same_test_rows=_same_test(cards),
        samples=found,
        samples_note=note,
    )


_FACTS = {
    "adapter (sha256)": ADAPTER_TAG,
    "base (sha256)": BASE_TAG,
    "dataset": "loraline.dataset_digest",
    "recipe": "loraline.recipe_digest",
    "started from": "loraline.started_from",
    "gate": GATE_TAG,
    "git commit": "loraline.git_commit",
}


def _uri(version: "ModelVersion") -> str:
    return f"models:/{version.name}/{version.version}"


def _fact(version: "ModelVersion", tag: str) -> str:
    value = str(version.tags.get(tag) or "")
    # Long enough to tell them apart, short enough to stand side by side.
    return value[:16] if len(value) in (40, 64) else value


def _papers(tracker: Tracker, version: "ModelVersion") -> dict[str, str]:
    """The version's small texts."""
    with model_files(tracker, model_id_of(version), tracker.home) as folder:
        about = folder / "artifacts" / "about"
        return {
            name: (about / name).read_text(encoding="utf-8")
            for name in (RECIPE, DATASET_CARD)
            if (about / name).is_file()
        }


def _own_metrics(version: "ModelVersion") -> dict[str, float]:
    values = json_tag(version.tags.get(METRICS_TAG)).get("challenger")
    return values if isinstance(values, dict) else {}


def _recipe_diff(recipes: list[str | None], names: tuple[str, str]) -> str:
    if recipes[0] is None or recipes[1] is None:
        return ""
    lines = difflib.unified_diff(
        recipes[0].splitlines(), recipes[1].splitlines(), *names, lineterm="", n=2
    )
    return "\n".join(lines)


def _rows(cards: list[dict[str, Any]]) -> dict[str, tuple[int | None, int | None]]:
    counts: list[dict[str, Any]] = [
        rows if isinstance(rows := card.get("rows"), dict) else {} for card in cards
    ]
    splits = dict.fromkeys([*counts[0], *counts[1]])
    return {split: (_whole(counts[0].get(split)), _whole(counts[1].get(split))) for split in splits}


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _same_test(cards: list[dict[str, Any]]) -> bool | None:
    digests = []
    for card in cards:
        digest = ((card.get("digests") or {}).get("test") or {}).get("any_order")
        if not digest:
            return None
        digests.append(digest)
    return bool(digests[0] == digests[1])


def _samples(
    tracker: Tracker, one: "ModelVersion", two: "ModelVersion", count: int
) -> tuple[list[SampleAnswers], str]:
    if not count:
        return [], "none were asked for"
    answers = [_answers(tracker, version) for version in (one, two)]
    for version, found in zip((one, two), answers, strict=True):
        if not found:
            return [], f"the MLflow run of {_uri(version)} keeps no answers"
    both = sorted(set(answers[0]) & set(answers[1]), key=_lot)
    if not both:
        return [], "they answered different test rows"
    rows = [
        SampleAnswers(
            prompt=answers[0][key]["prompt"],
            reference=answers[0][key]["reference"],
            answers=(
                answers[0][key]["challenger_answer"],
                answers[1][key]["challenger_answer"],
            ),
        )
        for key in both
    ]
    # Stable: among equals the lot decides.
    rows.sort(key=lambda row: row.answers[0] == row.answers[1])
    return rows[:count], ""


def _answers(tracker: Tracker, version: "ModelVersion") -> dict[str, dict[str, str]]:
    """Row id and prompt -> the row; empty where the run or its table is gone."""
    from mlflow.exceptions import MlflowException

    if not version.run_id:
        return {}
    with tracker.home.scratch("diff") as folder:
        try:
            path = tracker.client.download_artifacts(version.run_id, PREDICTIONS, str(folder))
            table = json.loads(Path(path).read_text(encoding="utf-8"))
            columns, data = table["columns"], table["data"]
        except (MlflowException, OSError, ValueError, KeyError):
            return {}
    needed = {"id", "prompt", "reference", "challenger_answer"}
    if not needed <= set(columns):
        return {}
    rows = [dict(zip(columns, row, strict=True)) for row in data]
    return {f"{row['id']}\0{row['prompt']}": {key: str(row[key]) for key in needed} for row in rows}


def _lot(key: str) -> str:
    # Not the id itself: ids may be sorted by source, and the first ones are no fair sample.
    return hashlib.sha256(key.encode()).hexdigest()

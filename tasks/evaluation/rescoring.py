"""Compute an evaluation's numbers again from its stored predictions: other metrics, slices or rules, no model."""

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tasks.drafts import published, require_free
from tasks.errors import UserError
from tasks.evaluation.files import find_files
from tasks.evaluation.job import AnswerResult, Model
from tasks.evaluation.scoring import RETENTION, TEST, OnEvent, score_predictions, write_output
from tasks.evaluation.settings import EvaluationSettings
from tasks.files import expanded
from tasks.home import Home
from tasks.store import Store

OF_EVALUATION = "loraline.fingerprint.evaluation"
OF_DATASET = "loraline.fingerprint.dataset"
SHORTEST_PREFIX = 8

_log = logging.getLogger(__name__)

TagsOf = Callable[[str], dict[str, str]]
"""MLflow run -> its tags; raises UserError where there is none."""


@dataclass(frozen=True)
class Stored:
    """A finished evaluation and what is known of it."""

    folder: Path
    settings: EvaluationSettings | None
    """Those that it was scored by; None in outputs that do not tell."""
    answers: AnswerResult
    seen_by_champion: int
    dataset_key: str | None
    """The fingerprint of the dataset that the rows are of; None in outputs that do not tell."""
    dataset: Path | None
    """The dataset's folder, where it is still in the store."""


def find_stored(named: str, store: Store, tags_of: TagsOf) -> Stored:
    """The evaluation that `named` means: a folder, the beginning of an evaluation's fingerprint, or an
    MLflow run.

    Raises: UserError when there is none, or its predictions are not on this machine.
    """
    folder, tags = expanded(named), {}
    if not (folder / TEST).is_file():
        key = _by_prefix(named, store)
        if key is None:
            tags = tags_of(named)
            key = tags.get(OF_EVALUATION)
            if key is None:
                raise UserError(f"The MLflow run {named} holds no evaluation.")
        found = store.find("evaluation", key)
        if found is None:
            raise UserError(
                f"The predictions of {named} (evaluation {key[:16]}) are not in {store.path('evaluation', key)}, "
                "or are damaged there. Rescore on the machine that evaluated, or evaluate again with "
                "`loraline run`."
            )
        folder = found
    facts = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    settings = None
    if (written := facts.get("settings")) is not None:
        try:
            settings = EvaluationSettings.model_validate(written)
        except ValidationError as error:
            _log.warning("The settings of %s are of another release: %s", folder, error)
    dataset_key = facts.get("dataset") or tags.get(OF_DATASET)
    return Stored(
        folder=folder,
        settings=settings,
        answers=AnswerResult.model_validate(facts["answers"]),
        seen_by_champion=facts.get("seen_by_champion", 0),
        dataset_key=dataset_key,
        dataset=store.find("dataset", dataset_key) if dataset_key else None,
    )


def rescore(
    stored: Stored,
    settings: EvaluationSettings | None,
    *,
    recipe_folder: Path,
    output: Path,
    home: Home,
    on_event: OnEvent | None = None,
) -> dict[str, Any]:
    """Write `metrics.json`, `report.md` and the rest to `output`, and return what `metrics.json` holds.

    `settings` take the place of those that it was scored by. What decides answers (decoding, dtype) has
    no effect here: no model is loaded. The stored evaluation stays as it is.

    A rescoring that fails leaves `output` as it was.

    Raises: UserError as the evaluation's scoring does, or when `output` is not an empty folder.
    """
    import pyarrow.parquet as pq

    chosen = settings or stored.settings or EvaluationSettings()
    files = find_files(chosen, recipe_folder)
    require_free(output)
    with published(output) as draft, home.scratch("rescore") as work:
        draft.mkdir()
        for name in (TEST, RETENTION):
            if (stored.folder / name).is_file():
                shutil.copyfile(stored.folder / name, draft / name)
        models: list[Model] = ["base", "challenger"]
        if "champion_answer" in pq.read_schema(draft / TEST).names:
            models.insert(1, "champion")
        scores = score_predictions(
            chosen,
            files,
            models,
            draft,
            dataset=stored.dataset and stored.dataset / "test.jsonl",
            work=work,
            log=home.logs / f"{work.name}.log",
            verdicts=home.cache / "verdicts.jsonl",
            on_event=on_event,
        )
        write_output(
            draft,
            chosen,
            stored.answers,
            scores[TEST],
            dataset=stored.dataset_key,
            seen_by_champion=stored.seen_by_champion,
            retention=scores.get(RETENTION),
        )
    found: dict[str, Any] = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    return found


def _by_prefix(named: str, store: Store) -> str | None:
    """The one evaluation in the store whose fingerprint begins so."""
    folder = store.path("evaluation", "x").parent
    if len(named) < SHORTEST_PREFIX or set(named) - set("0123456789abcdef") or not folder.is_dir():
        return None
    keys = [path.name for path in folder.iterdir() if path.name.startswith(named)]
    return keys[0] if len(keys) == 1 else None

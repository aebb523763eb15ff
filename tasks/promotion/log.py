"""The promotion log: MLflow runs of the experiment `<name>/promotions`, each bound to the one before by its hash."""

import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from tasks.errors import UserError
from tasks.promotion.entry import Entry
from tasks.store import digest
from tasks.tracking import Tracker

ENTRY_TAG = "loraline.promotion.entry"
HASH_TAG = "loraline.promotion.hash"
HEAD_TAG = "loraline.promotion.head"
"""On the registered model: number and hash of the newest entry, so that its loss does not go unseen."""
LONGEST_ENTRY = 7900
"""MLflow keeps 8,000 characters of a tag, and cuts the rest off without a word."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Logged:
    """An entry as MLflow holds it."""

    run_id: str
    entry: Entry | None
    """None when its text is missing or cannot be read."""
    number: int | None
    """As the text says, or else as the run's name says."""
    hash: str | None
    """As it was recorded."""
    content_hash: str | None
    """As its text gives it now."""
    done: bool
    """Whether the aliases were moved. An entry is written first, and completed by whoever comes next."""
    deleted: bool
    """Whether somebody deleted the run; MLflow keeps such runs until `mlflow gc`."""
    twins: "tuple[Logged, ...]" = ()
    """Copies that were never carried out: MLflow's client asks again where an answer was lost, and both came."""


def experiment_name(name: str) -> str:
    """The experiment that holds the log of a registered model."""
    return f"{name}/promotions"


def read_log(tracker: Tracker, name: str) -> list[Logged]:
    """Every entry once, deleted runs too, by number; entries that cannot be read come last."""
    client = tracker.client
    with tracker.explained(f"read the promotion log of {name!r}"):
        found = client.get_experiment_by_name(experiment_name(name))
        if found is None:
            return []
        entries = [_logged(run) for run in _runs(client, str(found.experiment_id))]
    entries = _with_their_twins(entries)
    return sorted(entries, key=lambda it: (it.number is None, it.number or 0, it.run_id))


def append(tracker: Tracker, entry: Entry) -> Logged:
    """Write the entry, not yet done. One call to MLflow: it is there whole, or not at all.

    Raises: UserError when it is too long to be kept.
    """
    text = entry.text
    if len(text) > LONGEST_ENTRY:
        raise UserError(
            f"The entry of the promotion log would have {len(text):,} characters, and MLflow keeps "
            f"{LONGEST_ENTRY:,}. Give a shorter --reason."
        )
    with tracker.explained(f"write the promotion log of {entry.name!r}"):
        run = tracker.client.create_run(
            tracker.experiment_id(experiment_name(entry.name)),
            run_name=entry.title,
            tags={
                "mlflow.user": entry.actor,
                "mlflow.source.name": "loraline",
                "mlflow.source.type": "JOB",
                "mlflow.note.content": _note(entry),
                ENTRY_TAG: text,
                HASH_TAG: entry.hash,
            },
        )
    return _logged(run)


def show_columns(tracker: Tracker, logged: Logged) -> None:
    """Repeat the entry's main fields as parameters: columns in MLflow's table, which nobody can edit there."""
    from mlflow.entities import Param

    entry = logged.entry
    assert entry is not None
    values = {
        "number": entry.number,
        "kind": entry.kind,
        "champion": entry.champion_to or "none",
        "instead_of": entry.champion_from or "none",
        "by": entry.actor,
        "reason": entry.reason,
        "gate": entry.gate or "unknown",
        "forced": entry.forced,
        "verified": {True: "yes", False: "FAILED", None: "no"}[entry.verified],
        "at": entry.at,
    }
    with tracker.explained(f"write the promotion log of {entry.name!r}"):
        present = tracker.client.get_run(logged.run_id).data.params
        new = [Param(key, str(value)) for key, value in values.items() if key not in present]
        if new:
            tracker.client.log_batch(logged.run_id, params=new)


def close(tracker: Tracker, logged: Logged) -> None:
    """Mark the entry as done: written last."""
    with tracker.explained("close the entry of the promotion log"):
        tracker.client.set_terminated(logged.run_id, status="FINISHED")


def set_head(tracker: Tracker, entry: Entry) -> None:
    """Note on the registered model which entry is the newest."""
    with tracker.explained(f"note the newest entry of {entry.name!r}"):
        head = json.dumps({"number": entry.number, "hash": entry.hash})
        tracker.client.set_registered_model_tag(entry.name, HEAD_TAG, head)


def read_head(tracker: Tracker, name: str) -> tuple[int, str] | None:
    """Number and hash of the newest entry as the registered model knows it; None where it knows none."""
    from mlflow.exceptions import MlflowException

    with tracker.explained(f"read {name!r}"):
        try:
            tags = tracker.client.get_registered_model(name).tags
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
    try:
        head = json.loads(tags.get(HEAD_TAG) or "null")
        return None if head is None else (int(head["number"]), str(head["hash"]))
    except (ValueError, KeyError, TypeError):
        return (0, "unreadable")


def _runs(client: Any, experiment_id: str) -> Iterator[Any]:
    from mlflow.entities import ViewType

    token: str | None = None
    while True:
        page = client.search_runs(
            [experiment_id], run_view_type=ViewType.ALL, max_results=1000, page_token=token
        )
        # Anything else in the experiment is not ours to judge.
        yield from (run for run in page if ENTRY_TAG in run.data.tags or HASH_TAG in run.data.tags)
        token = page.token
        if not token:
            return


def _with_their_twins(entries: Iterable[Logged]) -> list[Logged]:
    """One of each entry: the one that was carried out, else any.

    Only what is the same to the letter counts as a twin, and says nothing that the other one does not.
    """
    found: dict[tuple[object, ...], Logged] = {}
    for it in sorted(entries, key=lambda one: (not one.done, one.deleted, one.run_id)):
        sound = it.entry is not None and it.content_hash == it.hash
        key = (it.number, it.content_hash) if sound else (it.run_id,)
        first = found.setdefault(key, it)
        if first is it:
            continue
        if it.done:
            # Carried out twice, as a release before twins were known could: the audit names it.
            found[(it.run_id,)] = it
        else:
            found[key] = replace(first, twins=(*first.twins, it))
    return list(found.values())


def _logged(run: Any) -> Logged:
    tags = run.data.tags
    entry, content = None, None
    try:
        value = json.loads(tags[ENTRY_TAG])
        content = digest(value)
        entry = Entry.model_validate(value)
    except (KeyError, ValueError):
        _log.debug("The entry in run %s cannot be read", run.info.run_id, exc_info=True)
    return Logged(
        run_id=str(run.info.run_id),
        entry=entry,
        number=entry.number if entry else _number_in(str(run.info.run_name or "")),
        hash=tags.get(HASH_TAG),
        content_hash=content,
        done=run.info.status == "FINISHED",
        deleted=run.info.lifecycle_stage == "deleted",
    )


def _number_in(title: str) -> int | None:
    word = title.partition(" ")[0].removeprefix("#")
    return int(word) if title.startswith("#") and word.isdecimal() else None


def _note(entry: Entry) -> str:
    lines = [f"**{entry.title}**", f"by {entry.actor}: {entry.reason}"]
    if entry.verification:
        lines.append(f"Verified: {entry.verification}")
    return "\n\n".join(lines)

"""Write down a champion that somebody moved past the log, as in MLflow's own pages."""

from typing import Any

from tasks.errors import UserError
from tasks.promotion.lock import Held
from tasks.promotion.moving import Aliases, Log, carry_out, settle
from tasks.promotion.notices import Notices
from tasks.promotion.verdict import verdict_of
from tasks.registry import ADAPTER_TAG, version_at
from tasks.tracking import Tracker


def observe(
    tracker: Tracker,
    name: str,
    log: Log,
    now: Aliases,
    held: Held,
    notices: Notices,
    **found: Any,
) -> Log:
    """Write down a champion that was not moved by way of the log; the log with that entry, if it was needed.

    `found` adds to the entry: what a verification came to. Called with the lock held, after `settle`.
    """
    if log.champion == now.champion:
        return log
    first = log.last is None
    tags = (
        {} if now.champion is None else version_at(tracker, f"models:/{name}/{now.champion}").tags
    )
    verdict = verdict_of(name, now.champion or "", tags)
    # A person who moved `previous` as well meant it. Else it becomes the way back.
    by_hand = not first and log.last is not None and now.previous != log.last.previous_to
    back = log.champion if log.champion and not by_hand else now.previous
    if back is not None and (back == now.champion or not is_there(tracker, name, back)):
        back = now.previous
    fields: dict[str, Any] = {
        "actor": "unknown (MLflow keeps no author of an alias)",
        "reason": "It was champion before the log began."
        if first
        else "The alias was moved outside of loraline, as in MLflow's own pages.",
        "not_before": None if log.last is None else log.last.at,
        **found,
    }
    entry = log.next(
        kind="observed",
        name=name,
        champion_from=log.champion,
        champion_to=now.champion,
        previous_from=now.previous,
        previous_to=back,
        adapter_sha256=tags.get(ADAPTER_TAG),
        gate=verdict.gate,
        judged_against=verdict.judged_against,
        **fields,
    )
    carry_out(tracker, entry, held, notices)
    return settle(tracker, name, held, notices)


def look_again(
    tracker: Tracker, log: Log, now: Aliases, held: Held, notices: Notices, **found: Any
) -> Log:
    """Write down what a later look at the champion found; the log with that entry.

    `found` is what the verification came to. Called with the lock held, after `settle`.
    """
    before = log.looked
    assert before is not None
    entry = log.next(
        kind="observed",
        name=before.name,
        champion_from=now.champion,
        champion_to=now.champion,
        previous_from=now.previous,
        previous_to=now.previous,
        adapter_sha256=before.adapter_sha256,
        actor=before.actor,
        reason=f"Entry {before.number} is verified."
        if found.get("verified")
        else f"Entry {before.number} was looked at again.",
        gate=before.gate,
        judged_against=before.judged_against,
        **found,
    )
    carry_out(tracker, entry, held, notices)
    return settle(tracker, before.name, held, notices)


def is_there(tracker: Tracker, name: str, version: str) -> bool:
    """Whether the version can be loaded from the registry at all."""
    try:
        return str(version_at(tracker, f"models:/{name}/{version}").status) == "READY"
    except UserError:
        return False

"""What a person decided about a version: kept on the version, and carried out if it still holds."""

import json
from dataclasses import dataclass
from typing import Literal

from tasks.errors import LoralineError
from tasks.promotion.entry import now
from tasks.promotion.moving import aliases_of
from tasks.promotion.notices import Notices
from tasks.promotion.promoting import Moved, Verify, promote
from tasks.promotion.work import stored_verdict
from tasks.registry import version_of
from tasks.tracking import Tracker

APPROVAL_TAG = "loraline.approval"
"""JSON on the version: what was decided, by whom, when and why, and what came of it."""
FORM_DEPLOYMENT = "approve/approve"
"""The deployment whose runs are forms; without it, the command line is the way."""


@dataclass(frozen=True)
class Answer:
    """What the form was answered with."""

    decision: Literal["promote", "reject"]
    reason: str
    name: str
    """Who decided."""


@dataclass(frozen=True)
class Settled:
    """What an answer came to."""

    outcome: Literal["Promoted", "Rejected", "Refused"]
    told: str
    moved: Moved | None = None


def asked_for(tracker: Tracker, name: str, version: str) -> str:
    """What the form shows beside its fields, in markdown: which version, its verdict, what is champion."""
    verdict = stored_verdict(tracker, name, version)
    champion = aliases_of(tracker, name).champion
    link = tracker.version_url(name, version)
    current = f"The champion is version {champion}." if champion else "There is no champion yet."
    return f"Promote [version {version} of {name}]({link})? {current}\n\n{verdict.table()}"


def carry_out_answer(
    tracker: Tracker,
    name: str,
    version: str,
    answer: Answer,
    *,
    verify: Verify,
    notices: Notices,
    flow_run: str | None,
) -> Settled:
    """Keep the answer on the version, and promote it if that was the answer and its verdict still holds.

    The verdict is read again, and so is the champion: one that was promoted while the form waited
    makes the approval void, for nobody has compared the two.

    Raises: as `promote`, with the answer kept on the version.
    """
    if answer.decision == "reject":
        told = f"Version {version} of {name} was rejected by {answer.name}: {answer.reason}"
        _keep(tracker, name, version, answer, "rejected", flow_run)
        return Settled("Rejected", told)
    verdict = stored_verdict(tracker, name, version)
    champion = aliases_of(tracker, name).champion
    why = None
    if champion == version:
        why = f"Version {version} of {name} is champion already."
    elif verdict.gate not in ("passed", "none"):
        why = f"The gate's verdict on version {version} of {name} is {verdict.gate} by now."
    elif not verdict.holds_for(champion):
        why = verdict.why_void(champion)
    if why is not None:
        _keep(tracker, name, version, answer, "approved, and refused", flow_run)
        return Settled("Refused", why)
    try:
        moved = promote(
            tracker,
            name,
            version,
            reason=answer.reason,
            verify=verify,
            actor=answer.name,
            # Whoever is faster while the version is loaded makes the approval void, too.
            instead_of=champion,
            notices=notices,
            flow_run=flow_run,
        )
    except LoralineError:
        # The form is used up: without this nobody would know what was answered.
        _keep(tracker, name, version, answer, "approved, and not promoted", flow_run)
        raise
    _keep(tracker, name, version, answer, "approved", flow_run)
    told = moved.entry.title if moved.entry else f"Version {version} is champion already."
    return Settled("Promoted", told, moved)


def _keep(
    tracker: Tracker, name: str, version: str, answer: Answer, outcome: str, flow_run: str | None
) -> None:
    record = {
        "outcome": outcome,
        "by": answer.name,
        "reason": answer.reason,
        "at": now(),
        "flow_run": flow_run,
    }
    with tracker.explained(f"keep the answer on version {version} of {name!r}"):
        # Read first: a version that is gone is told in our words.
        version_of(tracker, name, version)
        tracker.client.set_model_version_tag(name, version, APPROVAL_TAG, json.dumps(record))

"""Decide whether a version goes live, and move the alias `champion` to it under a lock and with a record."""

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from tasks.artifacts import Version
from tasks.errors import StageFailed
from tasks.promotion.settings import PromotionSettings
from tasks.registry import CHAMPION, PREVIOUS, PROMOTED_AT, aliased, locked, version_of
from tasks.tracking import Tracker, current_user

PROMOTED_BY = "loraline.promoted_by"
PROMOTED_WHY = "loraline.promotion_reason"
PROMOTED_FROM = "loraline.promoted_from"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Decision:
    """What the policy says about a registered version."""

    outcome: Literal["registered", "awaiting_approval"]
    promote: bool
    """Whether the run itself moves the alias now."""
    reason: str


def decide(settings: PromotionSettings, *, comparable: bool = True, gated: bool = True) -> Decision:
    """What happens to a version that passed the gate, or that had none to pass (not `gated`).

    `comparable` is False when there is a champion that it could not be judged against, because that
    one belongs on another base: then no policy promotes by itself.
    """
    judged = "It passed the gate" if gated else "There is no gate"
    if not comparable:
        return Decision(
            "awaiting_approval",
            False,
            f"{judged}, but the champion belongs on another base and could "
            "not be compared: a person must decide.",
        )
    if settings.policy == "automatic":
        return Decision("registered", True, f"{judged}, and the policy is automatic.")
    if settings.policy == "approval":
        return Decision("awaiting_approval", False, f"{judged}; it waits for approval.")
    return Decision("registered", False, f"{judged}; the policy leaves promotion to a person.")


def champion_version(tracker: Tracker, name: str) -> str | None:
    """The number of the version that is champion now, or None. Read it before judging, give it to `promote`."""
    found = aliased(tracker, name, CHAMPION)
    return None if found is None else str(found.version)


def promote(
    tracker: Tracker,
    name: str,
    version: str,
    *,
    reason: str,
    actor: str | None = None,
    instead_of: str | None = "anyone",
) -> Version:
    """Point `champion` to the version and `previous` to the one before; promoting a champion again does nothing.

    `instead_of` is the number of the champion that the version was judged against (None: there was
    none): when another one has been promoted since, that judgement no longer holds. "anyone" asks not. `actor` is who did it; default:
    the user of this process.

    Raises: StageFailed when the version does not exist or is not ready, or when `instead_of` is not
    the champion any more.
    """
    client = tracker.client
    with locked(tracker.home, name):
        with tracker.explained(f"read version {version} of {name!r}"):
            candidate = client.get_model_version(name, version)
        if candidate.status != "READY":
            raise StageFailed(
                f"Version {version} of {name!r} is {candidate.status}, not READY: it cannot be champion. "
                "Register the adapter again."
            )
        current = champion_version(tracker, name)
        if current == str(candidate.version):
            return version_of(tracker, name, current)
        if instead_of != "anyone" and current != instead_of:
            raise StageFailed(
                f"Version {version} of {name!r} was judged against "
                f"{f'version {instead_of}' if instead_of else 'no champion'}, but the champion is now "
                f"{f'version {current}' if current else 'gone'}. Nothing was moved; run the recipe again to "
                "judge it against the present champion."
            )
        record = {
            PROMOTED_AT: datetime.now(UTC).isoformat(timespec="seconds"),
            PROMOTED_BY: actor or current_user(),
            PROMOTED_WHY: reason,
            PROMOTED_FROM: current or "none",
        }
        with tracker.explained(f"promote version {version} of {name!r}"):
            # The record first: an alias without its reason would be worse than a reason without alias.
            for key, value in record.items():
                client.set_model_version_tag(name, version, key, value)
            if current is not None:
                client.set_registered_model_alias(name, PREVIOUS, current)
            client.set_registered_model_alias(name, CHAMPION, version)
        _log.info("Version %s of %s is champion now, before: %s", version, name, current or "none")
        return version_of(tracker, name, version)

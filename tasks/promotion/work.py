"""Decide what the policy makes of a version that was registered, and note what its verdict holds for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tasks.artifacts import Version
from tasks.promotion.settings import PromotionSettings
from tasks.promotion.verdict import Verdict, verdict_of
from tasks.registry import CHAMPION, JUDGED_AGAINST_TAG, aliased, verdict_tags, version_at
from tasks.tracking import Tracker


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


def note_judgement(tracker: Tracker, version: Version, champion: str | None) -> None:
    """Keep on the version which champion it was judged against: its verdict holds for that one only."""
    with tracker.explained(f"note the champion on version {version.version}"):
        tracker.client.set_model_version_tag(
            version.name, version.version, JUDGED_AGAINST_TAG, champion or "none"
        )


def note_verdict(
    tracker: Tracker,
    name: str,
    version: str,
    *,
    gate: Mapping[str, Any] | None,
    metrics: Mapping[str, Any],
    champion: str | None,
) -> None:
    """Put a newer verdict on a registered version, and which champion it holds for."""
    tags = verdict_tags(gate, metrics, champion)
    with tracker.explained(f"note the verdict on version {version} of {name!r}"):
        for key, value in tags.items():
            tracker.client.set_model_version_tag(name, version, key, value)


def stored_verdict(tracker: Tracker, name: str, version: str) -> Verdict:
    """The gate's verdict as the registry keeps it. Raises: UserError when there is no such version."""
    return verdict_of(name, version, version_at(tracker, f"models:/{name}/{version}").tags)

"""Who made which version champion, as the promotion log has it: tags of a version can be edited by anybody."""

from dataclasses import dataclass

from tasks.promotion.audit import audit
from tasks.tracking import Tracker


@dataclass(frozen=True)
class Promoted:
    """The last time that a version became champion."""

    by: str
    """Or that it is not known, with the reason in brackets."""
    at: str
    """ISO 8601, UTC."""


def promotions_of(tracker: Tracker, name: str) -> dict[str, Promoted]:
    """Version -> its last promotion or rollback; without versions that never were champion.

    An entry that the audit finds fault with vouches for nobody.
    """
    log = audit(tracker, name)
    damaged = {problem.number for problem in log.problems}
    withdrawn = {entry.withdraws for entry in log.entries if entry.withdraws is not None}
    found: dict[str, Promoted] = {}
    for entry in log.entries:
        if entry.champion_to is None or entry.kind == "withdrawn" or entry.number in withdrawn:
            continue
        if entry.champion_to == entry.champion_from:
            continue
        by = (
            f"unknown (entry {entry.number} of the log is damaged: loraline audit {name})"
            if entry.number in damaged
            else entry.actor
        )
        found[entry.champion_to] = Promoted(by, entry.at)
    return found

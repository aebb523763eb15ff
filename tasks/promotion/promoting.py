"""Move `champion` to a version, or back: checked, proven, under the lock with compare-and-set, on record."""

import os
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from tasks.artifacts import Version
from tasks.errors import GateRefused, LoralineError, NoGpuTurn, ServerAway, StageFailed, UserError
from tasks.promotion.entry import LONGEST_REASON, MOST_METRICS, Entry
from tasks.promotion.lock import promoting
from tasks.promotion.moving import Aliases, Log, aliases_of, carry_out, settle
from tasks.promotion.notices import Notices, notices_of
from tasks.promotion.observing import is_there, look_again, observe
from tasks.promotion.verdict import Verdict, changed, verdict_of
from tasks.registry import ADAPTER_TAG, version_at, version_of
from tasks.tracking import Tracker, current_user

Verify = Callable[[str], str]
"""Loads `models:/NAME/VERSION` in a fresh process and tells what it found. Raises: LoralineError."""


class AsJudged(Enum):
    """No version's number: the champion that the stored verdict holds for."""

    AS_JUDGED = "as judged"


AS_JUDGED: Final = AsJudged.AS_JUDGED


@dataclass(frozen=True)
class Moved:
    """What a promotion or a rollback came to."""

    version: Version
    """The champion, with its aliases as they are now."""
    entry: Entry | None
    """The log's new entry; None when the version was champion already."""
    waiting: int
    """Notices that nobody has taken yet."""


def promote(
    tracker: Tracker,
    name: str,
    version: str,
    *,
    reason: str,
    verify: Verify,
    actor: str | None = None,
    force: bool = False,
    instead_of: str | AsJudged | None = AS_JUDGED,
    notices: Notices | None = None,
    flow_run: str | None = None,
) -> Moved:
    """Point `champion` to the version and `previous` to the one before; promoting the champion again does nothing.

    `instead_of` is the champion that must still be in place (None: there must be none); the default
    is the one that the stored verdict holds for, or where none is recorded the one at the time of this
    call. `force` overrules the verdict, and the log says so; a version that does not load is not
    promoted by force either. `actor` is who did it; default: the user of this process.

    Raises: GateRefused when the verdict stands against it; UserError without a reason or for a version
    that is not there; StageFailed when the champion is another one by now, the version is not ready
    or does not load. Nothing is moved then.
    """
    reason = checked_reason(reason)
    notices = notices or notices_of(tracker.home, prefect_api=os.environ.get("PREFECT_API_URL"))
    candidate = _ready(tracker, name, version)
    version = str(candidate.version)
    before = aliases_of(tracker, name).champion
    if before == version:
        return _unmoved(tracker, name, version, verify, notices)
    verdict = verdict_of(name, version, candidate.tags)
    expected = before if instead_of is AS_JUDGED else instead_of
    overruled = False
    try:
        verdict.refuse_unless_passed()
        if instead_of is AS_JUDGED:
            verdict.refuse_unless_judged_against(before)
    except (GateRefused, StageFailed):
        if not force:
            raise
        overruled = True
    if before != expected:
        raise StageFailed(changed(name, version, expected, before))
    # Outside the lock: it takes a while, and another one's rollback must not wait for it.
    found = verify(f"models:/{name}/{version}")
    with promoting(tracker, name) as held:
        log = settle(tracker, name, held, notices)
        now = aliases_of(tracker, name)
        if now.champion == version:
            moved = None
        elif now.champion != expected:
            raise StageFailed(_overtaken(name, version, expected, now.champion))
        else:
            log = observe(tracker, name, log, now, held, notices)
            now = aliases_of(tracker, name)
            moved = log.next(
                kind="promotion",
                name=name,
                champion_from=now.champion,
                champion_to=version,
                previous_from=now.previous,
                previous_to=now.champion if now.champion else now.previous,
                adapter_sha256=candidate.tags.get(ADAPTER_TAG),
                actor=actor or current_user(),
                reason=reason,
                gate=verdict.gate,
                judged_against=verdict.judged_against,
                forced=overruled,
                verified=True,
                verification=found,
                metrics=_few(verdict),
                flow_run=flow_run,
            )
            carry_out(tracker, moved, held, notices)
    return Moved(version_of(tracker, name, version), moved, notices.deliver())


def roll_back(
    tracker: Tracker,
    name: str,
    *,
    reason: str,
    verify: Verify,
    actor: str | None = None,
    notices: Notices | None = None,
    flow_run: str | None = None,
) -> Moved:
    """Make `previous` the champion again, once it is known to load; `previous` becomes what it was before.

    A second rollback thus goes one step further back. The version that is left keeps no alias; the log
    and its tags say that it was champion.

    Raises: UserError when there is nothing to go back to; StageFailed when that version does not load,
    or somebody else moved the aliases meanwhile. Nothing is moved then.
    """
    reason = checked_reason(reason)
    notices = notices or notices_of(tracker.home, prefect_api=os.environ.get("PREFECT_API_URL"))
    with promoting(tracker, name) as held:
        log = settle(tracker, name, held, notices)
        # First, because the way back from a champion that was set by hand is the one before it.
        log = observe(tracker, name, log, aliases_of(tracker, name), held, notices)
        before = aliases_of(tracker, name)
    target = _way_back(log, name, before)
    candidate = _ready(tracker, name, target)
    try:
        found = verify(f"models:/{name}/{target}")
    except (NoGpuTurn, ServerAway):
        raise
    except LoralineError as error:
        raise StageFailed(
            f"{name!r} cannot go back to version {target}, which does not load: {error}\nNothing was moved; "
            f"version {before.champion or 'none'} is still champion. `loraline versions {name}` lists the "
            f"others; `loraline promote {name} VERSION --force --reason ...` goes to one of them."
        ) from error
    with promoting(tracker, name) as held:
        log = settle(tracker, name, held, notices)
        now = aliases_of(tracker, name)
        if now != before:
            raise StageFailed(_overtaken(name, target, before.champion, now.champion))
        entry = log.next(
            kind="rollback",
            name=name,
            champion_from=now.champion,
            champion_to=target,
            previous_from=now.previous,
            previous_to=_further_back(tracker, log, now, target),
            adapter_sha256=candidate.tags.get(ADAPTER_TAG),
            actor=actor or current_user(),
            reason=reason,
            gate=verdict_of(name, target, candidate.tags).gate,
            verified=True,
            verification=found,
            flow_run=flow_run,
        )
        carry_out(tracker, entry, held, notices)
    return Moved(version_of(tracker, name, target), entry, notices.deliver())


def checked_reason(reason: str) -> str:
    """The reason without space around it. Raises: UserError when there is none, or a very long one."""
    # Control characters would reach the terminals of whoever reads the log.
    plain = (" " if unicodedata.category(it) in ("Cc", "Cs") else it for it in reason)
    reason = " ".join("".join(plain).split())
    if not reason:
        raise UserError("A promotion and a rollback need a reason: --reason 'why, for the log'.")
    if len(reason) > LONGEST_REASON:
        raise UserError(
            f"The reason has {len(reason):,} characters, and the log keeps {LONGEST_REASON:,}."
        )
    return reason


def _ready(tracker: Tracker, name: str, version: str) -> Any:
    candidate = version_at(tracker, f"models:/{name}/{version}")
    if candidate.status != "READY":
        raise StageFailed(
            f"Version {version} of {name!r} is {candidate.status}, not READY: it cannot be champion. "
            "Register the adapter again."
        )
    return candidate


def _unmoved(tracker: Tracker, name: str, version: str, verify: Verify, notices: Notices) -> Moved:
    """The version is champion; what a killed process may have left half done is completed.

    Where the log does not say that it loads, it is loaded now, and the log says so.

    Raises: as `verify`.
    """
    with promoting(tracker, name) as held:
        log = settle(tracker, name, held, notices)
    looked = log.looked
    if looked is not None and looked.champion_to == version and not looked.verified:
        found = verify(f"models:/{name}/{version}")
        with promoting(tracker, name) as held:
            log = settle(tracker, name, held, notices)
            current = aliases_of(tracker, name)
            if log.looked == looked and current.champion == version:
                look_again(tracker, log, current, held, notices, verified=True, verification=found)
    return Moved(version_of(tracker, name, version), None, notices.deliver())


def _overtaken(name: str, version: str, expected: str | None, champion: str | None) -> str:
    return (
        f"Somebody else was faster: the champion of {name!r} was "
        f"{f'version {expected}' if expected else 'no version'} when this began, and is "
        f"{f'version {champion}' if champion else 'gone'} now. Nothing was moved to version {version}; "
        f"`loraline audit {name}` shows who did what, then decide again."
    )


def _way_back(log: Log, name: str, now: Aliases) -> str:
    if now.previous is not None and now.previous != now.champion:
        return now.previous
    if now.champion is None and log.last is not None and log.last.champion_from is not None:
        # Both aliases were taken away: the last known champion is the way back.
        return log.last.champion_from
    raise UserError(
        f"{name!r} has no version to go back to: the alias `previous` names "
        f"{'the champion itself' if now.previous else 'none'}. `loraline versions {name}` lists what there "
        f"is; `loraline promote {name} VERSION --reason ...` makes one of them champion."
    )


def _further_back(tracker: Tracker, log: Log, now: Aliases, target: str) -> str | None:
    """What `previous` was before the champion that is left now became champion."""
    left = now.champion
    entry = None if left is None else log.came_from(left)
    back = None if entry is None else entry.previous_from
    if entry is None or back is None or back in (target, left):
        return None
    return back if is_there(tracker, entry.name, back) else None


def _few(verdict: Verdict) -> dict[str, float]:
    own = verdict.metrics.get("challenger") or {}
    numbers = {k: float(f"{v:.6g}") for k, v in own.items() if isinstance(v, int | float)}
    return {k: v for k, v in list(numbers.items())[:MOST_METRICS] if v - v == 0}

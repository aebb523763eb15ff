"""Promotion in MLflow's own pages counts: see it, verify it, write it down, warn of a version that does not load."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from tasks.errors import (
    Interrupted,
    LoralineError,
    NoGpuTurn,
    OutOfMemory,
    UserError,
    WorkerFailed,
)
from tasks.outage import is_outage
from tasks.promotion.entry import Entry, now
from tasks.promotion.lock import promoting
from tasks.promotion.log import HEAD_TAG
from tasks.promotion.moving import Aliases, Log, aliases_of, settle
from tasks.promotion.notices import Notices
from tasks.promotion.observing import look_again, observe
from tasks.promotion.passes import Pass, keep_pass, read_pass
from tasks.promotion.promoting import Verify
from tasks.registry import ADAPTER_TAG, CHAMPION, version_at
from tasks.tracking import Tracker

PASSES_BETWEEN = 5
"""A champion that was loaded in vain is loaded again after so many passes: each costs minutes of a machine."""
PATIENCE = 3
"""Attempts that may end without a verdict, as for lack of memory, before a person is told."""
_NO_MEMORY = ("cannot allocate memory", "out of memory", "memoryerror", "no space left on device")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Seen:
    """What one pass found for one model."""

    name: str
    entry: Entry | None
    """What was written; None when nothing had happened."""
    alert: str | None
    """What a person should know, with the way back; told by the first pass that finds it."""
    standing: str | None = None
    """The same, where an earlier pass has told it."""


def reconcile(tracker: Tracker, *, verify: Verify, notices: Notices) -> list[Seen]:
    """One pass over every model that is loraline's; a second one writes nothing.

    A model that cannot be looked at now is logged, and the others are looked at all the same.
    """
    seen, failed = [], []
    for name, head, champion in _models(tracker):
        try:
            if head or _is_ours(tracker, name, champion):
                seen.append(_reconcile(tracker, name, verify, notices))
        except Interrupted:
            raise
        except LoralineError as error:
            failed.append(_failed(tracker, name, error))
    notices.deliver()
    return [*seen, *failed]


def way_back(name: str, version: str | None, back: str | None) -> str:
    """The command that leads away from a champion that does not load."""
    if back is not None and back != version:
        return f"loraline rollback {name} --reason '...'   (to version {back})"
    return (
        f"loraline promote {name} VERSION --reason '...'   (`loraline versions {name}` lists them)"
    )


def _reconcile(tracker: Tracker, name: str, verify: Verify, notices: Notices) -> Seen:
    memory = read_pass(tracker.home, name)
    with promoting(tracker, name) as held:
        log = settle(tracker, name, held, notices)
        found_now = aliases_of(tracker, name)
    if not _to_be_loaded(log, found_now, memory):
        return _told(tracker, name, log, found_now, None, replace(memory, ago=memory.ago + 1))
    found = _verified(name, found_now, verify)
    with promoting(tracker, name) as held:
        fresh = settle(tracker, name, held, notices)
        if aliases_of(tracker, name) != found_now or fresh.last != log.last:
            # It moved again meanwhile: the next pass looks at that.
            return Seen(name, None, None)
        before = log.looked
        moved = log.champion != found_now.champion
        if moved:
            since = memory.agreed or (log.last.at if log.last else None)
            log = observe(tracker, name, log, found_now, held, notices, not_before=since, **found)
        elif before is not None and found["verified"] not in (None, before.verified):
            log = look_again(tracker, log, found_now, held, notices, not_before=before.at, **found)
        found_now = aliases_of(tracker, name)
    entry = log.looked
    assert entry is not None
    if found_now.champion is None or found["verified"]:
        memory = replace(memory, tried=None, attempts=0, ago=0)
    else:
        known = not moved and before is not None and memory.tried == before.id
        memory = replace(
            memory, tried=entry.id, attempts=memory.attempts + 1 if known else 1, ago=0
        )
    return _told(tracker, name, log, found_now, None if entry == before else entry, memory)


def _to_be_loaded(log: Log, found_now: Aliases, memory: Pass) -> bool:
    if log.champion != found_now.champion:
        return True
    looked = log.looked
    if looked is None or looked.verified or found_now.champion is None:
        return False
    return memory.tried != looked.id or memory.ago + 1 >= PASSES_BETWEEN


def _told(
    tracker: Tracker,
    name: str,
    log: Log,
    found_now: Aliases,
    written: Entry | None,
    memory: Pass,
) -> Seen:
    """What stands after a pass, and whether it is news."""
    looked = log.looked
    alert = None if looked is None else _alert(looked, found_now, memory)
    if alert is None:
        keep_pass(tracker.home, name, replace(memory, agreed=now(), alert=None))
        return Seen(name, written, None)
    kind, text = alert
    key = f"{kind} {found_now.champion}"
    keep_pass(tracker.home, name, replace(memory, agreed=now(), alert=key))
    if key == memory.alert:
        _log.info("%s", text)
        return Seen(name, written, None, text)
    _log.error("%s", text)
    return Seen(name, written, text)


def _failed(tracker: Tracker, name: str, error: LoralineError) -> Seen:
    told = f"{name} could not be reconciled: {error}"
    if is_outage(error):
        # It passes by itself, and says nothing of the model.
        _log.warning("%s", told)
        return Seen(name, None, None, str(error))
    memory = read_pass(tracker.home, name)
    key = f"error {hashlib.sha256(str(error).encode()).hexdigest()[:16]}"
    if key == memory.alert:
        _log.info("%s", told)
        return Seen(name, None, None, str(error))
    _log.error("%s", told)
    keep_pass(tracker.home, name, replace(memory, alert=key))
    return Seen(name, None, str(error))


def _verified(name: str, found_now: Aliases, verify: Verify) -> dict[str, Any]:
    if found_now.champion is None:
        return {"verified": None, "verification": ""}
    try:
        proof = verify(f"models:/{name}/{found_now.champion}")
        return {"verified": True, "verification": proof}
    except Interrupted:
        raise
    except LoralineError as error:
        told = " ".join(str(error).split())[:1000]
        if _says_nothing(error):
            _log.warning("Version %s of %s: nobody could look: %s", found_now.champion, name, told)
            return {"verified": None, "verification": f"Nobody could look: {told}"[:1000]}
        return {"verified": False, "verification": told}


def _says_nothing(error: LoralineError) -> bool:
    """Whether it is the machine that failed, and not the version."""
    if isinstance(error, NoGpuTurn | OutOfMemory | WorkerFailed) or is_outage(error):
        return True
    if any(words in str(error).lower() for words in _NO_MEMORY):
        return True
    # A worker that refuses a version says why, in words that stand alone; one that died is quoted.
    cause = error.__cause__
    return isinstance(cause, WorkerFailed) and str(cause) in str(error)


def _alert(
    entry: Entry, found_now: Aliases, memory: Pass
) -> tuple[Literal["gone", "damaged", "unseen", "refused"], str] | None:
    name, champion = entry.name, found_now.champion
    if champion is None:
        return "gone", (
            f"{name} has no champion: the alias was taken away in MLflow. Whoever loads "
            f"models:/{name}@champion now fails. The way back: "
            f"{way_back(name, None, entry.champion_from or found_now.previous)}"
        )
    way = f"Nothing was undone. The way back: {way_back(name, champion, found_now.previous)}"
    what = f"Version {champion} is the champion of {name}, set outside of loraline, and"
    if entry.verified is False:
        return "damaged", f"{what} does not load: {entry.verification} {way}"
    if entry.verified is None and memory.tried == entry.id and memory.attempts >= PATIENCE:
        return "unseen", (
            f"{what} {memory.attempts} attempts to load it ended without a verdict: "
            f"{entry.verification} {way}"
        )
    if entry.kind == "observed" and entry.gate == "refused":
        return "refused", (
            f"{what} the gate had refused it (`loraline versions {name}` shows the verdict). {way}"
        )
    return None


def _models(tracker: Tracker) -> Sequence[tuple[str, bool, str | None]]:
    """Name, whether it has a promotion log, and its champion."""
    models, token = [], None
    with tracker.explained("list the registered models"):
        while True:
            page = tracker.client.search_registered_models(page_token=token)
            for model in page:
                champion = model.aliases.get(CHAMPION)
                champion = None if champion is None else str(champion)
                models.append((str(model.name), HEAD_TAG in (model.tags or {}), champion))
            token = page.token
            if not token:
                return models


def _is_ours(tracker: Tracker, name: str, champion: str | None) -> bool:
    """Others may keep their models in the same registry."""
    if champion is None:
        return False
    try:
        return ADAPTER_TAG in version_at(tracker, f"models:/{name}/{champion}").tags
    except UserError:
        return False

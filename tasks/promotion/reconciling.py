"""Promotion in MLflow's own pages counts: see it, verify it, write it down, warn of a version that does not load."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tasks.errors import LoralineError, UserError
from tasks.promotion.entry import Entry
from tasks.promotion.lock import Held, promoting
from tasks.promotion.log import HEAD_TAG
from tasks.promotion.moving import Aliases, Log, aliases_of, carry_out, settle
from tasks.promotion.notices import Notices
from tasks.promotion.observing import observe
from tasks.promotion.promoting import Verify
from tasks.registry import ADAPTER_TAG, CHAMPION, version_at
from tasks.tracking import Tracker

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Seen:
    """What one pass found for one model."""

    name: str
    entry: Entry | None
    """What was written; None when nothing had happened."""
    alert: str | None
    """A champion that does not load, with the way back."""


def reconcile(tracker: Tracker, *, verify: Verify, notices: Notices) -> list[Seen]:
    """One pass over every model that is loraline's; a second one writes nothing.

    A model that cannot be looked at now is logged, and the others are looked at all the same.
    """
    seen, failed = [], []
    for name, head, champion in _models(tracker):
        try:
            if head or _is_ours(tracker, name, champion):
                seen.append(_reconcile(tracker, name, verify, notices))
        except LoralineError as error:
            _log.error("%s could not be reconciled: %s", name, error)
            failed.append(Seen(name, None, str(error)))
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
    with promoting(tracker, name) as held:
        log = settle(tracker, name, held, notices)
        now = aliases_of(tracker, name)
    if not _unseen(log, now):
        alert = None
        if log.last is not None and (log.last.verified is False or now.champion is None):
            alert = _alert(log.last, now)
            _log.warning("%s", alert)
        _touch(tracker, name)
        return Seen(name, None, alert)
    found = _verified(name, now, verify)
    with promoting(tracker, name) as held:
        log = settle(tracker, name, held, notices)
        if aliases_of(tracker, name) != now or not _unseen(log, now):
            # It moved again meanwhile: the next pass looks at that.
            return Seen(name, None, None)
        last = log.last
        found["not_before"] = _last_pass(tracker, name) or (last.at if last else None)
        if last is not None and log.champion == now.champion:
            # On record already, by a promotion that came in between and had no time to look.
            found["reason"] = f"Entry {last.number} is verified."
            log = _again(tracker, name, log, now, held, notices, found)
        else:
            log = observe(tracker, name, log, now, held, notices, **found)
    _touch(tracker, name)
    entry = log.last
    assert entry is not None
    alert = None
    if entry.verified is False or entry.champion_to is None:
        alert = _alert(entry, aliases_of(tracker, name))
        _log.error("%s", alert)
    return Seen(name, entry, alert)


def _unseen(log: Log, now: Aliases) -> bool:
    last = log.last
    if log.champion != now.champion:
        return True
    return (
        last is not None
        and last.kind == "observed"
        and last.verified is None
        and bool(now.champion)
    )


def _verified(name: str, now: Aliases, verify: Verify) -> dict[str, Any]:
    if now.champion is None:
        return {"verified": None, "verification": ""}
    try:
        return {"verified": True, "verification": verify(f"models:/{name}/{now.champion}")}
    except LoralineError as error:
        return {"verified": False, "verification": " ".join(str(error).split())[:1000]}


def _again(
    tracker: Tracker,
    name: str,
    log: Log,
    now: Aliases,
    held: Held,
    notices: Notices,
    found: dict[str, Any],
) -> Log:
    last = log.last
    assert last is not None
    entry = log.next(
        kind="observed",
        name=name,
        champion_from=now.champion,
        champion_to=now.champion,
        previous_from=now.previous,
        previous_to=now.previous,
        adapter_sha256=last.adapter_sha256,
        actor=last.actor,
        **found,
    )
    carry_out(tracker, entry, held, notices)
    return settle(tracker, name, held, notices)


def _alert(entry: Entry, now: Aliases) -> str:
    if now.champion is None:
        return (
            f"{entry.name} has no champion: the alias was taken away in MLflow. Whoever loads "
            f"models:/{entry.name}@champion now fails. The way back: "
            f"{way_back(entry.name, None, entry.champion_from or now.previous)}"
        )
    return (
        f"Version {now.champion} is the champion of {entry.name}, set outside of loraline, and does not "
        f"load: {entry.verification} Nothing was undone. The way back: "
        f"{way_back(entry.name, now.champion, now.previous)}"
    )


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


def _pass_file(tracker: Tracker, name: str) -> Path:
    return tracker.home.root / "reconciled" / quote(name, safe="")


def _touch(tracker: Tracker, name: str) -> None:
    path = _pass_file(tracker, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def _last_pass(tracker: Tracker, name: str) -> str | None:
    """When this machine last saw that log and alias agree: the alias was moved after that."""
    try:
        seconds = _pass_file(tracker, name).stat().st_mtime
    except OSError:
        return None
    return datetime.fromtimestamp(min(seconds, time.time()), UTC).isoformat(timespec="seconds")

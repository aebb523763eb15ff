"""What a flow run came to that is begun again: it moves an alias once, and takes nobody's move back unseen."""

from datetime import datetime

from tasks.errors import StageFailed
from tasks.promotion.entry import MOVES
from tasks.promotion.lock import promoting
from tasks.promotion.moving import settle
from tasks.promotion.notices import Notices
from tasks.promotion.promoting import Moved
from tasks.registry import version_of
from tasks.tracking import Tracker


def moved_before(
    tracker: Tracker, name: str, *, flow_run: str | None, asked: datetime, notices: Notices
) -> Moved | None:
    """What this flow run has moved already, completed if need be; None where it has moved nothing.

    Without this a rollback that is repeated, because a server was away after its move, would go back one
    step more. `asked` is when the run began.

    Raises: StageFailed when somebody else moved the champion since: who asked has not seen that.
    """
    with promoting(tracker, name) as held:
        log = settle(tracker, name, held, notices)
    entries = [it.entry for it in log.entries if it.entry is not None]
    withdrawn = {entry.withdraws for entry in entries}
    moves = [it for it in entries if it.kind in MOVES and it.number not in withdrawn]
    for entry in moves:
        if flow_run is not None and entry.flow_run == flow_run and entry.champion_to is not None:
            return Moved(version_of(tracker, name, entry.champion_to), entry, notices.deliver())
    if moves and datetime.fromisoformat((last := moves[-1]).at) > asked:
        raise StageFailed(
            f"While this waited, {last.actor} moved the champion of {name!r} ({last.title}). Nothing more was "
            f"moved; `loraline audit {name}` shows who did what, then decide again."
        )
    return None

"""What a flow run came to that is begun again: it moves an alias once, and takes nobody's move back unseen."""

from dataclasses import dataclass, field
from datetime import UTC, datetime

from tasks.errors import StageFailed
from tasks.promotion.entry import MOVES, Entry
from tasks.promotion.lock import promoting
from tasks.promotion.moving import settle
from tasks.promotion.notices import Notices
from tasks.promotion.promoting import Moved
from tasks.registry import version_of
from tasks.tracking import Tracker


@dataclass
class Asked:
    """What who asked for a move could know of others' moves; one for all attempts of a flow run."""

    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    attempts: int = 0
    seen: int | None = None
    """Number of the newest move (0: none) when the log could first be read; None: it could not yet."""

    def overtaken_by(self, last: Entry | None) -> bool:
        """Whether the newest move was made after this was asked for."""
        number = last.number if last else 0
        if self.seen is not None:
            return number > self.seen
        self.seen = number
        # Clocks of two machines are compared only where an outage hid the log: they may differ.
        waited = self.attempts > 1
        return waited and last is not None and datetime.fromisoformat(last.at) > self.at


def moved_before(
    tracker: Tracker, name: str, *, flow_run: str | None, asked: Asked, notices: Notices
) -> Moved | None:
    """What this flow run has moved already, completed if need be; None where it has moved nothing.

    Without this a rollback that is repeated, because a server was away after its move, would go back one
    step more.

    Raises: StageFailed when somebody else moved the champion since: who asked has not seen that.
    """
    with promoting(tracker, name) as held:
        log = settle(tracker, name, held, notices)
    entries = [it.entry for it in log.entries if it.entry is not None]
    withdrawn = {entry.withdraws for entry in entries}
    changes = [
        it for it in entries if it.champion_from != it.champion_to and it.number not in withdrawn
    ]
    moves = [it for it in changes if it.kind in MOVES]
    last = moves[-1] if moves else None
    own = next((it for it in moves if flow_run is not None and it.flow_run == flow_run), None)
    if own is not None and own.champion_to is not None:
        # What was observed behind an own move was done since, too.
        last = changes[-1]
        if last is own:
            return Moved(version_of(tracker, name, own.champion_to), own, notices.deliver())
    if last is not None and (own is not None or asked.overtaken_by(last)):
        raise StageFailed(
            f"Since this run began, {last.actor} moved the champion of {name!r} ({last.title}). Nothing more was "
            f"moved; `loraline audit {name}` shows who did what, then decide again."
        )
    return None

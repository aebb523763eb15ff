"""Go on with a promotion log that was damaged: by an entry that says who accepted what, and why."""

from tasks.errors import ServerAway, StageFailed, UserError
from tasks.promotion.audit import audit
from tasks.promotion.chain import state_of
from tasks.promotion.entry import Entry, new_id, now
from tasks.promotion.lock import promoting
from tasks.promotion.log import read_head, read_log
from tasks.promotion.moving import aliases_of, carry_out, settle
from tasks.promotion.notices import Notices
from tasks.promotion.promoting import checked_reason
from tasks.tracking import Tracker, current_user

_LONGEST = 1000


def accept(
    tracker: Tracker, name: str, *, reason: str, notices: Notices, actor: str | None = None
) -> Entry:
    """Write the entry behind which the log counts again; what is damaged stays as it is, and is named.

    No alias is moved. What was accepted may not change either: then all of it is a problem again.

    Raises: UserError without a reason, or when nothing is wrong.
    """
    reason = checked_reason(reason)
    with promoting(tracker, name) as held:
        try:
            settle(tracker, name, held, notices)
        except ServerAway:
            raise
        except StageFailed:
            # The damage itself: what was begun behind it is not completed.
            pass
        problems = audit(tracker, name).problems
        if not problems:
            raise UserError(
                f"Nothing is wrong with the promotion log of {name!r}: there is nothing to accept."
            )
        entries = read_log(tracker, name)
        readable = [it for it in entries if it.entry is not None]
        last = readable[-1] if readable else None
        head = read_head(tracker, name)
        aliases = aliases_of(tracker, name)
        champion = last.entry.champion_to if last and last.entry else aliases.champion
        told = "; ".join(f"{it.number or '?'}: {it.told}" for it in problems)
        entry = Entry(
            number=1 + max([head[0] if head else 0, *(it.number or 0 for it in entries)]),
            before=None if last is None else last.content_hash,
            id=new_id(),
            at=now(),
            kind="accepted",
            name=name,
            champion_from=champion,
            champion_to=champion,
            previous_from=aliases.previous,
            previous_to=aliases.previous,
            actor=actor or current_user(),
            reason=reason,
            verification=told if len(told) <= _LONGEST else f"{told[:_LONGEST]} ...",
            accepts=state_of(entries),
        )
        carry_out(tracker, entry, held, notices)
    notices.deliver()
    return entry

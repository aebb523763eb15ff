"""What of the promotion log must hold: all of it, or what came after a damage that a person has accepted."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from tasks.errors import StageFailed
from tasks.promotion.log import Logged
from tasks.store import digest


@dataclass(frozen=True)
class Chain:
    """The log, split at its newest acceptance that still holds."""

    accepted: Sequence[Logged]
    """As they stood when somebody accepted them; empty where nobody had to."""
    current: Sequence[Logged]
    """What must hold, the accepting entry first."""
    acceptance: Logged | None = None
    """The entry that accepts those before it."""


def chain_of(entries: Sequence[Logged]) -> Chain:
    """Split the log. An acceptance of what has changed since counts for nothing."""
    for it in reversed(entries):
        entry = it.entry
        if entry is None or entry.kind != "accepted" or it.content_hash != it.hash:
            continue
        before = [one for one in entries if one.number is None or one.number < entry.number]
        if state_of(before) == entry.accepts:
            rest = [one for one in entries if one not in before and one is not it]
            return Chain(before, [it, *rest], it)
    return Chain([], list(entries))


def state_of(entries: Sequence[Logged]) -> str:
    """sha256 (hex) of entries as MLflow holds them, damaged ones and twins too."""
    held = [one for it in entries for one in (it, *it.twins)]
    return digest(
        sorted([it.run_id, it.hash or "", it.content_hash or "", it.deleted] for it in held)
    )


def sound_end(
    entries: Sequence[Logged], head: tuple[int, str] | None, name: str
) -> Sequence[Logged]:
    """The entries that can be read, once it is known that the next one is not bound to a damage.

    `head` is what the registered model knows as the newest. Between an entry that is not done yet and
    the last one that is, it may be any: it is noted just before the end.

    Raises: StageFailed when one cannot be read, or the end is not what was written.
    """
    chain = chain_of(entries)
    current = chain.current
    unreadable = [it for it in current if it.entry is None]
    if unreadable:
        raise _damaged(
            name,
            f"has {len(unreadable)} entr{'y' if len(unreadable) == 1 else 'ies'} that cannot be read "
            f"(MLflow run {unreadable[0].run_id})",
        )
    done = [place for place, it in enumerate(current) if it.done]
    tail = current[done[-1] :] if done else current
    for it in tail:
        if it.content_hash != it.hash:
            raise _damaged(name, f"was altered: entry {it.number} (MLflow run {it.run_id})")
    for first, second in pairwise(tail):
        if second.entry is not None and second.entry.before != first.content_hash:
            raise _damaged(
                name, f"was altered: entry {second.number} is not bound to the one before"
            )
    if head not in {(it.number, it.content_hash) for it in tail} and (
        done or (head is not None and chain.acceptance is None)
    ):
        raise _damaged(
            name,
            f"ends with {f'entry {tail[-1].number}' if tail else 'no entry'}, and the registered model "
            f"knows {'none' if head is None else f'entry {head[0]} ({head[1][:12]})'} as the newest",
        )
    return [it for it in entries if it.entry is not None]


def _damaged(name: str, what: str) -> StageFailed:
    return StageFailed(
        f"The promotion log of {name!r} {what}. Nothing was moved. `loraline audit {name}` names what was "
        "altered or is missing. Restore it from a backup of MLflow's database, or go on with what is "
        f"there: `loraline audit {name} --accept --reason '...'`, and the log says so."
    )

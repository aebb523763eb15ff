"""Verify the promotion log's chain of hashes, and name the first entry that was altered or is missing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tasks.promotion.chain import chain_of
from tasks.promotion.entry import Entry
from tasks.promotion.log import Logged, read_head, read_log
from tasks.promotion.moving import aliases_of
from tasks.registry import CHAMPION
from tasks.tracking import Tracker


@dataclass(frozen=True)
class Problem:
    """What is wrong with one entry."""

    number: int | None
    told: str


@dataclass(frozen=True)
class Audit:
    """The log as it stands."""

    entries: Sequence[Entry]
    """Those that can be read, oldest first."""
    problems: Sequence[Problem]
    """In the order of the entries: the first is the one to look at."""
    notes: Sequence[str]
    """What is unfinished but not wrong."""


def audit(tracker: Tracker, name: str) -> Audit:
    """Check every entry against its own hash, the one before, and what the registered model knows of the end."""
    logged = read_log(tracker, name)
    chain = chain_of(logged)
    accepting = chain.acceptance
    readable = [it for it in chain.current if it.entry is not None]
    problems = [
        *_unreadable(chain.current),
        *_chain(readable, accepting),
        *_end(readable, read_head(tracker, name)),
    ]
    problems.sort(key=lambda it: (it.number is None, it.number or 0))
    return Audit(
        entries=[it.entry for it in logged if it.entry],
        problems=problems,
        notes=[*_acceptance(accepting), *_notes(tracker, name, readable)],
    )


def _acceptance(accepting: Logged | None) -> Iterator[str]:
    entry = None if accepting is None else accepting.entry
    if entry is not None:
        yield (
            f"What stands before entry {entry.number} was damaged, and {entry.actor} accepted it as it "
            f"stood ({entry.at}): {entry.reason} What was wrong: {entry.verification}"
        )


def _unreadable(logged: Sequence[Logged]) -> Iterator[Problem]:
    for it in logged:
        if it.entry is None:
            yield Problem(it.number, f"its text is missing or damaged (MLflow run {it.run_id})")


def _chain(readable: Sequence[Logged], accepting: Logged | None) -> Iterator[Problem]:
    before: Logged | None = None
    for it in readable:
        entry = it.entry
        assert entry is not None
        run = f"MLflow run {it.run_id}"
        if it.deleted:
            yield Problem(
                entry.number,
                f"somebody deleted it; `mlflow runs restore --run-id {it.run_id}` brings it back",
            )
        if it.content_hash != it.hash:
            yield Problem(
                entry.number,
                f"it was altered: its text gives {_short(it.content_hash)}, recorded is {_short(it.hash)} ({run})",
            )
        if it is accepting:
            before = it
            continue
        expected = 1 if before is None or before.number is None else before.number + 1
        if entry.number > expected:
            missing = (
                f"{expected}"
                if entry.number == expected + 1
                else f"{expected} to {entry.number - 1}"
            )
            yield Problem(
                expected, f"missing: the log goes on with {entry.number} (gap: {missing})"
            )
        elif entry.number < expected:
            yield Problem(entry.number, f"there are two entries of this number ({run})")
        elif before is not None and entry.before != before.content_hash:
            # Its own hash is right, so whoever altered it renewed that, too.
            wrong = before if before.content_hash == before.hash else None
            if wrong is not None:
                yield Problem(
                    wrong.number,
                    f"it was altered, or its successor was: entry {entry.number} is bound to "
                    f"{_short(entry.before)}, and its text gives {_short(wrong.content_hash)} (MLflow run {wrong.run_id})",
                )
        elif before is None and entry.before is not None:
            yield Problem(entry.number, f"it is bound to an entry that is not there ({run})")
        elif (
            before is not None and before.entry and entry.champion_from != before.entry.champion_to
        ):
            yield Problem(
                entry.number,
                f"it begins with champion {entry.champion_from}, and the entry before ended with "
                f"{before.entry.champion_to} ({run})",
            )
        before = it


def _end(readable: Sequence[Logged], head: tuple[int, str] | None) -> Iterator[Problem]:
    last = readable[-1] if readable else None
    if head is None:
        if last is not None and last.done:
            yield Problem(
                last.number, "the registered model no longer names it as the newest entry"
            )
        return
    number, sha = head
    if last is None or last.number is None or last.number < number:
        first = 1 if last is None or last.number is None else last.number + 1
        yield Problem(first, f"missing: the registered model knows {number} entries")
    elif last.number == number and sha != last.content_hash:
        yield Problem(
            number,
            f"it was altered: the registered model knows it as {_short(sha)}, its text gives "
            f"{_short(last.content_hash)} (MLflow run {last.run_id})",
        )
    elif last.number > number and last.done:
        yield Problem(number + 1, "the registered model does not know it: it was added by hand")


def _notes(tracker: Tracker, name: str, readable: Sequence[Logged]) -> Iterator[str]:
    last = readable[-1] if readable else None
    if last is not None and last.entry is not None and not last.done:
        yield (
            f"Entry {last.number} was begun and is not complete; the next promotion, rollback or "
            "reconciling run completes it."
        )
        return
    champion = aliases_of(tracker, name).champion
    known = last.entry.champion_to if last is not None and last.entry is not None else None
    if champion != known:
        yield (
            f"The alias `{CHAMPION}` names {f'version {champion}' if champion else 'no version'}, the log "
            f"{f'version {known}' if known else 'none'}: somebody moved it elsewhere. The reconciling run, "
            "or the next promotion, writes that down."
        )


def _short(sha: str | None) -> str:
    return (sha or "nothing")[:12]

"""At most one stack on a PostgreSQL: a lock in Prefect's database, which the Prefect server's process holds.

Two would undo each other's work: each retires the schedules of recipes that only the other one has, puts its
own times back, and takes runs from the pools of both.
"""

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.stack.databases import PREFECT_DATABASE, database_address, server_place
from flows.stack.exposure import NO_RESTART
from flows.stack.settings import POSTGRES
from tasks.advisory_lock import AdvisoryLock
from tasks.errors import LoralineError, ServerAway, StageFailed, UserError
from tasks.home import Home

CHECK_SECONDS = 5.0
"""So long at most nobody has the lock after PostgreSQL was started again."""
GONE_SECONDS = 60.0
"""Longer than PostgreSQL takes to notice that the machine of a session lost power."""
_NAME_LENGTH = 63
"""What PostgreSQL keeps of an application's name."""
Say = Callable[[str], None]


@contextmanager
def only_stack(home: Home, server: str, say: Say) -> Iterator[None]:
    """Keep other stacks from the databases while the block lasts; nobody is kept where `server` is empty.

    No process of this home's stack may run. Raises: UserError naming the stack that is at work there.
    """
    if not server:
        yield
        return
    lock = _lock(home, server)
    if not lock.acquire():
        holder, address = lock.holder()
        if holder not in ("", _name(home)):
            raise _refusal(server, holder, address)
        say("Waiting for PostgreSQL to notice that this home's last stack is gone.")
        if not lock.acquire(GONE_SECONDS):
            raise StageFailed(
                f"PostgreSQL at {server_place(server)}, or a proxy before it, still has the session of this "
                "home's last stack, which ended without a word. It notices that in minutes: `loraline up` again. "
                "An administrator ends it at once with pg_terminate_backend. "
                f"It is connected from {address or 'this machine'}: where that is a copy of this machine, at work "
                "with a copy of this home, end one of both instead."
            )
    try:
        yield
    finally:
        lock.close()


def hold(home: Home, server: str, say: Say) -> None:
    """Take the lock, when it is free, and keep it until this process ends, however it does.

    A connection that breaks later, as when PostgreSQL is started again, ends nothing: the lock is taken again.
    """
    lock = _lock(home, server)
    told = ""
    while why := _why_not(lock):
        if why != told:
            say(f"waiting for {why}")
            told = why
        time.sleep(0.5)
    threading.Thread(target=_keep, args=(lock, _name(home), say), daemon=True).start()


def _keep(lock: AdvisoryLock, own: str, say: Say) -> None:
    told = False
    while True:
        time.sleep(CHECK_SECONDS)
        try:
            if lock.still_held():
                told = False
                continue
            holder, address = lock.holder()
            # Our own session before a broken connection lives on for some seconds.
            if holder not in ("", own) and not told:
                say(f"{holder} {address} has taken this stack's databases; stop one of both")
                told = True
        except LoralineError:
            # Prefect says in its own words that its database is away.
            continue


def _why_not(lock: AdvisoryLock) -> str:
    """What keeps the lock from us; empty when it is taken."""
    try:
        return "" if lock.acquire() else f"the stack {' '.join(lock.holder())} to end"
    except ServerAway as error:
        return f"PostgreSQL: {error}"


def _lock(home: Home, server: str) -> AdvisoryLock:
    address = database_address(server, PREFECT_DATABASE)
    return AdvisoryLock(address, "loraline stack", application=_name(home))


def _name(home: Home) -> str:
    """`machine:home` as PostgreSQL shows it; of a long path the end, which tells homes apart."""
    machine = _machine()
    root = str(home.root).encode("ascii", "replace").decode()
    room = _NAME_LENGTH - len(machine) - 1
    return f"{machine}:{root if len(root) <= room else '...' + root[3 - room :]}"


def _machine() -> str:
    """Its name, and what tells it from another of this name: machines are often made of one image."""
    name = os.uname().nodename[:24]
    try:
        installed = Path("/etc/machine-id").read_text().strip()
    except OSError:
        return name
    # Never as it is, says its manual.
    return f"{name}#{hashlib.sha256(f'loraline {installed}'.encode()).hexdigest()[:8]}"


def _refusal(server: str, holder: str, address: str) -> UserError:
    machine, _, root = holder.partition(":")
    where = f" (connected from {address})" if address else ""
    error = UserError(
        f"PostgreSQL at {server_place(server)} has a stack already: that of {root} on the machine "
        f"{machine}{where}. Two would retire each other's schedules and take each other's runs. Nothing was "
        f"started. End that one with `loraline down --home {root}` on its machine, and for good with "
        "`systemctl --user disable --now loraline.service` where a unit starts it (`systemctl --user "
        f"list-unit-files 'loraline*'` names another home's); or give this one a PostgreSQL of its own ({POSTGRES})."
    )
    # Else the unit of a machine that was replaced would take over while the new one is started again.
    error.exit_code = NO_RESTART
    return error

"""PostgreSQL's advisory lock as an object that is asked, and not waited for."""

import hashlib
import os
from typing import Any
from urllib.parse import urlsplit

from tasks.addresses import WHAT_TO_ENCODE, is_ambiguous, with_signs_encoded, without_passwords
from tasks.database_outage import is_database_away
from tasks.errors import ServerAway, StageFailed, UserError

_SETTINGS = """
SET LOCAL idle_in_transaction_session_timeout = 0;
SET LOCAL tcp_keepalives_idle = 10;
SET LOCAL tcp_keepalives_interval = 5;
SET LOCAL tcp_keepalives_count = 3
"""
"""The server's side of the connection: a machine that is switched off must not keep the lock for hours."""
_HOLDER = """
SELECT application_name, coalesce(host(client_addr), '') FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND database = datid AND datname = current_database()
AND (classid::bigint << 32) | objid::bigint = %s
"""


class AdvisoryLock:
    """The lock of one text. It lives in a transaction: poolers hand one session to many clients.

    A transaction that is idle at READ COMMITTED has no snapshot and no id, so that it keeps no vacuum
    from its work, however many hours it stands.
    """

    def __init__(self, database: str, text: str, *, application: str | None = None) -> None:
        """`database`: `postgresql://...`. Nothing is connected before the lock is asked for.

        `application` is what the server's lists of sessions show. Default: `text`.
        """
        self._database, self._text = with_signs_encoded(database), text
        self._application = application or text
        self._connection: Any = None

    @property
    def key(self) -> int:
        """The 64-bit number of the lock: the same on every machine, whatever it calls the server."""
        return int.from_bytes(hashlib.sha256(self._text.encode()).digest()[:8], "big", signed=True)

    @property
    def shown(self) -> str:
        """The server, for a person."""
        return urlsplit(self._database).hostname or os.environ.get("PGHOST") or "the local socket"

    def acquire(self, wait_seconds: float = 0.0) -> bool:
        """Take the lock, or give up after `wait_seconds`.

        Raises: UserError without the driver, or for an address that can be read in several ways; ServerAway
        when the server cannot be reached; StageFailed when it refuses.
        """
        self._refuse_ambiguous()
        try:
            import psycopg
        except ImportError as error:
            raise UserError(
                "The stack is on PostgreSQL, and its driver is missing: pip install 'loraline[postgresql]'"
            ) from error
        try:
            self._connection = psycopg.connect(
                self._database,
                connect_timeout=10,
                # That the server's machine is gone is noticed within half a minute.
                keepalives_idle=10,
                keepalives_interval=5,
                keepalives_count=3,
                application_name=self._application[:63],
            )
            self._connection.execute(_SETTINGS)
            # 0 would mean for ever.
            milliseconds = max(1, round(1000 * wait_seconds))
            self._connection.execute(f"SET LOCAL lock_timeout = {milliseconds:d}")
            # Without parameters it is a simple query. Those of others keep their snapshot while nobody asks more.
            self._connection.execute(f"SELECT pg_advisory_xact_lock({self.key:d})")
        except psycopg.errors.LockNotAvailable:
            self.close()
            return False
        except psycopg.Error as error:
            self.close()
            raise self._failed(error) from None
        return True

    def holder(self) -> tuple[str, str]:
        """The `application` of who has the lock, and the address it is connected from; empty where nobody has.

        Raises: as `acquire`.
        """
        import psycopg

        self._refuse_ambiguous()
        try:
            with psycopg.connect(self._database, connect_timeout=10) as connection:
                found = connection.execute(_HOLDER, (self.key,)).fetchone()
        except psycopg.Error as error:
            raise self._failed(error) from None
        return (str(found[0]), str(found[1])) if found else ("", "")

    def answers(self) -> bool:
        """Whether the connection that holds the lock stands."""
        import psycopg

        if self._connection is None:
            return False
        try:
            self._connection.execute("SELECT 1")
        except psycopg.Error:
            return False
        return True

    def still_held(self) -> bool:
        """Whether nobody else has it by now: where the connection broke, it is taken again if it is free."""
        if self.answers():
            return True
        self.close()
        return self.acquire()

    def close(self) -> None:
        """End the transaction, and with it the lock."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _refuse_ambiguous(self) -> None:
        """Before the driver has it: that one's words about such an address have a part of the password."""
        if is_ambiguous(self._database):
            raise UserError(
                "The address of the PostgreSQL whose lock keeps others away (LORALINE_LOCK_DATABASE, else that "
                f"of MLflow's or the stack's database) cannot be read as one. {WHAT_TO_ENCODE} Nothing was begun."
            )

    def _failed(self, error: Exception) -> StageFailed:
        kind, what = (
            (ServerAway, "cannot be reached")
            if is_database_away(error)
            else (StageFailed, "refuses")
        )
        return kind(
            f"PostgreSQL at {self.shown}, whose lock keeps others away, {what} "
            f"({without_passwords(str(error).strip())}). Nothing was begun. Mend "
            "LORALINE_LOCK_DATABASE or the server."
        )

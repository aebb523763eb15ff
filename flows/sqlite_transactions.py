"""Prefect's server on SQLite: its transactions wait for each other, where they would fail at once.

Prefect begins most of them DEFERRED. One that has read and then writes cannot wait for another that wrote in
between: SQLite refuses it with "database is locked" (sqlite.org/isolation.html), whatever its time-out, the
server answers 503, and a worker's heartbeat is lost. Prefect begins some IMMEDIATE for that reason; here all are.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any


def begin_in_turn() -> None:
    """Change Prefect in this process. To be called before its server starts; PostgreSQL is not concerned."""
    from prefect.server.database import configurations

    @asynccontextmanager
    async def begin(
        _: Any, session: Any, with_for_update: bool = False
    ) -> AsyncGenerator[Any, None]:
        async with session.begin() as transaction:
            mode = configurations.SQLITE_BEGIN_MODE.set("IMMEDIATE")
            try:
                # Begins here: what is asked inside the block by other sessions is none of this transaction.
                await session.connection()
            finally:
                configurations.SQLITE_BEGIN_MODE.reset(mode)
            yield transaction

    configurations.AioSqliteConfiguration.begin_transaction = begin  # type: ignore[assignment, method-assign]

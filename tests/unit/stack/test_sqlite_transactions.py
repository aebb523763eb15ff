"""Two of Prefect's transactions that read and then write, at the same time: both are done."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
BOTH = """
import asyncio, sys
import sqlalchemy as sa
from prefect.server.database.configurations import AioSqliteConfiguration
from flows.sqlite_transactions import begin_in_turn

if sys.argv[2] == "in turn":
    begin_in_turn()
database = AioSqliteConfiguration(connection_url=sys.argv[1])

async def raise_by_one(engine):
    async with await database.session(engine) as session:
        async with database.begin_transaction(session):
            (found,) = (await session.execute(sa.text("SELECT n FROM t"))).one()
            # What another session reads in between is no part of the transaction, and waits for nobody.
            async with await database.session(engine) as other:
                await other.execute(sa.text("SELECT n FROM t"))
            await asyncio.sleep(0.2)
            await session.execute(sa.text(f"UPDATE t SET n = {found + 1}"))

async def main():
    engine = await database.engine()
    async with engine.begin() as connection:
        await connection.execute(sa.text("CREATE TABLE t (n INTEGER)"))
        await connection.execute(sa.text("INSERT INTO t VALUES (0)"))
    ends = await asyncio.gather(*(raise_by_one(engine) for _ in range(5)), return_exceptions=True)
    async with engine.connect() as connection:
        print(sum(end is not None for end in ends), (await connection.execute(sa.text("SELECT n FROM t"))).scalar())

asyncio.run(main())
"""


@pytest.mark.parametrize(("how", "failed", "raised"), [("in turn", 0, 5), ("as it is", 4, 1)])
def test_transactions_that_read_and_write_wait_for_each_other(
    tmp_path: Path, how: str, failed: int, raised: int
) -> None:
    """As Prefect has it, all but one are refused: should that change, this change of ours can go."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", BOTH, f"sqlite+aiosqlite:///{tmp_path / 'a.db'}", how],
        env={"PYTHONPATH": str(ROOT), "PREFECT_HOME": str(tmp_path), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == [str(failed), str(raised)], done.stderr[-3000:]

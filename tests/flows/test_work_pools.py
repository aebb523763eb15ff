"""What a real Prefect server answers about a work pool that is not there."""

from uuid import uuid4

from flows.stack.api import PrefectApi


def test_a_pool_that_is_not_there_has_no_workers_and_is_no_error(api: PrefectApi) -> None:
    pool = f"pool-{uuid4()}"
    assert api.workers(pool) is None
    api.ask("POST", "/work_pools/", {"name": pool, "type": "process"})
    assert api.workers(pool) == []
    api.ask("DELETE", f"/work_pools/{pool}")
    assert api.workers(pool) is None

"""What the lock says of its database holds no password, and no part of one."""

import pytest

from tasks.advisory_lock import AdvisoryLock
from tasks.errors import StageFailed, UserError


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://me:pa@geheim@127.0.0.1:9/x",
        "postgresql://me:Zk9/geheim@127.0.0.1:9/x",
        "postgresql://me:100%geheim@127.0.0.1:9/x",
        "postgresql://me:my geheim@127.0.0.1:9/x",
        "postgresql://127.0.0.1?password=a@geheim",
    ],
)
def test_an_address_that_can_be_read_in_several_ways_reaches_no_driver(address: str) -> None:
    lock = AdvisoryLock(address, "a test")
    for ask in (lock.acquire, lock.holder):
        with pytest.raises(UserError, match="Percent-encode") as refused:
            ask()
        assert "geheim" not in str(refused.value)
        assert refused.value.__context__ is None


@pytest.mark.parametrize("password", ["a#geheim", "a?geheim", "a[geheim", "a]geheim", "plain"])
def test_signs_that_drivers_take_as_they_stand_are_no_mistake(password: str) -> None:
    psycopg = pytest.importorskip("psycopg")
    address = f"postgresql://me:{password}@127.0.0.1:9/x"
    lock = AdvisoryLock(address, "a test")
    assert lock.shown == "127.0.0.1"
    read = psycopg.conninfo.conninfo_to_dict
    assert read(lock._database) == read(address)
    with pytest.raises(StageFailed, match=r"127\.0\.0\.1") as away:
        lock.acquire()
    assert "geheim" not in str(away.value)


def test_a_server_that_is_away_is_told_without_the_password_of_its_parameters() -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(StageFailed, match=r"127\.0\.0\.1") as away:
        AdvisoryLock("postgresql://127.0.0.1:9/x?password=geheim", "a test").acquire()
    assert "geheim" not in str(away.value)

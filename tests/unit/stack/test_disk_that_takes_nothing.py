"""A disk that is full, or that the kernel made read-only: parts start, the watchdog lives, alerts are sent."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.flows.test_disk import own_disk

ON_IT = """
import logging, subprocess, sys
from pathlib import Path

from flows.server_lock import ServerLock
from flows.stack.alerts import Alert, Alerts, memory_of
from flows.stack.part_process import count_start
from flows.stack.settings import folder
from flows.watchdog import Check, watch
from tasks.home import Home
from tasks.promotion.notices import notices_of

home, api, spoil = sys.argv[1:]
state = Home(Path(home))
notices = notices_of(state, prefect_api=api, environ={})
logging.basicConfig(level=logging.WARNING, format="%(message)s")
Alerts(memory_of(state), notices)
count_start(state, "watchdog")
lock = ServerLock(state)
assert lock.acquire("before")
lock.release()
subprocess.run(["bash", "-c", spoil], stderr=subprocess.DEVNULL)

assert count_start(state, "watchdog").count == 2
if "remount" not in spoil:
    assert lock.acquire("after")
alerts = Alerts(memory_of(state), notices)
told = []
look = Check("news", 0, lambda: told.append(alerts.tell(Alert("failed", "one", "a", "It failed."))))
watch([look], folder(state) / "watchdog.json", rounds=3, sleep=lambda _: None)
assert told == [True, False, False], told
"""


@pytest.mark.skipif(bool(own_disk()), reason=own_disk() or "it can")
@pytest.mark.parametrize(
    "spoil", ['mount -o remount,ro "$DISK"', 'cat /dev/zero > "$DISK/somebody-else"']
)
def test_a_part_starts_the_watchdog_goes_round_and_an_alert_is_sent_once(
    prefect: Any, tmp_path: Path, spoil: str
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(
        [
            *("unshare", "-rm", "bash", "-ec"),
            f'export DISK={disk}; mount -t tmpfs -o size=1m tmpfs "$DISK"; exec "$@"',
            *("bash", sys.executable, "-P", "-c", ON_IT, str(disk), prefect.url, spoil),
        ],
        cwd=Path(__file__).resolve().parents[3],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert [event["payload"]["text"] for event in prefect.events] == ["It failed."]
    # Said once, and not in each round.
    assert done.stderr.count("could not be made") == ("remount" in spoil), done.stderr

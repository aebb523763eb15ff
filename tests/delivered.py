"""Wait for what a busy Prefect server did not take at once, before a test looks for it there."""

import time

from tasks import late


def all_delivered(seconds: float = 60) -> None:
    """Return once nothing waits to be delivered later by this process."""
    deadline = time.monotonic() + seconds
    while late._late._waiting:
        assert time.monotonic() < deadline, list(late._late._waiting)
        time.sleep(0.1)

"""Let a run of a deployment wait for a server that is away, and say in the run's log what it waits for."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from prefect import get_run_logger

from flows.unattended import unattended
from tasks.outage import SECONDS_BETWEEN, bridged

T = TypeVar("T")


def bridged_run(
    attempt: Callable[[], T], *, doing: str, seconds: Sequence[float] = SECONDS_BETWEEN
) -> T:
    """Call `attempt`, and again while an outage is what stops it; who calls the flow by hand is told at once.

    `attempt` must be one that may be begun again. Raises: as `bridged`.
    """
    if unattended() is None:
        return attempt()
    return bridged(attempt, doing=doing, seconds=seconds, say=get_run_logger().warning)

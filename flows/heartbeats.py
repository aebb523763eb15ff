"""Prefect's heartbeats, which tell a server that a run lives: not for a run that somebody waits for."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_heartbeats() -> Iterator[None]:
    """Flows in the block send none, unless the user set a frequency.

    Whoever gave the command sees how it ends, the watchdog looks at processes, and an automation that
    waits for the next heartbeat begins with the first. With them a flow that is no coroutine ends at a
    whole second after its start, when their thread wakes: up to a second of nothing.
    """
    from prefect.settings import (
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        get_current_settings,
        temporary_settings,
    )

    if "heartbeat_frequency" in get_current_settings().flows.model_fields_set:
        yield
        return
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield

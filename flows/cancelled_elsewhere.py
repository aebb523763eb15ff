"""Heed Prefect's Cancel, and Delete, in a run of a command line: no worker is there to end its process."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from uuid import UUID

LOOK_SECONDS = 5.0
"""Between two questions: with a step and a checkpoint the training is gone within half a minute."""
_log = logging.getLogger(__name__)


@contextmanager
def heeding_cancellation(
    runs: Callable[[], Iterable[str]], say: Callable[[str], None]
) -> Iterator[None]:
    """Stop this process as Ctrl-C does, once, when one of its flow runs is to be cancelled, or was deleted.

    `runs` gives their ids. A server that is away is asked again.
    """
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=(over, runs, say), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(LOOK_SECONDS)


def _watch(
    over: threading.Event, runs: Callable[[], Iterable[str]], say: Callable[[str], None]
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    while not over.wait(LOOK_SECONDS):
        if not (begun := list(runs())):
            continue
        with get_client(sync_client=True) as client:
            while not over.wait(LOOK_SECONDS):
                try:
                    states = [client.read_flow_run(UUID(run)).state for run in begun]
                    cancelled = any(it is not None and it.is_cancelling() for it in states)
                    done = "cancelled" if cancelled else ""
                except ObjectNotFound:
                    # So a proxy answers, too, while its server starts anew: whatever it is asked.
                    done = "" if client.api_healthcheck() else "deleted"
                except Exception:
                    _log.debug("Prefect does not say whether this run is to go on", exc_info=True)
                    continue
                if done:
                    say(f"Somebody {done} this run in Prefect.")
                    # For Prefect, which listens to SIGTERM itself, that is how a run is crashed.
                    os.kill(os.getpid(), signal.SIGINT)
                    return

"""Return to the machine what a process that stays for months no longer uses."""

import ctypes
import gc
import threading
import time

SECONDS_BETWEEN = 60.0


def keep_returning() -> None:
    """Start a thread that does so each minute, for as long as this process lives."""
    threading.Thread(target=_keep_returning, name="unused memory", daemon=True).start()


def _keep_returning() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    time.sleep(SECONDS_BETWEEN)
    # Each client of Prefect's API that a run leaves behind holds 2 MB of certificates, in memory of which Python's
    # collector does not know: among all that a server has imported, it would look for the few objects of a client
    # after hundreds of runs. What there is now is needed to the end; without it a look takes a millisecond.
    gc.collect()
    gc.freeze()
    while True:
        gc.collect()
        if trim is not None:
            # Without it the heaps of threads keep the most that they ever held, each for itself.
            trim(0)
        time.sleep(SECONDS_BETWEEN)

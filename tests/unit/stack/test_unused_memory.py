"""A process that stays: what is left behind in it goes, and its memory goes back to the machine."""

import ctypes
import subprocess
import sys

import pytest

BEGIN = """
import collections, gc, resource, sys, time
from pathlib import Path
from flows import unused_memory

def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6

def begin():
    if sys.argv[1] == "with":
        unused_memory.SECONDS_BETWEEN = 0.2
        unused_memory.keep_returning()
"""
CYCLES = """
alive = most = 0

class Client:
    def __init__(self):
        global alive
        alive, self.itself = alive + 1, self

    def __del__(self):
        global alive
        alive -= 1

imported = [{"n": [n]} for n in range(1_000_000)]
begin()
until = time.monotonic() + 60
while sys.argv[1] == "with" and not gc.get_freeze_count():
    assert time.monotonic() < until
    time.sleep(0.05)
# In use for so long that no young collection finds it dead.
used = collections.deque(maxlen=3000)
for _ in range(400_000):
    used.append(Client())
    most = max(most, alive)
print(most)
"""
HEAP = """
begin()
most = [bytes(2000) for _ in range(50_000)]
# What lies highest keeps all below it, where nobody asks for it back.
most, highest = None, most[-1]
until = time.monotonic() + (10 if sys.argv[1] == "with" else 0)
while resident_mb() > 80 and time.monotonic() < until:
    time.sleep(0.05)
print(resident_mb())
"""


def said(code: str, how: str) -> float:
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + code, how], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def test_clients_that_are_left_behind_are_found_among_all_that_was_imported() -> None:
    assert said(CYCLES, "without") > 100_000
    assert said(CYCLES, "with") < 70_000


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not glibc")
def test_what_is_free_goes_back_to_the_machine() -> None:
    assert said(HEAP, "without") > 100
    assert said(HEAP, "with") < 80

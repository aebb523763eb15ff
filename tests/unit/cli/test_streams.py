"""Standard output belongs to the answer, whoever else writes there."""

import subprocess
import sys

NOISY = """
import ctypes, os, subprocess, sys
from flows.streams import own_standard_output
with own_standard_output() as answer:
    print("python")
    os.write(1, b"descriptor\\n")
    subprocess.run([sys.executable, "-c", "print('child')"])
    ctypes.CDLL(None).puts(b"c library")
    ctypes.CDLL(None).fflush(None)
    answer.write("the answer\\n")
print("after")
"""


def test_only_the_answer_reaches_standard_output() -> None:
    done = subprocess.run([sys.executable, "-P", "-c", NOISY], capture_output=True, text=True)
    assert done.stdout == "the answer\nafter\n"
    for writer in ("python", "descriptor", "child", "c library"):
        assert writer in done.stderr

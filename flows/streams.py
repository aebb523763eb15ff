"""Keep standard output for what the command answers; everything that libraries print goes to stderr."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


@contextmanager
def own_standard_output() -> Iterator[TextIO]:
    """Yield the real standard output; file descriptor 1 is standard error inside the block.

    The descriptor and not only `sys.stdout` is moved: C libraries and child processes write there.
    """
    sys.stdout.flush()
    saved = os.dup(1)
    python_stdout = sys.stdout
    # The yielded file is line buffered, so a crash cannot swallow a whole answer.
    answer = os.fdopen(os.dup(saved), "w", encoding="utf-8", buffering=1)
    try:
        os.dup2(2, 1)
        sys.stdout = sys.stderr
        yield answer
    finally:
        try:
            answer.close()
        finally:
            sys.stdout = python_stdout
            os.dup2(saved, 1)
            os.close(saved)

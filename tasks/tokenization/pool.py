"""Tokenize chunks on all cores: here, and in processes that are started afresh and talk over pipes.

Never by fork: a fork of a process in which Rust threads encode, or Prefect's run, inherits their
locks and waits forever. Nor by `multiprocessing`'s spawn, which runs the caller's main module again.
"""

import sys
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path

from tasks.cores import available_cores
from tasks.memory import available_bytes
from tasks.tokenization.chunks import Answer, Chunk, ChunkTokenizer, Setup
from tasks.tokenization.process import Process

PAYS_FROM_BYTES = 12_000_000
"""Below, this process is done before another has read the libraries and a large tokenizer."""
WORKER_MEMORY_BYTES = 600_000_000
"""Free memory for each process: a large tokenizer twice, a chunk of long rows, the libraries."""
AHEAD = 3
"""Chunks that a process has at hand, so that it works on while this one is busy with its own."""
WAITING = 8
"""Answers that are held, beside those still asked for, until it is their turn."""


def workers_for(size: int) -> int:
    """How many processes beside this one pay for `size` bytes of rows."""
    if size < PAYS_FROM_BYTES:
        return 0
    return max(0, min(available_cores() - 1, size // PAYS_FROM_BYTES, _room_for()))


def _room_for() -> int:
    """Processes for which memory is free; as many as wanted where the system does not say."""
    free = available_bytes()
    return sys.maxsize if free is None else free // WORKER_MEMORY_BYTES


class Pool:
    """Processes that tokenize beside this one; a context manager, which ends them."""

    def __init__(self, count: int, folder: Path) -> None:
        """Start them. They load their libraries while this process looks at the tokenizer.

        A folder that they hand rows over in is made below `folder`, and deleted at the end.
        """
        self._scratch = tempfile.TemporaryDirectory(prefix=".rows.", dir=folder)
        self._processes = [
            Process(Path(self._scratch.name) / str(number)) for number in range(count)
        ]

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.stop()
        self._scratch.cleanup()

    def map(
        self, chunks: Iterable[Chunk], setup: Setup, here: ChunkTokenizer | None = None
    ) -> Iterator[Answer]:
        """The answer to each chunk, in order; few chunks are read ahead, so memory stays flat.

        `here` tokenizes in this process what the others cannot take at once.

        Raises: WorkerFailed when a process dies or fails; EncodersDisagree.
        """
        pending: deque[Future[Answer]] = deque()
        most = AHEAD * len(self._processes) + (WAITING if here else 0)
        for chunk in chunks:
            while True:
                if len(pending) > most:
                    yield pending.popleft().result()
                elif free := self._free():
                    pending.append(free.ask(setup, chunk))
                    break
                elif here is None or (pending and pending[0].done()):
                    yield pending.popleft().result()
                else:
                    pending.append(_answered(here, chunk))
                    break
        while pending:
            yield pending.popleft().result()

    def _free(self) -> Process | None:
        """The process with the fewest chunks at hand, if it can take another."""
        least = min(self._processes, key=lambda process: process.unanswered, default=None)
        return least if least is not None and least.unanswered < AHEAD else None


def _answered(here: ChunkTokenizer, chunk: Chunk) -> Future[Answer]:
    future: Future[Answer] = Future()
    future.set_result(here.tokenize(chunk))
    return future

"""Tokenize chunks on all cores, by processes that are started afresh and talk over pipes.

Never by fork: a fork of a process in which Rust threads encode, or Prefect's run, inherits their
locks and waits forever. Nor by `multiprocessing`'s spawn, which runs the caller's main module again.
"""

import queue
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from tasks.cores import available_cores
from tasks.errors import WorkerFailed
from tasks.launch import module
from tasks.tokenization.chunks import Setup
from tasks.tokenization.encoder import EncodersDisagree
from tasks.tokenization.tally import Tally
from tasks.tokenization.worker import receive, send

PAYS_FROM_BYTES = 24_000_000
"""Below, a start of about a second (imports, a large tokenizer) costs more than it saves."""
WORKER_MEMORY_BYTES = 600_000_000
"""Free memory for each process: a large tokenizer twice, a chunk of long rows, the libraries."""

Chunk = tuple[str, list[bytes]]
"""A side and lines of its file."""
Answer = tuple[pa.RecordBatch, Tally]


def workers_for(size: int) -> int:
    """How many processes pay for `size` bytes of rows; 0 means to work in this process."""
    if size < PAYS_FROM_BYTES:
        return 0
    count = min(available_cores(), size // (PAYS_FROM_BYTES // 4), _room_for())
    return count if count > 1 else 0


def _room_for() -> int:
    """Processes for which memory is free; as many as wanted where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return sys.maxsize
    free = next((int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)
    return sys.maxsize if free is None else free * 1024 // WORKER_MEMORY_BYTES


class Pool:
    """Processes that tokenize; a context manager, which ends them."""

    def __init__(self, setup: Setup, count: int) -> None:
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._workers = [_Worker(setup) for _ in range(count)]
        for worker in self._workers:
            self._idle.put(worker)

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.stop()

    def map(self, chunks: Iterable[Chunk]) -> Iterator[Answer]:
        """The answer to each chunk, in order; few chunks are read ahead, so memory stays flat.

        Raises: WorkerFailed when a process dies or fails; EncodersDisagree.
        """
        pending: deque[Future[Answer]] = deque()
        threads = ThreadPoolExecutor(len(self._workers), thread_name_prefix="tokenize")
        try:
            for chunk in chunks:
                pending.append(threads.submit(self._ask, chunk))
                if len(pending) > 2 * len(self._workers):
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BaseException:
            # A thread that waits for an answer wakes up when its process is gone.
            for worker in self._workers:
                worker.stop()
            raise
        finally:
            threads.shutdown(wait=True, cancel_futures=True)

    def _ask(self, chunk: Chunk) -> Answer:
        worker = self._idle.get()
        try:
            return worker.ask(chunk)
        finally:
            self._idle.put(worker)


class _Worker:
    def __init__(self, setup: Setup) -> None:
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop
        self._process = subprocess.Popen(
            module("tasks.tokenization.worker"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            # Ctrl-C is for the parent, which ends its processes itself.
            start_new_session=True,
        )
        self._setup: Setup | None = setup

    def ask(self, chunk: Chunk) -> Answer:
        process: Any = self._process
        try:
            if self._setup is not None:
                send(process.stdin, self._setup)
                self._setup = None
            send(process.stdin, chunk)
            kind, *answer = receive(process.stdout)
        except (EOFError, OSError) as error:
            raise WorkerFailed(self._death()) from error
        if kind == "disagree":
            raise EncodersDisagree(answer[0])
        if kind == "error":
            raise WorkerFailed(f"Tokenization failed in a process of its own:\n{answer[0]}")
        return answer[0], answer[1]

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None and not stream.closed:
                try:
                    stream.close()
                except OSError:
                    pass
        self._errors.close()

    def _death(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        tail = self._errors.read()[-2000:].decode("utf-8", "replace").strip()
        killed = code == -9
        return (
            f"A process of the tokenization ended with code {code}"
            + (" (killed; by the kernel for lack of memory if by nobody else)" if killed else "")
            + (f". Its last words:\n{tail}" if tail else ".")
            + "\nOMP_NUM_THREADS=1 tokenizes in one process."
        )

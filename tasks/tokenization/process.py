"""One tokenizing process as its parent sees it: ask it for chunks, end it, explain its death."""

import subprocess
import tempfile
import threading
from collections import deque
from concurrent.futures import Future
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from tasks.errors import WorkerFailed
from tasks.launch import module
from tasks.tokenization.chunks import Answer, Chunk, Setup
from tasks.tokenization.encoder import EncodersDisagree
from tasks.tokenization.worker import receive, send


class Process:
    """A process that tokenizes. It answers in the order in which it is asked."""

    def __init__(self, scratch: Path) -> None:
        """Start it. Its answers' rows lie in files whose paths begin with `scratch`."""
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop
        self._process = subprocess.Popen(
            module("tasks.tokenization.worker", str(scratch)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            # Ctrl-C is for the parent, which ends its processes itself.
            start_new_session=True,
        )
        self._setup: Setup | None = None
        self._lock = threading.Lock()
        self._asked: deque[Future[Answer]] = deque()
        self._death: str | None = None
        self._reader = threading.Thread(target=self._read, name="tokenize", daemon=True)
        self._reader.start()

    @property
    def unanswered(self) -> int:
        """Chunks that it was asked for and has not answered."""
        return len(self._asked)

    def ask(self, setup: Setup, chunk: Chunk) -> Future[Answer]:
        """The chunk's rows by `setup`. The question is short, so a busy process holds nobody up.

        The future raises WorkerFailed or EncodersDisagree.
        """
        future: Future[Answer] = Future()
        with self._lock:
            if self._death is not None:
                future.set_exception(WorkerFailed(self._death))
                return future
            self._asked.append(future)
        questions: Any = self._process.stdin
        try:
            if setup != self._setup:
                send(questions, setup)
                self._setup = setup
            send(questions, chunk)
        except OSError:
            # It is dead, and who reads its answers says why.
            pass
        return future

    def stop(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:
                    # A question that nobody took.
                    pass
        self._errors.close()

    def _read(self) -> None:
        answers: Any = self._process.stdout
        while True:
            try:
                kind, *answer = receive(answers)
            except (EOFError, OSError):
                break
            future = self._asked[0]
            try:
                if kind == "disagree":
                    future.set_exception(EncodersDisagree(answer[0]))
                elif kind == "error":
                    words = f"Tokenization failed in a process of its own:\n{answer[0]}"
                    future.set_exception(WorkerFailed(words))
                else:
                    future.set_result((_rows(answer[0]), answer[1]))
            except Exception as error:
                future.set_exception(error)
            self._asked.popleft()
        death = self._last_words()
        with self._lock:
            self._death = death
        for future in self._asked:
            future.set_exception(WorkerFailed(death))

    def _last_words(self) -> str:
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


def _rows(path: Path) -> pa.RecordBatch:
    """The rows of an answer: the file is mapped, and gone when nobody uses them any more."""
    with pa.memory_map(str(path)) as file:
        batch = pa.ipc.open_stream(file).read_next_batch()
    path.unlink()
    return batch

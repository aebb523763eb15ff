"""Start a server in its own process group, wait until it answers, and stop it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO

from flows.server_lock import ServerLock
from tasks.errors import StageFailed
from tasks.home import CLOSED, Home
from tasks.stack import Server, answers

START_SECONDS = 180.0
"""Longest start: an empty database is migrated first, on a slow machine."""
STOP_SECONDS = 15.0
"""Between SIGTERM and SIGKILL."""


class ServerProcess:
    """A server that ends with this process, in its own group so that Ctrl-C does not reach it."""

    def __init__(
        self,
        name: str,
        arguments: list[str],
        *,
        environment: Mapping[str, str],
        folder: Path,
        log: Path,
        lock: ServerLock | None = None,
    ) -> None:
        """Start `python -P -m flows.server_process ARGUMENTS` in `folder`.

        `folder` is one of ours: Prefect reads settings from the working directory.
        """
        self.name = name
        self.log = log
        folder.mkdir(CLOSED, parents=True, exist_ok=True)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as stream:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "flows.server_process", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if arguments == ["embedded"] else stream,
                stderr=stream,
                cwd=folder,
                env={**environment, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"},
                start_new_session=True,
                pass_fds=() if lock is None else (lock.descriptor,),
            )

    @property
    def pid(self) -> int:
        """Process id, which is also the group's."""
        return self._process.pid

    @property
    def output(self) -> IO[bytes]:
        """The standard output of an embedded server."""
        assert self._process.stdout is not None
        return self._process.stdout

    def lives(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def wait_until(self, url: str) -> None:
        """Return once `url` answers. Raises StageFailed with the log's end when it never does."""
        deadline = time.monotonic() + START_SECONDS
        while not answers(url):
            if not self.lives():
                raise self.failure(f"ended with exit code {self._process.returncode} at its start")
            if time.monotonic() > deadline:
                raise self.failure(f"did not answer at {url} within {START_SECONDS:.0f} s")
            time.sleep(0.1)

    def failure(self, what: str) -> StageFailed:
        """An error that says what happened, with the end of the log."""
        tail = "\n".join(f"  {line}" for line in _tail(self.log, 15))
        return StageFailed(
            f"{self.name} {what}. Last lines:\n{tail}\nFull log: {self.log}\n"
            "`loraline doctor` checks the installed versions that servers are known to die of."
        )

    def stop(self) -> None:
        """SIGTERM to the group, its grace, then SIGKILL to whatever is left."""
        try:
            self._signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=STOP_SECONDS)
        finally:
            self._signal(signal.SIGKILL)
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    stream.close()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)


@contextlib.contextmanager
def embedded_prefect(
    home: Home, lock: ServerLock, environment: Mapping[str, str]
) -> Iterator[tuple[Server, Callable[[], None]]]:
    """A Prefect server on the home's database for the length of the block.

    Yields the server, which is still starting, and a function that returns once it answers, so that
    the caller can do something useful in between. `lock` must be held.
    """
    process = ServerProcess(
        "The embedded Prefect server",
        ["embedded"],
        environment=environment,
        folder=home.prefect,
        log=home.logs / "prefect-embedded.log",
        lock=lock,
    )
    try:
        first = process.output.readline()
        if not first:
            raise process.failure("ended before it had a port")
        url = f"http://127.0.0.1:{json.loads(first)['port']}/api"
        yield Server(url, process.pid), lambda: process.wait_until(f"{url}/health")
    finally:
        process.stop()


def _tail(path: Path, count: int) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()[-count:]
    except OSError:
        return []

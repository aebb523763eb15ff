"""Start a worker in its own process group, stream its events, stop it, and explain its death."""

import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Literal
from uuid import uuid4

from tasks import marked
from tasks.errors import Interrupted, UserError, WorkerFailed

GRACE_SECONDS = 25.0
"""Time between SIGTERM and SIGKILL: enough to write a checkpoint, and less than the 30 s after which
Prefect's worker kills us, who could then end nobody."""
_logger = logging.getLogger(__name__)


def module(name: str, *arguments: str) -> list[str]:
    """The command line of a worker module.

    `-P` keeps the working directory off `sys.path`: a user's own `tasks.py` must not shadow ours.
    """
    return [sys.executable, "-P", "-m", name, *arguments]


def write_job(folder: Path, job: Any) -> Path:
    """Write a worker's job (a pydantic model) to `folder/job.json`; the worker gets this one path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "job.json"
    path.write_text(job.model_dump_json(indent=1), encoding="utf-8")
    return path


def run(
    argv: list[str],
    *,
    log: Path,
    name: str,
    on_event: Callable[[dict[str, Any]], None] | None = None,
    on_line: Callable[[str], None] | None = None,
    environment: dict[str, str] | None = None,
    timeout_seconds: float | None = None,
    stall_seconds: float | None = None,
    repeatable: bool = True,
) -> None:
    """Run a worker to its end.

    A line of its output that is a JSON object with the key `event` goes to `on_event`, any other to
    `on_line`; all go to the file `log`. A worker reports a user's mistake by the event
    `{"event": "user_error", "message": ...}` before it exits with code 2.

    Raises: UserError for that event; WorkerFailed when the worker dies, exceeds `timeout_seconds`
    or sends no event for `stall_seconds`, with the last lines and, if `repeatable` (its job stays on
    disk), the command to run by hand;
    Interrupted when this process receives Ctrl-C (the worker gets SIGTERM and its grace first).
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    mark = uuid4().hex
    env = {**os.environ, **(environment or {}), "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
    env[marked.WORKER] = mark
    # Threads that spin while they wait for each other starve when anything else uses a core: on two
    # busy cores a training step was seen to take twenty times as long.
    env.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    said = _Reader(log, on_event, on_line)
    process = subprocess.Popen(
        argv,
        # The worker watches this pipe: its end means that we are gone, and so must it be.
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=env,
        start_new_session=True,
    )
    assert process.stdout is not None
    reader = threading.Thread(target=said.read, args=(process.stdout,), daemon=True)
    started = time.monotonic()
    reason = ""
    how: Literal["died", "killed", "timed out", "stalled"] = "died"
    code: int | None = None
    try:
        # Inside: a Ctrl-C that comes this early must end the worker, too.
        reader.start()
        while True:
            try:
                # Its output ends with it, nearly always; `Popen.wait` looks twenty times a second. Not by
                # `join`: a Ctrl-C in it makes Python 3.11 take a thread that lives for ended.
                code = process.wait(timeout=0.5 if said.ended.wait(timeout=0.5) else 0)
                if code in _TERMINATED:
                    # Somebody ended the whole group, as schedulers do. A launcher in between dies at
                    # once while its worker still writes a checkpoint; their common pipe says until when.
                    reader.join(timeout=GRACE_SECONDS)
                break
            except subprocess.TimeoutExpired:
                now = time.monotonic()
                if timeout_seconds is not None and now - started > timeout_seconds:
                    how, reason = "timed out", f"ran longer than {timeout_seconds:.0f} s"
                elif stall_seconds is not None and now - said.last_sign > stall_seconds:
                    how, reason = "stalled", f"gave no sign of life for {stall_seconds:.0f} s"
                if reason:
                    code = _stop(process, reader)
                    break
    except BaseException as error:
        _stop(process, reader)
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(f"{name} was interrupted. Log: {log}") from error
        raise
    finally:
        _kill_group(process.pid)
        if code != 0 or reason:
            # Who did not end in order ended nobody else: a server of its own, in another session.
            marked.end(marked.marked(marked.WORKER, mark), grace_seconds=0)
        if process.stdin is not None:
            process.stdin.close()
        if reader.is_alive():
            reader.join(timeout=5)
    if said.user_error:
        raise UserError(said.user_error[-1])
    if code != 0:
        lines = "\n".join(f"  {line}" for line in list(said.tail))
        failure = WorkerFailed(
            f"{name} {reason or _death(code)}. Last lines:\n{lines}\n"
            f"Full log: {log}"
            + (f"\nIt ends early: {said.unwritten}" if said.unwritten else "")
            + (f"\nRun it again by hand: {shlex.join(argv)}" if repeatable else "")
        )
        failure.reason = "killed" if how == "died" and _killed(code) else how
        if reader.is_alive():
            failure.unheard = "something that it started still holds its output open"
        # The cause tells a full disk from others.
        raise failure from said.unwritten


_TERMINATED = (-signal.SIGTERM, 128 + signal.SIGTERM)


class _Reader:
    """Reads a worker's output to its end, whatever becomes of the log and of those who listen.

    A worker whose output nobody reads any more hangs as soon as the pipe is full.
    """

    def __init__(
        self,
        log: Path,
        on_event: Callable[[dict[str, Any]], None] | None,
        on_line: Callable[[str], None] | None,
    ) -> None:
        self.tail: deque[str] = deque(maxlen=25)
        self.user_error: list[str] = []
        self.last_sign = time.monotonic()
        self.ended = threading.Event()
        self.unwritten: OSError | None = None
        """Why the log lacks what was said from then on."""
        self._log_path = log
        self._file: IO[bytes] | None = None
        self._on_event = on_event
        self._on_line = on_line
        self._told: set[str] = set()

    def read(self, stream: IO[bytes]) -> None:
        """To be run in a thread."""
        # Who looks for the log of a worker that said nothing finds an empty one.
        self._log(b"")
        try:
            for raw in stream:
                self._log(raw)
                line = raw.decode("utf-8", "replace").rstrip()
                event = _event(line)
                if event is not None:
                    # Events alone: a process that hangs may well go on to warn of it.
                    self.last_sign = time.monotonic()
                if event is None:
                    if line:
                        self.tail.append(line)
                        self._tell(self._on_line, line)
                elif event["event"] == "user_error":
                    self.user_error.append(str(event.get("message")))
                else:
                    self._tell(self._on_event, event)
        finally:
            self._close()
            self.ended.set()

    def _log(self, raw: bytes) -> None:
        if self.unwritten is not None:
            return
        try:
            if self._file is None:
                self._file = self._log_path.open("ab")
            self._file.write(raw)
            self._file.flush()
        except OSError as error:
            self.unwritten = error
            _logger.warning(
                "%s ends here: %s. What the worker says is still read", self._log_path, error
            )

    def _tell(self, listener: Callable[[Any], None] | None, what: Any) -> None:
        if listener is None:
            return
        try:
            listener(what)
        except Exception as error:
            # Once for each kind: a listener that fails may fail a thousand times.
            if (kind := type(error).__name__) not in self._told:
                self._told.add(kind)
                _logger.exception("What a worker says could not be passed on; it goes on")

    def _close(self) -> None:
        try:
            if self._file is not None:
                self._file.close()
        except OSError as error:
            # It writes what its buffer holds.
            self.unwritten = self.unwritten or error


def _event(line: str) -> dict[str, Any] | None:
    if not line.startswith("{"):
        return None
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) and "event" in value else None


def _stop(process: subprocess.Popen[bytes], reader: threading.Thread) -> int:
    """SIGTERM to the group, its grace, then SIGKILL to whatever is left; the exit code."""
    deadline = time.monotonic() + GRACE_SECONDS
    _signal_group(process.pid, signal.SIGTERM)
    try:
        code = process.wait(timeout=GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        _kill_group(process.pid)
        return process.wait()
    # A launcher in between dies at once while its worker still writes a checkpoint. The pipe of their
    # common output ends when the last of them is gone.
    if reader.is_alive():
        reader.join(timeout=max(0.0, deadline - time.monotonic()))
    return code


def _signal_group(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        pass


def _kill_group(group: int) -> None:
    """No descendant may outlive its worker: it would keep the GPU."""
    _signal_group(group, signal.SIGKILL)


def _signal_of(code: int) -> int:
    # A launcher in between reports a killed child as 128 + signal.
    return -code if code < 0 else code - 128 if code > 128 else 0


def _killed(code: int) -> bool:
    return _signal_of(code) == signal.SIGKILL


def _death(code: int) -> str:
    number = _signal_of(code)
    if number == signal.SIGKILL:
        return "was killed (SIGKILL); when nobody did that, the kernel did for lack of memory"
    if number:
        try:
            return f"died of {signal.Signals(number).name}"
        except ValueError:
            pass
    return f"stopped with exit code {code}"

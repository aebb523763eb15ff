"""Start a worker in its own process group, stream its events, stop it, and explain its death."""

import json
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
from typing import IO, Any

from tasks.errors import Interrupted, UserError, WorkerFailed

GRACE_SECONDS = 30.0
"""Time between SIGTERM and SIGKILL: enough to write a checkpoint."""


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
    env = {**os.environ, **(environment or {}), "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
    # Threads that spin while they wait for each other starve when anything else uses a core: on two
    # busy cores a training step was seen to take twenty times as long.
    env.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    tail: deque[str] = deque(maxlen=25)
    user_error: list[str] = []
    last_sign = [time.monotonic()]
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
    reader = threading.Thread(
        target=_read,
        args=(process.stdout, log, tail, user_error, last_sign, on_event, on_line),
        daemon=True,
    )
    started = time.monotonic()
    reason = ""
    try:
        # Inside: a Ctrl-C that comes this early must end the worker, too.
        reader.start()
        while True:
            try:
                code = process.wait(timeout=0.5)
                if code in _TERMINATED:
                    # Somebody ended the whole group, as schedulers do. A launcher in between dies at
                    # once while its worker still writes a checkpoint; their common pipe says until when.
                    reader.join(timeout=GRACE_SECONDS)
                break
            except subprocess.TimeoutExpired:
                now = time.monotonic()
                if timeout_seconds is not None and now - started > timeout_seconds:
                    reason = f"ran longer than {timeout_seconds:.0f} s"
                elif stall_seconds is not None and now - last_sign[0] > stall_seconds:
                    reason = f"gave no sign of life for {stall_seconds:.0f} s"
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
        if process.stdin is not None:
            process.stdin.close()
        if reader.is_alive():
            reader.join(timeout=5)
    if user_error:
        raise UserError(user_error[-1])
    if code != 0:
        lines = "\n".join(f"  {line}" for line in tail)
        raise WorkerFailed(
            f"{name} {reason or _death(code)}. Last lines:\n{lines}\n"
            f"Full log: {log}"
            + (f"\nRun it again by hand: {shlex.join(argv)}" if repeatable else "")
        )


_TERMINATED = (-signal.SIGTERM, 128 + signal.SIGTERM)


def _read(
    stream: IO[bytes],
    log: Path,
    tail: deque[str],
    user_error: list[str],
    last_sign: list[float],
    on_event: Callable[[dict[str, Any]], None] | None,
    on_line: Callable[[str], None] | None,
) -> None:
    with log.open("ab") as file:
        for raw in stream:
            file.write(raw)
            file.flush()
            line = raw.decode("utf-8", "replace").rstrip()
            event = _event(line)
            if event is not None:
                # Events alone: a process that hangs may well go on to warn of it.
                last_sign[0] = time.monotonic()
            if event is None:
                if line:
                    tail.append(line)
                    if on_line is not None:
                        on_line(line)
            elif event["event"] == "user_error":
                user_error.append(str(event["message"]))
            elif on_event is not None:
                on_event(event)


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


def _death(code: int) -> str:
    # A launcher in between reports a killed child as 128 + signal.
    number = -code if code < 0 else code - 128 if code > 128 else 0
    if number == signal.SIGKILL:
        return "was killed (SIGKILL); when nobody did that, the kernel did for lack of memory"
    if number:
        try:
            return f"died of {signal.Signals(number).name}"
        except ValueError:
            pass
    return f"stopped with exit code {code}"

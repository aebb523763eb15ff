"""The log of a part that talks without end stays bounded, and what it said last is there."""

import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from flows.stack import configuration
from flows.stack.configuration import LOG_COPIES, log_file, socket_file, write_configuration
from flows.stack.parts import parts
from flows.stack.settings import StackSettings
from tasks.home import Home
from tests.running_stack import until

LINES = 200_000
TALKS = f"for n in range({LINES}): print('line', n)\nwhile True: __import__('time').sleep(60)"


def test_a_log_is_rotated_and_its_oldest_copies_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(configuration, "LOG_BYTES", 20_000)
    home = Home((tmp_path / "home").resolve())
    home.logs.mkdir(parents=True)
    worker = next(it for it in parts(StackSettings(project=tmp_path)) if it.name == "worker")
    path = write_configuration(home, [worker], socket_file(home))
    program = tmp_path / "talks.py"
    program.write_text(TALKS)
    command = f'command = "{sys.executable}" "{program}"'
    path.write_text(re.sub("(?m)^command = .*$", command, path.read_text()))
    log = log_file(home, "worker")

    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "supervisor.supervisord", "--silent", "-c", str(path)]
    )

    def is_said() -> bool:
        # The piece that it ends may be the one after which the log is rotated.
        for newest in (log, log.with_name(f"{log.name}.1")):
            with suppress(FileNotFoundError):
                if f"line {LINES - 1}\n" in newest.read_text():
                    return True
        return False

    try:
        until(is_said, 60)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    there = sorted(home.logs.glob("worker.log*"))
    assert [it.name for it in there] == [
        "worker.log",
        *(f"worker.log.{n}" for n in range(1, LOG_COPIES + 1)),
    ]
    # It looks at the size after each piece that it has read.
    assert all(it.stat().st_size < 300_000 for it in there)
    numbers = [int(n) for it in there for n in re.findall(r"line (\d+)\n", it.read_text())]
    assert max(numbers) == LINES - 1
    # Of two megabytes the newest pieces are kept.
    assert 0 not in numbers

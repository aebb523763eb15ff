import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tasks import launch
from tasks.errors import Interrupted, UserError, WorkerFailed


def _run(code: str, tmp_path: Path, **options: Any) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    launch.run(
        [sys.executable, "-c", code],
        log=tmp_path / "worker.log",
        name="Training",
        on_event=events.append,
        **options,
    )
    return events


def test_json_lines_become_events_and_everything_is_logged(tmp_path: Path) -> None:
    code = "print('{\"event\": \"step\", \"step\": 1}'); print('hello'); print('{not json'); print('[1]')"
    assert _run(code, tmp_path) == [{"event": "step", "step": 1}]
    assert (tmp_path / "worker.log").read_text().count("\n") == 4


def test_a_death_is_told_with_its_last_lines_the_log_and_the_command(tmp_path: Path) -> None:
    with pytest.raises(WorkerFailed) as caught:
        _run("import sys; print('disk is full'); sys.exit(3)", tmp_path)
    message = str(caught.value)
    assert "Training stopped with exit code 3" in message
    assert "disk is full" in message
    assert str(tmp_path / "worker.log") in message
    assert "Run it again by hand" in message


def test_a_kill_for_lack_of_memory_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorkerFailed, match="lack of memory"):
        _run("import os; os.kill(os.getpid(), 9)", tmp_path)


def test_a_users_mistake_in_a_worker_is_a_user_error(tmp_path: Path) -> None:
    code = (
        "from tasks.worker import main\nfrom tasks.errors import UserError\n"
        "from pydantic import BaseModel\nimport sys\n"
        "class Job(BaseModel): pass\n"
        "def work(job): raise UserError('no such module: q_proj')\n"
        f"sys.argv = ['x', {str(tmp_path / 'job.json')!r}]\n"
        "main(Job, work)\n"
    )
    (tmp_path / "job.json").write_text("{}")
    with pytest.raises(UserError, match="no such module: q_proj"):
        _run(code, tmp_path)


SLEEPER = (
    "import subprocess, sys, time, os\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    'print(\'{"event": "pid", "pids": [%d, %d]}\' % (os.getpid(), child.pid), flush=True)\n'
    "time.sleep(600)\n"
)


def _gone(pids: list[int], within: float = 10) -> bool:
    end = time.monotonic() + within
    while time.monotonic() < end:
        alive = [
            p
            for p in pids
            if psutil.pid_exists(p) and psutil.Process(p).status() != psutil.STATUS_ZOMBIE
        ]
        if not alive:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ({"timeout_seconds": 2.0}, "ran longer than 2 s"),
        ({"stall_seconds": 2.0}, "no sign of life"),
    ],
)
def test_time_out_and_stall_end_the_worker_and_its_children(
    tmp_path: Path, limit: dict[str, float], words: str
) -> None:
    events: list[dict[str, Any]] = []
    with pytest.raises(WorkerFailed, match=words):
        launch.run(
            [sys.executable, "-c", SLEEPER],
            log=tmp_path / "worker.log",
            name="Training",
            on_event=events.append,
            **limit,
        )
    assert _gone(events[0]["pids"])


def test_ctrl_c_lets_the_worker_save_and_then_ends_it(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time, pathlib\n"
        "def save(*_):\n"
        f"    pathlib.Path({str(tmp_path / 'saved')!r}).write_text('checkpoint')\n"
        "    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        'print(\'{"event": "ready"}\', flush=True)\n'
        "time.sleep(600)\n"
    )

    def interrupt(event: dict[str, Any]) -> None:
        # As a terminal does: the signal goes to the main thread of the parent.
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # type: ignore[arg-type]

    with pytest.raises(Interrupted):
        launch.run(
            [sys.executable, "-c", code], log=tmp_path / "log", name="Training", on_event=interrupt
        )
    assert (tmp_path / "saved").read_text() == "checkpoint"


def test_ctrl_c_before_the_first_wait_ends_the_worker_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def remembered(*arguments: Any, **how: Any) -> Any:
        started.append(popen(*arguments, **how))
        return started[-1]

    def interrupted(_: threading.Thread) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", remembered)
    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(Interrupted):
        launch.run(
            [sys.executable, "-c", "import time; time.sleep(600)"],
            log=tmp_path / "log",
            name="Training",
        )
    (worker,) = started
    assert worker.poll() is not None


def test_a_worker_dies_with_its_parent(tmp_path: Path) -> None:
    """SIGKILL of the parent: worker and grandchild are gone, nobody keeps the GPU."""
    worker = tmp_path / "worker.py"
    worker.write_text(
        "from tasks.worker import main, emit\nfrom pydantic import BaseModel\n"
        "import subprocess, sys, time, os\n"
        "class Job(BaseModel): pass\n"
        "def work(job):\n"
        "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"    open({str(tmp_path / 'pids')!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        "    emit('ready')\n"
        "    time.sleep(600)\n"
        "main(Job, work)\n"
    )
    (tmp_path / "job.json").write_text("{}")
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path; from tasks import launch\n"
            f"launch.run([sys.executable, {str(worker)!r}, {str(tmp_path / 'job.json')!r}],"
            f" log=Path({str(tmp_path / 'log')!r}), name='Training',"
            " on_event=lambda e: print('ready', flush=True))",
        ],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])},
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"ready\n"
    pids = [int(p) for p in (tmp_path / "pids").read_text().split()]
    parent.kill()
    parent.communicate()
    assert _gone(pids)

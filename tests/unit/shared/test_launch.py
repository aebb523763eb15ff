import os
import pickle
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


DEAF = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"
"""A descendant that no signal to the group reaches: in a session of its own, and deaf to SIGTERM."""
SLEEPER = (
    "import subprocess, sys, time, os\n"
    "children = [\n"
    "    subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']),\n"
    f"    subprocess.Popen([sys.executable, '-c', {DEAF!r}], start_new_session=True),\n"
    "]\n"
    "pids = [os.getpid(), *(child.pid for child in children)]\n"
    'print(\'{"event": "pid", "pids": %s}\' % pids, flush=True)\n'
    "time.sleep(600)\n"
)


def _lives(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _gone(pids: list[int], within: float = 10) -> bool:
    end = time.monotonic() + within
    while time.monotonic() < end:
        if not any(map(_lives, pids)):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.long
@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ({"timeout_seconds": 2.0}, "ran longer than 2 s"),
        ({"stall_seconds": 2.0}, "no sign of life"),
    ],
)
def test_time_out_and_stall_end_the_worker_and_every_descendant(
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


@pytest.mark.long
@pytest.mark.parametrize("end", ["cancelled", "killed by the kernel"])
def test_no_descendant_outlives_a_worker_that_did_not_end_in_order(
    tmp_path: Path, end: str
) -> None:
    pids: list[int] = []

    def stop(event: dict[str, Any]) -> None:
        pids.extend(event["pids"])
        if end == "cancelled":
            # Prefect's worker sends SIGTERM, which its engine raises in the main thread.
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # type: ignore[arg-type]
        else:
            os.kill(pids[0], signal.SIGKILL)

    with pytest.raises((Interrupted, WorkerFailed)):
        launch.run(
            [sys.executable, "-c", SLEEPER], log=tmp_path / "log", name="Training", on_event=stop
        )
    assert len(pids) == 3
    assert _gone(pids)


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


def test_ctrl_c_waits_for_a_worker_whose_launcher_is_gone_at_once(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time, pathlib\n"
        "def save(*_):\n"
        "    time.sleep(1)\n"
        f"    pathlib.Path({str(tmp_path / 'saved')!r}).write_text('checkpoint')\n"
        "    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        'print(\'{"event": "ready"}\', flush=True)\n'
        "time.sleep(600)\n"
    )
    launcher = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"

    def interrupt(event: dict[str, Any]) -> None:
        # Not before the parent waits.
        time.sleep(0.2)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # type: ignore[arg-type]

    with pytest.raises(Interrupted):
        launch.run(
            [sys.executable, "-c", launcher],
            log=tmp_path / "log",
            name="Training",
            on_event=interrupt,
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
    """SIGKILL of the parent: worker and grandchildren are gone, nobody keeps the GPU."""
    worker = tmp_path / "worker.py"
    worker.write_text(
        "from tasks.worker import main, emit\nfrom pydantic import BaseModel\n"
        "import subprocess, sys, time, os\n"
        "class Job(BaseModel): pass\n"
        "def work(job):\n"
        "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"    deaf = subprocess.Popen([sys.executable, '-c', {DEAF!r}], start_new_session=True)\n"
        f"    open({str(tmp_path / 'pids')!r}, 'w').write(f'{{os.getpid()}} {{child.pid}} {{deaf.pid}}')\n"
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


MANY = 'for n in range(3000): print(\'{"event": "step", "step": %d, "pad": "\' % n + \'x\' * 100 + \'"}\')'
"""More than a pipe holds: nobody who stops reading sees its end."""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the device of a full disk is Linux's")
def test_a_full_disk_takes_the_log_and_not_the_workers_words(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "worker.log").symlink_to("/dev/full")
    with pytest.raises(WorkerFailed, match="No space left on device") as failed:
        _run(f"{MANY}\nprint('the end'); raise SystemExit(3)", tmp_path, stall_seconds=20.0)
    assert failed.value.reason == "died"
    assert "  the end" in str(failed.value)
    assert isinstance(failed.value.__cause__, OSError)
    assert caplog.text.count("ends here") == 1
    assert len(_run(MANY, tmp_path, stall_seconds=20.0)) == 3000


def test_a_listener_that_fails_stops_nobody_from_hearing_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    heard = []

    def hear(event: dict[str, Any]) -> None:
        heard.append(event["step"])
        if event["step"] < 2000:
            raise LookupError("the page is gone")

    launch.run(
        [sys.executable, "-c", MANY],
        log=tmp_path / "log",
        name="Training",
        on_event=hear,
        stall_seconds=20.0,
    )
    assert heard == list(range(3000))
    assert caplog.text.count("LookupError: the page is gone") == 1


@pytest.mark.parametrize(
    ("code", "limits", "reason"),
    [
        ("raise SystemExit(3)", {}, "died"),
        ("import os; os.kill(os.getpid(), 9)", {}, "killed"),
        ("import time; time.sleep(60)", {"timeout_seconds": 1.0}, "timed out"),
        ("import time; time.sleep(60)", {"stall_seconds": 1.0}, "stalled"),
    ],
)
def test_how_a_worker_ended_is_told_apart_and_survives_a_pickle(
    tmp_path: Path, code: str, limits: dict[str, float], reason: str
) -> None:
    with pytest.raises(WorkerFailed) as failed:
        _run(code, tmp_path, **limits)
    assert pickle.loads(pickle.dumps(failed.value)).reason == reason

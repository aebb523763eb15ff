"""One run of an adapter at a time, one run on a GPU: held for the whole run, freed by death."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock

from flows.orderly import orderly
from tasks import gpu_turn, launch
from tasks.errors import StageFailed, UserError, WorkerFailed
from tasks.files import is_locked
from tasks.home import Home
from tasks.marked import environments
from tasks.retention.settings import RetentionSettings
from tasks.turn import Taken, adapter_turn, is_taken

ROOT = Path(__file__).resolve().parents[3]


def python(code: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        text=True,
    )


def holding(home: Home, name: str) -> subprocess.Popen[str]:
    """Another process that has the turn by the time this returns."""
    process = python(
        f"""
        import time
        from pathlib import Path
        from tasks.home import Home
        from tasks.turn import adapter_turn
        with adapter_turn(Home(Path({str(home.root)!r})), {name!r}, run="a v7", url="http://x/run/1"):
            print("held", flush=True)
            time.sleep(600)
        """
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def ended(process: subprocess.Popen[str], number: signal.Signals) -> None:
    process.send_signal(number)
    process.wait(timeout=30)
    assert process.stdout is not None
    process.stdout.close()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def test_a_scheduled_run_is_told_who_trains_the_adapter(home: Home) -> None:
    other = holding(home, "a")
    try:
        assert is_taken(home, "a")
        with (
            pytest.raises(Taken, match=r"a is being trained by a v7 \(http://x/run/1\) since"),
            adapter_turn(home, "a", run="b", within_seconds=0),
        ):
            raise AssertionError
        with adapter_turn(home, "another", run="b", within_seconds=0):
            assert is_taken(home, "another")
    finally:
        ended(other, signal.SIGKILL)


def test_who_waits_for_a_while_gives_up_then(home: Home) -> None:
    other = holding(home, "a")
    said: list[str] = []
    began = time.monotonic()
    try:
        with (
            pytest.raises(Taken, match=r"a is being trained by a v7"),
            adapter_turn(home, "a", run="b", within_seconds=5, say=said.append),
        ):
            raise AssertionError
    finally:
        ended(other, signal.SIGKILL)
    assert 5 <= time.monotonic() - began < 30
    (line,) = said
    assert "waiting for it to end" in line


def test_who_only_asks_whether_the_turn_is_taken_turns_no_run_away(home: Home) -> None:
    home.locks.mkdir(parents=True)
    # As collecting does, for much less than this.
    asking = FileLock(home.locks / "adapter-a.lock", thread_local=False)
    asking.acquire()
    threading.Timer(0.1, asking.release).start()
    with adapter_turn(home, "a", run="b", within_seconds=0) as turn:
        turn.check()


def test_a_turn_is_free_as_soon_as_its_holder_is_killed(home: Home) -> None:
    ended(holding(home, "a"), signal.SIGKILL)
    assert not is_taken(home, "a")
    with adapter_turn(home, "a", run="b", within_seconds=0) as turn:
        turn.check()
    # The note of the dead holder is not taken for the living.
    assert not list(home.locks.glob("adapter-*.json"))


def test_a_person_waits_is_told_once_and_goes_on(home: Home) -> None:
    other = holding(home, "a")
    said: list[str] = []
    got: list[float] = []

    def wait() -> None:
        with adapter_turn(home, "a", run="b", say=said.append):
            got.append(time.monotonic())

    waiting = threading.Thread(target=wait)
    waiting.start()
    time.sleep(2.5)
    assert got == []
    killed = time.monotonic()
    ended(other, signal.SIGKILL)
    waiting.join(timeout=30)
    assert len(said) == 1
    assert "waiting" in said[0]
    assert got
    assert got[0] - killed < 20


def test_a_name_with_any_character_makes_a_file_name(home: Home) -> None:
    with adapter_turn(home, "a/b c", run="r", within_seconds=0):
        assert is_taken(home, "a/b c")
        assert not is_taken(home, "a")


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose nvidia-smi names two devices."""
    folder = tmp_path / "bin"
    folder.mkdir()
    tool = folder / "nvidia-smi"
    tool.write_text("#!/bin/sh\nprintf '0, GPU-aa\\n1, GPU-bb\\n'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv(gpu_turn.FOLDER_VARIABLE, str(tmp_path / "gpu-locks"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path


def test_three_runs_share_two_gpus_and_never_one(two_gpus: Path) -> None:
    code = """
        import sys, time
        from tasks.gpu_turn import gpu_turn
        with gpu_turn() as held:
            print(held[0], flush=True)
            sys.stdin.read()
    """
    runs = [
        subprocess.Popen(
            [sys.executable, "-P", "-c", textwrap.dedent(code)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for _ in range(3)
    ]
    lines: list[str] = []
    for run in runs:
        threading.Thread(
            target=lambda r=run: lines.append(r.stdout.readline()), daemon=True
        ).start()
    deadline = time.monotonic() + 60
    while len(lines) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(2)
    assert sorted(lines) == ["GPU-aa\n", "GPU-bb\n"]
    for run in runs:
        assert run.stdin is not None
        run.stdin.close()
    for run in runs:
        assert run.wait(timeout=60) == 0
        assert run.stdout is not None
        run.stdout.close()
    assert len(lines) == 3


def test_the_locks_of_gpus_lie_where_no_setting_of_one_shell_moves_them(
    two_gpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Path("/tmp/loraline-gpus") == gpu_turn.LOCKS
    monkeypatch.delenv(gpu_turn.FOLDER_VARIABLE)
    monkeypatch.setattr(gpu_turn, "LOCKS", two_gpus / "of-all")
    monkeypatch.setenv("TMPDIR", str(two_gpus))
    with gpu_turn.gpu_turn():
        assert list((two_gpus / "of-all").iterdir()) == [two_gpus / "of-all" / "GPU-aa.lock"]


def test_workers_see_only_the_gpus_that_their_run_holds(
    two_gpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with gpu_turn.gpu_turn() as held:
        assert held == ("GPU-bb",)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-bb"
        assert gpu_turn.take_gpus(1) == held
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"


@pytest.mark.parametrize(
    ("visible", "devices"),
    [("GPU-b,0", ("GPU-bb", "GPU-aa")), ("GPU-", ("GPU-",)), ("MIG-1", ("MIG-1",))],
    ids=["shortened", "ambiguous", "a slice"],
)
def test_a_shortened_uuid_is_the_lock_of_the_whole_one(
    two_gpus: Path, monkeypatch: pytest.MonkeyPatch, visible: str, devices: tuple[str, ...]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu_turn.gpus() == devices


def test_more_gpus_than_there_are_is_the_users_mistake(two_gpus: Path) -> None:
    with pytest.raises(UserError, match="asks for 3 GPUs"):
        gpu_turn.take_gpus(3)


def test_a_machine_that_hides_its_gpus_locks_none(
    two_gpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu_turn.take_gpus(1) == ()


@pytest.fixture
def answering(two_gpus: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Gives nvidia-smi another body of its script, in which `$n` is how often it was called."""
    tool = two_gpus / "bin" / "nvidia-smi"
    calls = two_gpus / "calls"
    monkeypatch.setattr(gpu_turn, "SECONDS_BETWEEN", 0.0)

    def answer(script: str) -> None:
        count = f"echo >> {calls}; n=$(wc -l < {calls})"
        tool.write_text(f"#!/bin/sh\n{count}\n{script}\n")

    return answer


@pytest.mark.parametrize("stumble", ["exit 255", "exec sleep 30"], ids=["fails", "hangs"])
def test_a_driver_that_stumbles_once_is_asked_again(
    answering: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, stumble: str
) -> None:
    monkeypatch.setattr(gpu_turn, "ANSWER_SECONDS", 5.0)
    answering(f"[ $n = 1 ] && {stumble}\nprintf '0, GPU-aa\\n1, GPU-bb\\n'")
    with gpu_turn.gpu_turn() as held:
        assert held == ("GPU-aa",)


def test_a_driver_that_does_not_answer_fails_the_run_rather_than_the_lock(
    answering: Callable[[str], None], two_gpus: Path
) -> None:
    answering("echo 'Unable to determine the device handle' >&2; exit 255")
    with pytest.raises(StageFailed, match=r"exit code 255 \(Unable to determine") as failed:
        gpu_turn.take_gpus(1)
    assert "CUDA_VISIBLE_DEVICES=''" in str(failed.value)
    assert len((two_gpus / "calls").read_text().splitlines()) == gpu_turn.ATTEMPTS


@pytest.mark.parametrize(
    "script", ["echo 'No devices were found'; exit 6", "echo 'not loaded'; exit 9", "exit 0"]
)
def test_a_tool_without_a_gpu_or_a_driver_locks_none(
    answering: Callable[[str], None], script: str
) -> None:
    answering(script)
    assert gpu_turn.take_gpus(1) == ()


@pytest.mark.long
@pytest.mark.parametrize("limit", ["timeout_seconds", "stall_seconds"])
def test_within_half_a_minute_from_its_limit_a_worker_that_hangs_is_gone_and_both_turns_are_free(
    home: Home, two_gpus: Path, limit: str
) -> None:
    recipe = SimpleNamespace(name="a", retention=RetentionSettings(min_free_gb=0))
    tracker = SimpleNamespace(uri=f"sqlite:///{home.root}/mlflow.db")
    facts = SimpleNamespace(overrides=(), force=False)
    run: Any = SimpleNamespace(recipe=recipe, home=home, tracker=tracker, facts=facts)
    # Deaf, and so is what it starts in a session of its own: what is ignored is inherited.
    worker = (
        "import os, signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "sleeper = [sys.executable, '-c', 'import time; time.sleep(600)']\n"
        "pids = [os.getpid(), subprocess.Popen(sleeper, start_new_session=True).pid]\n"
        'print(\'{"event": "alive", "pids": %s}\' % pids, flush=True)\n'
        "time.sleep(600)\n"
    )
    began: dict[str, float] = {}
    pids: set[int] = set()

    while_it_lived: list[set[bool]] = []

    def taken() -> set[bool]:
        gpus = (two_gpus / "gpu-locks" / f"{name}.lock" for name in ("GPU-aa", "GPU-bb"))
        return {is_taken(home, "a"), *map(is_locked, gpus)}

    def hear(event: dict[str, Any]) -> None:
        began["stall_seconds"] = time.monotonic()
        pids.update(event["pids"])
        while_it_lived.append(taken())

    def living() -> set[int]:
        return {process.pid for process, _ in environments()} & pids

    def train() -> None:
        with orderly(run):
            gpu_turn.take_gpus(2)
            began["timeout_seconds"] = time.monotonic()
            launch.run(
                [sys.executable, "-c", worker],
                log=home.logs / "training.log",
                name="Training",
                on_event=hear,
                **{limit: 10.0},  # type: ignore[arg-type]
            )

    with pytest.raises(WorkerFailed):
        train()
    assert not living()
    assert taken() == {False}
    assert time.monotonic() - began[limit] - 10 < 30
    assert while_it_lived == [{True}]
    assert len(pids) == 2
    other = python(
        f"""
        from pathlib import Path
        from tasks.gpu_turn import gpu_turn
        from tasks.home import Home
        from tasks.turn import adapter_turn
        with adapter_turn(Home(Path({str(home.root)!r})), "a", run="b", within_seconds=0):
            with gpu_turn(2) as devices:
                print(*devices)
        """
    )
    try:
        assert other.communicate(timeout=120)[0] == "GPU-aa GPU-bb\n"
    finally:
        other.kill()
        other.wait()


def test_another_machine_has_the_turn_where_the_stack_is_on_postgresql(
    home: Home, tmp_path: Path, postgres: str
) -> None:
    elsewhere = Home(tmp_path / "another-machine")
    with adapter_turn(home, "a", run="a v7", database=postgres) as turn:
        turn.check()
        with (
            pytest.raises(Taken, match="a is being trained by another machine"),
            adapter_turn(elsewhere, "a", run="b", database=postgres, within_seconds=0),
        ):
            raise AssertionError
        with adapter_turn(elsewhere, "other", run="b", database=postgres, within_seconds=0):
            pass
    with adapter_turn(elsewhere, "a", run="b", database=postgres, within_seconds=0):
        pass


def test_a_connection_that_broke_in_the_night_is_mended_unless_somebody_was_faster(
    home: Home, tmp_path: Path, postgres: str
) -> None:
    import psycopg

    def break_connections() -> None:
        with psycopg.connect(postgres, autocommit=True) as other:
            other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = 'loraline training of a'"
            )

    elsewhere = Home(tmp_path / "another-machine")
    with adapter_turn(home, "a", run="a v7", database=postgres) as turn:
        break_connections()
        turn.check()
        break_connections()
        with (
            adapter_turn(elsewhere, "a", run="b", database=postgres, within_seconds=0),
            pytest.raises(StageFailed, match="another run has the turn by now"),
        ):
            turn.check()

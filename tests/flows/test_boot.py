"""`loraline up --at-boot` with a real systemd: the machine starts, the stack dies, the machine stops."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.stack import leftovers
from tests.loopback import free_port
from tests.running_stack import Stack, until
from tests.webhook import webhook

SYSTEMD = Path("/lib/systemd/systemd")
CGROUPS = [
    folder
    for folder in map(Path, ("/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup"))
    if (folder / "cgroup.procs").is_file()
]
UNIT = "loraline.service"
START = """
for group in {groups}; do echo $$ > "$group/cgroup.procs"; done
echo $$ > {pid}
# systemd looks here whether the machine was started by one.
mount -t tmpfs none /run && mkdir -p /run/systemd/system
exec {systemd} --user --log-target=console
"""


def no_systemd() -> str:
    """Why none can be started for a user here; empty when it can."""
    if not SYSTEMD.exists() or shutil.which("systemctl") is None:
        return "no systemd here"
    if shutil.which("unshare") is None or shutil.which("nsenter") is None:
        return "needs unshare and nsenter"
    if os.geteuid() != 0 or not CGROUPS or not all(os.access(it, os.W_OK) for it in CGROUPS):
        return "needs the right to make control groups and mounts"
    return ""


pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(bool(no_systemd()), reason=no_systemd() or "there is one"),
]


@dataclass
class Machine:
    """A user's systemd in a control group and below a `/run` of its own: it starts and stops as a machine does."""

    cli: Any
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="loraline-boot-")))
    manager: psutil.Process | None = None

    @property
    def environment(self) -> dict[str, str]:
        bare = {k: v for k, v in self.cli.environment().items() if k != "DBUS_SESSION_BUS_ADDRESS"}
        return {**bare, "OMP_NUM_THREADS": "1", "XDG_RUNTIME_DIR": str(self.folder)}

    @property
    def groups(self) -> list[Path]:
        return [folder / self.folder.name for folder in CGROUPS]

    def start(self) -> None:
        for group in self.groups:
            group.mkdir(exist_ok=True)
        pid = self.folder / "pid"
        pid.unlink(missing_ok=True)
        script = START.format(groups=" ".join(map(str, self.groups)), pid=pid, systemd=SYSTEMD)
        # Nothing of a shell's is known to a machine that starts.
        bare = {name: self.environment[name] for name in ("HOME", "XDG_RUNTIME_DIR")}
        with (self.folder / "log").open("ab") as log:
            subprocess.run(
                ["setsid", "--fork", "unshare", "--mount", "bash", "-ec", script],
                env={**bare, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
                stdout=log,
                stderr=log,
                check=True,
            )
        self.manager = psutil.Process(int(until(lambda: pid.is_file() and pid.read_text(), 10)))
        until(lambda: self("systemctl", "--user", "show-environment").returncode == 0, 30)

    def __call__(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """A command that finds this systemd, as in a shell of its user."""
        assert self.manager is not None
        target = ("--target", str(self.manager.pid))
        return subprocess.run(
            ["nsenter", *target, "--mount", f"--wd={self.cli.folder}", *command],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=300,
        )

    def stop(self) -> None:
        """As a machine that is switched off in order."""
        if self.manager is not None:
            self("systemctl", "--user", "exit")
            self.manager.wait(timeout=240)
            self.manager = None

    def remove(self) -> None:
        """Whatever came of it."""
        left = [
            psutil.Process(pid)
            for group in self.groups
            for path in group.rglob("cgroup.procs")
            for pid in map(int, path.read_text().split())
            if psutil.pid_exists(pid)
        ]
        for process in left:
            process.kill()
        psutil.wait_procs(left, timeout=10)
        if self.manager is not None:
            self.manager.wait(timeout=10)
        for group in self.groups:
            for folder, _, _ in os.walk(group, topdown=False):
                Path(folder).rmdir()
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="module")
def machine(small: Any) -> Iterator[Machine]:
    found = Machine(small)
    try:
        yield found
        found.stop()
    finally:
        found.remove()


@pytest.fixture(scope="module")
def stack(small: Any, machine: Machine) -> Iterator[Stack]:
    """What the machine starts with itself; nobody has called `loraline up` yet."""
    recipe = small.folder / "recipes" / "nightly.yaml"
    text = (small.folder / "recipes" / "small.yaml").read_text()
    recipe.write_text(
        text.replace("name: small", "name: nightly") + 'schedule: {cron: "0 2 * * *"}\n'
    )
    ports = ("--prefect-port", str(free_port()), "--mlflow-port", str(free_port()))
    with webhook() as (url, told):
        found = Stack(small, ports, url, told)
        machine.start()
        loraline = [str(small.python), "-P", "-m", "flows.cli"]
        done = machine(*loraline, "up", "--at-boot", *ports)
        assert done.returncode == 0, done.stderr
        secrets = found.home.root / "stack" / "environment"
        secrets.write_text(f"LORALINE_WEBHOOKS={url}\n")
        machine.stop()
        yield found


def healthy(stack: Stack) -> int | None:
    """Which supervisor keeps all parts healthy."""
    found = stack.status()
    return int(found["supervisor_pid"]) if found.get("healthy") else None


def scheduled(stack: Stack) -> list[dict[str, Any]]:
    answer: dict[str, list[dict[str, Any]]] = json.loads(stack.cli("schedules", "--json").stdout)
    # A stack that is healthy and deploys yet is refused in words.
    return answer.get("schedules", [])


def test_a_machine_that_starts_has_its_schedules_at_once(stack: Stack, machine: Machine) -> None:
    assert not leftovers.processes(stack.home)
    machine.start()
    until(lambda: healthy(stack), 180)
    assert machine("systemctl", "--user", "is-active", UNIT).stdout.strip() == "active"
    until(lambda: [it["name"] for it in scheduled(stack)] == ["nightly"], 60)
    run = stack.start("retrain", {"recipe": str(stack.cli.folder / "recipes" / "small.yaml")})
    assert stack.end_of(run)["name"] == "Skipped"


@pytest.mark.parametrize("who", ["supervisor", "unit"])
def test_a_killed_stack_is_started_again_by_systemd(
    stack: Stack, machine: Machine, who: str
) -> None:
    before = until(lambda: healthy(stack), 180)
    shown = machine("systemctl", "--user", "show", "--property=MainPID", "--value", UNIT)
    os.kill(before if who == "supervisor" else int(shown.stdout), signal.SIGKILL)
    until(lambda: healthy(stack) not in (None, before), 180)
    count = machine("systemctl", "--user", "show", "--property=NRestarts", "--value", UNIT)
    assert int(count.stdout) == ("supervisor", "unit").index(who) + 1


def test_a_machine_that_is_switched_off_in_a_training_finishes_it_when_it_is_back(
    stack: Stack, machine: Machine
) -> None:
    until(lambda: healthy(stack), 180)
    # Of a seed of its own: the training of another file's test would be found.
    first = stack.start_long_run("overnight", 60, seed=61)
    until(lambda: len(stack.checkpoints()) > 1)
    began = time.monotonic()
    machine.stop()
    assert time.monotonic() - began < 120
    assert not leftovers.processes(stack.home)
    machine.start()
    until(lambda: healthy(stack), 180)
    again = stack.repetition_of(first)
    assert stack.end_of(again)["type"] == "COMPLETED"
    steps = stack.steps_of(again, 60)
    assert steps
    assert min(steps) > 5


def test_what_the_user_stops_stays_so_until_it_is_started(stack: Stack, machine: Machine) -> None:
    until(lambda: healthy(stack), 180)
    assert machine("systemctl", "--user", "restart", UNIT).returncode == 0
    until(lambda: healthy(stack), 180)
    assert machine("systemctl", "--user", "stop", UNIT).returncode == 0
    assert not leftovers.processes(stack.home)
    time.sleep(15)
    assert not leftovers.processes(stack.home)
    assert machine("systemctl", "--user", "start", UNIT).returncode == 0
    until(lambda: healthy(stack), 180)
    # The other way to stop it means the same.
    # `up` may be deploying yet, and nobody else may begin meanwhile.
    until(lambda: stack.cli("down").returncode == 0, 120)
    time.sleep(15)
    assert not leftovers.processes(stack.home)
    assert machine("systemctl", "--user", "is-active", UNIT).stdout.strip() == "inactive"


def test_what_up_starts_is_watched_and_a_restart_reads_the_changed_secrets(
    stack: Stack, machine: Machine
) -> None:
    """As after a backup, which is typed in a shell."""
    loraline = [str(stack.cli.python), "-P", "-m", "flows.cli"]
    assert machine(*loraline, "down").returncode == 0
    done = machine(*loraline, "up")
    assert done.returncode == 0, done.stderr
    assert f"Starting {UNIT}" in done.stderr
    first = healthy(stack)
    assert first is not None
    assert machine("systemctl", "--user", "is-active", UNIT).stdout.strip() == "active"
    with (stack.home.root / "stack" / "environment").open("a") as secrets:
        secrets.write("LORALINE_WEBHOOK_SECRET=rotated\n")
    assert machine("systemctl", "--user", "restart", UNIT).returncode == 0
    again = until(lambda: (found := healthy(stack)) != first and found, 180)
    assert psutil.Process(again).environ()["LORALINE_WEBHOOK_SECRET"] == "rotated"


def test_a_unit_whose_starts_fail_is_stopped_by_down_and_makes_no_stack_where_its_folder_is_away(
    stack: Stack, machine: Machine
) -> None:
    """As after an upgrade that failed: the person stops it, moves the folder away and unpacks a backup."""
    until(lambda: healthy(stack), 180)
    root, loraline = stack.home.root, [str(stack.cli.python), "-P", "-m", "flows.cli"]
    assert machine(*loraline, "down").returncode == 0
    settings = root / "stack" / "settings.json"
    text = settings.read_text()
    settings.write_text("{")
    machine("systemctl", "--user", "start", UNIT)

    def is_waiting() -> bool:
        shown = machine("systemctl", "--user", "show", "--property=SubState", "--value", UNIT)
        return shown.stdout.strip() == "auto-restart"

    until(is_waiting, 60)
    away = root.rename(root.with_name("away"))
    # It finds nothing, and makes nothing.
    time.sleep(15)
    assert not root.exists()
    done = machine(*loraline, "down")
    assert "is stopped" in done.stdout, done.stderr
    assert machine("systemctl", "--user", "is-active", UNIT).stdout.strip() == "inactive"
    time.sleep(15)
    assert not root.exists()
    # Started while it is away, as with a disk that is mounted late, it waits for it.
    machine("systemctl", "--user", "start", UNIT)
    until(is_waiting, 60)
    (away / "stack" / "settings.json").write_text(text)
    away.rename(root)
    until(lambda: healthy(stack), 180)


def test_a_unit_that_was_disabled_starts_nothing_with_the_machine(
    stack: Stack, machine: Machine
) -> None:
    """As on a machine that was replaced and is switched on again."""
    until(lambda: healthy(stack), 180)
    done = machine("systemctl", "--user", "disable", "--now", UNIT)
    assert done.returncode == 0, done.stderr
    assert not leftovers.processes(stack.home)
    machine.stop()
    machine.start()
    time.sleep(15)
    assert not leftovers.processes(stack.home)
    assert machine("systemctl", "--user", "is-active", UNIT).stdout.strip() == "inactive"

"""This user's systemd (systemctl(1)), and a unit by which it starts a stack and watches it."""

import getpass
import shutil
import subprocess
from dataclasses import dataclass

from flows.stack.environment_file import assignments
from tasks.errors import StageFailed

ANSWER_SECONDS = 30.0
STOP_SECONDS = 240.0
"""For a unit to end: its own time for that (`TimeoutStopSec`) and some more."""


@dataclass(frozen=True)
class Unit:
    """A unit of this user."""

    name: str
    environment: dict[str, str]
    """What systemd gives each service beside what its unit names."""

    def start(self) -> None:
        """Start it; one that is just ending, after that. Raises: StageFailed."""
        systemctl("restart", self.name, seconds=STOP_SECONDS)

    def stop(self) -> None:
        """End it, with what it started. Raises: StageFailed."""
        systemctl("stop", self.name, seconds=STOP_SECONDS)

    def is_active(self) -> bool:
        """Whether its process lives; not so while systemd waits before it starts it again."""
        return _asked("is-active", self.name).returncode == 0

    def is_at_work(self) -> bool:
        """Whether its process lives, or systemd is about to start it again."""
        state = _asked("is-active", self.name).stdout.strip()
        return state not in ("", "inactive", "failed", "unknown")


def environment() -> dict[str, str]:
    """What systemd gives each of this user's services. Raises: StageFailed where no systemd runs for this user."""
    if shutil.which("systemctl") is None:
        raise StageFailed("there is no systemctl here")
    asked = _asked("show-environment")
    if asked.returncode:
        reason = (asked.stderr.strip().splitlines() or ["no reason given"])[0]
        raise StageFailed(f"systemd's user services do not answer: {reason}")
    return assignments(asked.stdout)


def is_enabled(name: str) -> bool:
    """Whether systemd starts this unit with the machine, or with a login."""
    return _asked("is-enabled", name).returncode == 0


def ends_with_the_login() -> bool:
    """Whether this user's services end with the last login, which loginctl(1) calls not to linger."""
    command = ["loginctl", "show-user", getpass.getuser(), "--property=Linger", "--value"]
    try:
        asked = subprocess.run(
            command,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=ANSWER_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return asked.stdout.strip() == "no"


def systemctl(*arguments: str, seconds: float = 60) -> None:
    """Have it done. Raises: StageFailed."""
    done = _asked(*arguments, seconds=seconds)
    if done.returncode:
        raise StageFailed(
            f"`systemctl --user {' '.join(arguments)}` ended with exit code {done.returncode}: "
            f"{done.stderr.strip()}"
        )


def _asked(*arguments: str, seconds: float = ANSWER_SECONDS) -> "subprocess.CompletedProcess[str]":
    command = ["systemctl", "--user", *arguments]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        why = f"no answer within {seconds:.0f} s"
        return subprocess.CompletedProcess(command, 124, stdout="", stderr=why)

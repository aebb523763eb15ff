"""Start the stack with the machine: a systemd user unit, written and enabled; and by that unit from then on."""

import getpass
import os
import sys
from collections.abc import Callable
from pathlib import Path

from flows.stack import supervisor, systemd
from flows.stack.databases import refuse_other_database
from flows.stack.environment_file import environment_file, missing, read_environment
from flows.stack.exposure import NO_RESTART, refuse_open
from flows.stack.own_place import refuse_moved
from flows.stack.settings import POSTGRES, StackSettings, folder
from flows.stack.starting import remember
from flows.stack.systemd import Unit
from flows.stack.unit_environment import kept, not_in_file
from tasks.errors import StageFailed, UserError
from tasks.home import Home
from tasks.store import digest

UNIT = "loraline.service"
"""The unit of the first home of this user that has one."""
EXISTING = "--existing"
"""A unit makes no new stack where the home is away. Those of earlier versions would."""


def install(home: Home, settings: StackSettings) -> list[str]:
    """Write the unit, let systemd read and enable it; returns what a person should know of it.

    Raises: UserError where there is no systemd for this user, where the unit's own environment lacks
    what the stack would refuse to start without, or while the stack runs with other settings; StageFailed
    when systemd refuses the unit.
    """
    inherited = systemd_environment()
    secrets = environment_file(home)
    folder(home).mkdir(parents=True, exist_ok=True)
    if not secrets.exists():
        # Created closed: a moment in which others can read it is one too many.
        os.close(os.open(secrets, os.O_CREAT | os.O_WRONLY, 0o600))
    given = read_environment(secrets)
    _refuse_unfit(home, settings, {**inherited, **given}, "installed")
    # The unit names none of them: what a later `loraline up` is told holds for the next boot, too.
    remember(home, settings)
    path = unit_path(home)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(unit(home, settings, dict(os.environ)), encoding="utf-8")
    systemd.systemctl("daemon-reload")
    systemd.systemctl("enable", path.name)
    lines = [
        f"Wrote and enabled {path}; it starts the stack with the machine, and again when it was killed.",
        f"Start it now:    loraline down; systemctl --user start {path.name}",
        f"Without a login: sudo loginctl enable-linger {getpass.getuser()}",
        f"Secrets ({POSTGRES}, passwords, webhooks) are read from {secrets}, one NAME=value a line.",
        f"Take it back:    systemctl --user disable --now {path.name}",
    ]
    return lines + _not_seen(home, settings, {**inherited, **given})


def unit_to_start(home: Home, settings: StackSettings, say: Callable[[str], None]) -> Unit | None:
    """The home's unit, for a start that is to be watched; None where it has none, or none that is enabled.

    From then on this process has the environment of the unit, which never sees the shell's.

    Raises: UserError when that lacks what the stack would refuse to start without, or the unit starts another
    installation.
    """
    path = unit_path(home)
    if not path.exists():
        return None
    try:
        found = Unit(path.name, systemd.environment())
    except StageFailed as error:
        say(f"{path.name} does not watch this stack, and starts it not again: {error}.")
        return None
    if not systemd.is_enabled(path.name):
        # A person has taken it back.
        return None
    ends = "with your last login" if systemd.ends_with_the_login() else ""
    way_out = f"That changes with: sudo loginctl enable-linger {getpass.getuser()}"
    if supervisor.find(home) is None:
        if ends:
            say(f"{path.name} would end {ends}, so it does not start this stack. {way_out}")
            return None
        text = path.read_text(encoding="utf-8")
        if not _starts_this_installation(text):
            raise UserError(
                f"{path} starts another installation of loraline than this one ({sys.executable}), whose "
                "databases may be of another version. Nothing was started. `loraline up --at-boot` from this one "
                "writes the unit anew; then `loraline up`."
            )
        if EXISTING not in text:
            say(f"{path} is of an earlier version: `loraline up --at-boot` writes it anew.")
        file = read_environment(environment_file(home))
        given = {**found.environment, **file}
        _refuse_unfit(home, settings, given, "started")
        same = {name: value for name, value in given.items() if os.environ.get(name) == value}
        for line in _not_seen(home, settings, same):
            say(line)
        os.environ.update({**missing(found.environment, os.environ), **file})
    elif not found.is_active():
        say(
            f"{path.name} did not start this stack, does not watch it, and starts it not again: `loraline down`, "
            "then `loraline up`."
        )
    elif ends:
        say(f"{path.name} started this stack, and ends {ends}: the stack, too. {way_out}")
    return found


def stop_unit(home: Home, say: Callable[[str], None]) -> bool:
    """End the home's unit, which may be between two attempts to start the stack; False where it was at rest."""
    path = unit_path(home)
    if not path.exists():
        return False
    try:
        found = Unit(path.name, systemd.environment())
        if not found.is_at_work():
            return False
        found.stop()
    except StageFailed as error:
        say(f"{path.name} was not stopped, and may start the stack again: {error}.")
        return False
    return True


def unit(home: Home, settings: StackSettings, environ: dict[str, str]) -> str:
    """The unit's text (systemd.service(5), systemd.exec(5))."""
    lines = (f"Environment={_quoted(f'{name}={value}')}" for name, value in kept(environ).items())
    environment = "\n".join(lines)
    return f"""\
# Written by `loraline up --at-boot`.
[Unit]
Description=loraline: Prefect, MLflow, workers and the watchdog of {_description(str(home.root))}
After=network.target

[Service]
Type=exec
ExecStart={_start()} {_of_home(home)}
# It may be gone by then, and the stack's recipes elsewhere (`loraline up --project`).
WorkingDirectory=-{_path(settings.project)}
{environment}
EnvironmentFile=-{_path(environment_file(home))}
Restart=on-failure
RestartSec=10
# Not 2: a port in use and a folder that is not mounted yet mend themselves, and the stack must come back.
RestartPreventExitStatus={NO_RESTART}
# `loraline up` ends its parts in order; whatever is left after that is killed.
KillMode=mixed
TimeoutStopSec=180
TimeoutStartSec=infinity
SuccessExitStatus=130

[Install]
WantedBy=default.target
"""


def _start() -> str:
    """The unit's command, but for the home."""
    return _words(sys.executable, "-P", "-m", "flows.cli", "up", "--foreground", EXISTING)


def _starts_this_installation(unit: str) -> bool:
    """By the folder of its interpreter, which has several names there."""
    ours = _words(str(Path(sys.executable).parent / "_")).removesuffix('_"')
    return any(line.startswith("ExecStart=") and ours in line for line in unit.splitlines())


def unit_path(home: Home) -> Path:
    """The home's unit, among this user's: two stacks on one machine each start with it."""
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    units = Path(base) / "systemd" / "user"
    for path in sorted(units.glob("loraline*.service")):
        if _of_home(home) in path.read_text(encoding="utf-8", errors="replace"):
            return path
    if not (units / UNIT).exists():
        return units / UNIT
    return units / f"loraline-{digest(str(home.root))[:8]}.service"


def systemd_environment() -> dict[str, str]:
    """What systemd gives each of this user's services (systemctl(1), `show-environment`).

    Raises: UserError where no systemd runs for this user.
    """
    way_out = (
        "Start `loraline up --foreground` with what starts services here: a container's command, "
        "an init script, or a crontab line `@reboot`."
    )
    try:
        return systemd.environment()
    except StageFailed as error:
        raise UserError(f"--at-boot needs systemd, and {error}. {way_out}") from None


def _refuse_unfit(home: Home, settings: StackSettings, environ: dict[str, str], done: str) -> None:
    """Passwords and a database of this shell do not count: the unit never sees them, only `environ`.

    Raises: UserError as `refuse_open` and `refuse_other_database` do, with the file to write into; and as
    `refuse_moved`.
    """
    refuse_moved(home, settings)
    secrets = environment_file(home)
    try:
        refuse_open(settings.host, environ)
        refuse_other_database(home, settings.database, environ)
    except UserError as error:
        raise UserError(
            f"{error}\nNothing was {done}. The unit has no shell: what it needs is read from "
            f"{secrets} (mode 600), one NAME=value a line."
        ) from None


def _not_seen(home: Home, settings: StackSettings, environ: dict[str, str]) -> list[str]:
    """A line for each secret of this shell that the unit, which has `environ`, does not have."""
    return [
        f"{name} is set in this shell: write it into {environment_file(home)}, the unit has no shell."
        for name in not_in_file(os.environ, environ, settings.project)
    ]


def _of_home(home: Home) -> str:
    return _words("--home", str(home.root))


def _words(*words: str) -> str:
    return " ".join(_quoted(word).replace("$", "$$") for word in words)


def _quoted(text: str) -> str:
    """One word, in which `%` begins nothing. In a command `$` has to be doubled, too."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


def _path(path: Path) -> str:
    return str(path).replace("%", "%%")


def _description(text: str) -> str:
    return text.replace("%", "%%")

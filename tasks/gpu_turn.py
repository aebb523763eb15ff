"""One run on a GPU at a time: a kernel file lock per device, which the death of its holder frees.

The lock is the machine's, whatever home, user or Prefect server a run belongs to. It is taken when
something is really computed there: a run that finds nothing to do waits for no GPU.
"""

import logging
import math
import os
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from tasks.errors import NoGpuTurn, UserError

FOLDER_VARIABLE = "LORALINE_GPU_LOCKS"
"""Folder of the locks; containers that share a GPU mount one and name it so."""
LOCKS = Path("/tmp/loraline-gpus")
"""Without that. Not below TMPDIR, which each shell may have another one of: all runs of the machine must meet."""
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_POLL_SECONDS = 1.0
ATTEMPTS = 3
"""How often the driver is asked before its silence fails a run: just after a reset it needs a moment."""
SECONDS_BETWEEN = 10.0
"""Between two attempts."""
ANSWER_SECONDS = 30.0
"""For one answer of the driver."""
_NO_DRIVER = 9
"""nvidia-smi(1): the driver is not loaded. Then nobody can compute on a GPU, and no lock is needed."""
_log = logging.getLogger(__name__)


class _Held:
    """The devices that this process has the turn on; a process trains once at a time."""

    locks: dict[str, FileLock] = {}  # noqa: RUF012
    visible_before: str | None = None


def take_gpus(count: int, *, within_seconds: float = math.inf) -> tuple[str, ...]:
    """Wait until `count` of this process's GPUs are free, take them, and show its workers only these.

    Returns their names, as CUDA_VISIBLE_DEVICES has them then; empty on a machine without GPUs. What
    is held already counts: training and evaluation of one run use the same devices.

    Raises: UserError when there are fewer than `count`; NoGpuTurn when others hold them for longer than
    `within_seconds`, and as `gpus`.
    """
    devices = gpus()
    if not devices:
        return ()
    if len(_Held.locks) >= count:
        return tuple(_Held.locks)
    if len(devices) < count:
        raise UserError(
            f"training.processes asks for {count} GPUs, and this process may use {len(devices)} "
            f"({_VISIBLE}={os.environ.get(_VISIBLE, 'not set')}). Lower it, or show more devices."
        )
    if not _Held.locks:
        _Held.visible_before = os.environ.get(_VISIBLE)
    told = False
    until = time.monotonic() + within_seconds
    while not _take(devices, count):
        if time.monotonic() >= until:
            raise NoGpuTurn(
                f"Other runs compute on {'all' if count == 1 else 'too many'} of {len(devices)} GPUs"
                + (
                    f", and did for {within_seconds / 60:.0f} min. Try again when one is free, or cancel the "
                    "run that computes there, on its page in Prefect: started again, it goes on from its last "
                    "checkpoint."
                    if within_seconds
                    else "."
                )
            )
        if not told:
            _log.warning(
                "%s of %d GPUs are in use by other runs: waiting until %d are free",
                "All" if count == 1 else "Too many",
                len(devices),
                count,
            )
            told = True
        time.sleep(_POLL_SECONDS)
    os.environ[_VISIBLE] = ",".join(_Held.locks)
    return tuple(_Held.locks)


def give_back_gpus() -> None:
    """End the turn on all of them."""
    if not _Held.locks:
        return
    for lock in _Held.locks.values():
        lock.release()
    _Held.locks = {}
    if _Held.visible_before is None:
        os.environ.pop(_VISIBLE, None)
    else:
        os.environ[_VISIBLE] = _Held.visible_before


@contextmanager
def gpu_turn(count: int = 1, *, within_seconds: float = math.inf) -> Iterator[tuple[str, ...]]:
    """Hold `count` GPUs for the block; a turn that this process has already goes on after it.

    Raises: as `take_gpus`.
    """
    had_turn = bool(_Held.locks)
    try:
        yield take_gpus(count, within_seconds=within_seconds)
    finally:
        if not had_turn:
            give_back_gpus()


@contextmanager
def hidden_gpus() -> Iterator[None]:
    """Show this process's workers no GPU for the block; not for one that has a turn."""
    before = os.environ.get(_VISIBLE)
    os.environ[_VISIBLE] = ""
    try:
        yield
    finally:
        if before is None:
            del os.environ[_VISIBLE]
        else:
            os.environ[_VISIBLE] = before


def gpus() -> tuple[str, ...]:
    """The NVIDIA GPUs that this process may use, by UUID, in the driver's order; empty where there are none.

    A number in CUDA_VISIBLE_DEVICES is the driver's, by bus, whatever CUDA_DEVICE_ORDER is: CUDA's own, the
    fastest first, is known only to who opens the devices. A slice of a GPU (MIG) is a device of its own.

    Raises: NoGpuTurn when the driver is there and does not say which: a run that went on would
    compute beside whoever holds their locks.
    """
    visible = os.environ.get(_VISIBLE)
    asked = None if visible is None else [it.strip() for it in visible.split(",") if it.strip()]
    if asked == [] or asked == ["-1"] or shutil.which("nvidia-smi") is None:
        return ()
    pairs = [line.partition(",") for line in _listed().splitlines() if "," in line]
    known = {index.strip(): uuid.strip() for index, _, uuid in pairs}
    if asked is None:
        return tuple(known.values())
    return tuple(known.get(device) or _whole(device, known.values()) for device in asked)


def _whole(device: str, uuids: Iterable[str]) -> str:
    """The UUID that CUDA takes a shortened one for, so that both are one lock; else what was asked for."""
    meant = [uuid for uuid in uuids if uuid.startswith(device)]
    return meant[0] if len(meant) == 1 else device


def _listed() -> str:
    """Lines `index, uuid` of all devices; none where there are no devices or no driver."""
    why = ""
    for attempt in range(1, ATTEMPTS + 1):
        if attempt > 1:
            _log.warning("nvidia-smi %s: asking again in %.0f s", why, SECONDS_BETWEEN)
            time.sleep(SECONDS_BETWEEN)
        try:
            done = subprocess.run(
                ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"],
                capture_output=True,
                text=True,
                timeout=ANSWER_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            why = f"gave no answer within {ANSWER_SECONDS:.0f} s"
            continue
        except OSError as error:
            why = f"does not start ({error})"
            continue
        said = f"{done.stdout}{done.stderr}".strip()
        if done.returncode == 0:
            return done.stdout
        if "No devices were found" in said:
            return ""
        why = f"ended with exit code {done.returncode} ({said[:300] or 'no reason given'})"
        if done.returncode == _NO_DRIVER and attempt == ATTEMPTS:
            _log.warning("nvidia-smi %s: going on without a GPU", why)
            return ""
    raise NoGpuTurn(
        f"The NVIDIA driver does not say which GPUs this machine has: nvidia-smi {why}, {ATTEMPTS} times. "
        "Without their names no GPU can be locked, and what computed there might do so beside another run. "
        "See what `nvidia-smi` says by hand (the kernel's log names errors as `NVRM`; after an "
        f"upgrade of the driver the machine must be started anew), or do without a GPU: {_VISIBLE}=''."
    )


def _take(devices: tuple[str, ...], count: int) -> bool:
    """Take what is missing at once, or nothing: two runs that hold one each would wait for ever."""
    taken: dict[str, FileLock] = {}
    folder = _folder()
    for device in devices:
        if len(_Held.locks) + len(taken) == count:
            break
        if device in _Held.locks:
            continue
        lock = FileLock(folder / f"{device.replace('/', '-')}.lock", mode=0o666)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        taken[device] = lock
    if len(_Held.locks) + len(taken) < count:
        for lock in taken.values():
            lock.release()
        return False
    _Held.locks = {**_Held.locks, **taken}
    return True


def _folder() -> Path:
    """A folder that every user of this machine may lock in."""
    named = os.environ.get(FOLDER_VARIABLE)
    folder = Path(named) if named else LOCKS
    folder.mkdir(parents=True, exist_ok=True)
    if folder.stat().st_uid == os.geteuid():
        # Without the sticky bit: with it, the kernel refuses to open another user's file for writing.
        folder.chmod(0o777)
    return folder

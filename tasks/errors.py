"""Every error that loraline raises on purpose, drawn as one tree.

    LoralineError                 what happened, where, and the ways out, in one string
    ├── UserError                 the user's input is wrong: never retried, exit code 2
    │   ├── RecipeError           the recipe file or an override
    │   ├── DataError             the rows of a dataset
    │   └── BaseModelError        the base model cannot be found or is not the recorded one
    ├── StageFailed               a stage could not finish, exit code 1
    │   ├── WorkerFailed          a worker process died, timed out or stalled
    │   │   └── Killed            somebody or the kernel killed it: the run crashed
    │   ├── OutOfMemory           a training needs more memory than there is: once more, in smaller batches
    │   ├── OverBudget            a training would cost more than its recipe allows; a checkpoint is left
    │   ├── ServerAway            a server does not answer: what nobody watches waits for it, and goes on
    │   ├── NoGpuTurn             the lock of a GPU was not to be had: it says nothing of what was to be computed
    │   ├── GateRefused           the gate does not let an adapter through, exit code 3
    │   └── Preempted             somebody else took the machine; a retry goes on, exit code 75
    └── Interrupted               somebody pressed Ctrl-C, exit code 130

Each is made of one message string and nothing else, so that Prefect can pickle it with a failed state.
"""

from typing import Literal


class LoralineError(Exception):
    """Base class; `exit_code` is what the command line answers with."""

    exit_code = 1


class UserError(LoralineError, ValueError):
    """The user's input is wrong; running again without a change cannot help."""

    exit_code = 2


class RecipeError(UserError):
    """The recipe (or an override) is wrong; the message lists every mistake with its line."""


class DataError(UserError):
    """Rows of a dataset are wrong; the message names file, line and reason."""


class BaseModelError(UserError):
    """The base model cannot be found, or is not the one that was recorded."""


class StageFailed(LoralineError):
    """A stage could not finish."""


class WorkerFailed(StageFailed):
    """A worker process died, ran out of time or stalled."""

    reason: Literal["died", "killed", "timed out", "stalled"] = "died"
    """`killed`: by SIGKILL, as the kernel does for lack of memory. Set after construction: it travels in
    the instance's dictionary, which pickles."""
    unheard: str = ""
    """Why its last words were not all read; empty where they were."""


class Killed(WorkerFailed):
    """A worker process was killed from outside, and could not say why; its checkpoints are left."""


class OutOfMemory(StageFailed):
    """Memory ran out; the message says which settings would fit."""


class OverBudget(StageFailed):
    """A training was stopped because it would cost more than `training.budget` allows."""


class ServerAway(StageFailed):
    """A server that was asked for does not answer."""


class NoGpuTurn(StageFailed):
    """No GPU could be locked: others compute on them all, or the driver does not say which there are."""


class GateRefused(StageFailed):
    """The gate's verdict stands against what was asked for."""

    exit_code = 3


class Preempted(StageFailed):
    """A worker was told to make room (SIGTERM, not from us) and left a checkpoint: running again goes on."""

    exit_code = 75
    """EX_TEMPFAIL of sysexits.h: try again later."""


class Interrupted(LoralineError):
    """The user interrupted the run; what was complete is kept."""

    exit_code = 130

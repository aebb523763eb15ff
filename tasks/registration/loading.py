"""Load a version in a worker process, and say in words why one does not load."""

import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tasks.addresses import without_passwords
from tasks.errors import ServerAway, StageFailed, UserError
from tasks.outage import is_outage
from tasks.registration.job import FAILED
from tasks.worker import emit

_USER_MISTAKES = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


def load_version(uri: str, config: Mapping[str, Any], *, files: Path | None = None) -> Any:
    """The version as mlflow.pyfunc loads it: from `files`, else from the registry that the environment names.

    Raises: UserError when there is no such version, or the adapter or the base is not the recorded
    one; ServerAway when MLflow does not answer; StageFailed when it cannot deliver the version.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        return mlflow.pyfunc.load_model(str(files or uri), model_config=dict(config))
    except MlflowException as error:
        if error.error_code in _USER_MISTAKES:
            raise UserError(
                f"{uri} cannot be loaded: {without_passwords(error.message)}"
            ) from error
        kind = ServerAway if is_outage(error) else StageFailed
        raise kind(
            f"MLflow at {without_passwords(mlflow.get_tracking_uri())} could not deliver {uri} "
            f"({error.error_code}): {without_passwords(error.message)}. Check that the server and its artifact "
            "store work and that this machine may use them, then try again."
        ) from error
    except RuntimeError as error:
        if type(error) is not RuntimeError or "allocate memory" in str(error):
            # Torch's, for lack of memory or of a kernel, which says nothing of the version.
            raise
        # chat_model.py's own words: the adapter or the base is not the recorded one.
        raise UserError(str(error)) from error


@contextmanager
def telling_failures() -> Iterator[None]:
    """Send the words of a StageFailed to the parent process, which otherwise sees a traceback.

    The traceback goes into the log, without the passwords that MLflow puts into addresses.
    """
    try:
        yield
    except StageFailed as error:
        emit(FAILED, kind=type(error).__name__, message=str(error))
        sys.stderr.write(without_passwords(traceback.format_exc()))
        sys.exit(error.exit_code)

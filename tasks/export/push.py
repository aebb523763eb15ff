"""Send an exported folder to the Hugging Face Hub: a private repository, the token from the environment."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.errors import StageFailed, UserError
from tasks.hub import why_silent

TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


@dataclass(frozen=True)
class Pushed:
    """Where it went."""

    repository: str
    url: str
    commit: str


class Target:
    """A repository on the Hub that may be written to."""

    def __init__(self, repository: str) -> None:
        """Ask the Hub who we are and whether the repository is there, before anything is made.

        Raises: UserError for a name that is none, without a token, with the network switched off, for
        a repository that is public; StageFailed when the Hub does not answer.
        """
        from huggingface_hub import HfApi, constants
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils._validators import validate_repo_id

        try:
            validate_repo_id(repository)
        except HFValidationError as error:
            raise UserError(
                f"--push {repository}: is no repository of the Hub ({error})."
            ) from error
        self.repository = repository
        token = next((os.environ[name] for name in TOKEN_VARIABLES if os.environ.get(name)), None)
        if token is None:
            raise UserError(
                "--push needs a token that may write, in the environment variable HF_TOKEN. A token that "
                "`hf auth login` saved is not taken: a scheduled job must say whose it uses."
            )
        if constants.HF_HUB_OFFLINE:
            raise UserError("--push needs the Hub, and HF_HUB_OFFLINE switches it off.")
        self._api = HfApi(endpoint=constants.ENDPOINT, token=token)
        self._check()

    def push(self, folder: Path, message: str) -> Pushed:
        """Create the repository (private) where it is not there, and commit the folder to it.

        Raises: StageFailed saying how to go on; what was exported stays.
        """
        try:
            url = self._api.create_repo(self.repository, private=True, exist_ok=True)
            done = self._api.upload_folder(
                repo_id=url.repo_id, folder_path=folder, commit_message=message
            )
        except Exception as error:
            # The Hub client raises its own errors, its HTTP library's, ValueError and OSError.
            raise StageFailed(
                f"The export stands in {folder}, but was not pushed to {self.repository}: "
                f"{_why(error)}. Push it again with `hf upload {self.repository} {folder}`."
            ) from error
        return Pushed(str(url.repo_id), str(url), str(done.oid))

    def _check(self) -> None:
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            user = self._api.whoami()
            full = (
                self.repository if "/" in self.repository else f"{user['name']}/{self.repository}"
            )
            found: Any = self._api.model_info(full)
        except RepositoryNotFoundError as error:
            if error.response.status_code == 401:
                raise UserError(f"--push {self.repository}: {_why(error)}.") from error
            return
        except Exception as error:
            kind = UserError if _status(error) in (401, 403) else StageFailed
            raise kind(f"--push {self.repository}: {_why(error)}. Nothing was written.") from error
        if not found.private:
            raise UserError(
                f"--push {full}: this repository is public, and whoever asks an adapter learns something of "
                "the rows it was trained on. Make the repository private, or push the folder by hand."
            )


def _status(error: Exception) -> int | None:
    response = getattr(error, "response", None)
    return getattr(response, "status_code", None)


def _why(error: Exception) -> str:
    if _status(error) in (401, 403):
        return f"the Hub refuses the token (status {_status(error)}): it is wrong, or may not write there"
    if isinstance(error, ValueError):
        return " ".join(str(error).split())
    return why_silent(error)

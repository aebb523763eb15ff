"""Ask the Hugging Face Hub for a model's commit and files, and say in words when it will not answer."""

import logging
from pathlib import Path

from tasks.errors import BaseModelError

TIMEOUT_SECONDS = 20

_log = logging.getLogger(__name__)


def commit_of(model: str, revision: str) -> str:
    """The commit that a branch or tag points to.

    When the Hub does not answer, the local cache's memory of the branch is taken, with a warning.
    Raises: BaseModelError when the name is wrong, the model is closed, or nobody knows the commit.
    """
    from huggingface_hub import HfApi, constants, try_to_load_from_cache
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name = f"{model}@{revision}"
    try:
        sha = (
            HfApi(endpoint=constants.ENDPOINT)
            .model_info(model, revision=revision, timeout=TIMEOUT_SECONDS)
            .sha
        )
    except HFValidationError as error:
        raise BaseModelError(
            f"base: {model!r} is neither a folder nor a Hub id ({error}). "
            "A folder starts with `./`, `../`, `~` or `/`; a Hub id looks like `owner/name`."
        ) from error
    except RevisionNotFoundError as error:
        raise BaseModelError(
            f"The Hub's model {model} has no branch, tag or commit {revision!r}. "
            "Correct `base.revision`, or leave it out for `main`."
        ) from error
    except GatedRepoError as error:
        raise BaseModelError(
            f"{model} is gated: accept its terms on its page on the Hub, then log in with "
            "`hf auth login` (or set HF_TOKEN), or name a local folder."
        ) from error
    except RepositoryNotFoundError as error:
        raise BaseModelError(
            f"The Hub shows no model {model!r} (status {error.response.status_code}). "
            "Check the spelling; for a private model log in with `hf auth login` (or set HF_TOKEN); "
            "a local folder starts with `./`, `../`, `~` or `/`."
        ) from error
    except Exception as error:
        reason = why_silent(error)
        cached = try_to_load_from_cache(model, "config.json", revision=revision)
        if isinstance(cached, str):
            # The cache remembers which commit the branch pointed to when it was downloaded.
            commit = Path(cached).parent.name
            _log.warning(
                "%s is pinned to commit %s, which the local Hub cache holds: %s. "
                "`loraline lock --update` asks again.",
                name,
                commit,
                reason,
            )
            return commit
        raise BaseModelError(
            f"Cannot resolve {name} to a commit: {reason}, and the local Hub cache does not hold it. "
            f"Check the network and run again, copy the cache of a machine that has it, or name a "
            "local folder."
        ) from error
    if not sha:
        raise BaseModelError(f"The Hub names no commit for {name}. Write a commit as `revision`.")
    return sha


def why_silent(error: Exception) -> str:
    """Why the Hub did not answer, in words; the client raises its HTTP library's errors, its own, and OSError."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return "the Hub is switched off (HF_HUB_OFFLINE)"
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        return f"the Hub answered with status {error.response.status_code}"
    return f"the Hub did not answer ({error.__class__.__name__})"


def snapshot(model: str, commit: str, patterns: list[str]) -> Path:
    """The folder with the model's files at `commit`, downloaded where the local cache lacks them.

    Only files at the top whose names match `patterns` are fetched. For a commit that is complete in
    the cache nobody is asked. Raises: BaseModelError when something is missing and cannot be had.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                model,
                revision=commit,
                allow_patterns=patterns,
                # Other formats of the same weights lie in subfolders.
                ignore_patterns=["*/*"],
                endpoint=constants.ENDPOINT,
            )
        )
    except GatedRepoError as error:
        raise BaseModelError(
            f"{model} is gated: accept its terms on its page on the Hub, then log in with "
            "`hf auth login` (or set HF_TOKEN), or name a local folder."
        ) from error
    except Exception as error:
        # The Hub client raises its HTTP library's errors, its own, and OSError.
        where = "is not (or not completely) in the local Hub cache"
        cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
        what = " ".join(str(cause or error).split())
        raise BaseModelError(
            f"Base model {model}@{commit} {where} and could not be downloaded: "
            f"{(cause or error).__class__.__name__}: {what[:300]}. Check the network, the disk and "
            "HF_HUB_OFFLINE, or name a local folder."
        ) from error

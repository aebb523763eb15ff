"""A dataset of the Hugging Face Hub: its commit now, its rows when they are read."""

import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from tasks import launch
from tasks.dataset.reading.data_file import DataFile
from tasks.dataset.reading.hub_job import HubJob
from tasks.dataset.reading.places import Placed
from tasks.dataset.source_settings import HuggingFaceSource
from tasks.errors import DataError
from tasks.hub import TIMEOUT_SECONDS, why_silent
from tasks.store import digest

LONGEST_SECONDS = 12 * 3600.0
"""For all rows of a dataset. What hangs keeps the adapter's turn."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HubDataset:
    """One split at one commit."""

    commit: str
    digest: str
    """sha256 (hex) over id, commit, configuration and split: a commit's files cannot change."""
    fetched: Callable[[], Placed]
    """Its rows as a local file, fetched by a worker process if they are not there yet."""


def open_hub(source: HuggingFaceSource, cache: Path) -> HubDataset:
    """Resolve the revision to a commit.

    When the Hub does not answer, the commit of the last run is taken, with a warning.

    Raises: DataError when the dataset or the revision does not exist, or nobody knows the commit.
    """
    commit = _commit(source, cache / "hub" / "commits.json")
    key = digest([source.id, commit, source.config, source.split])
    folder = cache / "hub" / key[:32]
    # For collecting: the rows are in use, though a prepared dataset may spare their reading.
    with suppress(OSError):
        os.utime(folder / "result.json")
    return HubDataset(commit, key, lambda: _fetched(source, commit, folder))


def _fetched(source: HuggingFaceSource, commit: str, folder: Path) -> Placed:
    rows, result = folder / "rows.parquet", folder / "result.json"
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch, downloads = folder / "datasets", folder / "downloads"
    with FileLock(folder.with_suffix(".lock")):
        # Not before: what was not read for long may be collected just now.
        folder.mkdir(exist_ok=True)
        # The worker writes it last.
        if not result.is_file():
            job = HubJob(
                id=source.id,
                commit=commit,
                config=source.config,
                split=source.split,
                rows=rows,
                result=result,
            )
            _log.info("Fetching %s@%s, split %s, from the Hub", source.id, commit, source.split)
            try:
                launch.run(
                    launch.module(
                        "tasks.dataset.reading.hub_worker", str(launch.write_job(folder, job))
                    ),
                    log=folder / "worker.log",
                    name=f"Fetching {source.id}",
                    # Its own copies of the rows are of no use to anybody afterwards.
                    environment={
                        "HF_DATASETS_CACHE": str(scratch),
                        "HF_HUB_CACHE": str(downloads),
                    },
                    timeout_seconds=LONGEST_SECONDS,
                )
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        # After a failure the files that came whole stay for the next attempt. A process that was killed
        # here left them beside the rows, and its scratch.
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.rmtree(downloads, ignore_errors=True)
    shown = f"{source.id}@{commit[:12]}/{source.split}"
    return Placed((DataFile(rows, shown, f"{source.id}/{source.split}", "parquet"),))


def _commit(source: HuggingFaceSource, memory: Path) -> str:
    if _COMMIT.fullmatch(source.revision):
        return source.revision
    name = f"{source.id}@{source.revision}"
    try:
        commit = _asked(source)
    except _NoAnswer as silence:
        known = _read(memory).get(name)
        if known is None:
            raise DataError(
                f"Cannot resolve the dataset {name} to a commit: {silence}, and no run here has done "
                "so before. Check the network and run again, or write a commit as "
                "dataset.sources[].revision."
            ) from silence
        _log.warning("%s is taken at commit %s, as in the last run: %s.", name, known, silence)
        return known
    _remember(memory, name, commit)
    return commit


class _NoAnswer(Exception):
    """Why the Hub does not say, in words."""


def _asked(source: HuggingFaceSource) -> str:
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        sha = (
            HfApi(endpoint=constants.ENDPOINT)
            .dataset_info(source.id, revision=source.revision, timeout=TIMEOUT_SECONDS)
            .sha
        )
    except HFValidationError as error:
        raise DataError(
            f"dataset.sources[].id {source.id!r} is no Hub id ({error}). It looks like `owner/name`."
        ) from error
    except RevisionNotFoundError as error:
        raise DataError(
            f"The Hub's dataset {source.id} has no branch, tag or commit {source.revision!r}. "
            "Correct dataset.sources[].revision, or leave it out for `main`."
        ) from error
    except GatedRepoError as error:
        raise DataError(
            f"The dataset {source.id} is gated: accept its terms on its page on the Hub, then log in "
            "with `hf auth login` (or set HF_TOKEN)."
        ) from error
    except RepositoryNotFoundError as error:
        raise DataError(
            f"The Hub shows no dataset {source.id!r} (status {error.response.status_code}). Check the "
            "spelling; for a private one log in with `hf auth login` (or set HF_TOKEN)."
        ) from error
    except Exception as error:
        raise _NoAnswer(why_silent(error)) from error
    if not sha:
        raise DataError(
            f"The Hub names no commit for {source.id}. Write one as dataset.sources[].revision."
        )
    return sha


def _read(memory: Path) -> dict[str, str]:
    try:
        value = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _remember(memory: Path, name: str, commit: str) -> None:
    memory.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(memory.with_suffix(".lock")):
        known = _read(memory)
        if known.get(name) == commit:
            return
        temporary = memory.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps({**known, name: commit}, indent=1), encoding="utf-8")
        temporary.replace(memory)

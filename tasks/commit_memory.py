"""The commits of models that a run uses beside its recipe's lock file, the same from run to run."""

import json
import os
from pathlib import Path

from filelock import FileLock

from tasks.base import BaseSettings
from tasks.home import Home


def remembered_commit(settings: BaseSettings, home: Home) -> str:
    """The commit of a model and its branch or tag, asked of the Hub once and kept in the state folder.

    Raises: BaseModelError when the Hub must be asked and does not answer.
    """
    from tasks.hub import commit_of

    path = memory_path(home)
    name = f"{settings.model}@{settings.revision}"
    home.locks.mkdir(parents=True, exist_ok=True)
    # Two first runs must not end up with two commits.
    with FileLock(home.locks / "commits.lock"):
        commits = _read(path)
        if name not in commits:
            commits[name] = commit_of(settings.model, settings.revision)
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(f".{os.getpid()}.tmp")
            temporary.write_text(json.dumps(commits, indent=1), encoding="utf-8")
            temporary.replace(path)
        return commits[name]


def memory_path(home: Home) -> Path:
    """The file of `{"<model>@<revision>": "<commit>"}`; deleting it forgets all."""
    return home.cache / "commits.json"


def _read(path: Path) -> dict[str, str]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(value, dict):
        return {}
    return {name: commit for name, commit in value.items() if isinstance(commit, str)}

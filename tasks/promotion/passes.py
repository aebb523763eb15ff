"""What this machine remembers of its looks at a registered model, so that one state is told once."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote

from tasks.home import Home


@dataclass(frozen=True)
class Pass:
    """What the last look came to."""

    agreed: str | None = None
    """When log and alias last agreed (ISO 8601): whoever moved the alias did it after that."""
    alert: str | None = None
    """What was told and still holds; told again when something else was true in between."""
    tried: str | None = None
    """The id of the entry whose champion was loaded in vain."""
    attempts: int = 0
    """How often that was tried."""
    ago: int = 0
    """Looks since the last attempt."""


def read_pass(home: Home, name: str) -> Pass:
    """The last look; an empty one where none is remembered."""
    try:
        return Pass(**json.loads(_path(home, name).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return Pass()


def keep_pass(home: Home, name: str, found: Pass) -> None:
    """Remember a look. Renamed into place: a reader sees all of it or nothing."""
    path = _path(home, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(asdict(found)), encoding="utf-8")
    temporary.rename(path)


def _path(home: Home, name: str) -> Path:
    return home.root / "reconciled" / quote(name, safe="")

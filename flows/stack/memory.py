"""Small files in which the watchdog remembers over its restarts what it has seen and told."""

import json
from pathlib import Path
from typing import Any

from tasks.files import write_json


def recall(path: Path) -> Any:
    """What was kept; None where nothing is, or what is there is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def keep(path: Path, value: Any) -> None:
    """Have it recalled after a kill, and after a loss of power."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, value)

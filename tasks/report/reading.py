"""Read the files that the stages wrote; one that is missing or torn costs its part of the report only."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)


def read_object(folder: Path | None, name: str) -> Mapping[str, Any]:
    """The JSON object in `folder/name`; empty when there is none that can be read."""
    if folder is None:
        return {}
    try:
        found = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        _log.warning("The report goes without %s: %s", folder / name, error)
        return {}
    return found if isinstance(found, dict) else {}


def read_lines(folder: Path | None, name: str) -> list[Mapping[str, Any]]:
    """The JSON objects in `folder/name`, one a line; lines that hold none are passed over."""
    if folder is None or not (folder / name).is_file():
        return []
    found: list[Mapping[str, Any]] = []
    with (folder / name).open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                found.append(entry)
    return found

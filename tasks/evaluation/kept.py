"""Predictions of earlier evaluations, reused only where everything they depend on is equal."""

import hashlib
import json
import os
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

MOST_FILES = 200
"""The oldest go first. A file holds one model's answers to one set of rows."""
FACTS = b"loraline"


class KeptPredictions:
    """One Parquet file for each fingerprint; its metadata says what the fingerprint is of."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def find(self, facts: Mapping[str, Any], rows: int) -> dict[str, list[Any]] | None:
        """The columns kept for exactly these facts; None where there are none, or the file is damaged."""
        path = self._path(facts)
        if path is None or not path.is_file():
            return None
        try:
            table = pq.read_table(path)
            content = json.loads((table.schema.metadata or {})[FACTS])
        except (OSError, ValueError, KeyError):
            return None
        if content["facts"] != _plain(facts) or table.num_rows != rows:
            return None
        columns: dict[str, list[Any]] = table.to_pydict()
        if content["sha256"] != _digest(columns):
            return None
        with suppress(FileNotFoundError):
            # Not by touching: what another evaluation has cleared away would be there again, empty.
            os.utime(path)
        return columns

    def keep(self, facts: Mapping[str, Any], columns: Mapping[str, Sequence[Any]]) -> None:
        """Keep a model's columns. Nothing is kept without a folder."""
        path = self._path(facts)
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"facts": _plain(facts), "sha256": _digest(columns)}
        table = pa.table({name: list(values) for name, values in columns.items()})
        table = table.replace_schema_metadata({FACTS: json.dumps(content).encode()})
        # Renamed into place: another evaluation may look for it at this moment.
        draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        pq.write_table(table, draft, compression="zstd")
        draft.replace(path)
        files = sorted(path.parent.glob("*.parquet"), key=_last_used)
        for old in files[:-MOST_FILES]:
            old.unlink(missing_ok=True)

    def _path(self, facts: Mapping[str, Any]) -> Path | None:
        if self._folder is None:
            return None
        text = json.dumps(_plain(facts), sort_keys=True)
        return self._folder / f"{hashlib.sha256(text.encode()).hexdigest()}.parquet"


def _last_used(file: Path) -> float:
    """0 for a file that another evaluation clears away at this moment."""
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _plain(facts: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(facts, sort_keys=True))


def _digest(columns: Mapping[str, Sequence[Any]]) -> str:
    return hashlib.sha256(
        json.dumps({k: list(v) for k, v in columns.items()}, sort_keys=True).encode()
    ).hexdigest()

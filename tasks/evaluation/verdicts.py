"""The judge's verdicts, kept on disk from the moment that each arrives: what was paid for is never asked again."""

import json
import threading
from pathlib import Path
from typing import Self


class Verdicts:
    """JSONL of `[key, score]`, read whole at the start and appended to; threads may add at once.

    Without a path nothing outlives the object. Use it as a context manager.
    """

    def __init__(self, path: Path | None) -> None:
        self._lock = threading.Lock()
        self._file = None
        self._known: dict[str, float] = {}
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        # Unbuffered: each line is one write at the file's end, so that neither a kill nor another
        # evaluation, which appends to the same file, comes between.
        self._file = path.open("a+b", buffering=0)
        self._file.seek(0)
        text = self._file.readall()
        self._known = _read(text)
        if text and not text.endswith(b"\n"):
            # What a killed process left unfinished stays a line of its own.
            self._file.write(b"\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def get(self, key: str) -> float | None:
        """The score on 0-1 that was given to this question, or None."""
        return self._known.get(key)

    def add(self, key: str, score: float) -> None:
        """Remember one."""
        with self._lock:
            self._known[key] = score
            if self._file is not None:
                self._file.write(json.dumps([key, score]).encode() + b"\n")


def _read(text: bytes) -> dict[str, float]:
    found: dict[str, float] = {}
    for line in text.splitlines():
        try:
            key, score = json.loads(line)
            found[str(key)] = float(score)
        except (ValueError, TypeError):
            # The last line of a process that was killed while it wrote.
            continue
    return found

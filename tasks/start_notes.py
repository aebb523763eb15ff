"""Which start a training with the same inputs had: written down here, and in the store that homes share."""

import json
import logging
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.files import file_sha256

if TYPE_CHECKING:
    from tasks.store import Store

COMPLETE = "COMPLETE.json"
"""The manifest of a checkpoint, and of a note in the remote store."""
CHECKPOINTS = "checkpoints"
"""Of the remote store: `checkpoints/<training>/checkpoint-<step>`."""
_NOTES, _FILE = "beginnings", "note.json"
_log = logging.getLogger(__name__)
Note = dict[str, Any]
"""`training`: a fingerprint. `start`: a `Start.record`, or None."""


def write_note(asked: str, note: Note, store: "Store") -> None:
    """Replaced whole, here and there; a remote store that is away costs a warning."""
    path = _path(asked, store)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{uuid.uuid4().hex[:8]}.tmp")
    temporary.write_text(json.dumps(note), encoding="utf-8")
    temporary.replace(path)
    if store.remote is None:
        return
    from tasks.remote_store import Unavailable

    with tempfile.TemporaryDirectory() as name:
        draft = Path(name)
        (draft / _FILE).write_text(json.dumps(note), encoding="utf-8")
        manifest = {"files": {_FILE: file_sha256(draft / _FILE)}}
        (draft / COMPLETE).write_text(json.dumps(manifest), encoding="utf-8")
        try:
            store.remote.push(draft, f"{_NOTES}/{asked}", COMPLETE)
        except Unavailable as error:
            _log.warning("%s. Other homes do not learn what this training starts from", error)


def read_notes(asked: str, store: "Store") -> list[Note]:
    """This home's first, then the one that the homes share; those that are torn are none."""
    found = [_parsed(_path(asked, store))]
    if store.remote is not None:
        from tasks.remote_store import Unavailable

        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "note"
            try:
                if store.remote.pull(f"{_NOTES}/{asked}", folder, COMPLETE):
                    found.append(_parsed(folder / _FILE))
            except Unavailable as error:
                _log.warning("%s. What other homes started from is not known", error)
    return [note for note in found if note is not None]


def goes_on_elsewhere(training: str, store: "Store") -> bool:
    """Whether the remote store holds a complete checkpoint of this training."""
    if store.remote is None:
        return False
    from tasks.remote_store import Unavailable

    place = f"{CHECKPOINTS}/{training}"
    try:
        names = store.remote.folders(place)
        return any(store.remote.has(f"{place}/{name}", COMPLETE) for name in names)
    except Unavailable as error:
        _log.warning("%s. Checkpoints of other homes are not known", error)
        return False


def _path(asked: str, store: "Store") -> Path:
    return store.root / _NOTES / f"{asked}.json"


def _parsed(path: Path) -> Note | None:
    try:
        note: Note = json.loads(path.read_text(encoding="utf-8"))
        note["training"], note["start"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return note

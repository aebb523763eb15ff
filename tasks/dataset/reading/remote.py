"""Files behind URLs: listed and fetched by fsspec, kept while the server says that they are unchanged."""

import hashlib
import json
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock

from tasks.dataset.reading.data_file import data_file
from tasks.dataset.reading.places import PATTERN, Placed, files_of_a_folder, no_files
from tasks.dataset.reading.remote_failures import refusal
from tasks.dataset.source_settings import FilesSource, JsonlSource
from tasks.errors import DataError

UNCHANGED = ("ETag", "etag", "md5Hash", "Content-MD5", "VersionId", "generation")
"""What file systems call a mark that changes with the content; a date alone is too coarse."""
SILENT_SECONDS = 60.0
"""How long a web server may send nothing."""

_log = logging.getLogger(__name__)


def remote_files(source: FilesSource | JsonlSource, cache: Path) -> Placed:
    """Local copies of the URL's files, sorted by name.

    A file is fetched again unless the server gives it a mark (an ETag, a version) and the mark is
    the one of the copy: a file without a mark may have changed.

    Raises: DataError when nothing is there, or it cannot be had.
    """
    shown = source.path.partition("?")[0]
    try:
        import fsspec  # type: ignore[import-untyped]

        system, root = fsspec.core.url_to_fs(source.path, **_options(source))
        names = _names(system, root, source)
        if not names:
            raise DataError(no_files(shown, root, []))
        taken, passed_over = (
            files_of_a_folder(list(names), source.format) if len(names) > 1 else (list(names), [])
        )
        if not taken:
            raise DataError(no_files(shown, root, passed_over))
        files = []
        for name in taken:
            address = system.unstrip_protocol(names[name]).partition("?")[0]
            copy = _copy(system, names[name], address, source.storage_options, cache)
            files.append(data_file(copy, address, name, source.format))
        return Placed(tuple(files), tuple(passed_over))
    except DataError:
        raise
    except Exception as error:
        # Every file system raises its own library's errors.
        raise DataError(refusal(shown, error, SILENT_SECONDS)) from error


def _options(source: FilesSource | JsonlSource) -> dict[str, Any]:
    """The recipe's options, and for a web server how long it may be silent."""
    if not urlsplit(source.path).scheme.startswith("http"):
        return source.storage_options
    from aiohttp import ClientTimeout

    # By default a download ends after five minutes, however fast the bytes come.
    patience = ClientTimeout(total=None, sock_connect=SILENT_SECONDS, sock_read=SILENT_SECONDS)
    own = source.storage_options.get("client_kwargs", {})
    return {**source.storage_options, "client_kwargs": {"timeout": patience, **own}}


def _names(system: Any, root: str, source: FilesSource | JsonlSource) -> dict[str, str]:
    """Name free of the URL's folder -> the file system's own path."""
    if PATTERN & set(root) and not urlsplit(source.path).scheme.startswith("http"):
        start = root
        while PATTERN & set(start):
            start = start.rpartition("/")[0]
        found = [
            path for path, info in system.glob(root, detail=True).items() if info["type"] == "file"
        ]
        return {path.removeprefix(start).lstrip("/"): path for path in found}
    if urlsplit(source.path).scheme.startswith("http") or system.isfile(root):
        return {_last(root): root}
    return {path.removeprefix(root).lstrip("/"): path for path in system.find(root)}


def _copy(system: Any, path: str, address: str, options: dict[str, Any], cache: Path) -> Path:
    """The file's copy in `cache`, fetched if there is none or it may be another one."""
    system.invalidate_cache()
    info = system.info(path)
    mark = {key: str(info[key]) for key in UNCHANGED if info.get(key)}
    mark["size"] = str(info.get("size"))
    folder = cache / "files"
    folder.mkdir(parents=True, exist_ok=True)
    stem = hashlib.sha256(f"{system.protocol} {options!r} {path}".encode()).hexdigest()
    copy = folder / stem[:32]
    known = copy.with_suffix(".json")
    with FileLock(copy.with_suffix(".lock")):
        if len(mark) > 1 and copy.is_file() and _read_mark(known) == mark:
            # For collecting: the copy itself keeps its time, by which its hash is remembered.
            with suppress(OSError):
                known.touch()
            return copy
        _log.info("Fetching %s (%s bytes)", address, mark["size"])
        temporary = copy.with_suffix(f".{os.getpid()}.tmp")
        try:
            system.get_file(path, str(temporary))
            # Bytes before the mark: a mark without its bytes would pass for them.
            known.unlink(missing_ok=True)
            temporary.replace(copy)
        finally:
            temporary.unlink(missing_ok=True)
        known.write_text(json.dumps(mark), encoding="utf-8")
    return copy


def _read_mark(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _last(path: str) -> str:
    return path.partition("?")[0].rstrip("/").rpartition("/")[2]

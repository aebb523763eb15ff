"""The store beyond this machine: complete folders at any fsspec URL that the workers share.

Files go to their final places and the manifest last; a folder without one is nobody's. What comes back is
compared with the manifest, byte for byte, before anything uses it.
"""

import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from tasks.addresses import without_passwords
from tasks.errors import UserError
from tasks.files import file_sha256

VARIABLE = "LORALINE_STORE"
PAUSES = (1.0, 5.0)
"""Seconds between attempts. Stores answer "slow down" and drop connections; more is an outage."""
OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"}
"""They have no folders, and making one would make the bucket that a typing mistake names."""
_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class Unavailable(Exception):
    """The remote store could not do what was asked, in words."""


class RemoteStore:
    """Folders below one URL, `s3://bucket/prefix` for example. Credentials come from the environment."""

    def __init__(self, url: str) -> None:
        """Raises: UserError for a URL that nothing here reads."""
        # Most runs have no remote store.
        import fsspec  # type: ignore[import-untyped]

        self.shown = without_passwords(url)
        try:
            self._system, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise UserError(
                f"{VARIABLE} is {self.shown}, and nothing here reads that: {error}. For s3:// run: pip "
                'install "loraline[s3]"; unset it to keep outputs on this machine alone.'
            ) from error
        self._root = str(root).rstrip("/")
        protocols = self._system.protocol
        names = {protocols} if isinstance(protocols, str) else set(protocols)
        self._is_object_store = bool(names & OBJECT_STORES)

    def has(self, place: str, manifest: str) -> bool:
        """Whether the folder is there and complete. Raises: Unavailable."""
        return bool(self._tried(f"look for {place}", lambda: self._exists(place, manifest)))

    def push(self, folder: Path, place: str, manifest: str) -> None:
        """Copy a complete local folder there, its manifest last. Raises: Unavailable, OSError."""
        names = _listed(folder / manifest)
        for name in [*names, manifest]:
            self._tried(f"write {place}/{name}", partial(self._put, folder, place, name))

    def pull(self, place: str, folder: Path, manifest: str) -> bool:
        """Fetch a complete folder; whether there was one. `folder` is there whole, or not at all.

        Raises: Unavailable; OSError where this machine's disk fails.
        """
        if not self.has(place, manifest):
            return False
        draft = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.draft"
        draft.mkdir(parents=True)
        try:
            self._get(place, manifest, draft)
            files: dict[str, str] = json.loads((draft / manifest).read_text(encoding="utf-8"))[
                "files"
            ]
            for name, sha in files.items():
                if not _stays_below(name):
                    raise Unavailable(
                        f"{self.shown}/{place} names a file outside of itself: {name}"
                    )
                self._get(place, name, draft)
                if file_sha256(draft / name) != sha:
                    raise Unavailable(f"{self.shown}/{place}/{name} is not what was written there")
            shutil.rmtree(folder, ignore_errors=True)
            draft.rename(folder)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Unavailable(f"{self.shown}/{place}/{manifest} is no manifest: {error}") from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return True

    def folders(self, place: str) -> list[str]:
        """Names of the folders in a place, complete or not. Raises: Unavailable."""

        def listed() -> list[str]:
            try:
                found = self._system.ls(f"{self._root}/{place}", detail=True)
            except FileNotFoundError:
                return []
            return sorted(
                str(one["name"]).rstrip("/").rpartition("/")[2]
                for one in found
                if one["type"] == "directory"
            )

        return self._tried(f"list {place}", listed)

    def remove(self, place: str, manifest: str) -> None:
        """Take a folder away: its manifest first, so that a half-removed one never looks complete.

        Raises: Unavailable.
        """

        def gone(path: str) -> None:
            if self._system.exists(path):
                self._system.rm(path, recursive=True)

        for path in (f"{self._root}/{place}/{manifest}", f"{self._root}/{place}"):
            self._tried(f"remove {place}", partial(gone, path))

    def _exists(self, place: str, manifest: str) -> bool:
        return bool(self._system.exists(f"{self._root}/{place}/{manifest}"))

    def _put(self, folder: Path, place: str, name: str) -> None:
        target = f"{self._root}/{place}/{name}"
        if not self._is_object_store:
            self._system.makedirs(target.rpartition("/")[0], exist_ok=True)
        self._system.put_file(str(folder / name), target)

    def _get(self, place: str, name: str, folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        source, target = f"{self._root}/{place}/{name}", str(folder / name)
        self._tried(f"read {place}/{name}", lambda: self._system.get_file(source, target))

    def _tried(self, what: str, action: Callable[[], _T]) -> _T:
        for pause in (*PAUSES, None):
            try:
                return action()
            except Exception as error:
                # Each file system has errors of its own, and none a common base.
                if pause is None or isinstance(error, PermissionError | FileNotFoundError):
                    raise Unavailable(
                        f"{self.shown} did not let us {what}: {type(error).__name__}: {error}"
                    ) from error
                _log.info("%s: %s failed (%s), trying again", self.shown, what, error)
                time.sleep(pause)
        raise AssertionError("the last attempt returns or raises")


def remote_store() -> RemoteStore | None:
    """That of `LORALINE_STORE`; None while the variable is not set.

    Raises: UserError for a URL that nothing here reads.
    """
    url = os.environ.get(VARIABLE)
    return RemoteStore(url) if url else None


def _listed(manifest: Path) -> list[str]:
    files: dict[str, Any] = json.loads(manifest.read_text(encoding="utf-8"))["files"]
    return sorted(files)


def _stays_below(name: str) -> bool:
    return not name.startswith("/") and ".." not in name.split("/")

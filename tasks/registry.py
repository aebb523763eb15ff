"""Registered models as every stage may see them: aliases, the champion, a version's files on this machine."""

import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

from filelock import FileLock

from tasks.artifacts import Version
from tasks.errors import StageFailed, UserError
from tasks.home import Home
from tasks.tracking import Tracker, filter_text
from tasks.version_manifest import ADAPTER_TAG as ADAPTER_TAG
from tasks.version_manifest import BASE_TAG as BASE_TAG
from tasks.version_manifest import FILES_TAG as FILES_TAG
from tasks.version_manifest import FINGERPRINT_TAG as FINGERPRINT_TAG
from tasks.version_manifest import check_files, drop_bytecode

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

CHALLENGER = "challenger"
CHAMPION = "champion"
TRAIN_ROWS = "train_rows.npy"
EARLIER_ROWS = "earlier_rows.npy"
"""Hashes of the rows that the adapters were trained on which a training started from."""
TRAINING = "training.json"
"""The training's `result.json` among a version's papers."""
DATASET_CARD = "dataset.json"
PROMOTED_AT = "loraline.promoted_at"
PROMOTED_BY = "loraline.promoted_by"
PREVIOUS = "previous"
STARTED_FROM_TAG = "loraline.started_from"
"""URI of the version whose adapter the training went on with."""
METRICS_TAG = "loraline.metrics"
"""JSON of `{"base": {...}, "challenger": {...}}` on each version: a list needs no run for it."""

GATE_TAG = "loraline.gate"
"""The gate's verdict on a version: passed, refused, or none where the recipe has no gate."""
VERDICT_TAG = "loraline.gate_verdict"
"""The whole verdict as JSON, rule by rule."""
JUDGED_AGAINST_TAG = "loraline.judged_against"
"""The champion at the time of the verdict, or `none`."""
LONGEST_TAG = 50_000
"""Characters that are kept of a version's tag; MLflow refuses more than 100,000."""


@dataclass(frozen=True)
class VersionFiles:
    """A registered version with its files on this machine."""

    name: str
    version: str
    folder: Path
    """The adapter's folder."""
    adapter_sha256: str
    base_sha256: str
    """The base it belongs on; another one makes it another model."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """What its evaluation measured of the version itself; empty where nothing is recorded."""

    @property
    def train_rows(self) -> Path | None:
        """The hashes of the rows it was trained on; None for a version that keeps none."""
        return self._paper(TRAIN_ROWS)

    @property
    def earlier_rows(self) -> Path | None:
        """The hashes of the rows that its training's start had seen; None where it started from the base."""
        return self._paper(EARLIER_ROWS)

    @property
    def dataset_card(self) -> Path | None:
        """The `card.json` of its dataset; None for a version that keeps none."""
        return self._paper(DATASET_CARD)

    @property
    def training(self) -> dict[str, Any]:
        """What its training came to; empty for a version that keeps no record of it."""
        path = self._paper(TRAINING)
        return {} if path is None else dict(json.loads(path.read_text(encoding="utf-8")))

    @property
    def fixture(self) -> Path:
        """The folder of `fixture.json` and `fixture.safetensors`."""
        return self.folder.parent / "fixture"

    def _paper(self, name: str) -> Path | None:
        path = self.folder.parent / "about" / name
        return path if path.is_file() else None


@dataclass(frozen=True)
class Champion(VersionFiles):
    """The version that the alias `champion` names."""


@contextmanager
def locked(home: Home, name: str) -> Iterator[None]:
    """One process at a time changes the versions and aliases of a registered model."""
    home.locks.mkdir(parents=True, exist_ok=True)
    with FileLock(home.locks / f"registry-{quote(name, safe='')}.lock"):
        yield


@contextmanager
def model_files(tracker: Tracker, model_id: str, home: Home) -> Iterator[Path]:
    """A logged model's files: in place when they are on this machine, else downloaded for the block."""
    if (location := _artifact_location(tracker, model_id)) is None:
        raise StageFailed(
            f'Somebody deleted the logged model {model_id} in MLflow: docs/operations.md, "The disk", says how it '
            "comes back. Or name another version."
        )
    if (local := local_path(location)) is not None:
        drop_bytecode(local)
        yield local
        return
    folder = home.work / f"download-{uuid.uuid4().hex[:12]}"
    try:
        yield download(tracker, f"models:/{model_id}", folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def download(tracker: Tracker, uri: str, folder: Path) -> Path:
    """Download an MLflow artifact to the folder; returns where it lies."""
    from mlflow.artifacts import download_artifacts

    folder.mkdir(parents=True, exist_ok=True)
    with tracker.explained(f"download {uri}"):
        return Path(
            download_artifacts(
                artifact_uri=uri,
                dst_path=str(folder),
                tracking_uri=tracker.uri,
                registry_uri=tracker.uri,
            )
        )


def local_path(location: str) -> Path | None:
    """The folder behind an artifact location, when it is one of this machine."""
    parts = urlsplit(location)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return Path(location) if not parts.scheme else None


def version_of(tracker: Tracker, name: str, number: str) -> Version:
    """The version with its aliases as they are now."""
    with tracker.explained(f"read version {number} of {name!r}"):
        found = tracker.client.get_model_version(name, number)
    return Version(
        name=name,
        version=str(found.version),
        uri=f"models:/{name}/{found.version}",
        aliases=sorted(found.aliases),
        mlflow_run_id=found.run_id or "",
    )


def aliased(tracker: Tracker, name: str, alias: str) -> "ModelVersion | None":
    """The version that an alias names, or None when the name or the alias does not exist.

    Raises: StageFailed when the alias names a version that is gone.
    """
    from mlflow.exceptions import MlflowException

    with tracker.explained(f"read the alias {alias!r} of {name!r}"):
        try:
            aliases: dict[str, str] = tracker.client.get_registered_model(name).aliases
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        if alias not in aliases:
            return None
        return tracker.client.get_model_version(name, str(aliases[alias]))


def aliased_versions(tracker: Tracker, name: str) -> dict[str, list[str]]:
    """Version -> its aliases, for those that have any; the search of versions leaves them out."""
    with tracker.explained(f"read the aliases of {name!r}"):
        aliases: dict[str, str] = tracker.client.get_registered_model(name).aliases
    found: dict[str, list[str]] = {}
    for alias, number in sorted(aliases.items()):
        found.setdefault(str(number), []).append(alias)
    return found


def versions_of(tracker: Tracker, name: str) -> "list[ModelVersion]":
    """Every version of the name, oldest first; empty for a name that is not registered."""
    found: list[ModelVersion] = []
    token: str | None = None
    with tracker.explained(f"list the versions of {name!r}"):
        while True:
            page = tracker.client.search_model_versions(
                f"name = {filter_text(name)}", max_results=1000, page_token=token
            )
            found += list(page)
            token = page.token
            if not token:
                return sorted(found, key=lambda version: int(version.version))


def version_at(tracker: Tracker, uri: str) -> "ModelVersion":
    """The version behind `models:/NAME/VERSION` or `models:/NAME@ALIAS`.

    Raises: UserError when there is none.
    """
    from mlflow.exceptions import MlflowException

    name, _, alias = uri.removeprefix("models:/").partition("@")
    name, _, number = name.partition("/")
    with tracker.explained(f"read {uri}"):
        try:
            if alias:
                return tracker.client.get_model_version_by_alias(name, alias)
            return tracker.client.get_model_version(name, number)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            raise UserError(
                f"{uri} is not in the registry. `loraline versions {name}` lists what there is."
            ) from error


def version_files(tracker: Tracker, version: "ModelVersion", home: Home) -> VersionFiles:
    """A version's files, in place when they are on this machine, else downloaded and kept.

    Raises: StageFailed when they are missing, damaged or not loraline's.
    """
    what = f"Version {version.version} of {version.name!r} is asked for"
    return _files(tracker, version, home, what, "Restore its artifacts, or name another version.")


def current_champion(tracker: Tracker, name: str, home: Home) -> Champion | None:
    """The champion with its adapter on this machine, or None while the name has none.

    Raises: StageFailed when there is a champion but its files are missing, damaged or not loraline's:
    judging a challenger as if there were none would promote it unseen.
    """
    version = aliased(tracker, name, CHAMPION)
    if version is None:
        return None
    ways_out = (
        "Restore its artifacts, or move the alias to a version that loads "
        f"(`mlflow` UI, or MlflowClient().set_registered_model_alias({name!r}, 'champion', VERSION)), "
        "or delete the alias; then run again."
    )
    what = f"Version {version.version} of {name!r} is the champion"
    return Champion(**vars(_files(tracker, version, home, what, ways_out)))


def _files(
    tracker: Tracker, version: "ModelVersion", home: Home, what: str, ways_out: str
) -> VersionFiles:
    name, number, tags = str(version.name), str(version.version), version.tags
    if ADAPTER_TAG not in tags or BASE_TAG not in tags:
        raise StageFailed(f"{what}, but it was not registered by loraline. {ways_out}")
    cached = home.cache / "champions" / tags[ADAPTER_TAG]
    model_id = model_id_of(version)
    if (location := _artifact_location(tracker, model_id)) is None:
        raise StageFailed(
            f"{what}, but somebody deleted the logged model {model_id} in MLflow, which has its files. {ways_out}"
        )
    folder = local_path(location)
    if folder is not None:
        drop_bytecode(folder)
    else:
        folder = cached
        if check_files(folder, tags).wrong:
            shutil.rmtree(folder, ignore_errors=True)
            draft = home.work / f"download-{uuid.uuid4().hex[:12]}"
            try:
                files = download(tracker, f"models:/{model_id}", draft)
                folder.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(files, folder)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
    if found := check_files(folder, tags).wrong:
        raise StageFailed(
            f"{what}, but its files in {folder} are not those that were registered: {'; '.join(found)}. {ways_out}"
        )
    return VersionFiles(
        name=name,
        version=number,
        folder=folder / "artifacts" / "adapter",
        adapter_sha256=tags[ADAPTER_TAG],
        base_sha256=tags[BASE_TAG],
        metrics=dict(json_tag(tags.get(METRICS_TAG)).get("challenger") or {}),
    )


def verdict_tags(
    gate: Mapping[str, Any] | None, metrics: Mapping[str, Any], champion: str | None
) -> dict[str, str]:
    """What a version bears of an evaluation; of a very long verdict the rules that were broken.

    `champion` is the version that was champion then (None: there was none).
    """
    text = json.dumps(gate or {}, default=str)
    if gate is not None and len(text) > LONGEST_TAG:
        rules: Any = gate.get("rules") or []
        broken = [rule for rule in rules if not rule.get("passed")][:50]
        text = json.dumps(
            {"passed": gate.get("passed"), "rules": broken, "shortened": len(rules)}, default=str
        )
    return {
        METRICS_TAG: json.dumps(
            {model: metrics.get(model) for model in ("base", "champion", "challenger")}
        ),
        GATE_TAG: "none" if gate is None else "passed" if gate.get("passed") else "refused",
        VERDICT_TAG: text,
        JUDGED_AGAINST_TAG: champion or "none",
    }


def _artifact_location(tracker: Tracker, model_id: str) -> str | None:
    """Where the files of a logged model lie; None where it is deleted."""
    from mlflow.exceptions import MlflowException

    with tracker.explained(f"find the files of model {model_id}"):
        try:
            return str(tracker.client.get_logged_model(model_id).artifact_location)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None


def json_tag(text: str | None) -> dict[str, Any]:
    """The object in a tag; empty where there is none, or none that can be read."""
    try:
        value = json.loads(text or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def model_id_of(version: "ModelVersion") -> str:
    """The logged model behind a version. Raises: UserError where it came from elsewhere."""
    if found := logged_model_of(version):
        return found
    raise UserError(
        f"Version {version.version} of {version.name!r} comes from {version.source}, not from a logged model: "
        "it was not registered by loraline."
    )


def logged_model_of(version: "ModelVersion") -> str | None:
    """Its id; MLflow's own registry leaves `model_id` empty."""
    source = str(version.source or "")
    if version.model_id:
        return str(version.model_id)
    return source.removeprefix("models:/") if source.startswith("models:/m-") else None

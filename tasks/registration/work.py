"""Register an adapter as a version of a model in MLflow's registry: verified first, and only once."""

import json
import logging
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tasks.artifacts import Version
from tasks.base import lock_path
from tasks.registration.description import description, model_description, summary
from tasks.registration.environment import ENVIRONMENT, environment_lock
from tasks.registration.job import Verification
from tasks.registration.package import Contents, gather, model_config, recorded_path, write_model
from tasks.registration.provenance import Provenance
from tasks.registration.settings import RegistrationSettings
from tasks.registration.verification import verify_version
from tasks.registration.versions import create_version, find_by_fingerprint, upload_model
from tasks.registry import (
    ADAPTER_TAG,
    BASE_TAG,
    CHALLENGER,
    CHAMPION,
    DATASET_CARD,
    EARLIER_ROWS,
    FILES_TAG,
    FINGERPRINT_TAG,
    GATE_TAG,
    METRICS_TAG,
    PROMOTED_AT,
    TRAIN_ROWS,
    TRAINING,
    VERDICT_TAG,
    locked,
    verdict_tags,
    version_of,
)
from tasks.store import Store, fingerprint
from tasks.tracking import Tracker

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

OUTPUT_VERSION = 3
RECORD = "version.json"
_log = logging.getLogger(__name__)


def fingerprint_of(
    settings: RegistrationSettings,
    *,
    name: str,
    adapter_fingerprint: str,
    evaluation_fingerprint: str,
    tracking_uri: str,
) -> str:
    """What decides a registration.

    This home's own registry counts as one place, whether it is reached through its file or through
    the server that `loraline ui` runs before it.
    """
    parts = urlsplit(tracking_uri)
    local = parts.scheme == "sqlite" or parts.hostname in ("127.0.0.1", "localhost", "::1")
    place = "local" if local else f"{parts.scheme}://{parts.hostname}:{parts.port}{parts.path}"
    return fingerprint(
        "registration",
        OUTPUT_VERSION,
        {**settings.model_dump(mode="json"), "name": name, "registry": place},
        {"adapter": adapter_fingerprint, "evaluation": evaluation_fingerprint},
    )


@dataclass(frozen=True)
class Registered:
    """A registration that still stands."""

    version: Version
    """With its aliases as they are now."""
    evaluation: str
    """Fingerprint of the evaluation that let it pass."""
    was_promoted: bool
    """Whether it is or once was champion: a person's rollback is not undone."""


def find_registered(store: Store, key: str, tracker: Tracker) -> Registered | None:
    """The version that this registration made.

    None when there is no record, or when the registry no longer has that version ready and with the
    recorded content: it must then be registered again.
    """
    folder = store.find("registration", key)
    if folder is None:
        return None
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    found = find_by_fingerprint(tracker, record["name"], record["fingerprint"])
    if found is None or str(found.version) != record["version"]:
        return None
    version = version_of(tracker, record["name"], record["version"])
    promoted = PROMOTED_AT in found.tags or CHAMPION in version.aliases
    return Registered(version, record["stages"]["evaluation"], promoted)


def register_adapter(
    store: Store,
    settings: RegistrationSettings,
    *,
    tracker: Tracker,
    name: str,
    made: Provenance,
    max_tokens: int = 256,
    key: str | None = None,
) -> Version:
    """Register the adapter under `name` and point the alias `challenger` to it, unless the gate refused it.

    The same adapter on the same base is one version, whoever registers it how often: a version with
    its content is returned, with the gate's newest verdict on it. A new one is uploaded, compared
    byte by byte, loaded in a fresh process and compared with the trained adapter's logits before it
    is a version at all; so no version is ever half there.

    `max_tokens` is the longest answer when a request names none. Writes the store's output
    `registration/<key>`: `version.json` and `summary.md`; the default key is `fingerprint_of(...)`.

    Raises: StageFailed when MLflow refuses, the upload is damaged or the reloaded model differs.
    """
    key = key or fingerprint_of(
        settings,
        name=name,
        adapter_fingerprint=made.adapter.fingerprint,
        evaluation_fingerprint=made.report.fingerprint,
        tracking_uri=tracker.uri,
    )
    home = tracker.home
    text = description(made, name=name, purpose=settings.description)
    verification: Verification | None = None
    with home.scratch("registration") as scratch, locked(home, name):
        contents = gather(
            scratch / "contents",
            adapter=made.adapter.folder,
            fixture=made.adapter.path,
            base=made.base,
            about=_about(made),
        )
        tags = {
            **settings.tags,
            **_tags(made, contents),
        }
        existing = find_by_fingerprint(tracker, name, contents.fingerprint)
        if existing is not None:
            number = str(existing.version)
            _log.info("Version %s of %s already holds this adapter", number, name)
            with tracker.explained(f"update version {number} of {name!r}"):
                for judged in (GATE_TAG, VERDICT_TAG, METRICS_TAG):
                    tracker.client.set_model_version_tag(name, number, judged, tags[judged])
                tracker.client.update_model_version(name, number, text)
        else:
            config = model_config(
                name=name,
                base=made.base,
                recipe_path=made.recipe_path,
                contents=contents,
                max_tokens=max_tokens,
                home=home,
            )
            model_id, files_sha256, verification = _upload_and_verify(
                tracker, contents, config, scratch / "model", made
            )
            number = create_version(
                tracker,
                name,
                model_id=model_id,
                run_id=made.run_id,
                tags={**tags, FILES_TAG: files_sha256},
                description=text,
                model_description=model_description(name, settings.description),
            )
        if made.report.gate is None or made.report.gate["passed"]:
            with tracker.explained(f"set the alias {CHALLENGER!r}"):
                tracker.client.set_registered_model_alias(name, CHALLENGER, number)
        version = version_of(tracker, name, number).model_copy(
            update={"proof": verification and verification.told}
        )
    stages = {
        "dataset": made.dataset.fingerprint,
        "tokenization": made.tokens.fingerprint,
        "training": made.adapter.fingerprint,
        "evaluation": made.report.fingerprint,
        "registration": key,
    }
    record = {
        "name": name,
        "version": version.version,
        "uri": version.uri,
        "mlflow_run_id": version.mlflow_run_id,
        "fingerprint": contents.fingerprint,
        "stages": stages,
    }
    page = summary(
        version,
        run_url=tracker.run_url(version.mlflow_run_id or made.run_id),
        version_url=tracker.version_url(name, version.version),
        description=text,
        verification=verification,
        notes={
            "Recipe": f"`{recorded_path(made.recipe_path, home)}`",
            "Adapter": f"`{made.adapter.sha256[:12]}`",
        },
    )

    def build(folder: Path) -> None:
        (folder / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
        (folder / "summary.md").write_text(page, encoding="utf-8")

    # By force: an older record may name a version that was deleted since.
    store.publish("registration", key, build, force=True)
    return version


def git_commit(folder: Path) -> str | None:
    """The commit of the git repository around `folder`, with `-dirty` when tracked files differ from it."""
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return f"{commit}-dirty" if changed else commit


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _upload_and_verify(
    tracker: Tracker,
    contents: Contents,
    config: dict[str, object],
    folder: Path,
    made: Provenance,
) -> tuple[str, str, Verification]:
    """Store the model and prove it: the id of a ready model, the digest of its files, the proof."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    client, run_id, home = tracker.client, made.run_id, tracker.home
    with tracker.explained("create the model"):
        experiment = client.get_run(run_id).info.experiment_id
        model = client.create_logged_model(experiment, name="adapter", source_run_id=run_id)
        model_id = str(model.model_id)
    status = LoggedModelStatus.FAILED
    try:
        files_sha256 = write_model(folder, contents, config, run_id=run_id, model_id=model_id)
        upload_model(tracker, folder, model_id=model_id, home=home)
        verification = verify_version(
            tracker,
            f"models:/{model_id}",
            base=made.base.path,
            fixture=contents.folder / "fixture",
            home=home,
        )
        status = LoggedModelStatus.READY
    finally:
        with tracker.explained("give the model its status"):
            client.finalize_logged_model(model_id, status)
    with tracker.explained("link the model to its run"):
        client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
    with tracker.explained("link the metrics to the model"):
        _link_metrics(client, run_id, model, made.report.metrics.get("challenger") or {})
    return model_id, files_sha256, verification


def _link_metrics(
    client: "MlflowClient", run_id: str, model: "LoggedModel", values: Mapping[str, float]
) -> None:
    """Show the run's metrics on the model's page, too.

    MLflow writes a model's metrics into its run as well. A point that the run has already, with the
    same step and time, stays one point.
    """
    from mlflow.entities import Metric

    metrics = []
    for name, value in values.items():
        points = client.get_metric_history(run_id, name)
        point = max(points, key=lambda point: (point.step, point.timestamp), default=None)
        if point is None:
            point = Metric(name, value, model.creation_timestamp, 0)
        metrics.append(
            Metric(name, point.value, point.timestamp, point.step, model_id=str(model.model_id))
        )
    client.log_batch(run_id, metrics=metrics)


def _tags(made: Provenance, contents: Contents) -> dict[str, str]:
    base = made.base
    return {
        FINGERPRINT_TAG: contents.fingerprint,
        ADAPTER_TAG: made.adapter.sha256,
        BASE_TAG: base.weights_sha256,
        "loraline.base_model": base.shown,
        **_optional("loraline.base_commit", base.commit),
        "loraline.dataset_digest": made.dataset.digest,
        "loraline.recipe_digest": made.recipe_digest,
        **_optional("loraline.started_from", made.started_from),
        **verdict_tags(made.report.gate, made.report.metrics, made.judged_against),
        **_optional("loraline.git_commit", git_commit(made.recipe_path.parent)),
        **_optional("loraline.prefect_flow_run_id", made.prefect_flow_run_id),
    }


def _optional(key: str, value: str | None) -> dict[str, str]:
    return {key: value} if value else {}


def _about(made: Provenance) -> Mapping[str, Path | str]:
    """The papers of a version: by which recipe, on which data, in which environment, with which result."""
    papers: dict[str, Path | str] = {
        "recipe.yaml": made.recipe_text,
        ENVIRONMENT: environment_lock(),
    }
    for name, path in (
        ("recipe.lock", lock_path(made.recipe_path)),
        (DATASET_CARD, made.dataset.path / "card.json"),
        (TRAIN_ROWS, made.dataset.path / TRAIN_ROWS),
        (EARLIER_ROWS, made.adapter.path / EARLIER_ROWS),
        ("report.md", made.report.document),
        (TRAINING, made.adapter.path / "result.json"),
    ):
        if path.is_file():
            papers[name] = path
    return papers

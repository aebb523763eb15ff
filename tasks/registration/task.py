"""The Prefect tasks around the registry: what is registered already, who is champion, register."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from tasks.artifacts import Adapter, Version
from tasks.errors import NoGpuTurn
from tasks.gpu_turn import gpu_turn
from tasks.outage import bridged
from tasks.progress import announce
from tasks.registration.provenance import Provenance
from tasks.registration.settings import RegistrationSettings
from tasks.stage_report import show_summary, started
from tasks.store import Store
from tasks.tracking import Tracker

if TYPE_CHECKING:
    from tasks.registration.work import Registered
    from tasks.registry import Champion, VersionFiles


def registration_key(
    settings: RegistrationSettings,
    *,
    name: str,
    adapter: Adapter,
    evaluation: str,
    tracker: Tracker,
) -> str:
    """The registration's fingerprint: the same adapter, judged by the same questions, in this registry."""
    from tasks.registration import work

    return work.fingerprint_of(
        settings,
        name=name,
        adapter_fingerprint=adapter.fingerprint,
        evaluation_fingerprint=evaluation,
        tracking_uri=tracker.uri,
    )


def find_registered(store: Store, key: str, tracker: Tracker) -> "Registered | None":
    """The version that the registration `key` made, if it still stands."""
    from tasks.registration import work

    return work.find_registered(store, key, tracker)


def recipe_commit(folder: Path) -> str | None:
    """The commit of the git repository around a recipe's folder, marked where files differ from it."""
    from tasks.registration import work

    return work.git_commit(folder)


def verifier(tracker: Tracker, base: Path | None = None) -> Callable[[str], str]:
    """What a promotion is given to prove a version with: it loads `models:/NAME/VERSION` in a fresh process."""
    from tasks.registration.proving import prove_version

    return lambda uri: prove_version(tracker, uri, base=base)


@task(
    name="find champion",
    task_run_name="find champion of {name}",
    persist_result=False,
    cache_policy=NO_CACHE,
)
def find_champion(tracker: Tracker, name: str) -> "Champion | None":
    """The champion with its adapter on this machine; None without one.

    Raises: StageFailed when there is one and it cannot be loaded.
    """
    from tasks.registry import current_champion

    champion = current_champion(tracker, name, tracker.home)
    if champion is None:
        get_run_logger().info("%s has no champion yet", name)
    else:
        get_run_logger().info("The champion of %s is version %s", name, champion.version)
    return champion


@task(
    name="find version",
    task_run_name="find {name} {version}",
    persist_result=False,
    cache_policy=NO_CACHE,
)
def find_version(tracker: Tracker, name: str, version: str) -> "VersionFiles":
    """A version by number or alias, with its adapter on this machine.

    Raises: UserError when there is none; StageFailed when it cannot be loaded.
    """
    from tasks.registry import version_at, version_files

    sign = "/" if version.isdecimal() else "@"
    return version_files(
        tracker, version_at(tracker, f"models:/{name}{sign}{version}"), tracker.home
    )


def adapter_of(version: "VersionFiles") -> Adapter:
    """A registered version as the evaluation takes an adapter; its fingerprint is its own."""
    from tasks.store import digest

    return Adapter(
        path=version.folder.parent,
        fingerprint=digest(["version", version.name, version.version, version.adapter_sha256]),
        reused=True,
        seconds=0.0,
        sha256=version.adapter_sha256,
        trainable_parameters=int(version.training.get("trainable_parameters", 0)),
    )


@task(
    name="register adapter",
    task_run_name="register adapter of {name}",
    persist_result=False,
    cache_policy=NO_CACHE,
)
def register_adapter(
    key: str,
    *,
    settings: RegistrationSettings,
    store: Store,
    tracker: Tracker,
    name: str,
    made: Provenance,
    max_tokens: int,
) -> Version:
    """Register the adapter (once), publish the summary, return the version."""
    from tasks.registration import work

    began = time.monotonic()
    started("registration")

    def register() -> Version:
        return bridged(
            lambda: work.register_adapter(
                store,
                settings,
                key=key,
                tracker=tracker,
                name=name,
                made=made,
                max_tokens=max_tokens,
            ),
            doing=f"register {name}",
        )

    try:
        version = register()
    except NoGpuTurn:
        # A run waits for a GPU however long it takes, but not with the model's lock: another recipe's run
        # may hold the GPU and register under the same name.
        with gpu_turn():
            version = register()
    seconds = time.monotonic() - began
    get_run_logger().info(
        "Adapter %s is version %s of %s (%.1f s)",
        made.adapter.sha256[:12],
        version.version,
        name,
        seconds,
    )
    show_summary(
        "registration", store.path("registration", key), f"{name}, version {version.version}"
    )
    announce("stage", stage="registration", state="done", seconds=seconds, fingerprint=key)
    return version


@task(
    name="answer rows",
    task_run_name="answer rows by {model}",
    persist_result=False,
    cache_policy=NO_CACHE,
)
def answer_file(
    tracker: Tracker, model: str, source: Path, target: Path, *, max_tokens: int | None = None
) -> dict[str, Any]:
    """Answer the rows of a JSONL file, and write them as JSONL or Parquet by the suffix of `target`.

    An alias is resolved once, so that all rows have the answers of one version.

    Raises: UserError for bad rows or a version that is not there; WorkerFailed when the process dies.
    """
    from tasks.registration.prediction import answer_rows, model_uri, read_rows, write_rows
    from tasks.registry import version_at

    rows = read_rows(source)
    found = version_at(tracker, model_uri(model))
    uri = f"models:/{found.name}/{found.version}"
    logger = get_run_logger()
    logger.info("Answering %d rows of %s with %s", len(rows), source, uri)
    answers = answer_rows(
        rows,
        tracker=tracker,
        uri=uri,
        base=None,
        home=tracker.home,
        max_tokens=max_tokens,
        on_event=lambda event: announce(**event),
    )
    write_rows(target, rows, answers)
    cut = sum(answer.finish_reason == "length" for answer in answers)
    if cut:
        logger.warning("%d of %d answers were cut at the longest answer", cut, len(answers))
    return {"rows": len(rows), "cut": cut, "model": uri, "output": str(target)}

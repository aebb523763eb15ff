"""The Prefect tasks around the registry: what is registered already, who is champion, register."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from tasks.artifacts import Adapter, Dataset, Report, Tokens, Version
from tasks.base import Base
from tasks.progress import announce
from tasks.registration.settings import RegistrationSettings
from tasks.store import Store
from tasks.tracking import Tracker

if TYPE_CHECKING:
    from tasks.registration.work import Registered
    from tasks.registry import Champion


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


@task(name="find champion", persist_result=False, cache_policy=NO_CACHE)
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


@task(name="register adapter", persist_result=False, cache_policy=NO_CACHE)
def register_adapter(
    key: str,
    *,
    settings: RegistrationSettings,
    store: Store,
    tracker: Tracker,
    name: str,
    run_id: str,
    dataset: Dataset,
    tokens: Tokens,
    adapter: Adapter,
    report: Report,
    base: Base,
    recipe_path: Path,
    recipe_text: str,
    recipe_digest: str,
    prefect_flow_run_id: str | None,
    max_tokens: int,
) -> Version:
    """Register the adapter (once), publish the summary, return the version."""
    from tasks.registration import work

    started = time.monotonic()
    announce("stage", stage="registration", state="started")
    version = work.register_adapter(
        store,
        settings,
        key=key,
        tracker=tracker,
        name=name,
        run_id=run_id,
        dataset=dataset,
        tokens=tokens,
        adapter=adapter,
        report=report,
        base=base,
        recipe_path=recipe_path,
        recipe_text=recipe_text,
        recipe_digest=recipe_digest,
        prefect_flow_run_id=prefect_flow_run_id,
        home=tracker.home,
        max_tokens=max_tokens,
    )
    seconds = time.monotonic() - started
    get_run_logger().info(
        "Adapter %s is version %s of %s (%.1f s)",
        adapter.sha256[:12],
        version.version,
        name,
        seconds,
    )
    create_markdown_artifact(
        (store.path("registration", key) / "summary.md").read_text(encoding="utf-8"),
        key="loraline-registration",
        description=f"{name}, version {version.version}",
    )
    announce("stage", stage="registration", state="done", seconds=seconds, fingerprint=key)
    return version
